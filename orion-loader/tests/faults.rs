//! Disks that fail and locks that do nothing, by a shim between the process and the system.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "in a test a panic is a failure")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use orion_testkit::server::{Server, good, head};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

const EIO: &str = "5";
const EACCES: &str = "13";
const ENOSPC: &str = "28";
const EROFS: &str = "30";
const EDQUOT: &str = "122";

/// The example `pull`, which cargo builds beside the tests.
fn pull() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let built = test.parent().unwrap().parent().unwrap().join("examples").join("pull");
    assert!(built.exists(), "{} is not built; run all targets of the package", built.display());
    built
}

struct Bench {
    directory: TempDir,
    server: Server,
    body: Vec<u8>,
    shim: PathBuf,
}

impl Bench {
    fn new() -> Self {
        let body: Vec<u8> =
            (0..500_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        let served = body.clone();
        let server = Server::start(move |request, _, stream| good(request, stream, &served));
        let directory = TempDir::new().unwrap();
        let shim = directory.path().join("shim.so");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/faults/shim.c");
        let compiled = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .arg(&shim)
            .args([source, "-ldl"])
            .status();
        assert!(compiled.unwrap().success(), "the C compiler that links Rust programs compiles the shim");
        Self { directory, server, body, shim }
    }

    fn cache(&self) -> PathBuf {
        self.directory.path().join("cache")
    }

    fn command(&self, name: &str, faults: &[(&str, &str)]) -> Command {
        let mut command = Command::new(pull());
        command
            .arg(format!("{}/{name}", self.server.url))
            .arg(self.cache())
            .env("LD_PRELOAD", &self.shim)
            .env("SHIM_FOLDER", self.cache())
            .envs(faults.iter().copied())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        command
    }

    fn pull(&self, name: &str, faults: &[(&str, &str)]) -> Output {
        self.command(name, faults).output().unwrap()
    }

    fn check(&self, expected: usize) {
        let digest: String = Sha256::digest(&self.body).iter().map(|byte| format!("{byte:02x}")).collect();
        let names = names(&self.cache().join("blobs"));
        assert_eq!(names, vec![digest; expected]);
        for name in names {
            assert_eq!(fs::read(self.cache().join("blobs").join(name)).unwrap(), self.body);
        }
    }
}

fn names(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn every_error_of_the_disk_is_an_error_that_leaves_nothing_behind() {
    let bench = Bench::new();
    let faults: [&[(&str, &str)]; 6] = [
        &[("SHIM_WRITE", ENOSPC), ("SHIM_AFTER", "300000")],
        &[("SHIM_WRITE", EDQUOT), ("SHIM_AFTER", "300000")],
        &[("SHIM_WRITE", EIO), ("SHIM_AFTER", "1000000")],
        &[("SHIM_SYNC", EIO)],
        &[("SHIM_OPEN", EACCES)],
        &[("SHIM_OPEN", EROFS)],
    ];
    for fault in faults {
        let output = bench.pull("m.gguf", fault);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{fault:?} {said}");
        assert!(said.contains("Io"), "{fault:?} {said}");
        bench.check(0);
        assert_eq!(names(&bench.cache().join("partial")), Vec::<String>::new(), "{fault:?} {said}");
    }
    // The same cache, and a disk that works again.
    assert_eq!(bench.pull("m.gguf", &[]).status.code(), Some(0));
    bench.check(1);
}

#[test]
fn a_cache_that_cannot_be_written_still_serves_what_it_holds() {
    let bench = Bench::new();
    assert_eq!(bench.pull("m.gguf", &[]).status.code(), Some(0));
    // Another file cannot be fetched; the one that is there can be had without the network.
    assert_eq!(bench.pull("other.gguf", &[("SHIM_OPEN", EROFS)]).status.code(), Some(1));
    let offline = bench.pull("m.gguf", &[("SHIM_OPEN", EROFS), ("HF_HUB_OFFLINE", "1")]);
    assert_eq!(offline.status.code(), Some(0), "{}", String::from_utf8_lossy(&offline.stderr));
    bench.check(1);
}

#[test]
fn without_working_locks_processes_still_agree() {
    let bench = Bench::new();
    for _ in 0..3 {
        let nolock = [("SHIM_NOLOCK", "1")];
        let children: Vec<Child> =
            (0..4).map(|_| bench.command("m.gguf", &nolock).spawn().unwrap()).collect();
        for child in children {
            let output = child.wait_with_output().unwrap();
            assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        }
        bench.check(1);
        fs::remove_dir_all(bench.cache()).unwrap();
    }
}

#[test]
fn without_working_locks_a_resumed_fetch_takes_nothing_from_one_that_runs() {
    let bench = Bench::new();
    let served = bench.body.clone();
    // Every connection breaks half-way, so that each process resumes, from its own bytes or another's.
    let server = Server::start(move |request, _, stream| {
        let from = head(request, stream, &served);
        let end = (from + served.len() / 3).min(served.len());
        let _ = std::io::Write::write_all(stream, &served[from..end]);
    });
    let bench = Bench { server, ..bench };
    let nolock = [("SHIM_NOLOCK", "1")];
    let children: Vec<Child> = (0..3).map(|_| bench.command("m.gguf", &nolock).spawn().unwrap()).collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    }
    bench.check(1);
}
