//! Which registry the commands read, and what is layered on it.

use std::path::{Path, PathBuf};

use clap::Args;
use orion::registry::{MissingFiles, Registry, Sources};
use orion::{Error, ErrorKind, Result};

/// The file that is taken where none is named.
const USUAL: &str = "models.json";

#[derive(Debug, Clone, Default, Args)]
pub(crate) struct RegistryArgs {
    /// The registry [default: $ORION_REGISTRY, else models.json here, else models.json in the orion folder of your
    /// configuration]. NAME.custom.json and NAME.local.json beside it are laid on top
    #[arg(long, value_name = "FILE")]
    pub(crate) registry: Option<PathBuf>,
}

fn set(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// `models.json` → `models.KIND.json`.
fn beside(base: &Path, kind: &str) -> PathBuf {
    let stem = base.file_stem().unwrap_or_default().to_string_lossy();
    base.with_file_name(format!("{stem}.{kind}.json"))
}

/// Models that a person added.
pub(crate) fn custom_layer(base: &Path) -> PathBuf {
    beside(base, "custom")
}

/// What was measured on this host.
pub(crate) fn local_layer(base: &Path) -> PathBuf {
    beside(base, "local")
}

/// Where `make models` and downloads by hand keep models that stand beside no registry.
pub(crate) fn model_folder() -> Option<PathBuf> {
    let cache = || set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    set("ORION_MODELS").or_else(|| cache().map(|cache| cache.join("orion/models")))
}

/// A registry file with its layers and the folders its models may be in.
pub(crate) fn sources(base: &Path) -> Sources {
    let sources = Sources::new(base).with_layer(custom_layer(base)).with_layer(local_layer(base));
    match model_folder() {
        Some(folder) => sources.with_model_folder(folder),
        None => sources,
    }
}

impl RegistryArgs {
    /// The registry that is named, or found where registries are; `None` if there is none anywhere.
    pub(crate) fn find(&self) -> Option<PathBuf> {
        let config = || set("XDG_CONFIG_HOME").or_else(|| set("HOME").map(|home| home.join(".config")));
        let there = |path: PathBuf| path.is_file().then_some(path);
        self.registry
            .clone()
            .or_else(|| set("ORION_REGISTRY"))
            .or_else(|| there(USUAL.into()))
            .or_else(|| there(config()?.join("orion").join(USUAL)))
    }

    /// The same, or where one would be made.
    pub(crate) fn path(&self) -> PathBuf {
        self.find().unwrap_or_else(|| USUAL.into())
    }

    pub(crate) fn load(&self) -> Result<Registry> {
        let Some(base) = self.find() else {
            let message = "no registry here; name one with --registry, or make one with `orion registry add`";
            return Err(Error::new(ErrorKind::NotFound, message).about(USUAL));
        };
        Ok(Registry::load(&sources(&base).missing_files(MissingFiles::Ignore))?)
    }
}
