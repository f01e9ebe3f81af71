//! Where the crates meet.

use std::path::Path;

use orion_core::Result;
use orion_runtime::{LocalModel, LocalRuntime};

/// Opens the model at `path` (a GGUF file, one part of a split one, a safetensors file or index, or a directory) with
/// default settings. Weights go on arriving in the background while the first prompt runs.
///
/// # Errors
/// A path that is not there or holds no model; a file that is damaged or not supported, by name.
pub fn open(path: impl AsRef<Path>) -> Result<LocalModel> {
    LocalRuntime::default().open(orion_loader::open(path.as_ref())?)
}
