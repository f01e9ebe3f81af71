//! What scripts rely on: exit status, JSON keys, errors. Runs the real binary on the real model.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use orion_testkit::models::{minilm, smollm2};
use serde_json::Value;

fn orion(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_orion")).args(arguments).output().expect("the binary runs")
}

fn on_model(command: &str, arguments: &[&str]) -> Output {
    let model = smollm2();
    let mut all = vec![command, "--model", model.to_str().expect("the path is UTF-8")];
    all.extend(arguments);
    orion(&all)
}

fn json(output: &Output) -> Value {
    let text = std::str::from_utf8(&output.stdout).expect("UTF-8");
    let context = || format!("{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(text.lines().count(), 1, "one line: {}", context());
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {}", context()))
}

fn succeeds(output: &Output) -> Value {
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stdout));
    json(output)
}

/// Exit status 2 and a JSON error of this kind whose message holds `part`.
fn refuses(output: &Output, kind: &str, part: &str) {
    assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stdout));
    let error = &json(output)["error"];
    assert_eq!(error["kind"], kind, "{error}");
    let message = error["message"].as_str().expect("a message");
    assert!(message.contains(part), "{message}");
}

fn scratch(name: &str) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&path).expect("the scratch directory can be made");
    path
}

#[test]
fn generate_reports_text_tokens_usage_and_timings() {
    let prompt = ["--prompt", "List three fruits.", "--repetition-penalty", "1", "-n", "80", "--json"];
    let run = || succeeds(&on_model("generate", &prompt));
    let report = run();
    assert!(report["text"].as_str().unwrap().contains("Apples"), "{report}");
    assert_eq!(report["finish_reason"], "stop");
    assert_eq!(report["usage"]["completion_tokens"], report["token_ids"].as_array().unwrap().len());
    for key in ["ttft_s", "prefill_tps", "decode_tps", "load_s"] {
        assert!(report["timings"][key].as_f64().unwrap() > 0.0, "{key}: {report}");
    }
    assert!(report["peak_rss_mb"].as_f64().unwrap() > 50.0);
    assert_eq!(run()["token_ids"], report["token_ids"]);
}

#[test]
fn raw_continues_the_text_as_it_stands() {
    let report =
        succeeds(&on_model("generate", &["--raw", "--prompt", "1 2 3 4 5 6 7 8", "-n", "4", "--json"]));
    assert_eq!(report["usage"]["prompt_tokens"], 15, "one token per digit and space, nothing added");
    assert!(report["text"].as_str().unwrap().starts_with(" 9"), "{report}");
    assert_eq!(report["finish_reason"], "length");
}

#[test]
fn a_stop_string_cuts_the_answer_and_one_that_never_comes_does_nothing() {
    let raw = ["--raw", "--prompt", "1 2 3 4 5 6 7 8", "-n", "8", "--json"];
    let plain = succeeds(&on_model("generate", &raw));
    let with = |stop: &str| succeeds(&on_model("generate", &[&raw[..], &["--stop", stop]].concat()));
    assert_eq!(with("never comes")["token_ids"], plain["token_ids"]);
    let cut = with("9");
    assert_eq!((cut["text"].as_str().unwrap(), cut["finish_reason"].as_str().unwrap()), (" ", "stop_string"));
}

#[test]
fn bad_input_is_refused_with_its_name() {
    let generate = |arguments: &[&str]| on_model("generate", &[&["--json"], arguments].concat());
    refuses(&generate(&["--prompt", ""]), "invalid_input", "the prompt is empty");
    refuses(&generate(&["--prompt", "hi", "--temperature", "NaN"]), "invalid_input", "temperature is NaN");
    refuses(&generate(&["--prompt", "hi", "--temperature", "-1"]), "invalid_input", "temperature is -1");
    refuses(&generate(&["--prompt", "hi", "--top-p", "0"]), "invalid_input", "top_p is 0");
    refuses(&generate(&["--prompt", "hi", "--top-p", "2"]), "invalid_input", "top_p is 2");
    refuses(&generate(&["--prompt", "hi", "--stop", ""]), "invalid_input", "stop string is empty");
    refuses(&generate(&["--prompt", "hi", "--threads", "0"]), "invalid_input", "threads");
    refuses(&generate(&["--prompt", &"hello ".repeat(9000)]), "context_overflow", "the context holds 8192");
    refuses(&on_model("logits", &["--tokens", "1,x", "--json"]), "invalid_input", "\"x\" is no token id");
    refuses(
        &on_model("logits", &["--tokens", "1,49152", "--json"]),
        "invalid_input",
        "outside the vocabulary",
    );
}

