//! A web server that does what a test tells it, wrong things included.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

/// A request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) path: String,
    pub(crate) headers: BTreeMap<String, String>,
}

impl Request {
    /// First byte of the range asked for.
    pub(crate) fn from(&self) -> usize {
        let range = self.headers.get("range");
        range.map_or(0, |range| range.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap())
    }
}

type Handler = dyn Fn(&Request, usize, &mut TcpStream) + Send + Sync;

pub(crate) struct Server {
    pub(crate) url: String,
    pub(crate) seen: Arc<Mutex<Vec<Request>>>,
    stop: Arc<AtomicBool>,
}

impl Server {
    /// Answers each request by `handler`, which is told how many came before it.
    pub(crate) fn start(handler: impl Fn(&Request, usize, &mut TcpStream) + Send + Sync + 'static) -> Self {
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
    pub(crate) fn of(files: Vec<(&'static str, Vec<u8>)>) -> Self {
        Self::start(move |request, _, stream| match files.iter().find(|(path, _)| *path == request.path) {
            Some((_, body)) => good(request, stream, body),
            None => status(stream, "404 Not Found", ""),
        })
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
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
pub(crate) fn tag(body: &[u8]) -> String {
    let sum = body.iter().fold(7u64, |sum, &byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
    format!("\"{sum:x}\"")
}

/// The head of a good answer, and where its body begins.
pub(crate) fn head(request: &Request, stream: &mut TcpStream, body: &[u8]) -> usize {
    let tag = tag(body);
    let current = request.headers.get("if-range").is_none_or(|asked| *asked == tag);
    let from = if current { request.from() } else { 0 };
    if request.headers.get("if-none-match") == Some(&tag) {
        status(stream, "304 Not Modified", &format!("ETag: {tag}\r\n"));
        return body.len();
    }
    if from > 0 && from >= body.len() {
        status(stream, "416 Range Not Satisfiable", "");
        return body.len();
    }
    let (total, left) = (body.len(), body.len() - from);
    let status = if from > 0 {
        format!("206 Partial Content\r\nContent-Range: bytes {from}-{}/{total}", total - 1)
    } else {
        "200 OK".to_owned()
    };
    let head =
        format!("HTTP/1.1 {status}\r\nETag: {tag}\r\nContent-Length: {left}\r\nConnection: close\r\n\r\n");
    let _ = stream.write_all(head.as_bytes());
    from
}

pub(crate) fn good(request: &Request, stream: &mut TcpStream, body: &[u8]) {
    let from = head(request, stream, body);
    let _ = stream.write_all(&body[from..]);
}

pub(crate) fn status(stream: &mut TcpStream, status: &str, headers: &str) {
    let _ = write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n{headers}\r\n");
}
