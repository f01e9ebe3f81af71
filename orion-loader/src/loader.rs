//! From a location to a source: what has to be fetched, and in which order.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use orion_core::{CancelToken, Error, ErrorKind, FileSpec, MetaValue, Result, WeightSource};
use orion_formats::gguf::{self, GgufHeader, SplitName};
use orion_formats::safetensors::{self, SafetensorsHeader};
use orion_formats::{MANIFEST, Reason, ShardIndex, ShardSet};

use crate::arriving::Arriving;
use crate::cache::Cache;
use crate::directory::choose;
use crate::expected::{self, leading};
use crate::fetch::{Fetcher, Wanted};
use crate::http::{Answer, Ask, Client, origin, parse, shown};
use crate::hub::{HubLocation, Listing};
use crate::idle::{Foreground, warm};
use crate::open::{LONGEST_INDEX, files_of, open_local};
use crate::options::LoaderOptions;
use crate::remote::{Arrivals, Known, RemoteSource};
use crate::shards::{LONGEST_SIDE_FILE, set_digest};
use crate::side_files::SIDE_FILES;
use crate::window::Window;

/// Opens models wherever they are, and keeps what it fetches.
#[derive(Clone)]
pub struct Loader {
    fetcher: Arc<Fetcher>,
}

/// A model that is made ready without being opened. Dropping this lets it go on.
#[derive(Debug)]
pub struct Prefetch {
    cancel: CancelToken,
    thread: std::thread::JoinHandle<Result<Vec<PathBuf>>>,
}

impl Prefetch {
    /// Ends it; what has arrived is kept for the next fetch.
    pub fn cancel(&self) {
        self.cancel.cancel();
    }

    /// Whether it has ended.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits for the end, and returns where the weights are.
    ///
    /// # Errors
    /// As [`Loader::pull`].
    pub fn wait(self) -> Result<Vec<PathBuf>> {
        self.thread.join().map_err(|_| Error::new(ErrorKind::Internal, "the prefetch panicked"))?
    }
}

/// What a location turned out to be.
enum Kind {
    Gguf,
    Safetensors,
    Indexed(ShardIndex),
    Sharded(ShardSet, BTreeMap<String, MetaValue>),
}

struct Plan {
    kind: Kind,
    /// Files that hold weights, in order of need.
    weights: Vec<Wanted>,
    side_files: BTreeMap<String, Arc<[u8]>>,
}

/// Where the files of a model are and what is known of them.
enum Place {
    /// Beside each other under one URL, nothing known.
    Url(String),
    Hub(Listing),
}

impl Place {
    fn wanted(&self, name: &str) -> Wanted {
        match self {
            Self::Url(base) => Wanted::new(format!("{base}{name}")),
            Self::Hub(listing) => listing.wanted(name),
        }
    }

    fn may_have(&self, name: &str) -> bool {
        match self {
            Self::Url(_) => true,
            Self::Hub(listing) => listing.names().iter().any(|other| other == name),
        }
    }
}

impl Loader {
    /// A loader with its cache.
    ///
    /// # Errors
    /// [`Io`](ErrorKind::Io) if the cache's directory cannot be made, [`InvalidInput`](ErrorKind::InvalidInput) if
    /// none can be found or the hub's URL is none.
    pub fn new(options: LoaderOptions) -> Result<Self> {
        let cache = options.open_cache()?;
        let hub = parse(&options.hub_url)?;
        let host = hub.host().unwrap_or_default();
        let local = matches!(host, "localhost" | "127.0.0.1" | "[::1]");
        // A secret does not travel in the clear.
        let shown_to = (hub.scheme_str() == Some("https") || local).then(|| origin(&hub));
        let token = shown_to.zip(options.token.clone());
        let client = Client::new(options.stall, token);
        let fetcher = Fetcher::new(client, cache, options);
        Ok(Self { fetcher: Arc::new(fetcher) })
    }

    /// The cache.
    #[must_use]
    pub fn cache(&self) -> &Cache {
        &self.fetcher.cache
    }

