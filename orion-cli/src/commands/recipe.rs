//! Arguments that say how a model is quantised.

use std::num::NonZero;
use std::path::PathBuf;

use clap::{ArgGroup, Args};
use orion::pipeline::{FileType, Imatrix, Level, QuantizeOptions, Recipe, Report, Target, types_for};
use orion::{Error, Result, TensorType, WeightSource};
use regex::Regex;
use serde_json::{Value, json};

use super::work::{WorkArgs, parse_size, size};

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("recipe").required(true).args(["type", "level", "target_size", "target_bpw"])))]
pub(crate) struct RecipeArgs {
    /// The type or mix, by llama.cpp's names: Q4_K_M, Q8_0, …
    #[arg(long, value_name = "TYPE")]
    r#type: Option<String>,
    /// A good choice for this model: q4, q3 or q2
    #[arg(long, value_name = "LEVEL")]
    level: Option<String>,
    /// The types with the least error that make an output of this size, as 512MB
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    target_size: Option<NonZero<u64>>,
    /// The same for so many bits per weight
    #[arg(long, value_name = "BITS")]
    target_bpw: Option<f64>,
    /// A type for tensors whose names match; may be given several times, the first match counts
    #[arg(long, value_name = "REGEX=TYPE")]
    tensor_type: Vec<String>,
    /// Importances of columns, in llama.cpp's GGUF form
    #[arg(long, value_name = "FILE")]
    imatrix: Option<PathBuf>,
    /// Quantise again what is quantised already
    #[arg(long)]
    allow_requantize: bool,
}

impl RecipeArgs {
    /// `of_size` says what a size is the size of.
    pub(crate) fn options(
        &self,
        source: &dyn WeightSource,
        work: &WorkArgs,
        of_size: fn(u64) -> Target,
    ) -> Result<QuantizeOptions> {
        let tensors = &source.header().tensors;
        let file_type = match (&self.r#type, &self.level) {
            (Some(name), _) => FileType::from_name(name)?,
            (None, Some(level)) => Level::from_name(level)?.file_type(tensors),
            (None, None) => FileType::Q8_0,
        };
        let mut options = QuantizeOptions::new(file_type);
        for text in &self.tensor_type {
            options.overrides.push(tensor_type(text)?);
        }
        if let Some(path) = &self.imatrix {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let matrix = orion::loader::open(path)?;
            options.imatrix =
                Imatrix::read(&*matrix, &name).map_err(|error| error.about(path.display().to_string()))?;
        }
        options.allow_requantize = self.allow_requantize;
        options.overwrite = work.force;
        if let Some(threads) = work.threads {
            options.threads = threads;
        }
        options.control = work.control()?;
        let target = self.target_size.map(|bytes| of_size(bytes.get()));
        if let Some(target) = target.or(self.target_bpw.map(Target::BitsPerWeight)) {
            options.recipe = Recipe::Types(types_for(source, target, &options)?);
        }
        Ok(options)
    }
}

fn tensor_type(text: &str) -> Result<(Regex, TensorType)> {
    let (pattern, name) =
        text.rsplit_once('=').ok_or_else(|| Error::invalid(format!("{text:?} is not REGEX=TYPE")))?;
    let ty = TensorType::from_name(name)
        .ok_or_else(|| Error::invalid(format!("no tensor type {name:?}; known: {}", known())))?;
    let pattern =
        Regex::new(pattern).map_err(|error| Error::invalid(error.to_string()).about(pattern.to_owned()))?;
    Ok((pattern, ty))
}

fn known() -> String {
    TensorType::ALL.iter().map(|ty| ty.name()).collect::<Vec<_>>().join(", ")
}

/// What was done, for programs.
pub(crate) fn report_json(report: &Report) -> Value {
    let tensors: Vec<Value> = report
        .tensors
        .iter()
        .map(|tensor| {
            json!({
                "name": tensor.name,
                "from": tensor.from.name(),
                "to": tensor.to.name(),
                "instead_of": tensor.instead_of.map(|ty| ty.name()),
                "bytes": tensor.bytes,
                "relative_error": tensor.relative_error,
            })
        })
        .collect();
    json!({
        "tensor_bytes": bytes(report),
        "bits_per_weight": report.bits_per_weight(),
        "substituted": report.substituted().count(),
        "hint": hint(report),
        "tensors": tensors,
    })
}

/// The same for people.
pub(crate) fn report_text(report: &Report, planned: bool) -> String {
    let mut text = String::new();
    for tensor in report.tensors.iter().filter(|tensor| tensor.from != tensor.to) {
        let instead = tensor.instead_of.map_or_else(String::new, |ty| format!("  instead of {ty}"));
        let error = if planned { String::new() } else { format!("  error {:.2e}", tensor.relative_error) };
        text += &format!("{:<40} {:>5} -> {:<6}{error}{instead}\n", tensor.name, tensor.from, tensor.to);
    }
    text += &format!("{}, {:.2} bits per weight\n", size(bytes(report)), report.bits_per_weight());
    if let Some(hint) = hint(report) {
        text += &format!("{hint}\n");
    }
    text
}

pub(crate) fn bytes(report: &Report) -> u64 {
    report.tensors.iter().map(|tensor| tensor.bytes).sum()
}

/// A better choice where most of what was asked for does not fit the model.
fn hint(report: &Report) -> Option<String> {
    let elements = |all: bool| -> u64 {
        let tensors = report.tensors.iter().filter(|tensor| all || tensor.instead_of.is_some());
        tensors.map(|tensor| tensor.elements).sum()
    };
    let share = 100 * elements(false) / elements(true).max(1);
    (share >= 25).then(|| {
        format!(
            "{share} % of the weights stand in rows that do not divide into the blocks asked for and got larger types; \
             --type Q4_1 or Q4_0 fits them all"
        )
    })
}
