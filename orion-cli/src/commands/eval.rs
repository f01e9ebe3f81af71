use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use orion::{Error, Result};
use serde_json::json;

use super::model::ModelArgs;
use crate::output;

#[derive(Debug, Args)]
pub(crate) struct Eval {
    #[command(flatten)]
    model: ModelArgs,
    /// The text, UTF-8
    #[arg(long, value_name = "TEXT-FILE")]
    file: PathBuf,
    /// Tokens per chunk
    #[arg(long, value_name = "N", default_value_t = 512)]
    ctx: usize,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Eval {
    pub(crate) fn run(&self) -> Result<()> {
        let text =
            std::fs::read(&self.file).map_err(|error| Error::io(error, self.file.display().to_string()))?;
        let text = String::from_utf8(text).map_err(|error| {
            Error::invalid("is not UTF-8 text").about(self.file.display().to_string()).with_source(error)
        })?;
        let model = self.model.open()?;
        let began = Instant::now();
        let result = model.perplexity(&text, self.ctx, |done, all, so_far| {
            if !self.json {
                eprint!("\rchunk {done} of {all}: {so_far:.4}  ");
            }
        })?;
        let seconds = began.elapsed().as_secs_f64();
        if self.json {
            return output::print_json(&json!({
                "perplexity": result.perplexity,
                "tokens": result.tokens,
                "chunks": result.chunks,
                "scored": result.scored,
                "ctx": self.ctx,
                "seconds": seconds,
            }));
        }
        eprintln!();
        output::print(&format!("perplexity {:.4} over {} tokens\n", result.perplexity, result.scored))
    }
}
