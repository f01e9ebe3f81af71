//! The CPU executor against the portable one, on random models of every architecture.

#![allow(clippy::unwrap_used, reason = "in a test a panic is a failure")]

mod random;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use orion_core::{ModelHeader, Result, TensorBytes, TokenId, WeightSource};
use orion_runtime::{ComputePool, ExecutorKind, LocalModel, LocalRuntime, Positions, RuntimeOptions};
use random::{HEAD_DIM, Memory, VOCAB, config, model};
use serde_json::{Value, json};

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

fn prompt(tokens: u32) -> Vec<TokenId> {
    (0..tokens).map(|i| TokenId(i * 31 % VOCAB as u32)).collect()
}

fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0f32, |a, v| a.max(v.abs()))
}

fn furthest(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).fold(0f32, |worst, (x, y)| worst.max((x - y).abs()))
}

#[test]
fn every_option_moves_the_logits_of_both_executors_alike() {
    let tokens = prompt(120);
    let yarn = |key: &str, value: Value| {
        let mut scaling =
            json!({ "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64 });
        scaling[key] = value;
        json!({ "rope_scaling": scaling })
    };
    let llama3 = |key: &str, value: Value| {
        let mut scaling = json!({ "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64 });
        scaling[key] = value;
        json!({ "rope_scaling": scaling })
    };
    let long = |key: &str, value: Value| {
        let mut config = json!({ "sliding_window": null, "original_max_position_embeddings": 64, "rope_scaling": {
            "type": "longrope", "short_factor": vec![1.0; HEAD_DIM / 2], "long_factor": vec![2.0; HEAD_DIM / 2] } });
        if config.get(key).is_some() {
            config[key] = value;
        } else {
            config["rope_scaling"][key] = value;
        }
        config
    };
    let phi = json!({ "sliding_window": null });
    let gemma2 = json!({ "sliding_window": 30, "query_pre_attn_scalar": 32 });
    let gemma3 = json!({ "sliding_window": 30, "query_pre_attn_scalar": 32, "sliding_window_pattern": 2 });
    let none = json!({});
    // Architecture, its options, and those that one change makes of them.
    let mut cases: Vec<(&str, Value, Value)> = Vec::new();
    for architecture in ["llama", "mistral", "qwen2", "qwen3", "phi3"] {
        let base = if architecture == "phi3" { &phi } else { &none };
        cases.push((architecture, base.clone(), json!({ "rope_theta": 500.0 })));
        cases.push((architecture, base.clone(), json!({ "rms_norm_eps": 0.1 })));
        cases.push((architecture, base.clone(), json!({ "hidden_act": "gelu" })));
        cases.push((architecture, base.clone(), json!({ "tie_word_embeddings": false })));
        cases.push((
            architecture,
            base.clone(),
            json!({ "rope_scaling": { "type": "linear", "factor": 4.0 } }),
        ));
    }
    cases.extend([
        ("llama", none.clone(), json!({ "attention_bias": true })),
        ("llama", none.clone(), json!({ "mlp_bias": true })),
        ("llama", none.clone(), llama3("factor", json!(4.0))),
        ("llama", llama3("factor", json!(4.0)), llama3("factor", json!(8.0))),
        ("llama", llama3("factor", json!(4.0)), llama3("low_freq_factor", json!(2.0))),
        ("llama", llama3("factor", json!(4.0)), llama3("high_freq_factor", json!(8.0))),
        ("llama", llama3("factor", json!(4.0)), llama3("original_max_position_embeddings", json!(128))),
        ("mistral", none.clone(), json!({ "sliding_window": 40 })),
        ("mistral", json!({ "sliding_window": 40 }), json!({ "sliding_window": 41 })),
        (
            "qwen2",
            none.clone(),
            json!({ "use_sliding_window": true, "sliding_window": 40, "max_window_layers": 1 }),
        ),
        (
            "qwen2",
            json!({ "use_sliding_window": true, "sliding_window": 40, "max_window_layers": 1 }),
            json!({ "max_window_layers": 2 }),
        ),
        ("qwen2", yarn("factor", json!(4.0)), yarn("factor", json!(2.0))),
        ("qwen2", yarn("factor", json!(4.0)), yarn("beta_fast", json!(4.0))),
        ("qwen2", yarn("factor", json!(4.0)), yarn("beta_slow", json!(0.1))),
        ("qwen2", yarn("factor", json!(4.0)), yarn("attention_factor", json!(1.3))),
        ("qwen2", yarn("factor", json!(4.0)), yarn("truncate", json!(false))),
        ("phi3", phi.clone(), json!({ "sliding_window": 40 })),
        ("phi3", phi.clone(), json!({ "partial_rotary_factor": 0.5 })),
        ("phi3", phi.clone(), long("attention_factor", json!(1.2))),
        ("phi3", long("attention_factor", json!(1.2)), long("attention_factor", json!(1.5))),
        ("phi3", long("attention_factor", json!(1.2)), {
            let mut other = long("attention_factor", json!(1.2));
            other["rope_scaling"]["long_factor"] = json!(vec![3.0; HEAD_DIM / 2]);
            other
        }),
        ("phi3", long("attention_factor", json!(1.2)), {
            let mut other = long("attention_factor", json!(1.2));
            // The prompt is no longer beyond it: the short factors count.
            other["original_max_position_embeddings"] = json!(256);
            other
        }),
    ]);
    for (architecture, base) in [("gemma2", &gemma2), ("gemma3_text", &gemma3)] {
        for change in [
            json!({ "rope_theta": 500.0 }),
            json!({ "rms_norm_eps": 0.1 }),
            json!({ "hidden_activation": "silu" }),
            json!({ "query_pre_attn_scalar": 40 }),
            json!({ "sliding_window": 31 }),
            json!({ "sliding_window_pattern": 3 }),
            json!({ "layer_types": ["full_attention", "sliding_attention", "full_attention"] }),
            json!({ "final_logit_softcapping": 3.0 }),
            json!({ "tie_word_embeddings": false }),
        ] {
            cases.push((architecture, base.clone(), change));
        }
    }
    cases.push(("gemma2", gemma2.clone(), json!({ "attn_logit_softcapping": 1.0 })));
    cases.push(("gemma3_text", gemma3.clone(), json!({ "rope_local_base_freq": 200.0 })));
    cases.push(("gemma3_text", gemma3, json!({ "rope_scaling": { "rope_type": "linear", "factor": 8.0 } })));

    for (architecture, base, change) in cases {
        let mut changed = base.clone();
        changed.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        let run =
            |extra: &Value, executor| logits(&open(model(architecture, extra), executor, 512, 1), &tokens);
        let before = run(&base, ExecutorKind::Portable);
        let after = run(&changed, ExecutorKind::Portable);
        let fast = run(&changed, ExecutorKind::Cpu);
        let (moved, apart) = (furthest(&before, &after), furthest(&fast, &after));
        let size = largest(&after);
        assert!(apart < 3e-3 * size, "{architecture} {change}: the executors are {apart} of {size} apart");
        assert!(
            moved > 1e-2 * size && moved > 4.0 * apart,
            "{architecture} {change}: moved {moved} of {size}"
        );
    }
}

#[test]
fn both_executors_agree_on_every_architecture() {
    let tokens = prompt(200);
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
        let (greatest, worst) = (largest(&exact), furthest(&fast, &exact));
        // Only the halves of keys and values differ: 2^-11 of a value, averaged out in sums.
        assert!(worst < 3e-3 * greatest, "{architecture}: off by {worst} of {greatest}");
        let in_parts = logits(&open(source, ExecutorKind::Cpu, 7, 1), &tokens);
        assert!(
            fast.iter().map(|v| v.to_bits()).eq(in_parts.iter().map(|v| v.to_bits())),
            "{architecture}: bits"
        );
    }
}

/// A source that notes whether it was told what will be needed.
struct Told(Arc<Memory>, AtomicBool);

impl WeightSource for Told {
    fn header(&self) -> &ModelHeader {
        self.0.header()
    }

    fn tensor(&self, index: usize) -> Result<TensorBytes> {
        self.0.tensor(index)
    }

    fn expect(&self, order: &[usize]) {
        let mut all = order.to_vec();
        all.sort_unstable();
        assert!(all.iter().copied().eq(0..self.header().tensors.len()), "{order:?}");
        self.1.store(true, Ordering::SeqCst);
    }
}

#[test]
fn the_order_of_need_is_told_before_anything_can_be_asked_for() {
    for executor in [ExecutorKind::Cpu, ExecutorKind::Portable] {
        let source = Arc::new(Told(model("llama", &json!({})), AtomicBool::new(false)));
        let mut options = RuntimeOptions::default();
        options.executor = executor;
        let model = LocalRuntime::new(options).open(source.clone()).unwrap();
        assert!(source.1.load(Ordering::SeqCst), "{executor:?}");
        model.wait_loaded().unwrap();
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
