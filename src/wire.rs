//! Where the crates meet: the parts an engine has unless a program brings its own.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use orion_core::{
    Catalog, Clock, Embedder, Error, ErrorKind, Gate, Health, MemoryBudget, Model, ModelId, ModelSpec,
    Operation, Result, Router, Runtime, WeightSource,
};
use orion_loader::{Loader, LoaderOptions};
use orion_logging::metric;
use orion_registry::{Hardware, LiveRegistry};
use orion_resilience::{BreakerEvent, BreakerRegistry, BreakerSettings, BreakerState};
use orion_router::{
    CachedEmbedder, Cascade, ContextOptions, ContextRouter, EmbeddingOptions, EmbeddingRouter, KeywordRouter,
    Policy, PolicyRouter,
};
use orion_runtime::{
    ComputePool, DecoderConfig, EncoderOptions, LocalModel, LocalRuntime, RuntimeOptions, SentenceEncoder,
};

use crate::routing::{KEYWORDS_SUFFICE, RoutingOptions, open_router};
use crate::scheduler::load::{Prefetches, Sources};
use crate::scheduler::route::MakeRouter;

/// Texts whose vectors are remembered.
const CACHED_VECTORS: usize = 4096;
/// Most positions whose keys and values are kept by default.
const KV_TOKENS: usize = 16 * 1024;
/// What the default budget is where the machine does not say how much memory it has.
const UNKNOWN_MEMORY: u64 = 4 << 30;

/// Opens the model at `path` (a GGUF file, one part of a split one, a safetensors file or index, or a directory) with
/// default settings. Weights go on arriving in the background while the first prompt runs.
///
/// # Errors
/// A path that is not there or holds no model; a file that is damaged or not supported, by name.
pub fn open(path: impl AsRef<Path>) -> Result<LocalModel> {
    LocalRuntime::default().open(orion_loader::open(path.as_ref())?)
}

/// The registry, where the models are those of one.
pub(crate) type Config = Arc<LiveRegistry>;
type Embedding = Arc<dyn Fn() -> Result<Arc<dyn Embedder>> + Send + Sync>;

/// Models without a registry.
struct Listed(Vec<Arc<ModelSpec>>);

impl Catalog for Listed {
    fn get(&self, id: &ModelId) -> Option<Arc<ModelSpec>> {
        self.0.iter().find(|spec| spec.id == *id).cloned()
    }

    fn all(&self) -> Vec<Arc<ModelSpec>> {
        self.0.clone()
    }
}

pub(crate) fn listed(list: Vec<ModelSpec>) -> Result<Arc<dyn Catalog>> {
    if list.is_empty() {
        return Err(Error::invalid("no model is named: give the engine a registry, a catalogue or a model"));
    }
    for (at, spec) in list.iter().enumerate() {
        if list[..at].iter().any(|other| other.id == spec.id) {
            return Err(Error::invalid("two models have this id").about(format!("model {}", spec.id)));
        }
    }
    Ok(Arc::new(Listed(list.into_iter().map(Arc::new).collect())))
}

/// Where `make models` and downloads put model files.
pub(crate) fn models_folder() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let folder = set("ORION_MODELS").or_else(|| {
        let cache = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")))?;
        Some(cache.join("orion/models"))
    })?;
    folder.is_dir().then_some(folder)
}

pub(crate) fn default_memory() -> MemoryBudget {
    let free = Hardware::detect().available_bytes.unwrap_or(UNKNOWN_MEMORY);
    MemoryBudget::new(free / 10 * 9)
}

/// Models in this process, each with keys and values that fit the budget.
struct Local {
    options: RuntimeOptions,
    memory: u64,
}

impl Runtime for Local {
    fn load(&self, weights: Arc<dyn WeightSource>) -> Result<Arc<dyn Model>> {
        let mut options = self.options.clone();
        if options.kv_tokens.is_none() {
            let config = DecoderConfig::from_header(weights.header())?;
            let context = config.context_length;
            let heads = config.layers.len() * config.kv_heads;
            let bytes = heads * options.kv_type.position_bytes(config.head_dim);
            let fitting = usize::try_from(self.memory / 4).unwrap_or(usize::MAX) / bytes.max(1);
            let most = (4 * context).min(KV_TOKENS).min(fitting);
            options.kv_tokens = Some(most.max(context.min(KV_TOKENS)));
        }
        LocalRuntime::new(options).load(weights)
    }
}

pub(crate) fn runtime(
    mut options: RuntimeOptions,
    threads: Option<usize>,
    memory: u64,
) -> Result<Arc<dyn Runtime>> {
    options.pool = threads.map(ComputePool::new).transpose()?;
    Ok(Arc::new(Local { options, memory }))
}

/// The loader: the program's own, or one with default settings once something needs it.
fn needed(loader: &OnceLock<Loader>) -> Result<&Loader> {
    match loader.get() {
        Some(loader) => Ok(loader),
        None => {
            let fresh = Loader::new(LoaderOptions::new())?;
            Ok(loader.get_or_init(|| fresh))
        }
    }
}

