//! Perplexity as llama.cpp's own tool defines it, so that figures compare.

use orion_core::{Error, Result, TokenId};

use crate::model::{LocalModel, Positions};
use crate::sampler::log_sum_exp;
use crate::tokenizer::SpecialTokens;

/// How well a model predicts a text.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Perplexity {
    /// `exp` of the mean negative log-likelihood of the scored tokens.
    pub perplexity: f64,
    /// Tokens scored.
    pub scored: usize,
    /// Chunks run.
    pub chunks: usize,
    /// Tokens of the text.
    pub tokens: usize,
}

impl LocalModel {
    /// Cuts the text into chunks of `context` tokens without overlap and drops the rest. Each chunk runs from an
    /// empty context, its first token replaced by BOS if the vocabulary adds one; scored are the predictions made at
    /// its positions `context / 2` to `context - 2`. Calls `progress` with the chunks done, the chunks in all and the
    /// perplexity so far.
    ///
    /// # Errors
    /// A text shorter than one chunk, a context beyond the model's, or a failure of the model.
    pub fn perplexity(
        &self,
        text: &str,
        context: usize,
        mut progress: impl FnMut(usize, usize, f64),
    ) -> Result<Perplexity> {
        let tokenizer = self.codec().tokenizer()?;
        let tokens = tokenizer.encode_framed(text, SpecialTokens::Plain)?;
        if context < 4 || context > self.config().context_length {
            let most = self.config().context_length;
            return Err(Error::invalid(format!("context is {context}, expected 4 to {most}")));
        }
        if tokens.len() < context {
            let message = format!("the text has {} tokens, fewer than one chunk of {context}", tokens.len());
            return Err(Error::invalid(message));
        }
        let bos = tokenizer.bos().filter(|_| tokenizer.add_bos());
        let chunks = tokens.len() / context;
        let (mut sum, mut scored) = (0.0, 0u32);
        for (done, chunk) in tokens.chunks_exact(context).enumerate() {
            let mut chunk: Vec<TokenId> = chunk.to_vec();
            if let Some(bos) = bos {
                chunk[0] = bos;
            }
            self.evaluate(&chunk, Positions::All, |position, logits| {
                if (context / 2..context - 1).contains(&position) {
                    let next = chunk[position + 1];
                    sum += log_sum_exp(logits) - f64::from(logits[next.index()]);
                    scored += 1;
                }
            })?;
            progress(done + 1, chunks, (sum / f64::from(scored)).exp());
        }
        let perplexity = (sum / f64::from(scored)).exp();
        Ok(Perplexity { perplexity, scored: scored as usize, chunks, tokens: tokens.len() })
    }
}
