use std::num::NonZero;
use std::path::PathBuf;

use clap::{ArgGroup, Args, ValueEnum};
use orion::pipeline::{ShardFormat, ShardOptions, ShardReport, ShardSize, plan_shards, shard};
use orion::{ModelFormat, Result};
use serde_json::{Value, json};

use super::work::{WorkArgs, fingerprint, parse_size, refuse_same, size};
use crate::output;

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    /// A shard set with a manifest: layers in order of need, a digest for every chunk
    Orion,
    /// safetensors files with an index
    Safetensors,
    /// Split GGUF
    Gguf,
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("cut").required(true).args(["shards", "max_shard_size"])))]
pub(crate) struct Shard {
    /// The model: a GGUF file, a safetensors file or index, or a directory
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// The directory that will hold the shards
    #[arg(value_name = "OUT")]
    output: PathBuf,
    /// Write N shards, as even as whole layers allow
    #[arg(long, value_name = "N")]
    shards: Option<NonZero<usize>>,
    /// Write shards of at most this size, as 150MB
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    max_shard_size: Option<NonZero<u64>>,
    /// What kind of shards
    #[arg(long, value_enum, value_name = "NAME", default_value = "orion")]
    format: Format,
    /// Store matrices in the layout the kernels read, so that nothing is repacked when the model is loaded
    #[arg(long)]
    pack: bool,
    /// Give a split GGUF a first file that holds metadata alone
    #[arg(long)]
    no_tensor_first_split: bool,
    /// Keep what is finished if the work is interrupted, and go on from there the next time
    #[arg(long)]
    resume: bool,
    #[command(flatten)]
    work: WorkArgs,
}

impl Shard {
    pub(crate) fn run(&self) -> Result<()> {
        let source = orion::loader::open(&self.input)?;
        refuse_same(&self.input, &self.output)?;
        let count = self.shards.map(ShardSize::Count);
        let bytes = self.max_shard_size.map(ShardSize::Bytes);
        let cut =
            count.or(bytes).ok_or_else(|| orion::Error::invalid("name --shards or --max-shard-size"))?;
        let mut options = ShardOptions::new(cut);
        options.format = match self.format {
            Format::Orion => ShardFormat::Orion,
            Format::Safetensors => ShardFormat::Safetensors,
            Format::Gguf => ShardFormat::Gguf,
        };
        options.pack = self.pack;
        options.metadata_alone = self.no_tensor_first_split;
        options.overwrite = self.work.force;
        if let Some(threads) = self.work.threads {
            options.threads = threads;
        }
        if source.header().format == ModelFormat::Gguf
            && let Some(stem) = self.input.file_stem().and_then(|stem| stem.to_str())
        {
            options.stem = orion::formats::gguf::SplitName::parse(&format!("{stem}.gguf"))
                .map_or_else(|| stem.to_owned(), |name| name.stem);
        }
        if self.resume {
            options.resume = Some(fingerprint(&self.input)?);
        }
        let reports = if self.work.dry_run {
            plan_shards(&*source, &options)?
        } else {
            options.control = self.work.control()?;
            shard(&*source, &self.output, &options)?
        };
        self.print(&reports)
    }

    fn print(&self, reports: &[ShardReport]) -> Result<()> {
        let total: u64 = reports.iter().map(|report| report.bytes).sum();
        if self.work.json {
            let shards: Vec<Value> = reports
                .iter()
                .map(|report| {
                    json!({
                        "file": report.file,
                        "bytes": report.bytes,
                        "tensors": report.tensors,
                        "layers": report.layers,
                        "sha256": (!report.sha256.is_empty()).then_some(&report.sha256),
                    })
                })
                .collect();
            return output::print_json(&json!({
                "output": self.output,
                "dry_run": self.work.dry_run,
                "packed": self.pack,
                "bytes": total,
                "shards": shards,
            }));
        }
        let mut text = String::new();
        for report in reports {
            let layers =
                report.layers.map_or_else(String::new, |(first, last)| format!("layers {first} to {last}"));
            text += &format!(
                "{}  {:>10}  {:>4} tensors  {layers}\n",
                report.file,
                size(report.bytes),
                report.tensors
            );
        }
        let would = if self.work.dry_run { " would be" } else { "" };
        text += &format!("{} shards{would} in {}, {}\n", reports.len(), self.output.display(), size(total));
        output::print(&text)
    }
}
