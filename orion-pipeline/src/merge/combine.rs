//! Methods whose result is a sum of their inputs with coefficients that follow from their inner products: one pass for
//! the products, in 64 bits, one for the sum.

use orion_core::{Error, Result};

use super::group::{Group, Scratch};

/// What shares its coefficients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Along {
    /// The whole tensor.
    Whole,
    /// Each row.
    Rows,
    /// Each column.
    Columns,
}

/// Inner products of the vectors of one part, `[n, n]`, the base not counted.
#[derive(Debug, Clone)]
pub(super) struct Products {
    n: usize,
    of: Vec<f64>,
}

impl Products {
    fn zero(n: usize) -> Self {
        Self { n, of: vec![0.0; n * n] }
    }

    fn add(&mut self, other: &Self) {
        self.of.iter_mut().zip(&other.of).for_each(|(a, b)| *a += b);
    }

    pub(super) fn dot(&self, i: usize, j: usize) -> f64 {
        self.of[i.min(j) * self.n + i.max(j)]
    }

    pub(super) fn norm(&self, i: usize) -> f64 {
        self.dot(i, i).max(0.0).sqrt()
    }

    /// Inner product of two sums of the vectors.
    fn of_sums(&self, a: &[f64], b: &[f64]) -> f64 {
        let pairs = (0..self.n).flat_map(|i| (0..self.n).map(move |j| (i, j)));
        pairs.map(|(i, j)| a[i] * b[j] * self.dot(i, j)).sum()
    }
}

impl Group<'_> {
    /// Inner products of the inputs, or with `deltas` of their differences from the base, which itself is left out.
    fn products(&self, deltas: bool, along: Along) -> Result<Vec<Products>> {
        let vectors: Vec<usize> =
            if deltas { self.others().collect() } else { (0..self.inputs.len()).collect() };
        let n = vectors.len();
        let parts = self.each(|piece, scratch| {
            self.read_vectors(piece, deltas, scratch)?;
            let count = match along {
                Along::Whole => 1,
                Along::Rows => piece.elements.len() / self.columns,
                Along::Columns => self.columns,
            };
            let mut parts = vec![Products::zero(n); count];
            for (i, &a) in vectors.iter().enumerate() {
                for (j, &b) in vectors.iter().enumerate().skip(i) {
                    let (a, b) = (&scratch.x[a], &scratch.x[b]);
                    match along {
                        Along::Whole => parts[0].of[i * n + j] = dot(a, b),
                        Along::Rows => {
                            let rows = a.chunks(self.columns).zip(b.chunks(self.columns));
                            rows.zip(&mut parts).for_each(|((a, b), part)| part.of[i * n + j] = dot(a, b));
                        }
                        Along::Columns => {
                            for (a, b) in a.chunks(self.columns).zip(b.chunks(self.columns)) {
                                for ((a, b), part) in a.iter().zip(b).zip(&mut parts) {
                                    part.of[i * n + j] += f64::from(*a) * f64::from(*b);
                                }
                            }
                        }
                    }
                }
            }
            Ok(parts)
        })?;
        if along == Along::Rows {
            return Ok(parts.into_iter().flatten().collect());
        }
        let mut sum = vec![Products::zero(n); if along == Along::Whole { 1 } else { self.columns }];
        for part in parts {
            sum.iter_mut().zip(&part).for_each(|(sum, part)| sum.add(part));
        }
        Ok(sum)
    }

    fn read_vectors(&self, piece: &super::group::Piece, deltas: bool, scratch: &mut Scratch) -> Result<()> {
        self.read_all(piece, scratch)?;
        if let Some(base) = self.base.filter(|_| deltas) {
            let taken = std::mem::take(&mut scratch.x[base]);
            for index in self.others() {
                scratch.x[index].iter_mut().zip(&taken).for_each(|(x, b)| *x -= b);
            }
            scratch.x[base] = taken;
        }
        Ok(())
    }

    /// The sum of the inputs with the coefficients that `coefficients` finds for the products; with `deltas` that of
    /// their differences from the base, added to it.
    pub(super) fn combine(
        &self,
        deltas: bool,
        along: Along,
        coefficients: impl Fn(&Products) -> Result<Vec<f64>>,
    ) -> Result<Vec<u8>> {
        let deltas = deltas && self.base.is_some();
        let products = self.products(deltas, along)?;
        let found = products.iter().map(coefficients).collect::<Result<Vec<_>>>()?;
        drop(products);
        let vectors: Vec<usize> =
            if deltas { self.others().collect() } else { (0..self.inputs.len()).collect() };
        self.write(|piece, scratch| {
            self.read_vectors(piece, deltas, scratch)?;
            let Scratch { x, y, .. } = scratch;
            y.clear();
            match self.base.filter(|_| deltas) {
                Some(base) => y.extend_from_slice(&x[base]),
                None => y.resize(piece.elements.len(), 0.0),
            }
            for (row, y) in y.chunks_mut(self.columns).enumerate() {
                let start = row * self.columns;
                for (which, &input) in vectors.iter().enumerate() {
                    let x = &x[input][start..start + y.len()];
                    if along == Along::Columns {
                        for ((y, x), found) in y.iter_mut().zip(x).zip(&found) {
                            *y += (found[which] * f64::from(*x)) as f32;
                        }
                        continue;
                    }
                    let part = match along {
                        Along::Rows => piece.elements.start / self.columns + row,
                        _ => 0,
                    };
                    let coefficient = found[part][which] as f32;
                    y.iter_mut().zip(x).for_each(|(y, x)| *y += coefficient * x);
                }
            }
            Ok(())
        })
    }
}

