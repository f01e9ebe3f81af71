//! One whole version of the catalogue.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use orion_core::{Catalog, ModelId, ModelSpec};
use serde::Serialize;

use crate::document::{Defaults, FileRole, Group, Measured, ModelEntry, RouterConfig};
use crate::inherit::inherit_fields;
use crate::layers::{Layer, Raw, Sources};
use crate::meaning::{Catalogue, examine};
use crate::report::{Problem, Report};
use crate::spec::to_spec;

/// Memory a model takes beyond weights, keys and values: tokenizer, workspace, logits.
const OVERHEAD_BYTES: u64 = 64 << 20;

/// A model of the catalogue.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RegisteredModel {
    /// Its entry, with what it takes over from its base.
    pub entry: ModelEntry,
    /// The entry as the engine reads it.
    pub spec: Arc<ModelSpec>,
    /// What was measured on this host.
    pub measured: Option<Measured>,
}

impl RegisteredModel {
    /// Its id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.entry.id
    }

    /// Where what a loader opens is: the index of a shard set, else the first file of weights. A local path, or a URL
    /// where the file is not on this machine.
    #[must_use]
    pub fn location(&self) -> Option<&str> {
        let of = |role| self.entry.files.iter().position(|file| file.role == role);
        let at = of(FileRole::Index).or_else(|| of(FileRole::Weights))?;
        self.spec.files.get(at).map(|file| file.location.as_str())
    }

    /// Whether it states the capability.
    #[must_use]
    pub fn can(&self, capability: &str) -> bool {
        self.entry.capabilities.iter().any(|known| known == capability)
    }

    /// Whether it states the language. Without any language stated, nothing is known and the answer is no.
    #[must_use]
    pub fn speaks(&self, language: &str) -> bool {
        self.entry.languages.iter().any(|known| known == language)
    }

    /// Bytes it takes with `context` tokens of keys and values; more context than the model has is not counted.
    #[must_use]
    pub fn memory_bytes(&self, context: u32) -> u64 {
        let spec = &self.spec;
        let tokens = if spec.context_length == 0 { context } else { context.min(spec.context_length) };
        let kv = spec.kv_bytes_per_token.saturating_mul(u64::from(tokens));
        spec.weight_bytes.saturating_add(kv).saturating_add(OVERHEAD_BYTES)
    }
}

/// One whole version of the catalogue: it never changes. [`LiveRegistry`](crate::LiveRegistry) replaces it as a whole.
#[derive(Debug)]
pub struct Registry {
    models: Vec<RegisteredModel>,
    /// Ids and aliases.
    index: HashMap<Box<str>, usize>,
    aliases: BTreeMap<String, String>,
    groups: BTreeMap<String, Group>,
    recommendations: BTreeMap<String, Group>,
    router: RouterConfig,
    router_head: Option<PathBuf>,
    defaults: Defaults,
    warnings: Report,
}

/// Checks the files without keeping a catalogue: everything that is wrong, in one report.
#[must_use]
pub fn validate(sources: &Sources) -> Report {
    match Registry::load(sources) {
        Ok(registry) => registry.warnings,
        Err(report) => report,
    }
}

impl Registry {
    /// Reads and checks the files.
    ///
    /// # Errors
    /// A report of everything that is wrong, if there is at least one error.
    pub fn load(sources: &Sources) -> Result<Self, Report> {
        let read: Vec<Result<Option<Raw>, Box<Problem>>> =
            sources.layers.iter().map(|layer| layer.read(&sources.folders)).collect();
        Self::from_raw(read, sources)
    }

    pub(crate) fn from_raw(
        read: Vec<Result<Option<Raw>, Box<Problem>>>,
        sources: &Sources,
    ) -> Result<Self, Report> {
        let mut report = Report::default();
        let mut raws = Vec::new();
        for layer in read {
            match layer {
                Ok(raw) => raws.extend(raw),
                Err(problem) => report.push(*problem),
            }
        }
        let all_read = report.is_ok();
        let mut layers: Vec<Layer<'_>> = raws.iter().map(|raw| Layer::read(raw, &mut report)).collect();
        // A layer that could not be read or parsed takes its models with it; what names them would all look wrong.
        if all_read && layers.iter().all(|layer| layer.node.is_some()) {
            let catalogue = examine(&mut layers, sources.missing_files, &mut report);
            if report.is_ok() {
                return Ok(Self::build(&layers, catalogue, report));
            }
        }
        Err(report)
    }

