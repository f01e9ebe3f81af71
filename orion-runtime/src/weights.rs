//! Which tensor plays which part, checked against the configuration before a byte of it is read.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};

use orion_core::{Error, ErrorKind, ModelFormat, ModelHeader, Result};

use crate::config::{DecoderConfig, RopeScaling};

/// Consecutive rows of a stored matrix, `[rows, cols]`, and their bias. Fused projections become several of these.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct MatrixRef {
    pub(crate) tensor: usize,
    pub(crate) first_row: usize,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) bias: Option<VectorRef>,
}

/// Consecutive elements of a stored vector.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct VectorRef {
    pub(crate) tensor: usize,
    pub(crate) first: usize,
    pub(crate) len: usize,
    /// Added to each element (Gemma's norms in safetensors are stored less one).
    pub(crate) offset: f32,
}

/// The weights of one layer, as references into the file or as an executor holds them.
#[derive(Debug)]
pub(crate) struct Layer<M, V> {
    pub(crate) attn_norm: V,
    pub(crate) q: M,
    pub(crate) k: M,
    pub(crate) v: M,
    pub(crate) q_norm: Option<V>,
    pub(crate) k_norm: Option<V>,
    pub(crate) o: M,
    pub(crate) post_attn_norm: Option<V>,
    pub(crate) ffn_norm: V,
    pub(crate) gate: M,
    pub(crate) up: M,
    pub(crate) down: M,
    pub(crate) post_ffn_norm: Option<V>,
}

impl Layer<MatrixRef, VectorRef> {
    /// Loads every weight of the layer, in the order the forward pass needs them.
    pub(crate) fn load<M, V>(
        &self,
        matrix: impl Fn(&MatrixRef) -> Result<M>,
        vector: impl Fn(&VectorRef) -> Result<V>,
    ) -> Result<Layer<M, V>> {
        let opt = |reference: &Option<VectorRef>| reference.as_ref().map(&vector).transpose();
        Ok(Layer {
            attn_norm: vector(&self.attn_norm)?,
            q: matrix(&self.q)?,
            k: matrix(&self.k)?,
            v: matrix(&self.v)?,
            q_norm: opt(&self.q_norm)?,
            k_norm: opt(&self.k_norm)?,
            o: matrix(&self.o)?,
            post_attn_norm: opt(&self.post_attn_norm)?,
            ffn_norm: vector(&self.ffn_norm)?,
            gate: matrix(&self.gate)?,
            up: matrix(&self.up)?,
            down: matrix(&self.down)?,
            post_ffn_norm: opt(&self.post_ffn_norm)?,
        })
    }

    /// Its tensors in the order of [`load`](Self::load), some twice.
    fn in_order(&self) -> Vec<usize> {
        let list = RefCell::new(Vec::new());
        let matrix = |reference: &MatrixRef| {
            list.borrow_mut().push(reference.tensor);
            list.borrow_mut().extend(reference.bias.as_ref().map(|bias| bias.tensor));
            Ok(())
        };
        let vector = |reference: &VectorRef| {
            list.borrow_mut().push(reference.tensor);
            Ok(())
        };
        // Neither can fail.
        let walked: Result<Layer<(), ()>> = self.load(matrix, vector);
        drop(walked);
        list.into_inner()
    }

    /// The tensors the layer is made of, each once.
    pub(crate) fn tensors(&self) -> Vec<usize> {
        let matrices = [&self.q, &self.k, &self.v, &self.o, &self.gate, &self.up, &self.down];
        let vectors = [Some(&self.attn_norm), self.q_norm.as_ref(), self.k_norm.as_ref()]
            .into_iter()
            .chain([self.post_attn_norm.as_ref(), Some(&self.ffn_norm), self.post_ffn_norm.as_ref()])
            .flatten();
        let biases = matrices.iter().filter_map(|matrix| matrix.bias.as_ref());
        let mut list: Vec<usize> =
            vectors.chain(biases).map(|v| v.tensor).chain(matrices.iter().map(|m| m.tensor)).collect();
        list.sort_unstable();
        list.dedup();
        list
    }
}

