//! The manifest of an ORION shard set: which bytes of which shard are which tensor, and what their digests are.

use std::collections::{BTreeMap, HashSet};

use orion_core::{Digest, MetaValue, ModelFormat, ModelHeader, Result, TensorInfo, TensorType, TileLayout};
use serde::{Deserialize, Serialize};

use crate::name::{check_file_name, check_tensor_name, shown};
use crate::reason::Reason;
use crate::safetensors::{LONGEST_NAME, MOST_DIMS};
use crate::shape;

/// The manifest's file name.
pub const MANIFEST: &str = "orion-manifest.json";

const FORMAT: &str = "orion-shard-set";
const VERSION: u32 = 1;
const MOST_SHARDS: usize = 1 << 16;
const MOST_TENSORS: usize = 1 << 18;
const MOST_CHUNKS: usize = 1 << 22;
/// Mapped tensors begin on a cache line.
const ALIGNMENT: u64 = 64;

/// A model cut into shards that stand in the order in which a forward pass needs them.
///
/// The manifest holds what is needed to read and verify each tensor by itself: a shard's chunks carry digests, so a
/// tensor can be used as soon as its chunks are there. Metadata comes from a GGUF file without tensors, or from side
/// files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardSet {
    /// Whose tensor and metadata names it uses.
    pub model_format: ModelFormat,
    /// Bytes that one chunk digest covers: a power of two from 64 KiB to 64 MiB.
    pub chunk_bytes: u64,
    /// A GGUF file without tensors that holds the metadata.
    pub metadata: Option<FileEntry>,
    /// `config.json`, `tokenizer.json`, …
    pub side_files: Vec<FileEntry>,
    /// The shards in order of need.
    pub shards: Vec<Shard>,
    /// The tensor table.
    pub tensors: Vec<ShardTensor>,
}

/// A file of a shard set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileEntry {
    /// Plain file name, beside the manifest.
    pub file: String,
    /// Length.
    pub bytes: u64,
    /// SHA-256.
    pub digest: Digest,
}

/// A shard and the digests of its chunks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shard {
    /// The file.
    pub entry: FileEntry,
    /// SHA-256 of each [`ShardSet::chunk_bytes`], the last one shorter.
    pub chunks: Vec<Digest>,
}

/// A tensor of a shard set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardTensor {
    /// Its name.
    pub name: String,
    /// Outermost dimension first.
    pub shape: Vec<u64>,
    /// Element type.
    pub ty: TensorType,
    /// Arrangement of the blocks.
    pub layout: TileLayout,
    /// Index of its shard.
    pub shard: usize,
    /// First byte within the shard, a multiple of 64.
    pub offset: u64,
    /// Length.
    pub bytes: u64,
}

impl ShardSet {
    /// Parses and checks a manifest.
    ///
    /// # Errors
    /// [`Reason::BadManifest`], [`Reason::BadDigest`], [`Reason::PathEscape`], [`Reason::UnsupportedVersion`] and
    /// what else a tensor table can be refused for.
    pub fn parse(json: &[u8]) -> Result<Self> {
        let raw: RawSet = serde_json::from_slice(json).map_err(|error| {
            Reason::BadManifest.error(format!("the manifest is not the JSON it must be: {error}"))
        })?;
        if raw.format != FORMAT {
            return Err(
                Reason::BadManifest.error(format!("format is {}, expected {FORMAT}", shown(&raw.format)))
            );
        }
        if raw.version != VERSION {
            return Err(Reason::UnsupportedVersion
                .error(format!("manifest version {} is not read, only {VERSION}", raw.version)));
        }
        let set = raw.build()?;
        set.check()?;
        Ok(set)
    }

    /// The manifest as JSON, one shard and one tensor per line of a diff.
    ///
    /// # Errors
    /// As [`parse`](Self::parse): what would not be read is not written.
    pub fn to_json(&self) -> Result<String> {
        self.check()?;
        let raw = RawSet::of(self)?;
        let mut text = serde_json::to_string_pretty(&raw).expect("strings and numbers always serialise");
        text.push('\n');
        Ok(text)
    }

    /// The header of the model, with metadata from elsewhere. Files are counted as shards are.
    #[must_use]
    pub fn model(&self, metadata: BTreeMap<String, MetaValue>) -> ModelHeader {
        let tensors = self.tensors.iter().map(|tensor| TensorInfo {
            name: tensor.name.clone(),
            shape: tensor.shape.clone(),
            ty: tensor.ty,
            layout: tensor.layout,
            file: tensor.shard,
            offset: tensor.offset,
            bytes: tensor.bytes,
        });
        ModelHeader::new(self.model_format, metadata, tensors.collect())
    }

