use std::num::NonZero;
use std::path::{Path, PathBuf};

use clap::Args;
use orion::pipeline::{ShardOptions, ShardSize, Target, as_gguf, optimize, plan_optimize};
use orion::{Error, Result};
use serde_json::json;

use super::footprint::{Comparison, Footprint};
use super::recipe::{RecipeArgs, report_json, report_text};
use super::registry::enrol_shard_set;
use super::verify::VerifyArgs;
use super::work::{WorkArgs, fingerprint, parse_size, refuse_same};
use crate::output;

#[derive(Debug, Args)]
pub(crate) struct Optimize {
    /// The model: a GGUF file, a safetensors file or index, or a directory
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// The directory that will hold the shard set
    #[arg(value_name = "OUT")]
    output: PathBuf,
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Write N shards
    #[arg(long, value_name = "N", conflicts_with = "max_shard_size")]
    shards: Option<NonZero<usize>>,
    /// Write shards of at most this size
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "64MB")]
    max_shard_size: NonZero<u64>,
    /// Keep what is finished if the work is interrupted, and go on from there the next time
    #[arg(long)]
    resume: bool,
    /// Put the result into this registry, made if it is not there
    #[arg(long, value_name = "FILE", conflicts_with = "dry_run")]
    registry: Option<PathBuf>,
    /// Do not let the models answer to measure memory, load and time to first token
    #[arg(long)]
    no_measure: bool,
    #[command(flatten)]
    verify: VerifyArgs,
    #[command(flatten)]
    work: WorkArgs,
}

impl Optimize {
    pub(crate) fn run(&self) -> Result<()> {
        let source = as_gguf(orion::loader::open(&self.input)?)?;
        refuse_same(&self.input, &self.output)?;
        self.work.refuse_existing(&self.output)?;
        let options = self.recipe.options(&*source, &self.work, Target::PackedBytes)?;
        let cut = self.shards.map_or(ShardSize::Bytes(self.max_shard_size), ShardSize::Count);
        let mut sharding = ShardOptions::new(cut);
        sharding.pack = true;
        sharding.overwrite = self.work.force;
        sharding.threads = options.threads;
        sharding.control = options.control.clone();
        if self.resume {
            sharding.resume = Some(format!("{}\n{:?}", fingerprint(&self.input)?, options.recipe));
        }
        let (report, shards) = if self.work.dry_run {
            plan_optimize(&*source, &options, &sharding)?
        } else {
            optimize(&*source, &self.output, &options, &sharding)?
        };
        drop(source);
        let mut both = Comparison {
            before: Footprint::of_size(disk_bytes(&self.input)?),
            after: Footprint::of_size(shards.iter().map(|shard| shard.bytes).sum()),
        };
        let (mut verdict, mut unmeasured, mut entry) = (None, None, None);
        if !self.work.dry_run {
            verdict = self.verify.compare(&self.input, &self.output)?;
            verdict.iter().for_each(|verdict| both.judged(verdict));
            if !self.no_measure {
                // The set is written and sound; a model that cannot answer here has no figures, and that is said.
                let measured =
                    both.before.measure(&self.input).and_then(|()| both.after.measure(&self.output));
                unmeasured = measured.err().map(|error| error.to_string());
            }
            entry = self.registry.as_ref().map(|file| enrol_shard_set(file, &self.output)).transpose()?;
        }
        if self.work.json {
            let mut value = report_json(&report);
            value["output"] = self.output.display().to_string().into();
            value["dry_run"] = self.work.dry_run.into();
            value["before_bytes"] = both.before.bytes.into();
            value["after_bytes"] = both.after.bytes.into();
            value["smaller_percent"] = both.smaller_percent().into();
            value["summary"] = both.json();
            value["unmeasured"] = unmeasured.into();
            value["shards"] = shards
                .iter()
                .map(|s| json!({ "file": s.file, "bytes": s.bytes, "layers": s.layers }))
                .collect();
            value["registry"] = entry.map(|(value, _)| value).into();
            if let Some(verdict) = &verdict {
                value["verify"] = verdict.json();
            }
            return output::print_json(&value);
        }
        output::print(&report_text(&report, self.work.dry_run))?;
        output::print(&format!(
            "{} shards in {}, {:.1} % smaller\n\n{}",
            shards.len(),
            self.output.display(),
            both.smaller_percent(),
            both.text()
        ))?;
        if let Some(reason) = unmeasured {
            eprintln!("orion: memory and times are not measured: {reason}");
        }
        if let Some((_, line)) = entry {
            output::print(&line)?;
        }
        verdict.map_or(Ok(()), |verdict| output::print(&format!("{verdict}\n")))
    }
}

/// Bytes of a file, or of a directory's weights.
fn disk_bytes(path: &Path) -> Result<u64> {
    let io = |error| Error::io(error, path.display().to_string());
    let metadata = path.metadata().map_err(io)?;
    if !metadata.is_dir() {
        return Ok(metadata.len());
    }
    let mut sum = 0;
    for entry in std::fs::read_dir(path).map_err(io)? {
        let entry = entry.map_err(io)?;
        let name = entry.file_name();
        let weights = [".safetensors", ".gguf"].iter().any(|end| name.to_string_lossy().ends_with(end));
        if weights {
            sum += entry.metadata().map_err(io)?.len();
        }
    }
    Ok(sum)
}
