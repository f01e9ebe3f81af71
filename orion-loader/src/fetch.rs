//! From a URL into the cache: resumed, retried, hashed as it arrives, visible only when it is whole.

use std::fs::{self, File};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::Read;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use orion_core::{Clock, Digest, Error, ErrorKind, Result, SystemClock, Timestamp};
use orion_formats::Reason;

use crate::arriving::Arriving;
use crate::cache::{Cache, Ref, key_of};
use crate::http::{Answer, Ask, Body, Client, Failure, shown, too_large};
use crate::idle::Idle;
use crate::intervals::Intervals;
use crate::options::LoaderOptions;
use crate::progress::{Phase, Progress};
use crate::transfer::Transfer;
use crate::window::Window;

/// Bytes between two progress events.
const PROGRESS_STEP: u64 = 512 << 10;
/// Bytes read at once.
const PIECE: usize = 1 << 16;
/// Bytes after which a connection asks again what is needed next.
const STEP: u64 = 1 << 20;
/// The same where several connections share a file: each is a request.
const LANE_STEP: u64 = 4 << 20;
/// Bytes per second below which a connection is given up.
const SLOWEST: f64 = 1024.0;
/// Bytes that must have come for a try to count as one that brought something.
const PROGRESS: u64 = 16 << 10;
/// Missing bytes from which on a file is worth several connections.
const WORTH_LANES: u64 = 16 << 20;
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
    /// Whether a model is being loaded.
    pub(crate) idle: Arc<Idle>,
    clock: SystemClock,
    throttle: Mutex<Timestamp>,
}

/// One file on its way: shared by the connections that fetch it.
#[derive(Clone)]
struct Job {
    wanted: Arc<Wanted>,
    arriving: Arc<Arriving>,
    transfer: Arc<Transfer>,
}

impl Fetcher {
    pub(crate) fn new(client: Client, cache: Cache, options: LoaderOptions) -> Self {
        Self {
            client,
            cache,
            options,
            idle: Arc::default(),
            clock: SystemClock::new(),
            throttle: Mutex::default(),
        }
    }

    /// Whether the cache has it for sure.
    pub(crate) fn has(&self, wanted: &Wanted) -> bool {
        self.options.offline
            || wanted.digest.is_some_and(|digest| self.cache.find(&digest, wanted.bytes).is_some())
    }

