//! What scripts rely on of the commands that write models. Runs the real binary on the real model.

#![allow(clippy::unwrap_used, reason = "in a test a panic is a failure")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use orion_testkit::models::smollm2;
use serde_json::Value;

fn orion(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_orion")).args(arguments).arg("--json").output().expect("the binary runs")
}

fn json(output: &Output) -> Value {
    let text = std::str::from_utf8(&output.stdout).unwrap();
    serde_json::from_str(text)
        .unwrap_or_else(|error| panic!("{error}: {text}{}", String::from_utf8_lossy(&output.stderr)))
}

fn succeeds(arguments: &[&str]) -> Value {
    let output = orion(arguments);
    let value = json(&output);
    assert_eq!(output.status.code(), Some(0), "{value}");
    value
}

fn refuses(arguments: &[&str], part: &str) {
    let output = orion(arguments);
    let value = json(&output);
    assert_eq!(output.status.code(), Some(2), "{value}");
    let message = value["error"]["message"].as_str().unwrap();
    assert!(message.contains(part), "{message}");
}

/// A directory of the test's own, empty.
fn scratch(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("pipeline-{name}"));
    if path.exists() {
        std::fs::remove_dir_all(&path).unwrap();
    }
    std::fs::create_dir_all(&path).unwrap();
    path
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn count(directory: &Path) -> usize {
    std::fs::read_dir(directory).unwrap().count()
}

#[test]
fn quantise_reports_and_refuses_what_would_lose_something() {
    let (directory, model) = (scratch("quantise"), smollm2());
    let (model, out) = (text(&model), directory.join("out.gguf"));
    let out = text(&out);
    refuses(&["quantize", model, out, "--type", "Q8_0"], "is Q4_1 already");
    refuses(&["quantize", model, out, "--type", "Q9"], "known: F32");
    refuses(&["quantize", model, out, "--type", "Q4_0", "--level", "q4"], "cannot be used with");
    refuses(
        &["quantize", model, model, "--type", "Q4_0", "--allow-requantize"],
        "input and output are the same",
    );
    refuses(
        &["quantize", model, out, "--target-size", "1MB", "--allow-requantize"],
        "the smallest this model can be",
    );
    let planned = succeeds(&["quantize", model, out, "--type", "Q4_K_M", "--allow-requantize", "--dry-run"]);
    assert!(planned["substituted"].as_u64().unwrap() > 100, "rows of 576");
    assert!(planned["hint"].as_str().unwrap().contains("Q4_1"));
    assert_eq!(count(&directory), 0, "refusals and plans leave nothing");
    let done = succeeds(&["quantize", model, out, "--type", "Q4_0", "--allow-requantize"]);
    assert!(done["bits_per_weight"].as_f64().unwrap() < 5.4, "{}", done["bits_per_weight"]);
    assert_eq!(count(&directory), 1);
    refuses(&["quantize", model, out, "--type", "Q4_0", "--allow-requantize"], "exists already");
    let report = succeeds(&["inspect", out]);
    assert!(report["metadata"]["orion.provenance"].as_str().unwrap().contains("quantize"));
}

#[test]
fn a_target_is_met_within_a_percent() {
    let (directory, model) = (scratch("target"), smollm2());
    let out = directory.join("out.gguf");
    let arguments = ["quantize", text(&model), text(&out), "--target-size", "86MB", "--allow-requantize"];
    succeeds(&arguments);
    let bytes = out.metadata().unwrap().len();
    assert!((85_140_000..=86_000_000).contains(&bytes), "{bytes}");
}