/// Opens weights, and has them read ahead: what is on this machine where it is, the rest through the cache of downloads.
pub(crate) fn sources(own: Option<Loader>) -> (Sources, Prefetches) {
    let loader: Arc<OnceLock<Loader>> = Arc::new(own.map_or_else(OnceLock::new, OnceLock::from));
    let for_later = loader.clone();
    let open: Sources = Arc::new(move |spec| {
        if spec.files.iter().any(|file| file.location.contains("://")) {
            return needed(&loader)?.open_files(&spec.files);
        }
        // Files on this machine need no loader. Where there is one, it knows how to open them, what was verified, and that
        // prefetching has to rest meanwhile; without a place to note what was verified, it is verified every time.
        let hashed = spec.files.iter().any(|file| file.digest.is_some());
        let present = if hashed { needed(&loader).ok() } else { loader.get() };
        match present {
            Some(loader) => loader.open_files(&spec.files),
            None => orion_loader::open_files(&spec.files, None),
        }
    });
    (open, Arc::new(move |spec| needed(&for_later)?.prefetch_files(&spec.files)))
}

type HealthOf = Arc<dyn Fn(&ModelId) -> Health + Send + Sync>;

pub(crate) fn gate(
    own: Option<Arc<dyn Gate>>,
    settings: BreakerSettings,
    clock: Arc<dyn Clock>,
) -> Result<(Arc<dyn Gate>, HealthOf)> {
    if let Some(gate) = own {
        return Ok((gate, Arc::new(|_| Health::Healthy)));
    }
    let registry = Arc::new(BreakerRegistry::new(settings, clock)?.with_hook(changed));
    let health = registry.clone();
    Ok((registry, Arc::new(move |model| health.health(model))))
}

/// A breaker changed its state.
fn changed(event: &BreakerEvent) {
    let Some((model, operation)) = event.breaker.rsplit_once('/') else { return };
    let operation = if operation == "load" { Operation::Load } else { Operation::Generate };
    let to = match event.to {
        BreakerState::Open | BreakerState::ForcedOpen => metric::BreakerState::Open,
        BreakerState::HalfOpen => metric::BreakerState::HalfOpen,
        _ => metric::BreakerState::Closed,
    };
    metric::breaker_changed(&model.into(), operation, to);
    tracing::warn!(target: "orion::engine", breaker = %event.breaker, from = ?event.from, to = ?event.to, cause = ?event.cause, "breaker");
}

/// The embedder, loaded when it is first wanted.
pub(crate) fn embedder(
    own: Option<Arc<dyn Embedder>>,
    catalog: Arc<dyn Catalog>,
    config: Option<Config>,
    sources: Sources,
) -> Embedding {
    let loaded: std::sync::Mutex<Option<Arc<dyn Embedder>>> = std::sync::Mutex::new(own);
    Arc::new(move || {
        let mut loaded = loaded.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(embedder) = &*loaded {
            return Ok(embedder.clone());
        }
        let missing = |message: &str| Error::new(ErrorKind::NotFound, message);
        let named = config.as_ref().and_then(|config| {
            let registry = config.current();
            registry.router().encoder.clone().or_else(|| registry.defaults().embedder.clone())
        });
        let id = named.ok_or_else(|| missing("no embedder is set, and the registry names none"))?;
        let spec = catalog.get(&id.as_str().into());
        let spec = spec.ok_or_else(|| missing("the embedder is not in the catalogue").about(id.clone()))?;
        let source = sources(&spec).map_err(|error| error.about(format!("embedder {id}")))?;
        let encoder = SentenceEncoder::load(&*source, EncoderOptions::default())?;
        let embedder: Arc<dyn Embedder> = Arc::new(CachedEmbedder::new(encoder, CACHED_VECTORS));
        *loaded = Some(embedder.clone());
        Ok(embedder)
    })
}

pub(crate) fn default_model(
    own: Option<ModelId>,
    config: Option<Config>,
) -> Arc<dyn Fn() -> Option<ModelId> + Send + Sync> {
    Arc::new(move || {
        let named = || {
            let registry = config.as_ref()?.current();
            let name = registry.router().fallback.as_deref().or(registry.defaults().model.as_deref())?;
            Some(ModelId::new(name))
        };
        own.clone().or_else(named)
    })
}

/// How a router is made when the models change: the one the registry describes, or what the models themselves say.
pub(crate) fn router(
    own: Option<Arc<dyn Router>>,
    embedder: Option<Arc<dyn Embedder>>,
    config: Option<Config>,
) -> MakeRouter {
    Box::new(move |specs| {
        if let Some(router) = &own {
            return Ok(router.clone());
        }
        if let (Some(config), None) = (&config, &embedder) {
            match open_router(&config.current(), &RoutingOptions::default()) {
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    tracing::warn!(target: "orion::engine", %error, "routing by keywords alone");
                }
                opened => return opened,
            }
        }
        let specs = || specs.iter().map(|spec| &**spec);
        let keywords: Arc<dyn Router> = Arc::new(KeywordRouter::from_specs(specs())?);
        let inner = match &embedder {
            Some(embedder) if specs().any(|spec| !spec.examples.is_empty()) => {
                let options = EmbeddingOptions::default();
                let by_meaning = EmbeddingRouter::from_specs(embedder.clone(), specs(), options)?;
                Cascade::new().then(keywords, KEYWORDS_SUFFICE).then(Arc::new(by_meaning), 0.0)
            }
            _ => Cascade::new().then(keywords, 0.0),
        };
        let routed = PolicyRouter::new(inner, Policy::default());
        Ok(Arc::new(ContextRouter::new(routed, ContextOptions::default())))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_models_needs_one_and_no_two_of_a_name() {
        assert!(listed(Vec::new()).is_err());
        let spec = || ModelSpec::new("m".into(), Vec::new());
        let error = listed(vec![spec(), spec()]).err().unwrap();
        assert_eq!(error.to_string(), "model m: two models have this id");
    }
}
