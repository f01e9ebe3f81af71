use std::path::PathBuf;

use clap::Args;
use orion::Result;
use orion::pipeline::{UnshardOptions, unshard};
use serde_json::json;

use super::work::{WorkArgs, refuse_same, size};
use crate::output;

#[derive(Debug, Args)]
pub(crate) struct Unshard {
    /// The sharded model: a directory, a manifest, an index, or any part of a split GGUF
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// The GGUF file, or the directory for one safetensors file and what stands beside it
    #[arg(value_name = "OUT")]
    output: PathBuf,
    #[command(flatten)]
    work: WorkArgs,
}

impl Unshard {
    pub(crate) fn run(&self) -> Result<()> {
        let source = orion::loader::open(&self.input)?;
        refuse_same(&self.input, &self.output)?;
        if !self.work.dry_run {
            let mut options = UnshardOptions::default();
            options.overwrite = self.work.force;
            options.control = self.work.control()?;
            unshard(&*source, &self.output, &options)?;
        }
        let tensors = &source.header().tensors;
        let bytes: u64 = tensors.iter().map(|tensor| tensor.bytes).sum();
        if self.work.json {
            return output::print_json(&json!({
                "output": self.output,
                "dry_run": self.work.dry_run,
                "tensors": tensors.len(),
                "tensor_bytes": bytes,
            }));
        }
        output::print(&format!("{}: {} tensors, {}\n", self.output.display(), tensors.len(), size(bytes)))
    }
}
