//! Which tensors of which models go into which tensor of the output.

use std::collections::HashMap;
use std::sync::Arc;

use orion_core::{Error, MetaValue, ModelFormat, ModelHeader, Result, TensorType, WeightSource};
use serde_json::Value;

use super::config::{MergeConfig, Slice};
use super::vocabulary::Vocabulary;
use super::{MergeOptions, Open, lora, promoted};
use crate::shard::Stage;

/// The models of a merge, opened and checked against each other.
pub(super) struct Models {
    /// As the configuration names them, the base model first.
    pub(super) names: Vec<String>,
    pub(super) sources: Vec<Arc<dyn WeightSource>>,
    pub(super) tensors: Vec<PlannedTensor>,
    pub(super) layers: u64,
    /// For each layer of the output, the layer of the first model it comes from.
    pub(super) layer_map: Vec<u64>,
    pub(super) vocabulary: Option<Vocabulary>,
}

/// One tensor of the output.
#[derive(Debug, Clone)]
pub(super) struct PlannedTensor {
    pub(super) name: String,
    pub(super) shape: Vec<u64>,
    pub(super) work: TensorType,
    pub(super) out: TensorType,
    pub(super) sources: Vec<SourceTensor>,
    /// The base model, among all models.
    pub(super) base: Option<usize>,
    pub(super) slice: usize,
    /// Where in its slice: 0 at the bottom, 1 at the top.
    pub(super) t: f64,
    pub(super) is_vocabulary: bool,
}

#[derive(Debug, Clone)]
pub(super) struct SourceTensor {
    pub(super) model: usize,
    pub(super) tensor: usize,
    /// Its name in that model.
    pub(super) name: String,
}

impl PlannedTensor {
    pub(super) fn bytes(&self) -> u64 {
        self.shape.iter().product::<u64>() * self.out.block_bytes() as u64
    }
}

/// Names that differ between formats.
struct Names {
    embedding: &'static str,
    head: &'static str,
}

fn names(format: ModelFormat) -> Names {
    match format {
        ModelFormat::Gguf => Names { embedding: "token_embd.weight", head: "output.weight" },
        _ => Names { embedding: "model.embed_tokens.weight", head: "lm_head.weight" },
    }
}

/// The name with its layer replaced.
fn with_layer(name: &str, layer: &str) -> String {
    let mut replaced = false;
    let parts = name.split('.').map(|part| {
        if !replaced && part.parse::<u64>().is_ok() {
            replaced = true;
            layer
        } else {
            part
        }
    });
    parts.collect::<Vec<_>>().join(".")
}

fn open_one(name: &str, open: Open<'_>) -> Result<Arc<dyn WeightSource>> {
    let about = |error: Error| error.about(name.to_owned());
    // A path may hold a plus sign; an adapter is meant only where the whole is no model.
    match (open(name), name.rsplit_once('+')) {
        (Ok(source), _) => Ok(source),
        (Err(_), Some((model, adapter))) => lora::adapted(open(model)?, open(adapter)?).map_err(about),
        (Err(error), None) => Err(error),
    }
}

fn architecture(header: &ModelHeader) -> Result<String> {
    Ok(match header.format {
        ModelFormat::Gguf => header
            .metadata
            .get("general.architecture")
            .and_then(MetaValue::as_str)
            .unwrap_or("unknown")
            .to_owned(),
        _ => {
            let config = header.side_text("config.json")?;
            let config: Value = config.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
            config["model_type"].as_str().unwrap_or("unknown").to_owned()
        }
    })
}

