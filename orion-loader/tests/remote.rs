//! Fetching over HTTP from a server that misbehaves on demand.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use orion_core::{Digest, Error, ErrorKind, FileSpec, ModelFormat, TensorType, TileLayout, WeightSource};
use orion_formats::gguf::{GgufWriter, TensorSpec};
use orion_formats::safetensors::{self, Dtype, SafetensorsWriter};
use orion_formats::{FileEntry, Reason, Shard, ShardIndex, ShardSet, ShardTensor};
use orion_loader::{Loader, LoaderOptions, Phase};
use orion_testkit::server::{self, Server, good, head, status};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

const ROWS: u64 = 64;

/// A GGUF of tensors of 64 KiB each, filled with their number.
fn model(tensors: u8) -> Vec<u8> {
    let specs: Vec<_> =
        (0..tensors).map(|n| TensorSpec::new(format!("t{n}"), [ROWS, 256], TensorType::F32)).collect();
    let mut writer = GgufWriter::start(Vec::new(), &BTreeMap::new(), &specs).unwrap();
    (0..tensors).for_each(|n| writer.tensor(&[n; 65_536]).unwrap());
    writer.finish().unwrap()
}

fn sha256(bytes: &[u8]) -> Digest {
    Digest(Sha256::digest(bytes).into())
}

struct Bench {
    directory: TempDir,
    waits: Arc<Mutex<Vec<Duration>>>,
}

impl Bench {
    fn new() -> Self {
        Self { directory: TempDir::new().unwrap(), waits: Arc::default() }
    }

    fn options(&self) -> LoaderOptions {
        let waits = Arc::clone(&self.waits);
        LoaderOptions::new()
            .cache_directory(self.directory.path())
            .offline(false)
            .wait(move |time| waits.lock().unwrap().push(time))
    }

    fn loader(&self) -> Loader {
        Loader::new(self.options()).unwrap()
    }

    fn partials(&self) -> usize {
        fs::read_dir(self.directory.path().join("partial")).unwrap().count()
    }

    /// Every blob has the digest it is called by.
    fn check_blobs(&self) {
        check_blobs(self.directory.path());
    }
}

fn check_blobs(cache: &Path) {
    let Ok(entries) = fs::read_dir(cache.join("blobs")) else { return };
    for entry in entries {
        let path = entry.unwrap().path();
        let found = sha256(&fs::read(&path).unwrap());
        assert_eq!(path.file_name().unwrap().to_str().unwrap(), found.to_string());
    }
}

fn pulled(loader: &Loader, url: &str) -> Vec<u8> {
    fs::read(&loader.pull(url).unwrap()[0]).unwrap()
}

fn refused(loader: &Loader, url: &str) -> Error {
    loader.pull(url).unwrap_err()
}

fn all(source: &Arc<dyn WeightSource>) -> Vec<u8> {
    (0..source.header().tensors.len()).map(|index| source.tensor(index).unwrap()[0]).collect()
}

#[test]
fn a_file_is_fetched_once_and_asked_about_afterwards() {
    let (bench, body) = (Bench::new(), model(3));
    let server = Server::of(vec![("/m.gguf", body.clone())]);
    let url = format!("{}/m.gguf", server.url);
    assert_eq!(pulled(&bench.loader(), &url), body);
    assert_eq!(pulled(&bench.loader(), &url), body);
    let requests = server.requests();
    assert_eq!(requests.len(), 2);
    assert!(requests[1].headers.contains_key("if-none-match"));
    bench.check_blobs();
    assert_eq!(bench.partials(), 0);
    // Offline it is still there, and what is not is named.
    let offline = Loader::new(bench.options().offline(true)).unwrap();
    assert_eq!(pulled(&offline, &url), body);
    let error = refused(&offline, &format!("{}/other.gguf", server.url));
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("offline") && error.to_string().contains("other.gguf"), "{error}");
    assert_eq!(server.requests().len(), 2);
}

#[test]
fn a_lost_network_is_no_loss_of_what_is_cached() {
    let (bench, body) = (Bench::new(), model(1));
    let server = Server::of(vec![("/m.gguf", body.clone())]);
    let url = format!("{}/m.gguf", server.url);
    pulled(&bench.loader(), &url);
    drop(server);
    let loader = Loader::new(bench.options().retries(0)).unwrap();
    assert_eq!(pulled(&loader, &url), body);
}

#[test]
fn a_changed_file_is_fetched_anew() {
    let bench = Bench::new();
    let changed = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&changed);
    let server = Server::start(move |request, _, stream| {
        good(request, stream, &model(if flag.load(Ordering::SeqCst) { 2 } else { 1 }));
    });
    let url = format!("{}/m.gguf", server.url);
    assert_eq!(pulled(&bench.loader(), &url), model(1));
    changed.store(true, Ordering::SeqCst);
    assert_eq!(pulled(&bench.loader(), &url), model(2));
}

#[test]
fn a_connection_that_breaks_is_resumed() {
    let (bench, body) = (Bench::new(), model(5));
    let served = body.clone();
    let server = Server::start(move |request, _, stream| {
        let from = head(request, stream, &served);
        let _ = stream.write_all(&served[from..served.len().min(from + 100_000)]);
    });
    assert_eq!(pulled(&bench.loader(), &format!("{}/m.gguf", server.url)), body);
    let requests = server.requests();
    assert_eq!(requests.len(), body.len().div_ceil(100_000));
    for (before, after) in requests.iter().zip(&requests[1..]) {
        assert!(after.from() > before.from());
        assert!(after.headers.contains_key("if-range"));
    }
    bench.check_blobs();
}

