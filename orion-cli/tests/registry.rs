//! What scripts rely on of `orion registry`, and of registry ids as `--model`.

#![allow(clippy::unwrap_used, reason = "in a test a panic is a failure")]

mod common;

use std::path::{Path, PathBuf};

use common::{command, each, json, orion, refuses, scratch, succeeds, text};
use orion_testkit::models::smollm2;
use serde_json::json;

/// The registry of the repository.
fn demo() -> String {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../models.json").to_str().unwrap().to_owned()
}

/// A model of a few kilobytes.
fn tiny_gguf(path: &Path) {
    let case = orion_testkit::references::case("llama-four-layers");
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, case.gguf().expect("the case has a GGUF form")).unwrap();
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
}

#[test]
fn validate_prints_every_problem_and_exits_2() {
    let folder = scratch("registry-broken");
    write(
        &folder.join("models.json"),
        r#"{
  "version": 1,
  "modles": [],
  "models": [
    {"id": "a", "files": [{"path": "../a.gguf"}], "fallback": ["b"], "context_length": 0},
    {"id": "b", "files": [{"path": "b.gguf", "sha256": "12"}], "fallback": ["a", "nobody"]},
    {"id": "a", "files": [{"path": "c.gguf"}]}
  ]
}"#,
    );
    let output = orion(&folder, &["registry", "validate", "models.json", "--json"]);
    assert_eq!(output.status.code(), Some(2));
    let report = json(&output);
    assert_eq!(report["valid"], false);
    let codes = each(&report["problems"], "code");
    for code in ["unknown-field", "path-escapes", "duplicate-id", "unknown-model"] {
        assert!(codes.contains(&code), "{code} is missing: {codes:?}");
    }
    let pointers = each(&report["problems"], "pointer");
    for pointer in ["/models/0/context_length", "/models/1/files/0/sha256", "/models/1/fallback/1"] {
        assert!(pointers.contains(&pointer), "{pointer} is missing: {pointers:?}");
    }
    let unknown =
        report["problems"].as_array().unwrap().iter().find(|it| it["code"] == "unknown-field").unwrap();
    assert_eq!((&unknown["line"], &unknown["column"]), (&json!(3), &json!(3)));
    assert_eq!(unknown["help"], "did you mean \"models\"?");
    assert_eq!(report["errors"], codes.len() - report["warnings"].as_u64().unwrap() as usize);
    // For people the same, as text, with the same status.
    let people = orion(&folder, &["registry", "validate", "models.json"]);
    assert_eq!(people.status.code(), Some(2));
    assert!(text(&people).contains("models.json:3:3: error[unknown-field]"), "{}", text(&people));
}

#[test]
fn a_sound_registry_is_valid_and_missing_files_are_what_one_says() {
    let folder = scratch("registry-sound");
    write(
        &folder.join("models.json"),
        r#"{"version": 1, "models": [{"id": "a", "files": [{"path": "a.gguf"}]}]}"#,
    );
    let validate = |missing: &str| {
        orion(&folder, &["registry", "validate", "models.json", "--missing", missing, "--json"])
    };
    assert_eq!(succeeds(&validate("ignore"))["warnings"], 0);
    let warned = succeeds(&validate("warn"));
    assert_eq!((&warned["valid"], &warned["warnings"]), (&json!(true), &json!(1)));
    let refused = validate("error");
    assert_eq!((refused.status.code(), json(&refused)["errors"].as_u64()), (Some(2), Some(1)));
    let absent = orion(&folder, &["registry", "validate", "absent.json", "--json"]);
    assert_eq!(
        (absent.status.code(), json(&absent)["problems"][0]["code"].as_str()),
        (Some(2), Some("not-found"))
    );
    write(&folder.join("text.json"), "no registry");
    assert_eq!(orion(&folder, &["registry", "validate", "text.json", "--json"]).status.code(), Some(2));
}

#[test]
fn what_is_layered_on_top_is_checked_with_it() {
    let folder = scratch("registry-layers");
    write(
        &folder.join("models.json"),
        r#"{"version": 1, "models": [{"id": "a", "files": [{"path": "a.gguf"}], "fallback": ["b"]}]}"#,
    );
    let validate = || orion(&folder, &["registry", "validate", "--missing", "ignore", "--json"]);
    assert_eq!(each(&json(&validate())["problems"], "code"), ["unknown-model"]);
    write(
        &folder.join("models.custom.json"),
        r#"{"version": 1, "models": [{"id": "b", "files": [{"path": "b.gguf"}]}]}"#,
    );
    assert_eq!(succeeds(&validate())["valid"], true);
}

