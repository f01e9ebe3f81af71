//! Changing a file without changing what one did not mean to change.
//!
//! An edit replaces a range of the text and leaves every other byte alone: order, indentation and blank lines are
//! the author's. The new text is written beside the file, flushed, and renamed over it, so that a reader sees the
//! old file or the new one and never half of either.

use std::io::Write;
use std::path::{Path, PathBuf};

use orion_core::{Error, ErrorKind, Result};
use serde::Serialize;

use crate::document::{Measured, ModelEntry};
use crate::json::{Node, Value, parse};

/// Whether an edit added something or replaced it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Edited {
    /// It was not there.
    Added,
    /// It was there and differed.
    Replaced,
    /// It was there already.
    Unchanged,
}

/// Puts an entry into the text of a registry file: in place of the one of its id, or at the end of the list.
///
/// # Errors
/// [`Corrupt`](ErrorKind::Corrupt) if the text is no registry file.
pub fn put_model(text: &str, entry: &ModelEntry) -> Result<(String, Edited)> {
    let root = object(text)?;
    let json = pretty(entry);
    let Some(models) = root.get("models") else {
        return Ok((
            insert_member(text, &root, "models", &format!("[\n  {}\n]", shift(&json, 2))),
            Edited::Added,
        ));
    };
    let Value::Array(elements) = &models.value else {
        return Err(Error::corrupt("\"models\" is no list"));
    };
    let same = elements.iter().find(|element| {
        element.get("id").is_some_and(|id| matches!(&id.value, Value::String(id) if **id == *entry.id))
    });
    if let Some(same) = same {
        return Ok(replace(text, same, &json));
    }
    let text = match elements.last() {
        None => splice(text, models.start, models.end, &format!("[\n    {}\n  ]", shift(&json, 4))),
        Some(last) => {
            let indent = column(text, last.start);
            let element = format!(",\n{}{}", " ".repeat(indent), shift(&json, indent));
            splice(text, last.end, last.end, &element)
        }
    };
    Ok((text, Edited::Added))
}

/// Puts figures measured on this host into the text of a registry file.
///
/// # Errors
/// [`Corrupt`](ErrorKind::Corrupt) if the text is no registry file.
pub fn put_measured(text: &str, model: &str, figures: &Measured) -> Result<(String, Edited)> {
    let root = object(text)?;
    let json = pretty(figures);
    let Some(measured) = root.get("measured") else {
        let key = serde_json::to_string(model).expect("a string always serialises");
        return Ok((
            insert_member(text, &root, "measured", &format!("{{\n  {key}: {}\n}}", shift(&json, 2))),
            Edited::Added,
        ));
    };
    match measured.get(model) {
        Some(old) => Ok(replace(text, old, &json)),
        None => Ok((insert_member(text, measured, model, &json), Edited::Added)),
    }
}

/// Adds an entry to a registry file, or replaces the one of its id. The file is made if it is not there.
///
/// # Errors
/// What [`put_model`] finds, and failures to read or write.
pub fn save_model(path: &Path, entry: &ModelEntry) -> Result<Edited> {
    save(path, |text| put_model(text, entry))
}

/// Writes figures measured on this host into a file of their own, layered on top of the others.
///
/// # Errors
/// What [`put_measured`] finds, and failures to read or write.
pub fn save_measured(path: &Path, model: &str, figures: &Measured) -> Result<Edited> {
    save(path, |text| put_measured(text, model, figures))
}

const EMPTY: &str = "{\n  \"version\": 1\n}\n";
/// Tries if another process writes the same file.
const TRIES: usize = 16;