    fn build(layers: &[Layer<'_>], catalogue: Catalogue, warnings: Report) -> Self {
        let mut registry = Self {
            models: Vec::with_capacity(catalogue.models.len()),
            index: HashMap::new(),
            aliases: catalogue.aliases,
            groups: BTreeMap::new(),
            recommendations: BTreeMap::new(),
            router: RouterConfig::default(),
            router_head: None,
            defaults: Defaults::default(),
            warnings,
        };
        let mut measured: HashMap<String, Measured> = HashMap::new();
        let aliases = registry.aliases.clone();
        let resolve = |name: &str| aliases.get(name).cloned().unwrap_or_else(|| name.to_owned());
        for layer in layers {
            let document = &layer.document;
            registry.groups.extend(document.groups.clone());
            registry.recommendations.extend(document.recommendations.clone());
            measured.extend(document.measured.iter().map(|(name, figures)| (resolve(name), figures.clone())));
            if document.router != RouterConfig::default() {
                registry.router = document.router.clone();
                registry.router_head =
                    document.router.head.as_ref().map(|head| layer.raw.roots[0].join(head));
            }
            let mut defaults = document.defaults.clone();
            inherit_fields!(defaults, registry.defaults; model, embedder, sampling);
            registry.defaults = defaults;
        }
        for merged in catalogue.models {
            let roots = &layers[merged.files_from].raw.roots;
            let spec = to_spec(&merged.entry, &registry.defaults.sampling, roots, resolve);
            let id = merged.entry.id.as_str();
            registry.index.insert(id.into(), registry.models.len());
            registry.models.push(RegisteredModel {
                measured: measured.get(id).cloned(),
                entry: merged.entry,
                spec: Arc::new(spec),
            });
        }
        for (alias, target) in &registry.aliases {
            if let Some(index) = registry.index.get(target.as_str()).copied() {
                registry.index.insert(alias.as_str().into(), index);
            }
        }
        registry
    }

    /// The model of that id or alias.
    #[must_use]
    pub fn model(&self, name: &str) -> Option<&RegisteredModel> {
        self.index.get(name).map(|index| &self.models[*index])
    }

    /// All models, in file order.
    #[must_use]
    pub fn models(&self) -> &[RegisteredModel] {
        &self.models
    }

    /// The model of that id or alias, or an error that suggests the nearest name.
    ///
    /// # Errors
    /// [`NotFound`](orion_core::ErrorKind::NotFound).
    pub fn expect_model(&self, name: &str) -> orion_core::Result<&RegisteredModel> {
        self.model(name).ok_or_else(|| {
            let near = crate::schema::did_you_mean(name, self.index.keys().map(AsRef::as_ref));
            let help = near.map(|near| format!("; did you mean {near:?}?")).unwrap_or_default();
            let message = format!("no model of that name in the registry{help}");
            orion_core::Error::new(orion_core::ErrorKind::NotFound, message).about(format!("model {name}"))
        })
    }

    /// Models with that capability.
    pub fn with_capability(&self, capability: &str) -> impl Iterator<Item = &RegisteredModel> {
        self.models.iter().filter(move |model| model.can(capability))
    }

    /// Models that speak a language, given as ISO 639-1 code.
    pub fn speaking(&self, language: &str) -> impl Iterator<Item = &RegisteredModel> {
        self.models.iter().filter(move |model| model.speaks(language))
    }

    /// Models that take at most `bytes` with `context` tokens.
    pub fn fitting(&self, bytes: u64, context: u32) -> impl Iterator<Item = &RegisteredModel> {
        self.models.iter().filter(move |model| model.memory_bytes(context) <= bytes)
    }

    /// Models of a group, in its order; `None` if there is no such group.
    #[must_use]
    pub fn in_group(&self, group: &str) -> Option<Vec<&RegisteredModel>> {
        let names = &self.groups.get(group)?.models;
        Some(names.iter().filter_map(|name| self.model(name)).collect())
    }

    /// The groups by name.
    #[must_use]
    pub fn groups(&self) -> &BTreeMap<String, Group> {
        &self.groups
    }

    /// The named recommendations.
    #[must_use]
    pub fn recommendations(&self) -> &BTreeMap<String, Group> {
        &self.recommendations
    }

    /// Alias → model id.
    #[must_use]
    pub fn aliases(&self) -> &BTreeMap<String, String> {
        &self.aliases
    }

    /// How prompts are routed.
    #[must_use]
    pub fn router(&self) -> &RouterConfig {
        &self.router
    }

    /// Where the router's trained head is, if one is named.
    #[must_use]
    pub fn router_head(&self) -> Option<&Path> {
        self.router_head.as_deref()
    }

    /// What holds where nothing else is said.
    #[must_use]
    pub fn defaults(&self) -> &Defaults {
        &self.defaults
    }

    /// What was noticed while loading, without being wrong enough to refuse it.
    #[must_use]
    pub fn warnings(&self) -> &Report {
        &self.warnings
    }

    /// One line per model, for tables and for programs.
    #[must_use]
    pub fn rows(&self) -> Vec<ModelRow> {
        self.models.iter().map(|model| ModelRow::new(model, self)).collect()
    }
}

impl Catalog for Registry {
    fn get(&self, id: &ModelId) -> Option<Arc<ModelSpec>> {
        self.model(id.as_str()).map(|model| Arc::clone(&model.spec))
    }

    fn all(&self) -> Vec<Arc<ModelSpec>> {
        self.models.iter().map(|model| Arc::clone(&model.spec)).collect()
    }
}

/// A model in one line.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ModelRow {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its architecture, if stated.
    pub architecture: Option<String>,
    /// Its quantisation, if stated.
    pub quantization: Option<String>,
    /// Number of parameters, if stated.
    pub parameters: Option<u64>,
    /// Longest context; 0 if not stated.
    pub context_length: u32,
    /// Bytes of its weights in memory; 0 if not known.
    pub weight_bytes: u64,
    /// What it can do.
    pub capabilities: Vec<String>,
    /// Languages it speaks.
    pub languages: Vec<String>,
    /// Other names that lead to it.
    pub aliases: Vec<String>,
    /// Whether every file is on this machine.
    pub local: bool,
    /// What was measured on this host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub measured: Option<Measured>,
}

impl ModelRow {
    fn new(model: &RegisteredModel, registry: &Registry) -> Self {
        let (entry, spec) = (&model.entry, &model.spec);
        let aliases = registry.aliases.iter().filter(|(_, target)| **target == entry.id);
        Self {
            id: entry.id.clone(),
            name: spec.name.clone(),
            architecture: entry.architecture.clone(),
            quantization: entry.quantization.clone(),
            parameters: entry.parameters,
            context_length: spec.context_length,
            weight_bytes: spec.weight_bytes,
            capabilities: entry.capabilities.clone(),
            languages: entry.languages.clone(),
            aliases: aliases.map(|(alias, _)| alias.clone()).collect(),
            local: spec.files.iter().all(|file| std::path::Path::new(&file.location).is_file()),
            measured: model.measured.clone(),
        }
    }
}
