//! Keys and values that outlive their model: pages as files.
//!
//! A page is written when a second prompt has begun like the first, so what is asked once costs no disk. Its file is named
//! by a digest over everything its bits depend on: weights, executor, and every token from the beginning to its end. It is
//! written beside, renamed, and carries the digest of its content; what does not match is deleted and computed again.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use orion_core::{Digest, Error, Result, TokenId};
use sha2::{Digest as _, Sha256};

/// Pages on their way to the disk.
const PENDING: usize = 32;
/// Leftovers of a process that died while it wrote are removed after this time.
const STALE: Duration = Duration::from_secs(3600);
const EXTENSION: &str = "kv";

/// A directory for pages, and how many bytes it may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvDirectory {
    path: PathBuf,
    most_bytes: u64,
}

impl KvDirectory {
    /// Pages are kept in `path`, the longest unused ones removed beyond `most_bytes`.
    pub fn new(path: impl Into<PathBuf>, most_bytes: u64) -> Self {
        Self { path: path.into(), most_bytes }
    }
}

/// Names a page: what it holds and all that came before it.
pub(crate) type PageName = [u8; 32];

pub(crate) struct PageFiles {
    directory: PathBuf,
    root: PageName,
    writer: Sender<(PageName, Vec<u8>)>,
}

impl PageFiles {
    /// The pages of the model whose weights have this digest, as `executor` computes them.
    pub(crate) fn open(directory: &KvDirectory, weights: Digest, executor: &str) -> Result<Self> {
        let path = directory.path.clone();
        fs::create_dir_all(&path).map_err(|error| Error::io(error, path.display().to_string()))?;
        let mut root = Sha256::new();
        for part in
            [concat!("orion kv ", env!("CARGO_PKG_VERSION")).as_bytes(), &weights.0, executor.as_bytes()]
        {
            root.update((part.len() as u64).to_le_bytes());
            root.update(part);
        }
        let (writer, pages) = bounded(PENDING);
        let (to, most) = (path.clone(), directory.most_bytes);
        std::thread::Builder::new()
            .name("orion-kv".into())
            .spawn(move || write_all(&to, most, &pages))
            .map_err(|error| Error::io(error, "starting the thread that writes pages"))?;
        Ok(Self { directory: path, root: root.finalize().into(), writer })
    }

    /// The names of the whole pages of `tokens`, in order.
    pub(crate) fn names(&self, tokens: &[TokenId], page_tokens: usize, long: bool) -> Vec<PageName> {
        let mut before = self.root;
        let name = |page: &[TokenId]| {
            let mut hash = Sha256::new();
            hash.update(before);
            hash.update([u8::from(long)]);
            page.iter().for_each(|token| hash.update(token.0.to_le_bytes()));
            before = hash.finalize().into();
            before
        };
        tokens.chunks_exact(page_tokens).map(name).collect()
    }

    /// Has a page written. False if the disk lags behind; it is no loss, the page can be offered again.
    pub(crate) fn offer(&self, name: PageName, page: impl FnOnce() -> Vec<u8>) -> bool {
        if self.writer.is_full() {
            return false;
        }
        !matches!(self.writer.try_send((name, page())), Err(TrySendError::Full(_)))
    }

    /// The content of a page of `bytes` bytes, if it is there and whole.
    pub(crate) fn read(&self, name: &PageName, bytes: usize) -> Option<Vec<u8>> {
        let path = self.directory.join(file_name(name));
        let mut file = fs::File::open(&path).ok()?;
        let mut stored = Vec::with_capacity(32 + bytes);
        // One byte more than expected is enough to see that it is too long.
        let read = (&mut file).take(33 + bytes as u64).read_to_end(&mut stored);
        let whole = read.is_ok() && stored.len() == 32 + bytes && {
            let digest: [u8; 32] = Sha256::digest(&stored[32..]).into();
            digest == stored[..32]
        };
        if !whole {
            tracing::warn!(path = %path.display(), "a page of keys and values is damaged, it is computed again");
            // Someone else may have removed it already.
            fs::remove_file(&path).ok();
            return None;
        }
        // Its age decides what is removed first; that it cannot be set on some systems does no harm.
        file.set_modified(SystemTime::now()).ok();
        stored.drain(..32);
        Some(stored)
    }
}

impl std::fmt::Debug for PageFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PageFiles").field("directory", &self.directory).finish_non_exhaustive()
    }
}

fn file_name(name: &PageName) -> String {
    format!("{}.{EXTENSION}", Digest(*name))
}

fn write_all(directory: &Path, most: u64, pages: &Receiver<(PageName, Vec<u8>)>) {
    for (name, page) in pages {
        let target = directory.join(file_name(&name));
        if target.exists() {
            continue;
        }
        let beside = directory.join(format!("{}.{}.tmp", Digest(name), std::process::id()));
        let write = || -> std::io::Result<()> {
            let mut file = fs::File::create(&beside)?;
            file.write_all(&Sha256::digest(&page))?;
            file.write_all(&page)?;
            file.sync_all()?;
            fs::rename(&beside, &target)
        };
        if let Err(error) = write() {
            tracing::warn!(%error, path = %target.display(), "a page of keys and values is not kept");
            fs::remove_file(&beside).ok();
        }
        shrink(directory, most);
    }
}

