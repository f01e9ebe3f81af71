//! From a URL into the cache: resumed, retried, hashed as it arrives, visible only when it is whole.

use std::fs::{self, File};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::Read;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use orion_core::{Clock, Digest, Error, ErrorKind, Result, SystemClock, Timestamp};
use orion_formats::Reason;

use crate::arriving::Arriving;
use crate::cache::{Cache, Ref, key_of};
use crate::http::{Answer, Ask, Body, Client, Failure, shown, too_large};
use crate::options::LoaderOptions;
use crate::progress::{Phase, Progress};
use crate::transfer::Transfer;

/// Bytes between two progress events.
const PROGRESS_STEP: u64 = 512 << 10;
/// Longest wait a server may ask for.
const LONGEST_WAIT: Duration = Duration::from_secs(120);
/// Most bytes of any file.
const LARGEST_FILE: u64 = 1 << 44;

/// A file that is to be fetched, and what is known of it.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    pub(crate) url: String,
    pub(crate) bytes: Option<u64>,
    pub(crate) digest: Option<Digest>,
    /// Bytes per chunk and the chunks' digests.
    pub(crate) chunks: Option<(u64, Vec<Digest>)>,
    /// Most bytes it may have.
    pub(crate) most: u64,
    /// Its number and the number of files of the model.
    pub(crate) place: (usize, usize),
}

impl Wanted {
    pub(crate) fn new(url: impl Into<String>) -> Self {
        Self { url: url.into(), bytes: None, digest: None, chunks: None, most: LARGEST_FILE, place: (0, 1) }
    }

    pub(crate) fn at_most(mut self, bytes: u64) -> Self {
        self.most = bytes;
        self
    }
}

pub(crate) struct Fetcher {
    pub(crate) client: Client,
    pub(crate) cache: Cache,
    pub(crate) options: LoaderOptions,
    clock: SystemClock,
    throttle: Mutex<Timestamp>,
}

impl Fetcher {
    pub(crate) fn new(client: Client, cache: Cache, options: LoaderOptions) -> Self {
        Self { client, cache, options, clock: SystemClock::new(), throttle: Mutex::default() }
    }

    /// Whether the cache has it for sure.
    pub(crate) fn has(&self, wanted: &Wanted) -> bool {
        self.options.offline
            || wanted.digest.is_some_and(|digest| self.cache.find(&digest, wanted.bytes).is_some())
    }

    /// Fetches a file unless the cache has it. How it went is told to `arriving`.
    pub(crate) fn fetch(&self, wanted: &Wanted, arriving: &Arriving) {
        let report = Report { fetcher: self, wanted, began: self.clock.now() };
        let outcome = self.run(wanted, arriving, &report).and_then(|path| {
            let file = File::open(&path).map_err(|error| crate::cache::io_error(error, &path))?;
            // Held while it is in use, so that cleaning keeps it.
            let _ = file.try_lock_shared();
            let len = file.metadata().map_err(|error| crate::cache::io_error(error, &path))?.len();
            Ok((path, Arc::new(file), len))
        });
        match outcome {
            Ok((path, file, len)) => {
                report.say(Phase::Installed, len, Some(len), 0);
                arriving.finish(Ok(path), Some((file, len)));
            }
            Err(error) => {
                report.say(Phase::Failed, 0, None, 0);
                arriving.finish(Err(error), None);
            }
        }
        if let Some(most) = self.options.cache_bytes {
            // Room is made as far as it can be; a cache that is too full is no reason to fail a load.
            let _ = self.cache.clean(most);
        }
    }

    fn run(&self, wanted: &Wanted, arriving: &Arriving, report: &Report<'_>) -> Result<PathBuf> {
        if arriving.cancelled() {
            return Err(Error::new(ErrorKind::Cancelled, "the fetch was cancelled").about(shown(&wanted.url)));
        }
        if wanted.bytes.is_some_and(|bytes| bytes > wanted.most) {
            return Err(too_large(&wanted.url, wanted.most));
        }
        if let Some(digest) = &wanted.digest
            && let Some(path) = self.cache.find(digest, wanted.bytes)
        {
            return Ok(path);
        }
        let known = self
            .cache
            .read_ref(&wanted.url)
            .filter(|found| wanted.digest.is_none_or(|want| want == found.digest));
        let known = known.and_then(|found| Some((self.cache.find(&found.digest, Some(found.bytes))?, found)));
        if self.options.offline {
            return known.map(|(path, _)| path).ok_or_else(|| {
                let size = wanted.bytes.map_or(String::new(), |bytes| format!(" ({bytes} bytes)"));
                Error::new(ErrorKind::NotFound, format!("offline, and not in the cache{size}"))
                    .about(shown(&wanted.url))
            });
        }
        match self.download(wanted, arriving, report, known.as_ref().map(|(_, found)| found)) {
            Ok(Some(path)) => Ok(path),
            Ok(None) => Ok(known.expect("only a known file can be unmodified").0),
            // What was there yesterday is better than nothing when the network is not there, unless something of
            // today's has been used already.
            Err(error) => match known {
                Some((path, _)) if error.kind() == ErrorKind::Network && arriving.retract(0).is_ok() => {
                    Ok(path)
                }
                _ => Err(error),
            },
        }
    }

