//! Methods that work element by element: sums of models and of thinned deltas, and what compares two models.

use orion_core::Result;

use super::group::{Group, Piece, Scratch};
use super::sparse::{Mask, Thinning, magnitude};

/// How deltas are added.
#[derive(Debug, Clone)]
pub(super) struct Adding {
    /// Per model that is not the base, in order.
    pub(super) weights: Vec<f64>,
    pub(super) thinning: Vec<Thinning>,
    /// Only deltas count that have the sign of the sum.
    pub(super) consensus: bool,
    pub(super) normalize: bool,
    pub(super) lambda: f64,
}

impl Group<'_> {
    /// Weighted sum, over the weights' sum if `normalize`.
    pub(super) fn linear(&self, weights: &[f64], normalize: bool) -> Result<Vec<u8>> {
        let weights: Vec<f32> = weights.iter().map(|&weight| weight as f32).collect();
        let divisor = if normalize { weights.iter().sum() } else { 1.0 };
        self.write(|piece, scratch| {
            self.read_all(piece, scratch)?;
            let Scratch { x, y, .. } = scratch;
            y.clear();
            y.resize(piece.elements.len(), 0.0);
            for (x, weight) in x.iter().zip(&weights) {
                y.iter_mut().zip(x).for_each(|(y, x)| *y += weight * x);
            }
            if normalize {
                y.iter_mut().for_each(|y| *y /= divisor);
            }
            Ok(())
        })
    }

    /// The base and the sum of thinned deltas.
    pub(super) fn add_deltas(&self, adding: &Adding) -> Result<Vec<u8>> {
        let others: Vec<usize> = self.others().collect();
        let masks = others
            .iter()
            .zip(&adding.thinning)
            .map(|(&input, thinning)| self.mask(input, thinning))
            .collect::<Result<Vec<Mask>>>()?;
        let scales = others
            .iter()
            .zip(&masks)
            .zip(&adding.thinning)
            .map(
                |((&input, mask), thinning)| {
                    if thinning.rescale { self.rescaling(input, mask) } else { Ok(1.0) }
                },
            )
            .collect::<Result<Vec<f32>>>()?;
        let weights: Vec<f32> = adding.weights.iter().map(|&weight| weight as f32).collect();
        let lambda = adding.lambda as f32;
        self.write(|piece, scratch| {
            self.read_all(piece, scratch)?;
            let Scratch { x, y, z, signs, .. } = scratch;
            let base = self.base.map(|base| std::mem::take(&mut x[base])).unwrap_or_default();
            for ((((&input, mask), scale), weight), thinning) in
                others.iter().zip(&masks).zip(&scales).zip(&weights).zip(&adding.thinning)
            {
                let delta = &mut x[input];
                delta.iter_mut().zip(&base).for_each(|(x, b)| *x -= b);
                self.apply(mask, piece, delta);
                if thinning.rescale {
                    delta.iter_mut().for_each(|x| *x *= scale);
                }
                delta.iter_mut().for_each(|x| *x *= weight);
            }
            y.clear();
            y.resize(piece.elements.len(), 0.0);
            for &input in &others {
                y.iter_mut().zip(&x[input]).for_each(|(y, d)| *y += d);
            }
            if adding.consensus {
                // The sum's sign is what the deltas must have to count.
                signs.clear();
                signs.extend(y.iter().map(|&y| if y >= 0.0 { 1.0f32 } else { -1.0 }));
                y.fill(0.0);
                z.clear();
                z.resize(y.len(), 0.0);
                for (&input, &weight) in others.iter().zip(&weights) {
                    let sums = y.iter_mut().zip(z.iter_mut());
                    for (((sum, divisor), &delta), &sign) in sums.zip(&x[input]).zip(&*signs) {
                        let agrees = delta * sign > 0.0;
                        *sum += if agrees { delta } else { 0.0 };
                        *divisor += if agrees { weight } else { 0.0 };
                    }
                }
                if adding.normalize {
                    let normalised = y.iter_mut().zip(z.iter());
                    normalised.for_each(|(y, &divisor)| *y /= if divisor == 0.0 { 1.0 } else { divisor });
                }
            } else if adding.normalize {
                let divisor: f32 = weights.iter().sum();
                let divisor = if divisor.abs() < 1e-8 { 1.0 } else { divisor };
                y.iter_mut().for_each(|y| *y /= divisor);
            }
            y.iter_mut().zip(&base).for_each(|(y, b)| *y = b + *y * lambda);
            if let Some(at) = self.base {
                x[at] = base;
            }
            Ok(())
        })
    }

    /// Select the positions that vary most, calculate weights by energy, erase minority signs.
    pub(super) fn sce(&self, select_topk: f64) -> Result<Vec<u8>> {
        let others: Vec<usize> = self.others().collect();
        let count = others.len() as f32;
        let deltas = |piece: &Piece, scratch: &mut Scratch| -> Result<()> {
            self.read_all(piece, scratch)?;
            let base = self.base.map(|base| std::mem::take(&mut scratch.x[base])).unwrap_or_default();
            for &input in &others {
                scratch.x[input].iter_mut().zip(&base).for_each(|(x, b)| *x -= b);
            }
            scratch.y = base;
            Ok(())
        };
        let variances = |piece: &Piece, scratch: &mut Scratch, out: &mut Vec<u32>| -> Result<()> {
            deltas(piece, scratch)?;
            out.clear();
            out.extend((0..piece.elements.len()).map(|at| {
                let mean = others.iter().map(|&input| scratch.x[input][at]).sum::<f32>() / count;
                let squares = others.iter().map(|&input| (scratch.x[input][at] - mean).powi(2));
                magnitude(squares.sum::<f32>() / count)
            }));
            Ok(())
        };
        let all = self.elements() as u64;
        // `None`: all positions; otherwise the so many that vary most.
        let selected = if select_topk >= 1.0 {
            None
        } else if select_topk <= 0.0 {
            Some((0, None))
        } else {
            let varying = self.each(|piece, scratch| {
                let mut keys = Vec::new();
                variances(piece, scratch, &mut keys)?;
                Ok(keys.iter().filter(|&&key| key != 0).count() as u64)
            })?;
            let kept = (varying.iter().sum::<u64>() as f64 * select_topk) as u64;
            let cut = (kept > 0).then(|| self.cut(all - kept, &variances)).transpose()?;
            Some((kept, cut))
        };
        let masked = |piece: &Piece, scratch: &mut Scratch| -> Result<()> {
            let Some((kept, cut)) = &selected else { return deltas(piece, scratch) };
            let mut keys = Vec::new();
            variances(piece, scratch, &mut keys)?;
            let mut seen = 0;
            for (at, key) in keys.into_iter().enumerate() {
                let stays = cut.as_ref().is_some_and(|cut| cut.keeps(key, piece, &mut seen, all, *kept));
                if !stays {
                    others.iter().for_each(|&input| scratch.x[input][at] = 0.0);
                }
            }
            Ok(())
        };
        let energies = self.each(|piece, scratch| {
            masked(piece, scratch)?;
            let energy = |&input: &usize| scratch.x[input].iter().map(|x| f64::from(x * x)).sum::<f64>();
            Ok(others.iter().map(energy).collect::<Vec<_>>())
        })?;
        let mut weights = vec![0.0; others.len()];
        for part in energies {
            weights.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
        }
        weights.iter_mut().for_each(|weight| *weight /= all.max(1) as f64);
        let sum: f64 = weights.iter().sum();
        let equal = 1.0 / f64::from(count);
        let weights: Vec<f32> =
            weights.iter().map(|weight| if sum.abs() < 1e-6 { equal } else { weight / sum } as f32).collect();
        self.write(|piece, scratch| {
            masked(piece, scratch)?;
            let Scratch { x, y, .. } = scratch;
            for (at, y) in y.iter_mut().enumerate() {
                let positive = others.iter().map(|&input| x[input][at]).sum::<f32>() >= 0.0;
                let (mut sum, mut divisor) = (0.0, 0.0);
                for (&input, weight) in others.iter().zip(&weights) {
                    let delta = x[input][at];
                    let agrees = if positive { delta > 0.0 } else { delta < 0.0 };
                    if agrees {
                        sum += delta * weight;
                        divisor += weight;
                    }
                }
                *y += sum / divisor.max(1e-6);
            }
            Ok(())
        })
    }

    /// From the base towards the other model, by at most `t`.
    pub(super) fn nearswap(&self, base: usize, other: usize, t: f64) -> Result<Vec<u8>> {
        let t = t as f32;
        self.write(|piece, scratch| {
            self.read(base, piece, &mut scratch.y)?;
            self.read(other, piece, &mut scratch.z)?;
            for (a, b) in scratch.y.iter_mut().zip(&scratch.z) {
                let weight = (t / (*a - b).abs().max(1e-6)).clamp(0.0, 1.0);
                *a = weight * b + (1.0 - weight) * *a;
            }
            Ok(())
        })
    }

    /// Takes the elements of the other model whose change matters: by change times divergence of the row, above the
    /// median by one and a half quartile ranges.
    pub(super) fn arcee_fusion(&self, base: usize, other: usize) -> Result<Vec<u8>> {
        let scores = |piece: &Piece, scratch: &mut Scratch, out: &mut Vec<f32>| -> Result<()> {
            self.read(base, piece, &mut scratch.y)?;
            self.read(other, piece, &mut scratch.z)?;
            out.clear();
            for (q, p) in scratch.y.chunks(self.columns).zip(scratch.z.chunks(self.columns)) {
                let divergence = divergence(p, q);
                out.extend(p.iter().zip(q).map(|(p, q)| (p - q).abs() * divergence));
            }
            Ok(())
        };
        let keys = |piece: &Piece, scratch: &mut Scratch, out: &mut Vec<u32>| -> Result<()> {
            let mut found = Vec::new();
            scores(piece, scratch, &mut found)?;
            out.clear();
            out.extend(found.into_iter().map(ordered));
            Ok(())
        };
        let last = (self.elements().max(1) - 1) as f32;
        let mut quartiles = [0.0; 3];
        for (value, share) in quartiles.iter_mut().zip([0.25f32, 0.5, 0.75]) {
            *value = from_ordered(self.cut((share * last) as u64, &keys)?.key());
        }
        let [low, median, high] = quartiles;
        let threshold = median + 1.5 * (high - low);
        self.write(|piece, scratch| {
            let mut found = Vec::new();
            scores(piece, scratch, &mut found)?;
            for ((q, p), score) in scratch.y.iter_mut().zip(&scratch.z).zip(found) {
                if score >= threshold {
                    *q += p - *q;
                }
            }
            Ok(())
        })
    }

    /// One model's tensor times a number.
    pub(super) fn scaled(&self, scale: Option<f64>) -> Result<Vec<u8>> {
        self.write(|piece, scratch| {
            self.read(0, piece, &mut scratch.y)?;
            if let Some(scale) = scale {
                scratch.y.iter_mut().for_each(|x| *x *= scale as f32);
            }
            Ok(())
        })
    }

    /// Sums what one model changed, and means of what several changed. With `plus`, `(r, alpha)`, what only one changed
    /// grows with the share of its changes that others made, too.
    pub(super) fn ram(&self, epsilon: f64, plus: Option<(f64, f64)>) -> Result<Vec<u8>> {
        let others: Vec<usize> = self.others().collect();
        let epsilon = epsilon as f32;
        let deltas = |piece: &Piece, scratch: &mut Scratch| -> Result<()> {
            self.read_all(piece, scratch)?;
            let base = self.base.map(|base| std::mem::take(&mut scratch.x[base])).unwrap_or_default();
            for &input in &others {
                scratch.x[input].iter_mut().zip(&base).for_each(|(x, b)| *x -= b);
            }
            scratch.y = base;
            Ok(())
        };
        let mut factors = vec![1.0f32; others.len()];
        if let Some((r, alpha)) = plus {
            let counts = self.each(|piece, scratch| {
                deltas(piece, scratch)?;
                let mut counts = vec![(0u64, 0u64); others.len()];
                for at in 0..piece.elements.len() {
                    let changed = |input: usize| scratch.x[input][at].abs() > epsilon;
                    let several = others.iter().filter(|&&input| changed(input)).count() > 1;
                    for (&input, (shared, unique)) in others.iter().zip(&mut counts) {
                        let changed = u64::from(changed(input));
                        if several { *shared += changed } else { *unique += changed }
                    }
                }
                Ok(counts)
            })?;
            for (at, factor) in factors.iter_mut().enumerate() {
                let sums = counts.iter().fold((0, 0), |sum, part| (sum.0 + part[at].0, sum.1 + part[at].1));
                let rho = sums.0 as f64 / (sums.1 as f64).max(f64::from(epsilon));
                *factor = (1.0 + r * rho.clamp(0.0, alpha)) as f32;
            }
        }
        self.write(|piece, scratch| {
            deltas(piece, scratch)?;
            let Scratch { x, y, .. } = scratch;
            for (at, y) in y.iter_mut().enumerate() {
                let changes = || {
                    others
                        .iter()
                        .zip(&factors)
                        .map(|(&input, f)| (x[input][at], f))
                        .filter(|(d, _)| d.abs() > epsilon)
                };
                let count = changes().count();
                let sum: f32 = match count {
                    0 => 0.0,
                    1 => changes().map(|(d, factor)| d * factor).sum(),
                    several => changes().map(|(d, _)| d / several as f32).sum(),
                };
                *y += sum;
            }
            Ok(())
        })
    }
}

