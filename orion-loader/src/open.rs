//! From a path to a source.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use orion_core::{Error, ErrorKind, Result, WeightSource};
use orion_formats::gguf::{self, SplitName};
use orion_formats::{MANIFEST, Reason, ShardIndex, looks_like, safetensors};

use crate::cache::Cache;
use crate::directory::model_in;
use crate::file::{FileSource, OpenFile};
use crate::shards::ShardSource;
use crate::side_files;

/// The index of a sharded safetensors model.
pub(crate) const INDEX: &str = "model.safetensors.index.json";
/// Longest index: 262,144 tensors with long names.
pub(crate) const LONGEST_INDEX: u64 = 64 << 20;

/// Opens a local model: a GGUF file, any part of a split GGUF, a safetensors file, a shard index, or a directory that
/// holds exactly one of these. Headers are read and checked against the files; no tensor is read.
///
/// # Errors
/// [`NotFound`](ErrorKind::NotFound) if path or part is not there, [`InvalidInput`](ErrorKind::InvalidInput) if it is
/// unclear which model is meant, [`Corrupt`](ErrorKind::Corrupt) or [`Unsupported`](ErrorKind::Unsupported) with the
/// path and a [`Reason`], [`Io`](ErrorKind::Io).
pub fn open(path: impl AsRef<Path>) -> Result<Arc<dyn WeightSource>> {
    open_local(path.as_ref(), None, false)
}

/// [`open`], with a cache that remembers which shards were verified, and shards mapped if `map`.
pub(crate) fn open_local(path: &Path, cache: Option<&Cache>, map: bool) -> Result<Arc<dyn WeightSource>> {
    let metadata = std::fs::metadata(path).map_err(|error| Error::io(error, path.display().to_string()))?;
    let path = if metadata.is_dir() { model_in(path)? } else { path.to_owned() };
    let file = OpenFile::open(&path)?;
    let start = file.start(512)?;
    let named = |extension: &str| path.extension().is_some_and(|given| given.eq_ignore_ascii_case(extension));
    let source = if start.starts_with(gguf::MAGIC) || named("gguf") {
        open_gguf(file)?
    } else if path.file_name().is_some_and(|name| name == MANIFEST) {
        return Ok(Arc::new(ShardSource::open(&file, cache, map)?));
    } else if named("json") {
        open_index(&file)?
    } else if named("safetensors") || start.get(8) == Some(&b'{') {
        let mut header = safetensors_header(&file)?.model().map_err(|error| error.about(file.subject()))?;
        side_files::attach(&mut header, parent(&path))?;
        FileSource::new(header, vec![file])
    } else {
        let error = match looks_like(&start) {
            Some(kind) => Reason::NotAModel(kind).error(format!("not a model file, looks like {kind}")),
            None => Reason::BadMagic.error("neither a GGUF nor a safetensors file"),
        };
        return Err(error.about(file.subject()));
    };
    Ok(Arc::new(source))
}

/// The files that hold the weights of a local model.
pub(crate) fn files_of(path: &Path) -> Result<Vec<PathBuf>> {
    let metadata = std::fs::metadata(path).map_err(|error| Error::io(error, path.display().to_string()))?;
    let path = if metadata.is_dir() { model_in(path)? } else { path.to_owned() };
    let directory = parent(&path);
    let beside = |names: Vec<String>| names.iter().map(|name| inside(directory, name)).collect();
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let json = || OpenFile::open(&path)?.all(LONGEST_INDEX);
    if name == MANIFEST {
        let set = orion_formats::ShardSet::parse(&json()?)?;
        return beside(set.shards.into_iter().map(|shard| shard.entry.file).collect());
    }
    if name.ends_with(".json") {
        return beside(ShardIndex::parse(&json()?)?.files().into_iter().map(str::to_owned).collect());
    }
    match SplitName::parse(name) {
        Some(split) if split.parts > 1 => beside(split.all().map(|part| part.to_string()).collect()),
        _ => Ok(vec![path]),
    }
}

pub(crate) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn open_gguf(file: OpenFile) -> Result<FileSource> {
    let name = file.path.file_name().and_then(|name| name.to_str()).and_then(SplitName::parse);
    let files = match name {
        Some(name) if name.parts > 1 => {
            let directory = parent(&file.path).to_owned();
            let missing = |error: Error, path: &Path| match error.kind() {
                ErrorKind::NotFound => {
                    Error::new(ErrorKind::NotFound, "this part of the split model is missing")
                        .about(path.display().to_string())
                        .with_source(error)
                }
                _ => error,
            };
            name.all()
                .map(|part| directory.join(part.to_string()))
                .map(|path| OpenFile::open(&path).map_err(|error| missing(error, &path)))
                .collect::<Result<Vec<_>>>()?
        }
        _ => vec![file],
    };
    let headers = files
        .iter()
        .map(|file| gguf::read_header(file.reader(), file.len).map_err(|error| error.about(file.subject())))
        .collect::<Result<Vec<_>>>()?;
    let header = gguf::join(headers).map_err(|error| error.about(files[0].subject()))?;
    Ok(FileSource::new(header, files))
}

fn safetensors_header(file: &OpenFile) -> Result<safetensors::SafetensorsHeader> {
    safetensors::read_header(file.reader(), file.len).map_err(|error| error.about(file.subject()))
}

fn open_index(file: &OpenFile) -> Result<FileSource> {
    let directory = parent(&file.path);
    let index = ShardIndex::parse(&file.all(LONGEST_INDEX)?).map_err(|error| error.about(file.subject()))?;
    let files = index
        .files()
        .into_iter()
        .map(|name| OpenFile::open(&inside(directory, name)?))
        .collect::<Result<Vec<_>>>()?;
    let headers = files.iter().map(safetensors_header).collect::<Result<Vec<_>>>()?;
    let mut header = index.join(&headers).map_err(|error| error.about(file.subject()))?;
    side_files::attach(&mut header, directory)?;
    Ok(FileSource::new(header, files))
}

/// The path of a shard, whose symbolic links may lead to its own directory or, in a Hugging Face cache, to the blobs
/// of its own repository, and nowhere else.
pub(crate) fn inside(directory: &Path, name: &str) -> Result<PathBuf> {
    let path = directory.join(name);
    let io = |error, path: &Path| Error::io(error, path.display().to_string());
    let target = path.canonicalize().map_err(|error| io(error, &path))?;
    let directory = directory.canonicalize().map_err(|error| io(error, directory))?;
    let snapshots = directory.parent().filter(|parent| parent.ends_with("snapshots"));
    let blobs = snapshots.and_then(Path::parent).map(|repository| repository.join("blobs"));
    if target.starts_with(&directory) || blobs.is_some_and(|blobs| target.starts_with(blobs)) {
        return Ok(path);
    }
    Err(Reason::PathEscape.error("a link out of the model's directory").about(path.display().to_string()))
}
