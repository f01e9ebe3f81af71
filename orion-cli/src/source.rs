//! The one place where what `--model` names becomes weights.

use std::path::Path;
use std::sync::Arc;

use clap::Args;
use orion::loader::{Loader, LoaderOptions, MANIFEST};
use orion::registry::{RegisteredModel, Registry};
use orion::{Error, MetaValue, ModelFormat, ModelHeader, Result, TensorBytes, WeightSource};

use crate::bar::Bar;
use crate::registry::RegistryArgs;

/// How names are looked up, and what is not on this machine is fetched.
#[derive(Debug, Default, Args)]
pub(crate) struct FetchArgs {
    #[command(flatten)]
    pub(crate) registry: RegistryArgs,
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

/// What `--model` names.
#[derive(Debug)]
pub(crate) struct Named {
    /// A path or URL.
    pub(crate) location: String,
    /// The registry it was found in and what it says, if it is an id or alias.
    pub(crate) registered: Option<(Registry, RegisteredModel)>,
}

impl Named {
    /// The model's entry in the registry.
    pub(crate) fn model(&self) -> Option<&RegisteredModel> {
        self.registered.as_ref().map(|(_, model)| model)
    }
}

/// Whether a name can be nothing but a path or URL.
fn is_place(model: &str) -> bool {
    let ends = |ending: &str| model.len() > ending.len() && model.to_ascii_lowercase().ends_with(ending);
    model.contains(['/', '\\'])
        || [".gguf", ".safetensors", ".json"].into_iter().any(ends)
        || Path::new(model).exists()
}

impl FetchArgs {
    /// Says what a name means: a path that is there, a URL, or an id or alias of the registry.
    pub(crate) fn find(&self, model: &str) -> Result<Named> {
        let place = || Named { location: model.to_owned(), registered: None };
        if is_place(model) || self.registry.find().is_none() {
            return Ok(place());
        }
        let registry = self.registry.load()?;
        let found = registry.expect_model(model)?.clone();
        let location = found.location().unwrap_or_default().to_owned();
        Ok(Named { location, registered: Some((registry, found)) })
    }

    /// Opens a model's weights, which may still be on their way then. A bar shows them arrive where somebody watches.
    pub(crate) fn open(&self, model: &str) -> Result<Arc<dyn WeightSource>> {
        self.open_named(&self.find(model)?)
    }

    /// The same of a name that was looked up, with the chat template of its registry entry, if that has one.
    pub(crate) fn open_named(&self, named: &Named) -> Result<Arc<dyn WeightSource>> {
        let source = self.open_place(&named.location).map_err(|error| match named.model() {
            Some(model) => error.about(format!("model {}", model.id())),
            None => error,
        })?;
        Ok(match named.model().and_then(|model| model.spec.chat_template.as_deref()) {
            Some(template) => Arc::new(Templated::new(source, template)),
            None => source,
        })
    }

    fn open_place(&self, model: &str) -> Result<Arc<dyn WeightSource>> {
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

/// Weights whose chat template is another than the one in their files.
struct Templated {
    inner: Arc<dyn WeightSource>,
    header: ModelHeader,
}

impl Templated {
    fn new(inner: Arc<dyn WeightSource>, template: &str) -> Self {
        let mut header = inner.header().clone();
        header.metadata.retain(|key, _| !key.starts_with("tokenizer.chat_template"));
        if header.format == ModelFormat::Gguf {
            header.metadata.insert("tokenizer.chat_template".to_owned(), MetaValue::Str(template.to_owned()));
        } else {
            header.side_files.insert("chat_template.jinja".to_owned(), template.as_bytes().into());
        }
        Self { inner, header }
    }
}

impl WeightSource for Templated {
    fn header(&self) -> &ModelHeader {
        &self.header
    }

    fn tensor(&self, index: usize) -> Result<TensorBytes> {
        self.inner.tensor(index)
    }

    fn read(&self, index: usize, piece: usize, each: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        self.inner.read(index, piece, each)
    }

    fn read_at(&self, index: usize, offset: u64, out: &mut [u8], wait: bool) -> Result<bool> {
        self.inner.read_at(index, offset, out, wait)
    }

    fn rows(&self, index: usize, rows: &[u32]) -> Result<TensorBytes> {
        self.inner.rows(index, rows)
    }

    fn expect(&self, order: &[usize]) {
        self.inner.expect(order);
    }

    fn release(&self, index: usize) {
        self.inner.release(index);
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