    /// Opens a model: a path (see [`open`](crate::open)), the URL of a GGUF file, of any part of a split one, of a safetensors
    /// file, of a shard index or of a shard set's manifest, or `hf://org/name@revision/file`, whose revision and
    /// file may be left out.
    ///
    /// Returns when the header is there. Tensors arrive in the background in the order of the file or manifest;
    /// [`WeightSource::tensor`] waits for just the one. Dropping the source ends the fetch and keeps what has
    /// arrived.
    ///
    /// # Errors
    /// As [`open`](crate::open); [`Network`](ErrorKind::Network); [`NotFound`](ErrorKind::NotFound) when offline and not cached.
    pub fn open(&self, location: &str) -> Result<Arc<dyn WeightSource>> {
        match self.plan(location)? {
            None => {
                let busy = self.fetcher.idle.busy();
                let source =
                    open_local(Path::new(location), Some(self.cache()), self.fetcher.options.map_shard_sets)?;
                Ok(Arc::new(Foreground { source, _busy: busy }))
            }
            Some(plan) => self.start(plan).map_err(|error| error.about(shown(location))),
        }
    }

    /// [`open`](Self::open), of a model of which a catalogue names the files. A file whose size or SHA-256 is known must have it;
    /// those on this machine are hashed when they are opened for the first time and after every change.
    ///
    /// # Errors
    /// As [`open`](Self::open); [`Corrupt`](ErrorKind::Corrupt) if a file is another; [`NotFound`](ErrorKind::NotFound) if none
    /// of the files holds weights.
    pub fn open_files(&self, files: &[FileSpec]) -> Result<Arc<dyn WeightSource>> {
        let location = &leading(files)?.location;
        let Some(mut plan) = self.plan(location)? else {
            expected::verify(files, Some(self.cache()))?;
            return self.open(location);
        };
        expected::expect(&mut plan.weights, files);
        plan.side_files.iter().try_for_each(|(name, bytes)| expected::check(name, bytes, files))?;
        self.start(plan).map_err(|error| error.about(shown(location)))
    }

    /// Fetches all files of a model into the cache and returns where the weights are.
    ///
    /// # Errors
    /// As [`open`](Self::open), and any failure of the fetch.
    pub fn pull(&self, location: &str) -> Result<Vec<PathBuf>> {
        let Some(plan) = self.plan(location)? else { return Ok(vec![location.into()]) };
        Arrivals::start(&self.fetcher, plan.weights, CancelToken::new(), Window::new(None))?.all()
    }

    /// Makes it likely that opening a model will be quick, in the background: fetches what is not in the cache, and has
    /// the system read what is, so that it lies in memory. As long as a model that was opened through this loader is
    /// still being loaded, it rests.
    ///
    /// # Errors
    /// If no thread can be started.
    pub fn prefetch(&self, location: &str) -> Result<Prefetch> {
        self.in_background(location, Vec::new())
    }

    /// [`prefetch`](Self::prefetch), of a model of which a catalogue names the files: what is fetched must have the size and
    /// SHA-256 that are known.
    ///
    /// # Errors
    /// As [`prefetch`](Self::prefetch); [`NotFound`](ErrorKind::NotFound) if none of the files holds weights.
    pub fn prefetch_files(&self, files: &[FileSpec]) -> Result<Prefetch> {
        self.in_background(&leading(files)?.location, files.to_vec())
    }

    fn in_background(&self, location: &str, known: Vec<FileSpec>) -> Result<Prefetch> {
        let cancel = CancelToken::new();
        let (loader, location, flag) = (self.clone(), location.to_owned(), cancel.clone());
        let work = move || {
            let files = match loader.plan(&location)? {
                Some(mut plan) => {
                    expected::expect(&mut plan.weights, &known);
                    loader.background(plan, &flag)?
                }
                None => files_of(Path::new(&location))?,
            };
            files.iter().try_for_each(|file| warm(file, &loader.fetcher.idle, &flag)).map(|()| files)
        };
        let thread = std::thread::Builder::new()
            .name("orion-prefetch".into())
            .spawn(work)
            .map_err(|error| Error::io(error, "a thread that prefetches"))?;
        Ok(Prefetch { cancel, thread })
    }

    fn background(&self, plan: Plan, cancel: &CancelToken) -> Result<Vec<PathBuf>> {
        let window = Window::behind(Arc::clone(&self.fetcher.idle));
        Arrivals::start(&self.fetcher, plan.weights, cancel.clone(), window)?.all()
    }

