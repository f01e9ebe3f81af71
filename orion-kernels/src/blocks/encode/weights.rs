//! What an element's error weighs in the search for its sub-block's scale.

use super::super::lanes::{Lanes, V};
use super::super::search::Group;

/// The sum of squares, in order.
#[inline(always)]
pub(super) fn sum_of_squares(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |sum, x| sum + x * x)
}

/// The sum of each lane, in order.
#[inline(always)]
pub(super) fn lane_sums<S: Lanes, const N: usize>(s: S, x: &Group<N>) -> [f32; 8] {
    let mut sum = V::splat(s, 0.0);
    for x in x {
        sum = sum + V::load(s, x);
    }
    sum.store()
}

/// `importance * sqrt(floor + x²)`
#[inline(always)]
pub(super) fn weights<S: Lanes, const N: usize>(
    s: S,
    x: &Group<N>,
    importances: &Group<N>,
    floor: f32,
) -> Group<N> {
    let mut weights = [[0.0; 8]; N];
    for i in 0..N {
        let (x, importance) = (V::load(s, &x[i]), V::load(s, &importances[i]));
        weights[i] = (importance * (V::splat(s, floor) + x * x).sqrt()).store();
    }
    weights
}

/// Weights whose floor is twice the mean square of each lane.
#[inline(always)]
pub(super) fn block_weights<S: Lanes>(s: S, x: &Group<32>, importances: &Group<32>) -> Group<32> {
    let mut floor = V::splat(s, 0.0);
    for x in x {
        let x = V::load(s, x);
        floor = floor + x * x;
    }
    floor = floor * V::splat(s, 2.0 / 32.0);
    let mut weights = [[0.0; 8]; 32];
    for i in 0..32 {
        let x = V::load(s, &x[i]);
        weights[i] = (V::load(s, &importances[i]) * (floor + x * x).sqrt()).store();
    }
    weights
}

/// Without importances an element weighs as its square.
#[inline(always)]
pub(super) fn squares<S: Lanes, const N: usize>(s: S, x: &Group<N>) -> Group<N> {
    let mut squares = [[0.0; 8]; N];
    for (square, x) in squares.iter_mut().zip(x) {
        let x = V::load(s, x);
        *square = (x * x).store();
    }
    squares
}

/// Magnitudes.
#[inline(always)]
pub(super) fn magnitudes<S: Lanes, const N: usize>(s: S, x: &Group<N>) -> Group<N> {
    let mut magnitudes = [[0.0; 8]; N];
    for (magnitude, x) in magnitudes.iter_mut().zip(x) {
        *magnitude = V::load(s, x).abs().store();
    }
    magnitudes
}

/// Magnitudes plus the root mean square of their lane.
#[inline(always)]
pub(super) fn offset_magnitudes<S: Lanes>(s: S, x: &Group<32>) -> Group<32> {
    let mut sum = V::splat(s, 0.0);
    for x in x {
        let x = V::load(s, x);
        sum = sum + x * x;
    }
    let root = (sum / V::splat(s, 32.0)).sqrt();
    let mut weights = [[0.0; 8]; 32];
    for (weight, x) in weights.iter_mut().zip(x) {
        *weight = (root + V::load(s, x).abs()).store();
    }
    weights
}
