//! What goes into the matrices of a model, against sums that transformers' own layers give
//! (`scripts/reference/make_importances.py`).

#![allow(clippy::unwrap_used, reason = "in a test a panic is a failure")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use orion_core::TokenId;
use orion_runtime::{ExecutorKind, InputObserver, LocalModel, LocalRuntime, Positions, RuntimeOptions};
use orion_testkit::references;
use safetensors::SafeTensors;

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

#[test]
fn squares_sum_up_as_in_transformers() {
    let bytes =
        std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/importances.safetensors"))
            .unwrap();
    let golden = SafeTensors::deserialize(&bytes).unwrap();
    let mut compared = 0;
    for name in ["llama-gqa-tied", "gemma3", "phi3", "llama-attention-bias"] {
        let (folder, tokens) = written(name);
        let sums = Arc::new(Sums::default());
        let model = open(folder.path(), ExecutorKind::Portable, sums.clone()).unwrap();
        model.evaluate(&tokens, Positions::Last, |_, _| {}).unwrap();
        let seen = sums.0.lock().unwrap();
        let wanted: BTreeMap<String, Vec<f64>> = golden
            .tensors()
            .into_iter()
            .filter_map(|(key, view)| {
                let values =
                    view.data().chunks_exact(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap())));
                Some((key.strip_prefix(&format!("{name}/"))?.to_owned(), values.collect()))
            })
            .collect();
        // The matrix that makes logits is seen beside them, with the one row whose logits were asked for.
        let layers: Vec<&String> = seen.keys().filter(|key| key.contains(".layers.")).collect();
        assert!(layers.iter().copied().eq(wanted.keys()), "{name}: {layers:?}");
        assert_eq!(seen.len(), wanted.len() + 1, "{name}");
        for (tensor, want) in &wanted {
            let (got, rows) = &seen[tensor];
            assert_eq!((got.len(), *rows), (want.len(), tokens.len()), "{name}: {tensor}");
            let largest = want.iter().copied().fold(0.0, f64::max);
            for (got, want) in got.iter().zip(want) {
                assert!(
                    (got - want).abs() <= TOLERANCE * largest,
                    "{name}: {tensor}: {got}, expected {want}"
                );
            }
            compared += want.len();
        }
    }
    assert!(compared > 1000, "{compared}");
}

#[test]
fn the_executor_without_floats_says_so() {
    let (folder, _) = written("llama-four-layers");
    let error = open(folder.path(), ExecutorKind::Cpu, Arc::default()).unwrap_err();
    assert!(error.to_string().contains("portable executor only"), "{error}");
}
