//! Split GGUF, as llama.cpp reads it: the first file carries all metadata, the others their numbers.

use std::collections::BTreeMap;
use std::path::Path;

use orion_core::{Error, MetaValue, Result, WeightSource};
use orion_formats::gguf::{GgufWriter, SplitName, TensorSpec, file_bytes};
use serde_json::json;

use super::{Planned, ShardOptions, ShardReport, bytes_of, fingerprint, rows_of};
use crate::output::OutputDirectory;
use crate::provenance;

pub(super) fn write(
    source: &dyn WeightSource,
    path: &Path,
    options: &ShardOptions,
    shards: Vec<Planned>,
) -> Result<Vec<ShardReport>> {
    let header = source.header();
    let total: u64 = shards.iter().map(|shard| shard.report.bytes).sum();
    let count =
        u16::try_from(shards.len()).map_err(|_| Error::invalid("a split GGUF has at most 65,535 files"))?;
    let tensors = i32::try_from(header.tensors.len())
        .map_err(|_| Error::invalid("a split GGUF has at most 2^31 tensors"))?;
    if SplitName::parse(&shards[0].report.file).is_none() || options.stem.contains(['/', '\\']) {
        return Err(Error::invalid("is no beginning of a file name").about(options.stem.clone()));
    }
    let out = OutputDirectory::create(
        path,
        options.overwrite,
        total + (64 << 20),
        fingerprint(options, &shards).as_deref(),
    )?;
    let mut whole = header.metadata.clone();
    provenance::record(&mut whole, json!({ "step": "shard", "shards": count }));
    let (mut done, mut reports) = (0, Vec::new());
    for (number, Planned { mut report, tensors: indices }) in (0..count).zip(shards) {
        let mut metadata = if number == 0 { std::mem::take(&mut whole) } else { BTreeMap::new() };
        metadata.insert("split.no".to_owned(), MetaValue::U16(number));
        metadata.insert("split.count".to_owned(), MetaValue::U16(count));
        metadata.insert("split.tensors.count".to_owned(), MetaValue::I32(tensors));
        if let Some(alignment) = header.metadata.get("general.alignment") {
            metadata.insert("general.alignment".to_owned(), alignment.clone());
        }
        let specs: Vec<_> = indices
            .iter()
            .map(|&index| &header.tensors[index])
            .map(|tensor| TensorSpec::new(&*tensor.name, &*tensor.shape, tensor.ty))
            .collect();
        let expected = file_bytes(&metadata, &specs)?;
        let written = match out.finished(&report.file, expected, options.chunk_bytes)? {
            Some(written) => written,
            None => {
                let file = out.file(&report.file, options.chunk_bytes)?;
                let mut writer = GgufWriter::start(file, &metadata, &specs)?;
                let mut written = 0;
                for &index in &indices {
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
        report.bytes = written.bytes;
        report.sha256 = written.digest.to_string();
        reports.push(report);
    }
    options.control.step("", total, total)?;
    out.publish()?;
    Ok(reports)
}
