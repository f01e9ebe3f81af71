//! A GGUF model, seen as safetensors.

use std::collections::BTreeMap;
use std::sync::Arc;

use orion_core::{Error, MetaValue, ModelFormat, ModelHeader, Result, TensorBytes, TensorType, WeightSource};
use serde_json::Value;

use super::config::{self, naming};
use super::to_gguf::push;
use super::{SOURCE_CONFIG, SOURCE_NORMS, SOURCE_TYPES, encoded, floats, permute, vocabulary};
use crate::provenance::PROVENANCE;
use crate::shard::rows_of;

struct Origin {
    tensor: usize,
    /// Whether rows go back from pairs to halves, for so many heads.
    heads: Option<usize>,
    /// One is taken off, and these places get these bits.
    norm: Option<Vec<(usize, u32)>>,
}

struct AsHuggingFace {
    source: Arc<dyn WeightSource>,
    header: ModelHeader,
    origins: Vec<Origin>,
}

/// Shows a GGUF model in Hugging Face's form, with `config.json` and, of byte-pair vocabularies, `tokenizer.json`. A
/// safetensors model is returned as it is. Quantised tensors become halves; tensors are made when they are asked for.
///
/// # Errors
/// [`Unsupported`](orion_core::ErrorKind::Unsupported) for an architecture or option that is not known, by name.
pub fn as_hugging_face(source: Arc<dyn WeightSource>) -> Result<Arc<dyn WeightSource>> {
    let ours = source.header();
    if ours.format != ModelFormat::Gguf {
        return Ok(source);
    }
    let text = |key: &str| ours.metadata.get(key).and_then(MetaValue::as_str);
    let map = |key: &str| -> Result<BTreeMap<String, Value>> {
        let parsed = text(key).map(serde_json::from_str).transpose();
        Ok(parsed
            .map_err(|error| Error::corrupt(format!("is not JSON: {error}")).about(key.to_owned()))?
            .unwrap_or_default())
    };
    let (types, norms) = (map(SOURCE_TYPES)?, map(SOURCE_NORMS)?);
    let architecture = text("general.architecture").unwrap_or_default().to_owned();
    let kept = text(SOURCE_CONFIG);
    let config: Value = match kept {
        Some(text) => serde_json::from_str(text)
            .map_err(|error| Error::corrupt(format!("is not JSON: {error}")).about(SOURCE_CONFIG))?,
        None => config::from_gguf(ours)?,
    };
    let naming = naming(&architecture);
    let count = |key: &str| config[key].as_u64().map(|n| n as usize);
    let heads = count("num_attention_heads").unwrap_or(0);
    let kv_heads = count("num_key_value_heads").unwrap_or(heads);
    let (mut tensors, mut origins) = (Vec::new(), Vec::new());
    for (index, tensor) in ours.tensors.iter().enumerate() {
        if tensor.name.starts_with("rope_f") && kept.is_some() {
            continue;
        }
        let about = |error: Error| error.about(format!("tensor {}", tensor.name));
        let name = naming
            .to_hugging_face(&tensor.name)
            .ok_or_else(|| about(Error::unsupported("has no name in safetensors")))?;
        let ty = match types.get(&name).and_then(Value::as_str) {
            Some(ty) => TensorType::from_name(ty)
                .filter(|ty| !ty.is_quantised())
                .ok_or_else(|| about(Error::corrupt(format!("{ty:?} is no type of floats"))))?,
            None if tensor.ty.is_quantised() => TensorType::F16,
            None => tensor.ty,
        };
        let rotated = architecture == "llama";
        let heads = match name.as_str() {
            name if rotated && name.contains(".q_proj.") => Some(heads),
            name if rotated && name.contains(".k_proj.") => Some(kv_heads),
            _ => None,
        };
        let norm = (naming.gemma && name.ends_with("norm.weight")).then(|| {
            let list = norms.get(&name).and_then(Value::as_array);
            let pair =
                |pair: &Value| Some((pair[0].as_u64()? as usize, u32::try_from(pair[1].as_u64()?).ok()?));
            list.into_iter().flatten().filter_map(pair).collect()
        });
        push(&mut tensors, name, tensor.shape.clone(), ty)?;
        origins.push(Origin { tensor: index, heads, norm });
    }
    let mut metadata = BTreeMap::from([("format".to_owned(), MetaValue::Str("pt".to_owned()))]);
    if let Some(steps) = ours.metadata.get(PROVENANCE) {
        metadata.insert(PROVENANCE.to_owned(), steps.clone());
    }
    let mut header = ModelHeader::new(ModelFormat::Safetensors, metadata, tensors);
    let config = kept.map_or_else(|| format!("{config:#}\n"), str::to_owned);
    header.side_files.insert("config.json".to_owned(), config.into_bytes().into());
    vocabulary::to_hugging_face(ours, &mut header)?;
    header.digest = ours.digest;
    Ok(Arc::new(AsHuggingFace { source, header, origins }))
}

impl WeightSource for AsHuggingFace {
    fn header(&self) -> &ModelHeader {
        &self.header
    }

    fn tensor(&self, index: usize) -> Result<TensorBytes> {
        let origin =
            self.origins.get(index).ok_or_else(|| Error::invalid(format!("there is no tensor {index}")))?;
        let make = || -> Result<TensorBytes> {
            let from = &self.source.header().tensors[origin.tensor];
            let to = &self.header.tensors[index];
            let mut bytes = rows_of(&*self.source, origin.tensor)?;
            if let Some(heads) = origin.heads {
                bytes =
                    permute(&bytes, from.shape.first().copied().unwrap_or(0) as usize, heads, true)?.into();
            }
            if from.ty == to.ty && origin.norm.is_none() {
                return Ok(bytes);
            }
            let mut values = floats(from.ty, &bytes)?;
            if let Some(kept) = &origin.norm {
                values.iter_mut().for_each(|x| *x -= 1.0);
                for &(at, bits) in kept {
                    if let Some(value) = values.get_mut(at) {
                        *value = f32::from_bits(bits);
                    }
                }
            }
            Ok(encoded(to.ty, &values)?.into())
        };
        make().map_err(|error| error.about(format!("tensor {}", self.header.tensors[index].name)))
    }

    fn release(&self, index: usize) {
        if let Some(origin) = self.origins.get(index) {
            self.source.release(origin.tensor);
        }
    }
}
