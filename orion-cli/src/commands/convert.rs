use std::path::PathBuf;

use clap::Args;
use orion::Result;
use orion::pipeline::{ConvertOptions, as_gguf, as_hugging_face, convert};
use orion::{ModelFormat, WeightSource};
use serde_json::json;

use super::work::{WorkArgs, refuse_same, size};
use crate::output;

#[derive(Debug, Args)]
pub(crate) struct Convert {
    /// The model: a GGUF file becomes a directory with safetensors, safetensors become a GGUF file
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// The GGUF file or the directory to write
    #[arg(value_name = "OUT")]
    output: PathBuf,
    #[command(flatten)]
    work: WorkArgs,
}

impl Convert {
    pub(crate) fn run(&self) -> Result<()> {
        let source = orion::loader::open(&self.input)?;
        refuse_same(&self.input, &self.output)?;
        let (from, to) = match source.header().format {
            ModelFormat::Gguf => ("gguf", "safetensors"),
            _ => ("safetensors", "gguf"),
        };
        let shown = match source.header().format {
            ModelFormat::Gguf => as_hugging_face(source.clone())?,
            _ => as_gguf(source.clone())?,
        };
        let (tensors, bytes) = count(&*shown);
        if !self.work.dry_run {
            let mut options = ConvertOptions::default();
            options.overwrite = self.work.force;
            options.control = self.work.control()?;
            convert(&source, &self.output, &options)?;
        }
        if self.work.json {
            return output::print_json(&json!({
                "output": self.output,
                "dry_run": self.work.dry_run,
                "from": from,
                "to": to,
                "tensors": tensors,
                "tensor_bytes": bytes,
            }));
        }
        output::print(&format!(
            "{}: {from} -> {to}, {tensors} tensors, {}\n",
            self.output.display(),
            size(bytes)
        ))
    }
}

fn count(source: &dyn WeightSource) -> (usize, u64) {
    let tensors = &source.header().tensors;
    (tensors.len(), tensors.iter().map(|tensor| tensor.bytes).sum())
}
