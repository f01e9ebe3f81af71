//! Sentence encoders of the BERT kind.

mod config;
mod forward;
mod weights;

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use orion_core::{Embedder, Error, ErrorKind, Result, WeightSource};
use orion_kernels::{Activation, ComputePool, EncoderShape, EncoderWorkspace, Isa};
use tokenizers::{Tokenizer, TruncationParams};

pub use self::config::EncoderConfig;
pub(crate) use self::config::is_encoder;
use self::weights::BertWeights;

/// A text is cut to this many bytes before it is tokenised: 256 tokens of prose are 1.5 KB, and a megabyte
/// would cost its whole length in the tokenizer.
const MAX_TEXT_BYTES: usize = 32 * 1024;

/// Tokens per pass: enough rows to fill the matrix kernels, few enough to stay in the second-level cache.
const TOKENS_PER_PASS: usize = 512;

/// How the states of a text's tokens become one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Pooling {
    /// Their mean.
    Mean,
    /// Their largest value, per component.
    Max,
    /// The state of the first token.
    First,
}

impl Pooling {
    const ALL: [Self; 3] = [Self::Mean, Self::Max, Self::First];

    fn name(self) -> &'static str {
        match self {
            Self::Mean => "mean",
            Self::Max => "max",
            Self::First => "first",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|pooling| pooling.name() == name)
    }
}

/// One part of an embedding: a pooling of the states after a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Output {
    /// Layers passed: 0 for the token embeddings.
    pub layer: usize,
    /// How the tokens become one vector.
    pub pooling: Pooling,
}

/// In what arithmetic the layers run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Precision {
    /// 32-bit floats.
    #[default]
    F32,
    /// 8-bit weights and activations with a scale per 32, by the CPU kernels; embeddings, norms and attention stay
    /// in 32-bit floats. Faster, how much depends on the CPU, at a cosine above 0.998 to the exact embedding.
    Int8,
    /// Seven bits of a byte for weights and activations, with a scale per 32: with AVX2, where eight do not fit its products,
    /// nearly twice as fast as [`Int8`](Self::Int8). What is lost adds up from layer to layer: three layers keep a cosine
    /// above 0.998, six may not.
    Int7,
}

impl Precision {
    const ALL: [Self; 3] = [Self::F32, Self::Int8, Self::Int7];

    fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Int8 => "int8",
            Self::Int7 => "int7",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|precision| precision.name() == name)
    }
}

/// Options of [`SentenceEncoder::load`].
#[derive(Clone, Default)]
#[non_exhaustive]
pub struct EncoderOptions {
    /// The parts of an embedding. Each is normalised on its own, and their concatenation again. Empty, the
    /// default, means the mean over the last layer, which is what the model was trained for; classifiers gain
    /// from earlier layers.
    pub outputs: Vec<Output>,
    /// Arithmetic.
    pub precision: Precision,
    /// Where it runs; the process's shared pool by default.
    pub pool: Option<ComputePool>,
}

impl std::fmt::Debug for EncoderOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EncoderOptions")
            .field("outputs", &self.outputs)
            .field("precision", &self.precision)
            .finish_non_exhaustive()
    }
}

impl EncoderOptions {
    /// What routers classify by: the means after `depth` layers and after two thirds and one third of them. On 150 intents
    /// the three together err a fifth less than the last alone. Layers beyond `depth` are not run.
    #[must_use]
    pub fn for_routing(depth: usize) -> Self {
        let mut depths = vec![depth, depth - depth / 3, depth / 3];
        depths.dedup();
        let mean = |layer| Output { layer, pooling: Pooling::Mean };
        Self::default().outputs(depths.into_iter().map(mean).collect::<Vec<_>>())
    }

    /// The options of an encoder with this [fingerprint](Embedder::fingerprint); none if it is that of another embedder.
    #[must_use]
    pub fn of_fingerprint(fingerprint: &str) -> Option<Self> {
        let mut parts = fingerprint.strip_prefix("bert-")?.split('-').skip(1);
        let precision = Precision::from_name(parts.next()?)?;
        let output = |name: &str| {
            let digits = name.find(|c: char| c.is_ascii_digit())?;
            let (pooling, layer) = name.split_at(digits);
            Some(Output { pooling: Pooling::from_name(pooling)?, layer: layer.parse().ok()? })
        };
        let outputs: Option<Vec<Output>> = parts.next()?.split('+').map(output).collect();
        Some(Self::default().precision(precision).outputs(outputs?))
    }

