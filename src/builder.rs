//! Setting an engine up.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crossbeam_channel::unbounded;
use orion_core::{
    Catalog, Clock, Embedder, Error, FileSpec, Gate, MemoryBudget, ModelId, ModelSpec, Observer, Result,
    Router, Runtime, SystemClock, WeightSource,
};
use orion_loader::Loader;
use orion_logging::LoggingBuilder;
use orion_registry::{LiveRegistry, Sources};
use orion_resilience::{BreakerSettings, FallbackLimits, QueueSettings, RetryPolicy};
use orion_runtime::{KvDirectory, KvType, RuntimeOptions};

use crate::engine::{Engine, Inner};
use crate::flight::Watchers;
use crate::guard::{Guardrail, InputLimits};
use crate::ledger::Ledger;
use crate::predict::Predictor;
use crate::scheduler::load::Sources as OpenWeights;
use crate::scheduler::route::Following;
use crate::scheduler::{Door, Scheduler, Settings};
use crate::wire;

/// Where the models are listed.
enum Models {
    Registry(Box<Sources>),
    Catalog(Arc<dyn Catalog>),
    Listed(Vec<ModelSpec>),
}

/// Settings of an [`Engine`]. Only the models have to be named; every part can be replaced.
pub struct EngineBuilder {
    models: Models,
    default_model: Option<ModelId>,
    router: Option<Arc<dyn Router>>,
    runtime: Option<Arc<dyn Runtime>>,
    gate: Option<Arc<dyn Gate>>,
    embedder: Option<Arc<dyn Embedder>>,
    observers: Vec<Arc<dyn Observer>>,
    logging: Option<LoggingBuilder>,
    clock: Arc<dyn Clock>,
    loader: Option<Loader>,
    sources: Option<OpenWeights>,
    threads: Option<usize>,
    memory: Option<MemoryBudget>,
    parallel: usize,
    kv_tokens: Option<usize>,
    kv_type: KvType,
    kv_directory: Option<KvDirectory>,
    queued_requests: u32,
    queued_tokens: u64,
    breaker: BreakerSettings,
    retry: RetryPolicy,
    fallback: FallbackLimits,
    keep_alive: Option<Duration>,
    patience: Duration,
    stall: Duration,
    timeout: Option<Duration>,
    limits: InputLimits,
    guardrails: Vec<Arc<dyn Guardrail>>,
    history: usize,
    predictive: bool,
    habits: Option<PathBuf>,
}

impl EngineBuilder {
    pub(crate) fn new() -> Self {
        Self {
            models: Models::Listed(Vec::new()),
            default_model: None,
            router: None,
            runtime: None,
            gate: None,
            embedder: None,
            observers: Vec::new(),
            logging: None,
            clock: Arc::new(SystemClock::new()),
            loader: None,
            sources: None,
            threads: None,
            memory: None,
            parallel: 8,
            kv_tokens: None,
            kv_type: KvType::default(),
            kv_directory: None,
            queued_requests: 1024,
            queued_tokens: 4_000_000,
            breaker: BreakerSettings::new(),
            retry: RetryPolicy::new(),
            fallback: FallbackLimits::default(),
            keep_alive: Some(Duration::from_secs(300)),
            patience: Duration::from_secs(2),
            stall: Duration::from_secs(120),
            timeout: None,
            limits: InputLimits::default(),
            guardrails: Vec::new(),
            history: 64,
            predictive: false,
            habits: None,
        }
    }

    /// The models of a registry file; it is read again when [`LiveRegistry`] is told to, see [`catalog`](Self::catalog).
    /// Model files are looked for beside it and in the models' cache.
    #[must_use]
    pub fn registry(mut self, path: impl Into<PathBuf>) -> Self {
        let mut sources = Sources::new(path);
        if let Some(folder) = wire::models_folder() {
            sources = sources.with_model_folder(folder);
        }
        self.models = Models::Registry(Box::new(sources));
        self
    }

    /// The models of a registry in several files, or in memory.
    #[must_use]
    pub fn registry_from(mut self, sources: Sources) -> Self {
        self.models = Models::Registry(Box::new(sources));
        self
    }

