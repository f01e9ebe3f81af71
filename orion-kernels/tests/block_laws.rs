//! What holds of every codec: bounds of the error, order, independence of rows, refusals.

#![allow(clippy::unwrap_used, reason = "a test: a panic is a failure, an index names what is compared")]

use orion_core::{ErrorKind, TensorType};
use orion_kernels::{dequantize, quantize};
use proptest::prelude::*;

fn encode(ty: TensorType, x: &[f32], columns: usize) -> Vec<u8> {
    let mut out = Vec::new();
    quantize(ty, x, columns, None, &mut out).unwrap();
    out
}

fn round_trip(ty: TensorType, x: &[f32], columns: usize) -> Vec<f32> {
    let mut y = vec![f32::NAN; x.len()];
    dequantize(ty, &encode(ty, x, columns), &mut y).unwrap();
    y
}

/// llama.cpp's own bounds on the root of the summed squares over the count, for its test signal.
const RMSE_4_BITS_AND_MORE: f64 = 0.002;
const RMSE_3_BITS: f64 = 0.004;
const RMSE_2_BITS: f64 = 0.0075;

/// The signal of llama.cpp's `test-quantize-fns`.
fn test_signal() -> Vec<f32> {
    (0..4096).map(|i| 0.1 + 2.0 * (i as f32).cos()).collect()
}

fn rmse(ty: TensorType) -> f64 {
    let x = test_signal();
    let squares = x.iter().zip(round_trip(ty, &x, 4096)).map(|(x, y)| f64::from(x - y).powi(2));
    squares.sum::<f64>().sqrt() / 4096.0
}

#[test]
fn the_error_of_the_test_signal_is_within_llama_cpps_bounds() {
    for &ty in TensorType::ALL {
        let bound = match ty {
            TensorType::Q2K => RMSE_2_BITS,
            TensorType::Q3K => RMSE_3_BITS,
            _ => RMSE_4_BITS_AND_MORE,
        };
        let rmse = rmse(ty);
        assert!(rmse <= bound, "{ty}: {rmse}");
    }
}

#[test]
fn more_bits_of_one_family_leave_less_error() {
    use TensorType as T;
    let families: [&[T]; 4] = [
        &[T::Q2K, T::Q3K, T::Q4K, T::Q5K, T::Q6K, T::BF16, T::F16, T::F32],
        &[T::Q4_0, T::Q5_0, T::Q8_0, T::F16],
        &[T::Q4_1, T::Q5_1, T::Q8_0],
        &[T::Iq4Xs, T::Q5K],
    ];
    for family in families {
        for pair in family.windows(2) {
            let (few, many) = (rmse(pair[0]), rmse(pair[1]));
            assert!(few > many, "{}: {few}, {}: {many}", pair[0], pair[1]);
        }
    }
    assert_eq!(rmse(T::F32), 0.0);
}

/// The worst error of types with one scale per 32, as a part of the block's largest magnitude: one step where the range
/// is not symmetric, half a step elsewhere, and the rounding of the scales to half precision.
const HALF_PRECISION: f32 = 1.0 / 1024.0;
const WORST: [(TensorType, f32); 5] = [
    (TensorType::Q4_0, 1.0 / 8.0 + HALF_PRECISION),
    (TensorType::Q5_0, 1.0 / 16.0 + HALF_PRECISION),
    (TensorType::Q8_0, 0.5 / 127.0 + HALF_PRECISION),
    (TensorType::Q4_1, 1.0 / 15.0 + 3.0 * HALF_PRECISION),
    (TensorType::Q5_1, 1.0 / 31.0 + 3.0 * HALF_PRECISION),
];

