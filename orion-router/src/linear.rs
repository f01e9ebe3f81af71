//! A linear layer with softmax, trained by mini-batches: the one learner behind all heads.

use orion_core::{Error, Result};

/// One input: the embedding, and hashed n-grams.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Features {
    pub(crate) dense: Vec<f32>,
    pub(crate) grams: Vec<(u32, f32)>,
}

/// `logits = bias + denseᵀ W + gramsᵀ G`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Linear {
    pub(crate) classes: usize,
    pub(crate) dense: Vec<f32>, // [dimension, classes]
    pub(crate) grams: Vec<f32>, // [buckets, classes]
    pub(crate) bias: Vec<f32>,  // [classes]
}

/// How a head is trained.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct TrainOptions {
    /// Weight of the squared weights in the loss; larger for fewer or noisier examples.
    pub regularisation: f32,
    /// Passes over the examples at least; small sets get more, up to about 1,200 steps in all.
    pub epochs: usize,
    /// Examples per step.
    pub batch: usize,
    /// First step width of Adam; it falls to zero on a line.
    pub rate: f32,
    /// Seed of the order of examples: the same seed and examples give the same head, bit for bit.
    pub seed: u64,
}

impl Default for TrainOptions {
    fn default() -> Self {
        Self { regularisation: 3e-4, epochs: 10, batch: 128, rate: 0.01, seed: 1 }
    }
}

/// Mean length of a centred input after scaling. The scale of the inputs sets how fast Adam's bounded steps
/// move the logits; at 10 some ten passes converge on sets of thousands.
const INPUT_LENGTH: f32 = 10.0;
const MIN_STEPS: usize = 1200;

impl Linear {
    /// Logits of one input.
    pub(crate) fn logits(&self, x: &Features) -> Vec<f32> {
        let mut logits = self.bias.clone();
        accumulate(&mut logits, &self.dense, x.dense.len(), |at| x.dense[at]);
        for &(bucket, value) in &x.grams {
            let row = &self.grams[bucket as usize * self.classes..][..self.classes];
            logits.iter_mut().zip(row).for_each(|(a, b)| *a += value * b);
        }
        logits
    }

    /// Minimises the cross-entropy of `targets` (class per input) with the options' regularisation, by Adam.
    /// Deterministic: one thread, fixed order.
    ///
    /// # Errors
    /// [`InvalidInput`](orion_core::ErrorKind::InvalidInput) for no inputs, or if training diverges.
    pub(crate) fn train(
        inputs: &[Features],
        targets: &[usize],
        classes: usize,
        buckets: usize,
        options: &TrainOptions,
    ) -> Result<Self> {
        let dimension =
            inputs.first().ok_or_else(|| Error::invalid("there is no example to train on"))?.dense.len();
        let (mean, scale) = centre_and_scale(inputs, dimension);
        let rows: Vec<f32> = inputs
            .iter()
            .flat_map(|x| x.dense.iter().zip(&mean).map(|(value, mean)| (value - mean) * scale))
            .collect();
        let batch = options.batch.clamp(1, inputs.len().div_ceil(8));
        let per_epoch = inputs.len().div_ceil(batch);
        let epochs = options.epochs.max(MIN_STEPS.div_ceil(per_epoch));
        let steps = epochs * per_epoch;
        let mut weights = Adam::new(dimension * classes);
        let mut grams = Adam::new(buckets * classes);
        let mut bias = Adam::new(classes);
        let mut order: Vec<usize> = (0..inputs.len()).collect();
        let mut random = options.seed;
        let mut step = 0;
        for _ in 0..epochs {
            shuffle(&mut order, &mut random);
            for chosen in order.chunks(batch) {
                let mut errors = vec![0.0; chosen.len() * classes];
                for (row, &at) in errors.chunks_exact_mut(classes).zip(chosen) {
                    row.copy_from_slice(&bias.values);
                    let x = &rows[at * dimension..][..dimension];
                    accumulate(row, &weights.values, dimension, |d| x[d]);
                    for &(bucket, value) in &inputs[at].grams {
                        let from = &grams.values[bucket as usize * classes..][..classes];
                        row.iter_mut().zip(from).for_each(|(a, b)| *a += value * scale * b);
                    }
                    softmax(row);
                    row[targets[at]] -= 1.0;
                    row.iter_mut().for_each(|value| *value /= chosen.len() as f32);
                }
                for (d, out) in weights.gradient.chunks_exact_mut(classes).enumerate() {
                    out.fill(0.0);
                    accumulate(out, &errors, chosen.len(), |b| rows[chosen[b] * dimension + d]);
                }
                grams.gradient.fill(0.0);
                bias.gradient.fill(0.0);
                for (row, &at) in errors.chunks_exact(classes).zip(chosen) {
                    bias.gradient.iter_mut().zip(row).for_each(|(a, b)| *a += b);
                    for &(bucket, value) in &inputs[at].grams {
                        let to = &mut grams.gradient[bucket as usize * classes..][..classes];
                        to.iter_mut().zip(row).for_each(|(a, b)| *a += value * scale * b);
                    }
                }
                let rate = options.rate * (1.0 - step as f32 / steps as f32);
                step += 1;
                weights.step(step, rate, options.regularisation);
                grams.step(step, rate, options.regularisation);
                bias.step(step, rate, 0.0);
            }
        }
        // Centring and scaling become part of the weights: a decision multiplies the embedding as it comes.
        let mut model = Self { classes, dense: weights.values, grams: grams.values, bias: bias.values };
        model.dense.iter_mut().chain(&mut model.grams).for_each(|weight| *weight *= scale);
        for (mean, row) in mean.iter().zip(model.dense.chunks_exact(classes)) {
            model.bias.iter_mut().zip(row).for_each(|(bias, weight)| *bias -= mean * weight);
        }
        if !model.bias.iter().chain(&model.dense).all(|weight| weight.is_finite()) {
            return Err(Error::invalid(
                "training diverged; are there numbers in the embeddings that are not finite?",
            ));
        }
        Ok(model)
    }
}