    /// Replaces [`outputs`](Self::outputs).
    #[must_use]
    pub fn outputs(mut self, outputs: impl Into<Vec<Output>>) -> Self {
        self.outputs = outputs.into();
        self
    }

    /// Replaces [`pool`](Self::pool).
    #[must_use]
    pub fn pool(mut self, pool: ComputePool) -> Self {
        self.pool = Some(pool);
        self
    }

    /// Replaces [`precision`](Self::precision).
    #[must_use]
    pub fn precision(mut self, precision: Precision) -> Self {
        self.precision = precision;
        self
    }
}

/// A BERT encoder with its tokenizer, such as all-MiniLM-L6-v2.
///
/// Texts beyond the model's longest input are cut there. An embedding depends on its text alone, to the last bit: not on
/// what else is in the batch, nor on the number of threads.
pub struct SentenceEncoder {
    config: EncoderConfig,
    weights: BertWeights,
    pool: ComputePool,
    workspace: Mutex<Option<EncoderWorkspace>>,
    tokenizer: Tokenizer,
    outputs: Vec<Output>,
    fingerprint: String,
}

impl std::fmt::Debug for SentenceEncoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SentenceEncoder").field("fingerprint", &self.fingerprint).finish_non_exhaustive()
    }
}

/// Checks an encoder's config, tokenizer and tensor table, without reading its weights.
pub(crate) fn check(source: &dyn WeightSource) -> Result<EncoderConfig> {
    let config = EncoderConfig::read(source.header())?;
    read_tokenizer(source, &config)?;
    weights::check(source, &config)?;
    Ok(config)
}

impl SentenceEncoder {
    /// Reads config, tokenizer and weights. Blocks until all tensors have arrived.
    ///
    /// # Errors
    /// [`Unsupported`](ErrorKind::Unsupported) for an architecture or option beyond BERT's,
    /// [`Corrupt`](ErrorKind::Corrupt) when config, tokenizer and tensors contradict each other, each naming the
    /// field or tensor; what the source answers.
    pub fn load(source: &dyn WeightSource, options: EncoderOptions) -> Result<Self> {
        let config = EncoderConfig::read(source.header())?;
        let tokenizer = read_tokenizer(source, &config)?;
        let EncoderOptions { mut outputs, precision, pool } = options;
        let pool = pool.map_or_else(ComputePool::shared, Ok)?;
        if outputs.is_empty() {
            outputs.push(Output { layer: config.layers, pooling: Pooling::Mean });
        }
        if let Some(output) = outputs.iter().find(|output| output.layer > config.layers) {
            let message = format!("layer {} of an encoder of {}", output.layer, config.layers);
            return Err(Error::invalid(message).about("encoder outputs"));
        }
        let deepest = outputs.iter().map(|output| output.layer).max().unwrap_or(0);
        let (weights, digest) = BertWeights::read(source, &config, &pool, precision, deepest)?;
        let fingerprint = fingerprint(digest, precision, &outputs);
        Ok(Self { config, weights, pool, workspace: Mutex::new(None), tokenizer, outputs, fingerprint })
    }

    /// [`load`](Self::load) with the [outputs routers classify by](EncoderOptions::for_routing), `depth` layers deep or all.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn for_routing(
        source: &dyn WeightSource,
        precision: Precision,
        depth: Option<usize>,
    ) -> Result<Self> {
        let layers = EncoderConfig::read(source.header())?.layers;
        Self::load(source, EncoderOptions::for_routing(depth.unwrap_or(layers)).precision(precision))
    }

    /// The token ids of a text as the encoder sees it, special tokens included.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn tokenize(&self, text: &str) -> Result<Vec<u32>> {
        let end = text.floor_char_boundary(MAX_TEXT_BYTES);
        let encoding = self
            .tokenizer
            .encode(&text[..end], true)
            .map_err(|error| Error::new(ErrorKind::Internal, error.to_string()).about("encoder tokenizer"))?;
        Ok(encoding.get_ids().to_vec())
    }

    fn room_for(&self, tokens: usize) -> Result<EncoderWorkspace> {
        let EncoderConfig { hidden, ffn, heads, norm_eps, .. } = self.config;
        let shape = EncoderShape { hidden, ffn, heads, norm_eps, activation: Activation::GeluErf };
        EncoderWorkspace::new(self.pool.clone(), Isa::active()?, shape, tokens)
    }

    fn pass(&self, texts: &[Vec<u32>]) -> Result<Vec<Vec<f32>>> {
        let hidden = self.config.hidden;
        let mut vectors = vec![vec![0.0; self.dimension()]; texts.len()];
        let vectors_of = Mutex::new(&mut vectors);
        let pool = |layer: usize, states: &[f32], spans: &[Range<usize>]| {
            let mut vectors = vectors_of.lock().unwrap_or_else(PoisonError::into_inner);
            for (part, output) in self.outputs.iter().enumerate().filter(|(_, output)| output.layer == layer)
            {
                for (vector, span) in vectors.iter_mut().zip(spans) {
                    let out = &mut vector[part * hidden..][..hidden];
                    pool_into(out, &states[span.start * hidden..span.end * hidden], output.pooling);
                    normalise(out);
                }
            }
        };
        let mut workspace = self.workspace.lock().unwrap_or_else(PoisonError::into_inner);
        let tokens = texts.iter().map(Vec::len).sum();
        let workspace = match &mut *workspace {
            Some(workspace) if workspace.rows() >= tokens => workspace,
            other => other.insert(self.room_for(tokens.max(TOKENS_PER_PASS))?),
        };
        forward::run(&self.config, &self.weights, workspace, texts, pool)?;
        vectors.iter_mut().for_each(|vector| normalise(vector));
        Ok(vectors)
    }
}

