//! Cutting a model into shards, and putting it together again.

mod gguf;
mod orion;
mod plan;
mod safetensors;
mod unshard;

use std::num::NonZero;
use std::path::Path;

use orion_core::{Error, ModelFormat, Result, TensorBytes, WeightSource};
use orion_kernels::row_major;

use crate::control::Control;
pub(crate) use orion::stored_bytes;
pub use plan::ShardSize;
pub(crate) use plan::{Stage, cut_as_hugging_face};
pub(crate) use safetensors::{INDEX, file_metadata, spec};
pub use unshard::{UnshardOptions, unshard};

/// What kind of shards to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum ShardFormat {
    /// An ORION shard set: layers in order of need, a digest for every chunk, optionally in the kernels' own layout.
    #[default]
    Orion,
    /// safetensors files and `model.safetensors.index.json`, as `transformers` reads them.
    Safetensors,
    /// Split GGUF, as llama.cpp reads it.
    Gguf,
}

/// How to cut.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ShardOptions {
    /// How large shards are.
    pub size: ShardSize,
    /// What kind they are.
    pub format: ShardFormat,
    /// Whether matrices are stored in the kernels' tiles, which a runtime uses as they are. ORION shard sets only.
    pub pack: bool,
    /// Bytes per digest: a power of two from 64 KiB to 64 MiB. ORION shard sets only.
    pub chunk_bytes: u64,
    /// What the file names of a split GGUF begin with.
    pub stem: String,
    /// Whether the first file of a split GGUF holds metadata alone.
    pub metadata_alone: bool,
    /// Whether a directory of the output's name may be replaced.
    pub overwrite: bool,
    /// What the source is, told by anything that changes with it. With it an interrupted attempt is kept, and taken up
    /// by the next one that says the same.
    pub resume: Option<String>,
    /// Threads that pack. Default: as many as the processor runs.
    pub threads: NonZero<usize>,
    /// Watches and stops the work.
    pub control: Control,
}

impl ShardOptions {
    /// An ORION shard set of that size, not packed, refusing to replace anything.
    #[must_use]
    pub fn new(size: ShardSize) -> Self {
        Self {
            size,
            format: ShardFormat::default(),
            pack: false,
            chunk_bytes: 1 << 20,
            stem: "model".to_owned(),
            metadata_alone: false,
            overwrite: false,
            resume: None,
            threads: std::thread::available_parallelism().unwrap_or(NonZero::<usize>::MIN),
            control: Control::default(),
        }
    }
}

/// One shard, as planned or as written.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ShardReport {
    /// Its file name.
    pub file: String,
    /// Bytes of its tensors; of the whole file once it is written.
    pub bytes: u64,
    /// Number of tensors.
    pub tensors: usize,
    /// The first and the last layer it holds something of.
    pub layers: Option<(u64, u64)>,
    /// SHA-256 in hexadecimal digits; empty before it is written.
    pub sha256: String,
}

/// A shard and the tensors it will hold, as positions in the source's table.
#[derive(Debug, Clone)]
struct Planned {
    report: ShardReport,
    tensors: Vec<usize>,
}

/// Says what [`shard`] would write.
///
/// # Errors
/// As [`shard`], as far as the header tells.
pub fn plan_shards(source: &dyn WeightSource, options: &ShardOptions) -> Result<Vec<ShardReport>> {
    Ok(planned(source, options)?.into_iter().map(|shard| shard.report).collect())
}

/// Cuts `source` into shards in the directory `path`, which appears only when it is complete.
///
/// Holds one tensor of the source, and its packed form.
///
/// # Errors
/// [`InvalidInput`](orion_core::ErrorKind::InvalidInput) if the directory exists, the format does not suit the model
/// (a GGUF cannot become safetensors without being converted), or there are fewer tensors than shards; whatever
/// reading and writing report. Nothing is left at `path` then.
pub fn shard(source: &dyn WeightSource, path: &Path, options: &ShardOptions) -> Result<Vec<ShardReport>> {
    let shards = planned(source, options)?;
    match options.format {
        ShardFormat::Orion => orion::write(source, path, options, shards),
        ShardFormat::Safetensors => safetensors::write(source, path, options, shards),
        ShardFormat::Gguf => gguf::write(source, path, options, shards),
    }
}

