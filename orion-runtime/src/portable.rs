//! The portable executor: candle tensors in 32-bit floats, readable before fast. It is the oracle of the CPU executor.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use candle_nn::ops::{rms_norm, softmax_last_dim};
use candle_nn::rotary_emb::{rope, rope_i};
use orion_core::{Error, ErrorKind, Result, WeightSource};

use crate::config::{Activation, DecoderConfig, LayerOptions, RopePairing};
use crate::executor::{Chunk, Executor, Rows};
use crate::kv::PAGE_TOKENS;
use crate::load::{self, EmbeddingFirst, Weights};
use crate::observe::InputObserver;
use crate::rope::RopeTable;
use crate::slot::Arrivals;
use crate::weights::{Layer, MatrixRef, WeightTable};

/// A projection. `weight: [rows, cols]`, `bias: [rows]`
#[derive(Debug)]
struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
    watch: Option<Watch>,
}

/// Who sees the inputs of a projection, and under which name.
#[derive(Debug)]
struct Watch {
    tensor: String,
    observer: Arc<dyn InputObserver>,
}

impl Watch {
    /// `x: [n, cols]`
    fn see(&self, x: &Tensor) -> candle_core::Result<()> {
        self.observer.inputs(&self.tensor, x.dim(1)?, &x.flatten_all()?.to_vec1::<f32>()?);
        Ok(())
    }
}

impl Linear {
    /// `[n, cols] -> [n, rows]`
    fn apply(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        self.watch.as_ref().map_or(Ok(()), |watch| watch.see(x))?;
        let y = x.matmul(&self.weight.t()?)?;
        match &self.bias {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }
}

type PortableWeights = Weights<Linear, Tensor>;

/// Keys and values of one page of one layer, each `[PAGE_TOKENS, kv_width]`.
#[derive(Debug)]
struct Page {
    k: Tensor,
    v: Tensor,
}

pub(crate) struct Portable {
    config: Arc<DecoderConfig>,
    weights: Arc<PortableWeights>,
    /// Global rope within and beyond the original context, local rope.
    ropes: [RopeTable; 3],
    /// `[layer][page]`
    pages: Vec<Vec<Page>>,
    device: Device,
}

fn internal(error: candle_core::Error) -> Error {
    Error::new(ErrorKind::Internal, format!("portable executor: {error}")).with_source(error)
}

impl Portable {
    /// Starts loading and returns at once.
    pub(crate) fn new(
        config: Arc<DecoderConfig>,
        table: WeightTable,
        source: Arc<dyn WeightSource>,
        arrivals: Arc<Arrivals>,
        observer: Option<Arc<dyn InputObserver>>,
    ) -> Result<Self> {
        let device = Device::Cpu;
        let weights = Arc::new(PortableWeights::new(config.layers.len(), arrivals));
        let target = device.clone();
        source.expect(&table.order(true));
        load::spawn(&weights, move |weights| {
            let vector = |reference: &_| {
                let data = load::vector_f32(&*source, reference)?;
                Tensor::from_vec(data, reference.len, &target).map_err(internal)
            };
            let matrix = |reference: &MatrixRef| {
                let data = load::matrix_f32(&*source, reference)?;
                let weight =
                    Tensor::from_vec(data, (reference.rows, reference.cols), &target).map_err(internal)?;
                // The parts of a fused projection have one input.
                let watch = observer.clone().filter(|_| reference.first_row == 0).map(|observer| Watch {
                    tensor: source.header().tensors[reference.tensor].name.clone(),
                    observer,
                });
                Ok(Linear { weight, bias: reference.bias.as_ref().map(vector).transpose()?, watch })
            };
            weights.load(&table, (&*source, EmbeddingFirst::Yes), matrix, vector)
        })?;
        let local = config.local_rope.as_ref().unwrap_or(&config.rope);
        let ropes = [
            RopeTable::new(&config.rope, false),
            RopeTable::new(&config.rope, true),
            RopeTable::new(local, false),
        ];
        let pages = config.layers.iter().map(|_| Vec::new()).collect();
        Ok(Self { config, weights, ropes, pages, device })
    }

    /// Cosines and sines for the positions of a chunk, each `[n, dim / 2]`.
    fn angles(&self, table: &RopeTable, chunk: &Chunk<'_>) -> candle_core::Result<(Tensor, Tensor)> {
        let (n, half) = (chunk.tokens.len(), table.frequencies.len());
        let (mut cos, mut sin) = (vec![0.0; n * half], vec![0.0; n * half]);
        for (row, (cos, sin)) in cos.chunks_exact_mut(half).zip(sin.chunks_exact_mut(half)).enumerate() {
            table.angles(chunk.start + row, cos, sin);
        }
        Ok((Tensor::from_vec(cos, (n, half), &self.device)?, Tensor::from_vec(sin, (n, half), &self.device)?))
    }