/// In 64 bits, eight sums side by side.
fn dot(a: &[f32], b: &[f32]) -> f64 {
    let mut sums = [0.0; 8];
    for (a, b) in a.chunks(8).zip(b.chunks(8)) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += f64::from(*a) * f64::from(*b);
        }
    }
    sums.iter().sum()
}

/// Along the great circle from the vectors' first to their second; `base` says which of the two `t = 0` is.
pub(super) fn slerp(products: &Products, base: usize, t: f64) -> Vec<f64> {
    let length = |i: usize| Some(products.norm(i)).filter(|&norm| norm > 1e-8).unwrap_or(1.0);
    let cosine = (products.dot(0, 1) / (length(0) * length(1))).clamp(-1.0, 1.0);
    let (from, to) = if cosine.abs() > 0.9995 {
        (1.0 - t, t)
    } else {
        let angle = cosine.acos();
        (((1.0 - t) * angle).sin() / angle.sin(), (t * angle).sin() / angle.sin())
    };
    if base == 0 { vec![from, to] } else { vec![to, from] }
}

/// The same without a base, and exact for nearly parallel vectors.
pub(super) fn nuslerp(products: &Products, t: f64) -> Vec<f64> {
    let length = |i: usize| products.norm(i).max(1e-7);
    let cosine = (products.dot(0, 1) / (length(0) * length(1))).clamp(-1.0, 1.0);
    // What 32-bit floats cannot tell from parallel.
    if 1.0 - cosine * cosine <= f64::from(f32::EPSILON) / 4.0 {
        return vec![1.0 - t, t];
    }
    let angle = cosine.acos();
    vec![((1.0 - t) * angle).sin() / angle.sin(), (t * angle).sin() / angle.sin()]
}

