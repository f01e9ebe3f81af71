//! Files of which size or SHA-256 is known beforehand.

use std::path::Path;
use std::sync::Arc;

use orion_core::{Error, ErrorKind, FileSpec, Result, WeightSource};
use sha2::{Digest as _, Sha256};

use crate::cache::{Cache, digest_of};
use crate::fetch::Wanted;
use crate::file::OpenFile;
use crate::open::open_local;

/// The one of a model's files that stands for it: manifest, index, or weights.
///
/// # Errors
/// [`NotFound`](ErrorKind::NotFound) if there is none.
pub(crate) fn leading(files: &[FileSpec]) -> Result<&FileSpec> {
    let rank = |file: &FileSpec| match name(&file.location).to_ascii_lowercase().as_str() {
        name if name.ends_with(orion_formats::MANIFEST) => Some(0),
        name if name.ends_with(".safetensors.index.json") => Some(1),
        name if name.ends_with(".gguf") => Some(2),
        name if name.ends_with(".safetensors") => Some(3),
        name if name.ends_with(".json") => None,
        _ => Some(4),
    };
    let ranked = files.iter().filter_map(|file| Some((rank(file)?, file)));
    let first = ranked.min_by_key(|(rank, _)| *rank).map(|(_, file)| file);
    first.ok_or_else(|| Error::new(ErrorKind::NotFound, "the catalogue names no file of weights"))
}

/// Opens the file that stands for a model on this machine, once all its files are what the catalogue says: see
/// [`Loader::open_files`](crate::Loader::open_files), which also takes URLs. Without a cache they are hashed every time.
///
/// # Errors
/// As there.
pub fn open_files(files: &[FileSpec], cache: Option<&Cache>) -> Result<Arc<dyn WeightSource>> {
    let location = &leading(files)?.location;
    verify(files, cache)?;
    open_local(Path::new(location), cache, false)
}

/// Checks local files. What was verified before and has not changed since is not read again, if there is a cache to tell.
pub(crate) fn verify(files: &[FileSpec], cache: Option<&Cache>) -> Result<()> {
    for file in files {
        let path = Path::new(&file.location);
        // Whether it has to be there is for the format to say.
        if !path.is_file() {
            continue;
        }
        let about = |error: Error| error.about(file.location.clone());
        let open = OpenFile::open(path)?;
        if let Some(expected) = file.bytes.filter(|&expected| expected != open.len) {
            let message = format!("has {} bytes, the catalogue says {expected}", open.len);
            return Err(about(Error::corrupt(message)));
        }
        let Some(expected) = file.digest else { continue };
        if cache.is_some_and(|cache| cache.is_marked(path, &open.file, &expected)) {
            continue;
        }
        let found = digest_of(open.reader()).map_err(|error| Error::io(error, file.location.clone()))?;
        if found != expected {
            return Err(about(other(&found, &expected)));
        }
        if let Some(cache) = cache {
            // It is right also where that cannot be noted.
            let _ = cache.mark(path, &open.file, &expected);
        }
    }
    Ok(())
}

/// Has a fetch expect what is known of its files.
pub(crate) fn expect(wanted: &mut [Wanted], files: &[FileSpec]) {
    for wanted in wanted {
        if let Some(file) = files.iter().find(|file| name(&file.location) == name(&wanted.url)) {
            wanted.bytes = wanted.bytes.or(file.bytes);
            wanted.digest = wanted.digest.or(file.digest);
        }
    }
}

/// Checks a small file that was fetched.
pub(crate) fn check(file: &str, bytes: &[u8], files: &[FileSpec]) -> Result<()> {
    let known = files.iter().find(|known| name(&known.location) == file);
    match known.and_then(|known| known.digest) {
        Some(expected) => match orion_core::Digest(Sha256::digest(bytes).into()) {
            found if found == expected => Ok(()),
            found => Err(other(&found, &expected).about(file.to_owned())),
        },
        None => Ok(()),
    }
}

fn other(found: &orion_core::Digest, expected: &orion_core::Digest) -> Error {
    Error::corrupt(format!("has the SHA-256 {found}, the catalogue says {expected}"))
}

fn name(location: &str) -> &str {
    let path = match location.contains("://") {
        true => location.split(['?', '#']).next().unwrap_or(location),
        false => location,
    };
    path.rsplit('/').next().unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_that_stands_for_a_model_is_found_among_its_files() {
        let of = |names: &[&str]| {
            let files: Vec<FileSpec> = names.iter().map(|name| FileSpec::new(*name)).collect();
            leading(&files).map(|file| file.location.clone())
        };
        assert_eq!(of(&["config.json", "m/model.safetensors"]).unwrap(), "m/model.safetensors");
        let sharded = ["m-1.safetensors", "model.safetensors.index.json", "m-2.safetensors"];
        assert_eq!(of(&sharded).unwrap(), "model.safetensors.index.json");
        assert_eq!(of(&["hf://org/name"]).unwrap(), "hf://org/name");
        assert_eq!(of(&["tokenizer.json"]).unwrap_err().kind(), ErrorKind::NotFound);
    }
}
