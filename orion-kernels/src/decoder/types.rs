//! Weights and options, checked against the shape before anything runs.

use orion_core::{Error, Result};

use crate::attention::PAGE_TOKENS;
use crate::math::Activation;
use crate::tiles::PackedMatrix;

/// The widths of a decoder and what all its blocks share.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderShape {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width between gate and down projection.
    pub ffn: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Elements per head: a multiple of 16.
    pub head_dim: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Rows of the embedding and of the head.
    pub vocab: usize,
    /// Added to the mean square in every norm.
    pub norm_eps: f32,
    /// Multiplies query-key products.
    pub attention_scale: f32,
    /// Bounds attention scores: `cap * tanh(score / cap)`.
    pub attention_soft_cap: Option<f32>,
    /// Between gate and up.
    pub activation: Activation,
    /// Rotary embeddings pair element `2i` with `2i + 1`; else `i` with `i + dim / 2`.
    pub rope_interleaved: bool,
    /// What keys and values are kept as.
    pub kv: KvType,
}

/// What keys and values are kept as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
#[non_exhaustive]
pub enum KvType {
    /// Halves: 16 bits a value.
    #[default]
    F16,
    /// Bytes with a half as their scale for every 32 of a head, as in `Q8_0`: 8.5 bits a value. Heads must be multiples of 32.
    Q8,
}

impl KvType {
    /// Bytes of one position's key and value in one head.
    #[must_use]
    pub fn position_bytes(self, head_dim: usize) -> usize {
        match self {
            Self::F16 => 4 * head_dim,
            Self::Q8 => 2 * (head_dim + head_dim / KV_BLOCK * 2),
        }
    }

    /// 16-bit words of one head's keys and values of a page, half of them for the values.
    pub(crate) fn head_words(self, head_dim: usize) -> usize {
        self.position_bytes(head_dim) * PAGE_TOKENS / 2
    }
}

/// Values with one scale in [`KvType::Q8`].
pub(crate) const KV_BLOCK: usize = 32;

impl DecoderShape {
    /// # Errors
    /// [`Unsupported`](orion_core::ErrorKind::Unsupported) for widths the kernels cannot do,
    /// [`InvalidInput`](orion_core::ErrorKind::InvalidInput) for a contradiction.
    pub(crate) fn check(&self) -> Result<()> {
        if !self.head_dim.is_multiple_of(16) || self.head_dim == 0 {
            return Err(Error::unsupported(format!("head size {} is no multiple of 16", self.head_dim)));
        }
        if self.kv == KvType::Q8 && !self.head_dim.is_multiple_of(KV_BLOCK) {
            let message = format!(
                "keys and values of eight bits need heads of a multiple of {KV_BLOCK}, this one has {}",
                self.head_dim
            );
            return Err(Error::unsupported(message));
        }
        if self.kv_heads == 0 || !self.heads.is_multiple_of(self.kv_heads) || self.heads == 0 {
            return Err(Error::invalid(format!(
                "{} heads over {} key-value heads",
                self.heads, self.kv_heads
            )));
        }
        if self.hidden == 0 || self.ffn == 0 || self.vocab == 0 {
            return Err(Error::invalid("a width is 0"));
        }
        Ok(())
    }

    pub(crate) fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }

    pub(crate) fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}

/// Weights of a root-mean-square norm, any offset already added.
pub type Norm = Vec<f32>;

/// A matrix and its bias.
#[derive(Debug, Clone)]
pub struct Projection {
    /// `[out, in]`
    pub matrix: PackedMatrix,
    /// `[out]`
    pub bias: Option<Vec<f32>>,
}

impl Projection {
    pub(crate) fn check(&self, name: &str, rows: usize, cols: usize) -> Result<()> {
        let (r, c) = (self.matrix.rows(), self.matrix.cols());
        let bias = self.bias.as_ref().map_or(rows, Vec::len);
        if (r, c, bias) == (rows, cols, rows) {
            return Ok(());
        }
        Err(Error::invalid(format!("{name} is {r} x {c} with {bias} biases, expected {rows} x {cols}")))
    }
}

