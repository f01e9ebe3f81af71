//! Elementary functions and row operations, eight lanes at a time.
#![allow(unsafe_code, reason = "vector loads and stores within slices")]

use crate::isa::Isa;
use crate::simd::{Kernel, Lanes, dispatch};

/// `e^x`, within 2 units in the last place; 0 below about -87.3, infinite above about 88.7, NaN for NaN.
///
/// Range reduction by Cody and Waite, then the degree-6 polynomial of Cephes' `expf`.
#[inline(always)]
pub(crate) fn exp<L: Lanes>(x: L) -> L {
    let s = L::splat;
    // In this order a NaN survives both bounds.
    let bounded = s(88.37).min(s(-87.33).max(x));
    let n = bounded.mul(s(std::f32::consts::LOG2_E)).round();
    let r = n.fma(s(-0.693_359_4), bounded);
    let r = n.fma(s(2.121_944_4e-4), r);
    let mut p = s(1.987_569_1e-4);
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5] {
        p = p.fma(r, s(c));
    }
    let value = p.fma(r.mul(r), r).add(s(1.0)).mul(n.exp2_int());
    let value = s(0.0).where_less(x, s(-87.33), value);
    s(f32::INFINITY).where_less(s(88.37), x, value)
}

/// `e^x` of one value, by the same operations.
#[inline(always)]
pub(crate) fn exp1<L: Lanes>(x: f32) -> f32 {
    exp(L::splat(x)).to_array()[0]
}

/// Absolute error below 2e-7.
#[inline(always)]
pub(crate) fn tanh<L: Lanes>(x: L) -> L {
    let s = L::splat;
    let e = exp(x.abs().mul(s(-2.0)));
    s(1.0).sub(e).div(s(1.0).add(e)).copysign(x)
}

/// Abramowitz and Stegun 7.1.26; absolute error below 5e-7.
#[inline(always)]
fn erf<L: Lanes>(x: L) -> L {
    let s = L::splat;
    let a = x.abs();
    let t = s(1.0).div(a.fma(s(0.327_591_1), s(1.0)));
    let mut p = s(1.061_405_4);
    for c in [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6] {
        p = p.fma(t, s(c));
    }
    let e = exp(a.mul(a).mul(s(-1.0)));
    s(1.0).sub(p.mul(t).mul(e)).copysign(x)
}

/// The non-linearity of a feed-forward block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Activation {
    /// `x / (1 + e^-x)`.
    Silu,
    /// GELU in its tanh form.
    GeluTanh,
    /// GELU by the error function.
    GeluErf,
    /// `max(x, 0)`.
    Relu,
}

/// `x / (1 + e^-by)`.
#[inline(always)]
fn logistic<L: Lanes>(x: L, by: L) -> L {
    x.div(L::splat(1.0).add(exp(by.mul(L::splat(-1.0)))))
}

// No closures around lanes: one that is not inlined is compiled without the vector instructions, and then every
// operation in it is a call.
#[inline(always)]
fn activate<L: Lanes>(activation: Activation, x: L) -> L {
    let s = L::splat;
    match activation {
        Activation::Silu => logistic(x, x),
        Activation::GeluTanh => {
            // 0.5 (1 + tanh u) is the logistic function of 2 u.
            let u = x.mul(x).mul(x).fma(s(0.044_715), x).mul(s(2.0 * 0.797_884_6));
            logistic(x, u)
        }
        Activation::GeluErf => {
            let half = x.mul(s(0.5));
            half.fma(erf(x.mul(s(std::f32::consts::FRAC_1_SQRT_2))), half)
        }
        Activation::Relu => x.max(s(0.0)),
    }
}

/// Calls `f` with the index of every full group of eight, then with a padded copy of the tail.
macro_rules! eights {
    ($len:expr, $step:expr, $tail:expr) => {{
        let full = $len / 8 * 8;
        let mut i = 0;
        while i < full {
            $step(i);
            i += 8;
        }
        if full < $len {
            $tail(full);
        }
    }};
}

struct Gate<'a>(Activation, &'a mut [f32], Option<&'a [f32]>);