    /// The models of any catalogue, such as a [`LiveRegistry`] that a program reloads.
    #[must_use]
    pub fn catalog(mut self, catalog: Arc<dyn Catalog>) -> Self {
        self.models = Models::Catalog(catalog);
        self
    }

    /// Adds one model: a path, a URL or `hf://org/name`. Replaces a registry that was named before.
    #[must_use]
    pub fn model(self, id: impl Into<ModelId>, location: impl Into<String>) -> Self {
        self.spec(ModelSpec::new(id.into(), vec![FileSpec::new(location)]))
    }

    /// Adds one model with everything that is known of it. Replaces a registry that was named before.
    #[must_use]
    pub fn spec(mut self, spec: ModelSpec) -> Self {
        match &mut self.models {
            Models::Listed(list) => list.push(spec),
            other => *other = Models::Listed(vec![spec]),
        }
        self
    }

    /// The general model: answers when the router abstains, and when a chain of others has failed. Default: the
    /// registry's.
    #[must_use]
    pub fn default_model(mut self, model: impl Into<ModelId>) -> Self {
        self.default_model = Some(model.into());
        self
    }

    /// Decides which model answers. Default: the router the registry describes; where its encoder is not on this machine, and
    /// without a registry, by the models' keywords, and by likeness to their examples if an embedder is set. Each keeps
    /// follow-ups with their thread and weighs what a load costs.
    #[must_use]
    pub fn router(mut self, router: Arc<dyn Router>) -> Self {
        self.router = Some(router);
        self
    }

    /// Makes models of weights. Default: this process, on the CPU. It lets go of the source once it needs nothing more
    /// of it, which is how the engine knows that a model is all there.
    #[must_use]
    pub fn runtime(mut self, runtime: Arc<dyn Runtime>) -> Self {
        self.runtime = Some(runtime);
        self
    }

    /// Says whether a model may be called. Default: a circuit breaker per model for loading, one for generating.
    #[must_use]
    pub fn gate(mut self, gate: Arc<dyn Gate>) -> Self {
        self.gate = Some(gate);
        self
    }

    /// Turns texts into vectors, for the default router and [`Engine::embed`]. Default: the registry's embedder.
    #[must_use]
    pub fn embedder(mut self, embedder: Arc<dyn Embedder>) -> Self {
        self.embedder = Some(embedder);
        self
    }

    /// Sees what happens to requests, besides the engine's own log and metrics.
    #[must_use]
    pub fn observer(mut self, observer: Arc<dyn Observer>) -> Self {
        self.observers.push(observer);
        self
    }

    /// Makes this the process's logging; [`Engine::log`] controls it, and [`Engine::shutdown`] writes out what is still queued.
    /// A subscriber that the program has installed stays, and where ORION's logging is installed already only its levels change
    /// (see [`LoggingBuilder::install`]). Default: nothing is installed, and the program's own subscriber,
    /// if any, sees the events.
    #[must_use]
    pub fn logging(mut self, logging: LoggingBuilder) -> Self {
        self.logging = Some(logging);
        self
    }

    /// Tells the time.
    #[must_use]
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Opens models with this loader: its cache, hub, mirrors and limits. Default: one with default settings, once one is needed.
    #[must_use]
    pub fn loader(mut self, loader: Loader) -> Self {
        self.loader = Some(loader);
        self
    }

    /// Opens weights, in place of the loader. Default: paths, URLs and `hf://` repositories, through the loader.
    #[must_use]
    pub fn sources(
        mut self,
        open: impl Fn(&ModelSpec) -> Result<Arc<dyn WeightSource>> + Send + Sync + 'static,
    ) -> Self {
        self.sources = Some(Arc::new(open));
        self
    }

