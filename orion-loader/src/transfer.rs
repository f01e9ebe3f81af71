//! The bytes of one fetch: into a file of its own, at their places, hashed on the way, compared with what is there.

use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use orion_core::{Digest, Error, ErrorKind, Result};
use orion_formats::Reason;
use sha2::{Digest as _, Sha256};

use crate::arriving::Arriving;
use crate::cache::{Cache, Note, boot, io_error, tag_path};
use crate::fetch::Wanted;
use crate::file::PositionalReader;
use crate::http::{Failure, shown};
use crate::intervals::Intervals;

/// Bytes between two notes of what a file with holes holds.
const NOTE_STEP: u64 = 16 << 20;
/// Bytes that are fetched again rather than asked around: single rows of an embedding came before the rest of it.
const BRIDGE: u64 = 64 << 10;
/// How often who waits for other connections looks whether it was cancelled.
const POLL: Duration = Duration::from_millis(20);

/// A download into a partial file of this process alone. Several connections may fill it.
pub(crate) struct Transfer {
    cache: Cache,
    wanted: Arc<Wanted>,
    key: Digest,
    path: PathBuf,
    file: Arc<File>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    etag: Option<String>,
    total: Option<u64>,
    /// Bytes of this version that are in the file.
    have: Intervals,
    /// Bytes in the file that may be of another version: they are compared with what arrives.
    suspect: Intervals,
    /// Bytes some connection is about to fetch.
    claimed: Intervals,
    /// Bytes from the start that were hashed.
    hashed: u64,
    hasher: Sha256,
    /// Which chunks have their digests.
    chunks: Vec<bool>,
    /// The server has answered with everything when asked for a part.
    no_ranges: bool,
    /// The file was removed: there was no room for it.
    removed: bool,
    /// The file has holes, and how much it held when that was last noted.
    sparse: Option<u64>,
    ended: bool,
}

impl Transfer {
    pub(crate) fn begin(cache: &Cache, key: Digest, wanted: Arc<Wanted>) -> Result<Self> {
        let path = cache.new_partial(&key);
        let file = File::options().read(true).write(true).create_new(true).open(&path);
        let file = file.map_err(|error| io_error(error, &path))?;
        // Tells others that it is in use. Where locks do nothing, nothing depends on it.
        let _ = file.try_lock();
        let chunks = wanted.chunks.as_ref().map_or(0, |(_, digests)| digests.len());
        let state = State { total: wanted.bytes, chunks: vec![false; chunks], ..State::default() };
        let (state, changed) = (Mutex::new(state), Condvar::new());
        Ok(Self { cache: cache.clone(), wanted, key, path, file: Arc::new(file), state, changed })
    }