impl Kernel for Gate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Self(activation, values, factor) = self;
        let len = values.len();
        let values = values.as_mut_ptr();
        let mut i = 0;
        // SAFETY: all indices are below the length, and `factor` is no shorter.
        unsafe {
            while i + 8 <= len {
                let mut value = activate(activation, L::load(values.add(i)));
                if let Some(factor) = factor {
                    value = value.mul(L::load(factor.as_ptr().add(i)));
                }
                value.store(values.add(i));
                i += 8;
            }
            while i < len {
                let mut value = activate(activation, L::splat(*values.add(i)));
                if let Some(factor) = factor {
                    value = value.mul(L::splat(factor[i]));
                }
                *values.add(i) = value.to_array()[0];
                i += 1;
            }
        }
    }
}

/// Applies an activation to every value and multiplies by `factor` where given (gated feed-forward blocks).
///
/// # Panics
/// If `factor` is shorter than `values`.
pub fn activate_rows(isa: Isa, activation: Activation, values: &mut [f32], factor: Option<&[f32]>) {
    assert!(factor.is_none_or(|f| f.len() >= values.len()), "a factor for every value");
    dispatch(isa, Gate(activation, values, factor));
}

/// `out = x / sqrt(mean(x²) + eps) * weight`. A convention that stores `weight - 1` adds the one at load time.
///
/// # Panics
/// If the lengths differ.
pub fn rms_norm(isa: Isa, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    assert!(x.len() == weight.len() && x.len() == out.len(), "rows of one length");
    dispatch(
        isa,
        RmsNorm { x: x.as_ptr(), weight: weight.as_ptr(), eps, out: out.as_mut_ptr(), len: x.len() },
    );
}

/// Pointers, so that a row can be normalised in place.
pub(crate) struct RmsNorm {
    pub(crate) x: *const f32,
    pub(crate) weight: *const f32,
    pub(crate) eps: f32,
    pub(crate) out: *mut f32,
    pub(crate) len: usize,
}

impl Kernel for RmsNorm {
    type Output = ();

    #[inline(always)]
    #[allow(clippy::cast_precision_loss, reason = "row lengths are far below 2^24")]
    fn run<L: Lanes>(self) {
        let Self { x, weight, eps, out, len } = self;
        // SAFETY: whoever builds the value vouches for `len` values behind each pointer.
        unsafe {
            let mut sums = [L::splat(0.0); 2];
            let mut tail = 0.0f32;
            eights!(
                len,
                |i: usize| {
                    let v = L::load(x.add(i));
                    sums[i / 8 % 2] = v.fma(v, sums[i / 8 % 2]);
                },
                |from: usize| {
                    for i in from..len {
                        tail = (*x.add(i)).mul_add(*x.add(i), tail);
                    }
                }
            );
            let mean = (sums[0].add(sums[1]).sum() + tail) / len as f32;
            let inverse = 1.0 / (mean + eps).sqrt();
            eights!(
                len,
                |i: usize| L::load(x.add(i))
                    .mul(L::splat(inverse))
                    .mul(L::load(weight.add(i)))
                    .store(out.add(i)),
                |from: usize| {
                    for i in from..len {
                        *out.add(i) = *x.add(i) * inverse * *weight.add(i);
                    }
                }
            );
        }
    }
}

/// `out = (x - mean) / sqrt(variance + eps) * weight + bias`.
///
/// # Panics
/// If the lengths differ.
pub fn layer_norm(isa: Isa, x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) {
    let len = x.len();
    assert!(len == weight.len() && len == bias.len() && len == out.len(), "rows of one length");
    let (weight, bias) = (weight.as_ptr(), bias.as_ptr());
    dispatch(isa, LayerNormRow { x: x.as_ptr(), weight, bias, eps, out: out.as_mut_ptr(), len });
}

/// Pointers, so that a row can be normalised in place.
pub(crate) struct LayerNormRow {
    pub(crate) x: *const f32,
    pub(crate) weight: *const f32,
    pub(crate) bias: *const f32,
    pub(crate) eps: f32,
    pub(crate) out: *mut f32,
    pub(crate) len: usize,
}

