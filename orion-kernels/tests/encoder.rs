//! The encoder's block: against a plain implementation in double precision, and the law that batches, threads and instruction
//! sets change no bit.

#![allow(
    clippy::unwrap_used,
    clippy::needless_range_loop,
    clippy::single_range_in_vec_init,
    reason = "a test: a panic is a failure, an index names what is compared, one text is a list of one"
)]

use std::ops::Range;

use orion_core::{ErrorKind, TensorType};
use orion_kernels::{
    Activation, ComputePool, EncoderBlock, EncoderMatrix, EncoderProjection, EncoderShape, EncoderWorkspace,
    Isa, LayerNorm, PackedMatrix, Panel, SevenBitMatrix, quantize,
};

/// Numbers in -1..1 that are the same in every run.
struct Draws(u32);

impl Draws {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (self.0 >> 8) as f32 / (1 << 23) as f32 - 1.0
    }

    fn many(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.next()).collect()
    }

    fn projection(&mut self, ty: Option<TensorType>, rows: usize, cols: usize) -> EncoderProjection {
        let weights: Vec<f32> = self.many(rows * cols).iter().map(|v| v / (cols as f32).sqrt()).collect();
        let bias = self.many(rows);
        let Some(ty) = ty else {
            let matrix = SevenBitMatrix::quantise(cols, &weights).unwrap();
            return EncoderProjection { matrix: EncoderMatrix::SevenBit(matrix), bias };
        };
        let mut bytes = Vec::new();
        quantize(ty, &weights, cols, None, &mut bytes).unwrap();
        let pool = ComputePool::new(1).unwrap();
        let matrix = PackedMatrix::pack(&pool, ty, rows, cols, &bytes).unwrap();
        EncoderProjection { matrix: EncoderMatrix::Packed(matrix), bias }
    }

    fn norm(&mut self, width: usize) -> LayerNorm {
        LayerNorm { weight: self.many(width).iter().map(|v| 1.0 + v / 4.0).collect(), bias: self.many(width) }
    }
}

fn shape(hidden: usize, ffn: usize, heads: usize) -> EncoderShape {
    EncoderShape { hidden, ffn, heads, norm_eps: 1e-5, activation: Activation::GeluErf }
}

/// Its matrices in a type of model files, or in seven bits.
fn block(shape: &EncoderShape, ty: Option<TensorType>) -> EncoderBlock {
    let (draws, hidden, ffn) = (&mut Draws(7), shape.hidden, shape.ffn);
    EncoderBlock {
        qkv: draws.projection(ty, 3 * hidden, hidden),
        attention_out: draws.projection(ty, hidden, hidden),
        attention_norm: draws.norm(hidden),
        up: draws.projection(ty, ffn, hidden),
        down: draws.projection(ty, hidden, ffn),
        output_norm: draws.norm(hidden),
    }
}

fn spans(lengths: &[usize]) -> Vec<Range<usize>> {
    let ends = (0..=lengths.len()).map(|count| lengths[..count].iter().sum());
    let ends: Vec<usize> = ends.collect();
    ends.windows(2).map(|pair| pair[0]..pair[1]).collect()
}

/// Twice through the block, so that scratch space is used again.
fn run(
    shape: &EncoderShape,
    block: &EncoderBlock,
    isa: Isa,
    threads: usize,
    lengths: &[usize],
    x: &[f32],
) -> Vec<f32> {
    let mut x = x.to_vec();
    let pool = ComputePool::new(threads).unwrap();
    let mut workspace = EncoderWorkspace::new(pool, isa, shape.clone(), x.len() / shape.hidden + 3).unwrap();
    for _ in 0..2 {
        workspace.run(std::slice::from_ref(block), &spans(lengths), &mut x, |_, _| {}).unwrap();
    }
    x
}

/// The same in double precision, written down plainly.
fn reference(shape: &EncoderShape, block: &EncoderBlock, lengths: &[usize], x: &[f32]) -> Vec<f64> {
    let apply = |p: &EncoderProjection, x: &[f64]| -> Vec<f64> {
        let mut row = vec![0.0; p.matrix.cols()];
        (0..p.matrix.rows())
            .map(|i| {
                match &p.matrix {
                    EncoderMatrix::Packed(matrix) => {
                        matrix.row(Isa::Scalar, i, &mut Panel::default(), &mut row).unwrap();
                    }
                    EncoderMatrix::SevenBit(matrix) => row = matrix.row(i),
                }
                let dot: f64 = row.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum();
                dot + f64::from(p.bias[i])
            })
            .collect()
    };
    let norm = |x: Vec<f64>, norm: &LayerNorm| -> Vec<f64> {
        let mean = x.iter().sum::<f64>() / x.len() as f64;
        let variance = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / x.len() as f64;
        let inverse = 1.0 / (variance + f64::from(shape.norm_eps)).sqrt();
        let scaled = x.iter().zip(norm.weight.iter().zip(&norm.bias));
        scaled.map(|(v, (w, b))| (v - mean) * inverse * f64::from(*w) + f64::from(*b)).collect()
    };
    // The integral that erf is, by Simpson's rule.
    let erf = |x: f64| {
        let h = x / 200.0;
        let weight = |i: usize| match i {
            0 | 200 => 1.0,
            i if i % 2 == 1 => 4.0,
            _ => 2.0,
        };
        let f = |i: usize| (-(i as f64 * h).powi(2)).exp() * weight(i);
        (0..=200).map(f).sum::<f64>() * h / 3.0 * std::f64::consts::FRAC_2_SQRT_PI
    };
    let (hidden, dim) = (shape.hidden, shape.hidden / shape.heads);
    let mut x: Vec<Vec<f64>> =
        x.chunks(hidden).map(|row| row.iter().map(|v| f64::from(*v)).collect()).collect();
    for _ in 0..2 {
        let qkv: Vec<Vec<f64>> = x.iter().map(|row| apply(&block.qkv, row)).collect();
        for text in spans(lengths) {
            for i in text.clone() {
                let mut mixed = vec![0.0; hidden];
                for head in 0..shape.heads {
                    let at = head * dim;
                    let score = |j: usize| {
                        let dot: f64 = (at..at + dim).map(|d| qkv[i][d] * qkv[j][hidden + d]).sum();
                        (dot / (dim as f64).sqrt()).exp()
                    };
                    let sum: f64 = text.clone().map(score).sum();
                    for d in at..at + dim {
                        mixed[d] = text.clone().map(|j| score(j) / sum * qkv[j][2 * hidden + d]).sum();
                    }
                }
                let attended = apply(&block.attention_out, &mixed);
                x[i] = norm(x[i].iter().zip(attended).map(|(a, b)| a + b).collect(), &block.attention_norm);
            }
        }
        for row in &mut x {
            let inner = apply(&block.up, row);
            let inner: Vec<f64> = inner.iter().map(|v| 0.5 * v * (1.0 + erf(v / 2f64.sqrt()))).collect();
            let outer = apply(&block.down, &inner);
            *row = norm(row.iter().zip(outer).map(|(a, b)| a + b).collect(), &block.output_norm);
        }
    }
    x.concat()
}