    /// Rotates the first elements of each head. `x: [n, heads, head_dim] -> [heads, n, head_dim]`
    fn rotate(&self, x: &Tensor, (cos, sin): &(Tensor, Tensor)) -> candle_core::Result<Tensor> {
        let x = x.transpose(0, 1)?.contiguous()?.unsqueeze(0)?;
        let (dim, head_dim) = (2 * cos.dim(1)?, self.config.head_dim);
        let turned = x.narrow(3, 0, dim)?.contiguous()?;
        let turned = match self.config.rope_pairing {
            RopePairing::Halves => rope(&turned, cos, sin)?,
            RopePairing::Interleaved => rope_i(&turned, cos, sin)?,
        };
        let all = match dim == head_dim {
            true => turned,
            false => Tensor::cat(&[turned, x.narrow(3, dim, head_dim - dim)?], 3)?,
        };
        all.squeeze(0)
    }

    /// Norm over the last dimension of `[n, heads, head_dim]`, if there is one.
    fn head_norm(&self, x: Tensor, weight: Option<&Tensor>) -> candle_core::Result<Tensor> {
        match weight {
            Some(weight) => rms_norm(&x.contiguous()?, weight, self.config.norm_eps),
            None => Ok(x),
        }
    }

    fn attention(
        &self,
        index: usize,
        layer: &Layer<Linear, Tensor>,
        x: &Tensor,
        chunk: &Chunk<'_>,
    ) -> candle_core::Result<Tensor> {
        let config = &*self.config;
        let options = config.layers[index];
        let (n, head_dim) = (chunk.tokens.len(), config.head_dim);
        let table = if options.local_rope { 2 } else { usize::from(chunk.long) };
        let angles = self.angles(&self.ropes[table], chunk)?;
        let q =
            self.head_norm(layer.q.apply(x)?.reshape((n, config.heads, head_dim))?, layer.q_norm.as_ref())?;
        let k = self
            .head_norm(layer.k.apply(x)?.reshape((n, config.kv_heads, head_dim))?, layer.k_norm.as_ref())?;
        let v = layer.v.apply(x)?;
        let q = self.rotate(&q, &angles)?;
        let k = self.rotate(&k, &angles)?.transpose(0, 1)?.contiguous()?.reshape((n, config.kv_width()))?;
        self.store(index, chunk, &k, &v)?;
        let (k, v) = self.gather(index, chunk, chunk.start + n)?;
        let mut scores = (q.matmul(&k.transpose(1, 2)?)? * f64::from(config.attention_scale))?;
        if let Some(cap) = config.attention_soft_cap {
            scores = ((scores / f64::from(cap))?.tanh()? * f64::from(cap))?;
        }
        let scores = scores.broadcast_add(&self.mask(options, chunk)?)?;
        let mixed = softmax_last_dim(&scores)?.matmul(&v)?; // [heads, n, head_dim]
        layer.o.apply(&mixed.transpose(0, 1)?.contiguous()?.reshape((n, config.q_width()))?)
    }

    /// Writes the keys and values of a chunk, each `[n, kv_width]`, into its pages.
    fn store(&self, layer: usize, chunk: &Chunk<'_>, k: &Tensor, v: &Tensor) -> candle_core::Result<()> {
        let mut row = 0;
        while row < chunk.tokens.len() {
            let position = chunk.start + row;
            let slot = position % PAGE_TOKENS;
            let count = (PAGE_TOKENS - slot).min(chunk.tokens.len() - row);
            let page = &self.pages[layer][chunk.pages[position / PAGE_TOKENS] as usize];
            page.k.slice_set(&k.narrow(0, row, count)?.contiguous()?, 0, slot)?;
            page.v.slice_set(&v.narrow(0, row, count)?.contiguous()?, 0, slot)?;
            row += count;
        }
        Ok(())
    }

    /// The keys and values of the first `total` positions, repeated for each query head. `[heads, total, head_dim]`
    fn gather(&self, layer: usize, chunk: &Chunk<'_>, total: usize) -> candle_core::Result<(Tensor, Tensor)> {
        let config = &*self.config;
        let pages = &chunk.pages[..total.div_ceil(PAGE_TOKENS)];
        let group = config.heads / config.kv_heads;
        let spread = |part: fn(&Page) -> &Tensor| -> candle_core::Result<Tensor> {
            let all: Vec<&Tensor> =
                pages.iter().map(|&page| part(&self.pages[layer][page as usize])).collect();
            let all = Tensor::cat(&all, 0)?.narrow(0, 0, total)?;
            let heads = all.reshape((total, config.kv_heads, 1, config.head_dim))?;
            let heads = heads.broadcast_as((total, config.kv_heads, group, config.head_dim))?;
            heads.reshape((total, config.heads, config.head_dim))?.transpose(0, 1)?.contiguous()
        };
        Ok((spread(|page| &page.k)?, spread(|page| &page.v)?))
    }