#[test]
fn a_model_is_added_with_all_its_header_says_and_then_answers_to_its_id() {
    let folder = scratch("registry-add");
    tiny_gguf(&folder.join("models/Tiny-Llama.gguf"));
    let add = |arguments: &[&str]| {
        orion(&folder, &[&["registry", "add", "models/Tiny-Llama.gguf", "--json"], arguments].concat())
    };
    let dry = succeeds(&add(&["--dry-run"]));
    assert_eq!((dry["id"].as_str(), dry["edited"].as_str()), (Some("tiny-llama"), Some("added")));
    assert!(!folder.join("models.json").exists());
    let added = succeeds(&add(&[]));
    assert_eq!(added["edited"], "added");
    let model = &added["model"];
    let bytes = std::fs::metadata(folder.join("models/Tiny-Llama.gguf")).unwrap().len();
    assert_eq!(
        (&model["files"][0]["path"], &model["files"][0]["bytes"]),
        (&json!("models/Tiny-Llama.gguf"), &json!(bytes))
    );
    assert_eq!(model["files"][0]["sha256"].as_str().unwrap().len(), 64);
    assert_eq!((&model["architecture"], &model["format"]), (&json!("llama"), &json!("gguf")));
    for fact in ["context_length", "parameters", "disk_bytes", "min_ram_bytes"] {
        assert!(model[fact].as_u64().unwrap() > 0, "{fact}: {model}");
    }
    assert_eq!(succeeds(&add(&[]))["edited"], "unchanged");
    assert_eq!(
        succeeds(&orion(&folder, &["registry", "validate", "--missing", "error", "--json"]))["warnings"],
        0
    );
    let list = succeeds(&orion(&folder, &["registry", "list", "--json"]));
    assert_eq!(
        (list["models"][0]["id"].as_str(), &list["models"][0]["local"]),
        (Some("tiny-llama"), &json!(true))
    );
    // The id opens the same weights as the path.
    let logits =
        |model: &str| succeeds(&orion(&folder, &["logits", "--model", model, "--tokens", "1,2,3", "--json"]));
    assert_eq!(logits("tiny-llama"), logits("models/Tiny-Llama.gguf"));
    let unknown = orion(&folder, &["logits", "--model", "tiny-lama", "--tokens", "1", "--json"]);
    refuses(&unknown, "not_found", "did you mean \"tiny-llama\"?");
    // What a person wrote survives that the file is added again.
    let file = folder.join("models.json");
    let edited = std::fs::read_to_string(&file).unwrap().replacen(
        "\"context_length\"",
        "\"priority\": 7, \"context_length\"",
        1,
    );
    write(&file, &edited);
    assert_eq!(succeeds(&add(&[]))["model"]["priority"], 7);
}

#[test]
fn measured_figures_go_into_a_file_of_their_own() {
    let folder = scratch("registry-bench");
    tiny_gguf(&folder.join("tiny.gguf"));
    succeeds(&orion(&folder, &["registry", "add", "tiny.gguf", "--json"]));
    let before = std::fs::read(folder.join("models.json")).unwrap();
    let bench = |model: &str| {
        orion(
            &folder,
            &["bench", "--model", model, "-p", "8", "-n", "4", "-r", "1", "-t", "1", "--save", "--json"],
        )
    };
    let saved = succeeds(&bench("tiny"));
    assert_eq!(
        (&saved["saved"]["model"], &saved["saved"]["file"]),
        (&json!("tiny"), &json!("models.local.json"))
    );
    assert_eq!(std::fs::read(folder.join("models.json")).unwrap(), before);
    let shown = succeeds(&orion(&folder, &["registry", "show", "tiny", "--json"]));
    assert_eq!(shown["measured"]["tokens_per_second"], saved["decode_tps"]["median"]);
    assert!(shown["measured"]["ttft_ms"].as_f64().unwrap() > 0.0, "{shown}");
    assert!(shown["measured"]["host"].as_str().unwrap().ends_with("1 threads"), "{shown}");
    refuses(&bench("./tiny.gguf"), "invalid_input", "--save needs an id of the registry");
}

#[test]
fn a_folder_is_scanned_whole_and_what_is_broken_named() {
    let folder = scratch("registry-scan");
    tiny_gguf(&folder.join("zoo/a/tiny.gguf"));
    tiny_gguf(&folder.join("zoo/b/tiny.gguf"));
    tiny_gguf(&folder.join("zoo/set-00002-of-00002.gguf"));
    write(&folder.join("zoo/broken.gguf"), "GGUF but not for long");
    let scan = || orion(&folder, &["registry", "scan", "zoo", "--json"]);
    let output = scan();
    assert_eq!(output.status.code(), Some(2));
    let report = json(&output);
    assert_eq!(each(&report["models"], "id"), ["tiny", "tiny-2"]);
    let failed = each(&report["failed"], "message");
    assert_eq!(failed.len(), 2);
    assert!(failed[0].contains("broken.gguf") && failed[1].contains("set-00001-of-00002.gguf"), "{failed:?}");
    // Again: the same models, the same ids.
    let again = json(&scan());
    assert_eq!(each(&again["models"], "edited"), ["unchanged", "unchanged"]);
    let elsewhere = scratch("registry-scan-elsewhere");
    tiny_gguf(&elsewhere.join("far.gguf"));
    let far = elsewhere.join("far.gguf");
    refuses(
        &orion(&folder, &["registry", "add", far.to_str().unwrap(), "--json"]),
        "invalid_input",
        "not below",
    );
    refuses(&orion(&folder, &["registry", "add", "no.gguf", "--json"]), "not_found", "no.gguf");
    refuses(&orion(&folder, &["registry", "add", "models.json", "--json"]), "unsupported", "models.json");
}

