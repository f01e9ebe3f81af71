use std::num::NonZero;
use std::path::PathBuf;

use clap::Args;
use orion::pipeline::{MergeConfig, MergeOptions, merge, plan_merge};
use orion::{Error, Result};
use serde_json::{Value, json};

use super::work::{WorkArgs, parse_size, refuse_same, size};
use crate::output;

#[derive(Debug, Args)]
pub(crate) struct Merge {
    /// A merge configuration in mergekit's YAML, then OUT; with --models, OUT alone
    #[arg(value_names = ["CONFIG", "OUT"], num_args = 1..=2, required = true)]
    paths: Vec<PathBuf>,
    /// The models, instead of a configuration
    #[arg(long, value_name = "MODEL", num_args = 1.., value_terminator = "--")]
    models: Vec<String>,
    /// Their shares
    #[arg(long, value_name = "X", num_args = 1.., requires = "models", allow_negative_numbers = true)]
    ratios: Vec<f64>,
    /// The method, by mergekit's names
    #[arg(long, value_name = "NAME", default_value = "linear", requires = "models")]
    method: String,
    /// The base model [default: the first, where the method needs one]
    #[arg(long, value_name = "MODEL", requires = "models")]
    base: Option<String>,
    /// A parameter of the method, as density=0.5; may be given several times
    #[arg(long = "param", value_name = "NAME=VALUE", requires = "models")]
    parameters: Vec<String>,
    /// Decides what the random methods do
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Size of the largest shard of a safetensors output
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "5GB")]
    max_shard_size: NonZero<u64>,
    /// Merge models of different architectures whose tensors fit
    #[arg(long)]
    allow_crimes: bool,
    #[command(flatten)]
    work: WorkArgs,
}

impl Merge {
    pub(crate) fn run(&self) -> Result<()> {
        let (config, output) = self.config()?;
        let mut warnings = Vec::new();
        let sum: f64 = self.ratios.iter().sum();
        if !self.ratios.is_empty() && (sum - 1.0).abs() > 1e-6 {
            warnings.push(format!("the ratios sum to {sum}; methods that normalise use their shares of it"));
        }
        for model in config.models() {
            refuse_same(model.as_ref(), output)?;
        }
        let mut options = MergeOptions::default();
        options.seed = self.seed;
        options.max_shard_bytes = self.max_shard_size;
        options.allow_crimes = self.allow_crimes;
        options.overwrite = self.work.force;
        if let Some(threads) = self.work.threads {
            options.threads = threads;
        }
        let open = |name: &str| orion::loader::open(name);
        let report = if self.work.dry_run {
            plan_merge(&config, &open, &options)?
        } else {
            options.control = self.work.control()?;
            merge(&config, &open, output, &options)?
        };
        if self.work.json {
            return output::print_json(&json!({
                "output": output,
                "dry_run": self.work.dry_run,
                "method": report.method,
                "models": report.models,
                "tensors": report.tensors,
                "tensor_bytes": report.bytes,
                "layers": report.layers,
                "warnings": warnings,
            }));
        }
        for warning in &warnings {
            eprintln!("orion: {warning}");
        }
        output::print(&format!(
            "{}: {} of {}, {} layers, {} tensors, {}\n",
            output.display(),
            report.method,
            report.models.join(", "),
            report.layers,
            report.tensors,
            size(report.bytes)
        ))
    }

    fn config(&self) -> Result<(MergeConfig, &PathBuf)> {
        match (&self.paths[..], self.models.is_empty()) {
            ([config, output], true) => {
                let text = std::fs::read_to_string(config)
                    .map_err(|error| Error::io(error, config.display().to_string()))?;
                let config =
                    MergeConfig::parse(&text).map_err(|error| error.about(config.display().to_string()))?;
                Ok((config, output))
            }
            ([output], false) => {
                let parameters =
                    self.parameters.iter().map(|text| parameter(text)).collect::<Result<Vec<_>>>()?;
                let base = self.base.as_deref();
                Ok((
                    MergeConfig::simple(&self.method, &self.models, &self.ratios, base, &parameters)?,
                    output,
                ))
            }
            (_, true) => Err(Error::invalid("give CONFIG and OUT, or --models and OUT")),
            (_, false) => Err(Error::invalid("with --models give OUT alone")),
        }
    }
}

fn parameter(text: &str) -> Result<(String, Value)> {
    let (name, value) =
        text.split_once('=').ok_or_else(|| Error::invalid(format!("{text:?} is not NAME=VALUE")))?;
    let value = serde_json::from_str(value).unwrap_or_else(|_| Value::from(value));
    Ok((name.to_owned(), value))
}
