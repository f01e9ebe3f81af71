//! The CPU executor: our kernels, one parallel region for a decoding step.

use std::sync::Arc;
use std::time::Duration;

use orion_core::{Error, ErrorKind, Result, TensorType, TileLayout, WeightSource};
use orion_kernels::{
    Arena, Block, ComputePool, DecoderShape, Embedding, Head, Isa, KvStore, KvType, PackedMatrix, Packer,
    Projection, Rope, Stages, Workspace, dequantize,
};

use crate::config::{Activation, DecoderConfig, RopePairing};
use crate::executor::{Chunk, Executor};
use crate::load::{self, EmbeddingFirst, Weights};
use crate::rope::RopeTable;
use crate::row_lookup::RowLookup;
use crate::slot::Arrivals;
use crate::weights::{MatrixRef, WeightTable};

/// Rows up to which a step runs all blocks in one region, without a look at `stop` between them: about as long as one
/// decoding step.
const SHORT_ROWS: usize = 16;

/// The first answer goes before moving to huge pages what could not have them at once, and answers go on between one and the next.
const SETTLE_AFTER: Duration = Duration::from_millis(500);
const SETTLE_PAUSE: Duration = Duration::from_millis(10);

/// Why the kernels cannot run a model, if they cannot.
pub(crate) fn unsupported(config: &DecoderConfig) -> Option<String> {
    (!config.head_dim.is_multiple_of(16))
        .then(|| format!("head size {} is no multiple of 16", config.head_dim))
}

pub(crate) struct Cpu {
    config: Arc<DecoderConfig>,
    weights: Arc<Weights<Projection, Vec<f32>>>,
    workspace: Workspace,
    kv: KvStore,
    embedding: Option<Embedding>,
    /// Looks single rows up while the embedding is not there.
    rows: Option<RowLookup>,
    /// The blocks that have arrived, in order.
    blocks: Vec<Block>,
    head: Option<Head>,
}

impl Cpu {
    /// Starts loading and returns at once. `rows` is the most that one step may have, `kv` what keys and values are kept as.
    pub(crate) fn new(
        config: Arc<DecoderConfig>,
        table: WeightTable,
        source: Arc<dyn WeightSource>,
        arrivals: Arc<Arrivals>,
        pool: ComputePool,
        (rows, kv): (usize, KvType),
    ) -> Result<Self> {
        let isa = Isa::active()?;
        let shape = shape(&config, kv);
        let kv = KvStore::new(&shape)?;
        let workspace = Workspace::new(pool.clone(), isa, shape, ropes(&config), rows)?;
        let weights = Arc::new(Weights::new(config.layers.len(), arrivals));
        let rows = RowLookup::new(&table.embedding, &source, &pool, config.embedding_scale);
        let first = if rows.is_some() { EmbeddingFirst::No } else { EmbeddingFirst::Yes };
        // Now, not when the load begins: rows that are asked for before would wait for a whole file.
        source.expect(&table.order(first == EmbeddingFirst::Yes));
        load::spawn(&weights, move |weights| {
            let arena = Arena::default();
            let vector = |reference: &_| load::vector_f32(&*source, reference);
            let matrix = |reference: &_| {
                let matrix = pack(&pool, &arena, &*source, reference)?;
                Ok(Projection { matrix, bias: reference.bias.as_ref().map(vector).transpose()? })
            };
            weights.load(&table, (&*source, first), matrix, vector)?;
            drop(source);
            weights.arrivals.rest(SETTLE_AFTER);
            arena.settle(|| weights.arrivals.rest(SETTLE_PAUSE));
            Ok(())
        })?;
        let blocks = Vec::with_capacity(config.layers.len());
        Ok(Self { config, weights, workspace, kv, embedding: None, rows, blocks, head: None })
    }