impl Models {
    pub(super) fn open(config: &MergeConfig, open: Open<'_>, options: &MergeOptions) -> Result<Self> {
        let names: Vec<String> = config.models().into_iter().map(str::to_owned).collect();
        let sources = names.iter().map(|name| open_one(name, open)).collect::<Result<Vec<_>>>()?;
        let first = sources[0].header();
        for (name, source) in names.iter().zip(&sources) {
            let header = source.header();
            if header.format != first.format {
                return Err(Error::invalid(format!(
                    "{} is {:?} and {name} is {:?}; convert one of them",
                    names[0], first.format, header.format
                )));
            }
            let (a, b) = (architecture(first)?, architecture(header)?);
            if a != b && !options.allow_crimes {
                return Err(Error::invalid(format!(
                    "architectures differ: {} is {a}, {name} is {b}",
                    names[0]
                )));
            }
        }
        let vocabulary = match &config.tokenizer {
            None => None,
            Some(_) if first.format == ModelFormat::Gguf => {
                return Err(Error::unsupported(
                    "vocabularies are merged from tokenizer.json; convert the GGUF models first",
                ));
            }
            Some(tokenizer) => {
                let headers: Vec<_> =
                    names.iter().map(String::as_str).zip(sources.iter().map(|s| s.header())).collect();
                Some(Vocabulary::build(tokenizer, &headers)?)
            }
        };
        let mut models =
            Self { names, sources, tensors: Vec::new(), layers: 0, layer_map: Vec::new(), vocabulary };
        let planner = Planner::new(config, &models)?;
        let (tensors, layer_map) = planner.plan()?;
        models.tensors = tensors;
        models.layers = layer_map.len() as u64;
        models.layer_map = layer_map;
        Ok(models)
    }

    /// What the output's configuration and tokenizer come from.
    pub(super) fn donor(&self) -> &ModelHeader {
        self.sources[0].header()
    }
}

/// Tensors of one model by their place: layer, if they belong to one, and name with the layer taken out.
type Places = HashMap<(Option<u64>, String), usize>;

struct Planner<'a> {
    config: &'a MergeConfig,
    models: &'a Models,
    places: Vec<Places>,
    layers: Vec<u64>,
}

impl<'a> Planner<'a> {
    fn new(config: &'a MergeConfig, models: &'a Models) -> Result<Self> {
        let mut places = Vec::new();
        let mut layers = Vec::new();
        for source in &models.sources {
            let mut of_model = Places::new();
            let mut count = 0;
            for (index, tensor) in source.header().tensors.iter().enumerate() {
                if tensor.name.ends_with("rotary_emb.inv_freq") {
                    continue;
                }
                let key = match Stage::of(&tensor.name) {
                    Stage::Layer(layer) => {
                        count = count.max(layer.saturating_add(1));
                        (Some(layer), with_layer(&tensor.name, "*"))
                    }
                    _ => (None, tensor.name.clone()),
                };
                of_model.insert(key, index);
            }
            places.push(of_model);
            layers.push(count);
        }
        Ok(Self { config, models, places, layers })
    }

    fn plan(&self) -> Result<(Vec<PlannedTensor>, Vec<u64>)> {
        let slices = &self.config.slices;
        let (mut tensors, mut layer_map) = (Vec::new(), Vec::new());
        let names = names(self.models.donor().format);
        let last = slices.len() - 1;
        self.outside(&mut tensors, 0, |name| matches!(Stage::of(name), Stage::Before(_)), &names)?;
        for (number, slice) in slices.iter().enumerate() {
            let ranges = self.ranges(slice)?;
            let (first, end) = ranges[0].1;
            let length = end - first;
            for offset in 0..length {
                let t = if length > 1 { offset as f64 / (length - 1) as f64 } else { 1.0 };
                let out_layer = layer_map.len() as u64;
                self.layer(&mut tensors, number, &ranges, offset, t, out_layer)?;
                layer_map.push(first + offset);
            }
        }
        self.outside(&mut tensors, last, |name| matches!(Stage::of(name), Stage::After(_)), &names)?;
        Ok((tensors, layer_map))
    }

    fn model(&self, name: &str) -> usize {
        self.models.names.iter().position(|other| other == name).expect("every model named was opened")
    }

