//! A decoder described by data: every supported architecture is one block with these options.

mod gguf;
mod hf;

use orion_core::{Error, ModelFormat, ModelHeader, Result};

/// The families whose options are known. The decoder itself never looks at this.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Architecture {
    /// Llama 1 to 3, SmolLM2, TinyLlama.
    Llama,
    /// Mistral with its sliding window.
    Mistral,
    /// Qwen 2 and 2.5: biases on queries, keys and values.
    Qwen2,
    /// Qwen 3: norms on queries and keys.
    Qwen3,
    /// Gemma 2: soft-caps, alternating window, norms before and after.
    Gemma2,
    /// Gemma 3, text: norms on queries and keys, local and global rope.
    Gemma3,
    /// Phi 3: fused projections, partial rotary, longrope.
    Phi3,
}

impl Architecture {
    /// The name in GGUF files; Mistral is written as `llama` there.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Gemma2 => "gemma2",
            Self::Gemma3 => "gemma3",
            Self::Phi3 => "phi3",
        }
    }

    fn is_gemma(self) -> bool {
        matches!(self, Self::Gemma2 | Self::Gemma3)
    }
}

/// The function between gate and up projection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Activation {
    /// `x · sigmoid(x)`.
    Silu,
    /// GELU by its tanh approximation.
    GeluTanh,
    /// GELU by the error function.
    GeluErf,
}

/// Which two elements of a head rotate together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopePairing {
    /// Element `i` with `i + dim / 2` (NeoX; everything in safetensors).
    Halves,
    /// Element `2i` with `2i + 1` (llama in GGUF, whose rows are permuted for it).
    Interleaved,
}

/// How rotary frequencies are changed for long contexts.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All divided by `factor`.
    Linear {
        /// The divisor.
        factor: f32,
    },
    /// Llama 3: low frequencies divided, high ones kept, a ramp between.
    Llama3 {
        /// The divisor of the low frequencies.
        factor: f32,
        /// Wavelengths above `original_context / low_freq_factor` are divided.
        low_freq_factor: f32,
        /// Wavelengths below `original_context / high_freq_factor` are kept.
        high_freq_factor: f32,
        /// Context of the original training.
        original_context: usize,
    },
    /// Each frequency divided by its own factor (`rope_freqs.weight` in GGUF).
    Factors(Vec<f32>),
    /// YaRN (Peng et al. 2023, arXiv 2309.00071).
    Yarn {
        /// The divisor of the interpolated frequencies.
        factor: f32,
        /// Rotations above which a frequency is kept.
        beta_fast: f32,
        /// Rotations below which it is interpolated.
        beta_slow: f32,
        /// Context of the original training.
        original_context: usize,
        /// The ramp begins and ends at whole pairs.
        truncate: bool,
        /// Multiplies cosine and sine.
        attention_factor: f32,
    },
    /// Phi 3: one set of factors up to the original context, another beyond it, chosen by the total length.
    LongRope {
        /// Divisors for sequences within the original context.
        short: Vec<f32>,
        /// Divisors for longer ones.
        long: Vec<f32>,
        /// Context of the original training.
        original_context: usize,
        /// Multiplies cosine and sine.
        attention_factor: f32,
    },
}

/// A rotary embedding.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeConfig {
    /// Rotated elements of each head, the first ones; even.
    pub dim: usize,
    /// Base of the frequencies.
    pub base: f32,
    /// Change for long contexts.
    pub scaling: RopeScaling,
}

/// What may differ from layer to layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerOptions {
    /// Keys further back than this are not seen; `None` sees all.
    pub window: Option<usize>,
    /// Uses [`DecoderConfig::local_rope`].
    pub local_rope: bool,
}