#[test]
fn a_block_matches_double_precision() {
    // Head sizes that fill vectors and such that do not; texts of one token, of a group of queries, of more than a vector.
    for (hidden, ffn, heads, ty, bound) in [
        (64, 96, 2, Some(TensorType::F32), 1e-4),
        (36, 50, 6, Some(TensorType::F32), 1e-4),
        (96, 128, 3, Some(TensorType::F16), 2e-3),
        (64, 96, 4, Some(TensorType::Q8_0), 0.12),
        (64, 96, 4, None, 0.24),
    ] {
        let shape = shape(hidden, ffn, heads);
        let (block, lengths) = (block(&shape, ty), [1, 4, 21, 16]);
        let x = Draws(3).many(42 * hidden);
        let got = run(&shape, &block, Isa::best(), 2, &lengths, &x);
        for (got, want) in got.iter().zip(reference(&shape, &block, &lengths, &x)) {
            assert!((f64::from(*got) - want).abs() < bound, "{ty:?} {heads} heads: {got}, expected {want}");
        }
    }
}

#[test]
fn a_text_has_the_same_bits_in_any_batch_on_any_threads_and_instruction_set() {
    let shape = shape(64, 96, 4);
    for ty in [Some(TensorType::F32), Some(TensorType::Q8_0), None] {
        let block = block(&shape, ty);
        let lengths = [3, 17, 1, 9, 30];
        let x = Draws(5).many(60 * shape.hidden);
        let bits = |x: Vec<f32>| x.into_iter().map(f32::to_bits).collect::<Vec<_>>();
        let first = bits(run(&shape, &block, Isa::Scalar, 1, &lengths, &x));
        for isa in Isa::available() {
            for threads in [1, 2, 3] {
                assert!(
                    bits(run(&shape, &block, isa, threads, &lengths, &x)) == first,
                    "{ty:?} {isa} {threads}"
                );
            }
        }
        for text in spans(&lengths) {
            let part = text.start * shape.hidden..text.end * shape.hidden;
            let alone = run(&shape, &block, Isa::best(), 2, &[text.len()], &x[part.clone()]);
            assert!(bits(alone) == first[part], "{ty:?} {text:?}");
        }
    }
}

#[test]
fn misuse_is_refused() {
    let shape = shape(64, 96, 4);
    let pool = ComputePool::new(1).unwrap();
    let new = |shape| EncoderWorkspace::new(pool.clone(), Isa::best(), shape, 8);
    for wrong in
        [self::shape(64, 96, 5), self::shape(0, 96, 1), self::shape(64, 0, 1), self::shape(64, 96, 0)]
    {
        assert_eq!(new(wrong).unwrap_err().kind(), ErrorKind::InvalidInput);
    }
    let mut workspace = new(shape.clone()).unwrap();
    let good = block(&shape, Some(TensorType::F32));
    let mut refused = |block: &EncoderBlock, texts: &[Range<usize>], values: usize| {
        let error =
            workspace.run(std::slice::from_ref(block), texts, &mut vec![0.0; values], |_, _| {}).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    };
    refused(&good, &[0..9], 9 * 64);
    refused(&good, &[0..2], 2 * 64 + 1);
    refused(&good, &[0..2], 3 * 64);
    refused(&good, &[0..2, 1..3], 3 * 64);
    refused(&good, &[1..3], 3 * 64);
    refused(&good, &[0..2, 2..2, 2..3], 3 * 64);
    let mut bad = good.clone();
    bad.up.bias = vec![0.0; 3];
    refused(&bad, &[0..2], 2 * 64);
    let mut bad = good.clone();
    bad.output_norm.bias.pop();
    refused(&bad, &[0..2], 2 * 64);
    let mut bad = good.clone();
    std::mem::swap(&mut bad.up, &mut bad.down);
    refused(&bad, &[0..2], 2 * 64);
    workspace.run(&[good], &[], &mut [], |_, _| {}).unwrap();
}
