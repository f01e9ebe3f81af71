//! Kernel ridge regression on landmarks (Nyström; Williams and Seeger 2001): a smooth function of the embedding that
//! follows local structure, solved in closed form.

use orion_core::{Error, Result};

use crate::embedding::dot;

/// `y = bias + Σ weight(l) · exp(-γ |x - landmark(l)|²)`, for several outputs at once.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct KernelRidge {
    pub(crate) gamma: f32,
    pub(crate) outputs: usize,
    pub(crate) landmarks: Vec<f32>, // [landmarks, dimension]
    pub(crate) weights: Vec<f32>,   // [landmarks, outputs]
    pub(crate) bias: Vec<f32>,      // [outputs]
}

/// Added to the diagonal: two prompts that are alike make the system singular.
const JITTER: f64 = 1e-3;

impl KernelRidge {
    /// Fits rows of `targets` to the inputs; the inputs at `landmarks` are the landmarks. Costs
    /// `inputs · landmarks²` multiplications.
    ///
    /// # Errors
    /// [`InvalidInput`](orion_core::ErrorKind::InvalidInput) if the inputs hold numbers that are not finite.
    pub(crate) fn fit(
        inputs: &[&[f32]],
        targets: &[Vec<f32>],
        landmarks: &[usize],
        gamma: f32,
        regularisation: f64,
    ) -> Result<Self> {
        let not_finite = || Error::invalid("the embeddings hold numbers that are not finite");
        if inputs.iter().any(|input| input.iter().any(|value| !value.is_finite())) {
            return Err(not_finite());
        }
        let outputs = targets.first().map_or(0, Vec::len);
        let count = landmarks.len();
        let rows: Vec<f32> = landmarks.iter().flat_map(|&at| inputs[at].iter().copied()).collect();
        let mut model =
            Self { gamma, outputs, landmarks: rows, weights: Vec::new(), bias: vec![0.0; outputs] };
        for (at, bias) in model.bias.iter_mut().enumerate() {
            let sum: f64 = targets.iter().map(|row| f64::from(row[at])).sum();
            *bias = (sum / targets.len() as f64) as f32;
        }
        // Normal equations (CᵀC + λK) w = Cᵀ(y - mean), of which only the lower triangle is filled.
        let mut matrix = vec![0.0_f64; count * count];
        let mut right = vec![0.0_f64; count * outputs];
        for (inputs, targets) in inputs.chunks(8).zip(targets.chunks(8)) {
            let mut block: Vec<Vec<f64>> =
                inputs.iter().map(|x| model.similarities(x).into_iter().map(f64::from).collect()).collect();
            block.resize(8, vec![0.0; count]);
            for i in 0..count {
                let c: [f64; 8] = std::array::from_fn(|r| block[r][i]);
                let out = &mut matrix[i * count..=i * count + i];
                let row = |r: usize| &block[r][..=i];
                let (r0, r1, r2, r3) = (row(0), row(1), row(2), row(3));
                let (r4, r5, r6, r7) = (row(4), row(5), row(6), row(7));
                for j in 0..=i {
                    out[j] += ((c[0] * r0[j] + c[1] * r1[j]) + (c[2] * r2[j] + c[3] * r3[j]))
                        + ((c[4] * r4[j] + c[5] * r5[j]) + (c[6] * r6[j] + c[7] * r7[j]));
                }
                let sums = &mut right[i * outputs..][..outputs];
                for (target, c) in targets.iter().zip(c) {
                    let centred = target.iter().zip(&model.bias).map(|(y, mean)| f64::from(y - mean));
                    sums.iter_mut().zip(centred).for_each(|(sum, y)| *sum += c * y);
                }
            }
        }
        for (i, &at) in landmarks.iter().enumerate() {
            let near = model.similarities(inputs[at]);
            for j in 0..=i {
                matrix[i * count + j] += regularisation * f64::from(near[j]);
            }
            matrix[i * count + i] += JITTER;
        }
        solve(&mut matrix, &mut right, count, outputs).ok_or_else(not_finite)?;
        model.weights = right.into_iter().map(|weight| weight as f32).collect();
        Ok(model)
    }

    fn similarities(&self, x: &[f32]) -> Vec<f32> {
        let own = dot(x, x);
        let of = |landmark: &[f32]| {
            let distance = own + dot(landmark, landmark) - 2.0 * dot(x, landmark);
            (-self.gamma * distance.max(0.0)).exp()
        };
        self.landmarks.chunks_exact(x.len().max(1)).map(of).collect()
    }

    /// The outputs for one input.
    pub(crate) fn predict(&self, x: &[f32]) -> Vec<f32> {
        let mut out = self.bias.clone();
        for (near, row) in self.similarities(x).into_iter().zip(self.weights.chunks_exact(self.outputs)) {
            out.iter_mut().zip(row).for_each(|(out, weight)| *out += near * weight);
        }
        out
    }
}

