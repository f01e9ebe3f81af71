//! What other implementations compute, to compare with.
//!
//! - [`cases`]: tiny random decoders of every supported architecture, with the logits that transformers computes for them;
//!   [`encoders`]: the same for encoders.
//! - [`twin`]: the real quantised models, with the logits of the same weights widened to f32.
//! - [`sentences`]: embeddings of all-MiniLM-L6-v2.
//!
//! They are folders of `orion-runtime/tests`; `scripts/reference` made them and says how.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::gguf::Form;
pub use crate::recipe::Dtype;
use crate::recipe::Fill;

/// A reference model and its golden output.
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
    /// What transformers computes in f32, a row per token of the prompt: the logits after it, or an encoder's last hidden
    /// state.
    pub expected: Matrix,
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
pub struct Matrix<T = f32> {
    width: usize,
    values: Vec<T>,
}

impl<T> Matrix<T> {
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
    pub fn row(&self, index: usize) -> &[T] {
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

fn folder(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../orion-runtime/tests")).join(name)
}

/// All decoder cases, by name.
///
/// # Panics
/// As [`case`].
#[must_use]
pub fn cases() -> Vec<Case> {
    read_cases(&folder("references"))
}

/// All encoder cases, by name.
///
/// # Panics
/// As [`case`].
#[must_use]
pub fn encoders() -> Vec<Case> {
    read_cases(&folder("encoder-references"))
}

/// The decoder case called `name`.
///
/// # Panics
/// If there is none, or its files are not what the script writes.
#[must_use]
pub fn case(name: &str) -> Case {
    read_case(&folder("references").join(name))
}

fn read_cases(folder: &Path) -> Vec<Case> {
    let mut cases: Vec<_> = fs::read_dir(folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.expect("an entry of the folder").path())
        .filter(|path| path.join("case.json").exists())
        .map(|path| read_case(&path))
        .collect();
    cases.sort_by(|a, b| a.name.cmp(&b.name));
    cases
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn read_json<T: DeserializeOwned>(path: &Path) -> T {
    serde_json::from_slice(&read(path)).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Tensor `name` of a golden file, element by element through `convert`; the width is that of its last dimension.
fn golden<T>(folder: &Path, name: &str, convert: impl Fn([u8; 4]) -> T) -> Matrix<T> {
    let path = folder.join("golden.safetensors");
    let bytes = read(&path);
    let file = SafeTensors::deserialize(&bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let tensor = file.tensor(name).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    Matrix {
        width: *tensor.shape().last().expect("a golden tensor has rows"),
        values: tensor.data().as_chunks().0.iter().map(|bytes| convert(*bytes)).collect(),
    }
}

fn read_case(folder: &Path) -> Case {
    let file: CaseFile = read_json(&folder.join("case.json"));
    let mut configs = vec![read_json(&folder.join("config.json"))];
    let old = folder.join("config.old.json");
    if old.exists() {
        configs.push(read_json(&old));
    }
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
        name: folder.file_name().expect("a case has a folder").to_string_lossy().into_owned(),
        configs,
        dtype: file.dtype,
        tokens: file.tokens,
        expected: golden(folder, "expected", f32::from_le_bytes),
        tensors,
        gguf: file.gguf,
        weights_sha256: file.weights_sha256,
        gguf_sha256: file.gguf_sha256,
    }
}

/// The logits of a real quantised model's weights, widened to f32 and run by transformers.
#[derive(Debug, Clone)]
pub struct Twin {
    /// Prompts; the rows of the other fields are their positions, one prompt after the other.
    pub sequences: Vec<Vec<u32>>,
    /// The 20 best tokens, best first.
    pub top_ids: Matrix<u32>,
    /// Their logits.
    pub top_logits: Matrix,
    /// Mean of |Δlogit| over those, of llama.cpp to the twin: a runtime should be no further away.
    pub peer_mean: f64,
    /// Its maximum.
    pub peer_max: f64,
}

/// The twin of `smollm2` or `gemma`.
///
/// # Panics
/// If there is no such golden.
#[must_use]
pub fn twin(model: &str) -> Twin {
    #[derive(Deserialize)]
    struct Peer {
        mean: f64,
        max: f64,
    }
    #[derive(Deserialize)]
    struct TokensFile {
        peer: Peer,
        sequences: Vec<Vec<u32>>,
    }
    let folder = folder("references").join(model);
    let file: TokensFile = read_json(&folder.join("tokens.json"));
    Twin {
        sequences: file.sequences,
        top_ids: golden(&folder, "top_ids", u32::from_le_bytes),
        top_logits: golden(&folder, "top_logits", f32::from_le_bytes),
        peer_mean: file.peer.mean,
        peer_max: file.peer.max,
    }
}

/// A text as all-MiniLM-L6-v2 embeds it.
#[derive(Debug, Clone)]
pub struct Sentence {
    /// The text.
    pub text: String,
    /// Its tokens, with `[CLS]` and `[SEP]`, at most 256.
    pub ids: Vec<u32>,
    /// Its embedding, of length 1.
    pub embedding: Vec<f32>,
}

/// Texts and their embeddings by transformers in f32.
///
/// # Panics
/// If the golden is not what the script writes.
#[must_use]
pub fn sentences() -> Vec<Sentence> {
    #[derive(Deserialize)]
    struct Row {
        text: String,
        ids: Vec<u32>,
    }
    let folder = folder("encoder-references").join("minilm");
    let rows: Vec<Row> = read_json(&folder.join("sentences.json"));
    let embeddings = golden(&folder, "embeddings", f32::from_le_bytes);
    assert_eq!(rows.len(), embeddings.rows(), "a row per sentence");
    rows.into_iter()
        .enumerate()
        .map(|(index, row)| Sentence {
            text: row.text,
            ids: row.ids,
            embedding: embeddings.row(index).to_vec(),
        })
        .collect()
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
        for case in cases().into_iter().chain(encoders()) {
            let mut bytes = Vec::new();
            for tensor in &case.tensors {
                case.dtype.encode(&tensor.values, &mut bytes);
            }
            assert_eq!(sha256(&bytes), case.weights_sha256, "{}", case.name);
            assert_eq!(case.expected.rows(), case.tokens.len(), "{}", case.name);
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
        let cases = cases();
        for architecture in ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3"] {
            let count = cases.iter().filter(|case| case.configs[0]["model_type"] == architecture).count();
            assert!(count >= 4, "{architecture}: {count} cases");
        }
        assert!(encoders().len() >= 4);
    }

    #[test]
    fn twins_have_a_row_for_every_token() {
        for model in ["smollm2", "gemma"] {
            let twin = twin(model);
            let tokens: usize = twin.sequences.iter().map(Vec::len).sum();
            assert_eq!((twin.top_ids.rows(), twin.top_logits.rows()), (tokens, tokens), "{model}");
            assert_eq!(twin.top_ids.row(0).len(), 20, "{model}");
            assert!(twin.top_logits.row(0).is_sorted_by(|a, b| a >= b), "{model}");
        }
    }

    #[test]
    fn embeddings_have_length_one() {
        let sentences = sentences();
        assert!(sentences.iter().any(|sentence| sentence.ids.len() == 256));
        for sentence in sentences {
            let length: f32 = sentence.embedding.iter().map(|x| x * x).sum();
            assert!((length - 1.0).abs() < 1e-5, "{:?}", sentence.text);
        }
    }
}