/// Every weight of a decoder, as references into its tensor table.
#[derive(Debug)]
pub(crate) struct WeightTable {
    pub(crate) embedding: MatrixRef,
    pub(crate) layers: Vec<Layer<MatrixRef, VectorRef>>,
    pub(crate) output_norm: VectorRef,
    /// `None`: the embedding.
    pub(crate) head: Option<MatrixRef>,
}

/// The names of one format.
struct Names {
    embedding: &'static str,
    output_norm: &'static str,
    head: &'static str,
    layer: &'static str,
    attn_norm: &'static str,
    qkv: [&'static str; 4],
    o: &'static str,
    q_norm: &'static str,
    k_norm: &'static str,
    post_attn_norm: &'static str,
    /// The norm before the feed-forward block, without and with post-norms.
    ffn_norm: [&'static str; 2],
    post_ffn_norm: &'static str,
    /// Gate, up, down, and gate and up in one.
    ffn: [&'static str; 4],
    ignored: &'static [&'static str],
}

const GGUF: Names = Names {
    embedding: "token_embd",
    output_norm: "output_norm",
    head: "output",
    layer: "blk.",
    attn_norm: "attn_norm",
    qkv: ["attn_q", "attn_k", "attn_v", "attn_qkv"],
    o: "attn_output",
    q_norm: "attn_q_norm",
    k_norm: "attn_k_norm",
    post_attn_norm: "post_attention_norm",
    ffn_norm: ["ffn_norm", "ffn_norm"],
    post_ffn_norm: "post_ffw_norm",
    ffn: ["ffn_gate", "ffn_up", "ffn_down", "ffn_up"],
    ignored: &["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"],
};

const SAFETENSORS: Names = Names {
    embedding: "model.embed_tokens",
    output_norm: "model.norm",
    head: "lm_head",
    layer: "model.layers.",
    attn_norm: "input_layernorm",
    qkv: ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.qkv_proj"],
    o: "self_attn.o_proj",
    q_norm: "self_attn.q_norm",
    k_norm: "self_attn.k_norm",
    post_attn_norm: "post_attention_layernorm",
    ffn_norm: ["post_attention_layernorm", "pre_feedforward_layernorm"],
    post_ffn_norm: "post_feedforward_layernorm",
    ffn: ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "mlp.gate_up_proj"],
    ignored: &["rotary_emb.inv_freq"],
};

/// Looks tensors up by name and remembers which were asked for.
struct Finder<'a> {
    header: &'a ModelHeader,
    by_name: HashMap<&'a str, usize>,
    used: HashSet<usize>,
    norm_offset: f32,
}

impl Finder<'_> {
    fn find(&mut self, name: &str, shape: &[usize]) -> Result<usize> {
        let index = *self
            .by_name
            .get(name)
            .ok_or_else(|| Error::corrupt("is missing").about(format!("tensor {name}")))?;
        let info = &self.header.tensors[index];
        if !info.shape.iter().eq(shape.iter().map(|&dim| dim as u64).collect::<Vec<_>>().iter()) {
            return Err(Error::corrupt(format!(
                "has shape {:?}, the configuration asks for {shape:?}",
                info.shape
            ))
            .about(format!("tensor {name}")));
        }
        if shape.len() == 1 && info.ty.is_quantised() {
            return Err(
                Error::unsupported(format!("type {} for a vector", info.ty)).about(format!("tensor {name}"))
            );
        }
        self.used.insert(index);
        Ok(index)
    }

    fn matrix(&mut self, name: &str, rows: usize, cols: usize, bias: bool) -> Result<MatrixRef> {
        let tensor = self.find(&format!("{name}.weight"), &[rows, cols])?;
        let bias = bias.then(|| self.plain_vector(&format!("{name}.bias"), rows)).transpose()?;
        Ok(MatrixRef { tensor, first_row: 0, rows, cols, bias })
    }

    fn plain_vector(&mut self, name: &str, len: usize) -> Result<VectorRef> {
        Ok(VectorRef { tensor: self.find(name, &[len])?, first: 0, len, offset: 0.0 })
    }

    fn norm(&mut self, name: &str, len: usize) -> Result<VectorRef> {
        Ok(VectorRef { offset: self.norm_offset, ..self.plain_vector(&format!("{name}.weight"), len)? })
    }
}

