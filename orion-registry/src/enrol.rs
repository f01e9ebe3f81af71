//! What becomes of the entry of a model found on disk in a file that may know it already.

use std::collections::HashSet;

use crate::document::{Document, ModelEntry, ModelFile};

/// The entry that `document` should hold for a model that was found on disk.
///
/// If an entry of the document has the same first file, it stays: what the files say is brought up to date (files,
/// sizes, digests, architecture, quantisation, context, parameters, memory), what a person may have written is kept.
/// Otherwise the entry is new, and its id is made unlike all of `taken`, the ids and aliases of every layer.
#[must_use]
pub fn enrol(document: &Document, taken: &HashSet<String>, found: ModelEntry) -> ModelEntry {
    let first = |entry: &ModelEntry| entry.files.first().and_then(|file| file.path.clone());
    let place = first(&found);
    let known = document.models.iter().find(|known| place.is_some() && first(known) == place);
    match known {
        Some(known) => refreshed(known, found),
        None => renamed(taken, found),
    }
}

fn refreshed(known: &ModelEntry, found: ModelEntry) -> ModelEntry {
    let mut entry = known.clone();
    macro_rules! take {
        ($($field:ident),*) => { $(if found.$field.is_some() { entry.$field = found.$field; })* };
    }
    take!(architecture, format, quantization, context_length, parameters, disk_bytes);
    entry.memory = found.memory;
    let url = |file: &ModelFile| known.files.iter().find(|old| old.path == file.path)?.url.clone();
    entry.files = found.files.into_iter().map(|file| ModelFile { url: url(&file), ..file }).collect();
    macro_rules! keep {
        ($($field:ident),*) => { $(if entry.$field.is_none() { entry.$field = found.$field; })* };
    }
    keep!(name, quality, speed, min_ram_bytes, licence);
    if entry.capabilities.is_empty() {
        entry.capabilities = found.capabilities;
    }
    if entry.languages.is_empty() {
        entry.languages = found.languages;
    }
    if entry.routing.description.is_none() {
        entry.routing.description = found.routing.description;
    }
    entry
}

fn renamed(taken: &HashSet<String>, mut found: ModelEntry) -> ModelEntry {
    if taken.contains(&found.id) {
        let stem = found.id[..found.id.len().min(120)].to_owned();
        let free = (2_u64..).map(|number| format!("{stem}-{number}")).find(|id| !taken.contains(id));
        found.id = free.expect("one of infinitely many names is free");
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: &str, path: &str) -> ModelEntry {
        let mut entry = ModelEntry::new(id);
        entry.files = vec![ModelFile { path: Some(path.to_owned()), ..ModelFile::default() }];
        entry
    }

    fn document(models: Vec<ModelEntry>) -> Document {
        Document { models, ..Document::default() }
    }

    #[test]
    fn what_a_person_wrote_is_kept_and_what_the_file_says_is_renewed() {
        let mut known = entry("mine", "a/x.gguf");
        known.capabilities = vec!["code".to_owned()];
        known.files[0].url = Some("https://models.example/x.gguf".to_owned());
        known.quantization = Some("Q4_0".to_owned());
        known.system_prompt = Some("Be brief.".to_owned());
        let mut found = entry("x", "a/x.gguf");
        found.capabilities = vec!["chat".to_owned()];
        found.quantization = Some("Q8_0".to_owned());
        found.files[0].bytes = Some(7);
        found.licence = Some("MIT".to_owned());
        let after = enrol(&document(vec![known.clone()]), &HashSet::from(["mine".to_owned()]), found);
        assert_eq!((after.id.as_str(), after.capabilities.as_slice()), ("mine", &["code".to_owned()][..]));
        assert_eq!((after.quantization.as_deref(), after.files[0].bytes), (Some("Q8_0"), Some(7)));
        assert_eq!(after.files[0].url, known.files[0].url);
        assert_eq!((after.system_prompt, after.licence.as_deref()), (known.system_prompt, Some("MIT")));
    }

    #[test]
    fn another_file_of_the_same_name_gets_a_name_of_its_own() {
        let taken = HashSet::from(["x".to_owned(), "x-2".to_owned()]);
        let after = enrol(&document(vec![entry("x", "a/x.gguf")]), &taken, entry("x", "b/x.gguf"));
        assert_eq!(after.id, "x-3");
        let long = "y".repeat(128);
        let after = enrol(&document(vec![]), &HashSet::from([long.clone()]), entry(&long, "y.gguf"));
        assert!(after.id.len() <= 128 && after.id != long);
        assert_eq!(enrol(&document(vec![]), &taken, entry("z", "z.gguf")).id, "z");
    }
}
