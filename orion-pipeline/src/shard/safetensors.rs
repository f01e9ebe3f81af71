//! safetensors files and the index that says which holds what.

use std::collections::BTreeMap;
use std::path::Path;

use orion_core::{Error, MetaValue, ModelHeader, Result, TensorInfo, TensorType, WeightSource};
use orion_formats::ShardIndex;
use orion_formats::safetensors::{Dtype, SafetensorsWriter, TensorSpec};
use serde_json::json;

use super::{Planned, ShardOptions, ShardReport, bytes_of, fingerprint, rows_of};
use crate::output::OutputDirectory;
use crate::provenance;

/// The index's file name.
pub(crate) const INDEX: &str = "model.safetensors.index.json";

pub(super) fn write(
    source: &dyn WeightSource,
    path: &Path,
    options: &ShardOptions,
    shards: Vec<Planned>,
) -> Result<Vec<ShardReport>> {
    let header = source.header();
    let total: u64 = shards.iter().map(|shard| shard.report.bytes).sum();
    let out = OutputDirectory::create(
        path,
        options.overwrite,
        total + (16 << 20),
        fingerprint(options, &shards).as_deref(),
    )?;
    for (name, bytes) in &header.side_files {
        out.write(name, bytes)?;
    }
    let metadata = file_metadata(header, Some(json!({ "step": "shard", "shards": shards.len() })));
    let (mut done, mut reports, mut weight_map) = (0, Vec::new(), BTreeMap::new());
    let indexed = shards.len() > 1;
    for Planned { mut report, tensors } in shards {
        let specs = tensors.iter().map(|&index| spec(&header.tensors[index])).collect::<Result<Vec<_>>>()?;
        let expected = orion_formats::safetensors::data_offset(&metadata, &specs)? + report.bytes;
        let written = match out.finished(&report.file, expected, options.chunk_bytes)? {
            Some(written) => written,
            None => {
                let file = out.file(&report.file, options.chunk_bytes)?;
                let mut writer = SafetensorsWriter::start(file, &metadata, &specs)?;
                let mut written = 0;
                for &index in &tensors {
                    let tensor = &header.tensors[index];
                    options.control.step(&tensor.name, done + written, total)?;
                    writer.tensor(&rows_of(source, index)?)?;
                    source.release(index);
                    written += bytes_of(tensor)?;
                }
                writer.finish()?.finish()?
            }
        };
        done += report.bytes;
        let names = tensors.iter().map(|&index| header.tensors[index].name.clone());
        weight_map.extend(names.map(|name| (name, report.file.clone())));
        report.bytes = written.bytes;
        report.sha256 = written.digest.to_string();
        reports.push(report);
    }
    if indexed {
        out.write(INDEX, ShardIndex::new(Some(total), weight_map).to_json().as_bytes())?;
    }
    options.control.step("", total, total)?;
    out.publish()?;
    Ok(reports)
}

/// The strings of a safetensors header: what there was, that it is PyTorch's naming, and the steps done.
pub(crate) fn file_metadata(
    header: &ModelHeader,
    step: Option<serde_json::Value>,
) -> BTreeMap<String, String> {
    let mut metadata = header.metadata.clone();
    metadata.retain(|_, value| value.as_str().is_some());
    metadata.entry("format".to_owned()).or_insert_with(|| MetaValue::Str("pt".to_owned()));
    match step {
        Some(step) => provenance::record(&mut metadata, step),
        None => provenance::take_back(&mut metadata, "shard"),
    }
    let text = |value: MetaValue| match value {
        MetaValue::Str(text) => text,
        _ => String::new(),
    };
    metadata.into_iter().map(|(key, value)| (key, text(value))).collect()
}

/// How a tensor stands in a safetensors file.
pub(crate) fn spec(tensor: &TensorInfo) -> Result<TensorSpec> {
    let dtype = match tensor.ty {
        TensorType::F32 => Dtype::F32,
        TensorType::F16 => Dtype::F16,
        TensorType::BF16 => Dtype::BF16,
        other => {
            return Err(Error::unsupported(format!("type {other} cannot be stored in safetensors"))
                .about(format!("tensor {}", tensor.name)));
        }
    };
    Ok(TensorSpec::new(&*tensor.name, &*tensor.shape, dtype))
}