#[test]
fn a_server_without_ranges_begins_anew() {
    let (bench, body) = (Bench::new(), model(5));
    let served = body.clone();
    let server = Server::start(move |_, number, stream| {
        let _ = write!(
            stream,
            "HTTP/1.1 200 OK\r\nETag: \"x\"\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            served.len()
        );
        let end = if number == 0 { 200_000 } else { served.len() };
        let _ = stream.write_all(&served[..end]);
    });
    assert_eq!(pulled(&bench.loader(), &format!("{}/m.gguf", server.url)), body);
    assert_eq!(server.requests().len(), 2);
}

#[test]
fn a_file_that_changes_under_a_fetch_is_fetched_whole() {
    let bench = Bench::new();
    let (old, new) = (vec![1u8; 300_000], vec![2u8; 300_000]);
    let latest = new.clone();
    let server = Server::start(move |request, number, stream| {
        if number == 0 {
            let from = head(request, stream, &old);
            let _ = stream.write_all(&old[from..150_000]);
        } else {
            good(request, stream, &latest);
        }
    });
    assert_eq!(pulled(&bench.loader(), &format!("{}/m.gguf", server.url)), new);
    bench.check_blobs();
}

#[test]
fn a_file_that_changes_under_a_load_fails_it() {
    let bench = Bench::new();
    let (release, hold) = mpsc::channel::<()>();
    let hold = Mutex::new(hold);
    let server = Server::start(move |request, number, stream| {
        let (mut old, mut new) = (model(3), model(3));
        old[100_000] = 1;
        new[100_000] = 2;
        if number == 0 {
            let from = head(request, stream, &old);
            let _ = stream.write_all(&old[from..150_000]);
        } else {
            let _ = hold.lock().unwrap().recv();
            good(request, stream, &new);
        }
    });
    let source = bench.loader().open(&format!("{}/m.gguf", server.url)).unwrap();
    // Whoever has tensor 1 of the first version must not be handed tensor 2 of the second.
    source.tensor(1).unwrap();
    release.send(()).unwrap();
    let error = source.tensor(2).unwrap_err();
    assert_eq!(Reason::of(&error), Some(Reason::HashMismatch), "{error}");
    assert_eq!(bench.loader().cache().list().unwrap(), []);
}

#[test]
fn leftovers_are_hashed_again_and_bad_ones_dropped() {
    let (bench, body) = (Bench::new(), model(5));
    let served = body.clone();
    let url_of = |server: &Server| format!("{}/m.gguf", server.url);
    let server = Server::start(move |request, number, stream| {
        let from = head(request, stream, &served);
        let end = if number == 0 { 150_000 } else { served.len() };
        let _ = stream.write_all(&served[from..end.max(from)]);
    });
    let loader = Loader::new(bench.options().retries(0)).unwrap();
    assert_eq!(refused(&loader, &url_of(&server)).kind(), ErrorKind::Network);
    assert_eq!(bench.partials(), 2);
    assert_eq!(pulled(&loader, &url_of(&server)), body);
    assert!(server.requests()[1].from() > 0);
    assert_eq!(bench.partials(), 0);
    bench.check_blobs();
}

#[test]
fn a_leftover_longer_than_the_file_is_no_obstacle() {
    let bench = Bench::new();
    let short = vec![9u8; 1000];
    let served = short.clone();
    let server = Server::start(move |request, number, stream| {
        if number == 0 {
            // The same tag for another length: what a broken server does.
            let _ = write!(
                stream,
                "HTTP/1.1 200 OK\r\nETag: {}\r\nContent-Length: 5000\r\nConnection: close\r\n\r\n",
                server::tag(&served)
            );
            let _ = stream.write_all(&[9; 3000]);
        } else {
            good(request, stream, &served);
        }
    });
    let url = format!("{}/m.gguf", server.url);
    refused(&Loader::new(bench.options().retries(0)).unwrap(), &url);
    assert_eq!(pulled(&bench.loader(), &url), short);
    bench.check_blobs();
}

#[test]
fn servers_that_ask_to_wait_are_waited_for() {
    let (bench, body) = (Bench::new(), model(1));
    let served = body.clone();
    let server = Server::start(move |request, number, stream| match number {
        0 => status(stream, "429 Too Many Requests", "Retry-After: 7\r\n"),
        1 => status(stream, "503 Service Unavailable", ""),
        2 => status(stream, "500 Internal Server Error", ""),
        _ => good(request, stream, &served),
    });
    assert_eq!(pulled(&bench.loader(), &format!("{}/m.gguf", server.url)), body);
    let waits = bench.waits.lock().unwrap().clone();
    assert_eq!(waits.len(), 3);
    assert_eq!(waits[0], Duration::from_secs(7));
    assert!(waits[1] >= Duration::from_millis(250) && waits[2] <= Duration::from_secs(4), "{waits:?}");
}

