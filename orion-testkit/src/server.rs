//! A web server on the loopback interface that does what a test tells it, wrong things included.
#![allow(clippy::unwrap_used, reason = "in a test a panic is a failure")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Request {
    /// Path and query.
    pub path: String,
    /// Header fields by name in lower case.
    pub headers: BTreeMap<String, String>,
}

impl Request {
    /// First byte of the range asked for.
    #[must_use]
    pub fn from(&self) -> usize {
        self.range().0
    }

    /// First byte of the range asked for and the byte behind its end, if it has one.
    ///
    /// # Panics
    /// If the range is not a single one.
    #[must_use]
    pub fn range(&self) -> (usize, Option<usize>) {
        let Some(range) = self.headers.get("range") else { return (0, None) };
        let (from, to) = range.trim_start_matches("bytes=").split_once('-').unwrap();
        (from.parse().unwrap(), to.parse().ok().map(|last: usize| last + 1))
    }
}

type Handler = dyn Fn(&Request, usize, &mut TcpStream) + Send + Sync;

/// The server; it ends when it is dropped.
pub struct Server {
    /// Where it listens, without a slash behind it.
    pub url: String,
    seen: Arc<Mutex<Vec<Request>>>,
    stop: Arc<AtomicBool>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.url)
    }
}

impl Server {
    /// Answers each request by `handler`, which is told how many came before it.
    ///
    /// # Panics
    /// If there is no free port.
    pub fn start(handler: impl Fn(&Request, usize, &mut TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let seen: Arc<Mutex<Vec<Request>>> = Arc::default();
        let stop = Arc::new(AtomicBool::new(false));
        let handler: Arc<Handler> = Arc::new(handler);
        let (requests, stopped) = (Arc::clone(&seen), Arc::clone(&stop));
        thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let (Ok(stream), handler, requests) = (stream, Arc::clone(&handler), Arc::clone(&requests))
                else {
                    continue;
                };
                thread::spawn(move || serve(stream, &*handler, &requests));
            }
        });
        Self { url, seen, stop }
    }

    /// Serves `files` with ranges and entity tags, as a good server does.
    #[must_use]
    pub fn of(files: Vec<(&'static str, Vec<u8>)>) -> Self {
        Self::start(move |request, _, stream| match files.iter().find(|(path, _)| *path == request.path) {
            Some((_, body)) => good(request, stream, body),
            None => status(stream, "404 Not Found", ""),
        })
    }

    /// All requests so far.
    ///
    /// # Panics
    /// If a handler panicked.
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        self.seen.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.url.trim_start_matches("http://"));
    }
}