/// Barycentre on the sphere: to the tangent space at the weighted mean, and back.
pub(super) fn multislerp(products: &Products, weights: &[f64], eps: f64) -> Result<Vec<f64>> {
    let units: Vec<f64> = (0..weights.len()).map(|i| 1.0 / (products.norm(i) + eps)).collect();
    let mut mean: Vec<f64> = weights.iter().zip(&units).map(|(w, u)| w * u).collect();
    let length = products.of_sums(&mean, &mean).max(0.0).sqrt();
    if length < eps {
        return match weights {
            [_, _] => Ok(weights.to_vec()),
            _ => Err(Error::invalid("the weighted sum of the models is zero; try other weights")),
        };
    }
    mean.iter_mut().for_each(|m| *m /= length);
    let mut tangent = vec![0.0; weights.len()];
    for (i, (weight, unit)) in weights.iter().zip(&units).enumerate() {
        let mut vector = vec![0.0; weights.len()];
        vector[i] = *unit;
        let along = products.of_sums(&vector, &mean);
        tangent[i] += weight * unit;
        tangent.iter_mut().zip(&mean).for_each(|(t, m)| *t -= weight * along * m);
    }
    let angle = products.of_sums(&tangent, &tangent).max(0.0).sqrt() + eps;
    let scale: f64 = weights.iter().enumerate().map(|(i, weight)| weight * products.norm(i)).sum();
    let both = mean.iter().zip(&tangent);
    Ok(both.map(|(m, t)| (m * angle.cos() + t * angle.sin() / angle) * scale).collect())
}

/// The point on the sphere with the least sum of squared angles, times the mean length.
pub(super) fn karcher(products: &Products, max_iter: usize, tol: f64) -> Vec<f64> {
    let n = products.n;
    let norms: Vec<f64> = (0..n).map(|i| products.norm(i)).collect();
    let valid: Vec<usize> = (0..n).filter(|&i| norms[i] > tol).collect();
    let Some(&first) = valid.first() else { return vec![0.0; n] };
    let share = 1.0 / valid.len() as f64;
    let mut mean = vec![0.0; n];
    valid.iter().for_each(|&i| mean[i] = share / norms[i]);
    let length = products.of_sums(&mean, &mean).max(0.0).sqrt();
    if length < tol {
        mean.fill(0.0);
        mean[first] = 1.0 / norms[first];
    } else {
        mean.iter_mut().for_each(|m| *m /= length);
    }
    for _ in 0..max_iter {
        let mut tangent = vec![0.0; n];
        for &i in &valid {
            let mut unit = vec![0.0; n];
            unit[i] = 1.0 / norms[i];
            let cosine = products.of_sums(&mean, &unit).clamp(-1.0, 1.0);
            let angle = cosine.acos();
            if angle < tol {
                continue;
            }
            let scale = share * angle / angle.sin();
            tangent[i] += scale * unit[i];
            tangent.iter_mut().zip(&mean).for_each(|(t, m)| *t -= scale * cosine * m);
        }
        let length = products.of_sums(&tangent, &tangent).max(0.0).sqrt();
        if length < tol {
            break;
        }
        let both = mean.iter_mut().zip(&tangent);
        both.for_each(|(m, t)| *m = length.cos() * *m + length.sin() * t / length);
        let length = products.of_sums(&mean, &mean).max(0.0).sqrt();
        if length > tol {
            mean.iter_mut().for_each(|m| *m /= length);
        }
    }
    let scale = norms.iter().sum::<f64>() / n as f64;
    mean.iter().map(|m| m * scale).collect()
}

/// How far from the base towards the mean: as far as the deltas' directions agree.
pub(super) fn model_stock(products: &Products) -> Vec<f64> {
    let n = products.n;
    let pairs = (0..n).flat_map(|i| (i + 1..n).map(move |j| (i, j)));
    let cosines = pairs.map(|(i, j)| {
        (products.dot(i, j) / (products.norm(i) * products.norm(j)).max(1e-6)).clamp(-1.0, 1.0)
    });
    let cosine = cosines.sum::<f64>() / (n * (n - 1) / 2) as f64;
    let denominator = 1.0 + (n - 1) as f64 * cosine;
    let t = if denominator.abs() < 1e-6 { 0.0 } else { n as f64 * cosine / denominator };
    vec![t / n as f64; n]
}
