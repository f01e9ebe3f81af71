use clap::Args;
use orion::runtime::{ComputePool, EncoderOptions, Precision, SentenceEncoder};
use orion::{Embedder, Error, Result};
use serde_json::json;

use super::model::threads;
use crate::output;
use crate::source::FetchArgs;

#[derive(Debug, Args)]
pub(crate) struct Embed {
    /// A sentence encoder such as all-MiniLM-L6-v2: an id of the registry, a folder, or a URL
    #[arg(long, value_name = "MODEL")]
    model: String,
    #[command(flatten)]
    fetch: FetchArgs,
    /// A text; repeat it to embed several in one batch
    #[arg(long, value_name = "TEXT", required = true)]
    text: Vec<String>,
    /// Compute with 8-bit weights: faster, cosine above 0.998 to the exact embedding
    #[arg(long)]
    int8: bool,
    /// Threads that compute [default: as many as the machine gives this process]
    #[arg(long, short = 't', value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Embed {
    pub(crate) fn run(&self) -> Result<()> {
        let source = self.fetch.open(&self.model)?;
        let precision = if self.int8 { Precision::Int8 } else { Precision::F32 };
        let options =
            EncoderOptions::default().precision(precision).pool(ComputePool::new(threads(self.threads))?);
        let encoder = SentenceEncoder::load(&*source, options)?;
        let texts: Vec<&str> = self.text.iter().map(String::as_str).collect();
        let embeddings = encoder.embed(&texts)?;
        if embeddings.iter().flatten().any(|value| !value.is_finite()) {
            return Err(Error::corrupt("the model computes values that are not finite"));
        }
        if self.json {
            let tokens = texts.iter().map(|text| Ok(encoder.tokenize(text)?.len()));
            let mut report = json!({
                "embeddings": embeddings,
                "dimension": encoder.dimension(),
                "tokens": tokens.collect::<Result<Vec<_>>>()?,
            });
            if let [only] = &embeddings[..] {
                report["embedding"] = json!(only);
            }
            return output::print_json(&report);
        }
        for embedding in embeddings {
            let numbers: Vec<String> = embedding.iter().map(f32::to_string).collect();
            output::print(&format!("{}\n", numbers.join(" ")))?;
        }
        Ok(())
    }
}
