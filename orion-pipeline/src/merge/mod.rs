//! Merging models, tensor by tensor.

mod arithmetic;
mod combine;
mod config;
mod group;
mod lora;
mod method;
mod plan;
mod setting;
mod sparse;
mod vocabulary;
mod write;

use std::num::NonZero;
use std::path::Path;
use std::sync::Arc;

use orion_core::{Error, Result, TensorType, WeightSource};

use crate::control::Control;
use crate::shard::rows_of;
use arithmetic::Adding;
use combine::Along;
pub use config::MergeConfig;
use group::{Group, Input};
use method::{Method, Sparsify};
use plan::{Models, PlannedTensor, SourceTensor};
use sparse::Thinning;

/// How to merge.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct MergeOptions {
    /// Decides what the random methods do. The same seed gives the same bytes, on any number of threads.
    pub seed: u64,
    /// Threads; the result does not depend on it. Default: as many as the processor runs.
    pub threads: NonZero<usize>,
    /// Bytes of the largest shard of a safetensors output.
    pub max_shard_bytes: NonZero<u64>,
    /// Whether models of different architectures may be merged as long as their tensors fit.
    pub allow_crimes: bool,
    /// Whether what has the output's name may be replaced.
    pub overwrite: bool,
    /// Watches and stops the work.
    pub control: Control,
}

impl Default for MergeOptions {
    fn default() -> Self {
        Self {
            seed: 0,
            threads: std::thread::available_parallelism().unwrap_or(NonZero::<usize>::MIN),
            max_shard_bytes: NonZero::new(5_000_000_000).expect("not zero"),
            allow_crimes: false,
            overwrite: false,
            control: Control::default(),
        }
    }
}

/// What was merged.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct MergeReport {
    /// The method's name.
    pub method: &'static str,
    /// The models, the base model first.
    pub models: Vec<String>,
    /// Tensors of the output.
    pub tensors: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Layers of the output.
    pub layers: u64,
}

/// Opens a model by the name a configuration gives it.
pub type Open<'a> = &'a dyn Fn(&str) -> Result<Arc<dyn WeightSource>>;

/// Merges models as mergekit 0.1.5 does: into a directory with safetensors, configuration and tokenizer, or from GGUF
/// models into one GGUF file. `path` appears only when it is complete.
///
/// Numbers are computed in 32-bit floats and rounded once, to the output's type. Held in memory are one tensor of each
/// model as it is stored, its result and the one before, and small ones that are read ahead.
///
/// # Errors
/// [`InvalidInput`](orion_core::ErrorKind::InvalidInput) with the names that contradict each other if a configuration
/// does not fit its method or its models, a parameter is missing, or weights are NaN or infinite; whatever opening,
/// reading and writing report. Nothing is left at `path` then.
pub fn merge(
    config: &MergeConfig,
    open: Open<'_>,
    path: &Path,
    options: &MergeOptions,
) -> Result<MergeReport> {
    let models = Models::open(config, open, options)?;
    write::write(config, &models, path, options)?;
    Ok(report(config, &models))
}

/// Says what [`merge`] would write.
///
/// # Errors
/// As [`merge`], as far as configuration and headers tell.
pub fn plan_merge(config: &MergeConfig, open: Open<'_>, options: &MergeOptions) -> Result<MergeReport> {
    Ok(report(config, &Models::open(config, open, options)?))
}

fn report(config: &MergeConfig, models: &Models) -> MergeReport {
    MergeReport {
        method: config.method.name(),
        models: models.names.clone(),
        tensors: models.tensors.len(),
        bytes: models.tensors.iter().map(PlannedTensor::bytes).sum(),
        layers: models.layers,
    }
}

/// The inputs of one tensor of the output.
fn read_inputs(models: &Models, tensor: &PlannedTensor) -> Result<Vec<Input>> {
    let read = |source: &SourceTensor| {
        let model = &models.sources[source.model];
        let name = &models.names[source.model];
        Ok(Input {
            model: name.clone(),
            ty: model.header().tensors[source.tensor].ty,
            bytes: rows_of(&**model, source.tensor).map_err(|error| error.about(name.clone()))?,
        })
    };
    tensor.sources.iter().map(read).collect()
}

