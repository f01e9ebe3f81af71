//! The CPU executor against the portable one, on random models of every architecture.

#![allow(clippy::unwrap_used, reason = "in a test a panic is a failure")]

use std::collections::BTreeMap;
use std::sync::Arc;

use orion_core::{
    ModelFormat, ModelHeader, Result, TensorBytes, TensorInfo, TensorType, TileLayout, TokenId, WeightSource,
};
use orion_runtime::{ComputePool, ExecutorKind, LocalModel, LocalRuntime, Positions, RuntimeOptions};
use serde_json::{Value, json};

const HIDDEN: usize = 64;
const FFN: usize = 96;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 32;
const LAYERS: usize = 3;
const VOCAB: usize = 90;

/// A model in memory.
struct Memory {
    header: ModelHeader,
    data: Arc<Vec<u8>>,
}

impl WeightSource for Memory {
    fn header(&self) -> &ModelHeader {
        &self.header
    }

    fn tensor(&self, index: usize) -> Result<TensorBytes> {
        Ok(TensorBytes::shared(self.data.clone(), self.header.tensors[index].range()?))
    }
}

/// Collects tensors of random values.
#[derive(Default)]
struct Builder {
    tensors: Vec<TensorInfo>,
    data: Vec<u8>,
    state: u64,
}

impl Builder {
    fn add(&mut self, name: &str, shape: &[usize], centre: f32, size: f32) {
        let offset = self.data.len() as u64;
        for _ in 0..shape.iter().product::<usize>() {
            self.state =
                self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let unit = (self.state >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
            self.data.extend((centre + size * unit).to_le_bytes());
        }
        let bytes = self.data.len() as u64 - offset;
        let shape = shape.iter().map(|&n| n as u64).collect();
        let (ty, layout) = (TensorType::F32, TileLayout::RowMajor);
        self.tensors.push(TensorInfo { name: name.into(), shape, ty, layout, file: 0, offset, bytes });
    }
}

fn config(architecture: &str, extra: &Value) -> Value {
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

fn model(architecture: &str, extra: &Value) -> Arc<Memory> {
    let gemma = architecture.starts_with("gemma");
    // Gemma stores norms less one.
    let centre = if gemma { 0.0 } else { 1.0 };
    let mut b = Builder { state: 5, ..Builder::default() };
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
                if architecture == "qwen2" {
                    add(&format!("self_attn.{name}_proj.bias"), &[rows], 0.0, 0.3);
                }
            }
            add("mlp.gate_proj.weight", &[FFN, HIDDEN], 0.0, 0.2);
            add("mlp.up_proj.weight", &[FFN, HIDDEN], 0.0, 0.2);
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
    let mut header = ModelHeader::new(ModelFormat::Safetensors, BTreeMap::new(), b.tensors);
    let config = config(architecture, extra).to_string().into_bytes();
    header.side_files.insert("config.json".into(), config.into());
    Arc::new(Memory { header, data: Arc::new(b.data) })
}

fn open(source: Arc<Memory>, executor: ExecutorKind, chunk: usize, threads: usize) -> LocalModel {
    let mut options = RuntimeOptions::default();
    options.executor = executor;
    options.prefill_chunk = chunk;
    options.pool = Some(ComputePool::new(threads).unwrap());
    LocalRuntime::new(options).open(source).unwrap()
}

fn logits(model: &LocalModel, tokens: &[TokenId]) -> Vec<f32> {
    let mut all = Vec::new();
    model.evaluate(tokens, Positions::All, |_, row| all.extend_from_slice(row)).unwrap();
    all
}

#[test]
fn both_executors_agree_on_every_architecture() {
    let tokens: Vec<TokenId> = (0..200u32).map(|i| TokenId(i * 31 % VOCAB as u32)).collect();
    let llama3 = json!({ "rope_scaling": { "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 64 } });
    let cases = [
        ("llama", json!({})),
        ("llama", llama3),
        ("mistral", json!({ "sliding_window": 50 })),
        ("qwen2", json!({})),
        ("qwen3", json!({})),
        ("gemma2", json!({ "sliding_window": 130, "query_pre_attn_scalar": 32 })),
        (
            "gemma3_text",
            json!({ "sliding_window": 60, "query_pre_attn_scalar": 32, "sliding_window_pattern": 2 }),
        ),
        ("phi3", json!({ "partial_rotary_factor": 0.5, "sliding_window": null })),
    ];
    for (architecture, extra) in cases {
        let source = model(architecture, &extra);
        let cpu = open(source.clone(), ExecutorKind::Cpu, 512, 2);
        assert!(orion_core::Model::info(&cpu).executor.starts_with("cpu"), "{architecture} fell back");
        let fast = logits(&cpu, &tokens);
        let exact = logits(&open(source.clone(), ExecutorKind::Portable, 512, 1), &tokens);
        let greatest = exact.iter().fold(0f32, |a, v| a.max(v.abs()));
        let worst = fast.iter().zip(&exact).fold(0f32, |a, (x, y)| a.max((x - y).abs()));
        // Only the halves of keys and values differ: 2^-11 of a value, averaged out in sums.
        assert!(worst < 3e-3 * greatest, "{architecture}: off by {worst} of {greatest}");
        let in_parts = logits(&open(source, ExecutorKind::Cpu, 7, 1), &tokens);
        assert!(
            fast.iter().map(|v| v.to_bits()).eq(in_parts.iter().map(|v| v.to_bits())),
            "{architecture}: bits"
        );
    }
}

#[test]
fn a_head_size_without_kernels_runs_on_the_portable_executor_and_says_so() {
    let mut source = model("llama", &json!({}));
    let header = &mut Arc::get_mut(&mut source).unwrap().header;
    // The same weights as eight heads of 8 would need other shapes; a size of 8 shows in the configuration alone.
    let config =
        config("llama", &json!({ "head_dim": 8, "num_attention_heads": 16, "num_key_value_heads": 8 }));
    header.side_files.insert("config.json".into(), config.to_string().into_bytes().into());
    let model = open(source, ExecutorKind::Cpu, 512, 1);
    assert!(orion_core::Model::info(&model).executor.starts_with("portable"));
}