/// Kullback-Leibler divergence of two rows' softmaxes, each with 1e-8 added.
fn divergence(p: &[f32], q: &[f32]) -> f32 {
    let normaliser = |x: &[f32]| {
        let most = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        (most, x.iter().map(|x| f64::from((x - most).exp())).sum::<f64>())
    };
    let ((p_most, p_sum), (q_most, q_sum)) = (normaliser(p), normaliser(q));
    let terms = p.iter().zip(q).map(|(p, q)| {
        let p = f64::from((p - p_most).exp()) / p_sum + 1e-8;
        let q = f64::from((q - q_most).exp()) / q_sum + 1e-8;
        p * (p / q).ln()
    });
    terms.sum::<f64>() as f32
}

/// Orders as the number does, negative ones too.
fn ordered(x: f32) -> u32 {
    let bits = x.to_bits();
    if bits >> 31 == 1 { !bits } else { bits | 1 << 31 }
}

fn from_ordered(key: u32) -> f32 {
    f32::from_bits(if key >> 31 == 1 { key & 0x7fff_ffff } else { !key })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_order_as_numbers_do() {
        let numbers = [f32::NEG_INFINITY, -2.0, -1e-30, -0.0, 0.0, 1e-30, 3.0, f32::INFINITY];
        assert!(numbers.map(ordered).is_sorted());
        assert_eq!(numbers.map(|x| from_ordered(ordered(x)).to_bits()), numbers.map(f32::to_bits));
    }
}
