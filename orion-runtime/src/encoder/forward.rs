//! The forward pass, over all tokens of a batch in one matrix: texts of different lengths stand one behind the
//! other, so there is no padding, and only attention looks at where one ends.

use std::ops::Range;

use orion_core::Result;
use orion_kernels::{EncoderWorkspace, Isa, layer_norm};

use super::config::EncoderConfig;
use super::weights::BertWeights;

/// Runs all layers over `texts`. `seen` is shown the hidden states `[tokens, hidden]` after every layer, with the number of
/// layers passed so far.
pub(super) fn run(
    config: &EncoderConfig,
    weights: &BertWeights,
    workspace: &mut EncoderWorkspace,
    texts: &[Vec<u32>],
    seen: impl Fn(usize, &[f32], &[Range<usize>]) + Sync,
) -> Result<()> {
    let (hidden, isa) = (config.hidden, Isa::active()?);
    let mut spans = Vec::with_capacity(texts.len());
    let mut x = vec![0.0; texts.iter().map(Vec::len).sum::<usize>() * hidden];
    let mut sum = vec![0.0; hidden];
    let mut rows = x.chunks_exact_mut(hidden);
    let mut start = 0;
    for text in texts {
        for ((at, &id), row) in text.iter().enumerate().zip(&mut rows) {
            let word = &weights.words[id as usize * hidden..][..hidden];
            let position = &weights.positions[at * hidden..][..hidden];
            for (sum, (a, b)) in sum.iter_mut().zip(word.iter().zip(position)) {
                *sum = a + b;
            }
            let norm = &weights.embedding_norm;
            layer_norm(isa, &sum, &norm.weight, &norm.bias, config.norm_eps, row);
        }
        spans.push(start..start + text.len());
        start += text.len();
    }
    seen(0, &x, &spans);
    workspace.run(&weights.blocks, &spans, &mut x, |at, x| seen(at + 1, x, &spans))
}
