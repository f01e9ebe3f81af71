//! Runs the real binary and reads what it prints.

#![allow(dead_code, reason = "each test file uses its part")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// An empty folder to work in, of this test alone.
pub(crate) fn scratch(name: &str) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::remove_dir_all(&path).ok();
    std::fs::create_dir_all(&path).expect("the scratch directory can be made");
    path
}

/// The command in a folder, without what the environment says of registries.
pub(crate) fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_orion"));
    command.args(arguments).current_dir(folder).env_remove("ORION_REGISTRY").env("XDG_CONFIG_HOME", folder);
    command
}

pub(crate) fn orion(folder: &Path, arguments: &[&str]) -> Output {
    command(folder, arguments).output().expect("the binary runs")
}

pub(crate) fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

pub(crate) fn json(output: &Output) -> Value {
    let text = text(output);
    let context = || format!("{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(text.lines().count(), 1, "one line: {}", context());
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {}", context()))
}

pub(crate) fn succeeds(output: &Output) -> Value {
    let context = || format!("{}\n{}", text(output), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{}", context());
    json(output)
}

/// Exit status 2 and a JSON error of this kind whose message holds `part`.
pub(crate) fn refuses(output: &Output, kind: &str, part: &str) {
    assert_eq!(output.status.code(), Some(2), "{}", text(output));
    let error = &json(output)["error"];
    assert_eq!(error["kind"], kind, "{error}");
    let message = error["message"].as_str().expect("a message");
    assert!(message.contains(part), "{message}");
}

/// The strings of a JSON list, by a key of its elements.
pub(crate) fn each<'v>(list: &'v Value, key: &str) -> Vec<&'v str> {
    list.as_array().expect("a list").iter().map(|item| item[key].as_str().unwrap_or_default()).collect()
}