    /// Zero where a query sees a key, negative infinity elsewhere. `[n, total]`
    fn mask(&self, options: LayerOptions, chunk: &Chunk<'_>) -> candle_core::Result<Tensor> {
        let (n, total) = (chunk.tokens.len(), chunk.start + chunk.tokens.len());
        let mut mask = vec![0f32; n * total];
        for (row, line) in mask.chunks_exact_mut(total).enumerate() {
            let query = chunk.start + row;
            for (key, value) in line.iter_mut().enumerate() {
                let seen = key <= query && options.window.is_none_or(|window| query - key < window);
                *value = if seen { 0.0 } else { f32::NEG_INFINITY };
            }
        }
        Tensor::from_vec(mask, (n, total), &self.device)
    }

    fn feed_forward(&self, layer: &Layer<Linear, Tensor>, x: &Tensor) -> candle_core::Result<Tensor> {
        let gate = layer.gate.apply(x)?;
        let gate = match self.config.activation {
            Activation::Silu => candle_nn::ops::silu(&gate)?,
            Activation::GeluTanh => gate.gelu()?,
            Activation::GeluErf => gate.gelu_erf()?,
        };
        layer.down.apply(&(gate * layer.up.apply(x)?)?)
    }

    fn layer(
        &self,
        index: usize,
        layer: &Layer<Linear, Tensor>,
        x: &Tensor,
        chunk: &Chunk<'_>,
    ) -> candle_core::Result<Tensor> {
        let eps = self.config.norm_eps;
        let post = |x: Tensor, weight: Option<&Tensor>| match weight {
            Some(weight) => rms_norm(&x, weight, eps),
            None => Ok(x),
        };
        let mixed = self.attention(index, layer, &rms_norm(x, &layer.attn_norm, eps)?, chunk)?;
        let x = (x + post(mixed, layer.post_attn_norm.as_ref())?)?;
        let fed = self.feed_forward(layer, &rms_norm(&x, &layer.ffn_norm, eps)?)?;
        x + post(fed, layer.post_ffn_norm.as_ref())?
    }

    fn run(&self, chunk: &Chunk<'_>, stop: &dyn Fn() -> bool, logits: &mut Vec<f32>) -> Result<()> {
        let arrivals = &self.weights.arrivals;
        let embedding = arrivals.wait(&self.weights.embedding, stop)?;
        let ids: Vec<u32> = chunk.tokens.iter().map(|token| token.0).collect();
        let embed = || {
            let ids = Tensor::from_vec(ids, chunk.tokens.len(), &self.device)?;
            embedding.weight.index_select(&ids, 0)? * f64::from(self.config.embedding_scale)
        };
        let mut x = embed().map_err(internal)?;
        for (index, slot) in self.weights.layers.iter().enumerate() {
            if stop() {
                return Err(Error::new(ErrorKind::Cancelled, "cancelled"));
            }
            let layer = arrivals.wait(slot, stop)?;
            x = self.layer(index, layer, &x, chunk).map_err(internal)?;
            arrivals.reach(index + 1);
        }
        if chunk.rows == Rows::None {
            return Ok(());
        }
        let norm = arrivals.wait(&self.weights.output_norm, stop)?;
        let head = match self.config.tied {
            true => embedding,
            false => arrivals.wait(&self.weights.head, stop)?,
        };
        let project = || {
            let n = chunk.tokens.len();
            let x = x.narrow(0, n - chunk.wanted_rows(), chunk.wanted_rows())?.contiguous()?;
            let mut y = head.apply(&rms_norm(&x, norm, self.config.norm_eps)?)?;
            if let Some(cap) = self.config.logit_soft_cap {
                y = ((y / f64::from(cap))?.tanh()? * f64::from(cap))?;
            }
            y.flatten_all()?.to_vec1::<f32>()
        };
        logits.extend(project().map_err(internal)?);
        Ok(())
    }
}

impl Executor for Portable {
    fn reserve_pages(&mut self, count: usize) -> Result<()> {
        let shape = (PAGE_TOKENS, self.config.kv_width());
        for pages in &mut self.pages {
            while pages.len() < count {
                let zeros = || Tensor::zeros(shape, DType::F32, &self.device).map_err(internal);
                pages.push(Page { k: zeros()?, v: zeros()? });
            }
        }
        Ok(())
    }

    fn forward(
        &mut self,
        chunks: &[Chunk<'_>],
        stop: &dyn Fn() -> bool,
        logits: &mut Vec<f32>,
    ) -> Result<()> {
        chunks.iter().try_for_each(|chunk| self.run(chunk, stop, logits))
    }
}

impl Drop for Portable {
    fn drop(&mut self) {
        self.weights.arrivals.abandon();
    }
}
