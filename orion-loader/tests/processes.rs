//! Several processes, and processes that die: nothing half-done is ever visible.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use orion_testkit::server::{Server, good, head};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

/// The example `pull`, which cargo builds beside the tests.
fn pull() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let built = test.parent().unwrap().parent().unwrap().join("examples").join("pull");
    assert!(built.exists(), "{} is not built; run all targets of the package", built.display());
    built
}

fn spawn(url: &str, cache: &Path) -> Child {
    Command::new(pull()).args([url, cache.to_str().unwrap()]).stdout(Stdio::null()).spawn().unwrap()
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn blobs(cache: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(cache.join("blobs")) else { return Vec::new() };
    let mut names = Vec::new();
    for entry in entries {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        assert_eq!(hex(&fs::read(&path).unwrap()), name);
        names.push(name);
    }
    names
}

fn body() -> Vec<u8> {
    (0..2_000_000u32).flat_map(|i| (i.wrapping_mul(2_654_435_761)).to_le_bytes()).take(2_000_000).collect()
}

#[test]
fn a_hundred_kills_leave_nothing_corrupt() {
    let (cache, body) = (TempDir::new().unwrap(), body());
    let served = body.clone();
    let server = Server::start(move |request, _, stream| {
        let from = head(request, stream, &served);
        for piece in served[from..].chunks(50_000) {
            if stream.write_all(piece).is_err() {
                return;
            }
            // Slow enough that a kill finds it at work.
            thread::sleep(Duration::from_millis(1));
        }
    });
    let url = format!("{}/m.gguf", server.url);
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    for _ in 0..100 {
        let mut child = spawn(&url, cache.path());
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        thread::sleep(Duration::from_micros((random >> 33) % 50_000));
        child.kill().unwrap();
        child.wait().unwrap();
        blobs(cache.path());
        // Begin again now and then, so that not every later run finds the file.
        if !blobs(cache.path()).is_empty() {
            fs::remove_dir_all(cache.path().join("blobs")).unwrap();
            fs::remove_dir_all(cache.path().join("refs")).unwrap();
        }
    }
    assert!(spawn(&url, cache.path()).wait().unwrap().success());
    assert_eq!(blobs(cache.path()), [hex(&body)]);
    let left = fs::read_dir(cache.path().join("partial")).unwrap();
    let left: Vec<_> = left
        .map(|entry| entry.unwrap().file_name())
        .filter(|name| name.to_string_lossy().ends_with(".part"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn two_processes_fetch_the_same_file() {
    let (cache, body) = (TempDir::new().unwrap(), body());
    let served = body.clone();
    let server = Server::start(move |request, _, stream| good(request, stream, &served));
    let url = format!("{}/m.gguf", server.url);
    let children: Vec<Child> = (0..2).map(|_| spawn(&url, cache.path())).collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(blobs(cache.path()), [hex(&body)]);
}

#[test]
fn a_full_disk_is_an_error_and_leaves_nothing_behind() {
    let (cache, body) = (TempDir::new().unwrap(), body());
    let server = Server::start(move |request, _, stream| good(request, stream, &body));
    let url = format!("{}/m.gguf", server.url);
    // A limit on file sizes stands for the disk; the signal that comes with it is ignored.
    let script =
        format!("trap '' XFSZ; ulimit -f 100; exec {} {url} {}", pull().display(), cache.path().display());
    let output = Command::new("bash").args(["-c", &script]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("Io"), "{output:?}");
    assert_eq!(blobs(cache.path()), Vec::<String>::new());
    assert_eq!(fs::read_dir(cache.path().join("partial")).unwrap().count(), 0);
}
