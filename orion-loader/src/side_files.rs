//! The files that stand beside the weights of a safetensors model.

use std::path::Path;

use orion_core::{ErrorKind, ModelHeader, Result};

use crate::file::OpenFile;

/// Names that are looked for, and the most bytes each may have.
pub(crate) const SIDE_FILES: &[(&str, u64)] = &[
    ("config.json", 4 << 20),
    ("generation_config.json", 4 << 20),
    ("tokenizer.json", 128 << 20),
    ("tokenizer_config.json", 16 << 20),
    ("special_tokens_map.json", 4 << 20),
    ("chat_template.jinja", 4 << 20),
    // A low-rank adapter says what it is.
    ("adapter_config.json", 4 << 20),
    // What sentence-transformers adds: how token vectors become one.
    ("modules.json", 1 << 20),
    ("sentence_bert_config.json", 1 << 20),
    ("1_Pooling/config.json", 1 << 20),
];

/// Attaches those that are there.
pub(crate) fn attach(header: &mut ModelHeader, directory: &Path) -> Result<()> {
    for &(name, most) in SIDE_FILES {
        match OpenFile::open(&directory.join(name)) {
            Ok(file) => {
                header.side_files.insert(name.to_owned(), file.all(most)?.into());
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
