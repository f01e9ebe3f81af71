//! Models with a low-rank adapter added in.

use std::collections::BTreeMap;
use std::sync::Arc;

use orion_core::{Error, ModelFormat, ModelHeader, Result, TensorBytes, TileLayout, WeightSource};
use orion_kernels::{dequantize, quantize as encode};
use serde_json::Value;

use crate::shard::rows_of;

/// A model and what an adapter adds to its tensors.
pub(super) struct Adapted {
    model: Arc<dyn WeightSource>,
    header: ModelHeader,
    adapter: Arc<dyn WeightSource>,
    changes: BTreeMap<usize, Change>,
}

enum Change {
    /// `scale * B A` is added: tensors of the adapter.
    LowRank { a: usize, b: usize, scale: f32 },
    /// A tensor of the adapter stands in its place.
    Whole(usize),
}

const CONFIG: &str = "adapter_config.json";

/// Adds an adapter, as `peft` writes them, to a model.
///
/// # Errors
/// What the adapter asks for and is not supported (DoRA, transposed weights, biases), or names that the model has not.
pub(super) fn adapted(
    model: Arc<dyn WeightSource>,
    adapter: Arc<dyn WeightSource>,
) -> Result<Arc<dyn WeightSource>> {
    let config = adapter
        .header()
        .side_text(CONFIG)?
        .ok_or_else(|| Error::invalid("stands not beside the adapter's weights").about(CONFIG))?;
    let config: Value = serde_json::from_str(config)
        .map_err(|error| Error::corrupt(format!("is not JSON: {error}")).about(CONFIG))?;
    for (key, plain) in [("use_dora", false), ("fan_in_fan_out", false)] {
        if config[key].as_bool().unwrap_or(plain) != plain {
            return Err(Error::unsupported(format!("{key} is not supported")).about(CONFIG));
        }
    }
    let number = |key: &str| config[key].as_f64().filter(|n| n.is_finite());
    let default_rank = number("r");
    let alpha = number("lora_alpha").ok_or_else(|| Error::corrupt("lora_alpha is missing").about(CONFIG))?;
    let rooted = config["use_rslora"].as_bool().unwrap_or(false);
    if ["rank_pattern", "alpha_pattern"]
        .iter()
        .any(|key| config[key].as_object().is_some_and(|map| !map.is_empty()))
    {
        return Err(Error::unsupported("ranks or scales by pattern are not supported").about(CONFIG));
    }
    let header = model.header().clone();
    if header.format != ModelFormat::Safetensors {
        return Err(Error::unsupported("adapters are added to safetensors models; convert the model first"));
    }
    let mut changes = BTreeMap::new();
    let table = adapter.header();
    for (index, tensor) in table.tensors.iter().enumerate() {
        let about = |error: Error| error.about(format!("adapter tensor {}", tensor.name));
        let name = tensor.name.strip_prefix("base_model.model.").unwrap_or(&tensor.name);
        if let Some(module) = name.strip_suffix(".lora_A.weight") {
            let other = tensor.name.replace(".lora_A.weight", ".lora_B.weight");
            let b = table.position(&other).ok_or_else(|| about(Error::corrupt("has no lora_B beside it")))?;
            let target = format!("{module}.weight");
            let at = header
                .position(&target)
                .ok_or_else(|| about(Error::invalid(format!("the model has no {target}"))))?;
            let (shape, down, up) = (&header.tensors[at].shape, &tensor.shape, &table.tensors[b].shape);
            let fits = shape.len() == 2
                && down.len() == 2
                && up.len() == 2
                && down[1] == shape[1]
                && up[0] == shape[0]
                && down[0] == up[1];
            if !fits {
                return Err(about(Error::invalid(format!(
                    "shapes {down:?} and {up:?} do not fit {target} {shape:?}"
                ))));
            }
            let rank = default_rank.unwrap_or(down[0] as f64);
            let scale = alpha / if rooted { rank.sqrt() } else { rank };
            changes.insert(at, Change::LowRank { a: index, b, scale: scale as f32 });
        } else if !name.ends_with(".lora_B.weight") {
            let target = name.replace(".modules_to_save", "");
            if name.contains("lora_") {
                return Err(about(Error::unsupported("adapters of this kind are not supported")));
            }
            let at = header
                .position(&target)
                .ok_or_else(|| about(Error::invalid(format!("the model has no {target}"))))?;
            if header.tensors[at].shape != tensor.shape {
                return Err(about(Error::invalid(format!(
                    "shape {:?} does not fit {target} {:?}",
                    tensor.shape, header.tensors[at].shape
                ))));
            }
            changes.insert(at, Change::Whole(index));
        }
    }
    if changes.is_empty() {
        return Err(Error::invalid("the adapter changes nothing"));
    }
    let mut header = header;
    for &index in changes.keys() {
        header.tensors[index].layout = TileLayout::RowMajor;
    }
    Ok(Arc::new(Adapted { model, header, adapter, changes }))
}

impl Adapted {
    fn floats(source: &dyn WeightSource, index: usize) -> Result<Vec<f32>> {
        let tensor = &source.header().tensors[index];
        let mut out = vec![0.0; tensor.elements() as usize];
        dequantize(tensor.ty, &rows_of(source, index)?, &mut out)?;
        Ok(out)
    }
}

impl WeightSource for Adapted {
    fn header(&self) -> &ModelHeader {
        &self.header
    }

    fn tensor(&self, index: usize) -> Result<TensorBytes> {
        let Some(change) = self.changes.get(&index) else { return self.model.tensor(index) };
        let info = &self.header.tensors[index];
        let mut values = match change {
            Change::Whole(at) => Self::floats(&*self.adapter, *at)?,
            Change::LowRank { .. } => Self::floats(&*self.model, index)?,
        };
        let columns = info.shape.last().copied().unwrap_or(1) as usize;
        if let Change::LowRank { a, b, scale } = change {
            let (down, up) = (Self::floats(&*self.adapter, *a)?, Self::floats(&*self.adapter, *b)?);
            let rank = down.len() / columns.max(1);
            for (row, up) in values.chunks_mut(columns).zip(up.chunks(rank.max(1))) {
                for (weight, down) in up.iter().zip(down.chunks(columns)) {
                    row.iter_mut().zip(down).for_each(|(x, d)| *x += scale * weight * d);
                }
            }
        }
        let mut out = Vec::new();
        encode(info.ty, &values, columns, None, &mut out)
            .map_err(|error| error.about(format!("tensor {}", info.name)))?;
        Ok(out.into())
    }

    fn release(&self, index: usize) {
        self.model.release(index);
    }
}