/// Rows `first..first + rows` of a fused projection.
fn slice(whole: &MatrixRef, first: usize, rows: usize) -> MatrixRef {
    let bias = whole.bias.as_ref().map(|bias| VectorRef { first, len: rows, ..bias.clone() });
    MatrixRef { first_row: first, rows, bias, ..whole.clone() }
}

impl WeightTable {
    /// The tensors in the order a forward pass needs them; the embedding, of which it needs few rows, first or last.
    pub(crate) fn order(&self, embedding_first: bool) -> Vec<usize> {
        let mut order: Vec<usize> = embedding_first.then_some(self.embedding.tensor).into_iter().collect();
        order.extend(self.layers.iter().flat_map(Layer::in_order));
        order.push(self.output_norm.tensor);
        order.extend(self.head.as_ref().map(|head| head.tensor));
        order.push(self.embedding.tensor);
        let mut seen = HashSet::new();
        order.retain(|tensor| seen.insert(*tensor));
        order
    }

    /// Number of parts a decoder is loaded in: embedding, layers, norm, head.
    pub(crate) fn parts(&self) -> usize {
        self.layers.len() + 2 + usize::from(self.head.is_some())
    }

    /// Finds every weight the configuration asks for and refuses any it does not know: a tensor that is passed over
    /// would change what the model says.
    pub(crate) fn new(header: &ModelHeader, config: &DecoderConfig) -> Result<Self> {
        let names = match header.format {
            ModelFormat::Gguf => &GGUF,
            _ => &SAFETENSORS,
        };
        let mut by_name = HashMap::with_capacity(header.tensors.len());
        by_name.extend(header.tensors.iter().enumerate().map(|(index, info)| (info.name.as_str(), index)));
        let norm_offset = if config.norm_offset { 1.0 } else { 0.0 };
        let mut finder = Finder { header, by_name, used: HashSet::new(), norm_offset };
        let (hidden, vocab) = (config.hidden, config.vocab_size);
        let embedding = finder.matrix(names.embedding, vocab, hidden, false)?;
        let layers = (0..config.layers.len())
            .map(|layer| layer_table(&mut finder, names, config, layer))
            .collect::<Result<Vec<_>>>()?;
        let output_norm = finder.norm(names.output_norm, hidden)?;
        let head = match config.tied {
            true => None,
            false => Some(finder.matrix(names.head, vocab, hidden, false)?),
        };
        let tied_copy = format!("{}.weight", names.head);
        for (index, info) in header.tensors.iter().enumerate() {
            let known = finder.used.contains(&index)
                || names.ignored.iter().any(|suffix| info.name.ends_with(suffix))
                || (config.tied && info.name == tied_copy);
            if !known {
                return Err(Error::unsupported("is not part of this architecture as configured")
                    .about(format!("tensor {}", info.name)));
            }
        }
        Ok(Self { embedding, layers, output_norm, head })
    }
}