    /// `None`: what is known is still current.
    fn download(
        &self,
        wanted: &Wanted,
        arriving: &Arriving,
        report: &Report<'_>,
        known: Option<&Ref>,
    ) -> Result<Option<PathBuf>> {
        let urls = self.urls(&wanted.url);
        let key = wanted.digest.unwrap_or_else(|| key_of(&wanted.url));
        let mut transfer = Transfer::begin(&self.cache, key, wanted)?;
        arriving.begin(transfer.file());
        transfer.adopt_leftover()?;
        let (mut failures, mut number, mut mismatches) = (0, 0, 0);
        loop {
            let url = &urls[number % urls.len()];
            let before = transfer.position();
            let failure = match self.attempt(url, wanted, arriving, report, &mut transfer, known) {
                Ok(Attempt::NotModified) => {
                    transfer.discard();
                    return Ok(None);
                }
                Ok(Attempt::Complete(digest)) => match transfer.verify(digest) {
                    Ok(digest) => return self.install(wanted, arriving, transfer, digest).map(Some),
                    Err(error) => {
                        mismatches += 1;
                        // The first may be a bad leftover or a bad mirror; afterwards the server has another file.
                        if mismatches > urls.len() || arriving.retract(0).is_err() {
                            transfer.discard();
                            return Err(error);
                        }
                        transfer.start_over()?;
                        Failure { error, retry: true, retry_after: Some(Duration::ZERO) }
                    }
                },
                Err(failure) => failure,
            };
            number += 1;
            failures = if transfer.position() > before { 1 } else { failures + 1 };
            if arriving.cancelled() {
                transfer.keep_or_discard();
                return Err(Error::new(ErrorKind::Cancelled, "the fetch was cancelled").about(shown(url)));
            }
            // A mirror may have what this one has not.
            let elsewhere = number < urls.len() && failure.error.kind() != ErrorKind::Io;
            if !(elsewhere || failure.retry && failures <= self.options.retries) {
                transfer.keep_or_discard();
                return Err(failure.error);
            }
            if !elsewhere && let Err(error) = self.pause(failures, failure) {
                transfer.keep_or_discard();
                return Err(error);
            }
        }
    }

    fn attempt(
        &self,
        url: &str,
        wanted: &Wanted,
        arriving: &Arriving,
        report: &Report<'_>,
        transfer: &mut Transfer<'_>,
        known: Option<&Ref>,
    ) -> Result<Attempt, Failure> {
        if transfer.is_whole() {
            return Ok(Attempt::Complete(None));
        }
        let etag = transfer.etag().map(str::to_owned);
        let ask = Ask {
            from: transfer.position(),
            if_range: etag.as_deref(),
            if_none_match: known.and_then(|known| known.etag.as_deref()).filter(|_| transfer.position() == 0),
        };
        let body = match self.client.get(url, &ask)? {
            Answer::NotModified if ask.if_none_match.is_some() => return Ok(Attempt::NotModified),
            Answer::NotModified | Answer::BeyondEnd => {
                // What is there is no beginning of the file: begin anew, and compare.
                transfer.rewind();
                let error = Error::new(ErrorKind::Network, "the server has nothing more").about(shown(url));
                return Err(Failure { error, retry: true, retry_after: Some(Duration::ZERO) });
            }
            Answer::Body(body) => body,
        };
        self.check_length(url, wanted, &body)?;
        if body.from == 0 {
            transfer.rewind();
        }
        transfer.set_version(body.etag.clone(), body.total)?;
        if let Some(total) = body.total {
            arriving.set_total(total);
        }
        let digest = body.digest;
        self.receive(url, wanted, body, arriving, report, transfer)?;
        Ok(Attempt::Complete(digest))
    }

    fn check_length(&self, url: &str, wanted: &Wanted, body: &Body) -> Result<()> {
        match (body.total, wanted.bytes) {
            (Some(total), Some(bytes)) if total != bytes => Err(Reason::HashMismatch
                .error(format!("the server has {total} bytes, {bytes} were announced"))
                .about(shown(url))),
            (Some(total), _) if total > wanted.most => Err(too_large(url, wanted.most)),
            (None, None) if wanted.digest.is_none() && wanted.most == LARGEST_FILE => Err(Error::new(
                ErrorKind::Network,
                "the server does not say how long the file is, and no digest is known",
            )
            .about(shown(url))),
            _ => Ok(()),
        }
    }