#[test]
fn errors_that_stay_are_reported_after_the_last_try() {
    let bench = Bench::new();
    let server = Server::start(|_, _, stream| status(stream, "503 Service Unavailable", ""));
    let error = refused(&Loader::new(bench.options().retries(2)).unwrap(), &format!("{}/m.gguf", server.url));
    assert_eq!(error.kind(), ErrorKind::Network);
    assert_eq!(server.requests().len(), 3);
    let server =
        Server::start(|_, _, stream| status(stream, "429 Too Many Requests", "Retry-After: 86400\r\n"));
    refused(&bench.loader(), &format!("{}/m.gguf", server.url));
    assert_eq!(server.requests().len(), 1);
    for (answer, kind) in [("404 Not Found", ErrorKind::NotFound), ("401 Unauthorized", ErrorKind::Network)] {
        let server = Server::start(move |_, _, stream| status(stream, answer, ""));
        assert_eq!(refused(&bench.loader(), &format!("{}/m.gguf", server.url)).kind(), kind);
        assert_eq!(server.requests().len(), 1);
    }
    assert_eq!(bench.partials(), 0);
}

#[test]
fn a_silent_server_is_given_up() {
    let bench = Bench::new();
    let (release, hold) = mpsc::channel::<()>();
    let hold = Mutex::new(hold);
    let server = Server::start(move |request, _, stream| {
        head(request, stream, &[0; 1000]);
        let _ = hold.lock().unwrap().recv();
    });
    let loader = Loader::new(bench.options().retries(0).stall(Duration::from_millis(100))).unwrap();
    assert_eq!(refused(&loader, &format!("{}/m.gguf", server.url)).kind(), ErrorKind::Network);
    drop(release);
}

#[test]
fn redirects_end_and_do_not_take_the_token_along() {
    let (bench, body) = (Bench::new(), model(1));
    let elsewhere = Server::of(vec![("/m.gguf", body.clone())]);
    let target = format!("{}/m.gguf", elsewhere.url);
    let hub = Server::start(move |request, _, stream| match request.path.as_str() {
        "/loop" => status(stream, "302 Found", "Location: /loop\r\n"),
        "/file" => status(stream, "302 Found", "Location: file:///etc/passwd\r\n"),
        _ => status(stream, "307 Temporary Redirect", &format!("Location: {target}\r\n")),
    });
    let loader = Loader::new(bench.options().hub_url(&hub.url).token("secret")).unwrap();
    assert_eq!(pulled(&loader, &format!("{}/m.gguf", hub.url)), body);
    assert_eq!(hub.requests()[0].headers["authorization"], "Bearer secret");
    assert!(!elsewhere.requests()[0].headers.contains_key("authorization"));
    assert_eq!(refused(&loader, &format!("{}/loop", hub.url)).kind(), ErrorKind::Network);
    assert_eq!(refused(&loader, &format!("{}/file", hub.url)).kind(), ErrorKind::Network);
    // Another origin is not shown the token even when it is asked directly.
    pulled(&loader, &format!("{}/m.gguf", elsewhere.url));
    assert!(elsewhere.requests().iter().all(|request| !request.headers.contains_key("authorization")));
}

#[test]
fn mirrors_are_tried() {
    let (bench, body) = (Bench::new(), model(1));
    let broken = Server::start(|_, _, stream| status(stream, "404 Not Found", ""));
    let mirror = Server::of(vec![("/copy/m.gguf", body.clone())]);
    let options = bench.options().mirror(&broken.url, format!("{}/copy", mirror.url));
    assert_eq!(pulled(&Loader::new(options).unwrap(), &format!("{}/m.gguf", broken.url)), body);
}

#[test]
fn lengths_that_cannot_be_are_refused() {
    let bench = Bench::new();
    let server = Server::start(|_, _, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nabc");
    });
    assert_eq!(refused(&bench.loader(), &format!("{}/m.gguf", server.url)).kind(), ErrorKind::Network);
    // An endless answer where a small file is expected.
    let server = Server::start(|_, _, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n");
        while stream.write_all(&[b' '; 1 << 16]).is_ok() {}
    });
    let error = refused(&bench.loader(), &format!("{}/model.safetensors.index.json", server.url));
    assert_eq!(Reason::of(&error), Some(Reason::TooLarge), "{error}");
    let server = Server::start(|_, _, stream| {
        let _ = stream.write_all(
            b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc",
        );
    });
    assert_eq!(refused(&bench.loader(), &format!("{}/m.gguf", server.url)).kind(), ErrorKind::Network);
}