/// All options of a decoder.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    /// Family the options came from.
    pub architecture: Architecture,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of gate and up projection.
    pub ffn: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Elements per head.
    pub head_dim: usize,
    /// Longest context in tokens.
    pub context_length: usize,
    /// One entry per layer.
    pub layers: Vec<LayerOptions>,
    /// Added to the mean square in every norm.
    pub norm_eps: f32,
    /// Norm weights are stored less one (Gemma in safetensors).
    pub norm_offset: bool,
    /// Norms after attention and feed-forward, before the residual is added.
    pub post_norms: bool,
    /// Norms on each head of queries and keys.
    pub qk_norm: bool,
    /// Biases on query, key and value projection.
    pub qkv_bias: bool,
    /// Bias on the output projection of attention.
    pub output_bias: bool,
    /// Biases in the feed-forward block.
    pub ffn_bias: bool,
    /// Query, key and value weights stand in one tensor, gate and up in another.
    pub fused: bool,
    /// Multiplies query-key products.
    pub attention_scale: f32,
    /// Attention scores become `cap · tanh(score / cap)`.
    pub attention_soft_cap: Option<f32>,
    /// Logits become `cap · tanh(logit / cap)`.
    pub logit_soft_cap: Option<f32>,
    /// Multiplies embeddings.
    pub embedding_scale: f32,
    /// Between gate and up.
    pub activation: Activation,
    /// The head is the embedding.
    pub tied: bool,
    /// Which elements rotate together.
    pub rope_pairing: RopePairing,
    /// Rotary embedding.
    pub rope: RopeConfig,
    /// Rotary embedding of layers that say so.
    pub local_rope: Option<RopeConfig>,
}

/// Bounds on hyper-parameters: far beyond any real model, small enough that products cannot overflow.
const MAX_LAYERS: usize = 512;
const MAX_WIDTH: usize = 1 << 20;
const MAX_HEADS: usize = 4096;
const MAX_HEAD_DIM: usize = 4096;
const MAX_VOCAB: usize = 1 << 24;
const MAX_CONTEXT: usize = 1 << 28;

impl DecoderConfig {
    /// Reads the options a model's files give.
    ///
    /// # Errors
    /// [`Unsupported`](orion_core::ErrorKind::Unsupported) for an architecture or option that is not known, by name;
    /// [`Corrupt`](orion_core::ErrorKind::Corrupt) for a missing, absurd or contradictory value, by key.
    pub fn from_header(header: &ModelHeader) -> Result<Self> {
        let config = match header.format {
            ModelFormat::Gguf => gguf::config(header)?,
            ModelFormat::Safetensors => {
                let text = header.side_text("config.json")?.ok_or_else(|| {
                    Error::new(orion_core::ErrorKind::NotFound, "config.json is missing beside the weights")
                })?;
                hf::config(text, header).map_err(|error| error.about("config.json"))?
            }
            other => return Err(Error::unsupported(format!("model format {other:?}"))),
        };
        config.validate(header.format)?;
        Ok(config)
    }

    /// Bounds every value; errors name the key it came from.
    fn validate(&self, format: ModelFormat) -> Result<()> {
        let key = |gguf: &str, hugging_face: &str| match format {
            ModelFormat::Gguf => format!("{}.{gguf}", self.architecture.name()),
            _ => hugging_face.to_owned(),
        };
        let bounded = |gguf: &str, hugging_face: &str, value: usize, most: usize| {
            if (1..=most).contains(&value) {
                Ok(())
            } else {
                Err(Error::corrupt(format!("is {value}, expected 1 to {most}"))
                    .about(key(gguf, hugging_face)))
            }
        };
        bounded("block_count", "num_hidden_layers", self.layers.len(), MAX_LAYERS)?;
        bounded("vocab_size", "vocab_size", self.vocab_size, MAX_VOCAB)?;
        bounded("embedding_length", "hidden_size", self.hidden, MAX_WIDTH)?;
        bounded("feed_forward_length", "intermediate_size", self.ffn, MAX_WIDTH)?;
        bounded("attention.head_count", "num_attention_heads", self.heads, MAX_HEADS)?;
        bounded("attention.head_count_kv", "num_key_value_heads", self.kv_heads, self.heads)?;
        bounded("attention.key_length", "head_dim", self.head_dim, MAX_HEAD_DIM)?;
        bounded("context_length", "max_position_embeddings", self.context_length, MAX_CONTEXT)?;
        if !self.heads.is_multiple_of(self.kv_heads) {
            let message = format!("is {}, which does not divide {} heads", self.kv_heads, self.heads);
            return Err(Error::corrupt(message).about(key("attention.head_count_kv", "num_key_value_heads")));
        }
        let positive = |gguf: &str, hugging_face: &str, value: f32| {
            if value.is_finite() && value > 0.0 {
                Ok(())
            } else {
                let message = format!("gives {value}, expected a positive number");
                Err(Error::corrupt(message).about(key(gguf, hugging_face)))
            }
        };
        if !(self.norm_eps.is_finite() && (0.0..1.0).contains(&self.norm_eps)) {
            let message = format!("is {}, expected a number from 0 to 1", self.norm_eps);
            return Err(
                Error::corrupt(message).about(key("attention.layer_norm_rms_epsilon", "rms_norm_eps"))
            );
        }
        positive("attention.scale", "query_pre_attn_scalar", self.attention_scale)?;
        if let Some(cap) = self.attention_soft_cap {
            positive("attn_logit_softcapping", "attn_logit_softcapping", cap)?;
        }
        if let Some(cap) = self.logit_soft_cap {
            positive("final_logit_softcapping", "final_logit_softcapping", cap)?;
        }
        if self.layers.iter().any(|layer| layer.window == Some(0)) {
            return Err(Error::corrupt("is 0").about(key("attention.sliding_window", "sliding_window")));
        }
        let (base, local) =
            (key("rope.freq_base", "rope_theta"), key("rope.freq_base_swa", "rope_local_base_freq"));
        let keys = |base| RopeKeys {
            dim: key("rope.dimension_count", "partial_rotary_factor"),
            base,
            scaling: key("rope.scaling", "rope_scaling"),
        };
        self.rope.validate(self.head_dim, &keys(base))?;
        self.local_rope.as_ref().map_or(Ok(()), |rope| rope.validate(self.head_dim, &keys(local)))
    }