    // A panic elsewhere leaves sets that are still true: bytes are entered after they were written.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn file(&self) -> Arc<File> {
        Arc::clone(&self.file)
    }

    /// The first byte that is missing.
    pub(crate) fn first_gap(&self) -> u64 {
        self.lock().have.end_of(0)
    }

    /// Bytes that are there.
    pub(crate) fn received(&self) -> u64 {
        self.lock().have.total()
    }

    pub(crate) fn total(&self) -> Option<u64> {
        self.lock().total
    }

    pub(crate) fn etag(&self) -> Option<String> {
        self.lock().etag.clone()
    }

    /// Whether nothing is missing.
    pub(crate) fn is_complete(&self) -> bool {
        let state = self.lock();
        state.total.is_some_and(|total| state.have.contains(&(0..total)))
    }

    /// Whether all bytes are there and a digest will tell whether they are right.
    pub(crate) fn is_whole(&self) -> bool {
        self.wanted.digest.is_some() && self.received() > 0 && self.is_complete()
    }

    /// Whether any part can be asked for by itself, in a version that can be told from others.
    pub(crate) fn can_jump(&self) -> bool {
        let state = self.lock();
        !state.no_ranges && state.total.is_some() && (state.etag.is_some() || self.wanted.digest.is_some())
    }

    /// Takes the next bytes that nobody fetches yet, in order of need, at most `most` of them. Before the length is
    /// known that is everything behind the beginning that is there.
    pub(crate) fn claim(&self, order: &[Range<u64>], most: u64) -> Option<Range<u64>> {
        let jump = self.can_jump();
        let mut state = self.lock();
        let Some(total) = state.total else {
            let start = state.have.end_of(0);
            let free = state.claimed.ranges().is_empty();
            return free.then(|| {
                state.claimed.insert(start..u64::MAX);
                start..u64::MAX
            });
        };
        let order = if jump { order } else { &[] };
        for run in order.iter().chain(std::iter::once(&(0..total))) {
            let run = self.whole_chunks(run, total);
            let mut from = run.start;
            while let Some(gap) = state.have.gap(&(from..run.end.max(from))) {
                if let Some(free) = state.claimed.gap(&gap) {
                    let most = free.start.saturating_add(most);
                    let mut end = free.end;
                    while end < most
                        && let Some(next) = state.have.gap(&(end..run.end.max(end)))
                        && (1..=BRIDGE).contains(&(next.start - end))
                        && let Some(further) = state.claimed.gap(&next)
                        && further.start == next.start
                    {
                        end = further.end;
                    }
                    let claim = free.start..end.min(most);
                    state.claimed.insert(claim.clone());
                    return Some(claim);
                }
                from = gap.end;
            }
        }
        None
    }

    /// What of a range nobody has or fetches, taken.
    pub(crate) fn claim_within(&self, range: &Range<u64>) -> Option<Range<u64>> {
        let mut state = self.lock();
        let range = self.whole_chunks(range, state.total?);
        let gap = state.have.gap(&range)?;
        let free = state.claimed.gap(&gap)?;
        state.claimed.insert(free.clone());
        Some(free)
    }

    /// A range extended to what can be verified by itself.
    fn whole_chunks(&self, range: &Range<u64>, total: u64) -> Range<u64> {
        let bytes = self.wanted.chunks.as_ref().map_or(1, |(bytes, _)| *bytes);
        let end = range.end.checked_next_multiple_of(bytes).unwrap_or(u64::MAX).min(total);
        (range.start / bytes * bytes).min(end)..end
    }

    /// Takes one range for another.
    pub(crate) fn exchange(&self, old: &Range<u64>, new: &Range<u64>) {
        let mut state = self.lock();
        state.claimed.remove(old.clone());
        state.claimed.insert(new.clone());
    }

    /// Gives a claim back; what of it did not come is free for others.
    pub(crate) fn release(&self, claim: Range<u64>) {
        self.lock().claimed.remove(claim);
        self.changed.notify_all();
    }

    /// Waits until another connection has ended something.
    pub(crate) fn wait_for_others(&self) {
        let state = self.lock();
        if !state.claimed.ranges().is_empty() {
            drop(self.changed.wait_timeout(state, POLL).unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// No other connection shall go on.
    pub(crate) fn end(&self) {
        self.lock().ended = true;
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.lock().ended
    }

    /// Copies what an earlier fetch left behind, hashing it. The leftover itself is not touched: it may be another
    /// process's after all.
    pub(crate) fn adopt_leftover(&self, arriving: &Arriving) -> Result<()> {
        for (path, note) in self.cache.leftovers(&self.key) {
            let etag = note.as_ref().and_then(|note| note.etag.clone());
            // Without digest nothing would tell bytes that a crash of the machine took away, and without version
            // nothing whether the rest belongs to them.
            let trusted = etag.is_some() && note.as_ref().is_some_and(|note| note.boot == boot());
            if self.wanted.digest.is_none() && !trusted {
                continue;
            }
            let Ok(leftover) = File::open(&path) else { continue };
            let Ok(len) = leftover.metadata().map(|metadata| metadata.len()) else { continue };
            let most = self.total().unwrap_or(self.wanted.most);
            let ranges = match note {
                Some(Note { have: Some(have), .. }) => have,
                _ => vec![(0, len)],
            };
            self.lock().etag = etag;
            let mut piece = vec![0; 1 << 20];
            'ranges: for (start, end) in ranges {
                let (mut at, end) = (start, end.min(len).min(most));
                while at < end {
                    let want = usize::try_from(end - at).unwrap_or(usize::MAX).min(piece.len());
                    let Ok(read @ 1..) = leftover.read_at(&mut piece[..want], at) else { break 'ranges };
                    // A chunk that has lost its digest is left out and fetched.
                    match self.take(at, &piece[..read], arriving, false) {
                        Ok(()) => {}
                        Err(failure) if Reason::of(&failure.error) == Some(Reason::HashMismatch) => {}
                        Err(failure) => return Err(failure.error),
                    }
                    at += read as u64;
                }
            }
            return self.note();
        }
        Ok(())
    }

    /// What the server says of the file it answers with; `partial` if it sends the part that was asked for. Whether it is
    /// another version than what is there.
    pub(crate) fn set_version(
        &self,
        etag: Option<String>,
        total: Option<u64>,
        partial: bool,
    ) -> Result<bool, Failure> {
        let mut state = self.lock();
        let other = match (&state.etag, &etag) {
            (Some(before), Some(now)) => before != now,
            _ => !partial && state.have.total() > 0 && state.etag != etag,
        };
        let other = other || state.total.is_some() && total.is_some() && state.total != total;
        if other {
            Self::rewind_in(&mut state);
            if partial {
                state.etag = None;
                let message = "the server sent a part of another version than asked for";
                let error = Error::new(ErrorKind::Network, message).about(shown(&self.wanted.url));
                return Err(Failure { error, retry: true, retry_after: Some(Duration::ZERO) });
            }
        }
        if total.is_some() {
            state.total = total;
        }
        if etag.is_some() && etag != state.etag {
            state.etag = etag;
            drop(state);
            self.note()?;
        }
        Ok(other)
    }

    /// What was adopted or fetched is of the version the server has: it may be used.
    pub(crate) fn confirm(&self, arriving: &Arriving) {
        let state = self.lock();
        for range in state.have.ranges() {
            self.show(&state, range, arriving);
        }
    }

    /// Tells readers what of a range they may use.
    fn show(&self, state: &State, range: &Range<u64>, arriving: &Arriving) {
        let Some((bytes, _)) = self.wanted.chunks else { return arriving.advance(range.clone()) };
        for number in range.start / bytes..range.end.div_ceil(bytes) {
            if state.chunks.get(usize::try_from(number).unwrap_or(usize::MAX)) == Some(&true) {
                arriving.advance(self.chunk(number, bytes));
            }
        }
    }

    fn chunk(&self, number: u64, bytes: u64) -> Range<u64> {
        number * bytes..((number + 1) * bytes).min(self.wanted.bytes.unwrap_or(u64::MAX))
    }

    /// Notes the version, and what is there if there are holes.
    fn note(&self) -> Result<()> {
        let mut state = self.lock();
        state.sparse = state.sparse.map(|_| state.have.total());
        let ranges = state.have.ranges().iter().map(|range| (range.start, range.end));
        let have = state.sparse.is_some().then(|| ranges.collect());
        let note = Note { etag: state.etag.clone(), boot: boot(), have };
        // Not synced: after a crash of the machine the note of another boot is not trusted anyway.
        let (path, bytes) = (tag_path(&self.path), serde_json::to_vec(&note));
        let written = fs::write(&path, bytes.expect("strings and numbers always serialise"));
        written.map_err(|error| {
            let _ = fs::remove_file(&path);
            io_error(error, &path)
        })
    }

    /// Back to the first byte. What the file holds stays and is compared with what comes.
    pub(crate) fn rewind(&self) {
        Self::rewind_in(&mut self.lock());
    }

    /// [`rewind`](Self::rewind), because the server does not send parts.
    pub(crate) fn rewind_for_good(&self) {
        let mut state = self.lock();
        state.no_ranges = true;
        Self::rewind_in(&mut state);
    }

    fn rewind_in(state: &mut State) {
        if state.have.total() > 0 {
            // From here on the file's length says nothing about what is of this version.
            state.sparse.get_or_insert(0);
        }
        for range in std::mem::take(&mut state.have).ranges() {
            state.suspect.insert(range.clone());
        }
        state.chunks.fill(false);
    }

    /// Throws away what the file holds.
    pub(crate) fn start_over(&self) -> Result<()> {
        let mut state = self.lock();
        let fresh =
            State { total: self.wanted.bytes, chunks: vec![false; state.chunks.len()], ..State::default() };
        *state = State { claimed: std::mem::take(&mut state.claimed), no_ranges: state.no_ranges, ..fresh };
        self.file.set_len(0).map_err(|error| io_error(error, &self.path))
    }

    /// Takes bytes that came from the server. What is there already may be in use and stays as it is. A chunk without
    /// its digest is taken back, to be fetched again.
    pub(crate) fn accept(&self, at: u64, data: &[u8], arriving: &Arriving) -> Result<(), Failure> {
        let end = at + data.len() as u64;
        let mut from = at;
        while let Some(gap) = self.gap(from..end) {
            let new = usize_of(gap.start - at)?..usize_of(gap.end - at)?;
            self.take(gap.start, &data[new], arriving, true)?;
            from = gap.end;
        }
        Ok(())
    }

    fn gap(&self, within: Range<u64>) -> Option<Range<u64>> {
        self.lock().have.gap(&within)
    }

    fn take(&self, at: u64, data: &[u8], arriving: &Arriving, confirmed: bool) -> Result<(), Failure> {
        let range = at..at + data.len() as u64;
        let mut state = self.lock();
        let same = self.compare(&mut state, at, data, arriving)?;
        if state.sparse.is_none() && at > state.have.end_of(0).max(state.suspect.end_of(0)) {
            // Said before the hole is there: else a leftover could be taken for one without.
            state.sparse = Some(0);
            drop(state);
            self.note()?;
            state = self.lock();
        }
        if !same {
            self.file.write_all_at(data, at).map_err(|error| {
                state.removed = true;
                self.remove();
                io_error(error, &self.path)
            })?;
        }
        state.have.insert(range.clone());
        state.suspect.remove(range.clone());
        if self.wanted.chunks.is_some() {
            self.check_chunks(&mut state, &range)?;
        } else if state.hashed == at {
            state.hasher.update(data);
            state.hashed = range.end;
        }
        if confirmed {
            self.show(&state, &range, arriving);
        }
        let due = state.sparse.is_some_and(|noted| state.have.total() >= noted + NOTE_STEP);
        drop(state);
        if due {
            self.note()?;
        }
        Ok(())
    }

    /// Whether the file holds these bytes already. If it holds others, they belong to another version and are dropped,
    /// unless somebody has used some of that version.
    fn compare(&self, state: &mut State, at: u64, data: &[u8], arriving: &Arriving) -> Result<bool> {
        let range = at..at + data.len() as u64;
        let (suspect, sure) = (state.suspect.within(&range), state.have.within(&range));
        for (part, sure) in sure
            .ranges()
            .iter()
            .map(|part| (part, true))
            .chain(suspect.ranges().iter().map(|part| (part, false)))
        {
            let within = usize_of(part.start - at)?..usize_of(part.end - at)?;
            let mut there = vec![0; within.len()];
            self.file.read_exact_at(&mut there, part.start).map_err(|error| io_error(error, &self.path))?;
            if there != data[within] {
                if sure {
                    // One version by name and two by content: nothing that came before can be kept.
                    state.have = Intervals::default();
                    state.chunks.fill(false);
                }
                arriving.retract(&state.have)?;
                state.suspect = Intervals::default();
                (state.hashed, state.hasher) = (0, Sha256::new());
                return Ok(false);
            }
        }
        let mut known = suspect;
        sure.ranges().iter().for_each(|part| known.insert(part.clone()));
        Ok(known.contains(&range))
    }

    /// Checks the chunks that a range completes.
    fn check_chunks(&self, state: &mut State, range: &Range<u64>) -> Result<(), Failure> {
        let Some((bytes, digests)) = &self.wanted.chunks else { return Ok(()) };
        for number in range.start / bytes..range.end.div_ceil(*bytes) {
            let chunk = self.chunk(number, *bytes);
            let index = usize_of(number)?;
            if state.chunks.get(index) != Some(&false) || !state.have.contains(&chunk) {
                continue;
            }
            let mut data = vec![0; usize_of(chunk.end - chunk.start)?];
            self.file.read_exact_at(&mut data, chunk.start).map_err(|error| io_error(error, &self.path))?;
            if Digest(Sha256::digest(&data).into()) != digests[index] {
                state.have.remove(chunk.clone());
                let message = format!("the chunk at byte {} does not have its digest", chunk.start);
                let error = Reason::HashMismatch.error(message).about(shown(&self.wanted.url));
                return Err(Failure { error, retry: true, retry_after: None });
            }
            state.chunks[index] = true;
            if state.hashed == chunk.start {
                state.hasher.update(&data);
                state.hashed = chunk.end;
            }
        }
        Ok(())
    }

    /// The file ends here: nobody said before how long it is.
    pub(crate) fn set_end(&self, total: u64) {
        self.lock().total.get_or_insert(total);
    }

    /// The digest of all bytes, if it is the one that was announced, by us first or by the server.
    pub(crate) fn verify(&self, announced: Option<Digest>) -> Result<Digest> {
        let mut state = self.lock();
        let total = state.total.unwrap_or_default();
        self.file.set_len(total).map_err(|error| io_error(error, &self.path))?;
        if state.hashed > total {
            (state.hashed, state.hasher) = (0, Sha256::new());
        }
        let mut piece = vec![0; 1 << 20];
        while state.hashed < total {
            let want = usize_of((total - state.hashed).min(1 << 20))?;
            let at = state.hashed;
            self.file.read_exact_at(&mut piece[..want], at).map_err(|error| io_error(error, &self.path))?;
            state.hasher.update(&piece[..want]);
            state.hashed += want as u64;
        }
        let found = Digest(state.hasher.clone().finalize().into());
        match self.wanted.digest.or(announced) {
            Some(expected) if expected != found => Err(Reason::HashMismatch
                .error(format!("the digest is {found}, expected {expected}"))
                .about(shown(&self.wanted.url))),
            _ => Ok(found),
        }
    }

    /// Makes it visible, and removes what earlier fetches of it left behind.
    pub(crate) fn install(&self, digest: Digest) -> Result<PathBuf> {
        let path = match self.cache.install(&self.file, &self.path, &digest) {
            Ok(path) => path,
            // Where locks do nothing another process may have taken this for a leftover. The bytes are still held.
            Err(error) if error.kind() == ErrorKind::NotFound => match self.install_copy(&digest) {
                // That process has installed the same bytes meanwhile, and taken the copy for a leftover too.
                Err(again) if again.kind() == ErrorKind::NotFound => {
                    self.cache.find(&digest, Some(self.received())).ok_or(again)?
                }
                copied => copied?,
            },
            Err(error) => {
                self.remove();
                return Err(error);
            }
        };
        for (leftover, _) in self.cache.leftovers(&self.key) {
            let _ = fs::remove_file(tag_path(&leftover));
            let _ = fs::remove_file(leftover);
        }
        Ok(path)
    }

    fn install_copy(&self, digest: &Digest) -> Result<PathBuf> {
        let path = self.cache.new_partial(&self.key);
        let copy = || {
            let mut copy = File::create_new(&path)?;
            let mut from = PositionalReader::new(&self.file);
            std::io::copy(&mut from, &mut copy)?;
            Ok(copy)
        };
        let copy = copy().map_err(|error| {
            let _ = fs::remove_file(&path);
            io_error(error, &path)
        })?;
        self.cache.install(&copy, &path, digest)
    }

    fn remove(&self) {
        let _ = fs::remove_file(tag_path(&self.path));
        let _ = fs::remove_file(&self.path);
    }

    pub(crate) fn discard(&self) {
        self.end();
        self.remove();
    }

    /// Leaves what has arrived to a later fetch, if that could use it.
    pub(crate) fn keep_or_discard(&self) {
        self.end();
        let state = self.lock();
        let nothing = state.have.total() + state.suspect.total() == 0;
        let useless = nothing || state.removed || (state.etag.is_none() && self.wanted.digest.is_none());
        drop(state);
        // Without the note a file with holes would be taken for one without.
        if useless || self.note().is_err() {
            self.remove();
        }
    }
}

fn usize_of(number: u64) -> Result<usize> {
    usize::try_from(number).map_err(|_| Error::corrupt("exceeds the address space"))
}