#[test]
fn tensors_come_before_the_file_is_whole_and_the_last_one_only_then() {
    let (bench, body) = (Bench::new(), model(4));
    let (release, hold) = mpsc::channel::<()>();
    let (hold, served) = (Mutex::new(hold), body.clone());
    let server = Server::start(move |request, _, stream| {
        let from = head(request, stream, &served);
        let half = served.len() - 65_536 - 100;
        let _ = stream.write_all(&served[from..half]);
        let _ = stream.flush();
        let _ = hold.lock().unwrap().recv();
        let _ = stream.write_all(&served[half..]);
    });
    let source = bench.loader().open(&format!("{}/m.gguf", server.url)).unwrap();
    assert_eq!(source.header().tensors.len(), 4);
    assert_eq!((source.tensor(0).unwrap()[5], source.tensor(1).unwrap()[5]), (0, 1));
    // Nothing is visible in the cache as long as the file is not whole.
    assert_eq!(bench.loader().cache().list().unwrap(), []);
    release.send(()).unwrap();
    assert_eq!(source.tensor(3).unwrap()[65_535], 3);
    assert_eq!(bench.loader().cache().list().unwrap().len(), 1);
    assert_eq!(source.tensor(4).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn a_split_model_of_many_parts() {
    let bench = Bench::new();
    let parts: Vec<Vec<u8>> = (0..5u8)
        .map(|no| {
            let metadata = [
                ("split.no".to_owned(), orion_core::MetaValue::U16(no.into())),
                ("split.count".to_owned(), orion_core::MetaValue::U16(5)),
                ("split.tensors.count".to_owned(), orion_core::MetaValue::I32(5)),
            ];
            let specs = [TensorSpec::new(format!("t{no}"), [4], TensorType::F32)];
            let mut writer = GgufWriter::start(Vec::new(), &metadata.into(), &specs).unwrap();
            writer.tensor(&[no; 16]).unwrap();
            writer.finish().unwrap()
        })
        .collect();
    let server = Server::start(move |request, _, stream| {
        let number: usize = request.path[3..8].parse().unwrap();
        good(request, stream, &parts[number - 1]);
    });
    let source = bench.loader().open(&format!("{}/m-00003-of-00005.gguf", server.url)).unwrap();
    assert_eq!(all(&source), [0, 1, 2, 3, 4]);
}

fn shard(tensors: &[(&str, u8)]) -> Vec<u8> {
    let specs: Vec<_> =
        tensors.iter().map(|(name, _)| safetensors::TensorSpec::new(*name, [2], Dtype::F16)).collect();
    let mut writer = SafetensorsWriter::start(Vec::new(), &BTreeMap::new(), &specs).unwrap();
    tensors.iter().for_each(|(_, byte)| writer.tensor(&[*byte; 4]).unwrap());
    writer.finish().unwrap()
}

#[test]
fn a_hub_repository_opens_by_name_and_again_offline() {
    let bench = Bench::new();
    let (one, two) = (shard(&[("a", 1)]), shard(&[("b", 2)]));
    let map = [("a", "model-1.safetensors"), ("b", "model-2.safetensors")];
    let index = ShardIndex::new(None, map.map(|(k, v)| (k.to_owned(), v.to_owned())).into()).to_json();
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let listing = format!(
        r#"{{"sha":"{commit}","siblings":[{{"rfilename":"config.json","size":2}},{{"rfilename":"model.safetensors.index.json"}},
        {{"rfilename":"model-1.safetensors","size":{},"lfs":{{"sha256":"{}"}}}},{{"rfilename":"model-2.safetensors"}},
        {{"rfilename":"onnx/model.safetensors"}}]}}"#,
        one.len(),
        sha256(&one),
    );
    let server = Server::start(move |request, _, stream| {
        let file = request.path.strip_prefix(&format!("/org/name/resolve/{commit}/"));
        match file {
            Some("config.json") => good(request, stream, b"{}"),
            Some("model.safetensors.index.json") => good(request, stream, index.as_bytes()),
            Some("model-1.safetensors") => good(request, stream, &one),
            Some("model-2.safetensors") => good(request, stream, &two),
            None if request.path.starts_with("/api/models/org/name/revision/v1?") => {
                good(request, stream, listing.as_bytes())
            }
            _ => status(stream, "404 Not Found", ""),
        }
    });
    let options = bench.options().hub_url(&server.url);
    let source = Loader::new(options.clone()).unwrap().open("hf://org/name@v1").unwrap();
    assert_eq!(all(&source), [1, 2]);
    assert_eq!(source.header().side_text("config.json").unwrap(), Some("{}"));
    drop(source);
    let seen = server.requests().len();
    let source = Loader::new(options.offline(true)).unwrap().open("hf://org/name@v1").unwrap();
    assert_eq!(all(&source), [1, 2]);
    assert_eq!(server.requests().len(), seen);
    assert_eq!(refused(&bench.loader(), "hf://org").kind(), ErrorKind::InvalidInput);
}

#[test]
fn a_wrong_digest_leaves_nothing_visible() {
    let bench = Bench::new();
    let body = model(1);
    let wrong = sha256(b"something else");
    let listing = format!(
        r#"{{"siblings":[{{"rfilename":"m.gguf","size":{},"lfs":{{"sha256":"{wrong}"}}}}]}}"#,
        body.len()
    );
    let server = Server::start(move |request, _, stream| {
        if request.path.starts_with("/api/") {
            good(request, stream, listing.as_bytes());
        } else {
            good(request, stream, &body);
        }
    });
    let loader = Loader::new(bench.options().hub_url(&server.url)).unwrap();
    assert_eq!(Reason::of(&refused(&loader, "hf://o/n")), Some(Reason::HashMismatch));
    bench.check_blobs();
    assert!(!bench.directory.path().join("blobs").join(wrong.to_string()).exists());
    assert_eq!(bench.partials(), 0);
}

