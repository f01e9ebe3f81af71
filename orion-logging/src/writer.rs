//! Output that never makes a request wait.
//!
//! Lines go through a bounded queue to a thread of their own. Where the queue is full a line is dropped and counted,
//! and the next line that gets through is preceded by one that says how many were lost.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use orion_core::Clock;

use crate::record::Format;
use crate::time::write_rfc3339;

const DAY: u64 = 86_400;

/// When a log file gives way to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Rotation {
    /// Before it exceeds this many bytes; 0 for no limit.
    pub max_bytes: u64,
    /// When the day (UTC) changes.
    pub daily: bool,
    /// Old files kept: `orion.log.1` is the latest of them.
    pub keep: usize,
}

impl Default for Rotation {
    fn default() -> Self {
        Self { max_bytes: 64 << 20, daily: false, keep: 5 }
    }
}

impl Rotation {
    /// A file is never replaced.
    #[must_use]
    pub fn never() -> Self {
        Self { max_bytes: 0, daily: false, keep: 0 }
    }

    /// Before a file exceeds so many bytes.
    #[must_use]
    pub fn bytes(max_bytes: u64) -> Self {
        Self { max_bytes, ..Self::default() }
    }

    /// When the day changes, besides what else is set.
    #[must_use]
    pub fn daily(mut self) -> Self {
        self.daily = true;
        self
    }

    /// How many old files are kept.
    #[must_use]
    pub fn keep(mut self, files: usize) -> Self {
        self.keep = files;
        self
    }
}

/// A log file that is rotated.
pub(crate) struct RotatingFile {
    path: PathBuf,
    rotation: Rotation,
    clock: Arc<dyn Clock>,
    file: File,
    bytes: u64,
    day: u64,
}

impl RotatingFile {
    pub(crate) fn open(path: &Path, rotation: Rotation, clock: Arc<dyn Clock>) -> io::Result<Self> {
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            std::fs::create_dir_all(parent)?;
        }
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let bytes = file.metadata()?.len();
        let day = clock.wall().as_secs() / DAY;
        Ok(Self { path: path.to_owned(), rotation, clock, file, bytes, day })
    }

    fn numbered(&self, number: usize) -> PathBuf {
        let mut name = self.path.as_os_str().to_owned();
        name.push(format!(".{number}"));
        PathBuf::from(name)
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.file.flush()?;
        let moved = |from: &Path, to: &Path| match std::fs::rename(from, to) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
        for number in (1..self.rotation.keep).rev() {
            moved(&self.numbered(number), &self.numbered(number + 1))?;
        }
        if self.rotation.keep > 0 {
            moved(&self.path, &self.numbered(1))?;
        }
        self.file = OpenOptions::new().create(true).write(true).truncate(true).open(&self.path)?;
        self.bytes = 0;
        Ok(())
    }
}

impl Write for RotatingFile {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let day = self.clock.wall().as_secs() / DAY;
        let full = self.rotation.max_bytes > 0 && self.bytes + line.len() as u64 > self.rotation.max_bytes;
        if self.bytes > 0 && (full || (self.rotation.daily && day != self.day)) {
            self.rotate()?;
        }
        self.day = day;
        self.file.write_all(line)?;
        self.bytes += line.len() as u64;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

enum Message {
    Line(Vec<u8>),
    Flush(Sender<()>),
    Stop,
}

/// Lines lost so far, and why.
#[derive(Debug, Default)]
pub(crate) struct Losses {
    /// The queue was full.
    pub(crate) dropped: AtomicU64,
    /// The output refused them.
    pub(crate) failed: AtomicU64,
}

/// The near end of the queue.
pub(crate) struct NonBlocking {
    queue: Sender<Message>,
    losses: Arc<Losses>,
    worker: Mutex<Option<JoinHandle<()>>>,
}

impl NonBlocking {
    pub(crate) fn start(
        sink: Box<dyn Write + Send>,
        capacity: usize,
        format: Format,
        clock: Arc<dyn Clock>,
    ) -> io::Result<Self> {
        let (queue, lines) = bounded(capacity.max(1));
        let losses = Arc::new(Losses::default());
        let worker = Worker { sink, lines, losses: Arc::clone(&losses), reported: 0, format, clock };
        let thread = std::thread::Builder::new().name("orion-log".to_owned()).spawn(|| worker.run())?;
        Ok(Self { queue, losses, worker: Mutex::new(Some(thread)) })
    }

    /// Hands a line over, or drops it. Never waits.
    pub(crate) fn write(&self, line: Vec<u8>) {
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) =
            self.queue.try_send(Message::Line(line))
        {
            self.losses.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn losses(&self) -> &Losses {
        &self.losses
    }

    /// Waits until everything handed over so far is written, at most for `timeout`. Whether it was.
    pub(crate) fn flush(&self, timeout: Duration) -> bool {
        let (done, written) = bounded(1);
        self.queue.send_timeout(Message::Flush(done), timeout).is_ok()
            && written.recv_timeout(timeout).is_ok()
    }
}

impl Drop for NonBlocking {
    fn drop(&mut self) {
        // An output that hangs must not hang the program, too: it gets a moment, then its thread is left behind.
        const MOMENT: Duration = Duration::from_secs(2);
        let flushed = self.flush(MOMENT);
        let stopped = self.queue.send_timeout(Message::Stop, MOMENT).is_ok();
        let thread = self.worker.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let (true, true, Some(thread)) = (flushed, stopped, thread) {
            let _ended = thread.join();
        }
    }
}

struct Worker {
    sink: Box<dyn Write + Send>,
    lines: Receiver<Message>,
    losses: Arc<Losses>,
    reported: u64,
    format: Format,
    clock: Arc<dyn Clock>,
}

impl Worker {
    fn run(mut self) {
        while let Ok(message) = self.lines.recv() {
            match message {
                Message::Line(line) => {
                    self.report_losses();
                    self.put(&line);
                    if self.lines.is_empty() {
                        self.flush();
                    }
                }
                Message::Flush(done) => {
                    self.report_losses();
                    self.flush();
                    let _waiting = done.send(());
                }
                Message::Stop => break,
            }
        }
        self.report_losses();
        self.flush();
    }