fn save(path: &Path, edit: impl Fn(&str) -> Result<(String, Edited)>) -> Result<Edited> {
    let about = || path.display().to_string();
    let read = || match std::fs::read_to_string(path) {
        Ok(text) => Ok(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(EMPTY.to_owned()),
        Err(error) => Err(Error::io(error, about())),
    };
    for _ in 0..TRIES {
        let old = read()?;
        let (new, edited) = edit(&old).map_err(|error| error.about(about()))?;
        if edited == Edited::Unchanged {
            return Ok(edited);
        }
        let staged = stage(path, new.as_bytes()).map_err(|error| Error::io(error, about()))?;
        // Another writer between reading and now would be undone: begin again from what it wrote.
        if read()? == old {
            staged.commit().map_err(|error| Error::io(error, about()))?;
            return Ok(edited);
        }
    }
    Err(Error::new(ErrorKind::Io, "other processes keep changing the file").about(about()))
}

/// Replaces a file as a whole: readers see the old content or the new, never a part. Links are followed and
/// permissions kept.
///
/// # Errors
/// When writing or renaming fails; the old file is untouched then.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let written = stage(path, bytes).and_then(Staged::commit);
    written.map_err(|error| Error::io(error, path.display().to_string()))
}

struct Staged {
    file: tempfile::NamedTempFile,
    target: PathBuf,
}

fn stage(path: &Path, bytes: &[u8]) -> std::io::Result<Staged> {
    let target = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let folder = match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    std::fs::create_dir_all(folder)?;
    let mut builder = tempfile::Builder::new();
    builder.prefix(".models-").suffix(".tmp");
    // A new file gets what the system's mask leaves of this, not the owner-only mode of temporary files.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file = builder.tempfile_in(folder)?;
    file.write_all(bytes)?;
    if let Ok(metadata) = target.metadata() {
        file.as_file().set_permissions(metadata.permissions())?;
    }
    file.as_file().sync_all()?;
    Ok(Staged { file, target })
}

impl Staged {
    fn commit(self) -> std::io::Result<()> {
        self.file.persist(&self.target).map_err(|error| error.error)?;
        #[cfg(unix)]
        if let Some(folder) = self.target.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            std::fs::File::open(folder)?.sync_all()?;
        }
        Ok(())
    }
}

fn object(text: &str) -> Result<Node<'_>> {
    let (root, faults) = parse(text);
    if let Some(fault) = faults.first() {
        let (line, column) = crate::json::Lines::new(text).locate(fault.at);
        return Err(Error::corrupt(format!("line {line}, column {column}: {}", fault.message)));
    }
    let root = root.expect("a text without faults has a root");
    match root.value {
        Value::Object(_) => Ok(root),
        _ => Err(Error::corrupt("the document is no object")),
    }
}

fn pretty(value: &impl Serialize) -> String {
    serde_json::to_string_pretty(value).expect("registry types are plain data")
}

/// Indents all lines but the first. JSON strings hold no line breaks, so no text is touched.
fn shift(json: &str, by: usize) -> String {
    json.replace('\n', &format!("\n{}", " ".repeat(by)))
}

/// The indentation of the line something stands on.
fn column(text: &str, at: usize) -> usize {
    let line = text[..at].rfind('\n').map_or(0, |newline| newline + 1);
    text[line..at].chars().take_while(|c| *c == ' ').count()
}

fn splice(text: &str, start: usize, end: usize, with: &str) -> String {
    [&text[..start], with, &text[end..]].concat()
}

fn replace(text: &str, old: &Node<'_>, json: &str) -> (String, Edited) {
    let parsed = |text: &str| serde_json::from_str::<serde_json::Value>(text).ok();
    if parsed(&text[old.start..old.end]) == parsed(json) {
        return (text.to_owned(), Edited::Unchanged);
    }
    let json = shift(json, column(text, old.start));
    (splice(text, old.start, old.end, &json), Edited::Replaced)
}

/// Adds a member at the end of an object.
fn insert_member(text: &str, object: &Node<'_>, key: &str, json: &str) -> String {
    let key = serde_json::to_string(key).expect("a string always serialises");
    let outer = column(text, object.start);
    match object.members().last() {
        Some(last) => {
            let indent = column(text, last.key_start).max(outer + 2);
            let member = format!(",\n{}{key}: {}", " ".repeat(indent), shift(json, indent));
            splice(text, last.value.end, last.value.end, &member)
        }
        None => {
            let (indent, outer) = (" ".repeat(outer + 2), " ".repeat(outer));
            let member = format!("{{\n{indent}{key}: {}\n{outer}}}", shift(json, indent.len()));
            splice(text, object.start, object.end, &member)
        }
    }
}
