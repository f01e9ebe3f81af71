//! The one place where what `--model` names becomes weights.

use std::path::Path;
use std::sync::Arc;

use clap::Args;
use orion::loader::{Loader, LoaderOptions, MANIFEST};
use orion::{Error, Result, WeightSource};

use crate::bar::Bar;

/// How what is not on this machine is fetched.
#[derive(Debug, Default, Args)]
pub(crate) struct FetchArgs {
    /// Keep fetched models in this folder [default: $ORION_CACHE, else orion in the user's cache folder]
    #[arg(long, value_name = "DIR")]
    pub(crate) cache: Option<std::path::PathBuf>,
    /// Never ask the network
    #[arg(long)]
    offline: bool,
    /// Bytes per second at most over all connections, as 500k or 10M
    #[arg(long, value_name = "RATE", value_parser = bytes)]
    limit_rate: Option<u64>,
}

/// What a `--model` argument names.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Location<'a> {
    /// A file or folder of this machine.
    Local(&'a Path),
    /// A URL, `hf://` included.
    Remote(&'a str),
}

/// Says where a model is.
pub(crate) fn resolve(model: &str) -> Result<Location<'_>> {
    // A path that is there is meant as one, whatever it looks like.
    match model.split_once("://") {
        Some(_) if Path::new(model).exists() => Ok(Location::Local(Path::new(model))),
        Some(("http" | "https" | "hf", _)) => Ok(Location::Remote(model)),
        Some((scheme, _))
            if !scheme.is_empty() && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric()) =>
        {
            Err(Error::invalid(format!("{scheme}:// is not fetched; give a path, https:// or hf://"))
                .about(model))
        }
        _ => Ok(Location::Local(Path::new(model))),
    }
}

impl FetchArgs {
    /// Opens a model's weights, which may still be on their way then. A bar shows them arrive where somebody watches.
    pub(crate) fn open(&self, model: &str) -> Result<Arc<dyn WeightSource>> {
        match resolve(model)? {
            Location::Remote(url) => self.loader()?.open(url),
            // Which shards were verified before is remembered in the cache; other files need none.
            Location::Local(path) if path.ends_with(MANIFEST) || path.join(MANIFEST).is_file() => {
                self.loader()?.open(&path.to_string_lossy())
            }
            Location::Local(path) => orion::loader::open(path),
        }
    }

    /// A loader that shows what it fetches.
    pub(crate) fn loader(&self) -> Result<Loader> {
        let mut options = LoaderOptions::new();
        if let Some(directory) = &self.cache {
            options = options.cache_directory(directory);
        }
        if self.offline {
            options = options.offline(true);
        }
        if let Some(rate) = self.limit_rate {
            options = options.bytes_per_second(rate);
        }
        if let Some(bar) = Bar::on_terminal() {
            options = options.on_progress(move |progress| bar.show(progress));
        }
        Loader::new(options)
    }
}

/// A number of bytes as people write it: `4096`, `500k`, `2G`; powers of 1000.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let bad = || format!("{text:?} is no number of bytes; give it as 4096, 500k, 10M or 2G");
    let text = text.trim();
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let unit = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" => 1_000,
        "m" | "mb" => 1_000_000,
        "g" | "gb" => 1_000_000_000,
        _ => return Err(bad()),
    };
    digits.parse::<u64>().ok().and_then(|number| number.checked_mul(unit)).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_fetched_and_everything_else_is_a_path() {
        for url in ["https://a/m.gguf", "http://127.0.0.1:1/m.gguf", "hf://org/name"] {
            assert_eq!(resolve(url).unwrap(), Location::Remote(url));
        }
        for path in ["m.gguf", "a/b:c", "/x", "://"] {
            assert_eq!(resolve(path).unwrap(), Location::Local(Path::new(path)));
        }
        assert!(resolve("ftp://a/m.gguf").unwrap_err().to_string().contains("hf://"));
    }

    #[test]
    fn sizes_are_read_as_people_write_them() {
        assert_eq!(bytes("4096"), Ok(4096));
        assert_eq!(bytes("500k"), Ok(500_000));
        assert_eq!(bytes("2GB"), Ok(2_000_000_000));
        for bad in ["", "k", "-1", "1.5M", "1x", "99999999999G"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
    }
}
