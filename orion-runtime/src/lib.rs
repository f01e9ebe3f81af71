#![doc = include_str!("../README.md")]
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod template;
mod tokenizer;

pub use template::{ChatTemplate, RenderOptions, RenderedPrompt};
pub use tokenizer::{Detokenizer, SpecialTokens, Tokenizer};
