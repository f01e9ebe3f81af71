//! Packed products against decoded weights in double precision, and the law that nothing but a row's own values
//! decides its bits.

#![allow(clippy::unwrap_used, reason = "a test: a panic is a failure, an index names what is compared")]

mod common;

use common::{Rng, TYPES, random};
use orion_core::{ErrorKind, TensorBytes, TensorType};
use orion_kernels::{
    ComputePool, Isa, LinearScratch, PackedMatrix, Packer, Panel, TILE_ROWS, dequantize, linear,
};

/// Shapes at the edges of tiles (16 rows), blocks and panels (1024 columns).
fn shapes(ty: TensorType) -> Vec<(usize, usize)> {
    match ty.block_len() {
        256 => vec![(1, 256), (16, 512), (33, 2304)],
        32 => vec![(1, 32), (15, 576), (16, 640), (17, 1024), (40, 1056)],
        _ => vec![(1, 1), (16, 7), (31, 576), (17, 1025)],
    }
}

fn run(pool: &ComputePool, isa: Isa, matrix: &PackedMatrix, input: &[f32]) -> Vec<f32> {
    let rows = input.len() / matrix.cols();
    let mut scratch = LinearScratch::new(pool, rows, matrix.cols());
    let mut out = vec![f32::NAN; rows * matrix.rows()];
    linear(pool, isa, matrix, input, &mut scratch, &mut out).unwrap();
    out
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn packing_keeps_every_value() {
    let pool = ComputePool::new(2).unwrap();
    let mut rng = Rng(7);
    for ty in TYPES {
        for (rows, cols) in shapes(ty) {
            let bytes = random(ty, rows, cols, 1.0, &mut rng);
            let matrix = PackedMatrix::pack(&pool, ty, rows, cols, &bytes).unwrap();
            let mut expected = vec![0.0; rows * cols];
            dequantize(ty, &bytes, &mut expected).unwrap();
            for isa in Isa::available() {
                let (mut panel, mut row) = (Panel::default(), vec![0.0; cols]);
                for (index, expected) in expected.chunks(cols).enumerate() {
                    matrix.row(isa, index, &mut panel, &mut row).unwrap();
                    assert_eq!(row, expected, "{ty} {rows} x {cols} row {index} on {isa}");
                }
            }
            let again = matrix.as_bytes();
            // At least 64 bytes of slack to find an aligned start in.
            let mut copy = vec![0u8; again.len() + 64];
            let skip = copy.as_ptr().align_offset(64);
            copy[skip..skip + again.len()].copy_from_slice(again);
            let window = TensorBytes::shared(std::sync::Arc::new(copy), skip..skip + again.len());
            let mapped = PackedMatrix::from_packed(ty, rows, cols, window).unwrap();
            assert_eq!(mapped.as_bytes(), matrix.as_bytes());
        }
    }
}

#[test]
fn products_match_decoded_weights_within_the_quantisation_of_activations() {
    let pool = ComputePool::new(2).unwrap();
    let mut rng = Rng(11);
    for ty in TYPES {
        for (rows, cols) in shapes(ty) {
            let bytes = random(ty, rows, cols, 1.0, &mut rng);
            let matrix = PackedMatrix::pack(&pool, ty, rows, cols, &bytes).unwrap();
            let mut weights = vec![0.0; rows * cols];
            dequantize(ty, &bytes, &mut weights).unwrap();
            let input: Vec<f32> = (0..3 * cols).map(|_| rng.unit()).collect();
            let out = run(&pool, Isa::best(), &matrix, &input);
            for (x, y) in input.chunks(cols).zip(out.chunks(rows)) {
                for (w, &y) in weights.chunks(cols).zip(y) {
                    let exact: f64 = w.iter().zip(x).map(|(&w, &x)| f64::from(w) * f64::from(x)).sum();
                    // An activation is off by at most half a step of 1/127, independently: six standard deviations of
                    // the sum. Float weights are only off by rounding.
                    let norm = w.iter().map(|&w| f64::from(w).powi(2)).sum::<f64>().sqrt();
                    let bound =
                        if ty.is_quantised() { 6.0 * norm / 127.0 / 12f64.sqrt() } else { norm * 1e-5 };
                    assert!(
                        (f64::from(y) - exact).abs() <= bound + 1e-5,
                        "{ty} {rows}x{cols}: {y} {exact} {bound}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_in_any_batch_on_any_threads_and_instruction_set() {
    let pools = [1, 2, 3].map(|threads| ComputePool::new(threads).unwrap());
    let mut rng = Rng(13);
    for ty in TYPES {
        for (rows, cols) in shapes(ty) {
            let bytes = random(ty, rows, cols, 1.0, &mut rng);
            let matrix = PackedMatrix::pack(&pools[0], ty, rows, cols, &bytes).unwrap();
            let mut input: Vec<f32> = (0..17 * cols).map(|_| rng.unit() * 3.0).collect();
            input[cols..2 * cols].fill(0.0);
            input[2 * cols] = 1e30;
            let alone: Vec<u32> =
                input.chunks(cols).flat_map(|x| bits(&run(&pools[0], Isa::Scalar, &matrix, x))).collect();
            for isa in Isa::available() {
                for pool in &pools {
                    for batch in [1, 2, 3, 4, 5, 6, 7, 17] {
                        let out: Vec<u32> = input
                            .chunks(batch * cols)
                            .flat_map(|x| bits(&run(pool, isa, &matrix, x)))
                            .collect();
                        assert_eq!(out, alone, "{ty} {rows}x{cols} batch {batch} on {isa}, {pool:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn an_infinity_or_nan_reaches_the_result_of_its_row_only() {
    let pool = ComputePool::new(2).unwrap();
    for ty in TYPES {
        let (rows, cols) = (16, 256);
        let matrix =
            PackedMatrix::pack(&pool, ty, rows, cols, &random(ty, rows, cols, 1.0, &mut Rng(3))).unwrap();
        for isa in Isa::available() {
            for poison in [f32::NAN, f32::INFINITY] {
                let mut input = vec![0.5; 3 * cols];
                input[cols + 9] = poison;
                let out = run(&pool, isa, &matrix, &input);
                assert!(out[..rows].iter().chain(&out[2 * rows..]).all(|v| v.is_finite()), "{ty} {isa}");
                assert!(out[rows..2 * rows].iter().all(|v| !v.is_finite()), "{ty} {isa}");
            }
        }
    }
}

#[test]
fn empty_products_and_misfits() {
    let pool = ComputePool::new(2).unwrap();
    let matrix = PackedMatrix::pack(&pool, TensorType::Q8_0, 0, 32, &[]).unwrap();
    assert!(run(&pool, Isa::best(), &matrix, &[0.0; 64]).is_empty());
    let matrix = PackedMatrix::pack(&pool, TensorType::Q8_0, 1, 32, &[0; 34]).unwrap();
    assert!(run(&pool, Isa::best(), &matrix, &[]).is_empty());
    let mut scratch = LinearScratch::new(&pool, 1, 32);
    let error = linear(&pool, Isa::best(), &matrix, &[0.0; 33], &mut scratch, &mut [0.0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    let kind =
        |ty, rows, cols, len| PackedMatrix::pack(&pool, ty, rows, cols, &vec![0; len]).unwrap_err().kind();
    assert_eq!(kind(TensorType::Q4K, 1, 576, 324), ErrorKind::Corrupt);
    assert_eq!(kind(TensorType::Q8_0, 2, 32, 67), ErrorKind::Corrupt);
    assert_eq!(kind(TensorType::Iq4Xs, 1, 256, 136), ErrorKind::Unsupported);
    assert_eq!(
        PackedMatrix::packed_bytes(TensorType::Q8_0, usize::MAX, 32).unwrap_err().kind(),
        ErrorKind::Corrupt
    );
}

#[test]
fn tiles_cost_at_most_four_percent_over_the_file() {
    for ty in TYPES {
        let (rows, cols) = (1024, 1024);
        let file = ty.bytes_of((rows * cols) as u64).unwrap() as usize;
        assert!(PackedMatrix::packed_bytes(ty, rows, cols).unwrap() * 100 <= file * 104, "{ty}");
    }
}

#[test]
fn a_matrix_packed_in_pieces_has_the_same_bytes() {
    let pool = ComputePool::new(2).unwrap();
    for (ty, rows, cols) in
        [(TensorType::Q4_1, 1000, 64), (TensorType::Q6K, 100, 256), (TensorType::F16, 3000, 40)]
    {
        let row = cols / ty.block_len() * ty.block_bytes();
        let bytes: Vec<u8> = (0..rows * row).map(|at| (at * 31 % 251) as u8).collect();
        let whole = PackedMatrix::pack(&pool, ty, rows, cols, &bytes).unwrap();
        for tiles in [1, 7, 1000] {
            let mut packer = Packer::new(ty, rows, cols).unwrap();
            bytes.chunks(tiles * TILE_ROWS * row).for_each(|piece| packer.push(&pool, piece).unwrap());
            assert!(
                packer.finish().unwrap().as_bytes() == whole.as_bytes(),
                "{ty} in pieces of {tiles} tiles"
            );
        }
        let read = |offset: u64, out: &mut [u8]| {
            out.copy_from_slice(&bytes[offset as usize..][..out.len()]);
            true
        };
        let mut packer = Packer::new(ty, rows, cols).unwrap();
        // At first the last byte is not there yet.
        let early = |offset: u64, out: &mut [u8]| {
            offset + (out.len() as u64) < bytes.len() as u64 && read(offset, out)
        };
        packer.fill(&pool, &early).unwrap();
        let rest = packer.rest();
        assert!(rest.start > 0 && rest.len() <= packer.part(&pool) && rest.end == bytes.len(), "{rest:?}");
        packer.fill(&pool, &|_, _| false).unwrap();
        assert_eq!(packer.rest(), rest);
        if rest.len() > TILE_ROWS * row {
            packer.push(&pool, &bytes[rest][..TILE_ROWS * row]).unwrap();
        }
        packer.fill(&pool, &read).unwrap();
        packer.fill(&pool, &|_, _| false).unwrap();
        assert!(
            packer.finish().unwrap().as_bytes() == whole.as_bytes(),
            "{ty} read by the threads that pack"
        );
        let packer = |pieces: &[&[u8]]| {
            let mut packer = Packer::new(ty, rows, cols)?;
            pieces.iter().try_for_each(|piece| packer.push(&pool, piece))?;
            packer.finish()
        };
        for pieces in [&[&bytes[1..]][..], &[&bytes, &bytes[..1]], &[&bytes[..row], &bytes[row..]], &[]] {
            assert_eq!(packer(pieces).unwrap_err().kind(), ErrorKind::Corrupt, "{ty}");
        }
        assert_eq!(Packer::new(ty, rows, cols).unwrap().piece() % (TILE_ROWS * row), 0);
    }
    let empty = Packer::new(TensorType::Q4_0, 0, 32).unwrap().finish().unwrap();
    assert_eq!((empty.rows(), empty.as_bytes().len()), (0, 0));
}
