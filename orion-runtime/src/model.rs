//! The runtime and its models, as the rest of the program sees them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use orion_core::{
    Error, ErrorKind, Generation, GenerationEvent, Job, MetaValue, Model, ModelHeader, ModelInfo, Result,
    Runtime, TokenId, WeightSource,
};
use orion_kernels::{ComputePool, Isa, KvType};

use crate::config::DecoderConfig;
use crate::cpu::{self, Cpu};
use crate::encoder::{self, EncoderConfig};
use crate::executor::Executor;
use crate::kv::PAGE_TOKENS;
use crate::kv_files::{KvDirectory, PageFiles};
use crate::load;
use crate::observe::InputObserver;
use crate::portable::Portable;
use crate::sequence::Prepared;
use crate::slot::Arrivals;
use crate::text::TextCodec;
use crate::weights::{self, WeightTable};
use crate::worker::{Command, Evaluate, Limits, Worker};

/// What computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum ExecutorKind {
    /// Our kernels: packed weights, integer products, halves for keys and values. A model they cannot run (a head
    /// size that is no multiple of 16) runs on the portable executor, with a warning;
    /// [`ModelInfo::executor`](orion_core::ModelInfo) says which one it is.
    #[default]
    Cpu,
    /// candle tensors in 32-bit floats: every architecture and type, slow, exact.
    Portable,
}

/// Settings of a [`LocalRuntime`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RuntimeOptions {
    /// What computes.
    pub executor: ExecutorKind,
    /// Threads of the [`Cpu`](ExecutorKind::Cpu) executor; `None` for the process-wide pool.
    pub pool: Option<ComputePool>,
    /// Sequences of one model that run together.
    pub max_batch: usize,
    /// Prompt tokens per step; between steps other sequences get their turn and cancellation is read.
    pub prefill_chunk: usize,
    /// Generations that may wait for a place in the batch before [`submit`](Model::submit) refuses more.
    pub queue: usize,
    /// Positions whose keys and values are kept, for running sequences and for prefix reuse; `None` for four full
    /// contexts, at most 256 Ki. Memory is taken as it is used.
    pub kv_tokens: Option<usize>,
    /// What keys and values are kept as; the [`Portable`](ExecutorKind::Portable) executor keeps floats.
    pub kv_type: KvType,
    /// Where keys and values of shared beginnings outlive the model; only for weights whose digest is known. `None` for
    /// nowhere.
    pub kv_directory: Option<KvDirectory>,
    /// Who sees the inputs of matrix products; only with the [`Portable`](ExecutorKind::Portable) executor, since the other
    /// keeps none in floats. `None` for nobody.
    pub input_observer: Option<Arc<dyn InputObserver>>,
}

impl Default for RuntimeOptions {
    fn default() -> Self {
        Self {
            executor: ExecutorKind::default(),
            pool: None,
            max_batch: 8,
            prefill_chunk: 512,
            queue: 64,
            kv_tokens: None,
            kv_type: KvType::default(),
            kv_directory: None,
            input_observer: None,
        }
    }
}

/// Runs models in this process.
#[derive(Debug, Clone, Default)]
pub struct LocalRuntime {
    options: RuntimeOptions,
}

impl LocalRuntime {
    /// A runtime with these settings.
    #[must_use]
    pub fn new(options: RuntimeOptions) -> Self {
        Self { options }
    }