fn rows() -> impl Strategy<Value = Vec<f32>> {
    (prop_oneof![Just(0.01f32), Just(1.0), Just(300.0)], proptest::collection::vec(-1.0..1.0f32, 512))
        .prop_map(|(scale, x)| x.into_iter().map(|x| x * scale).collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn one_scale_per_block_bounds_each_error(x in rows()) {
        for (ty, worst) in WORST {
            let y = round_trip(ty, &x, 512);
            for (x, y) in x.chunks(32).zip(y.chunks(32)) {
                let largest = x.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
                for (x, y) in x.iter().zip(y) {
                    prop_assert!((x - y).abs() <= worst * largest, "{ty}: {x} became {y} beside {largest}");
                }
            }
        }
    }

    #[test]
    fn order_within_a_sub_block_is_kept(x in rows()) {
        for &ty in TensorType::ALL {
            let y = round_trip(ty, &x, 512);
            for (x, y) in x.chunks(16).zip(y.chunks(16)) {
                let mut pairs: Vec<_> = x.iter().copied().zip(y.iter().copied()).collect();
                pairs.sort_by(|a, b| a.0.total_cmp(&b.0));
                prop_assert!(pairs.is_sorted_by(|a, b| a.1 <= b.1), "{ty}: {pairs:?}");
            }
        }
    }

    #[test]
    fn rows_do_not_influence_each_other(x in rows(), weighted: bool, imatrix in proptest::collection::vec(0.0..3.0f32, 256)) {
        for &ty in TensorType::ALL {
            let imatrix = weighted.then_some(&imatrix[..]);
            let (mut whole, mut pieces) = (vec![7], vec![7]);
            quantize(ty, &x, 256, imatrix, &mut whole).unwrap();
            for row in x.chunks(256) {
                quantize(ty, row, 256, imatrix, &mut pieces).unwrap();
            }
            prop_assert!(whole == pieces, "{ty}");
        }
    }
}

/// The kind and text of the refusal, and a check that nothing was appended.
fn refusal(ty: TensorType, x: &[f32], columns: usize, imatrix: Option<&[f32]>) -> String {
    let mut out = vec![1, 2, 3];
    let error = quantize(ty, x, columns, imatrix, &mut out).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{ty}: {error}");
    assert_eq!(out, [1, 2, 3], "{ty}");
    error.to_string()
}

#[test]
fn numbers_that_are_none_are_refused_by_position() {
    for &ty in TensorType::ALL {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = vec![0.5; 512];
            x[300] = bad;
            assert_eq!(refusal(ty, &x, 256, None), format!("element 300 is {bad}"));
        }
    }
}

#[test]
fn numbers_too_large_for_half_precision_scales_are_refused() {
    for &ty in TensorType::ALL.iter().filter(|&&ty| ty != TensorType::F32) {
        let mut x = vec![0.5; 512];
        x[511] = f32::MAX;
        let message = refusal(ty, &x, 512, None);
        assert!(message.contains(&format!("too large for {ty}")), "{message}");
        x[511] = if ty == TensorType::BF16 { 3.4e38 } else { 5e8 };
        let message = refusal(ty, &x, 512, None);
        assert!(message.contains("511") && message.contains(&format!("too large for {ty}")), "{message}");
    }
}

#[test]
fn lengths_and_importances_that_do_not_fit_are_refused() {
    let x = vec![0.5; 512];
    for &ty in TensorType::ALL {
        assert!(refusal(ty, &x, 0, None).contains("rows of 0"));
        assert!(refusal(ty, &x, 384, None).contains("rows of 384"));
        assert!(refusal(ty, &x, 256, Some(&[1.0; 255])).contains("255 importances for 256 columns"));
        for bad in [f32::NAN, -1.0, f32::INFINITY] {
            let mut imatrix = vec![1.0; 256];
            imatrix[9] = bad;
            assert_eq!(refusal(ty, &x, 256, Some(&imatrix)), format!("the importance of column 9 is {bad}"));
        }
    }
    assert!(refusal(TensorType::Q4K, &x, 128, None).contains("blocks of 256"));
    assert!(refusal(TensorType::Q4_0, &x, 16, None).contains("blocks of 32"));
    assert_eq!(encode(TensorType::Q6K, &[], 256), []);
}