    /// Fetches a file unless the cache has it, over up to `lanes` connections. How it went is told to `arriving`.
    pub(crate) fn fetch(self: &Arc<Self>, wanted: &Arc<Wanted>, arriving: &Arc<Arriving>, lanes: usize) {
        let report = Report { fetcher: self, wanted, began: self.clock.now() };
        let outcome = self.run(wanted, arriving, &report, lanes).and_then(|path| {
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

    fn run(
        self: &Arc<Self>,
        wanted: &Arc<Wanted>,
        arriving: &Arc<Arriving>,
        report: &Report<'_>,
        lanes: usize,
    ) -> Result<PathBuf> {
        if arriving.cancelled() {
            return Err(cancelled(&wanted.url));
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
        match self.download(wanted, arriving, report, known.as_ref().map(|(_, found)| found), lanes) {
            Ok(Some(path)) => Ok(path),
            Ok(None) => Ok(known.expect("only a known file can be unmodified").0),
            // What was there yesterday is better than nothing when the network is not there, unless something of
            // today's has been used already.
            Err(error) => match known {
                Some((path, _))
                    if error.kind() == ErrorKind::Network
                        && arriving.retract(&Intervals::default()).is_ok() =>
                {
                    Ok(path)
                }
                _ => Err(error),
            },
        }
    }

    /// `None`: what is known is still current.
    fn download(
        self: &Arc<Self>,
        wanted: &Arc<Wanted>,
        arriving: &Arc<Arriving>,
        report: &Report<'_>,
        known: Option<&Ref>,
        lanes: usize,
    ) -> Result<Option<PathBuf>> {
        let urls = self.urls(&wanted.url);
        let key = wanted.digest.unwrap_or_else(|| key_of(&wanted.url));
        let transfer = Arc::new(Transfer::begin(&self.cache, key, Arc::clone(wanted))?);
        let adopted = transfer.adopt_leftover(arriving);
        let job = Job { wanted: Arc::clone(wanted), arriving: Arc::clone(arriving), transfer };
        let transfer = &job.transfer;
        if let Err(error) = adopted {
            transfer.discard();
            return Err(error);
        }
        arriving.begin(transfer);
        let (mut failures, mut number, mut mismatches) = (0, 0, 0);
        let mut lanes = Lanes { wanted: lanes, running: false, adopted: transfer.received() };
        loop {
            let url = &urls[number % urls.len()];
            let before = transfer.received();
            let failure = match self.attempt(url, &job, report, known, &mut lanes) {
                Ok(Attempt::NotModified) => {
                    transfer.discard();
                    return Ok(None);
                }
                Ok(Attempt::More) => {
                    failures = 0;
                    continue;
                }
                Ok(Attempt::Complete(announced)) => match transfer.verify(announced) {
                    Ok(digest) => return self.install(&job, digest).map(Some),
                    Err(error) => {
                        mismatches += 1;
                        // The first may be a bad leftover or a bad mirror; afterwards the server has another file.
                        if mismatches > urls.len() || arriving.retract(&Intervals::default()).is_err() {
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
            failures = if transfer.received() >= before + PROGRESS { 1 } else { failures + 1 };
            if arriving.cancelled() {
                transfer.keep_or_discard();
                return Err(cancelled(url));
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

    /// One answer of the server, followed as long as it brings what is needed next.
    fn attempt(
        self: &Arc<Self>,
        url: &str,
        job: &Job,
        report: &Report<'_>,
        known: Option<&Ref>,
        lanes: &mut Lanes,
    ) -> Result<Attempt, Failure> {
        let Job { wanted, arriving, transfer } = job;
        if transfer.is_whole() {
            return Ok(Attempt::Complete(None));
        }
        let most = if lanes.running { LANE_STEP } else { STEP };
        let Some(claim) = transfer.claim(&arriving.order(transfer.first_gap()), most) else {
            if transfer.is_complete() {
                return Ok(Attempt::Complete(None));
            }
            if arriving.cancelled() {
                return Err(cancelled(url).into());
            }
            transfer.wait_for_others();
            return Ok(Attempt::More);
        };
        if lanes.running {
            // Should it fail, the way without others is gone.
            lanes.running = false;
            self.part(url, job, claim)?;
            lanes.running = true;
            let there = transfer.received();
            report.say(Phase::Fetching, there, transfer.total(), there.saturating_sub(lanes.adopted));
            return Ok(Attempt::More);
        }
        let mut claim = Claim { transfer, range: claim };
        let etag = transfer.etag();
        let nothing = transfer.received() == 0;
        let ask = Ask {
            from: claim.range.start,
            // What is needed next is most often what follows; where it is not, the connection is dropped.
            to: None,
            if_range: etag.as_deref(),
            if_none_match: known.and_then(|known| known.etag.as_deref()).filter(|_| nothing),
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
        let other = transfer.set_version(body.etag.clone(), body.total, body.partial)?;
        if body.from != claim.range.start && !other {
            transfer.rewind_for_good();
        }
        if let Some(total) = transfer.total() {
            arriving.set_total(total);
        }
        if body.partial {
            transfer.confirm(arriving);
        }
        claim.take_over(body.from, transfer.total());
        let digest = body.digest;
        self.receive(url, job, body, (report, lanes), &mut claim)?;
        drop(claim);
        Ok(if transfer.is_complete() { Attempt::Complete(digest) } else { Attempt::More })
    }

    /// Lets more connections take part, once, where that is worth it.
    fn start_lanes(self: &Arc<Self>, url: &str, job: &Job, lanes: &mut Lanes) {
        let missing = job.transfer.total().unwrap_or_default().saturating_sub(job.transfer.received());
        if lanes.wanted < 2 || !job.arriving.is_settled() || missing < WORTH_LANES || !job.transfer.can_jump()
        {
            return;
        }
        lanes.running = true;
        for _ in 1..std::mem::replace(&mut lanes.wanted, 1) {
            let (fetcher, url, job) = (Arc::clone(self), url.to_owned(), job.clone());
            let lane = move || fetcher.lane(&url, &job);
            if std::thread::Builder::new().name("orion-fetch".into()).spawn(lane).is_err() {
                return;
            }
        }
    }

    /// A further connection. Whatever goes wrong on it ends it: the first one sees to the rest.
    fn lane(&self, url: &str, job: &Job) {
        let (transfer, arriving) = (&job.transfer, &job.arriving);
        while !transfer.has_ended() && !arriving.cancelled() {
            let Some(range) = transfer.claim(&arriving.order(transfer.first_gap()), LANE_STEP) else {
                return;
            };
            if self.part(url, job, range).is_err() {
                return;
            }
        }
    }

    /// Fetches a claimed range by a request of its own.
    fn part(&self, url: &str, job: &Job, range: Range<u64>) -> Result<(), Failure> {
        let Job { wanted, arriving, transfer } = job;
        let claim = Claim { transfer, range };
        let etag = transfer.etag();
        let ask = Ask {
            from: claim.range.start,
            to: Some(claim.range.end),
            if_range: etag.as_deref(),
            ..Ask::default()
        };
        let Answer::Body(mut body) = self.client.get(url, &ask)? else {
            return Err(network(url, "the server sent nothing").into());
        };
        if !body.partial {
            return Err(network(url, "the server does not send parts").into());
        }
        self.check_length(url, wanted, &body)?;
        transfer.set_version(body.etag.clone(), body.total, true)?;
        let (mut at, mut piece, mut pace) = (claim.range.start, vec![0; PIECE], Pace::default());
        while at < claim.range.end {
            if arriving.cancelled() || transfer.has_ended() {
                return Err(cancelled(url).into());
            }
            let room = usize::try_from(claim.range.end - at).unwrap_or(PIECE).min(PIECE);
            let asked = self.clock.now();
            let read = body.reader.read(&mut piece[..room]).map_err(|error| lost(url, error.to_string()))?;
            self.crawls(url, &mut pace, asked, read)?;
            if read == 0 {
                return Err(lost(url, format!("the connection ended at byte {at}")));
            }
            self.throttle(read);
            transfer.accept(at, &piece[..read], arriving)?;
            arriving.fetched(read as u64);
            at += read as u64;
        }
        Ok(())
    }

    /// Fetches ranges ahead of everything else, on the caller's thread, as far as that can be done. What fails is left
    /// to those who fetch the whole.
    pub(crate) fn ahead(&self, wanted: &Arc<Wanted>, arriving: &Arc<Arriving>, ranges: &[Range<u64>]) {
        let Some(transfer) = arriving.transfer().filter(|transfer| transfer.can_jump()) else { return };
        let job = Job { wanted: Arc::clone(wanted), arriving: Arc::clone(arriving), transfer };
        for range in ranges {
            while let Some(claim) = job.transfer.claim_within(range) {
                if self.part(&wanted.url, &job, claim).is_err() {
                    return;
                }
            }
        }
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
        self: &Arc<Self>,
        url: &str,
        job: &Job,
        mut body: Body,
        (report, lanes): (&Report<'_>, &mut Lanes),
        claim: &mut Claim<'_>,
    ) -> Result<(), Failure> {
        let Job { wanted, arriving, transfer } = job;
        let total = transfer.total();
        let most = total.unwrap_or(wanted.most).min(wanted.most);
        let mut at = claim.range.start;
        let (first, mut said) = (transfer.received(), 0);
        let (mut piece, mut pace) = (vec![0; PIECE], Pace::default());
        report.say(Phase::Fetching, first, total, 0);
        loop {
            if arriving.cancelled() {
                return Err(cancelled(url).into());
            }
            if at == claim.range.end {
                self.start_lanes(url, job, lanes);
            }
            if at == claim.range.end && !claim.go_on(&arriving.order(at)) {
                return Ok(());
            }
            let room = usize::try_from(claim.range.end - at).unwrap_or(PIECE).min(PIECE);
            let asked = self.clock.now();
            let read = body
                .reader
                .read(&mut piece[..room])
                .map_err(|error| lost(url, format!("the connection failed: {error}")))?;
            self.crawls(url, &mut pace, asked, read)?;
            if read == 0 {
                break;
            }
            self.throttle(read);
            if at + read as u64 > most {
                return Err(too_large(url, most).into());
            }
            transfer.accept(at, &piece[..read], arriving)?;
            at += read as u64;
            let there = transfer.received();
            if there.saturating_sub(first) >= said + PROGRESS_STEP {
                said = there - first;
                report.say(Phase::Fetching, there, total, said);
            }
            arriving.fetched(read as u64);
        }
        match total {
            Some(total) if at < total => Err(lost(url, format!("the connection ended after {at} bytes"))),
            Some(_) => Ok(()),
            None => {
                transfer.set_end(at);
                Ok(())
            }
        }
    }

    /// Gives a connection up that is not silent and hardly better.
    fn crawls(&self, url: &str, pace: &mut Pace, asked: Timestamp, read: usize) -> Result<(), Failure> {
        pace.waited += self.clock.now().since(asked);
        pace.bytes += read as u64;
        if pace.waited < self.options.stall {
            return Ok(());
        }
        let least = pace.waited.as_secs_f64() * SLOWEST;
        let (bytes, waited) = (pace.bytes, pace.waited);
        *pace = Pace::default();
        match (bytes as f64) < least && read > 0 {
            true => Err(lost(url, format!("only {bytes} bytes came in {waited:.1?}"))),
            false => Ok(()),
        }
    }

    fn install(&self, job: &Job, digest: Digest) -> Result<PathBuf> {
        let Job { wanted, arriving, transfer } = job;
        let (bytes, etag) = (transfer.received(), transfer.etag());
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
    pub(crate) fn small(self: &Arc<Self>, wanted: Wanted) -> Result<Vec<u8>> {
        let window = Arc::new(Window::new(None));
        let arriving = Arc::new(Arriving::new(shown(&wanted.url), Default::default(), window));
        self.fetch(&Arc::new(wanted), &arriving, 1);
        let path = arriving.done()?;
        fs::read(&path).map_err(|error| crate::cache::io_error(error, &path))
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        failure.error
    }
}

enum Attempt {
    /// All bytes are there; the digest the server announced.
    Complete(Option<Digest>),
    /// What comes next is elsewhere in the file.
    More,
    NotModified,
}

/// What a connection has brought lately, and how long it was waited for.
#[derive(Default)]
struct Pace {
    bytes: u64,
    waited: Duration,
}

/// The connections of one file.
struct Lanes {
    /// How many there may be.
    wanted: usize,
    /// Whether there are several.
    running: bool,
    /// Bytes that were there before the first answer.
    adopted: u64,
}

/// Bytes one connection fetches and no other does, as long as this is not dropped.
struct Claim<'a> {
    transfer: &'a Transfer,
    range: Range<u64>,
}

impl Claim<'_> {
    /// Takes over from another place, once the length is known too.
    fn take_over(&mut self, from: u64, total: Option<u64>) {
        let range = match total {
            Some(total) => from..from.saturating_add(STEP).min(total),
            None => from..u64::MAX,
        };
        self.transfer.exchange(&self.range, &range);
        self.range = range;
    }

    /// Goes on to what is needed next, if that is what follows.
    fn go_on(&mut self, order: &[Range<u64>]) -> bool {
        let Some(next) = self.transfer.claim(order, STEP) else { return false };
        if next.start != self.range.end {
            self.transfer.release(next);
            return false;
        }
        self.transfer.release(std::mem::replace(&mut self.range, next));
        true
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.transfer.release(self.range.clone());
    }
}

fn cancelled(url: &str) -> Error {
    Error::new(ErrorKind::Cancelled, "the fetch was cancelled").about(shown(url))
}

fn network(url: &str, message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Network, message).about(shown(url))
}

fn lost(url: &str, message: String) -> Failure {
    Failure { error: network(url, message), retry: true, retry_after: None }
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
