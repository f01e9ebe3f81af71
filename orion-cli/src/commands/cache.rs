use std::time::SystemTime;

use clap::{Args, Subcommand};
use orion::Result;
use orion::loader::{Blob, LoaderOptions};
use serde_json::{Value, json};

use crate::output;
use crate::source::bytes;

#[derive(Debug, Args)]
pub(crate) struct Cache {
    #[command(subcommand)]
    action: Action,
    /// The folder [default: $ORION_CACHE, else orion in the user's cache folder]
    #[arg(long, value_name = "DIR", global = true)]
    cache: Option<std::path::PathBuf>,
    /// Print one JSON object
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List the files, the longest unused first
    List,
    /// Read every file; what has lost its digest goes into quarantine and is fetched anew when it is needed
    Verify,
    /// Remove leftovers, and with --most the longest unused files, never those in use
    Clean {
        /// Bytes that may stay, as 500M or 20G; 0 removes all files
        #[arg(long, value_name = "SIZE", value_parser = bytes)]
        most: Option<u64>,
    },
}

impl Cache {
    pub(crate) fn run(&self) -> Result<()> {
        let mut options = LoaderOptions::new();
        if let Some(directory) = &self.cache {
            options = options.cache_directory(directory);
        }
        let cache = options.open_cache()?;
        match &self.action {
            Action::List => self.list(&cache.list()?),
            Action::Verify => {
                let verified = cache.verify()?;
                if self.json {
                    output::print_json(&json!({ "good": verified.good, "bad": verified.bad }))?;
                } else {
                    for digest in &verified.bad {
                        output::print(&format!("{digest}  lost its digest, in quarantine\n"))?;
                    }
                    output::print(&format!("{} good, {} bad\n", verified.good, verified.bad.len()))?;
                }
                Ok(())
            }
            Action::Clean { most } => {
                let removed = cache.clean(most.unwrap_or(u64::MAX))?;
                match self.json {
                    true => output::print_json(&json!({ "removed_bytes": removed })),
                    false => output::print(&format!("{:.1} MB removed\n", removed as f64 / 1e6)),
                }
            }
        }
    }

    fn list(&self, blobs: &[Blob]) -> Result<()> {
        let total: u64 = blobs.iter().map(|blob| blob.bytes).sum();
        if self.json {
            let files: Vec<Value> = blobs.iter().map(blob_json).collect();
            return output::print_json(&json!({ "files": files, "bytes": total }));
        }
        for blob in blobs {
            let days = SystemTime::now().duration_since(blob.used).unwrap_or_default().as_secs() / 86_400;
            let urls = if blob.urls.is_empty() { "-".to_owned() } else { blob.urls.join(" ") };
            output::print(&format!("{}  {:>14}  {days:>4} d  {urls}\n", blob.digest, blob.bytes))?;
        }
        output::print(&format!("{} files, {:.1} MB\n", blobs.len(), total as f64 / 1e6))
    }
}

fn blob_json(blob: &Blob) -> Value {
    let used = blob.used.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    json!({ "digest": blob.digest, "bytes": blob.bytes, "used_unix_s": used.as_secs(), "urls": blob.urls })
}
