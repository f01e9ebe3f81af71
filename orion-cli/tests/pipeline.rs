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
    // A packed set is larger than the file by what tiles are padded with.
    let (set, target) =
        (directory.join("set"), ["--target-size", "86MB", "--allow-requantize", "--no-measure"]);
    let done = succeeds(&[&["optimize", text(&model), text(&set)], &target[..]].concat());
    let files = std::fs::read_dir(&set).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len());
    let bytes: u64 = files.sum();
    assert!((85_140_000..=86_860_000).contains(&bytes), "{bytes}: {done}");
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
    let (out, registry) = (directory.join("small"), directory.join("models.json"));
    let done = succeeds(&[
        "optimize",
        text(&model),
        text(&out),
        "--type",
        "Q4_0",
        "--allow-requantize",
        "--shards",
        "2",
        "--registry",
        text(&registry),
    ]);
    assert!(done["after_bytes"].as_u64() < done["before_bytes"].as_u64(), "{done}");
    assert_eq!(done["unmeasured"], Value::Null);
    for side in ["before", "after"] {
        for figure in ["bytes", "peak_rss_bytes", "load_s", "ttft_s"] {
            let value = done["summary"][side][figure].as_f64();
            assert!(value.is_some_and(|value| value > 0.0), "{side} {figure}: {done}");
        }
    }
    let added = &done["registry"];
    assert_eq!((&added["edited"], &added["id"]), (&"added".into(), &"small".into()), "{added}");
    assert_eq!(added["model"]["format"], "orion-shards");
    assert_eq!(added["model"]["quantization"], "Q4_0");
    // The manifest, the metadata and two shards, each with size and digest.
    let files = added["model"]["files"].as_array().unwrap();
    assert_eq!(files.len(), 4, "{added}");
    assert_eq!(files[0]["path"], "small/orion-manifest.json");
    assert!(files.iter().all(|file| file["bytes"].is_u64() && file["sha256"].is_string()), "{added}");
    let asked = |model: &str| {
        let registry = ["--registry", text(&registry)];
        let ask = ["generate", "--model", model, "--prompt", "1 2 3 4 5 6 7 8", "--raw", "-n", "2"];
        let report = succeeds(&[&ask[..], &registry].concat());
        assert!(report["text"].as_str().unwrap().starts_with(" 9"), "{report}");
    };
    asked(text(&out));
    asked("small");
    // A scan finds the set once and no shard of it as a model of its own.
    let found = succeeds(&["registry", "scan", text(&directory), "--registry", text(&registry)]);
    assert_eq!(found["models"].as_array().unwrap().len(), 1, "{found}");
    assert_eq!(found["models"][0]["edited"], "unchanged");
}

#[test]
fn importances_are_measured_and_used() {
    let (directory, model) = (scratch("imatrix"), smollm2());
    let (model, matrix) = (text(&model), directory.join("imatrix.gguf"));
    let texts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../benches/data/licences.txt");
    let measure =
        ["imatrix", "--model", model, "--file", text(&texts), "--out", text(&matrix), "--ctx", "64"];
    let done = succeeds(&[&measure[..], &["--chunks", "2"]].concat());
    assert_eq!((&done["matrices"], &done["chunks"]), (&(30 * 7).into(), &2.into()));
    refuses(&measure, "exists already");
    let header = orion::loader::open(&matrix).unwrap();
    let header = header.header();
    assert_eq!(header.metadata["general.type"].as_str(), Some("imatrix"));
    assert_eq!(header.metadata["imatrix.chunk_count"].as_u64(), Some(2));
    assert_eq!(header.metadata["imatrix.chunk_size"].as_u64(), Some(64));
    let shape = |name: &str| header.tensors[header.position(name).unwrap()].shape.clone();
    assert_eq!(shape("blk.7.ffn_down.weight.in_sum2"), [1536]);
    assert_eq!(shape("blk.7.ffn_down.weight.counts"), [1]);

    // With importances the same types hold other blocks, and the file says whose they are.
    let outputs = ["plain.gguf", "weighted.gguf"].map(|name| directory.join(name));
    let quantise = ["quantize", model, text(&outputs[0]), "--type", "IQ4_NL", "--allow-requantize"];
    succeeds(&quantise);
    let weighted =
        ["quantize", model, text(&outputs[1]), "--type", "IQ4_NL", "--allow-requantize", "--imatrix"];
    succeeds(&[&weighted[..], &[text(&matrix)]].concat());
    let [plain, weighted] = outputs.map(|path| orion::loader::open(&path).unwrap());
    let metadata = &weighted.header().metadata;
    assert_eq!(metadata["quantize.imatrix.file"].as_str(), Some("imatrix.gguf"));
    assert_eq!(metadata["quantize.imatrix.dataset"].as_str(), Some("licences.txt"));
    assert_eq!(metadata["quantize.imatrix.entries_count"].as_u64(), Some(210));
    assert_eq!(metadata["quantize.imatrix.chunks_count"].as_u64(), Some(2));
    let at = |name: &str| weighted.header().position(name).unwrap();
    let differs = |name: &str| *plain.tensor(at(name)).unwrap() != *weighted.tensor(at(name)).unwrap();
    assert!(differs("blk.0.attn_q.weight"));
    assert!(!differs("token_embd.weight"));
}

/// A file may not grow beyond a megabyte in this process: to whoever writes it is as if the disk were full.
fn out_of_room(arguments: &[&str]) -> Output {
    Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 2048; exec \"$0\" \"$@\" --json"])
        .arg(env!("CARGO_BIN_EXE_orion"))
        .args(arguments)
        // A profile that is cut short would be of no use to a measurement of coverage, and end it.
        .env("LLVM_PROFILE_FILE", "/dev/null")
        .output()
        .expect("sh runs")
}

#[test]
fn what_does_not_fit_on_the_disk_leaves_nothing() {
    let (directory, model) = (scratch("full"), smollm2());
    let copy = scratch("full-copy").join("model.gguf");
    std::fs::copy(&model, &copy).unwrap();
    let halves = scratch("full-halves").join("hf");
    succeeds(&["convert", text(&model), text(&halves)]);
    let (model, out) = (text(&model), directory.join("out"));
    let out = text(&out);
    let requantize = ["--type", "Q8_0", "--allow-requantize"];
    for command in [
        [&["quantize", model, out][..], &requantize].concat(),
        [&["optimize", model, out][..], &requantize].concat(),
        vec!["shard", model, out, "--shards", "3"],
        vec!["shard", text(&halves), out, "--shards", "3", "--format", "safetensors"],
        vec!["shard", model, out, "--shards", "3", "--format", "gguf"],
        vec!["convert", model, out],
        vec!["merge", out, "--models", model, text(&copy), "--ratios", "0.5", "0.5"],
    ] {
        let output = out_of_room(&command);
        let value = json(&output);
        assert_eq!(
            (output.status.code(), &value["error"]["kind"]),
            (Some(1), &"io".into()),
            "{command:?}: {value}"
        );
        let message = value["error"]["message"].as_str().unwrap();
        assert!(message.contains("out") || message.contains(".partial"), "{command:?}: {message}");
        assert_eq!(count(&directory), 0, "{command:?}");
    }
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