/// Two shards of two chunks each, and their manifest.
fn shard_set() -> (ShardSet, Vec<Vec<u8>>) {
    let chunk = 1 << 16;
    let shards: Vec<Vec<u8>> =
        (0..2u8).map(|n| [vec![2 * n; chunk], vec![2 * n + 1; chunk]].concat()).collect();
    let described = shards.iter().enumerate().map(|(number, bytes)| Shard {
        entry: FileEntry { file: format!("s{number}.bin"), bytes: bytes.len() as u64, digest: sha256(bytes) },
        chunks: bytes.chunks(chunk).map(sha256).collect(),
    });
    let tensor = |name: &str, shard, offset| ShardTensor {
        name: name.into(),
        shape: vec![64, 256],
        ty: TensorType::F32,
        layout: TileLayout::RowMajor,
        shard,
        offset,
        bytes: chunk as u64,
    };
    let set = ShardSet {
        model_format: ModelFormat::Safetensors,
        chunk_bytes: chunk as u64,
        metadata: None,
        side_files: vec![FileEntry { file: "config.json".into(), bytes: 2, digest: sha256(b"{}") }],
        shards: described.collect(),
        tensors: vec![
            tensor("a", 0, 0),
            tensor("b", 0, chunk as u64),
            tensor("c", 1, 0),
            tensor("d", 1, chunk as u64),
        ],
    };
    (set, shards)
}

#[test]
fn a_shard_set_arrives_chunk_by_chunk_and_bad_chunks_come_again() {
    let bench = Bench::new();
    let (set, shards) = shard_set();
    let json = set.to_json().unwrap();
    let flipped = Arc::new(AtomicBool::new(false));
    let server = Server::start(move |request, _, stream| match request.path.as_str() {
        "/orion-manifest.json" => good(request, stream, json.as_bytes()),
        "/config.json" => good(request, stream, b"{}"),
        "/s0.bin" if !flipped.swap(true, Ordering::SeqCst) => {
            // One bit of the second chunk is wrong, once.
            let mut wrong = shards[0].clone();
            wrong[70_000] ^= 1;
            let from = head(request, stream, &shards[0]);
            let _ = stream.write_all(&wrong[from..]);
        }
        "/s0.bin" => good(request, stream, &shards[0]),
        "/s1.bin" => good(request, stream, &shards[1]),
        _ => status(stream, "404 Not Found", ""),
    });
    let events = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&events);
    let options = bench.options().on_progress(move |progress| heard.lock().unwrap().push(progress.clone()));
    let loader = Loader::new(options).unwrap();
    let url = format!("{}/orion-manifest.json", server.url);
    let source = loader.open(&url).unwrap();
    assert_eq!(all(&source), [0, 1, 2, 3]);
    assert_eq!(source.header().side_text("config.json").unwrap(), Some("{}"));
    assert!(source.header().digest.is_some());
    let again: Vec<usize> =
        server.requests().iter().filter(|r| r.path == "/s0.bin").map(server::Request::from).collect();
    assert_eq!(again, [0, 65_536]);
    loader.pull(&url).unwrap();
    let events = events.lock().unwrap().clone();
    assert!(
        events
            .iter()
            .any(|event| event.phase == Phase::Installed && event.files == 2 && event.total == Some(131_072))
    );
    bench.check_blobs();
    // From the cache it is mapped, and the manifest is all that is asked for.
    let before = server.requests().len();
    let source = bench.loader().open(&url).unwrap();
    assert_eq!(all(&source), [0, 1, 2, 3]);
    assert_eq!(server.requests().len(), before + 1);
}

