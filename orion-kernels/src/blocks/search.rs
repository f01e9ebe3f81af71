//! Searches for the scales of sub-blocks: ggml's, operation for operation, eight sub-blocks at a time.
//!
//! All four try a handful of scales around the obvious one, solve for the best scale of the levels each gives (weighted least
//! squares), and keep the one with the least error. Floating-point sums depend on their order, so the order of the reference is kept in each lane.
//! Element `i` of lane `j` stands at `[i][j]`.

use super::decode::IQ4_LEVELS;
use super::lanes::{Lanes, V, each, nearest_int};

/// Elements of eight sub-blocks of `N`.
pub(super) type Group<const N: usize> = [[f32; 8]; N];

/// Below this a sub-block counts as zero.
pub(super) const ZERO: f32 = 1e-15;

/// Sub-block `j` of `x` becomes lane `j`.
#[inline(always)]
pub(super) fn transpose<const N: usize>(x: &[f32]) -> Group<N> {
    let mut group = [[0.0; 8]; N];
    for (j, sub) in x.as_chunks::<N>().0.iter().enumerate() {
        for (i, &x) in sub.iter().enumerate() {
            group[i][j] = x;
        }
    }
    group
}

/// How [`affine`] searches.
#[derive(Debug, Clone, Copy)]
pub(super) struct Trials {
    /// What the first trial adds to the number of levels.
    pub first: f32,
    /// What each further trial adds.
    pub step: f32,
    /// The number of the last trial.
    pub last: u8,
    /// Whether the error is the sum of absolute differences rather than of squares.
    pub absolute: bool,
}

/// Scales and minima of eight sub-blocks.
#[derive(Debug)]
pub(super) struct Affine {
    /// Per level; not negative but for rounding.
    pub scale: [f32; 8],
    /// What is subtracted.
    pub min: [f32; 8],
    from: [f32; 8],
    inverse: [f32; 8],
    top: i32,
}

impl Affine {
    /// The level that the search gave `x` in lane `j`.
    #[inline(always)]
    pub(super) fn level(&self, j: usize, x: f32) -> u8 {
        nearest_int(self.inverse[j] * (x - self.from[j])).clamp(0, self.top) as u8
    }
}

/// Elements and weights of eight sub-blocks.
#[derive(Clone, Copy)]
struct Weighted<'a, S: Lanes, const N: usize> {
    s: S,
    x: &'a Group<N>,
    weights: &'a Group<N>,
}

// Plain functions, not closures: only what is inlined into a function with the instruction set may use it, and closures cannot demand it.
impl<S: Lanes, const N: usize> Weighted<'_, S, N> {
    #[inline(always)]
    fn at(&self, i: usize) -> (V<S>, V<S>) {
        (V::load(self.s, &self.x[i]), V::load(self.s, &self.weights[i]))
    }

    /// The weighted error of `scale * level + min`.
    #[inline(always)]
    fn error(&self, levels: &[V<S>; N], scale: V<S>, min: V<S>, absolute: bool) -> V<S> {
        let mut sum = V::splat(self.s, 0.0);
        for (i, &level) in levels.iter().enumerate() {
            let (x, w) = self.at(i);
            let difference = scale * level + min - x;
            let cost = if absolute { difference.abs() } else { difference * difference };
            sum = sum + w * cost;
        }
        sum
    }

    /// Weighted sums of element times level and of level squared, for the levels `-half..half` that `inverse` gives.
    #[inline(always)]
    fn symmetric_sums(&self, inverse: V<S>, half: i32) -> (V<S>, V<S>) {
        let zero = V::splat(self.s, 0.0);
        let (mut sum_xl, mut sum_ll) = (zero, zero);
        for i in 0..N {
            let (x, w) = self.at(i);
            let level = (inverse * x).level(-half, half - 1);
            sum_xl = sum_xl + w * x * level;
            sum_ll = sum_ll + w * level * level;
        }
        (sum_xl, sum_ll)
    }

    /// The same for the levels of IQ4.
    #[inline(always)]
    fn iq4_sums(&self, inverse: V<S>) -> (V<S>, V<S>) {
        let zero = V::splat(self.s, 0.0);
        let (mut sum_qx, mut sum_qq) = (zero, zero);
        for i in 0..N {
            let (x, w) = self.at(i);
            let q = iq4_nearest(self.s, inverse * x);
            let weighted = w * q;
            sum_qx = sum_qx + weighted * x;
            sum_qq = sum_qq + weighted * q;
        }
        (sum_qx, sum_qq)
    }
}

