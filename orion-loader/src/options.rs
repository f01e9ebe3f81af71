//! How a [`Loader`](crate::Loader) behaves.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use orion_core::{Error, Result};

use crate::cache::Cache;
use crate::progress::Progress;

type Wait = Arc<dyn Fn(Duration) + Send + Sync>;
type OnProgress = Arc<dyn Fn(&Progress) + Send + Sync>;

/// Options of a [`Loader`](crate::Loader). The defaults suit a program on a desk.
#[derive(Clone)]
pub struct LoaderOptions {
    pub(crate) cache_directory: Option<PathBuf>,
    pub(crate) cache_bytes: Option<u64>,
    pub(crate) hub_url: String,
    pub(crate) token: Option<String>,
    pub(crate) connections: usize,
    pub(crate) bytes_per_second: Option<u64>,
    pub(crate) read_ahead: Option<u64>,
    pub(crate) initial_shards: usize,
    pub(crate) priority_layers: Vec<usize>,
    pub(crate) retries: u32,
    pub(crate) stall: Duration,
    pub(crate) offline: bool,
    pub(crate) map_shard_sets: bool,
    pub(crate) mirrors: Vec<(String, String)>,
    pub(crate) wait: Wait,
    pub(crate) on_progress: Option<OnProgress>,
}

impl Default for LoaderOptions {
    fn default() -> Self {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        Self {
            cache_directory: None,
            cache_bytes: None,
            hub_url: set("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned()),
            token: set("HF_TOKEN"),
            connections: 3,
            bytes_per_second: None,
            read_ahead: Some(256 << 20),
            initial_shards: 0,
            priority_layers: Vec::new(),
            retries: 5,
            stall: Duration::from_secs(20),
            offline: set("HF_HUB_OFFLINE").is_some_and(|value| value == "1"),
            map_shard_sets: false,
            mirrors: Vec::new(),
            wait: Arc::new(std::thread::sleep),
            on_progress: None,
        }
    }
}

impl LoaderOptions {
    /// The defaults: environment variables `HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE` are obeyed.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Where fetched files are kept. Default: `ORION_CACHE`, else `orion` in `XDG_CACHE_HOME` or in `.cache` of the home
    /// directory.
    #[must_use]
    pub fn cache_directory(mut self, path: impl Into<PathBuf>) -> Self {
        self.cache_directory = Some(path.into());
        self
    }

    /// After a fetch, the longest unused files are removed until at most this much is left. Default: no limit.
    #[must_use]
    pub fn cache_bytes(mut self, most: u64) -> Self {
        self.cache_bytes = Some(most);
        self
    }

    /// Where `hf://` leads, and the only origin that is ever shown the token.
    #[must_use]
    pub fn hub_url(mut self, url: impl Into<String>) -> Self {
        self.hub_url = url.into();
        self
    }

    /// The token for the hub.
    #[must_use]
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// Requests at the same time, at least 1. A large file that comes alone is fetched in parts. Default: 3.
    #[must_use]
    pub fn connections(mut self, count: usize) -> Self {
        self.connections = count.max(1);
        self
    }

    /// Bandwidth cap over all connections. Default: none.
    #[must_use]
    pub fn bytes_per_second(mut self, most: u64) -> Self {
        self.bytes_per_second = Some(most.max(1));
        self
    }

    /// Bytes of an opened model that may lie fetched and unused before fetching rests; `None` for any number. While
    /// somebody waits for bytes it never rests. Default: 256 MiB.
    #[must_use]
    pub fn read_ahead(mut self, most: Option<u64>) -> Self {
        self.read_ahead = most;
        self
    }

    /// Files of weights that must be there and verified before [`open`](crate::Loader::open) returns, in the order of
    /// the manifest, the index or the split. Default: 0.
    #[must_use]
    pub fn initial_shards(mut self, count: usize) -> Self {
        self.initial_shards = count;
        self
    }

    /// Layers, counted from 0, that are fetched before everything else, most urgent first. Default: none, which is the
    /// order of need.
    #[must_use]
    pub fn priority_layers(mut self, layers: impl IntoIterator<Item = usize>) -> Self {
        self.priority_layers = layers.into_iter().collect();
        self
    }

    /// Tries in a row that may bring nothing before a fetch fails. Default: 5.
    #[must_use]
    pub fn retries(mut self, count: u32) -> Self {
        self.retries = count;
        self
    }

    /// How long a connection may be silent, or bring less than 1 KiB a second. Default: 20 s.
    #[must_use]
    pub fn stall(mut self, time: Duration) -> Self {
        self.stall = time;
        self
    }

    /// Never asks the network: what is not in the cache is an error that names it. Default: false.
    #[must_use]
    pub fn offline(mut self, offline: bool) -> Self {
        self.offline = offline;
        self
    }

    /// Maps shard sets in directories, as those in the cache are, instead of reading them: they load at once, and their
    /// pages are the system's to share and drop. Their files must not be cut or written while they are in use: reading
    /// what is gone then ends the process with SIGBUS. Default: false.
    #[must_use]
    pub fn map_shard_sets(mut self, map: bool) -> Self {
        self.map_shard_sets = map;
        self
    }

    /// Where a URL begins with `prefix`, the same rest behind `instead` is tried when the first fails.
    #[must_use]
    pub fn mirror(mut self, prefix: impl Into<String>, instead: impl Into<String>) -> Self {
        self.mirrors.push((prefix.into(), instead.into()));
        self
    }

    /// How waiting is done, between tries and under a bandwidth cap. Tests wait for nothing.
    #[must_use]
    pub fn wait(mut self, wait: impl Fn(Duration) + Send + Sync + 'static) -> Self {
        self.wait = Arc::new(wait);
        self
    }

    /// Is told of progress, from the threads that fetch. It must not block.
    #[must_use]
    pub fn on_progress(mut self, listener: impl Fn(&Progress) + Send + Sync + 'static) -> Self {
        self.on_progress = Some(Arc::new(listener));
        self
    }
}

impl LoaderOptions {
    /// Opens the cache these options name, without anything that fetches.
    ///
    /// # Errors
    /// [`Io`](orion_core::ErrorKind::Io) if its directory cannot be made,
    /// [`InvalidInput`](orion_core::ErrorKind::InvalidInput) if none can be found.
    pub fn open_cache(&self) -> Result<Cache> {
        Cache::open(match &self.cache_directory {
            Some(path) => path.clone(),
            None => default_cache().ok_or_else(|| {
                Error::invalid("none of ORION_CACHE, XDG_CACHE_HOME and HOME is set; name a cache directory")
            })?,
        })
    }
}

fn default_cache() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("ORION_CACHE").or_else(|| {
        let base = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")))?;
        Some(base.join("orion"))
    })
}

impl fmt::Debug for LoaderOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoaderOptions")
            .field("cache_directory", &self.cache_directory)
            .field("hub_url", &self.hub_url)
            .field("token", &self.token.as_ref().map(|_| "…"))
            .field("connections", &self.connections)
            .field("offline", &self.offline)
            .finish_non_exhaustive()
    }
}