/// Removes the longest unused pages until at most `most` bytes are left, and what dead processes left behind.
fn shrink(directory: &Path, most: u64) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    let mut pages = Vec::new();
    for entry in entries.flatten() {
        let path = entry.path();
        let Ok(metadata) = entry.metadata() else { continue };
        let used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        match path.extension().and_then(|extension| extension.to_str()) {
            Some(EXTENSION) => pages.push((used, metadata.len(), path)),
            Some("tmp") if used.elapsed().is_ok_and(|age| age > STALE) => {
                fs::remove_file(path).ok();
            }
            _ => {}
        }
    }
    pages.sort();
    let mut total: u64 = pages.iter().map(|(_, bytes, _)| bytes).sum();
    for (_, bytes, path) in pages {
        if total <= most {
            break;
        }
        // Two processes may shrink at once: what the other removed is gone all the same.
        fs::remove_file(path).ok();
        total -= bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEIGHTS: Digest = Digest([7; 32]);

    fn tokens(range: std::ops::Range<u32>) -> Vec<TokenId> {
        range.map(TokenId).collect()
    }

    /// Closes the writer and waits for what it has.
    fn written(files: PageFiles, directory: &Path, count: usize) {
        drop(files);
        let start = std::time::Instant::now();
        let pages = || {
            fs::read_dir(directory)
                .unwrap()
                .flatten()
                .filter(|it| it.path().extension() == Some("kv".as_ref()))
                .count()
        };
        while pages() != count {
            assert!(start.elapsed() < Duration::from_secs(60), "{} files", pages());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    #[test]
    fn a_page_is_found_by_exactly_what_it_depends_on() {
        let folder = tempfile::tempdir().unwrap();
        let directory = KvDirectory::new(folder.path(), 1 << 20);
        let open = |weights, executor| PageFiles::open(&directory, weights, executor).unwrap();
        let files = open(WEIGHTS, "cpu");
        let name = files.names(&tokens(0..130), 64, false)[1];
        assert!(files.offer(name, || vec![1, 2, 3]));
        written(files, folder.path(), 1);
        let again = open(WEIGHTS, "cpu");
        assert_eq!(again.names(&tokens(0..128), 64, false)[1], name);
        assert_eq!(again.read(&name, 3), Some(vec![1, 2, 3]));
        for other in [
            again.names(&tokens(0..128), 64, true)[1],
            again.names(&tokens(1..129), 64, false)[1],
            again.names(&tokens(0..128), 64, false)[0],
            open(Digest([8; 32]), "cpu").names(&tokens(0..128), 64, false)[1],
            open(WEIGHTS, "portable").names(&tokens(0..128), 64, false)[1],
        ] {
            assert_eq!(again.read(&other, 3), None);
        }
    }

    #[test]
    fn a_damaged_page_is_not_used_and_goes() {
        let folder = tempfile::tempdir().unwrap();
        let files = PageFiles::open(&KvDirectory::new(folder.path(), 1 << 20), WEIGHTS, "cpu").unwrap();
        let name = files.names(&tokens(0..64), 64, false)[0];
        let path = folder.path().join(file_name(&name));
        let whole = [&Sha256::digest([5; 8])[..], &[5; 8]].concat();
        let mut flipped = whole.clone();
        flipped[35] ^= 1;
        let longer = [&whole[..], &[0]].concat();
        for damaged in [&flipped[..], &whole[..39], &longer[..], &[]] {
            fs::write(&path, damaged).unwrap();
            assert_eq!(files.read(&name, 8), None);
            assert!(!path.exists());
        }
        fs::write(&path, whole).unwrap();
        assert_eq!(files.read(&name, 8), Some(vec![5; 8]));
    }

    #[test]
    fn the_directory_stays_within_its_bytes_and_keeps_what_was_used_last() {
        let folder = tempfile::tempdir().unwrap();
        let files = PageFiles::open(&KvDirectory::new(folder.path(), 3 * 132), WEIGHTS, "cpu").unwrap();
        let names = files.names(&tokens(0..320), 64, false);
        for (age, name) in names[..4].iter().enumerate() {
            let path = folder.path().join(file_name(name));
            fs::write(&path, [&Sha256::digest([9; 100])[..], &[9; 100]].concat()).unwrap();
            let when = SystemTime::now() - Duration::from_secs(100 - age as u64);
            fs::File::options().write(true).open(&path).unwrap().set_modified(when).unwrap();
        }
        assert!(files.read(&names[0], 100).is_some());
        files.offer(names[4], || vec![9; 100]);
        written(files, folder.path(), 3);
        let left: Vec<bool> = names.iter().map(|name| folder.path().join(file_name(name)).exists()).collect();
        assert_eq!(left, [true, false, false, true, true]);
    }
}
