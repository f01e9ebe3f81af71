//! Every architecture against the logits transformers computes for it, from both spellings of `config.json` and from
//! GGUF.

#![allow(clippy::unwrap_used, reason = "in a test a panic is a failure")]

use std::path::Path;

use orion_core::TokenId;
use orion_runtime::{ExecutorKind, LocalRuntime, Positions, RuntimeOptions};
use orion_testkit::references::{self, Case};

/// What rounding to 32 bits in another order may change. The makers of the goldens check that it is room enough.
const TOLERANCE: f32 = 1e-4;

/// The largest difference of any logit to the golden ones, or why there is none.
fn difference(case: &Case, path: &Path, chunk: usize) -> Result<f32, String> {
    let mut options = RuntimeOptions::default();
    options.executor = ExecutorKind::Portable;
    options.prefill_chunk = chunk;
    let run = || {
        let model = LocalRuntime::new(options).open(orion_loader::open(path)?)?;
        let tokens: Vec<TokenId> = case.tokens.iter().copied().map(TokenId).collect();
        let (mut worst, mut seen) = (0f32, 0);
        model.evaluate(&tokens, Positions::All, |position, logits| {
            let golden = case.expected.row(position);
            assert_eq!(logits.len(), golden.len(), "{}", case.name);
            for (got, want) in logits.iter().zip(golden) {
                // A NaN on either side must not hide behind a comparison.
                worst = if (got - want).is_nan() { f32::NAN } else { worst.max((got - want).abs()) };
            }
            seen += 1;
        })?;
        assert_eq!(seen, case.expected.rows(), "{}", case.name);
        Ok::<f32, orion_core::Error>(worst)
    };
    run().map_err(|error| error.to_string())
}

/// Runs every case through `write`, which makes the files of one variant, and reports all that fail.
fn check(chunk: usize, write: impl Fn(&Case, &Path) -> Vec<std::path::PathBuf>) {
    let mut failures = Vec::new();
    let mut ran = 0;
    for case in references::cases() {
        let folder = tempfile::tempdir().unwrap();
        for path in write(&case, folder.path()) {
            ran += 1;
            match difference(&case, &path, chunk) {
                Ok(worst) if worst <= TOLERANCE => {}
                outcome => {
                    failures.push(format!("{} {:?}: {outcome:?}", case.name, path.file_name().unwrap()))
                }
            }
        }
    }
    assert!(ran >= 25, "only {ran} variants ran");
    assert!(failures.is_empty(), "of {ran} variants:\n{}", failures.join("\n"));
}

fn write_safetensors(case: &Case, folder: &Path) -> Vec<std::path::PathBuf> {
    let write = |(index, config): (usize, &serde_json::Value)| {
        let folder = folder.join(index.to_string());
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
        std::fs::write(folder.join("model.safetensors"), case.safetensors()).unwrap();
        folder
    };
    case.configs.iter().enumerate().map(write).collect()
}

#[test]
fn safetensors_in_both_spellings() {
    check(512, write_safetensors);
}

#[test]
fn a_prompt_in_chunks_says_the_same() {
    check(7, write_safetensors);
}

#[test]
fn gguf() {
    check(512, |case, folder| {
        let Some(bytes) = case.gguf() else { return Vec::new() };
        let path = folder.join("model.gguf");
        std::fs::write(&path, bytes).unwrap();
        vec![path]
    });
}