    /// Takes over the embedding, or of what is not there yet the rows of these tokens.
    fn await_embedding(&mut self, chunks: &[Chunk<'_>], stop: &dyn Fn() -> bool) -> Result<()> {
        if self.embedding.as_ref().is_some_and(|embedding| embedding.tokens.is_none()) {
            return Ok(());
        }
        let weights = &self.weights;
        if weights.embedding.get().is_none()
            && let Some(lookup) = &self.rows
        {
            let tokens = chunks.iter().flat_map(|chunk| chunk.tokens).map(|token| token.0);
            if let Some(found) = lookup.wait(tokens, weights, stop)? {
                self.embedding = Some(found);
                return Ok(());
            }
        }
        let table = weights.arrivals.wait(&weights.embedding, stop)?.matrix.clone();
        self.embedding = Some(Embedding { table, tokens: None, scale: self.config.embedding_scale });
        // Lets go of the source.
        self.rows = None;
        Ok(())
    }

    /// Takes over blocks up to and with this one.
    fn await_block(&mut self, index: usize, stop: &dyn Fn() -> bool) -> Result<()> {
        while self.blocks.len() <= index {
            let layer = self.weights.arrivals.wait(&self.weights.layers[self.blocks.len()], stop)?;
            let options = self.config.layers[self.blocks.len()];
            self.blocks.push(Block {
                attn_norm: layer.attn_norm.clone(),
                q: layer.q.clone(),
                k: layer.k.clone(),
                v: layer.v.clone(),
                q_norm: layer.q_norm.clone(),
                k_norm: layer.k_norm.clone(),
                o: layer.o.clone(),
                post_attn_norm: layer.post_attn_norm.clone(),
                ffn_norm: layer.ffn_norm.clone(),
                gate: layer.gate.clone(),
                up: layer.up.clone(),
                down: layer.down.clone(),
                post_ffn_norm: layer.post_ffn_norm.clone(),
                window: options.window,
                local_rope: options.local_rope,
            });
        }
        Ok(())
    }

    fn await_head(&mut self, stop: &dyn Fn() -> bool) -> Result<()> {
        if self.head.is_none() {
            let weights = &self.weights;
            let norm = weights.arrivals.wait(&weights.output_norm, stop)?.clone();
            let source = if self.config.tied { &weights.embedding } else { &weights.head };
            let matrix = weights.arrivals.wait(source, stop)?.matrix.clone();
            self.head = Some(Head { norm, matrix, soft_cap: self.config.logit_soft_cap });
        }
        Ok(())
    }

    /// Runs blocks `first..end`, with the embedding before the first block of all and the head after the last.
    fn stages(&mut self, first: usize, end: usize, logits: &mut [f32]) -> Result<()> {
        let last = end == self.config.layers.len() && !logits.is_empty();
        let stages = Stages {
            embedding: self.embedding.as_ref().filter(|_| first == 0),
            first,
            blocks: &self.blocks[first..end],
            head: self.head.as_ref().filter(|_| last),
        };
        self.workspace.run(&mut self.kv, stages, if last { logits } else { &mut [] })
    }
}

impl Executor for Cpu {
    fn reserve_pages(&mut self, count: usize) -> Result<()> {
        self.kv.reserve(count);
        Ok(())
    }

    fn page_bytes(&self) -> usize {
        self.kv.page_bytes()
    }

