//! Rotary frequencies, shared by every executor.

use crate::config::{RopeConfig, RopeScaling};

/// The angles of one rotary embedding.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RopeTable {
    /// Angle per position of each rotated pair. `[dim / 2]`
    pub(crate) frequencies: Vec<f32>,
    /// Multiplies cosine and sine.
    pub(crate) magnitude: f32,
}

impl RopeTable {
    /// The table for sequences that end within (`long` false) or beyond the original context.
    pub(crate) fn new(rope: &RopeConfig, long: bool) -> Self {
        let half = rope.dim / 2;
        let plain = |pair: usize| 1.0 / rope.base.powf(2.0 * pair as f32 / rope.dim as f32);
        let divided = |factors: &[f32]| (0..half).map(|pair| plain(pair) / factors[pair]).collect();
        let (frequencies, magnitude) = match &rope.scaling {
            RopeScaling::None => ((0..half).map(plain).collect(), 1.0),
            RopeScaling::Linear { factor } => ((0..half).map(|pair| plain(pair) / factor).collect(), 1.0),
            RopeScaling::Factors(factors) => (divided(factors), 1.0),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                let context = *original_context as f32;
                let scaled = |pair: usize| {
                    let frequency = plain(pair);
                    let wavelength = std::f32::consts::TAU / frequency;
                    if wavelength > context / low_freq_factor {
                        frequency / factor
                    } else if wavelength < context / high_freq_factor {
                        frequency
                    } else {
                        let smooth =
                            (context / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                        (1.0 - smooth) * frequency / factor + smooth * frequency
                    }
                };
                ((0..half).map(scaled).collect(), 1.0)
            }
            RopeScaling::Yarn {
                factor,
                beta_fast,
                beta_slow,
                original_context,
                truncate,
                attention_factor,
            } => {
                // The pair that turns `rotations` times within the original context.
                let pair_of = |rotations: f32| {
                    let context = *original_context as f32;
                    rope.dim as f32 * (context / (rotations * std::f32::consts::TAU)).ln()
                        / (2.0 * rope.base.ln())
                };
                let whole =
                    |low: f32, high: f32| if *truncate { (low.floor(), high.ceil()) } else { (low, high) };
                let (low, high) = whole(pair_of(*beta_fast), pair_of(*beta_slow));
                let (low, high) = (low.max(0.0), high.min(rope.dim as f32 - 1.0));
                let width = if high > low { high - low } else { 0.001 };
                let blended = |pair: usize| {
                    let interpolated = ((pair as f32 - low) / width).clamp(0.0, 1.0);
                    plain(pair) / factor * interpolated + plain(pair) * (1.0 - interpolated)
                };
                ((0..half).map(blended).collect(), *attention_factor)
            }
            RopeScaling::LongRope { short, long: beyond, attention_factor, .. } => {
                (divided(if long { beyond } else { short }), *attention_factor)
            }
        };
        Self { frequencies, magnitude }
    }

    /// Cosines and sines of `position`, each of length `dim / 2`.
    pub(crate) fn angles(&self, position: usize, cos: &mut [f32], sin: &mut [f32]) {
        for ((frequency, cos), sin) in self.frequencies.iter().zip(cos).zip(sin) {
            let angle = position as f32 * frequency;
            *cos = angle.cos() * self.magnitude;
            *sin = angle.sin() * self.magnitude;
        }
    }
}

impl RopeConfig {
    /// Whether a sequence of `total` tokens takes the long set of factors.
    pub(crate) fn is_long(&self, total: usize) -> bool {
        matches!(&self.scaling, RopeScaling::LongRope { original_context, .. } if total > *original_context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_frequencies_fall_geometrically() {
        let rope = RopeConfig { dim: 4, base: 10_000.0, scaling: RopeScaling::None };
        let table = RopeTable::new(&rope, false);
        assert_eq!(table.frequencies, [1.0, 0.01]);
        let (mut cos, mut sin) = ([0.0; 2], [0.0; 2]);
        table.angles(3, &mut cos, &mut sin);
        assert_eq!((cos[0], sin[0]), (3f32.cos(), 3f32.sin()));
    }

    #[test]
    fn longrope_switches_beyond_the_original_context() {
        let scaling = RopeScaling::LongRope {
            short: vec![1.0, 1.0],
            long: vec![2.0, 4.0],
            original_context: 8,
            attention_factor: 1.5,
        };
        let rope = RopeConfig { dim: 4, base: 10_000.0, scaling };
        assert!(!rope.is_long(8) && rope.is_long(9));
        assert_eq!(RopeTable::new(&rope, true).frequencies, [0.5, 0.0025]);
        assert_eq!(RopeTable::new(&rope, true).magnitude, 1.5);
    }
}
