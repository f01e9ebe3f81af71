//! The router that a registry describes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use orion_core::{Candidate, Embedder, Error, ErrorKind, ModelId, Result, Router, SystemClock, WeightSource};
use orion_registry::{Registry, Strategy};
use orion_router::{
    CachedEmbedder, Cascade, ContextOptions, ContextRouter, EmbeddingOptions, EmbeddingRouter,
    FeedbackOptions, FeedbackRouter, Head, KeywordRouter, Policy, PolicyRouter, encoder_of_head,
};
use orion_runtime::{EncoderOptions, Precision, SentenceEncoder};

/// Confidence from which keywords decide in a cascade: three distinct ones that nothing else speaks against.
pub(crate) const KEYWORDS_SUFFICE: f32 = 0.98;

/// What a registry leaves open about its router.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct RoutingOptions {
    /// In place of the registry's strategy.
    pub strategy: Option<Strategy>,
    /// In place of the registry's head; its labels are model ids or aliases.
    pub head: Option<PathBuf>,
    /// Arithmetic of the encoder. By default that which the head was trained on, and int8 where there is none.
    pub precision: Option<Precision>,
    /// Texts whose vectors are remembered. Default 1024.
    pub cached_texts: usize,
}

impl Default for RoutingOptions {
    fn default() -> Self {
        Self { strategy: None, head: None, precision: None, cached_texts: 1024 }
    }
}

impl RoutingOptions {
    /// Replaces [`strategy`](Self::strategy).
    #[must_use]
    pub fn strategy(mut self, strategy: Strategy) -> Self {
        self.strategy = Some(strategy);
        self
    }

    /// Replaces [`head`](Self::head).
    #[must_use]
    pub fn head(mut self, path: impl Into<PathBuf>) -> Self {
        self.head = Some(path.into());
        self
    }

    /// Replaces [`precision`](Self::precision).
    #[must_use]
    pub fn precision(mut self, precision: Precision) -> Self {
        self.precision = Some(precision);
        self
    }
}

/// The models of a registry that answer prompts: all but encoders. Resident and healthy, since nothing is known of
/// that here; whoever knows fills it in.
#[must_use]
pub fn answering(registry: &Registry) -> Vec<Candidate<'_>> {
    let encodes = |capabilities: &[String]| matches!(capabilities, [only] if only == "embedding");
    let answers = registry.models().iter().filter(|model| !encodes(&model.entry.capabilities));
    answers.map(|model| Candidate::new(&model.spec)).collect()
}

/// Opens a sentence encoder as routers use it, to train a head on `depth` of its layers or all.
///
/// # Errors
/// What the loader and [`SentenceEncoder::load`] answer.
pub fn open_encoder(path: &Path, precision: Precision, depth: Option<usize>) -> Result<SentenceEncoder> {
    let source = orion_loader::open(path)?;
    let source: &dyn WeightSource = &*source;
    SentenceEncoder::for_routing(source, precision, depth)
        .map_err(|error| error.about(path.display().to_string()))
}

/// Opens a sentence encoder in the precision and with the layers that a head was trained on. Whether it is the same encoder
/// is for the head to check.
///
/// # Errors
/// A head that cannot be read; as [`open_encoder`].
pub fn open_encoder_of_head(path: &Path, head: &Path) -> Result<SentenceEncoder> {
    let Some(options) = EncoderOptions::of_fingerprint(&encoder_of_head(head)?) else {
        return open_encoder(path, Precision::Int8, None);
    };
    let source = orion_loader::open(path)?;
    SentenceEncoder::load(&*source, options).map_err(|error| error.about(path.display().to_string()))
}

