use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use orion::registry::{
    Document, MissingFiles, ModelEntry, ModelOnDisk, Registry, Sources, enrol, entry_from_files, find_models,
    put_model, read_header, save_model,
};
use orion::{Error, ErrorKind, Result};
use serde_json::{Value, json};

use crate::output;
use crate::registry::{RegistryArgs, custom_layer, model_folder, sources};

/// A registry without models.
const EMPTY: &str = "{\n  \"version\": 1\n}\n";

#[derive(Debug, Args)]
pub(crate) struct Target {
    #[command(flatten)]
    registry: RegistryArgs,
    /// Write into NAME.custom.json beside the registry, and leave the registry alone
    #[arg(long)]
    custom: bool,
    /// Only say what would be written
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Add {
    /// A GGUF or safetensors file, of a set any shard, or a shard set's folder, below the folder of the registry or of the
    /// models
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The id, in place of one made of the file's name
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    #[command(flatten)]
    target: Target,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Scan {
    /// The folder
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    #[command(flatten)]
    target: Target,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Add {
    pub(crate) fn run(&self) -> Result<()> {
        let model = ModelOnDisk::of(&self.file)?;
        let done = self.target.put(&model, self.id.as_deref())?;
        if self.json { output::print_json(&done.json()) } else { output::print(&done.line()) }
    }
}

impl Scan {
    pub(crate) fn run(&self) -> Result<ExitCode> {
        let (mut added, mut failed) = (Vec::new(), Vec::new());
        for found in find_models(&self.folder)? {
            match found.and_then(|model| self.target.put(&model, None)) {
                Ok(done) => {
                    if !self.json {
                        output::print(&done.line())?;
                    }
                    added.push(done);
                }
                // The registry itself is broken: no other model will do better.
                Err(error) if error.kind() == ErrorKind::Io => return Err(error),
                Err(error) => {
                    if !self.json {
                        eprintln!("orion: {error}");
                    }
                    failed.push(error);
                }
            }
        }
        if self.json {
            let error =
                |error: &Error| json!({ "kind": error.kind().as_str(), "message": error.to_string() });
            output::print_json(&json!({
                "models": added.iter().map(Done::json).collect::<Vec<_>>(),
                "failed": failed.iter().map(error).collect::<Vec<_>>(),
            }))?;
        } else {
            output::print(&format!("{} models, {} not usable\n", added.len(), failed.len()))?;
        }
        Ok(ExitCode::from(if failed.is_empty() { 0 } else { 2 }))
    }
}

/// What became of one model.
struct Done {
    file: PathBuf,
    entry: ModelEntry,
    edited: &'static str,
}

impl Done {
    fn json(&self) -> Value {
        json!({ "id": self.entry.id, "edited": self.edited, "file": self.file, "model": self.entry })
    }

    fn line(&self) -> String {
        let quantization = self.entry.quantization.as_deref().unwrap_or("-");
        let architecture = self.entry.architecture.as_deref().unwrap_or("-");
        let mib = self.entry.disk_bytes.unwrap_or(0) >> 20;
        format!(
            "{:<10} {} ({architecture}, {quantization}, {mib} MiB) in {}\n",
            self.edited,
            self.entry.id,
            self.file.display()
        )
    }
}

/// Puts the shard set in a folder into the registry `base`; returns the entry as JSON, and a line that says what was done.
pub(crate) fn enrol_shard_set(base: &Path, folder: &Path) -> Result<(Value, String)> {
    let registry = RegistryArgs { registry: Some(base.to_owned()) };
    let target = Target { registry, custom: false, dry_run: false };
    let done = target.put(&ModelOnDisk::of(folder)?, None)?;
    Ok((done.json(), done.line()))
}

impl Target {
    /// Describes a model and writes its entry, if the catalogue is sound with it.
    fn put(&self, model: &ModelOnDisk, id: Option<&str>) -> Result<Done> {
        let base = self.registry.path();
        let file = if self.custom { custom_layer(&base) } else { base.clone() };
        let found = describe(&base, model)?;
        let text = match std::fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => EMPTY.to_owned(),
            Err(error) => return Err(Error::io(error, file.display().to_string())),
        };
        let before = if base.exists() {
            Some(Registry::load(&sources(&base).missing_files(MissingFiles::Ignore))?)
        } else {
            None
        };
        let document: Document = serde_json::from_str(&text).map_err(|error| {
            Error::corrupt(error.to_string()).about(file.display().to_string()).with_source(error)
        })?;
        let taken: HashSet<String> = before
            .iter()
            .flat_map(|registry| {
                let ids = registry.models().iter().map(|model| model.id().to_owned());
                ids.chain(registry.aliases().keys().cloned())
            })
            .collect();
        let mut entry = enrol(&document, &taken, found);
        if let Some(id) = id {
            id.clone_into(&mut entry.id);
        }
        let with =
            |text: &str| put_model(text, &entry).map_err(|error| error.about(file.display().to_string()));
        let (after, edited) = with(&text)?;
        check(Sources::text(&file, with(EMPTY)?.0))?;
        if !self.custom {
            check(Sources::text(&base, after).with_layer(custom_layer(&base)))?;
        }
        let edited = if self.dry_run { edited } else { save_model(&file, &entry)? };
        let edited = match edited {
            orion::registry::Edited::Added => "added",
            orion::registry::Edited::Replaced => "replaced",
            orion::registry::Edited::Unchanged => "unchanged",
        };
        Ok(Done { file, entry, edited })
    }
}

/// Refuses a catalogue that is not sound.
fn check(sources: Sources) -> Result<()> {
    let sources = match model_folder() {
        Some(folder) => sources.with_model_folder(folder),
        None => sources,
    };
    Registry::load(&sources.missing_files(MissingFiles::Ignore))?;
    Ok(())
}

/// The entry of a model below the registry's folder, or below the folder of models.
fn describe(base: &Path, model: &ModelOnDisk) -> Result<ModelEntry> {
    let header = read_header(model)?;
    let folder = base.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let first = model.weights.first().and_then(|path| path.canonicalize().ok()).unwrap_or_default();
    let below = |folder: &Path| folder.canonicalize().is_ok_and(|folder| first.starts_with(folder));
    let root = match model_folder() {
        Some(models) if !below(folder) && below(&models) => models,
        _ => folder.to_owned(),
    };
    entry_from_files(&root, model, &header)
}
