//! A safetensors model, seen as GGUF.

use std::sync::Arc;

use orion_core::{
    Error, MetaValue, ModelFormat, ModelHeader, Result, TensorBytes, TensorInfo, TensorType, TileLayout,
    WeightSource,
};
use serde_json::{Value, json};

use super::config::Config;
use super::{SOURCE_CONFIG, SOURCE_NORMS, SOURCE_TYPES, encoded, floats, permute, vocabulary};
use crate::provenance::PROVENANCE;
use crate::shard::rows_of;

/// Where a tensor comes from and what happens to it.
enum Origin {
    Copy(usize),
    /// Its rows, by heads.
    Permuted(usize, usize),
    /// As 32-bit floats, with one added if `true`.
    Vector(usize, bool),
    Values(Vec<f32>),
}

struct AsGguf {
    source: Arc<dyn WeightSource>,
    header: ModelHeader,
    origins: Vec<Origin>,
}

/// Shows a model in GGUF's form, tokenizer and chat template included. A model that is in GGUF already is returned as
/// it is. Tensors are made when they are asked for.
///
/// # Errors
/// [`Unsupported`](orion_core::ErrorKind::Unsupported) for what GGUF has no words for, by name.
pub fn as_gguf(source: Arc<dyn WeightSource>) -> Result<Arc<dyn WeightSource>> {
    let theirs = source.header();
    if theirs.format == ModelFormat::Gguf {
        return Ok(source);
    }
    let config = Config::read(theirs)?;
    let (mut metadata, extra) = config.to_gguf()?;
    let mut tensors = Vec::new();
    let mut origins = Vec::new();
    let (mut types, mut norms) = (serde_json::Map::new(), serde_json::Map::new());
    let tied = config.json["tie_word_embeddings"] == true;
    for (index, tensor) in theirs.tensors.iter().enumerate() {
        let name = &tensor.name;
        if name.ends_with("rotary_emb.inv_freq") || (tied && name == "lm_head.weight") {
            continue;
        }
        let about = |error: Error| error.about(format!("tensor {name}"));
        let ours =
            config.naming.to_gguf(name).ok_or_else(|| about(Error::unsupported("has no name in GGUF")))?;
        let vector = tensor.shape.len() < 2;
        let heads = match name.as_str() {
            _ if config.architecture != "llama" => None,
            name if name.contains(".q_proj.") => Some(config.heads),
            name if name.contains(".k_proj.") => Some(config.kv_heads),
            _ => None,
        };
        let add_one = config.naming.gemma && name.ends_with("norm.weight");
        if vector && tensor.ty != TensorType::F32 {
            types.insert(name.clone(), tensor.ty.name().into());
        }
        if add_one {
            let rounded = rounded(tensor.ty, &rows_of(&*source, index)?)?;
            if !rounded.is_empty() {
                norms.insert(name.clone(), json!(rounded));
            }
        }
        let ty = if vector { TensorType::F32 } else { tensor.ty };
        push(&mut tensors, ours, tensor.shape.clone(), ty)?;
        origins.push(match heads {
            Some(heads) => Origin::Permuted(index, heads),
            None if vector => Origin::Vector(index, add_one),
            None => Origin::Copy(index),
        });
    }
    for (name, values) in extra {
        push(&mut tensors, name, vec![values.len() as u64], TensorType::F32)?;
        origins.push(Origin::Values(values));
    }
    for (key, map) in [(SOURCE_TYPES, types), (SOURCE_NORMS, norms)] {
        if !map.is_empty() {
            metadata.insert(key.to_owned(), MetaValue::Str(Value::Object(map).to_string()));
        }
    }
    if let Some(text) = theirs.side_text("config.json")? {
        metadata.insert(SOURCE_CONFIG.to_owned(), MetaValue::Str(text.to_owned()));
    }
    if let Some(steps) = theirs.metadata.get(PROVENANCE) {
        metadata.insert(PROVENANCE.to_owned(), steps.clone());
    }
    let matrices = tensors.iter().filter(|tensor| tensor.shape.len() > 1).map(|tensor| match tensor.ty {
        TensorType::F16 => 1,
        TensorType::BF16 => 32,
        _ => 0,
    });
    metadata.insert("general.file_type".to_owned(), MetaValue::U32(matrices.max().unwrap_or(0)));
    vocabulary::to_gguf(theirs, &config, &mut metadata)?;
    let mut header = ModelHeader::new(ModelFormat::Gguf, metadata, tensors);
    header.digest = theirs.digest;
    Ok(Arc::new(AsGguf { source, header, origins }))
}

/// Appends a line of the table.
pub(super) fn push(
    tensors: &mut Vec<TensorInfo>,
    name: String,
    shape: Vec<u64>,
    ty: TensorType,
) -> Result<()> {
    let rows: u64 = shape.iter().rev().skip(1).product();
    let row = ty.bytes_of(shape.last().copied().unwrap_or(1));
    let bytes = row.and_then(|row| row.checked_mul(rows)).ok_or_else(|| {
        Error::corrupt("rows are no whole number of blocks").about(format!("tensor {name}"))
    })?;
    let offset = tensors.last().map_or(0, |last| last.offset + last.bytes);
    tensors.push(TensorInfo { name, shape, ty, layout: TileLayout::RowMajor, file: 0, offset, bytes });
    Ok(())
}

/// Values that do not come back when one is added and taken off again: their places and bits.
fn rounded(ty: TensorType, bytes: &[u8]) -> Result<Vec<(usize, u32)>> {
    let values = floats(ty, bytes)?;
    let back: Vec<f32> = values.iter().map(|x| (x + 1.0) - 1.0).collect();
    let again = floats(ty, &encoded(ty, &back)?)?;
    let pairs = values.iter().zip(&again).enumerate();
    Ok(pairs.filter(|(_, (a, b))| a.to_bits() != b.to_bits()).map(|(at, (a, _))| (at, a.to_bits())).collect())
}

impl WeightSource for AsGguf {
    fn header(&self) -> &ModelHeader {
        &self.header
    }

    fn tensor(&self, index: usize) -> Result<TensorBytes> {
        let origin =
            self.origins.get(index).ok_or_else(|| Error::invalid(format!("there is no tensor {index}")))?;
        let rows = |&at: &usize| rows_of(&*self.source, at);
        match origin {
            Origin::Copy(at) => rows(at),
            Origin::Permuted(at, heads) => {
                let tensor = &self.source.header().tensors[*at];
                let count = tensor.shape.first().copied().unwrap_or(0) as usize;
                let permuted = permute(&rows(at)?, count, *heads, false)?;
                match tensor.shape.len() {
                    1 => encoded(TensorType::F32, &floats(tensor.ty, &permuted)?).map(TensorBytes::from),
                    _ => Ok(permuted.into()),
                }
            }
            Origin::Vector(at, add_one) => {
                let mut values = floats(self.source.header().tensors[*at].ty, &rows(at)?)?;
                if *add_one {
                    values.iter_mut().for_each(|x| *x += 1.0);
                }
                encoded(TensorType::F32, &values).map(TensorBytes::from)
            }
            Origin::Values(values) => encoded(TensorType::F32, values).map(TensorBytes::from),
        }
        .map_err(|error| error.about(format!("tensor {}", self.header.tensors[index].name)))
    }

    fn release(&self, index: usize) {
        if let Some(Origin::Copy(at) | Origin::Permuted(at, _) | Origin::Vector(at, _)) =
            self.origins.get(index)
        {
            self.source.release(*at);
        }
    }
}