fn planned(source: &dyn WeightSource, options: &ShardOptions) -> Result<Vec<Planned>> {
    let header = source.header();
    let tensors = &header.tensors;
    if tensors.is_empty() {
        return Err(Error::invalid("the model has no tensors"));
    }
    if options.pack && options.format != ShardFormat::Orion {
        return Err(Error::invalid("only ORION shard sets hold packed tensors"));
    }
    let wanted = match options.format {
        ShardFormat::Orion => header.format,
        ShardFormat::Safetensors => ModelFormat::Safetensors,
        ShardFormat::Gguf => ModelFormat::Gguf,
    };
    if wanted != header.format {
        return Err(Error::invalid(format!(
            "the model is {:?} and the shards are to be {wanted:?}; convert it first",
            header.format
        )));
    }
    let name = |number: usize, count: usize| match options.format {
        ShardFormat::Orion => format!("orion-{number:05}-of-{count:05}.safetensors"),
        ShardFormat::Safetensors if count == 1 => "model.safetensors".to_owned(),
        ShardFormat::Safetensors => format!("model-{number:05}-of-{count:05}.safetensors"),
        ShardFormat::Gguf => format!("{}-{number:05}-of-{count:05}.gguf", options.stem),
    };
    let (order, sizes): (Vec<usize>, Vec<u64>) = match options.format {
        ShardFormat::Orion => {
            let order = plan::order_of_need(tensors);
            let sizes = order.iter().map(|&index| stored_bytes(&tensors[index], options.pack));
            let sizes = sizes.collect::<Result<_>>()?;
            (order, sizes)
        }
        // What others read keeps the order it had.
        _ => {
            (0..tensors.len()).map(|index| Ok((index, bytes_of(&tensors[index])?))).collect::<Result<_>>()?
        }
    };
    let groups: Vec<Vec<usize>> = match (options.format, options.size) {
        (ShardFormat::Safetensors, ShardSize::Bytes(most)) => plan::cut_as_hugging_face(&sizes, most.get()),
        (_, size) => {
            let units = plan::units(tensors, &order);
            plan::cut(&sizes, &units, size)?.into_iter().map(Iterator::collect).collect()
        }
    };
    let first = usize::from(options.format == ShardFormat::Gguf && options.metadata_alone);
    let count = groups.len() + first;
    if count > 99_999 {
        return Err(Error::invalid(format!("{count} shards; file names hold five digits")));
    }
    let nothing = (first == 1).then(Vec::new);
    Ok(nothing
        .into_iter()
        .chain(groups)
        .enumerate()
        .map(|(number, group)| {
            let indices: Vec<usize> = group.iter().map(|&at| order[at]).collect();
            Planned {
                report: ShardReport {
                    file: name(number + 1, count),
                    bytes: group.iter().map(|&at| sizes[at]).sum(),
                    tensors: group.len(),
                    layers: plan::layers(indices.iter().map(|&index| tensors[index].name.as_str())),
                    sha256: String::new(),
                },
                tensors: indices,
            }
        })
        .collect())
}

/// Bytes of a tensor row after row.
fn bytes_of(tensor: &orion_core::TensorInfo) -> Result<u64> {
    let row = tensor.ty.bytes_of(tensor.shape.last().copied().unwrap_or(1));
    let rows = tensor.shape.iter().rev().skip(1).product::<u64>();
    row.and_then(|row| row.checked_mul(rows)).ok_or_else(|| {
        Error::corrupt("rows are no whole number of blocks").about(format!("tensor {}", tensor.name))
    })
}

/// A tensor row after row, whichever layout it is stored in.
pub(crate) fn rows_of(source: &dyn WeightSource, index: usize) -> Result<TensorBytes> {
    let info = &source.header().tensors[index];
    let bytes = source.tensor(index)?;
    row_major(info, &bytes).map_err(|error| error.about(format!("tensor {}", info.name)))
}

/// What identifies the work for [`ShardOptions::resume`].
fn fingerprint(options: &ShardOptions, shards: &[Planned]) -> Option<String> {
    let source = options.resume.as_ref()?;
    let files: Vec<_> = shards.iter().map(|s| format!("{} {}", s.report.file, s.report.bytes)).collect();
    let (pack, chunk, alone) = (options.pack, options.chunk_bytes, options.metadata_alone);
    Some(format!("{source}\n{:?} {pack} {chunk} {alone}\n{}\n", options.format, files.join("\n")))
}