/// Levels `0..=top`, `x ≈ scale * level - min` with `min >= 0`.
#[inline(always)]
pub(super) fn affine<S: Lanes, const N: usize>(
    s: S,
    x: &Group<N>,
    weights: &Group<N>,
    top: i32,
    trials: Trials,
) -> Affine {
    let zero = V::splat(s, 0.0);
    let (mut low, mut high) = (V::load(s, &x[0]), V::load(s, &x[0]));
    let mut sum_w = V::load(s, &weights[0]);
    let mut sum_x = sum_w * V::load(s, &x[0]);
    for i in 1..N {
        let (x, w) = (V::load(s, &x[i]), V::load(s, &weights[i]));
        low = x.if_less(low, x, low);
        high = high.if_less(x, x, high);
        sum_w = sum_w + w;
        sum_x = sum_x + w * x;
    }
    low = zero.if_less(low, zero, low);

    let data = Weighted { s, x, weights };
    let mut levels = [zero; N];
    let mut inverse = V::splat(s, top as f32) / (high - low);
    let mut scale = V::splat(s, 1.0) / inverse;
    let (mut min, mut from) = (low, low);
    for (i, level) in levels.iter_mut().enumerate() {
        *level = (inverse * (V::load(s, &x[i]) - low)).level(0, top);
    }
    let mut best = data.error(&levels, scale, min, trials.absolute);

    for trial in 0..=trials.last {
        let span = trials.first + trials.step * f32::from(trial) + top as f32;
        let candidate = V::splat(s, span) / (high - min);
        let (mut sum_l, mut sum_ll, mut sum_xl) = (zero, zero, zero);
        for (i, level) in levels.iter_mut().enumerate() {
            let x = V::load(s, &x[i]);
            *level = (candidate * (x - min)).level(0, top);
            let weighted = V::load(s, &weights[i]) * *level;
            sum_l = sum_l + weighted;
            sum_ll = sum_ll + weighted * *level;
            sum_xl = sum_xl + weighted * x;
        }
        let determinant = sum_w * sum_ll - sum_l * sum_l;
        let this_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
        let this_min = (sum_ll * sum_x - sum_l * sum_xl) / determinant;
        let this_scale = zero.if_less(this_min, sum_xl / sum_ll, this_scale);
        let this_min = zero.if_less(this_min, zero, this_min);
        let this_cost = data.error(&levels, this_scale, this_min, trials.absolute);
        let this_cost = zero.if_less(determinant, this_cost, best);
        inverse = this_cost.if_less(best, candidate, inverse);
        from = this_cost.if_less(best, min, from);
        scale = this_cost.if_less(best, this_scale, scale);
        min = this_cost.if_less(best, this_min, min);
        best = this_cost.if_less(best, this_cost, best);
    }

    // A constant sub-block has no scale, only a minimum.
    Affine {
        scale: high.if_equal(low, zero, scale).store(),
        min: each(&high.if_equal(low, low, min).store(), |min| -min),
        from: high.if_equal(low, zero, from).store(),
        inverse: high.if_equal(low, zero, inverse).store(),
        top,
    }
}

/// Scales of eight sub-blocks with levels around zero.
#[derive(Debug)]
pub(super) struct Symmetric {
    /// Per level; its sign is opposite to that of the largest element.
    pub scale: [f32; 8],
    inverse: [f32; 8],
    zero: [bool; 8],
    half: i32,
}

impl Symmetric {
    /// The level that the search gave `x` in lane `j`, counted from zero up.
    #[inline(always)]
    pub(super) fn level(&self, j: usize, x: f32) -> u8 {
        if self.zero[j] { 0 } else { symmetric_level(self.inverse[j] * x, self.half) }
    }
}

