//! A GGUF writer for the reference models, independent of the one that is tested with them.

use serde::Deserialize;
use serde_json::Value;

use crate::recipe::Dtype;
use crate::references::Tensor;

const ALIGNMENT: usize = 32;

/// Metadata and tensors of a model as GGUF; `scripts/reference/gguf_form.py` describes the operations.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Form {
    metadata: Vec<(String, String, Value)>,
    tensors: Vec<Entry>,
}

#[derive(Debug, Clone, Deserialize)]
struct Entry {
    name: String,
    #[serde(default)]
    from: String,
    op: String,
    #[serde(default)]
    values: Vec<f32>,
}

impl Form {
    /// The file.
    pub(crate) fn write(&self, dtype: Dtype, tensors: &[Tensor]) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, kind, value) in &self.metadata {
            string(&mut out, key);
            match kind.as_str() {
                "u32" => {
                    let value = value.as_u64().and_then(|v| u32::try_from(v).ok()).expect("a u32");
                    out.extend(4u32.to_le_bytes());
                    out.extend(value.to_le_bytes());
                }
                "f32" => {
                    out.extend(6u32.to_le_bytes());
                    out.extend((value.as_f64().expect("a number") as f32).to_le_bytes());
                }
                "str" => {
                    out.extend(8u32.to_le_bytes());
                    string(&mut out, value.as_str().expect("a string"));
                }
                other => panic!("metadata of kind {other} in a reference"),
            }
        }
        let mut data = Vec::new();
        for entry in &self.tensors {
            let (shape, values) = entry.resolve(tensors);
            let stored = if shape.len() == 2 { dtype } else { Dtype::F32 };
            string(&mut out, &entry.name);
            out.extend((shape.len() as u32).to_le_bytes());
            for dimension in shape.iter().rev() {
                out.extend((*dimension as u64).to_le_bytes());
            }
            let code: u32 = match stored {
                Dtype::F32 => 0,
                Dtype::F16 => 1,
                Dtype::Bf16 => 30,
            };
            out.extend(code.to_le_bytes());
            out.extend((data.len() as u64).to_le_bytes());
            stored.encode(&values, &mut data);
            data.resize(data.len().next_multiple_of(ALIGNMENT), 0);
        }
        out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
        out.extend(data);
        out
    }
}

impl Entry {
    /// Shape, slowest dimension first, and values.
    fn resolve(&self, tensors: &[Tensor]) -> (Vec<usize>, Vec<f32>) {
        if self.op == "values" {
            return (vec![self.values.len()], self.values.clone());
        }
        let source =
            tensors.iter().find(|tensor| tensor.name == self.from).expect("the tensor it is made from");
        let values = match self.op.split_once(' ') {
            None if self.op == "copy" => source.values.clone(),
            None if self.op == "add_one" => source.values.iter().map(|value| value + 1.0).collect(),
            Some(("permute", heads)) => permute(source, heads.parse().expect("a number of heads")),
            _ => panic!("operation {:?} in a reference", self.op),
        };
        (source.shape.clone(), values)
    }
}

/// Interleaves the two halves of each head's rows.
fn permute(tensor: &Tensor, heads: usize) -> Vec<f32> {
    let rows = tensor.shape[0];
    let width = tensor.values.len() / rows;
    let half = rows / heads / 2;
    (0..rows)
        .flat_map(|row| {
            let (head, within) = (row / (2 * half), row % (2 * half));
            let source = head * 2 * half + (within % 2) * half + within / 2;
            tensor.values[source * width..(source + 1) * width].iter().copied()
        })
        .collect()
}

fn string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}
