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

/// A text cut into chunks of equal length.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TextChunks {
    /// The chunks, each to be run from an empty context.
    pub chunks: Vec<Vec<TokenId>>,
    /// Tokens of the text, those of the rest included.
    pub tokens: usize,
}

impl LocalModel {
    /// Cuts a text into chunks of `context` tokens without overlap and drops the rest, as llama.cpp's tools do. The first
    /// token of each is replaced by BOS if the vocabulary adds one.
    ///
    /// # Errors
    /// A text shorter than one chunk, a context beyond the model's.
    pub fn text_chunks(&self, text: &str, context: usize) -> Result<TextChunks> {
        let tokenizer = self.codec().tokenizer()?;
        if context < 4 || context > self.config().context_length {
            let most = self.config().context_length;
            return Err(Error::invalid(format!("context is {context}, expected 4 to {most}")));
        }
        let tokens = tokenizer.encode_framed(text, SpecialTokens::Plain)?;
        if tokens.len() < context {
            let message = format!("the text has {} tokens, fewer than one chunk of {context}", tokens.len());
            return Err(Error::invalid(message));
        }
        let bos = tokenizer.bos().filter(|_| tokenizer.add_bos());
        let framed = |chunk: &[TokenId]| {
            let mut chunk = chunk.to_vec();
            chunk[0] = bos.unwrap_or(chunk[0]);
            chunk
        };
        Ok(TextChunks { chunks: tokens.chunks_exact(context).map(framed).collect(), tokens: tokens.len() })
    }

    /// Runs the [chunks](Self::text_chunks) of a text. Scored are the predictions made at the positions `context / 2` to
    /// `context - 2` of each. Calls `progress` with the chunks done, the chunks in all and the perplexity so far.
    ///
    /// # Errors
    /// A text shorter than one chunk, a context beyond the model's, or a failure of the model.
    pub fn perplexity(
        &self,
        text: &str,
        context: usize,
        mut progress: impl FnMut(usize, usize, f64),
    ) -> Result<Perplexity> {
        let TextChunks { chunks, tokens } = self.text_chunks(text, context)?;
        let (mut sum, mut scored) = (0.0, 0u32);
        for (done, chunk) in chunks.iter().enumerate() {
            self.evaluate(chunk, Positions::All, |position, logits| {
                if (context / 2..context - 1).contains(&position) {
                    let next = chunk[position + 1];
                    sum += log_sum_exp(logits) - f64::from(logits[next.index()]);
                    scored += 1;
                }
            })?;
            progress(done + 1, chunks.len(), (sum / f64::from(scored)).exp());
        }
        let perplexity = (sum / f64::from(scored)).exp();
        Ok(Perplexity { perplexity, scored: scored as usize, chunks: chunks.len(), tokens })
    }
}