/// A number in units of the scale as a level `0..2 * half`.
#[inline(always)]
pub(super) fn symmetric_level(x: f32, half: i32) -> u8 {
    (nearest_int(x).clamp(-half, half - 1) + half) as u8
}

/// The element of largest magnitude in each lane, the first if there are several, and that magnitude.
#[inline(always)]
fn extreme<S: Lanes, const N: usize>(s: S, x: &Group<N>) -> (V<S>, V<S>) {
    let (mut extreme, mut magnitude) = (V::splat(s, 0.0), V::splat(s, 0.0));
    for x in x {
        let x = V::load(s, x);
        extreme = magnitude.if_less(x.abs(), x, extreme);
        magnitude = magnitude.if_less(x.abs(), x.abs(), magnitude);
    }
    (extreme, magnitude)
}

/// Levels `-half..half`, `x ≈ scale * level`.
#[inline(always)]
pub(super) fn symmetric<S: Lanes, const N: usize>(
    s: S,
    x: &Group<N>,
    weights: &Group<N>,
    half: i32,
) -> Symmetric {
    let zero = V::splat(s, 0.0);
    let (extreme, magnitude) = extreme(s, x);
    let data = Weighted { s, x, weights };
    let mut inverse = V::splat(s, -half as f32) / extreme;
    let (sum_xl, sum_ll) = data.symmetric_sums(inverse, half);
    let mut scale = sum_ll.if_equal(zero, zero, sum_xl / sum_ll);
    let mut best = scale * sum_xl;
    for trial in (-9..=9i8).filter(|&trial| trial != 0) {
        let candidate = V::splat(s, -(half as f32 + 0.1 * f32::from(trial))) / extreme;
        let (sum_xl, sum_ll) = data.symmetric_sums(candidate, half);
        // Better, and with a divisor: otherwise the comparison below is of equals.
        let gain = zero.if_less(sum_ll, sum_xl * sum_xl, best * sum_ll);
        let needed = best * sum_ll;
        let this_scale = sum_xl / sum_ll;
        inverse = needed.if_less(gain, candidate, inverse);
        scale = needed.if_less(gain, this_scale, scale);
        best = needed.if_less(gain, this_scale * sum_xl, best);
    }

    let limit = V::splat(s, ZERO);
    Symmetric {
        scale: magnitude.if_less(limit, zero, scale).store(),
        inverse: inverse.store(),
        zero: each(&magnitude.store(), |magnitude| magnitude < ZERO),
        half,
    }
}