    fn receive(
        &self,
        url: &str,
        wanted: &Wanted,
        mut body: Body,
        arriving: &Arriving,
        report: &Report<'_>,
        transfer: &mut Transfer<'_>,
    ) -> Result<(), Failure> {
        let lost = |message: String| Failure {
            error: Error::new(ErrorKind::Network, message).about(shown(url)),
            retry: true,
            retry_after: None,
        };
        let total = body.total.or(wanted.bytes);
        let (first, mut said) = (transfer.position(), 0);
        let mut piece = vec![0; 1 << 16];
        report.say(Phase::Fetching, first, total, 0);
        loop {
            if arriving.cancelled() {
                return Err(Error::new(ErrorKind::Cancelled, "the fetch was cancelled")
                    .about(shown(url))
                    .into());
            }
            let read = body
                .reader
                .read(&mut piece)
                .map_err(|error| lost(format!("the connection failed: {error}")))?;
            if read == 0 {
                break;
            }
            self.throttle(read);
            if transfer.position() + read as u64 > total.unwrap_or(wanted.most).min(wanted.most) {
                return Err(too_large(url, total.unwrap_or(wanted.most)).into());
            }
            transfer.accept(&piece[..read], arriving)?;
            arriving.advance(transfer.usable());
            if transfer.position() - first >= said + PROGRESS_STEP {
                said = transfer.position() - first;
                report.say(Phase::Fetching, transfer.position(), total, said);
            }
        }
        if total.is_some_and(|total| transfer.position() < total) {
            return Err(lost(format!("the connection ended after {} bytes", transfer.position())));
        }
        transfer.finish_chunk(arriving)?;
        Ok(())
    }

    fn install(
        &self,
        wanted: &Wanted,
        arriving: &Arriving,
        transfer: Transfer<'_>,
        digest: Digest,
    ) -> Result<PathBuf> {
        let (bytes, etag) = (transfer.position(), transfer.etag().map(str::to_owned));
        let path = transfer.install(digest)?;
        arriving.set_total(bytes);
        self.cache.write_ref(&Ref { url: wanted.url.clone(), digest, bytes, etag })?;
        Ok(path)
    }

    /// The URL and where its mirrors have it.
    fn urls(&self, url: &str) -> Vec<String> {
        let mirrors = self.options.mirrors.iter();
        let others = mirrors
            .filter_map(|(prefix, instead)| Some(format!("{instead}{}", url.strip_prefix(prefix.as_str())?)));
        std::iter::once(url.to_owned()).chain(others).collect()
    }

    /// Waits before the next try: as long as the server asks, else longer each time and never the same.
    fn pause(&self, failures: u32, failure: Failure) -> Result<()> {
        let time = match failure.retry_after {
            Some(asked) if asked > LONGEST_WAIT => return Err(failure.error),
            Some(asked) => asked,
            None => {
                let full = Duration::from_millis(250 << failures.min(7));
                let random = RandomState::new().build_hasher().finish();
                full / 2 + (full / 2).mul_f64((random >> 11) as f64 / (1u64 << 53) as f64)
            }
        };
        if !time.is_zero() {
            (self.options.wait)(time);
        }
        Ok(())
    }

    fn throttle(&self, bytes: usize) {
        let Some(rate) = self.options.bytes_per_second else { return };
        let now = self.clock.now();
        let mut next = self.throttle.lock().unwrap_or_else(PoisonError::into_inner);
        let start = (*next).max(now);
        *next = start.after(Duration::from_secs_f64(bytes as f64 / rate as f64));
        drop(next);
        let wait = start.since(now);
        if !wait.is_zero() {
            (self.options.wait)(wait);
        }
    }

    /// Fetches a small file and returns its bytes.
    pub(crate) fn small(&self, wanted: &Wanted) -> Result<Vec<u8>> {
        let arriving = Arriving::new(shown(&wanted.url), Default::default());
        self.fetch(wanted, &arriving);
        let path = arriving.done()?;
        fs::read(&path).map_err(|error| crate::cache::io_error(error, &path))
    }
}

enum Attempt {
    /// All bytes are there; the digest the server announced.
    Complete(Option<Digest>),
    NotModified,
}

struct Report<'a> {
    fetcher: &'a Fetcher,
    wanted: &'a Wanted,
    began: Timestamp,
}

impl Report<'_> {
    fn say(&self, phase: Phase, bytes: u64, total: Option<u64>, fetched: u64) {
        let Some(listener) = &self.fetcher.options.on_progress else { return };
        listener(&Progress {
            phase,
            url: shown(&self.wanted.url),
            file: self.wanted.place.0,
            files: self.wanted.place.1,
            bytes,
            total,
            fetched,
            elapsed: self.fetcher.clock.now().since(self.began),
        });
    }
}