impl Kernel for LayerNormRow {
    type Output = ();

    #[inline(always)]
    #[allow(clippy::cast_precision_loss, reason = "row lengths are far below 2^24")]
    fn run<L: Lanes>(self) {
        let Self { x, weight, bias, eps, out, len } = self;
        // SAFETY: whoever builds the value vouches for `len` values behind each pointer.
        unsafe {
            let mut sums = [L::splat(0.0); 2];
            let mut tail = 0.0f32;
            eights!(
                len,
                |i: usize| sums[i / 8 % 2] = sums[i / 8 % 2].add(L::load(x.add(i))),
                |from: usize| (from..len).for_each(|i| tail += *x.add(i))
            );
            let mean = (sums[0].add(sums[1]).sum() + tail) / len as f32;
            let mut squares = [L::splat(0.0); 2];
            let mut tail = 0.0f32;
            eights!(
                len,
                |i: usize| {
                    let v = L::load(x.add(i)).sub(L::splat(mean));
                    squares[i / 8 % 2] = v.fma(v, squares[i / 8 % 2]);
                },
                |from: usize| {
                    for i in from..len {
                        tail = (*x.add(i) - mean).mul_add(*x.add(i) - mean, tail);
                    }
                }
            );
            let variance = (squares[0].add(squares[1]).sum() + tail) / len as f32;
            let inverse = 1.0 / (variance + eps).sqrt();
            eights!(
                len,
                |i: usize| {
                    let v = L::load(x.add(i)).sub(L::splat(mean)).mul(L::splat(inverse));
                    v.fma(L::load(weight.add(i)), L::load(bias.add(i))).store(out.add(i));
                },
                |from: usize| {
                    for i in from..len {
                        *out.add(i) = ((*x.add(i) - mean) * inverse).mul_add(*weight.add(i), *bias.add(i));
                    }
                }
            );
        }
    }
}

/// `to += x`.
pub(crate) struct Sum {
    pub(crate) x: *const f32,
    pub(crate) to: *mut f32,
    pub(crate) len: usize,
}

impl Kernel for Sum {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let full = self.len / 8 * 8;
        // SAFETY: whoever builds the value vouches for `len` values on both sides.
        unsafe {
            for i in (0..full).step_by(8) {
                L::load(self.x.add(i)).add(L::load(self.to.add(i))).store(self.to.add(i));
            }
            (full..self.len).for_each(|i| *self.to.add(i) += *self.x.add(i));
        }
    }
}

struct SoftCap<'a>(&'a mut [f32], f32);

impl Kernel for SoftCap<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let cap = L::splat(self.1);
        let len = self.0.len();
        let values = self.0.as_mut_ptr();
        // SAFETY: all indices are below the length.
        unsafe {
            eights!(
                len,
                |i: usize| tanh(L::load(values.add(i)).div(cap)).mul(cap).store(values.add(i)),
                |from: usize| {
                    for i in from..len {
                        *values.add(i) = tanh(L::splat(*values.add(i)).div(cap)).mul(cap).to_array()[0];
                    }
                }
            );
        }
    }
}

/// `cap * tanh(value / cap)` for every value.
pub fn soft_cap(isa: Isa, values: &mut [f32], cap: f32) {
    dispatch(isa, SoftCap(values, cap));
}