    fn plan(&self, location: &str) -> Result<Option<Plan>> {
        if let Some(rest) = location.strip_prefix("hf://") {
            return self.plan_hub(&HubLocation::parse(rest)?).map(Some);
        }
        if !location.starts_with("http://") && !location.starts_with("https://") {
            return Ok(None);
        }
        parse(location)?;
        let (base, name) = location.rsplit_once('/').expect("a URL has slashes");
        if name.contains(['?', '#']) {
            // Signed URLs: one file, nothing beside it.
            let kind = if name.split(['?', '#']).next().is_some_and(|name| name.ends_with(".gguf")) {
                Kind::Gguf
            } else {
                Kind::Safetensors
            };
            return Ok(Some(Plan {
                kind,
                weights: vec![Wanted::new(location)],
                side_files: BTreeMap::new(),
            }));
        }
        self.plan_at(&Place::Url(format!("{base}/")), name).map(Some)
    }

    fn plan_hub(&self, location: &HubLocation) -> Result<Plan> {
        let listing = Listing::fetch(&self.fetcher, location)?;
        let name = match &location.file {
            Some(file) => file.clone(),
            None => choose(&listing.root_names(), &format!("hf://{}", location.repository))?,
        };
        match name.rsplit_once('/') {
            // Beside the file, not at the root of the repository.
            Some((folder, file)) if location.file.is_some() && !file.ends_with(".gguf") => {
                self.plan_at(&Place::Url(format!("{}{folder}/", listing.base())), file)
            }
            _ => self.plan_at(&Place::Hub(listing), &name),
        }
    }

    fn plan_at(&self, place: &Place, name: &str) -> Result<Plan> {
        if name.ends_with(MANIFEST) {
            return self.plan_shard_set(place, name);
        }
        if name.ends_with(".json") {
            let json = self.fetcher.small(place.wanted(name).at_most(LONGEST_INDEX))?;
            let index = ShardIndex::parse(&json).map_err(|error| error.about(name))?;
            let weights = index.files().into_iter().map(|file| place.wanted(file)).collect();
            return Ok(Plan { kind: Kind::Indexed(index), weights, side_files: self.side_files(place)? });
        }
        if name.ends_with(".safetensors") {
            let weights = vec![place.wanted(name)];
            return Ok(Plan { kind: Kind::Safetensors, weights, side_files: self.side_files(place)? });
        }
        let weights = match SplitName::parse(name) {
            Some(split) if split.parts > 1 => {
                split.all().map(|part| place.wanted(&part.to_string())).collect()
            }
            _ => vec![place.wanted(name)],
        };
        Ok(Plan { kind: Kind::Gguf, weights, side_files: BTreeMap::new() })
    }