/// Solves `A X = B` in place for a symmetric positive definite `A`, of which the lower triangle is read, by
/// Cholesky's factorisation. `None` if it is not positive definite.
fn solve(a: &mut [f64], b: &mut [f64], n: usize, columns: usize) -> Option<()> {
    for i in 0..n {
        for j in 0..=i {
            let (row_i, row_j) = (&a[i * n..i * n + j], &a[j * n..j * n + j]);
            let sum = a[i * n + j] - row_i.iter().zip(row_j).map(|(x, y)| x * y).sum::<f64>();
            if i == j {
                if sum.is_nan() || sum <= 0.0 {
                    return None;
                }
                a[i * n + i] = sum.sqrt();
            } else {
                a[i * n + j] = sum / a[j * n + j];
            }
        }
    }
    for column in 0..columns {
        for i in 0..n {
            let sum: f64 = (0..i).map(|k| a[i * n + k] * b[k * columns + column]).sum();
            b[i * columns + column] = (b[i * columns + column] - sum) / a[i * n + i];
        }
        for i in (0..n).rev() {
            let sum: f64 = (i + 1..n).map(|k| a[k * n + i] * b[k * columns + column]).sum();
            b[i * columns + column] = (b[i * columns + column] - sum) / a[i * n + i];
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn solve_inverts_a_known_system() {
        // [[4, 2], [2, 3]] x = [10, 8] has x = [1.75, 1.5].
        let mut a = [4.0, 99.0, 2.0, 3.0];
        let mut b = [10.0, 8.0];
        solve(&mut a, &mut b, 2, 1).unwrap();
        assert!((b[0] - 1.75).abs() < 1e-12 && (b[1] - 1.5).abs() < 1e-12);
        assert_eq!(solve(&mut [-1.0], &mut [1.0], 1, 1), None);
        assert_eq!(solve(&mut [f64::NAN], &mut [1.0], 1, 1), None);
    }

    #[test]
    fn a_curve_no_line_fits_is_followed() {
        let points: Vec<[f32; 1]> = (0..100).map(|at| [at as f32 / 50.0 - 1.0]).collect();
        let inputs: Vec<&[f32]> = points.iter().map(|point| &point[..]).collect();
        let targets: Vec<Vec<f32>> = points.iter().map(|[x]| vec![x * x, -x]).collect();
        let landmarks: Vec<usize> = (0..100).step_by(10).collect();
        let model = KernelRidge::fit(&inputs, &targets, &landmarks, 2.0, 1e-4).unwrap();
        for (point, target) in points.iter().zip(&targets) {
            let got = model.predict(point);
            // The penalty flattens the curve, most beyond the last landmark; the best line misses it by 0.67 there.
            let most = 0.1;
            assert!(
                (got[0] - target[0]).abs() < most && (got[1] - target[1]).abs() < most,
                "{point:?}: {got:?}"
            );
        }
        let bad: Vec<&[f32]> = vec![&[f32::NAN]; 3];
        assert!(KernelRidge::fit(&bad, &targets[..3], &[0, 1], 1.0, 1.0).is_err());
    }

    #[test]
    fn what_is_solved_leaves_no_residual() {
        let (n, columns) = (5, 2);
        // A symmetric matrix with a heavy diagonal, and any right side.
        let entry = |i: usize, j: usize| {
            let (low, high) = (i.min(j) as f64, i.max(j) as f64);
            (low * 3.0 + high * 7.0).sin() + if i == j { 4.0 + low } else { 0.0 }
        };
        let mut a: Vec<f64> = (0..n * n).map(|at| entry(at / n, at % n)).collect();
        let right: Vec<f64> = (0..n * columns).map(|at| (at as f64).cos()).collect();
        let mut x = right.clone();
        solve(&mut a, &mut x, n, columns).unwrap();
        for i in 0..n {
            for c in 0..columns {
                let sum: f64 = (0..n).map(|j| entry(i, j) * x[j * columns + c]).sum();
                assert!((sum - right[i * columns + c]).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn the_weights_are_where_the_gradient_is_zero() {
        // 21 inputs, so that one block is not full, in two dimensions, with two outputs.
        let points: Vec<[f32; 2]> =
            (0..21).map(|at| [(at as f32 * 0.7).sin(), (at as f32 * 1.3).cos()]).collect();
        let inputs: Vec<&[f32]> = points.iter().map(|point| &point[..]).collect();
        let targets: Vec<Vec<f32>> = points.iter().map(|[x, y]| vec![x * y + 1.0, x - 2.0 * y]).collect();
        let landmarks = [3, 0, 11, 17];
        let (gamma, regularisation) = (0.8_f32, 0.5);
        let model = KernelRidge::fit(&inputs, &targets, &landmarks, gamma, regularisation).unwrap();
        let near = |a: usize, b: usize| {
            let squares = points[a].iter().zip(&points[b]).map(|(x, y)| f64::from(x - y).powi(2));
            (-f64::from(gamma) * squares.sum::<f64>()).exp()
        };
        for output in 0..2 {
            let mean = targets.iter().map(|row| f64::from(row[output])).sum::<f64>() / 21.0;
            assert!((f64::from(model.bias[output]) - mean).abs() < 1e-6);
            let weight = |l: usize| f64::from(model.weights[l * 2 + output]);
            let residual = |at: usize| {
                let fitted: f64 = (0..4).map(|l| near(at, landmarks[l]) * weight(l)).sum();
                fitted - (f64::from(targets[at][output]) - mean)
            };
            // Of Σ residual² + λ wᵀ K w, and the little that is added to the diagonal.
            for l in 0..4 {
                let data: f64 = (0..21).map(|at| near(at, landmarks[l]) * residual(at)).sum();
                let penalty: f64 = (0..4).map(|m| near(landmarks[l], landmarks[m]) * weight(m)).sum();
                let gradient = data + regularisation * penalty + JITTER * weight(l);
                assert!(gradient.abs() < 1e-3, "{gradient}");
            }
            for at in 0..21 {
                let expected = f64::from(targets[at][output]) + residual(at);
                assert!((f64::from(model.predict(inputs[at])[output]) - expected).abs() < 1e-4);
            }
        }
    }
}