    fn put(&mut self, line: &[u8]) {
        if self.sink.write_all(line).is_err() {
            self.losses.failed.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn flush(&mut self) {
        if self.sink.flush().is_err() {
            self.losses.failed.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn report_losses(&mut self) {
        let dropped = self.losses.dropped.load(Ordering::Relaxed);
        let lost = dropped - self.reported;
        if lost == 0 {
            return;
        }
        self.reported = dropped;
        metrics::counter!(crate::metric::LOG_DROPPED).increment(lost);
        let mut time = String::new();
        let _ = write_rfc3339(&mut time, self.clock.wall());
        let line = match self.format {
            Format::Json => format!(
                "{{\"ts\":\"{time}\",\"level\":\"WARN\",\"component\":\"logging\",\"target\":\"orion_logging\",\
                 \"message\":\"log lines were dropped\",\"fields\":{{\"dropped\":{lost}}}}}\n"
            ),
            Format::Pretty => format!("{time}  WARN logging: log lines were dropped dropped={lost}\n"),
        };
        self.put(line.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use orion_core::ManualClock;

    fn read(path: &Path) -> String {
        std::fs::read_to_string(path).unwrap()
    }

    #[test]
    fn a_file_gives_way_before_it_is_too_large_and_old_ones_are_let_go() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("logs/orion.log");
        let clock = Arc::new(ManualClock::new());
        let rotation = Rotation::bytes(10).keep(2);
        let mut file = RotatingFile::open(&path, rotation, clock.clone()).unwrap();
        for line in
            ["aaaa\n", "bbbb\n", "cccc\n", "dddd\n", "eeee\n", "ffff\n", "a line longer than a file\n"]
        {
            file.write_all(line.as_bytes()).unwrap();
        }
        assert_eq!(read(&path), "a line longer than a file\n");
        assert_eq!(read(&file.numbered(1)), "eeee\nffff\n");
        assert_eq!(read(&file.numbered(2)), "cccc\ndddd\n");
        assert!(!file.numbered(3).exists());
        // What is there already counts when a file is opened again.
        drop(file);
        let mut file = RotatingFile::open(&path, rotation, clock).unwrap();
        file.write_all(b"g\n").unwrap();
        assert_eq!(read(&path), "g\n");
        assert_eq!(read(&file.numbered(1)), "a line longer than a file\n");
    }

    #[test]
    fn a_new_day_is_a_new_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("orion.log");
        let clock = Arc::new(ManualClock::new());
        let mut file = RotatingFile::open(&path, Rotation::never().daily().keep(3), clock.clone()).unwrap();
        file.write_all(b"one\n").unwrap();
        clock.advance(Duration::from_secs(DAY - 1));
        file.write_all(b"two\n").unwrap();
        clock.advance(Duration::from_secs(1));
        file.write_all(b"three\n").unwrap();
        assert_eq!((read(&file.numbered(1)).as_str(), read(&path).as_str()), ("one\ntwo\n", "three\n"));
    }

    /// A sink that waits for a signal before its first write, and tells when it waits.
    struct Blocked {
        wait: Receiver<()>,
        waiting: Sender<()>,
        held: bool,
        out: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Blocked {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if !self.held {
                self.held = true;
                let _ = self.waiting.send(());
                let _ = self.wait.recv();
            }
            self.out.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_blocked_output_drops_counts_and_reports() {
        let (go, wait) = bounded(1);
        let (waiting, stuck) = bounded(1);
        let out = Arc::new(Mutex::new(Vec::new()));
        let sink = Box::new(Blocked { wait, waiting, held: false, out: Arc::clone(&out) });
        let writer = NonBlocking::start(sink, 4, Format::Json, Arc::new(ManualClock::new())).unwrap();
        writer.write(b"first\n".to_vec());
        stuck.recv().unwrap();
        for _ in 0..100 {
            writer.write(b"line\n".to_vec());
        }
        assert_eq!(writer.losses().dropped.load(Ordering::Relaxed), 96);
        go.send(()).unwrap();
        assert!(writer.flush(Duration::from_secs(30)));
        let text = String::from_utf8(out.lock().unwrap().clone()).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!((lines.len(), lines[0], lines[2]), (6, "first", "line"));
        let report: serde_json::Value = serde_json::from_str(lines[1]).unwrap();
        assert_eq!((&report["fields"]["dropped"], &report["level"]), (&96.into(), &"WARN".into()));
    }

    #[test]
    fn an_output_that_fails_is_counted_and_does_not_stop_the_others() {
        struct Broken;
        impl Write for Broken {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let writer =
            NonBlocking::start(Box::new(Broken), 4, Format::Json, Arc::new(ManualClock::new())).unwrap();
        writer.write(b"x\n".to_vec());
        assert!(writer.flush(Duration::from_secs(30)));
        writer.write(b"y\n".to_vec());
        assert!(writer.flush(Duration::from_secs(30)));
        assert_eq!(writer.losses().failed.load(Ordering::Relaxed), 2);
    }
}