/// The bytes of one tensor of the output.
fn merge_tensor(
    config: &MergeConfig,
    models: &Models,
    tensor: &PlannedTensor,
    mut inputs: Vec<Input>,
    options: &MergeOptions,
) -> Result<Vec<u8>> {
    let columns = tensor.shape.last().copied().unwrap_or(1) as usize;
    let rows = tensor.shape.iter().rev().skip(1).product::<u64>() as usize;
    let position = |base: usize| tensor.sources.iter().position(|source| source.model == base);
    let base = tensor.base.and_then(position).filter(|_| config.method.contract().uses_base());
    if tensor.is_vocabulary
        && let Some(vocabulary) = &models.vocabulary
    {
        let which: Vec<usize> = tensor.sources.iter().map(|source| source.model).collect();
        let names: Vec<&str> = models.names.iter().map(String::as_str).collect();
        vocabulary.align(&mut inputs, &which, &names, tensor.base.and_then(position), columns)?;
    }
    let group = Group {
        inputs,
        base,
        name: &tensor.name,
        rows,
        columns,
        work: tensor.work,
        out: tensor.out,
        seed: options.seed,
        threads: options.threads,
        control: &options.control,
    };
    let out = run(config, tensor, &group)?;
    tensor.sources.iter().for_each(|source| models.sources[source.model].release(source.tensor));
    Ok(out)
}

/// Looks up the parameters of one tensor.
struct Parameters<'a> {
    config: &'a MergeConfig,
    tensor: &'a PlannedTensor,
}

impl Parameters<'_> {
    fn shared(&self, name: &str, default: Option<f64>) -> Result<f64> {
        let found = self.config.number(name, self.tensor.slice, None, &self.tensor.name, self.tensor.t)?;
        found.or(default).ok_or_else(|| {
            Error::invalid(format!("parameter {name} is missing"))
                .about(format!("method {}", self.config.method.name()))
        })
    }

    fn flag(&self, name: &str, default: bool) -> Result<bool> {
        let found = self.config.flag(name, self.tensor.slice, &self.tensor.name, self.tensor.t)?;
        Ok(found.unwrap_or(default))
    }

    /// One number per input `of`.
    fn each(&self, group: &Group<'_>, of: &[usize], name: &str, default: Option<f64>) -> Result<Vec<f64>> {
        let find = |&input: &usize| {
            let (model, tensor) = (&group.inputs[input].model, &self.tensor.sources[input].name);
            let found = self.config.number(name, self.tensor.slice, Some(model), tensor, self.tensor.t)?;
            found.or(default).ok_or_else(|| {
                Error::invalid(format!("parameter {name} is missing"))
                    .about(tensor.clone())
                    .about(model.clone())
            })
        };
        of.iter().map(find).collect()
    }
}

