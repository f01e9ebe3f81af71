use std::io::Write;
use std::num::NonZero;
use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use orion::pipeline::ImatrixOrigin;
use orion::{CancelToken, Error, ErrorKind, ImatrixOptions, Result, measure_imatrix};
use serde_json::json;

use super::work::{refuse_existing, stops_on_ctrl_c};
use crate::output;
use crate::source::FetchArgs;

#[derive(Debug, Args)]
pub(crate) struct Imatrix {
    /// The model, best one that is not quantised: an id or alias of the registry, a file, a folder, a URL
    #[arg(long, value_name = "MODEL")]
    model: String,
    #[command(flatten)]
    fetch: FetchArgs,
    /// A text like those the model will read, UTF-8
    #[arg(long, value_name = "TEXT-FILE")]
    file: PathBuf,
    /// The GGUF file to write
    #[arg(long, value_name = "OUT")]
    out: PathBuf,
    /// Tokens per chunk
    #[arg(long, value_name = "N", default_value_t = 512)]
    ctx: usize,
    /// Chunks that are run [default: all]
    #[arg(long, value_name = "N")]
    chunks: Option<NonZero<usize>>,
    /// Measure the matrix that makes logits too
    #[arg(long)]
    process_output: bool,
    /// Replace OUT if it exists
    #[arg(long)]
    force: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Imatrix {
    pub(crate) fn run(&self) -> Result<()> {
        if !self.force {
            refuse_existing(&self.out)?;
        }
        let about = |error: Error| error.about(self.file.display().to_string());
        let text =
            std::fs::read(&self.file).map_err(|error| Error::io(error, self.file.display().to_string()))?;
        let text = String::from_utf8(text)
            .map_err(|error| about(Error::invalid("is not UTF-8 text").with_source(error)))?;
        let source = self.fetch.open(&self.model)?;
        let mut options = ImatrixOptions::default();
        (options.context, options.chunks) = (self.ctx, self.chunks);
        options.process_output = self.process_output;
        let (cancel, began) = (CancelToken::new(), Instant::now());
        stops_on_ctrl_c(&cancel)?;
        let (activations, chunks) = measure_imatrix(source, &text, &options, |done, all| {
            if cancel.is_cancelled() {
                return Err(Error::new(ErrorKind::Cancelled, "cancelled; nothing was written"));
            }
            if !self.json {
                let left = began.elapsed().as_secs_f64() / done.max(1) as f64 * (all - done) as f64;
                let left = if done > 0 { format!(", {left:.0} s left  ") } else { String::new() };
                eprint!("\rchunk {done} of {all}{left}");
                // A terminal that is gone needs no progress.
                std::io::stderr().flush().ok();
            }
            Ok(())
        })?;
        let seconds = began.elapsed().as_secs_f64();
        let dataset = self.file.file_name().unwrap_or_default().to_string_lossy();
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let origin = ImatrixOrigin::new(dataset, count(chunks), count(self.ctx));
        activations.write(&self.out, self.force, &origin)?;
        if self.json {
            return output::print_json(&json!({
                "output": self.out,
                "matrices": activations.len(),
                "chunks": chunks,
                "ctx": self.ctx,
                "seconds": seconds,
            }));
        }
        eprintln!();
        let tokens = chunks * self.ctx;
        output::print(&format!(
            "importances of {} matrices over {tokens} tokens in {}\n",
            activations.len(),
            self.out.display()
        ))
    }
}