    fn read_page(&self, page: u32) -> Vec<u8> {
        let values = self.kv.page(page).unwrap_or_default();
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    fn write_page(&mut self, page: u32, content: &[u8]) {
        if let Some(values) = self.kv.page_mut(page) {
            for (value, bytes) in values.iter_mut().zip(content.chunks_exact(2)) {
                *value = u16::from_le_bytes([bytes[0], bytes[1]]);
            }
        }
    }

    fn forward(
        &mut self,
        chunks: &[Chunk<'_>],
        stop: &dyn Fn() -> bool,
        logits: &mut Vec<f32>,
    ) -> Result<()> {
        self.workspace.begin();
        let mut rows = 0;
        for chunk in chunks {
            let tokens = chunk.tokens.iter().map(|token| token.0);
            let ropes = [usize::from(chunk.long), LOCAL_ROPE];
            self.workspace.push(tokens, chunk.start, chunk.pages, ropes, chunk.wanted_rows())?;
            rows += chunk.tokens.len();
        }
        let layers = self.config.layers.len();
        let before = logits.len();
        logits.resize(before + self.workspace.wanted_rows() * self.config.vocab_size, 0.0);
        let out = &mut logits[before..];
        self.await_embedding(chunks, stop)?;
        if rows <= SHORT_ROWS && self.blocks.len() == layers && self.head.is_some() {
            if stop() {
                return Err(Error::new(ErrorKind::Cancelled, "cancelled"));
            }
            return self.stages(0, layers, out);
        }
        for index in 0..layers {
            if stop() {
                return Err(Error::new(ErrorKind::Cancelled, "cancelled"));
            }
            self.await_block(index, stop)?;
            if index + 1 == layers && !out.is_empty() {
                self.await_head(stop)?;
            }
            self.stages(index, index + 1, out)?;
            self.weights.arrivals.reach(index + 1);
        }
        Ok(())
    }
}

impl Drop for Cpu {
    fn drop(&mut self) {
        self.weights.arrivals.abandon();
    }
}

/// Consecutive rows of a stored matrix, packed; tiles that are stored are used as they are. Types without kernels of
/// their own become halves.
fn pack(
    pool: &ComputePool,
    arena: &Arena,
    source: &dyn WeightSource,
    reference: &MatrixRef,
) -> Result<PackedMatrix> {
    let info = &source.header().tensors[reference.tensor];
    let about = |error: Error| error.about(format!("tensor {}", info.name));
    if PackedMatrix::supports(info.ty) {
        if info.layout != TileLayout::RowMajor {
            let bytes = source.tensor(reference.tensor).map_err(about)?;
            let rows = reference.first_row..reference.first_row + reference.rows;
            return PackedMatrix::from_tensor(pool, info, &bytes, rows).map_err(about);
        }
        if info.ty.bytes_of((reference.rows * reference.cols) as u64) == Some(info.bytes) {
            let mut packer = Packer::new_in(arena, info.ty, reference.rows, reference.cols).map_err(about)?;
            if !fill(&mut packer, pool, source, reference.tensor, &about)? {
                source.read(reference.tensor, packer.piece(), &mut |bytes| {
                    packer.push(pool, bytes).map_err(about)
                })?;
            }
            return packer.finish().map_err(about);
        }
    }
    let (ty, bytes, range) = load::row_bytes(source, reference)?;
    let packed = |ty, bytes: &[u8]| {
        let mut packer = Packer::new_in(arena, ty, reference.rows, reference.cols)?;
        packer.push(pool, bytes)?;
        packer.finish()
    };
    if PackedMatrix::supports(ty) {
        return packed(ty, &bytes[range]).map_err(about);
    }
    packed(TensorType::F16, &halves(ty, reference.rows * reference.cols, &bytes[range])?).map_err(about)
}

/// Packs what is in memory by the threads that read it, and waits for what is not; the pool is free meanwhile. `false` if the
/// source has to be read from first to last.
fn fill(
    packer: &mut Packer,
    pool: &ComputePool,
    source: &dyn WeightSource,
    tensor: usize,
    about: &dyn Fn(Error) -> Error,
) -> Result<bool> {
    let mut part = Vec::new();
    loop {
        let now = |at, out: &mut [u8]| matches!(source.read_at(tensor, at, out, false), Ok(true));
        packer.fill(pool, &now).map_err(about)?;
        let rest = packer.rest();
        if rest.is_empty() {
            return Ok(true);
        }
        part.resize(packer.part(pool).min(rest.len()), 0);
        if !source.read_at(tensor, rest.start as u64, &mut part, true)? {
            return Ok(false);
        }
        packer.push(pool, &part).map_err(about)?;
    }
}

/// Rows of any type, packed where the system finds room.
pub(crate) fn pack_bytes(
    pool: &ComputePool,
    ty: TensorType,
    [rows, cols]: [usize; 2],
    bytes: &[u8],
) -> Result<PackedMatrix> {
    if PackedMatrix::supports(ty) {
        return PackedMatrix::pack(pool, ty, rows, cols, bytes);
    }
    PackedMatrix::pack(pool, TensorType::F16, rows, cols, &halves(ty, rows * cols, bytes)?)
}

fn halves(ty: TensorType, count: usize, bytes: &[u8]) -> Result<Vec<u8>> {
    let mut values = vec![0.0; count];
    dequantize(ty, bytes, &mut values)?;
    Ok(values.iter().flat_map(|&value| half::f16::from_f32(value).to_le_bytes()).collect())
}

fn shape(config: &DecoderConfig, kv: KvType) -> DecoderShape {
    DecoderShape {
        hidden: config.hidden,
        ffn: config.ffn,
        heads: config.heads,
        kv_heads: config.kv_heads,
        head_dim: config.head_dim,
        layers: config.layers.len(),
        vocab: config.vocab_size,
        norm_eps: config.norm_eps,
        attention_scale: config.attention_scale,
        attention_soft_cap: config.attention_soft_cap,
        activation: match config.activation {
            Activation::Silu => orion_kernels::Activation::Silu,
            Activation::GeluTanh => orion_kernels::Activation::GeluTanh,
            Activation::GeluErf => orion_kernels::Activation::GeluErf,
        },
        rope_interleaved: config.rope_pairing == RopePairing::Interleaved,
        kv,
    }
}

/// Index of the local rotary embedding; 0 and 1 are the global one within and beyond the original context.
const LOCAL_ROPE: usize = 2;

fn ropes(config: &DecoderConfig) -> Vec<Rope> {
    let local = config.local_rope.as_ref().unwrap_or(&config.rope);
    [(&config.rope, false), (&config.rope, true), (local, false)]
        .into_iter()
        .map(|(rope, long)| {
            let table = RopeTable::new(rope, long);
            Rope { frequencies: table.frequencies, magnitude: table.magnitude }
        })
        .collect()
}