fn layer_table(
    finder: &mut Finder<'_>,
    names: &Names,
    config: &DecoderConfig,
    layer: usize,
) -> Result<Layer<MatrixRef, VectorRef>> {
    let at = |part: &str| format!("{}{layer}.{part}", names.layer);
    let (hidden, ffn) = (config.hidden, config.ffn);
    let (q_width, kv_width) = (config.q_width(), config.kv_width());
    let attn_norm = finder.norm(&at(names.attn_norm), hidden)?;
    let [q, k, v, qkv] = names.qkv;
    let (q, k, v) = if config.fused {
        let whole = finder.matrix(&at(qkv), q_width + 2 * kv_width, hidden, config.qkv_bias)?;
        (
            slice(&whole, 0, q_width),
            slice(&whole, q_width, kv_width),
            slice(&whole, q_width + kv_width, kv_width),
        )
    } else {
        (
            finder.matrix(&at(q), q_width, hidden, config.qkv_bias)?,
            finder.matrix(&at(k), kv_width, hidden, config.qkv_bias)?,
            finder.matrix(&at(v), kv_width, hidden, config.qkv_bias)?,
        )
    };
    let mut optional = |on: bool, name: &str, len: usize| on.then(|| finder.norm(&at(name), len)).transpose();
    let q_norm = optional(config.qk_norm, names.q_norm, config.head_dim)?;
    let k_norm = optional(config.qk_norm, names.k_norm, config.head_dim)?;
    let post_attn_norm = optional(config.post_norms, names.post_attn_norm, hidden)?;
    let post_ffn_norm = optional(config.post_norms, names.post_ffn_norm, hidden)?;
    let o = finder.matrix(&at(names.o), hidden, q_width, config.output_bias)?;
    let ffn_norm = finder.norm(&at(names.ffn_norm[usize::from(config.post_norms)]), hidden)?;
    let [gate, up, down, gate_up] = names.ffn;
    let (gate, up) = if config.fused {
        let whole = finder.matrix(&at(gate_up), 2 * ffn, hidden, config.ffn_bias)?;
        (slice(&whole, 0, ffn), slice(&whole, ffn, ffn))
    } else {
        (
            finder.matrix(&at(gate), ffn, hidden, config.ffn_bias)?,
            finder.matrix(&at(up), ffn, hidden, config.ffn_bias)?,
        )
    };
    let down = finder.matrix(&at(down), hidden, ffn, config.ffn_bias)?;
    Ok(Layer {
        attn_norm,
        q,
        k,
        v,
        q_norm,
        k_norm,
        o,
        post_attn_norm,
        ffn_norm,
        gate,
        up,
        down,
        post_ffn_norm,
    })
}

/// Puts the rope factors that GGUF keeps in tensors into the configuration.
pub(crate) fn resolve_rope_factors(
    config: &mut DecoderConfig,
    header: &ModelHeader,
    read: impl Fn(&VectorRef) -> Result<Vec<f32>>,
) -> Result<()> {
    let half = config.rope.dim / 2;
    let factors = |name: &str| -> Result<Option<Vec<f32>>> {
        let Some(tensor) = header.position(name) else { return Ok(None) };
        let shape = &header.tensors[tensor].shape;
        if *shape != [half as u64] {
            return Err(Error::corrupt(format!("has shape {shape:?}, expected [{half}]")).about(name));
        }
        Ok(Some(read(&VectorRef { tensor, first: 0, len: half, offset: 0.0 })?))
    };
    if header.format != ModelFormat::Gguf {
        return Ok(());
    }
    match &mut config.rope.scaling {
        RopeScaling::Factors(list) => {
            *list = factors("rope_freqs.weight")?.unwrap_or_else(|| list.clone());
        }
        RopeScaling::LongRope { short, long, .. } => {
            let missing =
                |name: &str| Error::new(ErrorKind::Corrupt, "is missing").about(format!("tensor {name}"));
            *short =
                factors("rope_factors_short.weight")?.ok_or_else(|| missing("rope_factors_short.weight"))?;
            *long =
                factors("rope_factors_long.weight")?.ok_or_else(|| missing("rope_factors_long.weight"))?;
        }
        _ => {}
    }
    Ok(())
}