/// `out += Σ coefficient(j) · rows[j]`, eight rows at a time so that `out` is loaded and stored once per eight.
fn accumulate(out: &mut [f32], rows: &[f32], count: usize, coefficient: impl Fn(usize) -> f32) {
    let width = out.len();
    let whole = count / 8 * 8;
    for j in (0..whole).step_by(8) {
        let c: [f32; 8] = std::array::from_fn(|at| coefficient(j + at));
        let block = &rows[j * width..(j + 8) * width];
        let row = |at: usize| &block[at * width..(at + 1) * width];
        let (r0, r1, r2, r3) = (row(0), row(1), row(2), row(3));
        let (r4, r5, r6, r7) = (row(4), row(5), row(6), row(7));
        for k in 0..width {
            let low = (c[0] * r0[k] + c[1] * r1[k]) + (c[2] * r2[k] + c[3] * r3[k]);
            let high = (c[4] * r4[k] + c[5] * r5[k]) + (c[6] * r6[k] + c[7] * r7[k]);
            out[k] += low + high;
        }
    }
    for j in whole..count {
        let c = coefficient(j);
        out.iter_mut().zip(&rows[j * width..]).for_each(|(a, b)| *a += c * b);
    }
}

fn centre_and_scale(inputs: &[Features], dimension: usize) -> (Vec<f32>, f32) {
    let mut mean = vec![0.0_f64; dimension];
    let mut squares = 0.0_f64;
    for x in inputs {
        for (mean, &value) in mean.iter_mut().zip(&x.dense) {
            *mean += f64::from(value) / inputs.len() as f64;
            squares += f64::from(value) * f64::from(value) / inputs.len() as f64;
        }
        squares +=
            x.grams.iter().map(|(_, value)| f64::from(value * value)).sum::<f64>() / inputs.len() as f64;
    }
    let spread = (squares - mean.iter().map(|mean| mean * mean).sum::<f64>()).max(1e-12).sqrt();
    (mean.into_iter().map(|mean| mean as f32).collect(), INPUT_LENGTH / spread as f32)
}

/// Turns logits into probabilities.
pub(crate) fn softmax(row: &mut [f32]) {
    let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for value in row.iter_mut() {
        *value = (*value - most).exp();
        sum += *value;
    }
    row.iter_mut().for_each(|value| *value /= sum);
}

/// log Σ exp, without overflow.
pub(crate) fn log_sum_exp(row: &[f32]) -> f32 {
    let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    most + row.iter().map(|value| (value - most).exp()).sum::<f32>().ln()
}

/// SplitMix64.
pub(crate) fn next_random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

pub(crate) fn shuffle<T>(items: &mut [T], state: &mut u64) {
    for at in (1..items.len()).rev() {
        let other = (next_random(state) % (at as u64 + 1)) as usize;
        items.swap(at, other);
    }
}

/// Parameters with their gradient and Adam's two moments (Kingma and Ba 2015).
struct Adam {
    values: Vec<f32>,
    gradient: Vec<f32>,
    first: Vec<f32>,
    second: Vec<f32>,
}

impl Adam {
    const BETA1: f32 = 0.9;
    const BETA2: f32 = 0.99;