#[test]
fn a_wrong_path_or_file_is_refused() {
    let try_model = |path: &str| orion(&["generate", "--model", path, "--prompt", "hi", "--json"]);
    refuses(&try_model("no/such/model.gguf"), "not_found", "no/such/model.gguf");
    let empty = scratch("empty");
    refuses(&try_model(empty.to_str().unwrap()), "not_found", "");
    let folder = scratch("damaged");
    let whole = std::fs::read(smollm2()).unwrap();
    let file = folder.join("short.gguf");
    std::fs::write(&file, &whole[..whole.len() - 1]).unwrap();
    let file = file.to_str().unwrap();
    refuses(&try_model(file), "corrupt", "short.gguf");
    refuses(&orion(&["inspect", file, "--json"]), "corrupt", "short.gguf");
    let text = folder.join("text.gguf");
    std::fs::write(&text, "this is no model").unwrap();
    refuses(&try_model(text.to_str().unwrap()), "corrupt", "text.gguf");
}

#[test]
fn without_json_an_error_goes_to_standard_error_and_says_what_is_wrong() {
    let output = orion(&["generate", "--model", "missing.gguf", "--prompt", "hi"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stdout.is_empty());
    assert!(String::from_utf8_lossy(&output.stderr).starts_with("orion: missing.gguf: "));
    assert_eq!(orion(&["no-such-command"]).status.code(), Some(2));
    refuses(&orion(&["generate", "--json"]), "invalid_input", "required arguments");
}

#[test]
fn tokenize_adds_nothing_and_parses_special_tokens_only_when_asked() {
    let ids = |arguments: &[&str]| {
        succeeds(&on_model("tokenize", &[arguments, &["--json"]].concat()))["ids"].clone()
    };
    assert_eq!(ids(&["--text", "<|im_end|>", "--special"]), serde_json::json!([2]));
    assert_ne!(ids(&["--text", "<|im_end|>"]), serde_json::json!([2]));
    assert_eq!(ids(&["--text", ""]), serde_json::json!([]));
}

#[test]
fn logits_come_for_every_position() {
    let report = succeeds(&on_model("logits", &["--tokens", "1,4093,198", "--json"]));
    let positions = report["positions"].as_array().unwrap();
    assert_eq!(positions.len(), 3);
    for (index, position) in positions.iter().enumerate() {
        assert_eq!(position["position"], index);
        let top: Vec<f64> = position["top"]
            .as_array()
            .unwrap()
            .iter()
            .map(|entry| entry["logit"].as_f64().unwrap())
            .collect();
        assert_eq!(top.len(), 20);
        assert!(top.is_sorted_by(|a, b| a >= b));
    }
}

#[test]
fn eval_scores_the_second_half_of_each_chunk() {
    let file = scratch("eval").join("text.txt");
    std::fs::write(&file, "The quick brown fox jumps over the lazy dog. ".repeat(20)).unwrap();
    let report = succeeds(&on_model("eval", &["--file", file.to_str().unwrap(), "--ctx", "64", "--json"]));
    let chunks = report["chunks"].as_u64().unwrap();
    assert_eq!(chunks, report["tokens"].as_u64().unwrap() / 64);
    assert_eq!(report["scored"].as_u64().unwrap(), chunks * 31);
    let perplexity = report["perplexity"].as_f64().unwrap();
    assert!(perplexity > 1.0 && perplexity < 3.0, "a repeated sentence is easy: {perplexity}");
    let short = on_model("eval", &["--file", file.to_str().unwrap(), "--ctx", "4096", "--json"]);
    refuses(&short, "invalid_input", "fewer than one chunk");
}

#[test]
fn bench_reports_median_least_and_most() {
    let report = succeeds(&on_model("bench", &["-p", "16", "-n", "4", "-t", "2", "-r", "2", "--json"]));
    for key in ["prefill_tps", "decode_tps"] {
        let [min, median, max] = ["min", "median", "max"].map(|part| report[key][part].as_f64().unwrap());
        assert!(0.0 < min && min <= median && median <= max);
    }
    assert!(report["load_s"].as_f64().unwrap() > 0.0 && report["peak_rss_mb"].as_f64().unwrap() > 0.0);
    assert_eq!((&report["depth"], &report["streams"]), (&0.into(), &1.into()));
    let deep = ["-p", "0", "-n", "4", "-d", "40", "-s", "3", "-t", "2", "-r", "1", "--json"];
    let report = succeeds(&on_model("bench", &deep));
    assert_eq!((&report["depth"], &report["streams"]), (&40.into(), &3.into()));
    assert!(report["decode_tps"]["median"].as_f64().unwrap() > 0.0 && report["prefill_tps"].is_null());
    let refused = on_model("bench", &["-p", "0", "-n", "1", "-d", "40"]);
    assert_eq!(refused.status.code(), Some(2));
}

#[test]
fn inspect_describes_a_model() {
    let model = smollm2();
    let report = succeeds(&orion(&["inspect", model.to_str().unwrap(), "--json"]));
    assert_eq!(report["model"]["architecture"], "llama");
    assert_eq!(report["model"]["layers"], 30);
    assert_eq!(report["tensors"].as_array().unwrap().len(), 272);
}

/// Starts a chat whose input stays open.
fn chat() -> std::process::Child {
    Command::new(env!("CARGO_BIN_EXE_orion"))
        .args([
            "chat",
            "--model",
            smollm2().to_str().expect("the path is UTF-8"),
            "--temperature",
            "0",
            "--repetition-penalty",
            "1",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs")
}

#[test]
fn inspect_describes_a_sentence_encoder() {
    let inspect = |path: &str| orion(&["inspect", path, "--json"]);
    let report = succeeds(&inspect(minilm().to_str().unwrap()));
    let model = &report["model"];
    assert_eq!(
        (&model["architecture"], &model["layers"], &model["hidden"]),
        (&"bert".into(), &6.into(), &384.into())
    );

    // A config that promises a layer more than there are tensors for.
    let folder = scratch("encoder");
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        std::fs::copy(minilm().join(file), folder.join(file)).unwrap();
    }
    let config = folder.join("config.json");
    let more = std::fs::read_to_string(&config)
        .unwrap()
        .replace("\"num_hidden_layers\": 6", "\"num_hidden_layers\": 7");
    std::fs::write(&config, more).unwrap();
    refuses(&inspect(folder.to_str().unwrap()), "corrupt", "encoder.layer.6.attention.self.query.weight");
}

#[test]
fn embed_gives_unit_vectors_that_know_what_is_alike() {
    let model = minilm();
    let embed = |arguments: &[&str]| {
        orion(&[&["embed", "--model", model.to_str().unwrap(), "--json"], arguments].concat())
    };
    let vectors =
        |report: &Value| -> Vec<Vec<f64>> { serde_json::from_value(report["embeddings"].clone()).unwrap() };
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let texts = [
        "--text",
        "A cat sits on the mat.",
        "--text",
        "A kitten rests on a rug.",
        "--text",
        "Interest rates rose.",
    ];
    let report = succeeds(&embed(&texts));
    assert_eq!(report["dimension"], 384);
    let [cat, kitten, bank] = &vectors(&report)[..] else { panic!("three vectors") };
    assert!((dot(cat, cat) - 1.0).abs() < 1e-5 && cat.len() == 384);
    assert!(dot(cat, kitten) > dot(cat, bank) + 0.2);

    let alone = succeeds(&embed(&texts[..2]));
    assert!(dot(&vectors(&alone)[0], cat) > 0.999_999);
    assert_eq!(alone["embedding"], alone["embeddings"][0]);
    let int8 = succeeds(&embed(&[&texts[..2], &["--int8"]].concat()));
    assert!(dot(&vectors(&int8)[0], cat) > 0.998);

    let decoder = smollm2();
    refuses(
        &orion(&["embed", "--model", decoder.to_str().unwrap(), "--text", "x", "--json"]),
        "corrupt",
        "config.json",
    );
    refuses(&embed(&[]), "invalid_input", "--text");
}

#[test]
fn chat_remembers_the_turn_before() {
    let mut child = chat();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(b"The secret word is banana.\nWhat is the secret word?\n/quit\n")
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let last = text.trim_end().lines().last().unwrap();
    assert!(last.contains("banana"), "{text}");
}

#[cfg(unix)]
#[test]
fn an_interrupt_stops_the_answer_and_not_the_program() {
    let mut child = chat();
    let mut input = child.stdin.take().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    input.write_all(b"Write a very long story about the sea, with many chapters.\n").unwrap();
    // The first byte of the answer: it is running now.
    assert!(!output.fill_buf().unwrap().is_empty());
    let status = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(status.success());
    input.write_all(b"List three fruits.\n/quit\n").unwrap();
    drop(input);
    let mut rest = String::new();
    std::io::Read::read_to_string(&mut output, &mut rest).unwrap();
    let ended = child.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&ended.stderr).contains("(stopped)"));
    // What was stopped ends its line; the next question is answered below it.
    assert!(rest.trim_end().lines().count() >= 2, "{rest}");
}