#[test]
fn shards_go_there_and_back_and_answer() {
    let (directory, model) = (scratch("shards"), smollm2());
    let (set, split, back) = (directory.join("set"), directory.join("split"), directory.join("back.gguf"));
    let done = succeeds(&["shard", text(&model), text(&set), "--shards", "3", "--pack"]);
    assert_eq!(done["shards"].as_array().unwrap().len(), 3);
    let manifests = std::fs::read_dir(&set)
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().to_str().unwrap().contains("manifest"));
    assert_eq!(manifests.count(), 1);
    refuses(&["shard", text(&model), text(&set), "--shards", "3"], "exists already");
    refuses(&["shard", text(&model), text(&split), "--shards", "9999"], "9999 shards for 272 tensors");
    refuses(
        &["shard", text(&model), text(&split), "--shards", "2", "--format", "safetensors"],
        "convert it first",
    );
    succeeds(&["shard", text(&model), text(&split), "--max-shard-size", "40MB", "--format", "gguf"]);
    succeeds(&["unshard", text(&split), text(&back)]);
    let tokens = ["--tokens", "1,9690,198"];
    let logits = |path: &Path| {
        succeeds(&[&["logits", "--model", text(path)][..], &tokens].concat())["positions"].clone()
    };
    assert_eq!(logits(&set), logits(&model));
    assert_eq!(logits(&back), logits(&model));
}

#[test]
fn merges_by_flags_and_by_configuration() {
    let (directory, model) = (scratch("merge"), smollm2());
    let model = text(&model);
    let (other, out) = (directory.join("other.gguf"), directory.join("merged.gguf"));
    succeeds(&["quantize", model, text(&other), "--type", "Q4_0", "--allow-requantize"]);
    refuses(
        &["merge", text(&out), "--models", model, text(&other), "--method", "slerp"],
        "parameter t is missing",
    );
    refuses(
        &[
            "merge",
            text(&out),
            "--models",
            model,
            text(&other),
            model,
            "--method",
            "slerp",
            "--ratios",
            "1",
            "1",
            "1",
        ],
        "takes no ratios",
    );
    let yaml = directory.join("config.yml");
    std::fs::write(
        &yaml,
        format!("merge_method: ties\nmodels: [{{model: {model}, parameters: {{weight: 1}}}}]\n"),
    )
    .unwrap();
    refuses(&["merge", text(&yaml), text(&out)], "base_model");
    assert!(!out.exists());
    let done = succeeds(&["merge", text(&out), "--models", model, text(&other), "--ratios", "2", "1"]);
    assert_eq!(
        (&done["method"], &done["layers"], &done["tensors"]),
        (&"linear".into(), &30.into(), &272.into())
    );
    assert!(done["warnings"][0].as_str().unwrap().contains("sum to 3"));
    refuses(&["merge", text(&out), "--models", model, text(&other), "--ratios", "1", "1"], "exists already");
    succeeds(&["inspect", text(&out)]);
}

#[test]
fn optimise_writes_a_set_that_answers() {
    let (directory, model) = (scratch("optimise"), smollm2());
    let out = directory.join("small");
    let done = succeeds(&[
        "optimize",
        text(&model),
        text(&out),
        "--type",
        "Q4_0",
        "--allow-requantize",
        "--shards",
        "2",
    ]);
    assert!(done["after_bytes"].as_u64() < done["before_bytes"].as_u64(), "{done}");
    let report =
        succeeds(&["generate", "--model", text(&out), "--prompt", "1 2 3 4 5 6 7 8", "--raw", "-n", "2"]);
    assert!(report["text"].as_str().unwrap().starts_with(" 9"), "{report}");
}

#[test]
fn convert_says_what_it_made() {
    let (directory, model) = (scratch("convert"), smollm2());
    let (there, back) = (directory.join("hf"), directory.join("back.gguf"));
    assert_eq!(succeeds(&["convert", text(&model), text(&there)])["to"], "safetensors");
    assert_eq!(succeeds(&["convert", text(&there), text(&back)])["to"], "gguf");
    let report =
        succeeds(&["generate", "--model", text(&back), "--prompt", "1 2 3 4 5 6 7 8", "--raw", "-n", "2"]);
    assert!(report["text"].as_str().unwrap().starts_with(" 9"), "{report}");
}