#[test]
fn show_and_recommend_give_facts_and_reasons() {
    let folder = scratch("registry-ask");
    let demo = demo();
    let ask = |arguments: &[&str]| {
        orion(&folder, &[&["registry"], arguments, &["--registry", &demo, "--json"]].concat())
    };
    let shown = succeeds(&ask(&["show", "coder"]));
    assert_eq!((&shown["id"], &shown["model"]["architecture"]), (&json!("code"), &json!("llama")));
    assert_eq!(shown["groups"], json!(["agents"]));
    let advice = succeeds(&ask(&["recommend", "coding", "--memory", "4096"]));
    assert_eq!((&advice["best"], &advice["memory_bytes"]), (&json!("code"), &json!(4_294_967_296_u64)));
    assert!(!advice["fitting"][0]["reasons"].as_array().unwrap().is_empty());
    assert!(advice["hardware"]["cores"].as_u64().unwrap() > 0);
    let little = succeeds(&ask(&["recommend", "--memory", "1"]));
    assert_eq!((&little["best"], &little["fitting"]), (&json!(null), &json!([])));
    let french = succeeds(&ask(&["list", "--language", "fr", "--group", "agents"]));
    assert_eq!(each(&french["models"], "id"), ["translation"]);
    refuses(&ask(&["show", "codr"]), "not_found", "did you mean");
    refuses(&ask(&["recommend", "codding"]), "not_found", "did you mean \"coding\"?");
    refuses(&ask(&["list", "--group", "agnts"]), "not_found", "did you mean \"agents\"?");
    let table = text(&orion(&folder, &["registry", "list", "--registry", &demo]));
    assert!(table.starts_with("id ") && table.lines().count() > 5, "{table}");
}

#[test]
fn reload_check_says_what_would_change() {
    let folder = scratch("registry-reload");
    let entry = |id: &str, context: u32| {
        format!(r#"{{"id": "{id}", "files": [{{"path": "{id}.gguf"}}], "context_length": {context}}}"#)
    };
    let registry = |models: &[String]| format!(r#"{{"version": 1, "models": [{}]}}"#, models.join(", "));
    write(&folder.join("models.json"), &registry(&[entry("a", 1), entry("b", 1)]));
    write(&folder.join("new.json"), &registry(&[entry("b", 2), entry("c", 1)]));
    write(&folder.join("bad.json"), "{");
    let check =
        |arguments: &[&str]| orion(&folder, &[&["registry", "reload-check", "--json"], arguments].concat());
    let same = succeeds(&check(&[]));
    assert_eq!(
        (&same["reloaded"], &same["version"], &same["changed"]),
        (&json!(true), &json!(2), &json!([]))
    );
    let changes = succeeds(&check(&["--with", "new.json"]));
    assert_eq!(
        (&changes["added"], &changes["removed"], &changes["changed"]),
        (&json!(["c"]), &json!(["a"]), &json!(["b"]))
    );
    let broken = check(&["--with", "bad.json"]);
    assert_eq!(broken.status.code(), Some(2));
    assert_eq!(json(&broken)["reloaded"], false);
}

#[test]
fn an_agent_brings_its_instructions_and_its_template() {
    let folder = scratch("registry-agent");
    let weights = smollm2();
    let name = weights.file_name().unwrap().to_str().unwrap();
    write(
        &folder.join("models.json"),
        &json!({
            "version": 1,
            "models": [
                {"id": "base", "files": [{"path": name}]},
                {"id": "brief", "base": "base", "system_prompt": "Answer in one word."},
                {"id": "plain", "base": "base", "prompt": {"user_prefix": "Q: ", "turn_end": "\n", "assistant_prefix": "A:"}},
            ],
        })
        .to_string(),
    );
    let tokens = |arguments: &[&str]| {
        let mut command = command(&folder, &[&["generate", "-n", "1", "--json"], arguments].concat());
        let output = command.env("ORION_MODELS", weights.parent().unwrap()).output().unwrap();
        succeeds(&output)["usage"]["prompt_tokens"].as_u64().unwrap()
    };
    let path = weights.to_str().unwrap();
    let told = tokens(&["--model", path, "--system", "Answer in one word.", "--prompt", "Hello"]);
    assert_eq!(tokens(&["--model", "brief", "--prompt", "Hello"]), told);
    assert_ne!(tokens(&["--model", "base", "--prompt", "Hello"]), told);
    let raw = tokens(&["--model", path, "--raw", "--prompt", "Q: Hello\nA:"]);
    assert_eq!(tokens(&["--model", "plain", "--prompt", "Hello"]), raw);
}
