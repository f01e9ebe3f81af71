//! What scripts rely on of `orion route` and `orion router`.

#![allow(clippy::unwrap_used, reason = "in a test a panic is a failure")]

mod common;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use common::{json, orion, refuses, scratch, succeeds, text};
use orion_testkit::models::minilm;
use serde_json::{Value, json};

fn demo() -> String {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../models.json").to_str().unwrap().to_owned()
}

fn encoder() -> String {
    minilm().to_str().unwrap().to_owned()
}

const THINGS: [&str; 12] = [
    "apple", "train", "garden", "piano", "river", "jacket", "hammer", "candle", "bridge", "pillow", "rocket",
    "violin",
];

/// Prompts of three kinds that any encoder tells apart.
fn labelled(folder: &Path) -> PathBuf {
    let mut csv = "text,label\n".to_owned();
    for thing in THINGS {
        writeln!(csv, "\"Write a poem, please, about a {thing}\",poem").unwrap();
        writeln!(csv, "how much does a new {thing} cost in dollars?,price").unwrap();
        writeln!(csv, "turn the lights off near the {thing},lights").unwrap();
    }
    let path = folder.join("data.csv");
    std::fs::write(&path, csv).unwrap();
    path
}

/// Questions whose words say who is right: the weak model knows the poem and not the proof.
fn records(folder: &Path) -> PathBuf {
    let mut lines = String::new();
    for thing in THINGS {
        for (prompt, weak) in [
            (format!("Name one colour of a {thing}."), true),
            (format!("Prove the theorem about the topology of the {thing} manifold."), false),
        ] {
            writeln!(lines, "{}", json!({"prompt": prompt, "weak_right": weak, "strong_right": 1})).unwrap();
        }
    }
    let path = folder.join("data.jsonl");
    std::fs::write(&path, lines).unwrap();
    path
}

fn router(folder: &Path, command: &str, arguments: &[&str]) -> std::process::Output {
    let encoder = encoder();
    orion(folder, &[&["router", command, "--encoder", &encoder], arguments].concat())
}

fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or_else(|| panic!("{key} in {value}"))
}

#[test]
fn a_head_is_trained_measured_and_calibrated() {
    let folder = scratch("router-labels");
    let data = labelled(&folder);
    let data = data.to_str().unwrap();
    let trained = succeeds(&router(&folder, "train", &["--data", data, "--out", "head", "--json"]));
    assert_eq!(trained["labels"], json!(["lights", "poem", "price"]));
    assert_eq!(trained["examples"], 36);
    let eval = ["--head", "head", "--data", data];
    let report =
        succeeds(&router(&folder, "eval", &[&eval[..], &["--plot", "curve.svg", "--json"]].concat()));
    assert!(number(&report, "accuracy") >= 0.95, "{report}");
    assert!((number(&report["baselines"], "random") - 1.0 / 3.0).abs() < 1e-9);
    assert!((number(&report["baselines"], "majority") - 1.0 / 3.0).abs() < 1e-9);
    assert_eq!(report["per_label"]["poem"]["examples"], 12);
    for key in ["abstained", "ece", "wrongly_rejected"] {
        assert!((0.0..=1.0).contains(&number(&report, key)), "{key}");
    }
    assert!(number(&report["latency"], "p50_us") <= number(&report["latency"], "p95_us"));
    let svg = std::fs::read_to_string(folder.join("curve.svg")).unwrap();
    assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
    let people = text(&router(&folder, "eval", &eval));
    for part in
        ["accuracy", "random 33.3 %", "majority 33.3 %", "best single", "right label (rows)", "calibration"]
    {
        assert!(people.contains(part), "{part:?} in {people}");
    }
    // A threshold that answers half of them rightly abstains on the other half.
    let calibrated = succeeds(&router(
        &folder,
        "calibrate",
        &["--head", "head", "--data", data, "--in-scope", "0.5", "--out", "half", "--json"],
    ));
    assert!((number(&calibrated, "accuracy") - 0.5).abs() < 0.03, "{calibrated}");
    let half = succeeds(&router(&folder, "eval", &["--head", "half", "--data", data, "--json"]));
    assert_eq!(half["accuracy"], calibrated["accuracy"]);
    assert!(number(&half, "abstained") >= 0.45);
    // The head is bound to its encoder, precision included.
    let other = router(&folder, "eval", &[&eval[..], &["--precision", "f32", "--json"]].concat());
    refuses(&other, "invalid_input", "train it again");
}

