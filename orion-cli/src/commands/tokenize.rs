use clap::Args;
use orion::Result;
use orion::runtime::{SpecialTokens, TextCodec};
use serde_json::json;

use crate::output;
use crate::source::FetchArgs;

#[derive(Debug, Args)]
pub(crate) struct Tokenize {
    /// The model whose vocabulary to use, as for the other commands; its weights are not read
    #[arg(long, value_name = "MODEL")]
    model: String,
    #[command(flatten)]
    fetch: FetchArgs,
    /// The text
    #[arg(long, value_name = "TEXT")]
    text: String,
    /// Read strings that spell special tokens as these tokens
    #[arg(long)]
    special: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Tokenize {
    pub(crate) fn run(&self) -> Result<()> {
        let source = self.fetch.open(&self.model)?;
        let codec = TextCodec::from_header(source.header(), usize::MAX)?;
        let special = if self.special { SpecialTokens::Parse } else { SpecialTokens::Plain };
        let ids = codec.tokenizer()?.encode(&self.text, special)?;
        if self.json {
            return output::print_json(&json!({ "ids": ids }));
        }
        for id in ids {
            let bytes = codec.tokenizer()?.token_bytes(id).unwrap_or_default();
            output::print(&format!("{id:>8}  {:?}\n", String::from_utf8_lossy(&bytes)))?;
        }
        Ok(())
    }
}
