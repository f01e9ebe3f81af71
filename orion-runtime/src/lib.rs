#![doc = include_str!("../README.md")]
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod config;
mod constraint;
mod cpu;
mod encoder;
mod executor;
mod kv;
mod kv_files;
mod load;
mod model;
mod observe;
mod perplexity;
mod portable;
mod rope;
mod row_lookup;
mod sampler;
mod sequence;
mod slot;
mod stops;
mod template;
mod text;
mod tokenizer;
mod weights;
mod worker;

pub use config::{
    Activation, Architecture, DecoderConfig, LayerOptions, RopeConfig, RopePairing, RopeScaling,
};
pub use encoder::{EncoderConfig, EncoderOptions, Output, Pooling, Precision, SentenceEncoder};
pub use kv_files::KvDirectory;
pub use model::{Described, ExecutorKind, LocalModel, LocalRuntime, Positions, RuntimeOptions, check};
pub use observe::InputObserver;
pub use orion_kernels::{ComputePool, KvType};
pub use perplexity::{Perplexity, TextChunks};
pub use sampler::{log_sum_exp, top_logits};
pub use template::{ChatTemplate, RenderOptions, RenderedPrompt};
pub use text::TextCodec;
pub use tokenizer::{Detokenizer, SpecialTokens, Tokenizer};