    /// Models of a slice and their layers.
    fn ranges(&self, slice: &Slice) -> Result<Vec<(usize, (u64, u64))>> {
        let mut ranges: Vec<(usize, (u64, u64))> = Vec::new();
        for source in &slice.sources {
            let model = self.model(&source.model);
            let has = self.layers[model];
            let range = source.layers.unwrap_or((0, has));
            if range.1 > has {
                return Err(Error::invalid(format!("layers {} to {} of a model of {has}", range.0, range.1))
                    .about(source.model.clone()));
            }
            if let Some((other, first)) = ranges.first()
                && first.1 - first.0 != range.1 - range.0
            {
                return Err(Error::invalid(format!(
                    "models differ in depth: {} has {} layers, {} has {}",
                    self.models.names[*other],
                    first.1 - first.0,
                    source.model,
                    range.1 - range.0
                )));
            }
            ranges.push((model, range));
        }
        Ok(ranges)
    }

    fn base(&self, slice: usize) -> Option<usize> {
        let base = self.config.slices[slice].base_model.as_ref().or(self.config.base_model.as_ref());
        base.map(|name| self.model(name))
    }

    /// Tensors of no layer.
    fn outside(
        &self,
        out: &mut Vec<PlannedTensor>,
        slice: usize,
        wanted: impl Fn(&str) -> bool,
        names: &Names,
    ) -> Result<()> {
        let models: Vec<usize> =
            self.config.slices[slice].sources.iter().map(|s| self.model(&s.model)).collect();
        let mut order: Vec<String> = Vec::new();
        for &model in &models {
            for tensor in &self.models.sources[model].header().tensors {
                let known = self.places[model].contains_key(&(None, tensor.name.clone()));
                if known && wanted(&tensor.name) && !order.contains(&tensor.name) {
                    order.push(tensor.name.clone());
                }
            }
        }
        for name in order {
            let sources = models
                .iter()
                .map(|&model| {
                    let find = |name: &str| self.places[model].get(&(None, name.to_owned())).copied();
                    // A model whose head is its embedding.
                    let index =
                        find(&name).or_else(|| if name == names.head { find(names.embedding) } else { None });
                    self.source(model, index, &name, &models)
                })
                .collect::<Result<Vec<_>>>()?;
            let is_vocabulary = name == names.head || name == names.embedding;
            out.push(self.tensor(name, sources, slice, 0.0, is_vocabulary)?);
        }
        Ok(())
    }

    fn source(
        &self,
        model: usize,
        index: Option<usize>,
        name: &str,
        models: &[usize],
    ) -> Result<SourceTensor> {
        let tensor = index.ok_or_else(|| {
            let has = models
                .iter()
                .find(|&&other| other != model)
                .map_or("another", |&other| &self.models.names[other]);
            Error::invalid(format!("{} has no tensor {name}, {has} has", self.models.names[model]))
        })?;
        let name = self.models.sources[model].header().tensors[tensor].name.clone();
        Ok(SourceTensor { model, tensor, name })
    }

    fn layer(
        &self,
        out: &mut Vec<PlannedTensor>,
        slice: usize,
        ranges: &[(usize, (u64, u64))],
        offset: u64,
        t: f64,
        out_layer: u64,
    ) -> Result<()> {
        let models: Vec<usize> = ranges.iter().map(|(model, _)| *model).collect();
        let mut order: Vec<(usize, String)> = Vec::new();
        for &(model, (first, _)) in ranges {
            let mut of_layer: Vec<_> = self.places[model]
                .iter()
                .filter(|((layer, name), _)| {
                    *layer == Some(first + offset) && !order.iter().any(|(_, n)| n == name)
                })
                .map(|((_, name), index)| (*index, name.clone()))
                .collect();
            of_layer.sort_unstable();
            order.extend(of_layer);
        }
        for (_, name) in order {
            let sources = ranges
                .iter()
                .map(|&(model, (first, _))| {
                    let layer = first + offset;
                    let index = self.places[model].get(&(Some(layer), name.clone())).copied();
                    self.source(model, index, &name.replace('*', &layer.to_string()), &models)
                })
                .collect::<Result<Vec<_>>>()?;
            let name = with_layer(&sources[0].name, &out_layer.to_string());
            out.push(self.tensor(name, sources, slice, t, false)?);
        }
        Ok(())
    }