/// Scales of 16 sub-blocks of 16 and the levels `0..8` of their elements, for Q3_K without importances: coordinate descent, in which
/// each element in turn takes the level that the others' scale asks for.
#[inline(always)]
pub(super) fn descend<S: Lanes>(s: S, x: &[Group<16>; 2]) -> ([f32; 16], [u8; 256]) {
    const HALF: i32 = 4;
    let zero = V::splat(s, 0.0);
    // The two groups are independent chains of divisions; side by side they hide each other's latency.
    let both = [0, 1];
    let extremes = [extreme(s, &x[0]), extreme(s, &x[1])];
    let mut levels = [[zero; 2]; 16];
    let (mut sum_xl, mut sum_ll) = ([zero; 2], [zero; 2]);
    for (i, levels) in levels.iter_mut().enumerate() {
        for g in both {
            let x = V::load(s, &x[g][i]);
            let level = (V::splat(s, -HALF as f32) / extremes[g].0 * x).level(-HALF, HALF - 1);
            let w = x * x;
            levels[g] = level;
            sum_xl[g] = sum_xl[g] + w * x * level;
            sum_ll[g] = sum_ll[g] + w * level * level;
        }
    }
    for _ in 0..5 {
        let before = levels;
        for (i, levels) in levels.iter_mut().enumerate() {
            for g in both {
                let x = V::load(s, &x[g][i]);
                let (w, old) = (x * x, levels[g]);
                let rest_xl = sum_xl[g] - w * x * old;
                let rest_ll = sum_ll[g] - w * old * old;
                let wanted = (x * rest_ll / rest_xl).level(-HALF, HALF - 1);
                let new = zero.if_less(rest_xl, wanted, old);
                let new_xl = rest_xl + w * x * new;
                let new_ll = rest_ll + w * new * new;
                let needed = sum_xl[g] * sum_xl[g] * new_ll;
                let gain = zero.if_less(new_ll, new_xl * new_xl * sum_ll[g], needed);
                let gain = new.if_equal(old, needed, gain);
                levels[g] = needed.if_less(gain, new, old);
                sum_xl[g] = needed.if_less(gain, new_xl, sum_xl[g]);
                sum_ll[g] = needed.if_less(gain, new_ll, sum_ll[g]);
            }
        }
        // A pass that changed nothing would be followed by its like.
        let mut unchanged = true;
        for (new, old) in levels.iter().zip(&before) {
            unchanged &= new[0].all_equal(old[0]) & new[1].all_equal(old[1]);
        }
        if unchanged {
            break;
        }
    }
    let limit = V::splat(s, ZERO);
    let (mut scales, mut out) = ([0.0; 16], [0; 256]);
    for g in both {
        let scale = zero.if_less(sum_ll[g], sum_xl[g] / sum_ll[g], zero);
        scales[8 * g..][..8].copy_from_slice(&extremes[g].1.if_less(limit, zero, scale).store());
        for (i, levels) in levels.iter().enumerate() {
            // Zero sub-blocks get level 0, which is not the level of zero.
            let shifted = levels[g] + V::splat(s, HALF as f32);
            for (j, level) in extremes[g].1.if_less(limit, zero, shifted).store().into_iter().enumerate() {
                out[(8 * g + j) * 16 + i] = level as u8;
            }
        }
    }
    (scales, out)
}

/// Halfway between neighbouring levels of IQ4. All are halves of integers, so comparing with them is exact.
const IQ4_BOUNDS: [f32; 15] = {
    let mut bounds = [0.0; 15];
    let mut k = 0;
    while k < 15 {
        bounds[k] = (IQ4_LEVELS[k] as f32 + IQ4_LEVELS[k + 1] as f32) * 0.5;
        k += 1;
    }
    bounds
};

/// The index of the nearest of [`IQ4_LEVELS`], the upper one at equal distance.
#[inline(always)]
pub(super) fn iq4_index(x: f32) -> u8 {
    // Counted by what is not less, so that NaN goes the way of the reference.
    IQ4_BOUNDS.iter().map(|&bound| 1 - u8::from(x < bound)).sum()
}

/// The nearest of [`IQ4_LEVELS`] in each lane, by a tree of comparisons.
#[inline(always)]
fn iq4_nearest<S: Lanes>(s: S, x: V<S>) -> V<S> {
    let (mut levels, mut bounds) = ([V::splat(s, 0.0); 16], [V::splat(s, 0.0); 15]);
    for k in 0..16 {
        levels[k] = V::splat(s, f32::from(IQ4_LEVELS[k]));
    }
    for k in 0..15 {
        bounds[k] = V::splat(s, IQ4_BOUNDS[k]);
    }
    let middle = bounds[7];
    let (levels, bounds): ([V<S>; 8], [V<S>; 7]) = (halve(x, middle, &levels), halve(x, middle, &bounds));
    let middle = bounds[3];
    let (levels, bounds): ([V<S>; 4], [V<S>; 3]) = (halve(x, middle, &levels), halve(x, middle, &bounds));
    let middle = bounds[1];
    let (levels, bounds): ([V<S>; 2], [V<S>; 1]) = (halve(x, middle, &levels), halve(x, middle, &bounds));
    x.if_less(bounds[0], levels[0], levels[1])
}

/// The lower or the upper `TO` of `from`, as `x` lies below `middle` or not.
#[inline(always)]
fn halve<S: Lanes, const FROM: usize, const TO: usize>(
    x: V<S>,
    middle: V<S>,
    from: &[V<S>; FROM],
) -> [V<S>; TO] {
    let mut half = [x; TO];
    for k in 0..TO {
        half[k] = x.if_less(middle, from[k], from[k + FROM - TO]);
    }
    half
}

