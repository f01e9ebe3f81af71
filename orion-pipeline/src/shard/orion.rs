//! ORION shard sets: safetensors files whose tensors start on cache lines, and a manifest that says what they are.

use std::collections::BTreeMap;
use std::path::Path;

use orion_core::{
    Error, MetaValue, ModelHeader, Result, TensorBytes, TensorInfo, TensorType, TileLayout, WeightSource,
};
use orion_formats::gguf::GgufWriter;
use orion_formats::safetensors::{Dtype, SafetensorsWriter, TensorSpec, data_offset};
use orion_formats::{FileEntry, MANIFEST, Shard, ShardSet, ShardTensor};
use orion_kernels::{ComputePool, PackedMatrix};
use serde_json::json;

use super::{Planned, ShardOptions, ShardReport, bytes_of, fingerprint, rows_of};
use crate::output::{OutputDirectory, Written};
use crate::provenance;

/// The metadata's file.
const METADATA: &str = "metadata.gguf";
/// Tensors start on a cache line.
const LINE: u64 = 64;

/// Whether a tensor is a matrix that a decoder multiplies with.
fn is_packed(tensor: &TensorInfo, pack: bool) -> bool {
    let name = tensor.name.as_str();
    let decoder = ["blk.", "model.layers."].iter().any(|prefix| name.starts_with(prefix))
        || matches!(
            name,
            "token_embd.weight" | "output.weight" | "model.embed_tokens.weight" | "lm_head.weight"
        );
    pack && decoder
        && name.ends_with(".weight")
        && tensor.shape.len() == 2
        && PackedMatrix::supports(tensor.ty)
        && tensor.shape[1].is_multiple_of(tensor.ty.block_len() as u64)
}

/// Bytes that a tensor takes in a shard.
pub(crate) fn stored_bytes(tensor: &TensorInfo, pack: bool) -> Result<u64> {
    if !is_packed(tensor, pack) {
        return bytes_of(tensor);
    }
    let dim = |at: usize| usize::try_from(tensor.shape[at]).map_err(|_| Error::corrupt("shape too large"));
    let bytes = PackedMatrix::packed_bytes(tensor.ty, dim(0)?, dim(1)?);
    bytes.map(|bytes| bytes as u64).map_err(|error| error.about(format!("tensor {}", tensor.name)))
}

/// What a shard's file holds: tensors and what pads them to cache lines.
struct Layout {
    specs: Vec<TensorSpec>,
    /// Tensors of the source, in order, with offset and length in the file.
    places: Vec<(usize, u64, u64)>,
    bytes: u64,
}

fn metadata_of(packed: bool) -> BTreeMap<String, String> {
    let layout = if packed { "tiles16" } else { "row_major" };
    [("format", "orion"), ("layout", layout)].map(|(key, value)| (key.to_owned(), value.to_owned())).into()
}

fn layout(header: &ModelHeader, tensors: &[usize], pack: bool) -> Result<Layout> {
    let (mut specs, mut places, mut offset) = (Vec::new(), Vec::new(), 0u64);
    for &index in tensors {
        let tensor = &header.tensors[index];
        let bytes = stored_bytes(tensor, pack)?;
        let padding = offset.next_multiple_of(LINE) - offset;
        if padding > 0 {
            specs.push(TensorSpec::new(format!("orion.padding.{}", specs.len()), [padding], Dtype::U8));
            offset += padding;
        }
        let (dtype, shape) = match tensor.ty {
            _ if is_packed(tensor, pack) => (Dtype::U8, vec![bytes]),
            TensorType::F32 => (Dtype::F32, tensor.shape.clone()),
            TensorType::F16 => (Dtype::F16, tensor.shape.clone()),
            TensorType::BF16 => (Dtype::BF16, tensor.shape.clone()),
            _ => (Dtype::U8, vec![bytes]),
        };
        specs.push(TensorSpec::new(&*tensor.name, shape, dtype));
        places.push((index, offset, bytes));
        offset += bytes;
    }
    let start = data_offset(&metadata_of(pack), &specs)?;
    places.iter_mut().for_each(|place| place.1 += start);
    Ok(Layout { specs, places, bytes: start + offset })
}

