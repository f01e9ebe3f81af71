//! Which file of a directory is the model.

use std::fs;
use std::path::{Path, PathBuf};

use orion_core::{Error, ErrorKind, Result};
use orion_formats::MANIFEST;
use orion_formats::gguf::SplitName;

use crate::open::INDEX;

/// The one file to open: the manifest of a shard set, the index, the one safetensors file, the one GGUF file or the first part of the one split.
pub(crate) fn model_in(directory: &Path) -> Result<PathBuf> {
    let subject = || directory.display().to_string();
    let mut names: Vec<String> = Vec::new();
    for entry in fs::read_dir(directory).map_err(|error| Error::io(error, subject()))? {
        let entry = entry.map_err(|error| Error::io(error, subject()))?;
        if let Ok(name) = entry.file_name().into_string()
            && !name.starts_with('.')
        {
            names.push(name);
        }
    }
    choose(&names, &subject()).map(|name| directory.join(name))
}

/// The one of these file names that is the model: of whole sets of names, so that repositories choose alike.
pub(crate) fn choose(names: &[String], subject: &str) -> Result<String> {
    let mut names = names.to_vec();
    names.sort();
    let has = |name: &str| names.iter().any(|other| other == name);
    if has(MANIFEST) {
        // What stands beside it belongs to it.
        return Ok(MANIFEST.to_owned());
    }
    let mut candidates: Vec<&str> = Vec::new();
    for name in &names {
        let later_part = SplitName::parse(name)
            .is_some_and(|split| split.part > 1 && has(&SplitName { part: 1, ..split }.to_string()));
        if name.ends_with(".gguf") && !later_part {
            candidates.push(name);
        }
    }
    if has(INDEX) {
        candidates.push(INDEX);
    } else if has("model.safetensors") {
        candidates.push("model.safetensors");
    } else {
        candidates.extend(names.iter().map(String::as_str).filter(|name| name.ends_with(".safetensors")));
    }
    match candidates[..] {
        [only] => Ok(only.to_owned()),
        [] => Err(Error::new(
            ErrorKind::NotFound,
            format!("no model in the directory: neither a .gguf nor a .safetensors file nor {INDEX} nor {MANIFEST}"),
        )
        .about(subject)),
        _ => {
            Err(Error::invalid(format!("several models in the directory, name one: {}", listed(&candidates)))
                .about(subject))
        }
    }
}

fn listed(names: &[&str]) -> String {
    let more = names.len().saturating_sub(8);
    let listed = names.iter().take(8).copied().collect::<Vec<_>>().join(", ");
    if more == 0 { listed } else { format!("{listed} and {more} more") }
}
