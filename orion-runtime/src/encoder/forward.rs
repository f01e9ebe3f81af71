//! The forward pass, over all tokens of a batch in one matrix: texts of different lengths stand one behind the
//! other, so there is no padding, and only attention looks at where one ends.

use std::ops::Range;

use candle_core::{Device, Tensor};
use orion_core::Result;
use orion_kernels::{Activation, activate_rows};

use super::config::EncoderConfig;
use super::linear::{Engine, candle};
use super::weights::{BertWeights, Norm};

/// Runs the layers over `texts`. `seen` is shown the hidden states `[tokens, hidden]` after every layer, with the
/// number of layers passed so far, and answers whether more are needed.
pub(super) fn run(
    config: &EncoderConfig,
    weights: &BertWeights,
    engine: &mut Engine,
    texts: &[Vec<u32>],
    mut seen: impl FnMut(usize, &[f32], &[Range<usize>]),
    last: usize,
) -> Result<()> {
    let hidden = config.hidden;
    let mut spans = Vec::with_capacity(texts.len());
    let mut x = Vec::new(); // [tokens, hidden]
    for text in texts {
        let start = x.len() / hidden;
        for (at, &id) in text.iter().enumerate() {
            let word = &weights.words[id as usize * hidden..][..hidden];
            let position = &weights.positions[at * hidden..][..hidden];
            x.extend(word.iter().zip(position).map(|(a, b)| a + b));
        }
        spans.push(start..x.len() / hidden);
    }
    layer_norm(&mut x, &weights.embedding_norm, config.norm_eps);
    seen(0, &x, &spans);
    for (at, layer) in weights.layers.iter().take(last).enumerate() {
        let qkv = layer.qkv.apply(&x, engine)?;
        let mut mixed = vec![0.0; x.len()];
        for span in &spans {
            let rows = &qkv[span.start * 3 * hidden..span.end * 3 * hidden];
            let out = attention(rows, span.len(), config).map_err(candle)?;
            mixed[span.start * hidden..span.end * hidden].copy_from_slice(&out);
        }
        let projected = layer.attention_out.apply(&mixed, engine)?;
        add(&mut x, &projected);
        layer_norm(&mut x, &layer.attention_norm, config.norm_eps);
        let mut inner = layer.up.apply(&x, engine)?;
        activate_rows(engine.isa, Activation::GeluErf, &mut inner, None);
        let outer = layer.down.apply(&inner, engine)?;
        add(&mut x, &outer);
        layer_norm(&mut x, &layer.output_norm, config.norm_eps);
        seen(at + 1, &x, &spans);
    }
    Ok(())
}

/// Full attention within one text. `qkv` is `[tokens, 3, heads, head_dim]`; the answer `[tokens, heads, head_dim]`.
fn attention(qkv: &[f32], tokens: usize, config: &EncoderConfig) -> candle_core::Result<Vec<f32>> {
    let head_dim = config.hidden / config.heads;
    let qkv = Tensor::from_slice(qkv, (tokens, 3, config.heads, head_dim), &Device::Cpu)?;
    let part = |at: usize| qkv.narrow(1, at, 1)?.squeeze(1)?.transpose(0, 1)?.contiguous();
    let scale = 1.0 / (head_dim as f64).sqrt();
    let scores = (part(0)? * scale)?.matmul(&part(1)?.t()?)?; // [heads, tokens, tokens]
    let mut scores = scores.flatten_all()?.to_vec1::<f32>()?;
    scores.chunks_exact_mut(tokens).for_each(softmax);
    let scores = Tensor::from_vec(scores, (config.heads, tokens, tokens), &Device::Cpu)?;
    scores.matmul(&part(2)?)?.transpose(0, 1)?.flatten_all()?.to_vec1()
}

fn softmax(row: &mut [f32]) {
    let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    row.iter_mut().for_each(|value| *value = exp(*value - most));
    let sum: f32 = row.iter().sum();
    row.iter_mut().for_each(|value| *value /= sum);
}

/// `e^x` for `x` up to 0, within 2e-7 of the value: reduction to half a power of two, then Cephes' polynomial. Free
/// of branches and calls, so that the compiler may work on whole vectors.
#[allow(clippy::excessive_precision, reason = "the coefficients as they were published")]
fn exp(x: f32) -> f32 {
    let x = x.max(-87.0);
    // Adding and taking away 1.5 · 2²³ rounds to the nearest integer.
    let shifted = x * std::f32::consts::LOG2_E + 12_582_912.0;
    let n = shifted - 12_582_912.0;
    let r = x - n * 0.693_359_375 + n * 2.121_944_4e-4;
    let mut p = 1.987_569_15e-4_f32;
    for c in [1.398_199_95e-3, 8.333_451_9e-3, 4.166_579_6e-2, 1.666_666_55e-1, 0.5] {
        p = p * r + c;
    }
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000));
    (p * r * r + r + 1.0) * power
}

fn add(x: &mut [f32], y: &[f32]) {
    x.iter_mut().zip(y).for_each(|(a, b)| *a += b);
}

fn layer_norm(x: &mut [f32], norm: &Norm, eps: f32) {
    let width = norm.weight.len();
    for row in x.chunks_exact_mut(width) {
        let mean = row.iter().sum::<f32>() / width as f32;
        let variance = row.iter().map(|value| (value - mean) * (value - mean)).sum::<f32>() / width as f32;
        let scale = 1.0 / (variance + eps).sqrt();
        for ((value, weight), bias) in row.iter_mut().zip(&norm.weight).zip(&norm.bias) {
            *value = (*value - mean) * scale * weight + bias;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_meets_the_library() {
        for at in 0..870 {
            let x = -0.1 * at as f32;
            let (got, want) = (exp(x), x.exp());
            assert!((got - want).abs() <= 3e-7 * want, "exp({x}) = {got}, expected {want}");
        }
        assert!(exp(f32::NEG_INFINITY) < 2e-38);
    }

    #[test]
    fn softmax_of_large_scores_stays_finite() {
        let mut row = [1e30, 1e30, -1e30];
        softmax(&mut row);
        assert!((row[0] - 0.5).abs() < 1e-6 && (row[1] - 0.5).abs() < 1e-6 && row[2] < 1e-30);
    }
}