/// Scales of eight sub-blocks on the levels of IQ4; zero where the sub-block is.
#[inline(always)]
pub(super) fn nonlinear<S: Lanes>(s: S, x: &Group<32>, weights: &Group<32>) -> [f32; 8] {
    let zero = V::splat(s, 0.0);
    let lowest = f32::from(IQ4_LEVELS[0]);
    let (extreme, magnitude) = extreme(s, x);
    let data = Weighted { s, x, weights };
    let first = (zero - extreme) / V::splat(s, lowest);
    let (sum_qx, sum_qq) = data.iq4_sums(V::splat(s, 1.0) / first);
    let mut scale = zero.if_less(sum_qq, sum_qx / sum_qq, zero);
    let mut best = scale * sum_qx;
    for trial in -7..=7i8 {
        let (sum_qx, sum_qq) = data.iq4_sums(V::splat(s, f32::from(trial) + lowest) / extreme);
        let needed = best * sum_qq;
        let gain = zero.if_less(sum_qq, sum_qx * sum_qx, needed);
        let this_scale = sum_qx / sum_qq;
        scale = needed.if_less(gain, this_scale, scale);
        best = needed.if_less(gain, this_scale * sum_qx, best);
    }
    magnitude.if_less(V::splat(s, ZERO), zero, scale).store()
}

/// Quantises the sub-block scales or minima of a super-block: levels `0..=top`, `x ≈ result * level`, weighted.
pub(super) fn positive<const N: usize>(x: &[f32; N], weights: &[f32; N], top: i32) -> (f32, [u8; N]) {
    let largest = x.iter().fold(0.0, |largest: f32, &x| if largest > x { largest } else { x });
    if largest < ZERO {
        return (0.0, [0; N]);
    }
    let mut inverse = top as f32 / largest;
    // The reference stores the first levels in bytes and does not limit them.
    let mut best = level_error(x, weights, inverse, |level| i32::from(level as u8));
    for trial in (-4..=4i8).filter(|&trial| trial != 0) {
        let candidate = (0.1 * f32::from(trial) + top as f32) / largest;
        let this = level_error(x, weights, candidate, |level| level.min(top));
        if this < best {
            (best, inverse) = (this, candidate);
        }
    }

    let mut levels = [0; N];
    let (mut sum_xl, mut sum_ll) = (0.0, 0.0);
    for ((level, &x), &w) in levels.iter_mut().zip(x).zip(weights) {
        let l = nearest_int(inverse * x).min(top);
        *level = l as u8;
        sum_xl += w * x * l as f32;
        sum_ll += w * l as f32 * l as f32;
    }
    for _ in 0..5 {
        let mut changed = false;
        for ((level, &x), &w) in levels.iter_mut().zip(x).zip(weights) {
            let old = f32::from(*level);
            let rest_xl = sum_xl - w * x * old;
            let rest_ll = sum_ll - w * old * old;
            if !(rest_xl > 0.0 && rest_ll > 0.0) {
                continue;
            }
            let new = nearest_int(x * rest_ll / rest_xl).min(top);
            if new == i32::from(*level) {
                continue;
            }
            let new_xl = rest_xl + w * x * new as f32;
            let new_ll = rest_ll + w * new as f32 * new as f32;
            if new_xl * new_xl * sum_ll > sum_xl * sum_xl * new_ll {
                (*level, sum_xl, sum_ll, changed) = (new as u8, new_xl, new_ll, true);
            }
        }
        if !changed {
            break;
        }
    }
    (if sum_ll > 0.0 { sum_xl / sum_ll } else { 0.0 }, levels)
}

/// The weighted squared error of the levels that `inverse` gives.
#[inline(always)]
fn level_error<const N: usize>(
    x: &[f32; N],
    weights: &[f32; N],
    inverse: f32,
    limit: impl Fn(i32) -> i32,
) -> f32 {
    let scale = 1.0 / inverse;
    let mut sum = 0.0;
    for (&x, &w) in x.iter().zip(weights) {
        let difference = x - scale * limit(nearest_int(inverse * x)) as f32;
        sum += w * difference * difference;
    }
    sum
}
