//! Probabilities that mean what they say: temperature scaling and calibration error.

use crate::linear::{log_sum_exp, softmax};

/// The temperature at which the logits' softmax fits `targets` best (Guo et al. 2017), between 1/20 and 20.
pub(crate) fn fit_temperature(logits: &[Vec<f32>], targets: &[usize]) -> f32 {
    if logits.is_empty() {
        return 1.0;
    }
    let loss = |log_temperature: f32| -> f64 {
        let scale = (-log_temperature).exp();
        let of_one = |(row, &target): (&Vec<f32>, &usize)| {
            let row: Vec<f32> = row.iter().map(|value| value * scale).collect();
            f64::from(log_sum_exp(&row) - row[target])
        };
        logits.iter().zip(targets).map(of_one).sum()
    };
    // The loss is convex in the inverse temperature, so golden-section search finds its only minimum.
    let ratio = (5_f32.sqrt() - 1.0) / 2.0;
    let (mut low, mut high) = (-3.0_f32, 3.0_f32);
    let (mut a, mut b) = (high - ratio * (high - low), low + ratio * (high - low));
    let (mut loss_a, mut loss_b) = (loss(a), loss(b));
    for _ in 0..30 {
        if loss_a <= loss_b {
            (high, b, loss_b) = (b, a, loss_a);
            a = high - ratio * (high - low);
            loss_a = loss(a);
        } else {
            (low, a, loss_a) = (a, b, loss_b);
            b = low + ratio * (high - low);
            loss_b = loss(b);
        }
    }
    ((low + high) / 2.0).exp()
}

/// Softmax at a temperature.
pub(crate) fn probabilities(logits: &[f32], temperature: f32) -> Vec<f32> {
    let mut row: Vec<f32> = logits.iter().map(|value| value / temperature).collect();
    softmax(&mut row);
    row
}

/// Expected calibration error over fifteen bins of equal width (Naeini et al. 2015): the mean distance between
/// confidence and accuracy. Each pair is a confidence and whether the answer was right.
#[must_use]
pub fn calibration_error(answers: &[(f32, bool)]) -> f64 {
    const BINS: usize = 15;
    let mut bins = [(0.0_f64, 0.0_f64); BINS]; // sums of confidence and of right answers
    for &(confidence, right) in answers {
        let bin = &mut bins[((confidence * BINS as f32) as usize).min(BINS - 1)];
        bin.0 += f64::from(confidence);
        bin.1 += f64::from(u8::from(right));
    }
    if answers.is_empty() {
        return 0.0;
    }
    bins.iter().map(|(confidence, right)| (confidence - right).abs()).sum::<f64>() / answers.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overconfident_logits_are_cooled() {
        // 3 of 4 right at logits ±6: the best probability is 0.75, at temperature 12 / ln 3.
        let logits = vec![vec![6.0, -6.0]; 4];
        let temperature = fit_temperature(&logits, &[0, 0, 0, 1]);
        assert!((temperature - 12.0 / 3_f32.ln()).abs() < 0.01, "{temperature}");
        assert!((probabilities(&logits[0], temperature)[0] - 0.75).abs() < 1e-3);
        assert!((fit_temperature(&[], &[]) - 1.0).abs() < f32::EPSILON);
    }

    #[test]
    fn calibration_error_is_the_gap_of_confidence_and_accuracy() {
        assert!(calibration_error(&[]).abs() < 1e-12);
        let answers = [(0.9, true), (0.9, false), (0.1, false), (0.1, false)];
        assert!((calibration_error(&answers) - (0.8 + 0.2) / 4.0).abs() < 1e-6);
        assert!((calibration_error(&[(1.0, true), (1.0, false)]) - 0.5).abs() < 1e-6);
    }

    #[test]
    fn the_temperature_is_the_one_of_least_loss() {
        // By search over a grid of steps of a thousandth.
        let close = |found: f32, expected: f32| assert!((found / expected - 1.0).abs() < 5e-3, "{found}");
        let rows = vec![
            vec![2.0, 0.0, -1.0],
            vec![0.5, 1.0, 0.0],
            vec![0.0, 3.0, 1.0],
            vec![1.0, 1.2, 0.9],
            vec![0.0, 0.2, 2.0],
        ];
        close(fit_temperature(&rows, &[0, 0, 1, 2, 2]), 0.63954);
        let rows = vec![vec![0.2, 0.0], vec![0.3, 0.0], vec![0.0, 0.1], vec![0.2, 0.1]];
        close(fit_temperature(&rows, &[0, 0, 1, 1]), 0.10674);
        // All right: as cold as is allowed, which is e to the minus three.
        close(fit_temperature(&rows, &[0, 0, 1, 0]), 0.04979);
    }

    #[test]
    fn bins_are_fifteen_and_of_equal_width() {
        // 0.06 and 0.07 lie either side of a fifteenth: alone in their bins, neither evens out the other.
        assert!((calibration_error(&[(0.06, true), (0.07, false)]) - (0.94 + 0.07) / 2.0).abs() < 1e-6);
        assert!((calibration_error(&[(0.07, true), (0.13, false)]) - 0.8 / 2.0).abs() < 1e-6);
    }
}