/// One block.
#[derive(Debug, Clone)]
pub struct Block {
    /// Before attention.
    pub attn_norm: Norm,
    /// Queries.
    pub q: Projection,
    /// Keys.
    pub k: Projection,
    /// Values.
    pub v: Projection,
    /// Norm over each query head.
    pub q_norm: Option<Norm>,
    /// Norm over each key head.
    pub k_norm: Option<Norm>,
    /// Back from attention.
    pub o: Projection,
    /// After attention, before the residual is added.
    pub post_attn_norm: Option<Norm>,
    /// Before the feed-forward part.
    pub ffn_norm: Norm,
    /// Passes through the activation.
    pub gate: Projection,
    /// Is multiplied with it.
    pub up: Projection,
    /// Back from the feed-forward part.
    pub down: Projection,
    /// After the feed-forward part, before the residual is added.
    pub post_ffn_norm: Option<Norm>,
    /// Keys further back than this are not seen.
    pub window: Option<usize>,
    /// Uses the second rotary embedding of a sequence.
    pub local_rope: bool,
}

impl Block {
    /// Whether it fits the shape.
    ///
    /// # Errors
    /// [`InvalidInput`](orion_core::ErrorKind::InvalidInput), naming what does not fit.
    pub fn check(&self, shape: &DecoderShape) -> Result<()> {
        let (q, kv) = (shape.q_width(), shape.kv_width());
        self.q.check("query projection", q, shape.hidden)?;
        self.k.check("key projection", kv, shape.hidden)?;
        self.v.check("value projection", kv, shape.hidden)?;
        self.o.check("output projection", shape.hidden, q)?;
        self.gate.check("gate projection", shape.ffn, shape.hidden)?;
        self.up.check("up projection", shape.ffn, shape.hidden)?;
        self.down.check("down projection", shape.hidden, shape.ffn)?;
        let norms = [
            Some(&self.attn_norm),
            Some(&self.ffn_norm),
            self.post_attn_norm.as_ref(),
            self.post_ffn_norm.as_ref(),
        ];
        let heads = [self.q_norm.as_ref(), self.k_norm.as_ref()];
        if norms.into_iter().flatten().any(|norm| norm.len() != shape.hidden)
            || heads.into_iter().flatten().any(|norm| norm.len() != shape.head_dim)
        {
            return Err(Error::invalid("a norm's length is not the width it normalises"));
        }
        if self.post_attn_norm.is_some() != self.post_ffn_norm.is_some() {
            return Err(Error::unsupported("a norm after only one of attention and feed-forward"));
        }
        if self.window == Some(0) {
            return Err(Error::invalid("sliding window is 0"));
        }
        Ok(())
    }
}

/// Token rows.
#[derive(Debug, Clone)]
pub struct Embedding {
    /// `[vocab, hidden]`, or a row for each of [`tokens`](Self::tokens).
    pub table: PackedMatrix,
    /// The tokens whose rows the table holds, ascending; `None` for all.
    pub tokens: Option<Vec<u32>>,
    /// Multiplies the rows.
    pub scale: f32,
}

impl Embedding {
    pub(crate) fn check(&self, shape: &DecoderShape, tokens: &[u32]) -> Result<()> {
        let rows = self.tokens.as_ref().map_or(shape.vocab, Vec::len);
        Projection { matrix: self.table.clone(), bias: None }.check("embedding", rows, shape.hidden)?;
        if let Some(held) = &self.tokens {
            if !held.is_sorted_by(|a, b| a < b) {
                return Err(Error::invalid("the tokens of an embedding are not in ascending order"));
            }
            if let Some(missing) = tokens.iter().find(|&token| held.binary_search(token).is_err()) {
                return Err(Error::invalid(format!("the embedding has no row for token {missing}")));
            }
        }
        Ok(())
    }

    /// The row of a token; it was checked that there is one.
    pub(crate) fn row(&self, token: u32) -> usize {
        match &self.tokens {
            None => token as usize,
            Some(held) => held.binary_search(&token).unwrap_or_default(),
        }
    }
}

/// From the residual stream to logits.
#[derive(Debug, Clone)]
pub struct Head {
    /// Before the projection.
    pub norm: Norm,
    /// `[vocab, hidden]`
    pub matrix: PackedMatrix,
    /// Bounds logits: `cap * tanh(logit / cap)`.
    pub soft_cap: Option<f32>,
}

impl Head {
    pub(crate) fn check(&self, shape: &DecoderShape) -> Result<()> {
        Projection { matrix: self.matrix.clone(), bias: None }.check("head", shape.vocab, shape.hidden)?;
        if self.norm.len() != shape.hidden {
            return Err(Error::invalid("the last norm's length is not the hidden width"));
        }
        Ok(())
    }
}

/// A rotary embedding.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Angle per position of each rotated pair; twice as many elements of a head rotate, the first ones.
    pub frequencies: Vec<f32>,
    /// Multiplies cosine and sine.
    pub magnitude: f32,
}