impl Embedder for SentenceEncoder {
    fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>> {
        let mut vectors = Vec::with_capacity(texts.len());
        let mut batch: Vec<Vec<u32>> = Vec::new();
        let mut tokens = 0;
        for text in texts {
            let ids = self.tokenize(text)?;
            if tokens > 0 && tokens + ids.len() > TOKENS_PER_PASS {
                vectors.append(&mut self.pass(&batch)?);
                batch.clear();
                tokens = 0;
            }
            tokens += ids.len();
            batch.push(ids);
        }
        if !batch.is_empty() {
            vectors.append(&mut self.pass(&batch)?);
        }
        Ok(vectors)
    }

    fn dimension(&self) -> usize {
        self.outputs.len() * self.config.hidden
    }

    fn fingerprint(&self) -> String {
        self.fingerprint.clone()
    }
}

fn read_tokenizer(source: &dyn WeightSource, config: &EncoderConfig) -> Result<Tokenizer> {
    let corrupt = |message: String| Error::corrupt(message).about("tokenizer.json");
    let bytes = source
        .header()
        .side_files
        .get("tokenizer.json")
        .ok_or_else(|| Error::corrupt("the model has no tokenizer.json, which an encoder needs"))?;
    let mut tokenizer = Tokenizer::from_bytes(bytes).map_err(|error| corrupt(error.to_string()))?;
    tokenizer.with_padding(None);
    let truncation = TruncationParams { max_length: config.context_length, ..TruncationParams::default() };
    tokenizer.with_truncation(Some(truncation)).map_err(|error| corrupt(error.to_string()))?;
    let most = tokenizer.get_vocab(true).into_values().max();
    if let Some(id) = most.filter(|&id| id as usize >= config.vocab_size) {
        return Err(corrupt(format!("token {id} lies outside vocab_size {}", config.vocab_size)));
    }
    let probe = tokenizer.encode("", true).map_err(|error| corrupt(error.to_string()))?;
    if probe.get_ids().is_empty() {
        return Err(corrupt("adds no special tokens, so an empty text would have no vector".to_owned()));
    }
    Ok(tokenizer)
}

fn fingerprint(digest: orion_core::Digest, precision: Precision, outputs: &[Output]) -> String {
    let outputs: Vec<String> =
        outputs.iter().map(|output| format!("{}{}", output.pooling.name(), output.layer)).collect();
    format!("bert-{}-{}-{}", &digest.to_string()[..16], precision.name(), outputs.join("+"))
}

fn pool_into(out: &mut [f32], states: &[f32], pooling: Pooling) {
    let rows = states.chunks_exact(out.len());
    match pooling {
        Pooling::First => out.copy_from_slice(&states[..out.len()]),
        Pooling::Mean => {
            for row in rows {
                out.iter_mut().zip(row).for_each(|(a, b)| *a += b);
            }
        }
        Pooling::Max => {
            out.fill(f32::NEG_INFINITY);
            for row in rows {
                out.iter_mut().zip(row).for_each(|(a, b)| *a = a.max(*b));
            }
        }
    }
}

/// Scales to length 1; the zero vector stays what it is.
fn normalise(vector: &mut [f32]) {
    let length = vector.iter().map(|value| value * value).sum::<f32>().sqrt();
    if length > 0.0 {
        vector.iter_mut().for_each(|value| *value /= length);
    }
}
