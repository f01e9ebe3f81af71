//! How much worse a model became.

use std::fmt;
use std::path::{Path, PathBuf};

use clap::Args;
use orion::runtime::{LocalModel, Positions, SpecialTokens, log_sum_exp};
use orion::{Error, Result, TokenId};
use serde_json::{Value, json};

#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// Run both models on this text and report perplexity and KL divergence
    #[arg(long, value_name = "TEXT-FILE")]
    verify: Option<PathBuf>,
    /// Chunks of 512 tokens that are run
    #[arg(long, value_name = "N", default_value_t = 4, requires = "verify")]
    verify_chunks: usize,
}

/// Tokens per chunk; the second half is scored.
const CONTEXT: usize = 512;

/// Before and after, on one text.
pub(crate) struct Verdict {
    pub(super) before: f64,
    pub(super) after: f64,
    divergence: f64,
    scored: usize,
}

impl Verdict {
    pub(crate) fn json(&self) -> Value {
        json!({
            "perplexity_before": self.before,
            "perplexity_after": self.after,
            "kl_divergence": self.divergence,
            "scored": self.scored,
        })
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { before, after, divergence, scored } = self;
        write!(f, "perplexity {before:.4} -> {after:.4}, KL divergence {divergence:.5} over {scored} tokens")
    }
}

impl VerifyArgs {
    /// Compares two models, if a text was given.
    pub(crate) fn compare(&self, before: &Path, after: &Path) -> Result<Option<Verdict>> {
        let Some(path) = &self.verify else { return Ok(None) };
        let text =
            std::fs::read_to_string(path).map_err(|error| Error::io(error, path.display().to_string()))?;
        let (before, after) = (orion::open(before)?, orion::open(after)?);
        let tokens = before.codec().tokenizer()?.encode_framed(&text, SpecialTokens::Plain)?;
        let chunks: Vec<&[TokenId]> = tokens.chunks_exact(CONTEXT).take(self.verify_chunks).collect();
        if chunks.is_empty() {
            return Err(Error::invalid(format!(
                "{} tokens, fewer than one chunk of {CONTEXT}",
                tokens.len()
            ))
            .about(path.display().to_string()));
        }
        let mut sums = [0.0; 3];
        let mut scored = 0;
        for chunk in chunks {
            let (reference, candidate) = (logits(&before, chunk)?, logits(&after, chunk)?);
            for ((position, p), (_, q)) in reference.iter().zip(&candidate) {
                let next = chunk[position + 1].index();
                let (p_norm, q_norm) = (log_sum_exp(p), log_sum_exp(q));
                sums[0] += p_norm - f64::from(p[next]);
                sums[1] += q_norm - f64::from(q[next]);
                sums[2] += p
                    .iter()
                    .zip(q)
                    .map(|(p, q)| {
                        let (p, q) = (f64::from(*p) - p_norm, f64::from(*q) - q_norm);
                        p.exp() * (p - q)
                    })
                    .sum::<f64>();
                scored += 1;
            }
        }
        let [before, after, divergence] = sums.map(|sum| sum / f64::from(scored));
        let scored = scored as usize;
        Ok(Some(Verdict { before: before.exp(), after: after.exp(), divergence, scored }))
    }
}

/// The logits after the positions that are scored.
fn logits(model: &LocalModel, chunk: &[TokenId]) -> Result<Vec<(usize, Vec<f32>)>> {
    let mut rows = Vec::new();
    model.evaluate(chunk, Positions::All, |position, logits| {
        if (CONTEXT / 2..CONTEXT - 1).contains(&position) {
            rows.push((position, logits.to_vec()));
        }
    })?;
    Ok(rows)
}
