//! Models from URLs: fetched, kept, listed, verified, cleaned. Runs the real binary against a loopback server.
#![allow(clippy::unwrap_used, reason = "in a test a panic is a failure")]

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use orion_testkit::models::smollm2;
use orion_testkit::server::Server;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

struct Bench {
    cache: TempDir,
    server: Server,
    model: Vec<u8>,
}

impl Bench {
    fn new() -> Self {
        let model = fs::read(smollm2()).unwrap();
        let server = Server::of(vec![("/m.gguf", model.clone())]);
        Self { cache: TempDir::new().unwrap(), server, model }
    }

    fn url(&self) -> String {
        format!("{}/m.gguf", self.server.url)
    }

    fn orion(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_orion"))
            .args(arguments)
            .env("ORION_CACHE", self.cache.path())
            .output()
            .unwrap()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let output = self.orion(&[arguments, &["--json"]].concat());
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_model_is_pulled_listed_verified_and_cleaned() {
    let bench = Bench::new();
    let url = bench.url();
    let pulled = bench.json(&["pull", &url]);
    let file = PathBuf::from(pulled["files"][0].as_str().unwrap());
    assert_eq!(fs::read(&file).unwrap(), bench.model);
    let listed = bench.json(&["cache", "list"]);
    assert_eq!(listed["bytes"], bench.model.len());
    assert_eq!(listed["files"][0]["digest"], hex(&bench.model).as_str());
    assert_eq!(listed["files"][0]["urls"][0], url.as_str());
    assert_eq!(bench.json(&["cache", "verify"])["good"], 1);

    let mut flipped = bench.model.clone();
    flipped[50_000_000] ^= 1;
    fs::write(&file, flipped).unwrap();
    let verified = bench.json(&["cache", "verify"]);
    assert_eq!((&verified["good"], &verified["bad"][0]), (&0.into(), &hex(&bench.model).into()));
    assert_eq!(bench.json(&["cache", "clean"])["removed_bytes"], bench.model.len());
    bench.json(&["pull", &url]);
    assert_eq!(bench.json(&["cache", "clean", "--most", "200M"])["removed_bytes"], 0);
    assert_eq!(bench.json(&["cache", "clean", "--most", "0"])["removed_bytes"], bench.model.len());
    assert_eq!(bench.json(&["cache", "list"])["bytes"], 0);
}

#[test]
fn every_command_takes_a_url_and_answers_as_from_the_file() {
    let bench = Bench::new();
    let (url, local) = (bench.url(), smollm2());
    let local = local.to_str().unwrap();
    let generate = |model| {
        let prompt = ["generate", "--model", model, "--prompt", "List three fruits.", "-n", "24"];
        bench.json(&prompt)["token_ids"].clone()
    };
    assert_eq!(generate(&url), generate(local));
    let tokens = |model| bench.json(&["tokenize", "--model", model, "--text", "Hello, world"]);
    assert_eq!(tokens(&url), tokens(local));
    let logits = |model| bench.json(&["logits", "--model", model, "--tokens", "1,2,3"]);
    assert_eq!(logits(&url), logits(local));
    let inspected = |model| bench.json(&["inspect", model])["parameters"].clone();
    assert_eq!(inspected(&url), inspected(local));
    // One fetch, and afterwards questions whether it is still the same, which take no body.
    let first = |name: &str| {
        bench.server.requests().iter().filter(|request| !request.headers.contains_key(name)).count()
    };
    let parts =
        bench.server.requests().iter().filter(|request| request.headers.contains_key("range")).count();
    assert_eq!(first("if-none-match"), 1 + parts);
    // Offline it is there all the same.
    assert_eq!(
        bench.json(&["tokenize", "--model", &url, "--text", "Hello, world", "--offline"]),
        tokens(local)
    );
}

#[test]
fn what_cannot_be_fetched_is_an_error_that_says_so() {
    let bench = Bench::new();
    let missing = format!("{}/none.gguf", bench.server.url);
    let cases = [
        (vec!["pull", &missing], 2, "not_found"),
        (
            vec!["tokenize", "--text", "x", "--offline", "--model", "https://host.invalid/m.gguf"],
            2,
            "not_found",
        ),
        (vec!["pull", "ftp://host.invalid/m.gguf"], 2, "invalid_input"),
        (vec!["pull", "hf://only-a-name"], 2, "invalid_input"),
        (vec!["pull", "no-such-file.gguf"], 2, "not_found"),
    ];
    for (arguments, status, kind) in cases {
        let output = bench.orion(&[&arguments[..], &["--json"]].concat());
        assert_eq!(output.status.code(), Some(status), "{arguments:?} {output:?}");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["error"]["kind"], kind, "{arguments:?} {report}");
    }
}