    fn tensor(
        &self,
        name: String,
        sources: Vec<SourceTensor>,
        slice: usize,
        t: f64,
        is_vocabulary: bool,
    ) -> Result<PlannedTensor> {
        let info = |source: &SourceTensor| &self.models.sources[source.model].header().tensors[source.tensor];
        let mut shape = info(&sources[0]).shape.clone();
        let vocabulary = self.models.vocabulary.as_ref().filter(|_| is_vocabulary);
        for source in &sources[1..] {
            let other = &info(source).shape;
            let same = match vocabulary {
                Some(_) => shape.get(1..) == other.get(1..),
                None => shape == *other,
            };
            if !same {
                let hint = if is_vocabulary { "; a tokenizer_source aligns vocabularies" } else { "" };
                return Err(Error::invalid(format!(
                    "shapes differ: {} has {shape:?}, {} has {other:?}{hint}",
                    self.models.names[sources[0].model], self.models.names[source.model]
                ))
                .about(format!("tensor {name}")));
            }
        }
        if let Some(vocabulary) = vocabulary {
            shape[0] = vocabulary.rows;
        }
        let float = |source: &SourceTensor| {
            if info(source).ty.is_quantised() { TensorType::F32 } else { info(source).ty }
        };
        let quantised = sources.iter().any(|source| info(source).ty.is_quantised());
        let widest = sources[1..].iter().fold(float(&sources[0]), |ty, source| promoted(ty, float(source)));
        let mut work = self.config.dtype.unwrap_or(widest);
        let mut out = self.config.out_dtype.unwrap_or(if quantised {
            self.config.dtype.unwrap_or(TensorType::F16)
        } else {
            work
        });
        // GGUF keeps vectors in full.
        if self.models.donor().format == ModelFormat::Gguf && shape.len() < 2 {
            (work, out) = (TensorType::F32, TensorType::F32);
        }
        Ok(PlannedTensor { name, shape, work, out, sources, base: self.base(slice), slice, t, is_vocabulary })
    }
}

impl MergeConfig {
    /// A parameter for a tensor: of a model in its slice, of the slice, of the module, of the whole.
    pub(super) fn number(
        &self,
        parameter: &str,
        slice: usize,
        model: Option<&str>,
        tensor: &str,
        t: f64,
    ) -> Result<Option<f64>> {
        for settings in self.scopes(slice, model) {
            if let Some(setting) = settings.get(parameter) {
                let found = setting.number(tensor, t).map_err(|error| error.about(parameter.to_owned()))?;
                if found.is_some() {
                    return Ok(found);
                }
            }
        }
        Ok(None)
    }

    pub(super) fn flag(&self, parameter: &str, slice: usize, tensor: &str, t: f64) -> Result<Option<bool>> {
        for settings in self.scopes(slice, None) {
            if let Some(setting) = settings.get(parameter) {
                let found = setting.flag(tensor, t).map_err(|error| error.about(parameter.to_owned()))?;
                if found.is_some() {
                    return Ok(found);
                }
            }
        }
        Ok(None)
    }

    fn scopes<'s>(
        &'s self,
        slice: usize,
        model: Option<&'s str>,
    ) -> impl Iterator<Item = &'s super::setting::Settings> {
        let slice = &self.slices[slice];
        let sources = slice.sources.iter().filter(move |source| Some(source.model.as_str()) == model);
        sources.map(|source| &source.parameters).chain([&slice.parameters]).chain(&self.parameters)
    }
}