    /// Query elements per token: `heads · head_dim`.
    #[must_use]
    pub fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Key (or value) elements per token: `kv_heads · head_dim`.
    #[must_use]
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}

/// What the values of a rotary embedding are called where they came from.
struct RopeKeys {
    dim: String,
    base: String,
    scaling: String,
}

impl RopeConfig {
    fn validate(&self, head_dim: usize, keys: &RopeKeys) -> Result<()> {
        if self.dim == 0 || !self.dim.is_multiple_of(2) || self.dim > head_dim {
            let message = format!(
                "rotates {} elements, expected an even number up to the head size {head_dim}",
                self.dim
            );
            return Err(Error::corrupt(message).about(&*keys.dim));
        }
        if !(self.base.is_finite() && self.base > 0.0) {
            let message = format!("is {}, expected a positive number", self.base);
            return Err(Error::corrupt(message).about(&*keys.base));
        }
        self.scaling.validate(self.dim).map_err(|error| error.about(&*keys.scaling))
    }
}

impl RopeScaling {
    /// `dim` elements rotate.
    fn validate(&self, dim: usize) -> Result<()> {
        let factors = |name: &str, factors: &[f32]| {
            if factors.len() != dim / 2 {
                let message = format!("{} {name} factors, expected {}", factors.len(), dim / 2);
                return Err(Error::corrupt(message));
            }
            match factors.iter().find(|factor| !(factor.is_finite() && **factor > 0.0)) {
                Some(factor) => Err(Error::corrupt(format!("a {name} factor is {factor}"))),
                None => Ok(()),
            }
        };
        let positive = |name: &str, value: f32| {
            let ok = value.is_finite() && value > 0.0;
            if ok { Ok(()) } else { Err(Error::corrupt(format!("{name} is {value}"))) }
        };
        let trained = |context: usize| match context {
            0 => Err(Error::corrupt("the original context length is 0")),
            _ => Ok(()),
        };
        match self {
            Self::None => Ok(()),
            Self::Linear { factor } => positive("factor", *factor),
            Self::Factors(list) => factors("frequency", list),
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                positive("factor", *factor)?;
                positive("low_freq_factor", *low_freq_factor)?;
                positive("high_freq_factor", *high_freq_factor)?;
                if high_freq_factor <= low_freq_factor {
                    let message =
                        format!("high_freq_factor {high_freq_factor} is not above {low_freq_factor}");
                    return Err(Error::corrupt(message));
                }
                trained(*original_context)
            }
            Self::Yarn { factor, beta_fast, beta_slow, original_context, attention_factor, .. } => {
                positive("factor", *factor)?;
                positive("beta_fast", *beta_fast)?;
                positive("beta_slow", *beta_slow)?;
                positive("attention factor", *attention_factor)?;
                trained(*original_context)
            }
            Self::LongRope { short, long, original_context, attention_factor } => {
                factors("short", short)?;
                factors("long", long)?;
                positive("attention factor", *attention_factor)?;
                trained(*original_context)
            }
        }
    }
}