#[test]
fn a_local_shard_set_is_verified_once() {
    let (bench, set_directory) = (Bench::new(), TempDir::new().unwrap());
    let (set, shards) = shard_set();
    let at = |name: &str| set_directory.path().join(name);
    fs::write(at("orion-manifest.json"), set.to_json().unwrap()).unwrap();
    fs::write(at("config.json"), b"{}").unwrap();
    shards
        .iter()
        .enumerate()
        .for_each(|(number, bytes)| fs::write(at(&format!("s{number}.bin")), bytes).unwrap());
    let location = set_directory.path().to_str().unwrap();
    let source = bench.loader().open(location).unwrap();
    assert_eq!(all(&source), [0, 1, 2, 3]);
    assert_eq!(source.header().side_text("config.json").unwrap(), Some("{}"));

    // A bit flips. As long as the time is the same nobody looks, which is how one sees that nobody hashes.
    let modified = fs::metadata(at("s1.bin")).unwrap().modified().unwrap();
    let mut flipped = shards[1].clone();
    flipped[0] ^= 8;
    fs::write(at("s1.bin"), &flipped).unwrap();
    fs::File::options().write(true).open(at("s1.bin")).unwrap().set_modified(modified).unwrap();
    assert_eq!(all(&bench.loader().open(location).unwrap()), [0, 1, 10, 3]);
    fs::File::options()
        .write(true)
        .open(at("s1.bin"))
        .unwrap()
        .set_modified(modified + Duration::from_secs(1))
        .unwrap();
    let source = bench.loader().open(location).unwrap();
    assert_eq!(Reason::of(&source.tensor(2).unwrap_err()), Some(Reason::HashMismatch));
    assert_eq!(source.tensor(3).unwrap()[0], 3);
    // Without a cache every load verifies.
    let source = orion_loader::open(set_directory.path()).unwrap();
    assert_eq!(Reason::of(&source.tensor(2).unwrap_err()), Some(Reason::HashMismatch));

    fs::write(at("config.json"), b"[]").unwrap();
    assert_eq!(
        Reason::of(&bench.loader().open(location).map(|_| ()).unwrap_err()),
        Some(Reason::HashMismatch)
    );
    fs::write(at("config.json"), b"{}").unwrap();
    fs::write(at("s0.bin"), b"short").unwrap();
    assert_eq!(
        Reason::of(&bench.loader().open(location).map(|_| ()).unwrap_err()),
        Some(Reason::HashMismatch)
    );
    fs::remove_file(at("s0.bin")).unwrap();
    assert_eq!(bench.loader().open(location).map(|_| ()).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn a_local_shard_set_is_mapped_where_that_is_asked_for() {
    let (bench, set_directory) = (Bench::new(), TempDir::new().unwrap());
    let (set, shards) = shard_set();
    let at = |name: &str| set_directory.path().join(name);
    fs::write(at("orion-manifest.json"), set.to_json().unwrap()).unwrap();
    fs::write(at("config.json"), b"{}").unwrap();
    for (number, bytes) in shards.iter().enumerate() {
        fs::write(at(&format!("s{number}.bin")), bytes).unwrap();
    }
    let loader = |map: bool| Loader::new(bench.options().map_shard_sets(map)).unwrap();
    let location = set_directory.path().to_str().unwrap();
    let (read, mapped) = (loader(false).open(location).unwrap(), loader(true).open(location).unwrap());
    assert_eq!((all(&read), all(&mapped)), (vec![0, 1, 2, 3], vec![0, 1, 2, 3]));
    // What was read is a copy; what is mapped shows what is written over it.
    let (copy, window) = (read.tensor(2).unwrap(), mapped.tensor(2).unwrap());
    let file = fs::File::options().write(true).open(at("s1.bin")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[77], 0).unwrap();
    assert_eq!((copy[0], window[0]), (2, 77));
    file.set_len(100).unwrap();
    for source in [&read, &mapped] {
        let error = source.tensor(3).unwrap_err();
        assert_eq!(Reason::of(&error), Some(Reason::Truncated), "{error}");
        assert!(error.to_string().contains("s1.bin"), "{error}");
    }
}

#[test]
fn a_shard_that_is_wrong_for_good_is_an_error() {
    let bench = Bench::new();
    let (set, mut shards) = shard_set();
    shards[1][3] ^= 1;
    let json = set.to_json().unwrap();
    let server = Server::start(move |request, _, stream| match request.path.as_str() {
        "/orion-manifest.json" => good(request, stream, json.as_bytes()),
        "/config.json" => good(request, stream, b"{}"),
        "/s0.bin" => good(request, stream, &shards[0]),
        _ => good(request, stream, &shards[1]),
    });
    let source = bench.loader().open(&format!("{}/orion-manifest.json", server.url)).unwrap();
    assert_eq!(source.tensor(1).unwrap()[0], 1);
    assert_eq!(Reason::of(&source.tensor(2).unwrap_err()), Some(Reason::HashMismatch));
    bench.check_blobs();
}

#[test]
fn a_flipped_bit_and_a_cut_blob_are_found_and_fetched_again() {
    let (bench, body) = (Bench::new(), model(1));
    let server = Server::of(vec![("/m.gguf", body.clone())]);
    let (loader, url) = (bench.loader(), format!("{}/m.gguf", server.url));
    let path = loader.pull(&url).unwrap().remove(0);
    let mut flipped = body.clone();
    flipped[70] ^= 4;
    fs::write(&path, &flipped).unwrap();
    let verified = loader.cache().verify().unwrap();
    assert_eq!((verified.good, verified.bad), (0, vec![sha256(&body)]));
    assert!(!path.exists());
    assert_eq!(pulled(&loader, &url), body);
    fs::write(&path, &body[..100]).unwrap();
    assert_eq!(pulled(&loader, &url), body);
    assert_eq!(loader.cache().verify().unwrap().good, 1);
}

#[test]
fn cleaning_removes_the_longest_unused_and_spares_what_is_in_use() {
    let bench = Bench::new();
    let bodies: Vec<Vec<u8>> = (0..3).map(|n| vec![n; 1000]).collect();
    let served = bodies.clone();
    let server = Server::start(move |request, _, stream| {
        let number: usize = request.path[2..3].parse().unwrap();
        good(request, stream, &served[number]);
    });
    let loader = bench.loader();
    for number in 0..3 {
        let path = loader.pull(&format!("{}/m{number}.gguf", server.url)).unwrap().remove(0);
        let age = Duration::from_secs(1000 - number);
        fs::File::open(path).unwrap().set_modified(std::time::SystemTime::now() - age).unwrap();
    }
    let cache = loader.cache();
    assert_eq!(
        cache.list().unwrap().iter().map(|blob| blob.digest).collect::<Vec<_>>(),
        [0, 1, 2].map(|n| sha256(&bodies[n]))
    );
    let held =
        fs::File::open(bench.directory.path().join("blobs").join(sha256(&bodies[0]).to_string())).unwrap();
    held.lock_shared().unwrap();
    assert_eq!(cache.clean(2000).unwrap(), 1000);
    assert_eq!(
        cache.list().unwrap().iter().map(|blob| blob.digest).collect::<Vec<_>>(),
        [0, 2].map(|n| sha256(&bodies[n]))
    );
    drop(held);
    assert_eq!(cache.clean(0).unwrap(), 2000);
}

#[test]
fn a_partial_taken_away_while_it_is_written_is_no_loss() {
    let (bench, body) = (Bench::new(), model(3));
    let (served, partial) = (body.clone(), bench.directory.path().join("partial"));
    let server = Server::start(move |request, _, stream| {
        let from = head(request, stream, &served);
        for entry in fs::read_dir(&partial).unwrap() {
            let _ = fs::remove_file(entry.unwrap().path());
        }
        let _ = stream.write_all(&served[from..]);
    });
    assert_eq!(pulled(&bench.loader(), &format!("{}/m.gguf", server.url)), body);
    bench.check_blobs();
}

#[test]
fn a_prefetch_can_be_cancelled_and_keeps_what_came() {
    let (bench, body) = (Bench::new(), model(5));
    let (release, hold) = mpsc::channel::<()>();
    let (hold, served) = (Mutex::new(hold), body.clone());
    let server = Server::start(move |request, number, stream| {
        let from = head(request, stream, &served);
        if number == 0 {
            let _ = stream.write_all(&served[from..200_000]);
            let _ = hold.lock().unwrap().recv();
        }
        let _ = stream.write_all(&served[from.max(if number == 0 { 200_000 } else { 0 })..]);
    });
    let url = format!("{}/m.gguf", server.url);
    let prefetch = bench.loader().prefetch(&url).unwrap();
    while server.requests().is_empty() {
        std::thread::yield_now();
    }
    prefetch.cancel();
    release.send(()).unwrap();
    assert_eq!(prefetch.wait().unwrap_err().kind(), ErrorKind::Cancelled);
    bench.check_blobs();
    assert_eq!(pulled(&bench.loader(), &url), body);
}

#[test]
fn a_bandwidth_cap_makes_the_fetch_wait() {
    let (bench, body) = (Bench::new(), model(5));
    let server = Server::of(vec![("/m.gguf", body.clone())]);
    let options = bench.options().bytes_per_second(100_000);
    assert_eq!(pulled(&Loader::new(options).unwrap(), &format!("{}/m.gguf", server.url)), body);
    // Nobody really waits here, so each wait is as long as everything before it should have taken.
    let longest = bench.waits.lock().unwrap().iter().copied().max().unwrap();
    assert!(longest > Duration::from_secs(1), "{longest:?}");
}

#[test]
fn a_cache_that_cannot_be_made_is_an_error() {
    let bench = Bench::new();
    let file = bench.directory.path().join("file");
    fs::write(&file, b"").unwrap();
    assert!(Loader::new(LoaderOptions::new().cache_directory(file.join("cache"))).is_err());
}

#[test]
fn a_server_that_drips_is_given_up() {
    let bench = Bench::new();
    let server = Server::start(move |request, _, stream| {
        head(request, stream, &[0; 100_000]);
        while stream.write_all(&[0]).is_ok() {
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    let loader = Loader::new(bench.options().retries(1).stall(Duration::from_millis(200))).unwrap();
    let error = refused(&loader, &format!("{}/m.gguf", server.url));
    assert_eq!(error.kind(), ErrorKind::Network);
    assert!(error.to_string().contains("bytes came in"), "{error}");
    assert_eq!(server.requests().len(), 2);
}

#[test]
fn lengths_that_are_not_kept_are_noticed() {
    let bench = Bench::new();
    let body = model(1);
    for (announced, sent) in [(body.len() + 10, body.len()), (body.len(), body.len() - 10)] {
        let bytes = body[..sent].to_vec();
        let server = Server::start(move |_, _, stream| {
            let _ = write!(
                stream,
                "HTTP/1.1 200 OK\r\nETag: \"x\"\r\nContent-Length: {announced}\r\nConnection: close\r\n\r\n"
            );
            let _ = stream.write_all(&bytes);
        });
        let loader = Loader::new(bench.options().retries(1)).unwrap();
        let error = refused(&loader, &format!("{}/m.gguf", server.url));
        assert_eq!(error.kind(), ErrorKind::Network, "{error}");
        assert_eq!(loader.cache().list().unwrap(), []);
    }
}

#[test]
fn a_mapped_shard_survives_replacement_and_is_refused_once_cut() {
    let bench = Bench::new();
    let (set, shards) = shard_set();
    let json = set.to_json().unwrap();
    let (first, second) = (shards[0].clone(), shards[1].clone());
    let server = Server::start(move |request, _, stream| match request.path.as_str() {
        "/orion-manifest.json" => good(request, stream, json.as_bytes()),
        "/config.json" => good(request, stream, b"{}"),
        "/s0.bin" => good(request, stream, &first),
        _ => good(request, stream, &second),
    });
    let url = format!("{}/orion-manifest.json", server.url);
    bench.loader().pull(&url).unwrap();
    let source = bench.loader().open(&url).unwrap();
    assert_eq!(all(&source), [0, 1, 2, 3]);
    let window = source.tensor(1).unwrap();
    let blob = |number: usize| bench.directory.path().join("blobs").join(sha256(&shards[number]).to_string());
    // Replaced by another file: who has the old one keeps it.
    let other = bench.directory.path().join("other");
    fs::write(&other, b"short").unwrap();
    fs::rename(&other, blob(0)).unwrap();
    assert_eq!((window[0], source.tensor(0).unwrap()[0]), (1, 0));
    // Cut in place, by somebody who is not us: an error, not the end of the process.
    fs::File::options().write(true).open(blob(1)).unwrap().set_len(100).unwrap();
    assert_eq!(Reason::of(&source.tensor(3).unwrap_err()), Some(Reason::Truncated));
    // Who comes later finds both wrong by their length, and has them fetched again.
    assert_eq!(all(&bench.loader().open(&url).unwrap()), [0, 1, 2, 3]);
    bench.check_blobs();
}

#[test]
fn a_large_file_is_fetched_over_several_connections() {
    let bench = Bench::new();
    let body: Vec<u8> =
        (0..12_000_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let served = body.clone();
    let server = Server::start(move |request, _, stream| good(request, stream, &served));
    let loader = Loader::new(bench.options().connections(3)).unwrap();
    assert!(pulled(&loader, &format!("{}/m.gguf", server.url)) == body);
    let parts = server.requests().iter().filter(|request| request.range().1.is_some()).count();
    assert!(parts >= 8, "{parts}");
    bench.check_blobs();
}

#[test]
fn what_nobody_uses_is_not_fetched_far_ahead() {
    let (bench, body) = (Bench::new(), model(100));
    let sent = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let (served, count) = (body.clone(), Arc::clone(&sent));
    let server = Server::start(move |request, _, stream| {
        let from = head(request, stream, &served);
        for piece in served[from..].chunks(4096) {
            if stream.write_all(piece).is_err() {
                return;
            }
            count.fetch_add(piece.len(), Ordering::SeqCst);
        }
    });
    let options = bench.options().read_ahead(Some(200_000)).connections(1);
    let source = Loader::new(options).unwrap().open(&format!("{}/m.gguf", server.url)).unwrap();
    // Whoever asks gets what they ask for, in any order, and in the end all of it.
    assert_eq!(source.tensor(60).unwrap()[0], 60);
    assert_eq!(source.tensor(3).unwrap()[0], 3);
    let expected: Vec<u8> = (0..100).collect();
    assert_eq!(all(&source), expected);
    assert!(sent.load(Ordering::SeqCst) >= body.len());
}

#[test]
fn open_waits_for_as_many_shards_as_it_is_told_to() {
    let bench = Bench::new();
    let (set, shards) = shard_set();
    let json = set.to_json().unwrap();
    let server = Server::start(move |request, _, stream| match request.path.as_str() {
        "/orion-manifest.json" => good(request, stream, json.as_bytes()),
        "/config.json" => good(request, stream, b"{}"),
        "/s0.bin" => good(request, stream, &shards[0]),
        _ => good(request, stream, &shards[1]),
    });
    let loader = Loader::new(bench.options().initial_shards(2)).unwrap();
    let source = loader.open(&format!("{}/orion-manifest.json", server.url)).unwrap();
    // Nothing more is asked of the server.
    drop(server);
    assert_eq!(all(&source), [0, 1, 2, 3]);
}

#[test]
fn prefetching_rests_while_a_model_is_loaded() {
    let (bench, body) = (Bench::new(), model(5));
    let server = Server::of(vec![("/a.gguf", body.clone()), ("/b.gguf", body.clone())]);
    let loader = bench.loader();
    let source = loader.open(&format!("{}/a.gguf", server.url)).unwrap();
    all(&source);
    let prefetch = loader.prefetch(&format!("{}/b.gguf", server.url)).unwrap();
    // It asks, takes a first piece and waits: the model's source is still held.
    while server.requests().len() < 2 {
        std::thread::yield_now();
    }
    assert!(!prefetch.is_finished());
    drop(source);
    let files = prefetch.wait().unwrap();
    assert_eq!(fs::read(&files[0]).unwrap(), body);
}

#[test]
fn prefetching_a_local_model_reads_its_files() {
    let bench = Bench::new();
    let path = bench.directory.path().join("m.gguf");
    fs::write(&path, model(2)).unwrap();
    let files = bench.loader().prefetch(path.to_str().unwrap()).unwrap().wait().unwrap();
    assert_eq!(files, [path]);
    assert_eq!(
        bench.loader().prefetch("missing.gguf").unwrap().wait().unwrap_err().kind(),
        ErrorKind::NotFound
    );
}

#[test]
fn a_file_that_is_not_what_the_catalogue_says_is_refused() {
    let body = model(3);
    let server = Server::of(vec![("/m.gguf", body.clone())]);
    let file = |bytes: Option<u64>, digest: Option<Digest>| {
        let mut file = FileSpec::new(format!("{}/m.gguf", server.url));
        (file.bytes, file.digest) = (bytes, digest);
        [file]
    };
    let read = |files: &[FileSpec]| {
        let bench = Bench::new();
        let source = bench.loader().open_files(files)?;
        (0..3).try_for_each(|index| source.tensor(index).map(drop))
    };
    let len = body.len() as u64;
    read(&file(Some(len), Some(sha256(&body)))).unwrap();
    read(&file(None, None)).unwrap();
    for (bytes, digest) in [(None, Some(Digest([7; 32]))), (Some(len + 1), None)] {
        let error = read(&file(bytes, digest)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    }
}