    fn check(&self) -> Result<()> {
        let bad = |message: String| Err(Reason::BadManifest.error(message));
        if !self.chunk_bytes.is_power_of_two() || !((1 << 16)..=(1 << 26)).contains(&self.chunk_bytes) {
            return bad(format!(
                "chunk_bytes is {}, expected a power of two from 2^16 to 2^26",
                self.chunk_bytes
            ));
        }
        if self.shards.len() > MOST_SHARDS || self.tensors.len() > MOST_TENSORS {
            return Err(Reason::CountTooLarge.error("too many shards or tensors"));
        }
        let mut files = HashSet::new();
        let entries =
            self.shards.iter().map(|shard| &shard.entry).chain(&self.side_files).chain(&self.metadata);
        for entry in entries {
            check_file_name(&entry.file)?;
            if !files.insert(entry.file.to_lowercase()) {
                return bad(format!("file {} appears twice", shown(&entry.file)));
            }
            if entry.bytes > 1 << 48 {
                return Err(Reason::TooLarge
                    .error(format!("{} bytes", entry.bytes))
                    .about(entry.file.clone()));
            }
        }
        for shard in &self.shards {
            let chunks = shard.entry.bytes.div_ceil(self.chunk_bytes);
            if shard.chunks.len() > MOST_CHUNKS || shard.chunks.len() as u64 != chunks {
                return bad(format!(
                    "{} chunk digests for {chunks} chunks of {}",
                    shard.chunks.len(),
                    shard.entry.file
                ));
            }
        }
        self.check_tensors()
    }