fn serve(mut stream: TcpStream, handler: &Handler, seen: &Mutex<Vec<Request>>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut line = String::new();
    if reader.read_line(&mut line).unwrap_or(0) == 0 {
        return;
    }
    let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut headers = BTreeMap::new();
    loop {
        line.clear();
        if reader.read_line(&mut line).unwrap_or(0) == 0 || line.trim().is_empty() {
            break;
        }
        if let Some((name, value)) = line.trim().split_once(':') {
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
    }
    let request = Request { path, headers };
    let number = {
        let mut seen = seen.lock().unwrap();
        seen.push(request.clone());
        seen.len() - 1
    };
    handler(&request, number, &mut stream);
    let _ = stream.shutdown(Shutdown::Write);
}

/// A tag that changes with the content.
#[must_use]
pub fn tag(body: &[u8]) -> String {
    let sum = body.iter().fold(7u64, |sum, &byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
    format!("\"{sum:x}\"")
}

/// The head of a good answer, and which bytes of the body follow it.
pub fn answer(request: &Request, stream: &mut TcpStream, body: &[u8]) -> Range<usize> {
    answer_as(request, stream, body, &tag(body))
}

fn answer_as(request: &Request, stream: &mut TcpStream, body: &[u8], tag: &str) -> Range<usize> {
    let current = request.headers.get("if-range").is_none_or(|asked| asked == tag);
    let (from, to) = if current { request.range() } else { (0, None) };
    if request.headers.get("if-none-match").is_some_and(|known| known == tag) {
        status(stream, "304 Not Modified", &format!("ETag: {tag}\r\n"));
        return body.len()..body.len();
    }
    if from > 0 && from >= body.len() {
        status(stream, "416 Range Not Satisfiable", "");
        return body.len()..body.len();
    }
    let (total, end) = (body.len(), to.unwrap_or(body.len()).clamp(from, body.len()));
    let status = if current && request.headers.contains_key("range") {
        format!("206 Partial Content\r\nContent-Range: bytes {from}-{}/{total}", end - 1)
    } else {
        "200 OK".to_owned()
    };
    let left = end - from;
    let head =
        format!("HTTP/1.1 {status}\r\nETag: {tag}\r\nContent-Length: {left}\r\nConnection: close\r\n\r\n");
    let _ = stream.write_all(head.as_bytes());
    from..end
}

/// The head of a good answer to a request without an end, and where its body begins.
pub fn head(request: &Request, stream: &mut TcpStream, body: &[u8]) -> usize {
    answer(request, stream, body).start
}

/// Answers as a good server does.
pub fn good(request: &Request, stream: &mut TcpStream, body: &[u8]) {
    let range = answer(request, stream, body);
    let _ = stream.write_all(&body[range]);
}

/// A link of limited speed that all connections share.
#[derive(Debug)]
pub struct Link {
    bytes_per_second: f64,
    free: Mutex<Instant>,
    /// By path, each made once: of a large file it takes longer than a request should.
    tags: Mutex<BTreeMap<String, String>>,
}

impl Link {
    /// A link that carries so much.
    #[must_use]
    pub fn new(bytes_per_second: f64) -> Self {
        Self { bytes_per_second, free: Mutex::new(Instant::now()), tags: Mutex::default() }
    }

    /// Answers as a good server does, at the speed of the link. Packets of connections take turns.
    ///
    /// # Panics
    /// If another connection's thread panicked.
    pub fn good(&self, request: &Request, stream: &mut TcpStream, body: &[u8]) {
        let tag = {
            let mut tags = self.tags.lock().unwrap();
            tags.entry(request.path.clone()).or_insert_with(|| tag(body)).clone()
        };
        let range = answer_as(request, stream, body, &tag);
        for packet in body[range].chunks(16 << 10) {
            let wait = {
                let mut free = self.free.lock().unwrap();
                let now = Instant::now();
                // An idle link saves nothing up, but what sleeping took too long is made up for.
                *free = (*free).max(now.checked_sub(Duration::from_millis(20)).unwrap_or(now))
                    + Duration::from_secs_f64(packet.len() as f64 / self.bytes_per_second);
                free.saturating_duration_since(now)
            };
            thread::sleep(wait);
            if stream.write_all(packet).is_err() {
                return;
            }
        }
    }
}

/// Some bytes are held back until the gate is opened.
#[derive(Debug)]
pub struct Gate {
    held: Vec<Range<usize>>,
    open: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    /// A gate that holds these bytes back.
    #[must_use]
    pub fn new(held: Vec<Range<usize>>) -> Self {
        Self { held, open: Mutex::new(false), opened: Condvar::new() }
    }

    /// Lets everything through.
    ///
    /// # Panics
    /// If a connection's thread panicked.
    pub fn open(&self) {
        *self.open.lock().unwrap() = true;
        self.opened.notify_all();
    }

    /// Answers as a good server does, but waits before bytes that are held back.
    ///
    /// # Panics
    /// If another thread panicked.
    pub fn good(&self, request: &Request, stream: &mut TcpStream, body: &[u8]) {
        let mut range = answer(request, stream, body);
        while !range.is_empty() {
            let mut open = self.open.lock().unwrap();
            while !*open && self.held.iter().any(|held| held.contains(&range.start)) {
                open = self.opened.wait(open).unwrap();
            }
            let next = self.held.iter().map(|held| held.start).filter(|start| *start > range.start).min();
            let end = if *open { range.end } else { range.end.min(next.unwrap_or(range.end)) };
            drop(open);
            if stream.write_all(&body[range.start..end]).is_err() {
                return;
            }
            range.start = end;
        }
    }
}

/// An answer without a body.
pub fn status(stream: &mut TcpStream, status: &str, headers: &str) {
    let _ = write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n{headers}\r\n");
}