    fn side_files(&self, place: &Place) -> Result<BTreeMap<String, Arc<[u8]>>> {
        let mut found = BTreeMap::new();
        for &(name, most) in SIDE_FILES {
            if !place.may_have(name) {
                continue;
            }
            match self.fetcher.small(place.wanted(name).at_most(most)) {
                Ok(bytes) => _ = found.insert(name.to_owned(), bytes.into()),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    fn plan_shard_set(&self, place: &Place, name: &str) -> Result<Plan> {
        let json = self.fetcher.small(place.wanted(name).at_most(LONGEST_INDEX))?;
        let set = ShardSet::parse(&json).map_err(|error| error.about(name))?;
        let entry = |entry: &orion_formats::FileEntry| Wanted {
            bytes: Some(entry.bytes),
            digest: Some(entry.digest),
            ..Wanted::new(place.wanted(&entry.file).url)
        };
        let mut side_files = BTreeMap::new();
        for file in &set.side_files {
            let bytes = self.fetcher.small(entry(file).at_most(LONGEST_SIDE_FILE))?;
            side_files.insert(file.file.clone(), bytes.into());
        }
        let metadata = match &set.metadata {
            None => BTreeMap::new(),
            Some(file) => {
                let bytes = self.fetcher.small(entry(file).at_most(LONGEST_SIDE_FILE))?;
                let header = gguf::parse(&bytes, bytes.len() as u64)
                    .map_err(|error| error.about(file.file.clone()))?;
                header.model.metadata
            }
        };
        let weights = set
            .shards
            .iter()
            .map(|shard| Wanted {
                chunks: Some((set.chunk_bytes, shard.chunks.clone())),
                ..entry(&shard.entry)
            })
            .collect();
        Ok(Plan { kind: Kind::Sharded(set, metadata), weights, side_files })
    }

    fn start(&self, plan: Plan) -> Result<Arc<dyn WeightSource>> {
        let wanted = plan.weights.clone();
        let options = &self.fetcher.options;
        let busy = self.fetcher.idle.busy();
        let window = Window::new(options.read_ahead);
        let arrivals = Arrivals::start(&self.fetcher, plan.weights, CancelToken::new(), window)?;
        let mut known: Vec<Known> = Vec::new();
        let mut digest = None;
        let (mut header, chunked) = match plan.kind {
            Kind::Sharded(set, metadata) => {
                known.extend(wanted.iter().map(|_| Known::Surely));
                digest = Some(set_digest(&set));
                (set.model(metadata), true)
            }
            Kind::Gguf => {
                let headers = self
                    .headers(&wanted, &arrivals, &mut known, |reader, len| gguf::read_header(reader, len))?;
                (gguf::join(headers)?, false)
            }
            Kind::Safetensors => {
                let headers = self.headers(&wanted, &arrivals, &mut known, |reader, len| {
                    safetensors::read_header(reader, len)
                })?;
                (headers[0].model()?, false)
            }
            Kind::Indexed(index) => {
                let headers = self.headers(&wanted, &arrivals, &mut known, |reader, len| {
                    safetensors::read_header(reader, len)
                })?;
                (index.join(&headers)?, false)
            }
        };
        if let ([one], None) = (&wanted[..], digest) {
            digest = one.digest;
        }
        header.digest = digest;
        header.side_files = plan.side_files;
        for file in arrivals.files.iter().take(options.initial_shards) {
            file.done()?;
        }
        Ok(Arc::new(RemoteSource::new(header, arrivals, known, chunked, busy)))
    }

    /// The headers of all files: of those that are fetched first, from the fetch itself; of the others, from a
    /// request of their own, which is confirmed when the file is there.
    fn headers<H: FileHeader>(
        &self,
        wanted: &[Wanted],
        arrivals: &Arrivals,
        known: &mut Vec<Known>,
        read: fn(&mut dyn std::io::Read, u64) -> Result<H>,
    ) -> Result<Vec<H>> {
        let first = self.fetcher.options.connections;
        let mut headers = Vec::with_capacity(wanted.len());
        for (number, (wanted, arriving)) in wanted.iter().zip(&arrivals.files).enumerate() {
            // A fetch that fails says more than a reader that ends.
            let of_arriving = move |arriving: &Arriving| {
                read(&mut arriving.reader(), arriving.total()?)
                    .map_err(|error| arriving.failure().unwrap_or(error))
            };
            if number < first || self.fetcher.has(wanted) {
                headers.push(of_arriving(arriving)?);
                known.push(Known::Surely);
            } else {
                let header = self.peek(wanted, read)?;
                let expected = header.clone();
                let check = move |arriving: &Arriving| {
                    if of_arriving(arriving)? == expected {
                        return Ok(());
                    }
                    Err(Reason::HashMismatch
                        .error("the file changed on the server while it was being loaded"))
                };
                known.push(Known::ToConfirm(Box::new(check), OnceLock::new()));
                headers.push(header);
            }
        }
        Ok(headers)
    }

    /// A header from a request that is dropped once the header is read.
    fn peek<H>(&self, wanted: &Wanted, read: fn(&mut dyn std::io::Read, u64) -> Result<H>) -> Result<H> {
        match self.fetcher.client.get(&wanted.url, &Ask::default()).map_err(Error::from)? {
            Answer::Body(mut body) => {
                let total = body.total.ok_or_else(|| {
                    Error::new(ErrorKind::Network, "the server does not say how long the file is")
                        .about(shown(&wanted.url))
                })?;
                read(&mut body.reader, total).map_err(|error| error.about(shown(&wanted.url)))
            }
            _ => Err(Error::new(ErrorKind::Network, "the server sent nothing").about(shown(&wanted.url))),
        }
    }
}

/// A header that can be compared with what the file says later.
trait FileHeader: Clone + PartialEq + Send + Sync + 'static {}
impl FileHeader for GgufHeader {}
impl FileHeader for SafetensorsHeader {}

impl std::fmt::Debug for Loader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loader").field("cache", &self.fetcher.cache).finish_non_exhaustive()
    }
}