    fn check_tensors(&self) -> Result<()> {
        let mut names = HashSet::with_capacity(self.tensors.len());
        let mut ranges: Vec<Vec<(u64, u64, &str)>> = vec![Vec::new(); self.shards.len()];
        for tensor in &self.tensors {
            check_tensor_name(&tensor.name, LONGEST_NAME)?;
            let refuse = |reason: Reason, message: &str| {
                Err(reason.error(message).about(format!("tensor {}", shown(&tensor.name))))
            };
            if !names.insert(tensor.name.as_str()) {
                return refuse(Reason::DuplicateTensor, "appears twice");
            }
            if tensor.shape.len() > MOST_DIMS {
                return refuse(Reason::TooManyDims, "more than 8 dimensions");
            }
            let bytes = shape::bytes(tensor.ty, &tensor.shape)
                .map_err(|error| error.about(format!("tensor {}", shown(&tensor.name))))?;
            // Tiles may pad, and never drop.
            if tensor.bytes < bytes || (tensor.layout == TileLayout::RowMajor && tensor.bytes != bytes) {
                return refuse(Reason::BadInfo, "shape, type and length contradict each other");
            }
            if !tensor.offset.is_multiple_of(ALIGNMENT) {
                return refuse(Reason::BadOffset, "offset is no multiple of 64");
            }
            let Some(shard) = self.shards.get(tensor.shard) else {
                return refuse(Reason::OutOfBounds, "there is no such shard");
            };
            match tensor.offset.checked_add(tensor.bytes) {
                Some(end) if end <= shard.entry.bytes => {
                    ranges[tensor.shard].push((tensor.offset, end, &tensor.name));
                }
                _ => return refuse(Reason::OutOfBounds, "lies outside its shard"),
            }
        }
        for range in &mut ranges {
            range.sort_unstable();
            if let Some(pair) = range.windows(2).find(|pair| pair[1].0 < pair[0].1) {
                return Err(Reason::Overlap
                    .error("overlaps another tensor")
                    .about(format!("tensor {}", shown(pair[1].2))));
            }
        }
        Ok(())
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSet {
    format: String,
    version: u32,
    model_format: String,
    chunk_bytes: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    metadata: Option<RawFile>,
    #[serde(default)]
    side_files: Vec<RawFile>,
    shards: Vec<RawShard>,
    tensors: Vec<RawTensor>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    file: String,
    bytes: u64,
    sha256: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawShard {
    file: String,
    bytes: u64,
    sha256: String,
    chunks: Vec<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTensor {
    name: String,
    shape: Vec<u64>,
    #[serde(rename = "type")]
    ty: String,
    layout: String,
    shard: usize,
    offset: u64,
    bytes: u64,
}

/// The layouts by the names they have in manifests.
const LAYOUTS: &[(TileLayout, &str)] =
    &[(TileLayout::RowMajor, "row_major"), (TileLayout::Tiles16, "tiles16")];
const MODEL_FORMATS: &[(ModelFormat, &str)] =
    &[(ModelFormat::Gguf, "gguf"), (ModelFormat::Safetensors, "safetensors")];

fn named<T: Copy>(table: &[(T, &str)], name: &str) -> Result<T> {
    let found = table.iter().find(|(_, known)| *known == name);
    found
        .map(|(value, _)| *value)
        .ok_or_else(|| Reason::BadManifest.error(format!("unknown value \"{}\"", shown(name))))
}

fn name_of<T: PartialEq>(table: &'static [(T, &'static str)], value: &T) -> Result<String> {
    let found = table.iter().find(|(known, _)| known == value);
    found
        .map(|(_, name)| (*name).to_owned())
        .ok_or_else(|| Reason::BadManifest.error("a value that has no name in manifests"))
}

fn digest(text: &str, file: &str) -> Result<Digest> {
    Digest::parse(text).ok_or_else(|| {
        Reason::BadDigest
            .error(format!("\"{}\" is no SHA-256 of 64 lower-case hexadecimal digits", shown(text)))
            .about(format!("file {}", shown(file)))
    })
}

impl RawFile {
    fn build(self) -> Result<FileEntry> {
        let digest = digest(&self.sha256, &self.file)?;
        Ok(FileEntry { file: self.file, bytes: self.bytes, digest })
    }

    fn of(entry: &FileEntry) -> Self {
        Self { file: entry.file.clone(), bytes: entry.bytes, sha256: entry.digest.to_string() }
    }
}

impl RawSet {
    fn build(self) -> Result<ShardSet> {
        let shards = self.shards.into_iter().map(|raw| {
            let chunks = raw.chunks.iter().map(|text| digest(text, &raw.file)).collect::<Result<_>>()?;
            let entry = RawFile { file: raw.file, bytes: raw.bytes, sha256: raw.sha256 }.build()?;
            Ok(Shard { entry, chunks })
        });
        let tensors = self.tensors.into_iter().map(|raw| {
            let ty = TensorType::from_name(&raw.ty).ok_or_else(|| {
                Reason::UnsupportedDtype
                    .error(format!("type {} is not supported", shown(&raw.ty)))
                    .about(format!("tensor {}", shown(&raw.name)))
            })?;
            Ok(ShardTensor {
                layout: named(LAYOUTS, &raw.layout)
                    .map_err(|error| error.about(format!("tensor {}", shown(&raw.name))))?,
                name: raw.name,
                shape: raw.shape,
                ty,
                shard: raw.shard,
                offset: raw.offset,
                bytes: raw.bytes,
            })
        });
        Ok(ShardSet {
            model_format: named(MODEL_FORMATS, &self.model_format)?,
            chunk_bytes: self.chunk_bytes,
            shards: shards.collect::<Result<_>>()?,
            tensors: tensors.collect::<Result<_>>()?,
            metadata: self.metadata.map(RawFile::build).transpose()?,
            side_files: self.side_files.into_iter().map(RawFile::build).collect::<Result<_>>()?,
        })
    }

    fn of(set: &ShardSet) -> Result<Self> {
        let shards = set.shards.iter().map(|shard| RawShard {
            file: shard.entry.file.clone(),
            bytes: shard.entry.bytes,
            sha256: shard.entry.digest.to_string(),
            chunks: shard.chunks.iter().map(Digest::to_string).collect(),
        });
        let tensors = set.tensors.iter().map(|tensor| {
            Ok(RawTensor {
                name: tensor.name.clone(),
                shape: tensor.shape.clone(),
                ty: tensor.ty.name().to_owned(),
                layout: name_of(LAYOUTS, &tensor.layout)?,
                shard: tensor.shard,
                offset: tensor.offset,
                bytes: tensor.bytes,
            })
        });
        Ok(Self {
            format: FORMAT.to_owned(),
            version: VERSION,
            model_format: name_of(MODEL_FORMATS, &set.model_format)?,
            chunk_bytes: set.chunk_bytes,
            metadata: set.metadata.as_ref().map(RawFile::of),
            side_files: set.side_files.iter().map(RawFile::of).collect(),
            shards: shards.collect(),
            tensors: tensors.collect::<Result<_>>()?,
        })
    }
}