#[test]
fn a_head_says_how_deep_its_encoder_is_run() {
    let folder = scratch("router-depth");
    let data = labelled(&folder);
    let data = data.to_str().unwrap();
    let train = |depth: &str, precision: &str| {
        let options = ["--depth", depth, "--precision", precision, "--data", data, "--out", "head", "--json"];
        router(&folder, "train", &options)
    };
    for precision in ["int7", "f32"] {
        let trained = succeeds(&train("3", precision));
        let encoder = trained["encoder"].as_str().unwrap();
        assert!(encoder.ends_with(&format!("-{precision}-mean3+mean2+mean1")), "{encoder}");
        // Nobody has to repeat it.
        let report = succeeds(&router(&folder, "eval", &["--head", "head", "--data", data, "--json"]));
        assert!(number(&report, "accuracy") >= 0.95, "{report}");
    }
    refuses(&train("7", "int7"), "invalid_input", "layer 7 of an encoder of 6");
}

#[test]
fn a_head_of_difficulty_is_trained_measured_and_calibrated() {
    let folder = scratch("router-difficulty");
    let data = records(&folder);
    let data = data.to_str().unwrap();
    let train = ["--difficulty", "--data", data, "--out", "head", "--json"];
    assert_eq!(succeeds(&router(&folder, "train", &train))["kind"], "difficulty");
    let eval = ["--difficulty", "--head", "head", "--data", data];
    let report = succeeds(&router(&folder, "eval", &[&eval[..], &["--plot", "cost.svg", "--json"]].concat()));
    // The twelve hard ones first recover the whole gap: 0.74 on average over all shares.
    assert!(number(&report, "apgr") > 0.7, "{}", report["apgr"]);
    assert!((number(&report, "strong_share_at_50") - 0.25).abs() < 0.05, "{report}");
    assert!((number(&report, "strong_share_at_80") - 0.42).abs() < 0.05, "{report}");
    assert_eq!((&report["weak_accuracy"], &report["strong_accuracy"]), (&json!(0.5), &json!(1.0)));
    assert_eq!(report["curve"].as_array().unwrap().len(), 101);
    assert!(std::fs::read_to_string(folder.join("cost.svg")).unwrap().starts_with("<svg"));
    let people = text(&router(&folder, "eval", &eval));
    assert!(people.contains("random 50.0 %") && people.contains("wasted"), "{people}");
    let calibrate = |share: &str| {
        let arguments = ["--head", "head", "--data", data, "--share", share, "--out", "head", "--json"];
        router(&folder, "calibrate", &arguments)
    };
    let quarter = succeeds(&calibrate("0.25"));
    assert!((number(&quarter, "strong_share") - 0.25).abs() < 0.05, "{quarter}");
    assert!((number(&quarter, "accuracy") - 0.75).abs() < 0.05, "{quarter}");
    refuses(&calibrate("1.5"), "invalid_input", "--share is 1.5");
}

#[test]
fn data_and_heads_that_do_not_fit_are_refused_by_name() {
    let folder = scratch("router-refused");
    let data = labelled(&folder);
    let data = data.to_str().unwrap();
    let train = |data: &str, more: &[&str]| {
        router(&folder, "train", &[&["--data", data, "--out", "head", "--json"], more].concat())
    };
    let bad = |text: &str| {
        std::fs::write(folder.join("bad.csv"), text).unwrap();
        train("bad.csv", &[])
    };
    refuses(&bad("prompt,label\na,b\n"), "invalid_input", "text");
    refuses(&bad("text,label\na,b\nc\n"), "invalid_input", "line");
    refuses(&bad("text,label\na,b\nc,b\n"), "invalid_input", "labels");
    refuses(&bad(""), "invalid_input", "no example");
    refuses(&train("absent.csv", &[]), "not_found", "absent.csv");
    refuses(&train(data, &["--difficulty"]), "invalid_input", "prompt");
    succeeds(&train(data, &[]));
    let eval = |head: &str, more: &[&str]| {
        router(&folder, "eval", &[&["--head", head, "--data", data, "--json"], more].concat())
    };
    refuses(&eval("head", &["--difficulty"]), "invalid_input", "not of difficulty");
    refuses(&eval(data, &[]), "corrupt", "data.csv");
    refuses(&eval("absent", &[]), "not_found", "absent");
    let no_encoder = orion(
        &folder,
        &["router", "eval", "--encoder", "nowhere", "--head", "head", "--data", data, "--json"],
    );
    refuses(&no_encoder, "not_found", "nowhere");
}

