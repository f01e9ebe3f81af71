//! What goes into the matrices of a model: shown once each, with the values that the weights give.

#![allow(clippy::unwrap_used, reason = "in a test a panic is a failure")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use orion_core::TokenId;
use orion_runtime::{ExecutorKind, InputObserver, LocalModel, LocalRuntime, Positions, RuntimeOptions};
use orion_testkit::references;

/// Relative to the largest sum of a matrix: rounding to 32 bits in another order.
const TOLERANCE: f64 = 1e-4;

#[derive(Debug, Default)]
struct Sums(Mutex<BTreeMap<String, (Vec<f64>, usize)>>);

impl InputObserver for Sums {
    fn inputs(&self, tensor: &str, columns: usize, inputs: &[f32]) {
        let mut seen = self.0.lock().unwrap();
        let (sums, rows) = seen.entry(tensor.to_owned()).or_insert_with(|| (vec![0.0; columns], 0));
        for row in inputs.chunks_exact(columns) {
            sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x).powi(2));
        }
        *rows += inputs.len() / columns;
    }
}

fn open(path: &Path, executor: ExecutorKind, observer: Arc<Sums>) -> orion_core::Result<LocalModel> {
    let mut options = RuntimeOptions::default();
    options.executor = executor;
    options.prefill_chunk = 7;
    options.input_observer = Some(observer);
    LocalRuntime::new(options).open(orion_loader::open(path)?)
}

/// A reference model as safetensors in a folder, and its prompt.
fn written(name: &str) -> (tempfile::TempDir, Vec<TokenId>) {
    let case = references::case(name);
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), case.configs[0].to_string()).unwrap();
    std::fs::write(folder.path().join("model.safetensors"), case.safetensors()).unwrap();
    (folder, case.tokens.iter().copied().map(TokenId).collect())
}

/// The sums of the first layer's attention need an embedding and a norm only: computed here from the weights.
#[test]
fn squares_of_the_first_layer_sum_up_as_by_hand() {
    let case = references::case("llama-gqa-tied");
    let (folder, tokens) = written(&case.name);
    let sums = Arc::new(Sums::default());
    let model = open(folder.path(), ExecutorKind::Portable, sums.clone()).unwrap();
    model.evaluate(&tokens, Positions::Last, |_, _| {}).unwrap();
    let tensor = |name: &str| case.tensors.iter().find(|tensor| tensor.name == name).unwrap();
    let (embedding, norm) =
        (tensor("model.embed_tokens.weight"), tensor("model.layers.0.input_layernorm.weight"));
    let columns = norm.values.len();
    let eps = case.configs[0]["rms_norm_eps"].as_f64().unwrap();
    let mut want = vec![0.0; columns];
    for token in &case.tokens {
        let row = &embedding.values[*token as usize * columns..][..columns];
        let mean = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / columns as f64;
        for ((want, x), w) in want.iter_mut().zip(row).zip(&norm.values) {
            *want += (f64::from(*x) * f64::from(*w)).powi(2) / (mean + eps);
        }
    }
    let largest = want.iter().copied().fold(0.0, f64::max);
    let seen = sums.0.lock().unwrap();
    let at = |part: &str| &seen[&format!("model.layers.0.self_attn.{part}_proj.weight")];
    let (got, rows) = at("q");
    assert_eq!(*rows, tokens.len());
    for (got, want) in got.iter().zip(&want) {
        assert!((got - want).abs() <= TOLERANCE * largest, "{got}, expected {want}");
    }
    assert_eq!(at("k"), at("q"));
    assert_eq!(at("v"), at("q"));
    // Each of the seven matrices of each layer is seen with every token, the head with the one whose logits are wanted.
    let layers = case.configs[0]["num_hidden_layers"].as_u64().unwrap() as usize;
    assert_eq!(seen.len(), 7 * layers + 1);
    for (tensor, (_, rows)) in seen.iter() {
        let want = if tensor.contains(".layers.") { tokens.len() } else { 1 };
        assert_eq!(*rows, want, "{tensor}");
    }
}

#[test]
fn a_fused_projection_is_seen_once() {
    let (folder, tokens) = written("phi3");
    let sums = Arc::new(Sums::default());
    let model = open(folder.path(), ExecutorKind::Portable, sums.clone()).unwrap();
    model.evaluate(&tokens, Positions::Last, |_, _| {}).unwrap();
    let seen = sums.0.lock().unwrap();
    for part in ["self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"] {
        assert_eq!(seen[&format!("model.layers.0.{part}.weight")].1, tokens.len(), "{part}");
    }
}

#[test]
fn the_executor_without_floats_says_so() {
    let (folder, _) = written("llama-four-layers");
    let error = open(folder.path(), ExecutorKind::Cpu, Arc::default()).unwrap_err();
    assert!(error.to_string().contains("portable executor only"), "{error}");
}