fn run(config: &MergeConfig, tensor: &PlannedTensor, group: &Group<'_>) -> Result<Vec<u8>> {
    let parameters = Parameters { config, tensor };
    let all: Vec<usize> = (0..group.inputs.len()).collect();
    let others: Vec<usize> = group.others().collect();
    let base_and_other = || match (group.base, &others[..]) {
        (Some(base), &[other]) => Ok((base, other)),
        _ => Err(Error::invalid("needs a base and one other model")),
    };
    if let Some((how, consensus)) = config.method.arithmetic() {
        return group.add_deltas(&adding(&parameters, group, &others, how, consensus)?);
    }
    match config.method {
        Method::Linear => {
            let weights = parameters.each(group, &all, "weight", None)?;
            let normalize = parameters.flag("normalize", true)?;
            if normalize && weights.iter().map(|&weight| weight as f32).sum::<f32>() == 0.0 {
                return Err(Error::invalid("the weights sum to zero and are to be normalised"));
            }
            group.linear(&weights, normalize)
        }
        Method::Slerp => {
            let t = parameters.shared("t", None)?;
            let (base, _) = base_and_other()?;
            group.combine(false, Along::Whole, |products| Ok(combine::slerp(products, base, t)))
        }
        Method::NuSlerp => {
            let weights = parameters.each(group, &others, "weight", None)?;
            let total: f64 = weights.iter().sum();
            let t = if total.abs() < 1e-6 { 0.5 } else { weights[1] / total };
            let flat = parameters.flag("nuslerp_flatten", true)?;
            let row_wise = parameters.flag("nuslerp_row_wise", false)?;
            let along = match (flat || tensor.shape.len() < 2, row_wise) {
                (true, _) => Along::Whole,
                (false, false) => Along::Rows,
                (false, true) => Along::Columns,
            };
            group.combine(true, along, |products| Ok(combine::nuslerp(products, t)))
        }
        Method::MultiSlerp => {
            if let [only] = others[..] {
                return group.write(|piece, scratch| group.read(only, piece, &mut scratch.y));
            }
            let mut weights = parameters.each(group, &others, "weight", None)?;
            let eps = parameters.shared("eps", Some(1e-8))?;
            if parameters.flag("normalize_weights", true)? {
                let sum: f64 = weights.iter().sum();
                if sum == 0.0 {
                    return Err(Error::invalid("the weights sum to zero and are to be normalised"));
                }
                weights.iter_mut().for_each(|weight| *weight /= sum);
            }
            group.combine(true, Along::Whole, |products| combine::multislerp(products, &weights, eps))
        }
        Method::Karcher => {
            if all.len() == 1 {
                return group.scaled(None);
            }
            let most = parameters.shared("max_iter", Some(10.0))?.max(0.0) as usize;
            let tol = parameters.shared("tol", Some(1e-5))?;
            group.combine(false, Along::Whole, |products| Ok(combine::karcher(products, most, tol)))
        }
        Method::ModelStock => {
            let along = if parameters.flag("filter_wise", false)? { Along::Rows } else { Along::Whole };
            group.combine(true, along, |products| Ok(combine::model_stock(products)))
        }
        Method::Sce => group.sce(parameters.shared("select_topk", Some(1.0))?),
        Method::NearSwap => {
            let (base, other) = base_and_other()?;
            group.nearswap(base, other, parameters.shared("t", None)?)
        }
        Method::ArceeFusion => {
            let (base, other) = base_and_other()?;
            group.arcee_fusion(base, other)
        }
        Method::Passthrough => {
            let name = "scale";
            let (model, input) = (&group.inputs[0].model, &tensor.sources[0].name);
            group.scaled(config.number(name, tensor.slice, Some(model), input, tensor.t)?)
        }
        Method::Ram => group.ram(parameters.shared("epsilon", Some(1e-5))?, None),
        Method::RamPlus => {
            let plus = (parameters.shared("r", Some(0.1))?, parameters.shared("alpha", Some(0.2))?);
            group.ram(parameters.shared("epsilon", Some(1e-5))?, Some(plus))
        }
        arithmetic => Err(Error::invalid(format!("{} is not run alone", arithmetic.name()))),
    }
}

fn adding(
    parameters: &Parameters<'_>,
    group: &Group<'_>,
    others: &[usize],
    how: Sparsify,
    consensus: bool,
) -> Result<Adding> {
    let rescale = parameters.flag("rescale", matches!(how, Sparsify::Random | Sparsify::Ranked))?;
    let normalize = matches!((how, consensus), (Sparsify::Magnitude | Sparsify::Ranked, true));
    let densities = parameters.each(group, others, "density", Some(1.0))?;
    let gammas = parameters.each(group, others, "gamma", Some(0.01))?;
    let epsilons = parameters.each(group, others, "epsilon", Some(0.15))?;
    let thinning = densities.into_iter().zip(gammas).zip(epsilons);
    Ok(Adding {
        weights: parameters.each(group, others, "weight", None)?,
        thinning: thinning
            .map(|((density, gamma), epsilon)| Thinning { how, density, gamma, epsilon, rescale })
            .collect(),
        consensus,
        normalize: parameters.flag("normalize", normalize)?,
        lambda: parameters.shared("lambda", Some(1.0))?,
    })
}

/// The type both can be turned into without loss.
fn promoted(a: TensorType, b: TensorType) -> TensorType {
    if a == b { a } else { TensorType::F32 }
}