/// The router that a registry describes: its strategy over keywords, example prompts or a trained head; follow-ups
/// stay with the model of their conversation; switching costs count as the registry says. Its default model
/// is ranked first where the router abstains.
///
/// Without a strategy it is a cascade if the registry names an encoder, else keywords alone.
///
/// # Errors
/// An encoder or head that is named and cannot be opened, a pattern that does not parse, a strategy that needs an
/// encoder where none is named.
pub fn open_router(registry: &Registry, options: &RoutingOptions) -> Result<Arc<dyn Router>> {
    let config = registry.router();
    let encoder = config.encoder.as_deref().or(registry.defaults().embedder.as_deref());
    let usual = if encoder.is_some() { Strategy::Cascade } else { Strategy::Keyword };
    let strategy = options.strategy.or(config.strategy).unwrap_or(usual);
    let specs = || answering(registry).into_iter().map(|candidate| candidate.spec);
    let keywords: Arc<dyn Router> = Arc::new(KeywordRouter::from_specs(specs())?);
    let cascade = if strategy == Strategy::Keyword {
        Cascade::new().then(keywords, 0.0)
    } else {
        let encoder = encoder.ok_or_else(|| {
            let message = "the router needs an encoder; name one as /router/encoder or /defaults/embedder";
            Error::invalid(message).about("registry")
        })?;
        let weights = weights_of(registry, encoder)?;
        let encoder = match (options.head.as_deref().or(registry.router_head()), options.precision) {
            (Some(head), None) => open_encoder_of_head(&weights, head)?,
            (_, precision) => open_encoder(&weights, precision.unwrap_or(Precision::Int8), None)?,
        };
        let embedder: Arc<dyn Embedder> = Arc::new(CachedEmbedder::new(encoder, options.cached_texts));
        let by_meaning = by_meaning(registry, &embedder, options)?;
        let by_meaning: Arc<dyn Router> = if strategy == Strategy::Learning {
            let clock = Arc::new(SystemClock::new());
            Arc::new(FeedbackRouter::new(by_meaning, embedder, clock, FeedbackOptions::default()))
        } else {
            Arc::new(by_meaning)
        };
        let cascade = Cascade::new();
        let cascade =
            if strategy == Strategy::Cascade { cascade.then(keywords, KEYWORDS_SUFFICE) } else { cascade };
        cascade.then(by_meaning, 0.0)
    };
    let default = config.fallback.as_deref().or(registry.defaults().model.as_deref());
    let cascade = match default.and_then(|name| registry.model(name)) {
        Some(model) => cascade.default_model(model.id()),
        None => cascade,
    };
    let mut policy = Policy::default();
    if let Some(weight) = config.switch_cost_weight {
        policy.cost_per_load_second *= weight;
    }
    let routed = PolicyRouter::new(cascade, policy);
    Ok(Arc::new(ContextRouter::new(routed, ContextOptions::default())))
}

fn by_meaning(
    registry: &Registry,
    embedder: &Arc<dyn Embedder>,
    options: &RoutingOptions,
) -> Result<EmbeddingRouter> {
    let config = registry.router();
    let mut rules = EmbeddingOptions::default();
    rules.least_confidence = config.min_confidence.unwrap_or(rules.least_confidence);
    rules.least_similarity = config.min_similarity.unwrap_or(rules.least_similarity);
    let Some(path) = options.head.as_deref().or(registry.router_head()) else {
        let specs = answering(registry).into_iter().map(|candidate| candidate.spec);
        return EmbeddingRouter::from_specs(embedder.clone(), specs, rules);
    };
    let head = Head::load(path, &**embedder)?;
    let mut models = BTreeMap::new();
    for label in head.labels() {
        let model = registry.expect_model(label).map_err(|error| {
            let message = "the head was trained for a model the registry does not know";
            Error::invalid(message).about(path.display().to_string()).about(label.as_str()).with_source(error)
        })?;
        models.insert(label.clone(), ModelId::new(model.id()));
    }
    EmbeddingRouter::with_head(embedder.clone(), head, &models, rules)
}

/// The weights of a model of the registry, which must be on this machine.
fn weights_of(registry: &Registry, name: &str) -> Result<PathBuf> {
    let model = registry.expect_model(name)?;
    let location = model.location().unwrap_or_default();
    let path = Path::new(location);
    if path.exists() {
        return Ok(path.to_owned());
    }
    let message = format!("{location} is not there; fetch the encoder, or route by keywords alone");
    Err(Error::new(ErrorKind::NotFound, message).about(format!("model {name}")))
}
