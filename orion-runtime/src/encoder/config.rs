//! What `config.json` and its neighbours say of a BERT encoder.

use orion_core::{Error, ModelHeader, Result};
use serde::Deserialize;

/// Upper bounds: a config beyond them is no sentence encoder but an attack on memory.
const MAX_HIDDEN: usize = 8192;
const MAX_LAYERS: usize = 128;
const MAX_VOCABULARY: usize = 4_000_000;
const MAX_POSITIONS: usize = 1 << 20;

/// Hyper-parameters of a sentence encoder of the BERT kind.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct EncoderConfig {
    /// Width of a token's state, and of an embedding.
    pub hidden: usize,
    /// Number of layers.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Width inside the feed-forward network.
    pub ffn: usize,
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Positions the model has embeddings for.
    pub positions: usize,
    /// Token types the model has embeddings for; the first is used.
    pub token_types: usize,
    /// Added to the variance in layer norms.
    pub norm_eps: f32,
    /// Longest text in tokens, the special ones included; longer ones are cut.
    pub context_length: usize,
}

#[derive(Deserialize)]
struct ConfigFile {
    model_type: String,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    vocab_size: usize,
    max_position_embeddings: usize,
    #[serde(default = "default_token_types")]
    type_vocab_size: usize,
    #[serde(default = "default_eps")]
    layer_norm_eps: f32,
    #[serde(default = "default_act")]
    hidden_act: String,
    #[serde(default = "default_positions")]
    position_embedding_type: Option<String>,
}

// The defaults of Hugging Face's `BertConfig`.
fn default_token_types() -> usize {
    2
}
fn default_eps() -> f32 {
    1e-12
}
fn default_act() -> String {
    "gelu".to_owned()
}
#[allow(clippy::unnecessary_wraps, reason = "serde wants the field's type")]
fn default_positions() -> Option<String> {
    Some("absolute".to_owned())
}

#[derive(Deserialize)]
struct SentenceFile {
    max_seq_length: Option<usize>,
}

#[derive(Deserialize)]
struct PoolingFile {
    #[serde(default)]
    pooling_mode_mean_tokens: bool,
}

fn parse<T: serde::de::DeserializeOwned>(header: &ModelHeader, name: &str) -> Result<Option<T>> {
    header
        .side_text(name)?
        .map(|text| {
            serde_json::from_str(text)
                .map_err(|error| Error::corrupt(error.to_string()).about(name).with_source(error))
        })
        .transpose()
}

/// Whether `config.json` describes a model of this kind.
pub(crate) fn is_encoder(header: &ModelHeader) -> bool {
    #[derive(Deserialize)]
    struct Kind {
        model_type: String,
    }
    matches!(parse(header, "config.json"), Ok(Some(Kind { model_type })) if model_type == "bert")
}

impl EncoderConfig {
    /// Reads and checks the side files of `header`.
    pub(super) fn read(header: &ModelHeader) -> Result<Self> {
        let file: ConfigFile = parse(header, "config.json")?
            .ok_or_else(|| Error::corrupt("the model has no config.json, which an encoder needs"))?;
        let unsupported = |field: &str, value: &str| {
            Err(Error::unsupported(format!("{field} {value:?} is not supported by the encoder"))
                .about("config.json"))
        };
        if file.model_type != "bert" {
            return unsupported("model_type", &file.model_type);
        }
        if file.hidden_act != "gelu" {
            return unsupported("hidden_act", &file.hidden_act);
        }
        if let Some(kind) = file.position_embedding_type.as_deref().filter(|&kind| kind != "absolute") {
            return unsupported("position_embedding_type", kind);
        }
        let pooling: Option<PoolingFile> = parse(header, "1_Pooling/config.json")?;
        if pooling.is_some_and(|pooling| !pooling.pooling_mode_mean_tokens) {
            return Err(Error::unsupported("only pooling_mode_mean_tokens is supported")
                .about("1_Pooling/config.json"));
        }
        let sentence: Option<SentenceFile> = parse(header, "sentence_bert_config.json")?;
        let context_length = sentence
            .and_then(|file| file.max_seq_length)
            .unwrap_or(file.max_position_embeddings)
            .min(file.max_position_embeddings);
        let config = Self {
            hidden: file.hidden_size,
            layers: file.num_hidden_layers,
            heads: file.num_attention_heads,
            ffn: file.intermediate_size,
            vocab_size: file.vocab_size,
            positions: file.max_position_embeddings,
            token_types: file.type_vocab_size,
            norm_eps: file.layer_norm_eps,
            context_length,
        };
        config.check().map_err(|error| error.about("config.json"))?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        let bounds = [
            ("hidden_size", self.hidden, MAX_HIDDEN),
            ("num_hidden_layers", self.layers, MAX_LAYERS),
            ("num_attention_heads", self.heads, MAX_HIDDEN),
            ("intermediate_size", self.ffn, 8 * MAX_HIDDEN),
            ("vocab_size", self.vocab_size, MAX_VOCABULARY),
            ("max_position_embeddings", self.positions, MAX_POSITIONS),
            ("type_vocab_size", self.token_types, 1024),
        ];
        for (field, value, most) in bounds {
            if value == 0 || value > most {
                return Err(Error::corrupt(format!("{field} is {value}, expected 1 to {most}")));
            }
        }
        if !self.hidden.is_multiple_of(self.heads) {
            return Err(Error::corrupt(format!(
                "hidden_size {} is no multiple of num_attention_heads {}",
                self.hidden, self.heads
            )));
        }
        if !(self.norm_eps.is_finite() && self.norm_eps >= 0.0 && self.norm_eps < 1.0) {
            return Err(Error::corrupt(format!("layer_norm_eps is {}, expected 0 to 1", self.norm_eps)));
        }
        if self.context_length < 3 {
            return Err(Error::corrupt(format!(
                "max_seq_length is {}, expected 3 or more",
                self.context_length
            )));
        }
        Ok(())
    }
}