pub(super) fn write(
    source: &dyn WeightSource,
    path: &Path,
    options: &ShardOptions,
    shards: Vec<Planned>,
) -> Result<Vec<ShardReport>> {
    let header = source.header();
    let layouts = shards
        .iter()
        .map(|shard| layout(header, &shard.tensors, options.pack))
        .collect::<Result<Vec<_>>>()?;
    let total: u64 = layouts.iter().map(|layout| layout.bytes).sum();
    let side_bytes: usize = header.side_files.values().map(|bytes| bytes.len()).sum();
    let needed = total + side_bytes as u64 + (16 << 20);
    let out =
        OutputDirectory::create(path, options.overwrite, needed, fingerprint(options, &shards).as_deref())?;
    let pool = options.pack.then(|| ComputePool::new(options.threads.get())).transpose()?;

    let mut set = ShardSet {
        model_format: header.format,
        chunk_bytes: options.chunk_bytes,
        metadata: Some(metadata(&out, header, options, shards.len())?),
        side_files: header
            .side_files
            .iter()
            .map(|(name, bytes)| {
                if name.contains('/') {
                    return Err(Error::unsupported(
                        "a shard set holds no files in sub-directories; \
                        write safetensors shards instead",
                    )
                    .about(name.clone()));
                }
                Ok(entry(name, &out.write(name, bytes)?))
            })
            .collect::<Result<_>>()?,
        shards: Vec::new(),
        tensors: Vec::new(),
    };
    let mut table: Vec<Option<ShardTensor>> = vec![None; header.tensors.len()];
    let mut done = 0;
    let mut reports = Vec::new();
    for (number, (planned, layout)) in shards.into_iter().zip(layouts).enumerate() {
        let mut report = planned.report;
        for &(index, offset, bytes) in &layout.places {
            let tensor = &header.tensors[index];
            table[index] = Some(ShardTensor {
                name: tensor.name.clone(),
                shape: tensor.shape.clone(),
                ty: tensor.ty,
                layout: if is_packed(tensor, options.pack) {
                    TileLayout::Tiles16
                } else {
                    TileLayout::RowMajor
                },
                shard: number,
                offset,
                bytes,
            });
        }
        let written = match out.finished(&report.file, layout.bytes, options.chunk_bytes)? {
            Some(written) => written,
            None => {
                let file = out.file(&report.file, options.chunk_bytes)?;
                let mut writer = SafetensorsWriter::start(file, &metadata_of(options.pack), &layout.specs)?;
                let mut places = layout.places.iter();
                for spec in &layout.specs {
                    if spec.name.starts_with("orion.padding.") {
                        writer.tensor(&vec![0; spec.bytes()? as usize])?;
                        continue;
                    }
                    let &(index, offset, _) = places.next().expect("one place per tensor that is no padding");
                    options.control.step(&spec.name, done + offset, total)?;
                    writer.tensor(&stored(source, index, pool.as_ref())?)?;
                    source.release(index);
                }
                writer.finish()?.finish()?
            }
        };
        done += layout.bytes;
        report.bytes = written.bytes;
        report.sha256 = written.digest.to_string();
        set.shards.push(Shard { entry: entry(&report.file, &written), chunks: written.chunks });
        reports.push(report);
    }
    // The table keeps the source's order, so that the source can be put together again as it was.
    set.tensors = table.into_iter().flatten().collect();
    out.write(MANIFEST, set.to_json()?.as_bytes())?;
    options.control.step("", total, total)?;
    out.publish()?;
    Ok(reports)
}

/// A tensor as its shard holds it.
fn stored(source: &dyn WeightSource, index: usize, pool: Option<&ComputePool>) -> Result<TensorBytes> {
    let info = &source.header().tensors[index];
    let Some(pool) = pool.filter(|_| is_packed(info, true)) else { return rows_of(source, index) };
    if info.layout == TileLayout::Tiles16 {
        return source.tensor(index);
    }
    let rows = 0..info.shape[0] as usize;
    let packed = PackedMatrix::from_tensor(pool, info, &source.tensor(index)?, rows)
        .map_err(|error| error.about(format!("tensor {}", info.name)))?;
    Ok(packed.into_bytes())
}

fn metadata(
    out: &OutputDirectory,
    header: &ModelHeader,
    options: &ShardOptions,
    shards: usize,
) -> Result<FileEntry> {
    let mut metadata: BTreeMap<String, MetaValue> = header.metadata.clone();
    metadata.retain(|key, _| !key.starts_with("split."));
    provenance::record(&mut metadata, json!({ "step": "shard", "shards": shards, "packed": options.pack }));
    let bytes = GgufWriter::start(Vec::new(), &metadata, &[])?.finish()?;
    Ok(entry(METADATA, &out.write(METADATA, &bytes)?))
}

fn entry(file: &str, written: &Written) -> FileEntry {
    FileEntry { file: file.to_owned(), bytes: written.bytes, digest: written.digest }
}
