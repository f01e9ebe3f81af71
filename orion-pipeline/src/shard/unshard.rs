//! One file of a model that stands in several.

use std::path::Path;

use orion_core::{Error, ModelFormat, Result, WeightSource};
use orion_formats::gguf::{GgufWriter, TensorSpec, file_bytes};
use orion_formats::safetensors::{SafetensorsWriter, data_offset};

use super::safetensors::{file_metadata, spec};
use super::{bytes_of, rows_of};
use crate::control::Control;
use crate::output::{Output, OutputDirectory};
use crate::provenance;

/// How to put a model together.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct UnshardOptions {
    /// Whether what has the output's name may be replaced.
    pub overwrite: bool,
    /// Watches and stops the work.
    pub control: Control,
}

/// Writes `source` as one GGUF file at `path`, or as a directory at `path` with one safetensors file and its side files,
/// as the model's own format asks. Packed tensors are restored bit for bit; nothing is computed. Holds one tensor.
///
/// # Errors
/// [`InvalidInput`](orion_core::ErrorKind::InvalidInput) if `path` exists or is called like the other format, and what
/// reading and writing report. Nothing is left at `path` then.
pub fn unshard(source: &dyn WeightSource, path: &Path, options: &UnshardOptions) -> Result<()> {
    let gguf = source.header().format == ModelFormat::Gguf;
    let named = |extension: &str| path.extension().is_some_and(|given| given.eq_ignore_ascii_case(extension));
    if !gguf && named("gguf") {
        return Err(Error::invalid("the model is in safetensors; convert it to have a GGUF file")
            .about(path.display().to_string()));
    }
    if named("safetensors") {
        return Err(Error::invalid(match gguf {
            true => "the model is in GGUF; convert it to have safetensors",
            false => "name a directory: configuration and tokenizer stand beside the weights",
        })
        .about(path.display().to_string()));
    }
    if gguf { one_gguf(source, path, options) } else { one_safetensors(source, path, options) }
}

fn one_gguf(source: &dyn WeightSource, path: &Path, options: &UnshardOptions) -> Result<()> {
    let header = source.header();
    let mut metadata = header.metadata.clone();
    metadata.retain(|key, _| !key.starts_with("split."));
    provenance::take_back(&mut metadata, "shard");
    let specs: Vec<_> = header.tensors.iter().map(|t| TensorSpec::new(&*t.name, &*t.shape, t.ty)).collect();
    let out = Output::create(path, options.overwrite, file_bytes(&metadata, &specs)?)?;
    let mut writer = GgufWriter::start(out, &metadata, &specs)?;
    each(source, &options.control, |bytes| writer.tensor(bytes))?;
    writer.finish()?.publish()
}

fn one_safetensors(source: &dyn WeightSource, path: &Path, options: &UnshardOptions) -> Result<()> {
    let header = source.header();
    let metadata = file_metadata(header, None);
    let specs = header.tensors.iter().map(spec).collect::<Result<Vec<_>>>()?;
    let side: usize = header.side_files.values().map(|bytes| bytes.len()).sum();
    let tensors = header.tensors.iter().map(bytes_of).sum::<Result<u64>>()?;
    let needed = data_offset(&metadata, &specs)? + tensors + side as u64;
    let out = OutputDirectory::create(path, options.overwrite, needed, None)?;
    for (name, bytes) in &header.side_files {
        out.write(name, bytes)?;
    }
    let mut writer = SafetensorsWriter::start(out.file("model.safetensors", 1 << 26)?, &metadata, &specs)?;
    each(source, &options.control, |bytes| writer.tensor(bytes))?;
    writer.finish()?.finish()?;
    out.publish()
}

/// Hands over every tensor, row after row, in the order of the table.
fn each(
    source: &dyn WeightSource,
    control: &Control,
    mut write: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let tensors = &source.header().tensors;
    let total = tensors.iter().map(bytes_of).sum::<Result<u64>>()?;
    let mut done = 0;
    for (index, tensor) in tensors.iter().enumerate() {
        control.step(&tensor.name, done, total)?;
        write(&rows_of(source, index)?)?;
        source.release(index);
        done += bytes_of(tensor)?;
    }
    control.step("", total, total)
}
