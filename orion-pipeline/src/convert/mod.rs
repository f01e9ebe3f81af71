//! Between safetensors as Hugging Face names things and GGUF as llama.cpp does: the same numbers under other names.
//!
//! What differs: names; llama's query and key rows, which rotate halves there and neighbouring pairs here; Gemma's norms,
//! which are stored less one there; vectors, which are 32-bit here. What GGUF has no place for (the type of a vector, bits
//! that adding one rounds off, `config.json` itself) is kept in metadata under `orion.source.`, so that going back gives
//! the same bytes.

mod config;
mod names;
mod to_gguf;
mod to_hugging_face;
mod vocabulary;

use std::path::Path;
use std::sync::Arc;

use orion_core::{Error, ModelFormat, Result, TensorType, WeightSource};
use orion_kernels::{dequantize, quantize as encode};
use serde_json::json;

use crate::control::Control;
use crate::provenance;
use crate::shard::{UnshardOptions, unshard};
pub use to_gguf::as_gguf;
pub use to_hugging_face::as_hugging_face;

/// Where `config.json` is kept in a GGUF.
const SOURCE_CONFIG: &str = "orion.source.config";
/// Where types of vectors are kept that are not 32-bit: a JSON object of name and type.
const SOURCE_TYPES: &str = "orion.source.types";
/// Where values are kept that adding one rounds: a JSON object of name and list of index and bits.
const SOURCE_NORMS: &str = "orion.source.norms";

/// How to convert.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct ConvertOptions {
    /// What has the output's name may be replaced.
    pub overwrite: bool,
    /// Watches and stops the work.
    pub control: Control,
}

/// Writes a safetensors model as GGUF, or a GGUF model as a directory with safetensors, configuration and tokenizer.
/// Quantised tensors become halves in safetensors; all else keeps every bit. Holds one tensor.
///
/// # Errors
/// [`Unsupported`](orion_core::ErrorKind::Unsupported) for an architecture, option or vocabulary that the other form has no
/// words for, by name; what reading and writing report. Nothing is left at `path` then.
pub fn convert(source: &Arc<dyn WeightSource>, path: &Path, options: &ConvertOptions) -> Result<()> {
    let (other, step) = match source.header().format {
        ModelFormat::Gguf => (as_hugging_face(source.clone())?, "safetensors"),
        _ => (as_gguf(source.clone())?, "gguf"),
    };
    let mut header = other.header().clone();
    provenance::record(&mut header.metadata, json!({ "step": "convert", "to": step }));
    let unsharding = UnshardOptions { overwrite: options.overwrite, control: options.control.clone() };
    unshard(&Recorded { source: other, header }, path, &unsharding)
}

/// A source under another header.
struct Recorded {
    source: Arc<dyn WeightSource>,
    header: orion_core::ModelHeader,
}

impl WeightSource for Recorded {
    fn header(&self) -> &orion_core::ModelHeader {
        &self.header
    }
    fn tensor(&self, index: usize) -> Result<orion_core::TensorBytes> {
        self.source.tensor(index)
    }
    fn release(&self, index: usize) {
        self.source.release(index);
    }
}

/// The rows of each head, from halves to neighbouring pairs, or back.
fn permute(bytes: &[u8], rows: usize, heads: usize, back: bool) -> Result<Vec<u8>> {
    let width = bytes.len().checked_div(rows).unwrap_or(0);
    let (per_head, half) = (rows.checked_div(heads).unwrap_or(0), rows.checked_div(2 * heads).unwrap_or(0));
    if rows == 0 || heads == 0 || per_head * heads != rows || half * 2 != per_head {
        return Err(Error::invalid(format!("{rows} rows are no whole pairs for {heads} heads")));
    }
    let mut out = vec![0; bytes.len()];
    for row in 0..rows {
        let (head, within) = (row / per_head, row % per_head);
        // Row `i` of half `h` becomes row `2 i + h`.
        let paired = head * per_head + within % half * 2 + within / half;
        let (from, to) = if back { (paired, row) } else { (row, paired) };
        out[to * width..(to + 1) * width].copy_from_slice(&bytes[from * width..(from + 1) * width]);
    }
    Ok(out)
}

fn floats(ty: TensorType, bytes: &[u8]) -> Result<Vec<f32>> {
    let mut out = vec![0.0; bytes.len() / ty.block_bytes() * ty.block_len()];
    dequantize(ty, bytes, &mut out)?;
    Ok(out)
}

fn encoded(ty: TensorType, values: &[f32]) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    encode(ty, values, values.len().max(1), None, &mut out)?;
    Ok(out)
}