/// The `k` greatest values with their indices, greatest first; of equal values the lower index first. NaN is left
/// out. `out` is cleared first and allocates only if its capacity is below `k`.
///
/// One pass that compares every value with the least of those kept: of 262,144 logits some hundred survive it.
pub fn top_k(values: &[f32], k: usize, out: &mut Vec<(u32, f32)>) {
    out.clear();
    if k == 0 {
        return;
    }
    let worse = |a: (u32, f32), b: (u32, f32)| a.1 < b.1 || (a.1 == b.1 && a.0 > b.0);
    let offer = |index: usize, value: f32, out: &mut Vec<(u32, f32)>| {
        let item = (u32::try_from(index).expect("vocabularies are below 2^32"), value);
        if out.len() < k {
            // A heap with the worst kept item at its root.
            out.push(item);
            let mut at = out.len() - 1;
            while at > 0 && worse(out[at], out[(at - 1) / 2]) {
                out.swap(at, (at - 1) / 2);
                at = (at - 1) / 2;
            }
        } else if worse(out[0], item) {
            out[0] = item;
            let mut at = 0;
            loop {
                let mut least = at;
                for child in [2 * at + 1, 2 * at + 2] {
                    if child < k && worse(out[child], out[least]) {
                        least = child;
                    }
                }
                if least == at {
                    break;
                }
                out.swap(at, least);
                at = least;
            }
        }
    };
    for (chunk_index, chunk) in values.chunks(64).enumerate() {
        let floor = if out.len() < k { f32::NEG_INFINITY } else { out[0].1 };
        // Branch-free over the chunk; most chunks hold nothing of interest.
        if out.len() == k && !chunk.iter().fold(false, |any, &v| any | (v > floor)) {
            continue;
        }
        for (i, &value) in chunk.iter().enumerate() {
            if !value.is_nan() {
                offer(chunk_index * 64 + i, value, out);
            }
        }
    }
    out.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    struct Apply<'a, F>(&'a [f32], F);
    trait Function {
        fn apply<L: Lanes>(&self, x: L) -> L;
    }
    impl<F: Function> Kernel for Apply<'_, F> {
        type Output = Vec<f32>;
        #[inline(always)]
        fn run<L: Lanes>(self) -> Vec<f32> {
            // SAFETY: chunks of eight.
            self.0
                .chunks_exact(8)
                .flat_map(|v| self.1.apply(unsafe { L::load(v.as_ptr()) }).to_array())
                .collect()
        }
    }
    struct Exp;
    impl Function for Exp {
        #[inline(always)]
        fn apply<L: Lanes>(&self, x: L) -> L {
            exp(x)
        }
    }
    struct Tanh;
    impl Function for Tanh {
        #[inline(always)]
        fn apply<L: Lanes>(&self, x: L) -> L {
            tanh(x)
        }
    }

    fn grid(from: f32, to: f32) -> Vec<f32> {
        (0..80_000).map(|i| from + (to - from) * i as f32 / 80_000.0).collect()
    }

    #[test]
    fn exp_is_within_its_bound_and_alike_on_every_isa() {
        let xs = grid(-87.3, 88.3);
        let reference = dispatch(Isa::Scalar, Apply(&xs, Exp));
        for (x, y) in xs.iter().zip(&reference) {
            let exact = f64::from(*x).exp();
            assert!((f64::from(*y) - exact).abs() <= exact * 2.4e-7, "{x} {y} {exact}");
        }
        let edges = [f32::NEG_INFINITY, -1e9, -88.0, 0.0, 89.0, f32::INFINITY, f32::NAN, -0.0];
        for isa in Isa::available() {
            let bits = |v: Vec<f32>| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(dispatch(isa, Apply(&xs, Exp))), bits(reference.clone()), "{isa}");
            let at_edges = dispatch(isa, Apply(&edges, Exp));
            assert_eq!(at_edges[..6], [0.0, 0.0, 0.0, 1.0, f32::INFINITY, f32::INFINITY]);
            assert!(at_edges[6].is_nan() && at_edges[7] == 1.0);
        }
    }

    #[test]
    fn tanh_is_within_its_bound() {
        let xs = grid(-12.0, 12.0);
        for isa in Isa::available() {
            for (x, y) in xs.iter().zip(dispatch(isa, Apply(&xs, Tanh))) {
                assert!((f64::from(y) - f64::from(*x).tanh()).abs() < 2e-7, "{isa} {x} {y}");
            }
        }
    }

    /// erf by its Taylor series, enough for |x| < 3, and 1 beyond.
    fn erf64(x: f64) -> f64 {
        if x.abs() > 4.5 {
            return x.signum();
        }
        let (mut term, mut sum) = (x, x);
        for n in 1..120 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        sum * 2.0 / std::f64::consts::PI.sqrt()
    }

    #[test]
    fn activations_match_double_precision_on_every_isa_and_tail() {
        for isa in Isa::available() {
            for len in [0, 1, 7, 8, 9, 1003] {
                let xs: Vec<f32> = (0..len).map(|i| (i as f32 - 500.0) * 0.02).collect();
                let by: Vec<f32> = (0..len).map(|i| (i % 5) as f32 - 2.0).collect();
                for activation in
                    [Activation::Silu, Activation::GeluTanh, Activation::GeluErf, Activation::Relu]
                {
                    let mut out = xs.clone();
                    activate_rows(isa, activation, &mut out, Some(&by));
                    for ((x, by), y) in xs.iter().zip(&by).zip(out) {
                        let x = f64::from(*x);
                        let exact = match activation {
                            Activation::Silu => x / (1.0 + (-x).exp()),
                            Activation::GeluTanh => {
                                0.5 * x
                                    * (1.0 + (0.797_884_560_802_865_4 * (x + 0.044_715 * x * x * x)).tanh())
                            }
                            Activation::GeluErf => 0.5 * x * (1.0 + erf64(x / 2f64.sqrt())),
                            Activation::Relu => x.max(0.0),
                        } * f64::from(*by);
                        // Relative to the size of the input: 1e-6 is eight units in the last place.
                        let bound = 1e-6 * (1.0 + x.abs()) * 2.0;
                        assert!((f64::from(y) - exact).abs() < bound, "{isa} {activation:?} {x} {y} {exact}");
                    }
                }
            }
        }
    }

    proptest! {
        #[test]
        fn norms_match_double_precision(x in prop::collection::vec(-50f32..50.0, 1..200)) {
            let n = x.len() as f64;
            let weight: Vec<f32> = (0..x.len()).map(|i| 0.5 + i as f32 / 100.0).collect();
            let mean = x.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
            let square = x.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / n;
            let mut first = vec![0.0; x.len()];
            rms_norm(Isa::Scalar, &x, &weight, 1e-6, &mut first);
            for isa in Isa::available() {
                let mut out = vec![0.0; x.len()];
                rms_norm(isa, &x, &weight, 1e-6, &mut out);
                prop_assert_eq!(&out, &first);
            }
            let mut layer = vec![0.0; x.len()];
            layer_norm(Isa::Scalar, &x, &weight, &weight, 1e-5, &mut layer);
            for isa in Isa::available() {
                let mut out = vec![0.0; x.len()];
                layer_norm(isa, &x, &weight, &weight, 1e-5, &mut out);
                prop_assert_eq!(&out, &layer);
            }
            for i in 0..x.len() {
                let (v, w) = (f64::from(x[i]), f64::from(weight[i]));
                prop_assert!((f64::from(first[i]) - v / (square + 1e-6).sqrt() * w).abs() < 1e-4);
                let variance = square - mean * mean;
                prop_assert!((f64::from(layer[i]) - ((v - mean) / (variance + 1e-5).sqrt() * w + w)).abs() < 2e-3);
            }
        }

        #[test]
        fn top_k_is_the_head_of_the_sorted_list(
            values in prop::collection::vec(prop_oneof![-5f32..5.0, Just(f32::NAN), Just(1.0), Just(f32::NEG_INFINITY)], 0..500),
            k in 0usize..40,
        ) {
            let mut expected: Vec<(u32, f32)> =
                values.iter().enumerate().filter(|v| !v.1.is_nan()).map(|(i, &v)| (i as u32, v)).collect();
            expected.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap().then(a.0.cmp(&b.0)));
            expected.truncate(k);
            let mut out = Vec::new();
            top_k(&values, k, &mut out);
            prop_assert_eq!(out, expected);
        }
    }

    #[test]
    fn soft_cap_bounds_values() {
        for isa in Isa::available() {
            let mut values = vec![-1e9, -30.0, 0.0, 15.0, 1e9];
            soft_cap(isa, &mut values, 30.0);
            let expected = [-30.0, -30.0 * 1f32.tanh(), 0.0, 30.0 * 0.5f32.tanh(), 30.0];
            for (a, b) in values.iter().zip(expected) {
                assert!((a - b).abs() < 1e-5, "{a} {b}");
            }
        }
    }
}