    /// Opens a model and returns as soon as its header is read and checked: weights go on arriving in the background,
    /// and the first prompt runs through the layers that are there.
    ///
    /// # Errors
    /// An architecture, option or tensor type that is not supported, by name; weights that contradict the
    /// configuration, by tensor.
    pub fn open(&self, source: Arc<dyn WeightSource>) -> Result<LocalModel> {
        let options = &self.options;
        for (name, value) in [("max_batch", options.max_batch), ("prefill_chunk", options.prefill_chunk)] {
            if value == 0 {
                return Err(Error::invalid(format!("{name} is 0")));
            }
        }
        let header = source.header();
        let mut config = DecoderConfig::from_header(header)?;
        weights::resolve_rope_factors(&mut config, header, |reference| {
            load::vector_f32(&*source, reference)
        })?;
        let table = WeightTable::new(header, &config)?;
        let config = Arc::new(config);
        let arrivals = Arc::new(Arrivals::new(table.parts()));
        let kind = match (options.executor, cpu::unsupported(&config)) {
            (ExecutorKind::Cpu, Some(reason)) => {
                tracing::warn!(%reason, "the model runs on the portable executor");
                ExecutorKind::Portable
            }
            (kind, _) => kind,
        };
        if kind != ExecutorKind::Portable && options.input_observer.is_some() {
            return Err(Error::invalid("inputs are shown by the portable executor only"));
        }
        if kind == ExecutorKind::Portable && options.kv_type != KvType::F16 {
            return Err(Error::unsupported(
                "keys and values of eight bits are the cpu executor's; the portable one, which runs this model, keeps floats",
            ));
        }
        let info = info(header, &config, kind, options.kv_type)?;
        let digest = header.digest;
        let executor: Box<dyn Executor> = match kind {
            ExecutorKind::Cpu => {
                let pool = options.pool.clone().map_or_else(ComputePool::shared, Ok)?;
                let rows = options.prefill_chunk + options.max_batch;
                let sizes = (rows, options.kv_type);
                Box::new(Cpu::new(config.clone(), table, source.clone(), arrivals.clone(), pool, sizes)?)
            }
            ExecutorKind::Portable => {
                let observer = options.input_observer.clone();
                Box::new(Portable::new(config.clone(), table, source.clone(), arrivals.clone(), observer)?)
            }
        };
        // Weights are on their way already.
        let codec = Arc::new(TextCodec::from_header(header, config.vocab_size)?);
        drop(source);
        let kv_tokens = options.kv_tokens.unwrap_or((4 * config.context_length).min(256 * 1024));
        let limits = Limits {
            max_batch: options.max_batch,
            prefill_chunk: options.prefill_chunk,
            max_pages: kv_tokens.div_ceil(PAGE_TOKENS),
        };
        let mut worker = Worker::new(config.clone(), codec.clone(), executor, limits);
        if let (Some(directory), Some(digest)) = (&options.kv_directory, digest) {
            worker.keep_pages_in(PageFiles::open(directory, digest, &info.executor)?);
        }
        let pages = worker.page_count();
        let (work, commands) = bounded(options.max_batch);
        let (jobs, waiting) = bounded(options.queue);
        spawn("orion-model", move || worker.run(&commands))?;
        let (forward, tokenise) = (work.clone(), codec.clone());
        spawn("orion-prompt", move || prepare(&waiting, &forward, &tokenise))?;
        Ok(LocalModel { info, config, codec, arrivals, jobs, work, pages })
    }
}

/// What a model file describes.
#[derive(Debug)]
#[non_exhaustive]
pub enum Described {
    /// A language model, for [`LocalRuntime::open`].
    Decoder(Box<DecoderConfig>),
    /// A sentence encoder, for [`SentenceEncoder::load`](crate::SentenceEncoder::load).
    Encoder(EncoderConfig),
}

/// Checks that a model could be loaded, without reading its weights: configuration, tensor table, vocabulary, template.
///
/// # Errors
/// What [`LocalRuntime::open`] or [`SentenceEncoder::load`](crate::SentenceEncoder::load) would say.
pub fn check(source: &dyn WeightSource) -> Result<Described> {
    let header = source.header();
    if encoder::is_encoder(header) {
        return encoder::check(source).map(Described::Encoder);
    }
    let mut config = DecoderConfig::from_header(header)?;
    weights::resolve_rope_factors(&mut config, header, |reference| load::vector_f32(source, reference))?;
    WeightTable::new(header, &config)?;
    TextCodec::from_header(header, config.vocab_size)?;
    Ok(Described::Decoder(Box::new(config)))
}