    /// Threads that compute. Default: one per processor this process may use.
    #[must_use]
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = Some(threads);
        self
    }

    /// Bytes that weights, keys and values may take together. Default: nine tenths of what is free now, control group
    /// included.
    #[must_use]
    pub fn memory(mut self, bytes: u64) -> Self {
        self.memory = Some(MemoryBudget::new(bytes));
        self
    }

    /// Requests of one model that run together. Default 8.
    #[must_use]
    pub fn parallel(mut self, requests: usize) -> Self {
        self.parallel = requests;
        self
    }

    /// Positions per model whose keys and values are kept, for running requests and for prompts that begin alike.
    /// Default: four contexts, at most 16,384 and what a quarter of the memory holds, at least one context.
    #[must_use]
    pub fn kv_tokens(mut self, tokens: usize) -> Self {
        self.kv_tokens = Some(tokens);
        self
    }

    /// What keys and values are kept as. Default: halves. Bytes take little more than half the memory; heads must be
    /// multiples of 32, or a model does not load.
    #[must_use]
    pub fn kv_type(mut self, kv_type: KvType) -> Self {
        self.kv_type = kv_type;
        self
    }

    /// Keys and values of beginnings that prompts share are kept in this directory, within these bytes, so that they outlive
    /// their model's eviction and this process. Default: they do not.
    #[must_use]
    pub fn kv_directory(mut self, path: impl Into<PathBuf>, most_bytes: u64) -> Self {
        self.kv_directory = Some(KvDirectory::new(path, most_bytes));
        self
    }

    /// Most requests that may wait. Default 1,024.
    #[must_use]
    pub fn queued_requests(mut self, requests: u32) -> Self {
        self.queued_requests = requests;
        self
    }

    /// Most tokens of requests that may wait for one model. Default 4 million.
    #[must_use]
    pub fn queued_tokens(mut self, tokens: u64) -> Self {
        self.queued_tokens = tokens;
        self
    }

    /// When a model counts as down, and for how long. Default: [`BreakerSettings::new`].
    #[must_use]
    pub fn breaker(mut self, settings: BreakerSettings) -> Self {
        self.breaker = settings;
        self
    }

    /// When opening weights is tried again. Default: [`RetryPolicy::new`].
    #[must_use]
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.retry = policy;
        self
    }

    /// How far a chain of fallbacks goes. Default: three models, two minutes.
    #[must_use]
    pub fn fallback(mut self, limits: FallbackLimits) -> Self {
        self.fallback = limits;
        self
    }

    /// How long an idle model stays in memory; `None` for as long as there is room. Default five minutes.
    #[must_use]
    pub fn keep_alive(mut self, time: impl Into<Option<Duration>>) -> Self {
        self.keep_alive = time.into();
        self
    }

    /// How long a model that needs room waits for busy ones before they take no new requests for its sake. Longer means
    /// fewer swaps. Default two seconds.
    #[must_use]
    pub fn patience(mut self, time: Duration) -> Self {
        self.patience = time;
        self
    }

    /// How long a model that has work may say nothing before it is replaced. Default two minutes.
    #[must_use]
    pub fn stall(mut self, time: Duration) -> Self {
        self.stall = time;
        self
    }

    /// The longest a request may take that names no time of its own, or a longer one. Default: no limit.
    #[must_use]
    pub fn timeout(mut self, time: impl Into<Option<Duration>>) -> Self {
        self.timeout = time.into();
        self
    }

    /// Bounds on prompts.
    #[must_use]
    pub fn limits(mut self, limits: InputLimits) -> Self {
        self.limits = limits;
        self
    }

    /// Adds rules for what goes in and comes out.
    #[must_use]
    pub fn guardrail(mut self, guardrail: Arc<dyn Guardrail>) -> Self {
        self.guardrails.push(guardrail);
        self
    }

    /// How many reports of ended requests are kept. Default 64.
    #[must_use]
    pub fn history(mut self, reports: usize) -> Self {
        self.history = reports;
        self
    }

    /// Learns which model follows which and, while nothing else is to do, loads the likeliest next one ahead; files of one for
    /// which nothing less likely can leave are fetched and read, so that the system has them in memory. It stops by itself where
    /// too little of what it foretells comes true. Default: off.
    #[must_use]
    pub fn predictive(mut self) -> Self {
        self.predictive = true;
        self
    }

    /// [`predictive`](Self::predictive), and what was learned is kept in this file.
    #[must_use]
    pub fn habits(mut self, path: impl Into<PathBuf>) -> Self {
        self.habits = Some(path.into());
        self.predictive()
    }

    /// Starts the engine. No model is loaded yet.
    ///
    /// # Errors
    /// No model is named; the registry's report if it is broken; a setting that is out of range, by name; a log file that
    /// cannot be opened; threads that cannot be started.
    pub fn build(self) -> Result<Engine> {
        for (name, value) in [("parallel", self.parallel), ("queued_requests", self.queued_requests as usize)]
        {
            if value == 0 {
                return Err(Error::invalid(format!("{name} is 0, expected more")));
            }
        }
        let log = self.logging.map(LoggingBuilder::install).transpose()?;
        let memory = self.memory.unwrap_or_else(wire::default_memory);
        let (catalog, config) = match self.models {
            Models::Registry(sources) => {
                let registry = LiveRegistry::open(*sources)
                    .map_err(|report| Error::invalid(report.to_string()).about("registry"))?;
                (registry.clone() as Arc<dyn Catalog>, Some(registry))
            }
            Models::Catalog(catalog) => (catalog, None),
            Models::Listed(list) => (wire::listed(list)?, None),
        };
        let runtime = match self.runtime {
            Some(runtime) => runtime,
            None => {
                let mut options = RuntimeOptions::default();
                options.max_batch = self.parallel;
                options.queue = options.queue.max(2 * self.parallel);
                options.kv_tokens = self.kv_tokens;
                options.kv_type = self.kv_type;
                options.kv_directory = self.kv_directory;
                wire::runtime(options, self.threads, memory.limit())?
            }
        };
        let (sources, prefetches) = match self.sources {
            Some(sources) => (sources, None),
            None => {
                let (sources, prefetches) = wire::sources(self.loader);
                (sources, Some(prefetches))
            }
        };
        let (gate, health) = wire::gate(self.gate, self.breaker, self.clock.clone())?;
        let make = wire::router(self.router, self.embedder.clone(), config.clone());
        let embedder = wire::embedder(self.embedder, catalog.clone(), config.clone(), sources.clone());
        let predictor = match (&self.habits, self.predictive) {
            (Some(path), _) => Some(Predictor::open(path)?),
            (None, predictive) => predictive.then(Predictor::new),
        };
        let default_model = wire::default_model(self.default_model, config);

        let mut observers: Vec<Arc<dyn Observer>> = vec![Arc::new(orion_logging::RequestLog::new())];
        observers.extend(self.observers);
        let guardrails: Arc<[Arc<dyn Guardrail>]> = self.guardrails.into();
        let door = Arc::new(Door::default());
        let ((to, messages), (router, questions)) = (unbounded(), unbounded());
        let settings = Settings {
            clock: self.clock.clone(),
            catalog: catalog.clone(),
            runtime,
            sources,
            gate,
            health: health.clone(),
            default_model,
            memory,
            parallel: self.parallel,
            queue: QueueSettings::new()
                .max_requests(self.queued_requests)
                .max_tokens(self.queued_tokens)
                .servers(u32::try_from(self.parallel).unwrap_or(u32::MAX)),
            retry: self.retry,
            fallback: self.fallback,
            keep_alive: self.keep_alive,
            patience: self.patience,
            stall: self.stall,
            guardrails: guardrails.clone(),
            predictor,
            habits: self.habits,
            prefetches,
        };
        let scheduler = Scheduler::new(settings, door.clone(), to.clone(), messages, router.clone());
        let routing = (Following::new(make), to.clone());
        let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
            let thread = std::thread::Builder::new().name(name.into()).spawn(work);
            thread.map_err(|error| Error::io(error, format!("starting thread {name}")))
        };
        let scheduling = spawn("orion-engine", Box::new(move || scheduler.run()))?;
        // Ends when the scheduler and the last handle let go of their ends.
        spawn("orion-route", Box::new(move || routing.0.run(&questions, &routing.1)))?;
        Ok(Engine::new(Inner {
            to,
            router,
            door,
            ledger: Arc::new(Ledger::new(self.history)),
            clock: self.clock,
            watchers: Watchers(observers),
            log,
            limits: self.limits,
            guardrails,
            most_waiting: self.queued_requests as usize,
            timeout: self.timeout,
            health,
            catalog,
            embedder: Box::new(move || embedder()),
            threads: Mutex::new(vec![scheduling]),
        }))
    }
}

impl std::fmt::Debug for EngineBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EngineBuilder")
            .field("memory", &self.memory)
            .field("parallel", &self.parallel)
            .finish_non_exhaustive()
    }
}