    fn new(len: usize) -> Self {
        Self {
            values: vec![0.0; len],
            gradient: vec![0.0; len],
            first: vec![0.0; len],
            second: vec![0.0; len],
        }
    }

    fn step(&mut self, step: usize, rate: f32, decay: f32) {
        let power = i32::try_from(step).unwrap_or(i32::MAX);
        let first_bias = 1.0 / (1.0 - Self::BETA1.powi(power));
        let second_bias = 1.0 / (1.0 - Self::BETA2.powi(power));
        let moments = self.first.iter_mut().zip(&mut self.second);
        for ((value, &gradient), (first, second)) in self.values.iter_mut().zip(&self.gradient).zip(moments) {
            let gradient = gradient + decay * *value;
            *first = Self::BETA1 * *first + (1.0 - Self::BETA1) * gradient;
            *second = Self::BETA2 * *second + (1.0 - Self::BETA2) * gradient * gradient;
            *value -= rate * (*first * first_bias) / ((*second * second_bias).sqrt() + 1e-8);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(dense: &[f32], grams: &[(u32, f32)]) -> Features {
        Features { dense: dense.to_vec(), grams: grams.to_vec() }
    }

    #[test]
    fn accumulate_adds_whole_and_left_over_rows() {
        let rows: Vec<f32> = (0..22).map(|at| at as f32).collect(); // 11 rows of 2
        let mut out = [1.0, 2.0];
        accumulate(&mut out, &rows, 11, |j| (j % 3) as f32);
        let mut want = [1.0, 2.0];
        for j in 0..11 {
            want[0] += (j % 3) as f32 * (2 * j) as f32;
            want[1] += (j % 3) as f32 * (2 * j + 1) as f32;
        }
        assert_eq!(out, want);
    }

    #[test]
    fn training_separates_by_embedding_or_by_gram_and_is_deterministic() {
        let mut inputs = Vec::new();
        let mut targets = Vec::new();
        let mut random = 5;
        for at in 0..300 {
            let noise = (next_random(&mut random) % 1000) as f32 / 1000.0 - 0.5;
            let class = at % 3;
            // Classes 0 and 1 differ in the embedding, 2 only in its n-gram.
            let x = if class == 1 { 1.0 } else { 0.0 };
            inputs.push(input(&[x + 0.3 * noise, noise], if class == 2 { &[(7, 1.0)] } else { &[(3, 1.0)] }));
            targets.push(class);
        }
        let train = || Linear::train(&inputs, &targets, 3, 16, &TrainOptions::default()).unwrap();
        let model = train();
        let right = inputs.iter().zip(&targets).filter(|(x, target)| {
            let logits = model.logits(x);
            (0..3).max_by(|&a, &b| logits[a].total_cmp(&logits[b])) == Some(**target)
        });
        assert_eq!(right.count(), 300);
        assert_eq!(model, train());
    }

    #[test]
    fn the_optimum_of_a_separable_toy_has_zero_gradient() {
        // With regularisation the minimum is finite: log-loss gradient and decay must balance there.
        let inputs: Vec<Features> =
            (0..64).map(|at| input(&[if at % 2 == 0 { 1.0 } else { -1.0 }], &[])).collect();
        let targets: Vec<usize> = (0..64).map(|at| at % 2).collect();
        let options = TrainOptions { regularisation: 0.1, epochs: 2000, ..TrainOptions::default() };
        let model = Linear::train(&inputs, &targets, 2, 0, &options).unwrap();
        // In the scaled space x = ±10 and w = (v, -v): the loss is ln(1 + e^(-20 v)) + 0.1 v², so
        // 20 / (1 + e^(20 v)) = 0.2 v, whose root is v = 0.2917.
        assert!((model.dense[0] / INPUT_LENGTH - 0.2917).abs() < 2e-3, "{}", model.dense[0] / INPUT_LENGTH);
        assert!((model.dense[0] + model.dense[1]).abs() < 1e-2);
    }

    #[test]
    fn no_examples_and_infinite_ones_are_refused() {
        assert!(Linear::train(&[], &[], 2, 0, &TrainOptions::default()).is_err());
        let bad = [input(&[f32::NAN], &[]), input(&[1.0], &[])];
        assert!(Linear::train(&bad, &[0, 1], 2, 0, &TrainOptions::default()).is_err());
    }

    #[test]
    fn log_sum_exp_does_not_overflow() {
        assert!((log_sum_exp(&[1000.0, 1000.0]) - (1000.0 + 2f32.ln())).abs() < 1e-3);
    }

    #[test]
    fn adam_steps_as_the_paper_says() {
        let mut adam = Adam::new(2);
        adam.values = vec![0.0, 1.0];
        for (step, gradient, rate, expected) in [
            (1, [0.5, -2.0], 0.1, [-0.1, 1.1]),
            (2, [0.25, 1.0], 0.05, [-0.146_373_6, 1.110_160_2]),
            (3, [0.25, 1.0], 0.05, [-0.191_918_5, 1.102_743]),
        ] {
            adam.gradient = gradient.to_vec();
            adam.step(step, rate, 0.1);
            for (value, expected) in adam.values.iter().zip(expected) {
                assert!((value - expected).abs() < 1e-6, "step {step}: {value} instead of {expected}");
            }
        }
    }

    #[test]
    fn random_numbers_are_those_of_splitmix64() {
        let mut state = 0;
        let numbers: [u64; 3] = std::array::from_fn(|_| next_random(&mut state));
        assert_eq!(numbers, [0xe220_a839_7b1d_cdaf, 0x6e78_9e6a_a1b9_65f4, 0x06c4_5d18_8009_454f]);
        let mut items: Vec<u32> = (0..8).collect();
        shuffle(&mut items, &mut 7);
        assert_eq!(items, [1, 4, 5, 2, 6, 0, 3, 7]);
    }

    #[test]
    fn probabilities_of_known_logits() {
        let mut row = [1.0, 2.0, 4.0];
        assert!((log_sum_exp(&row) - 4.169_846).abs() < 1e-5);
        softmax(&mut row);
        for (value, expected) in row.iter().zip([0.042_010_066, 0.114_195_2, 0.843_794_7]) {
            assert!((value - expected).abs() < 1e-6);
        }
        let mut large = [1000.0, 0.0];
        softmax(&mut large);
        assert_eq!(large, [1.0, 0.0]);
    }

    #[test]
    fn inputs_are_centred_and_scaled_to_a_mean_length_of_ten() {
        // Means 2 and 2; squares 15 a row with the gram's, less 8 for the means.
        let inputs = [input(&[1.0, 0.0], &[(0, 2.0)]), input(&[3.0, 4.0], &[])];
        let (mean, scale) = centre_and_scale(&inputs, 2);
        assert_eq!(mean, [2.0, 2.0]);
        assert!((scale - 10.0 / 7_f32.sqrt()).abs() < 1e-5, "{scale}");
    }

    #[test]
    fn what_is_trained_has_no_gradient_left() {
        let mut random = 3;
        let mut noise = || (next_random(&mut random) % 2000) as f32 / 1000.0 - 1.0;
        let inputs: Vec<Features> = (0..50)
            .map(|at| {
                let dense: Vec<f32> = (0..9).map(|d| noise() + if at % 3 == d { 1.0 } else { 0.2 }).collect();
                input(&dense, &[(at as u32 % 4, 0.7), (4 + at as u32 % 2, 0.3)])
            })
            .collect();
        let targets: Vec<usize> = (0..50).map(|at| if at % 7 == 0 { (at + 1) % 3 } else { at % 3 }).collect();
        let options = TrainOptions {
            regularisation: 0.05,
            epochs: 3000,
            batch: 64,
            rate: 0.01,
            ..TrainOptions::default()
        };
        let model = Linear::train(&inputs, &targets, 3, 6, &options).unwrap();
        let (mean, scale) = centre_and_scale(&inputs, 9);
        let errors: Vec<Vec<f32>> = inputs
            .iter()
            .zip(&targets)
            .map(|(x, &target)| {
                let mut row = model.logits(x);
                softmax(&mut row);
                row[target] -= 1.0;
                row
            })
            .collect();
        // Of the mean loss by the weights in the space of centred, scaled inputs. Batches of seven leave some noise.
        const NOISE: f32 = 0.05;
        for class in 0..3 {
            let average = |of: &dyn Fn(&Features) -> f32| {
                inputs.iter().zip(&errors).map(|(x, row)| of(x) * row[class]).sum::<f32>() / 50.0
            };
            assert!(average(&|_| 1.0).abs() < NOISE);
            for (d, mean) in mean.iter().enumerate() {
                let data = average(&|x| (x.dense[d] - mean) * scale);
                let gradient = data + 0.05 * model.dense[d * 3 + class] / scale;
                assert!(gradient.abs() < NOISE, "{gradient} at {d}, {class}");
            }
            for bucket in 0..6 {
                let of = |x: &Features| {
                    x.grams.iter().filter(|(b, _)| *b == bucket).map(|(_, value)| value * scale).sum::<f32>()
                };
                let gradient = average(&of) + 0.05 * model.grams[bucket as usize * 3 + class] / scale;
                assert!(gradient.abs() < NOISE, "{gradient} of gram {bucket}, {class}");
            }
        }
    }
}