#[test]
fn a_prompt_is_routed_with_the_reason() {
    let folder = scratch("router-route");
    let demo = demo();
    let route = |prompt: &str, more: &[&str]| {
        orion(&folder, &[&["route", "--registry", &demo, prompt], more].concat())
    };
    let decision = succeeds(&route("Write a haiku about autumn", &["--json"]));
    assert_eq!((&decision["model"], &decision["abstained"]), (&json!("creative"), &json!(false)));
    assert_eq!(decision["ranked"][0]["model"], "creative");
    assert!(number(&decision, "confidence") > 0.0 && number(&decision, "latency_us") > 0.0);
    assert!(!decision["reason"].as_str().unwrap().is_empty());
    for nothing in ["", "  ", "?!", "aaaaaaaaaaaa", "zxcv qwerty uiop asdf"] {
        let decision = succeeds(&route(nothing, &["--json"]));
        assert_eq!(
            (&decision["model"], &decision["default"]),
            (&json!(null), &json!("conversation")),
            "{nothing:?}"
        );
    }
    let explained = text(&route("Traduis en anglais : il fait beau", &["--explain"]));
    assert!(explained.starts_with("translation should answer ("), "{explained}");
    assert!(explained.contains("because: ") && explained.contains("ranking:"), "{explained}");
    let follow = ["--current", "translation", "--after", "Translate to French: good evening", "--json"];
    assert_eq!(succeeds(&route("and in Spanish?", &follow))["model"], "translation");
    assert_eq!(text(&route("Write a haiku about autumn", &[])), "creative\n");
}

#[test]
fn keywords_need_no_encoder_and_a_missing_one_is_named() {
    let folder = scratch("router-keywords");
    let registry = |more: Value| {
        let mut value = json!({
            "version": 1,
            "models": [
                {"id": "coder", "files": [{"path": "a.gguf"}], "routing": {"keywords": ["rust", "compiler"]}},
                {"id": "poet", "files": [{"path": "b.gguf"}], "routing": {"keywords": ["poem"]}},
            ],
            "defaults": {"model": "coder"},
        });
        value.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        std::fs::write(folder.join("models.json"), value.to_string()).unwrap();
    };
    registry(json!({}));
    let decision = succeeds(&orion(&folder, &["route", "a poem about rain", "--json"]));
    assert_eq!((&decision["model"], &decision["router"]), (&json!("poet"), &json!("keyword")));
    let output = orion(&folder, &["route", "good morning", "--json"]);
    assert_eq!((&json(&output)["model"], &json(&output)["default"]), (&json!(null), &json!("coder")));
    refuses(
        &orion(&folder, &["route", "x", "--by", "embedding", "--json"]),
        "invalid_input",
        "needs an encoder",
    );
    let spec =
        json!({"id": "enc", "files": [{"path": "enc/model.safetensors"}], "capabilities": ["embedding"]});
    registry(json!({"router": {"encoder": "enc"}}));
    let mut value: Value =
        serde_json::from_slice(&std::fs::read(folder.join("models.json")).unwrap()).unwrap();
    value["models"].as_array_mut().unwrap().push(spec);
    std::fs::write(folder.join("models.json"), value.to_string()).unwrap();
    refuses(&orion(&folder, &["route", "a poem", "--json"]), "not_found", "enc/model.safetensors");
    refuses(
        &orion(&folder, &["route", "x", "--registry", "absent.json", "--json"]),
        "not_found",
        "absent.json",
    );
}
