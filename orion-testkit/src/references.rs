//! Tiny random models of every supported architecture, with the logits that transformers computes for them.
//!
//! A case is a folder of `orion-runtime/tests/references`; `scripts/reference` made it and says how.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use safetensors::SafeTensors;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::gguf::Form;
pub use crate::recipe::Dtype;
use crate::recipe::Fill;

/// A reference model and its golden logits.
#[derive(Debug, Clone)]
pub struct Case {
    /// Name of its folder: architecture first.
    pub name: String,
    /// Its `config.json`, and the same in the spelling before transformers 5 where there is one.
    pub configs: Vec<Value>,
    /// How its files store the weights.
    pub dtype: Dtype,
    /// The prompt.
    pub tokens: Vec<u32>,
    /// The logits after each token of the prompt, computed in f32.
    pub logits: Matrix,
    /// Its weights in the order of their names, widened to f32.
    pub tensors: Vec<Tensor>,
    /// SHA-256 of the weights that transformers ran, in the order of their names, as a file stores them.
    pub weights_sha256: String,
    /// SHA-256 of the GGUF file that the package `gguf` writes of this model, where there is one.
    pub gguf_sha256: Option<String>,
    gguf: Option<Form>,
}

/// A weight under its Hugging Face name.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// Slowest dimension first.
    pub shape: Vec<usize>,
    /// Row after row.
    pub values: Vec<f32>,
}

/// Rows of equal width.
#[derive(Debug, Clone, PartialEq)]
pub struct Matrix {
    width: usize,
    values: Vec<f32>,
}

impl Matrix {
    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.values.len() / self.width
    }

    /// Row `index`.
    ///
    /// # Panics
    /// If there is no such row.
    #[must_use]
    pub fn row(&self, index: usize) -> &[f32] {
        &self.values[index * self.width..(index + 1) * self.width]
    }
}

#[derive(Deserialize)]
struct CaseFile {
    seed: u64,
    dtype: Dtype,
    tokens: Vec<u32>,
    weights_sha256: String,
    gguf_sha256: Option<String>,
    tensors: BTreeMap<String, Fill>,
    gguf: Option<Form>,
}

fn folder() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../orion-runtime/tests/references"))
}

/// The names of all cases, sorted.
///
/// # Panics
/// If the folder cannot be read.
#[must_use]
pub fn names() -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder())
        .expect("the folder of references")
        .map(|entry| entry.expect("an entry of it").path())
        .filter(|path| path.join("case.json").exists())
        .map(|path| path.file_name().expect("a folder's name").to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// All cases.
///
/// # Panics
/// As [`case`].
#[must_use]
pub fn cases() -> Vec<Case> {
    names().iter().map(|name| case(name)).collect()
}

/// The case called `name`.
///
/// # Panics
/// If there is none, or its files are not what the script writes.
#[must_use]
pub fn case(name: &str) -> Case {
    let folder = folder().join(name);
    let read =
        |file: &str| fs::read(folder.join(file)).unwrap_or_else(|error| panic!("{name}/{file}: {error}"));
    let parse =
        |file: &str| serde_json::from_slice(&read(file)).unwrap_or_else(|e| panic!("{name}/{file}: {e}"));
    let file: CaseFile = serde_json::from_slice(&read("case.json"))
        .unwrap_or_else(|error| panic!("{name}/case.json: {error}"));
    let mut configs = vec![parse("config.json")];
    if folder.join("config.old.json").exists() {
        configs.push(parse("config.old.json"));
    }
    let golden = read("golden.safetensors");
    let golden = SafeTensors::deserialize(&golden)
        .unwrap_or_else(|error| panic!("{name}/golden.safetensors: {error}"));
    let logits = golden.tensor("logits").expect("the golden logits");
    let tensors = file
        .tensors
        .iter()
        .map(|(tensor, fill)| Tensor {
            name: tensor.clone(),
            shape: fill.shape.clone(),
            values: fill.values(file.seed, tensor).into_iter().map(|value| file.dtype.round(value)).collect(),
        })
        .collect();
    Case {
        name: name.to_owned(),
        configs,
        dtype: file.dtype,
        tokens: file.tokens,
        logits: Matrix {
            width: logits.shape()[1],
            values: logits
                .data()
                .chunks_exact(4)
                .map(|bytes| f32::from_le_bytes(bytes.try_into().expect("four bytes")))
                .collect(),
        },
        tensors,
        gguf: file.gguf,
        weights_sha256: file.weights_sha256,
        gguf_sha256: file.gguf_sha256,
    }
}

impl Case {
    /// The weights as one safetensors file.
    ///
    /// # Panics
    /// Never: the header is made of plain strings and numbers.
    #[must_use]
    pub fn safetensors(&self) -> Vec<u8> {
        let dtype = match self.dtype {
            Dtype::F32 => "F32",
            Dtype::F16 => "F16",
            Dtype::Bf16 => "BF16",
        };
        let mut data = Vec::new();
        let mut header = serde_json::Map::new();
        header.insert("__metadata__".into(), json!({"format": "pt"}));
        for tensor in &self.tensors {
            let begin = data.len();
            self.dtype.encode(&tensor.values, &mut data);
            let entry = json!({"dtype": dtype, "shape": tensor.shape, "data_offsets": [begin, data.len()]});
            header.insert(tensor.name.clone(), entry);
        }
        let mut header = serde_json::to_vec(&header).expect("a JSON object");
        header.resize(header.len().next_multiple_of(8), b' ');
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header);
        file.extend(data);
        file
    }

    /// The model as one GGUF file without a vocabulary, where GGUF and llama.cpp can express it.
    #[must_use]
    pub fn gguf(&self) -> Option<Vec<u8>> {
        Some(self.gguf.as_ref()?.write(self.dtype, &self.tensors))
    }
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;

    fn sha256(bytes: &[u8]) -> String {
        Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn weights_are_those_that_transformers_ran() {
        for case in cases() {
            let mut bytes = Vec::new();
            for tensor in &case.tensors {
                case.dtype.encode(&tensor.values, &mut bytes);
            }
            assert_eq!(sha256(&bytes), case.weights_sha256, "{}", case.name);
        }
    }

    #[test]
    fn gguf_files_are_those_that_the_package_gguf_writes() {
        for case in cases() {
            assert_eq!(case.gguf().map(|file| sha256(&file)), case.gguf_sha256, "{}", case.name);
        }
    }

    #[test]
    fn safetensors_files_parse_and_hold_the_weights() {
        let case = case("phi3-bf16");
        let file = case.safetensors();
        let parsed = SafeTensors::deserialize(&file).unwrap();
        assert_eq!(parsed.len(), case.tensors.len());
        for tensor in &case.tensors {
            let view = parsed.tensor(&tensor.name).unwrap();
            let mut bytes = Vec::new();
            case.dtype.encode(&tensor.values, &mut bytes);
            assert_eq!((view.shape(), view.data()), (&tensor.shape[..], &bytes[..]), "{}", tensor.name);
        }
    }

    #[test]
    fn every_architecture_is_there() {
        let names = names();
        for architecture in ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3"] {
            let count = names.iter().filter(|name| name.starts_with(architecture)).count();
            assert!(count >= 4, "{architecture}: {count} cases");
        }
    }
}