impl Runtime for LocalRuntime {
    fn load(&self, weights: Arc<dyn WeightSource>) -> Result<Arc<dyn Model>> {
        Ok(Arc::new(self.open(weights)?))
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
    let thread = std::thread::Builder::new().name(name.into()).spawn(work);
    thread.map(drop).map_err(|error| Error::io(error, format!("starting thread {name}")))
}

fn info(
    header: &ModelHeader,
    config: &DecoderConfig,
    executor: ExecutorKind,
    kv: KvType,
) -> Result<ModelInfo> {
    let mut info = ModelInfo::new(config.architecture.name());
    info.name = header.metadata.get("general.name").and_then(MetaValue::as_str).map(str::to_owned);
    info.context_length = config.context_length;
    info.parameters = header.tensors.iter().map(orion_core::TensorInfo::elements).sum();
    let position_bytes = match executor {
        ExecutorKind::Cpu => kv.position_bytes(config.head_dim),
        ExecutorKind::Portable => 2 * size_of::<f32>() * config.head_dim,
    };
    info.weight_bytes = match executor {
        ExecutorKind::Cpu => header.tensors.iter().map(|tensor| tensor.bytes).sum(),
        ExecutorKind::Portable => 4 * info.parameters,
    };
    info.kv_bytes_per_token = (config.layers.len() * config.kv_heads * position_bytes) as u64;
    info.executor = match executor {
        ExecutorKind::Cpu if kv == KvType::Q8 => {
            format!("cpu ({}), keys and values in 8 bits", Isa::active()?)
        }
        ExecutorKind::Cpu => format!("cpu ({})", Isa::active()?),
        ExecutorKind::Portable => "portable (candle, f32)".into(),
    };
    Ok(info)
}

/// Turns prompts into tokens, off the caller's thread and off the worker's.
fn prepare(jobs: &Receiver<(Job, Instant)>, worker: &Sender<Command>, codec: &TextCodec) {
    for (mut job, submitted) in jobs {
        let generation = &job.generation;
        let encoded = generation.validate().and_then(|()| codec.encode(generation));
        let follow = generation.constraint.as_ref().map(|constraint| codec.follow(constraint)).transpose();
        match encoded.and_then(|tokens| Ok((tokens, follow?))) {
            Ok((tokens, follow)) => {
                let sent =
                    worker.send(Command::Generate(Box::new(Prepared { tokens, job, submitted, follow })));
                if let Err(crossbeam_channel::SendError(Command::Generate(mut prepared))) = sent {
                    prepared.job.sink.event(GenerationEvent::Failed(worker_gone()));
                }
            }
            Err(error) => {
                job.sink.event(GenerationEvent::Failed(error));
            }
        }
    }
}

fn worker_gone() -> Error {
    Error::new(ErrorKind::Internal, "the model's worker has ended")
}

/// A model of a [`LocalRuntime`]. Dropping it ends what it still does with
/// [`Rejected`](ErrorKind::Rejected).
#[derive(Debug)]
pub struct LocalModel {
    info: ModelInfo,
    config: Arc<DecoderConfig>,
    codec: Arc<TextCodec>,
    arrivals: Arc<Arrivals>,
    jobs: Sender<(Job, Instant)>,
    work: Sender<Command>,
    pages: Arc<AtomicUsize>,
}

/// Which positions [`LocalModel::evaluate`] reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Positions {
    /// All of them.
    All,
    /// The last one.
    Last,
}

impl LocalModel {
    /// The options the model was read with.
    #[must_use]
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// The model's vocabulary and chat template.
    #[must_use]
    pub fn codec(&self) -> &TextCodec {
        &self.codec
    }

    /// Parts of the weights that have arrived, and parts in all.
    #[must_use]
    pub fn load_progress(&self) -> (usize, usize) {
        self.arrivals.progress()
    }

    /// Layers that have computed something so far: while weights arrive it shows how far a first prompt got.
    #[must_use]
    pub fn layers_reached(&self) -> usize {
        self.arrivals.reached()
    }

    /// How long the weights took to arrive, once they all have.
    #[must_use]
    pub fn load_time(&self) -> Option<std::time::Duration> {
        self.arrivals.took()
    }

    /// Blocks until all weights have arrived. Not needed before a generation: it starts with the first layer.
    ///
    /// # Errors
    /// What made loading fail.
    pub fn wait_loaded(&self) -> Result<()> {
        self.arrivals.wait_all()
    }

    /// Runs exactly `tokens` from an empty context and calls `each` with a position and its logits, `[vocab_size]`,
    /// after the final soft-cap. Blocks until all have been seen.
    ///
    /// # Errors
    /// No token, a token outside the vocabulary, more tokens than the context holds, or a failure of the model.
    pub fn evaluate(
        &self,
        tokens: &[TokenId],
        positions: Positions,
        mut each: impl FnMut(usize, &[f32]),
    ) -> Result<()> {
        if tokens.is_empty() {
            return Err(Error::invalid("no tokens were given"));
        }
        self.codec.check(tokens)?;
        let (reply, rows) = bounded(1);
        let last_only = positions == Positions::Last;
        let wanted = if last_only { 1 } else { tokens.len() };
        let evaluate = Evaluate { tokens: tokens.to_vec(), last_only, reply };
        self.work.send(Command::Evaluate(evaluate)).map_err(|_| worker_gone())?;
        for _ in 0..wanted {
            let (position, logits) = rows.recv().map_err(|_| worker_gone())??;
            each(position, &logits);
        }
        Ok(())
    }

    /// Forgets the prompts whose keys and values are kept for reuse.
    pub fn forget_prefixes(&self) {
        // Without a worker there is nothing to forget.
        self.work.send(Command::ForgetPrefixes).ok();
    }
}

impl Model for LocalModel {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn submit(&self, job: Job) -> Result<()> {
        self.jobs.try_send((job, Instant::now())).map_err(|error| match error {
            TrySendError::Full(_) => {
                Error::new(ErrorKind::Rejected, "the model's queue is full, try again later")
            }
            TrySendError::Disconnected(_) => worker_gone(),
        })
    }

    fn count_tokens(&self, generation: &Generation) -> Result<usize> {
        self.codec.encode(generation).map(|tokens| tokens.len())
    }

    fn memory_bytes(&self) -> u64 {
        let positions = (self.pages.load(Ordering::Acquire) * PAGE_TOKENS) as u64;
        self.info.weight_bytes + positions * self.info.kv_bytes_per_token
    }
}
