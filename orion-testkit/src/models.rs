//! The models that `scripts/models.py` fetches.
//!
//! A test that needs one and does not find it fails; it is never skipped.

use std::env;
use std::path::PathBuf;

/// The cache: `$ORION_MODELS`, else `$XDG_CACHE_HOME/orion/models`, else `~/.cache/orion/models`.
///
/// # Panics
/// If none of the three is set.
#[must_use]
pub fn cache() -> PathBuf {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("ORION_MODELS").unwrap_or_else(|| {
        set("XDG_CACHE_HOME")
            .or_else(|| Some(set("HOME")?.join(".cache")))
            .expect("ORION_MODELS, XDG_CACHE_HOME or HOME is set")
            .join("orion/models")
    })
}

/// SmolLM2 135M Instruct, Q4_1: a GGUF file.
///
/// # Panics
/// If it has not been fetched.
#[must_use]
pub fn smollm2() -> PathBuf {
    find("SmolLM2-135M-Instruct.Q4_1.gguf", "make models")
}

/// all-MiniLM-L6-v2: a directory with `config.json`, `tokenizer.json` and `model.safetensors`.
///
/// # Panics
/// If it has not been fetched.
#[must_use]
pub fn minilm() -> PathBuf {
    find("all-MiniLM-L6-v2", "make models")
}

/// Gemma 3 270M, Q4_K_M: a GGUF file. `make models` does not fetch it, so tests of CI must not need it.
///
/// # Panics
/// If it has not been fetched.
#[must_use]
pub fn gemma() -> PathBuf {
    find("gemma-3-270m-Q4_K_M.gguf", "make models-gemma")
}

fn find(name: &str, command: &str) -> PathBuf {
    let path = cache().join(name);
    assert!(path.exists(), "{} is not there; `{command}` fetches it", path.display());
    path
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn the_script_names_the_same_paths() {
        for (name, file) in [
            ("smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
            ("minilm", "all-MiniLM-L6-v2"),
            ("gemma", "gemma-3-270m-Q4_K_M.gguf"),
        ] {
            let out = Command::new("python3")
                .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/models.py"))
                .args(["--print-path", name])
                .output()
                .expect("python3 runs");
            let printed = String::from_utf8(out.stdout).expect("a path in UTF-8");
            assert_eq!(printed.trim_end(), cache().join(file).to_str().expect("a path in UTF-8"));
        }
    }

    #[test]
    #[should_panic(expected = "`make models` fetches it")]
    fn an_absent_model_fails_and_names_the_command() {
        let _ = find("no-such-model.gguf", "make models");
    }
}
