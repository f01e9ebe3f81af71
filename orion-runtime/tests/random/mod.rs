//! Small random models of every architecture, in memory, as safetensors would describe them.

#![allow(dead_code, reason = "each test uses a part")]

use std::collections::BTreeMap;
use std::sync::Arc;

use orion_core::{
    ModelFormat, ModelHeader, Result, TensorBytes, TensorInfo, TensorType, TileLayout, WeightSource,
};
use serde_json::{Value, json};

pub(crate) const HIDDEN: usize = 64;
pub(crate) const FFN: usize = 96;
pub(crate) const HEADS: usize = 4;
pub(crate) const KV_HEADS: usize = 2;
pub(crate) const HEAD_DIM: usize = 32;
pub(crate) const LAYERS: usize = 3;
pub(crate) const VOCAB: usize = 90;

/// A model in memory.
pub(crate) struct Memory {
    pub(crate) header: ModelHeader,
    pub(crate) data: Arc<Vec<u8>>,
}

impl WeightSource for Memory {
    fn header(&self) -> &ModelHeader {
        &self.header
    }

    fn tensor(&self, index: usize) -> Result<TensorBytes> {
        Ok(TensorBytes::shared(self.data.clone(), self.header.tensors[index].range()?))
    }
}

/// Collects tensors of random values, which depend on the tensor's name alone.
#[derive(Default)]
struct Builder {
    tensors: Vec<TensorInfo>,
    data: Vec<u8>,
}

impl Builder {
    fn add(&mut self, name: &str, shape: &[usize], centre: f32, size: f32) {
        let offset = self.data.len() as u64;
        let mut state =
            name.bytes().fold(5u64, |state, byte| state.wrapping_mul(31).wrapping_add(byte.into()));
        for _ in 0..shape.iter().product::<usize>() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let unit = (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
            self.data.extend((centre + size * unit).to_le_bytes());
        }
        let bytes = self.data.len() as u64 - offset;
        let shape = shape.iter().map(|&n| n as u64).collect();
        let (ty, layout) = (TensorType::F32, TileLayout::RowMajor);
        self.tensors.push(TensorInfo { name: name.into(), shape, ty, layout, file: 0, offset, bytes });
    }
}

/// A `config.json` with these changes.
pub(crate) fn config(architecture: &str, extra: &Value) -> Value {
    let mut config = json!({
        "model_type": architecture,
        "hidden_size": HIDDEN, "intermediate_size": FFN, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM, "num_hidden_layers": LAYERS,
        "vocab_size": VOCAB, "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10_000.0,
        "tie_word_embeddings": true,
    });
    let object = config.as_object_mut().unwrap();
    object.extend(extra.as_object().unwrap().clone());
    config
}

/// A model of an architecture, with these changes of its configuration.
pub(crate) fn model(architecture: &str, extra: &Value) -> Arc<Memory> {
    let gemma = architecture.starts_with("gemma");
    // Gemma stores norms less one.
    let centre = if gemma { 0.0 } else { 1.0 };
    let mut b = Builder::default();
    let asks = |key: &str| extra[key] == json!(true);
    b.add("model.embed_tokens.weight", &[VOCAB, HIDDEN], 0.0, 1.0);
    let (q, kv) = (HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM);
    for layer in 0..LAYERS {
        let mut add = |name: &str, shape: &[usize], centre: f32, size: f32| {
            b.add(&format!("model.layers.{layer}.{name}"), shape, centre, size);
        };
        add("input_layernorm.weight", &[HIDDEN], centre, 0.2);
        if architecture == "phi3" {
            add("self_attn.qkv_proj.weight", &[q + 2 * kv, HIDDEN], 0.0, 0.3);
            add("mlp.gate_up_proj.weight", &[2 * FFN, HIDDEN], 0.0, 0.2);
        } else {
            for (name, rows) in [("q", q), ("k", kv), ("v", kv)] {
                add(&format!("self_attn.{name}_proj.weight"), &[rows, HIDDEN], 0.0, 0.3);
                if architecture == "qwen2" || asks("attention_bias") {
                    add(&format!("self_attn.{name}_proj.bias"), &[rows], 0.0, 0.3);
                }
            }
            add("mlp.gate_proj.weight", &[FFN, HIDDEN], 0.0, 0.2);
            add("mlp.up_proj.weight", &[FFN, HIDDEN], 0.0, 0.2);
        }
        if asks("attention_bias") {
            add("self_attn.o_proj.bias", &[HIDDEN], 0.0, 0.3);
        }
        if asks("mlp_bias") {
            for (name, rows) in [("gate", FFN), ("up", FFN), ("down", HIDDEN)] {
                add(&format!("mlp.{name}_proj.bias"), &[rows], 0.0, 0.3);
            }
        }
        if matches!(architecture, "qwen3" | "gemma3_text") {
            add("self_attn.q_norm.weight", &[HEAD_DIM], centre, 0.2);
            add("self_attn.k_norm.weight", &[HEAD_DIM], centre, 0.2);
        }
        add("self_attn.o_proj.weight", &[HIDDEN, q], 0.0, 0.2);
        add("mlp.down_proj.weight", &[HIDDEN, FFN], 0.0, 0.2);
        add("post_attention_layernorm.weight", &[HIDDEN], centre, 0.2);
        if gemma {
            add("pre_feedforward_layernorm.weight", &[HIDDEN], centre, 0.2);
            add("post_feedforward_layernorm.weight", &[HIDDEN], centre, 0.2);
        }
    }
    b.add("model.norm.weight", &[HIDDEN], centre, 0.2);
    if extra["tie_word_embeddings"] == json!(false) {
        b.add("lm_head.weight", &[VOCAB, HIDDEN], 0.0, 1.0);
    }
    let mut header = ModelHeader::new(ModelFormat::Safetensors, BTreeMap::new(), b.tensors);
    let config = config(architecture, extra).to_string().into_bytes();
    header.side_files.insert("config.json".into(), config.into());
    Arc::new(Memory { header, data: Arc::new(b.data) })
}
