//! Reloading while others read.

#![allow(clippy::unwrap_used, reason = "in a test a panic is a failure")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use orion_core::{Catalog, ModelId};
use orion_registry::{LiveRegistry, MissingFiles, Sources, write_atomic};

/// A version in which every model says the same number: a mixture would show.
fn version(number: u32) -> String {
    let model = |id: &str| {
        format!(
            r#"{{"id": "{id}", "files": [{{"path": "{id}.gguf"}}], "context_length": {number}, "name": "v{number}"}}"#
        )
    };
    let models: Vec<_> = (0..20).map(|n| model(&format!("m{n}"))).collect();
    format!("{{\"version\": 1, \"models\": [{}]}}", models.join(",\n"))
}

fn open(path: &Path) -> Arc<LiveRegistry> {
    LiveRegistry::open(Sources::new(path).missing_files(MissingFiles::Ignore)).unwrap()
}

fn start() -> (tempfile::TempDir, PathBuf, Arc<LiveRegistry>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("models.json");
    std::fs::write(&path, version(1)).unwrap();
    let live = open(&path);
    (dir, path, live)
}

/// What one reader sees at once: always one number.
fn seen(live: &LiveRegistry) -> u32 {
    let all = live.all();
    let numbers: std::collections::BTreeSet<u32> = all.iter().map(|spec| spec.context_length).collect();
    assert_eq!((all.len(), numbers.len()), (20, 1), "a reader saw a mixture: {numbers:?}");
    *numbers.first().unwrap()
}

#[test]
fn a_hundred_rewrites_during_a_thousand_reads_each_seen_whole() {
    let (_dir, path, live) = start();
    let writing = AtomicBool::new(true);
    let reads = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut last = 0;
                let mut mine = 0;
                while writing.load(Ordering::Acquire) || mine < 1000 {
                    let now = seen(&live);
                    assert!(now >= last, "versions do not go back");
                    last = now;
                    mine += 1;
                }
                reads.fetch_add(mine, Ordering::Relaxed);
            });
        }
        for number in 2..=101 {
            write_atomic(&path, version(number).as_bytes()).unwrap();
            assert_eq!(live.reload().unwrap().version, u64::from(number));
        }
        writing.store(false, Ordering::Release);
    });
    assert!(reads.load(Ordering::Relaxed) >= 4000);
    assert_eq!((seen(&live), live.version()), (101, 101));
}

#[test]
fn the_watcher_follows_writers_that_are_not_atomic_and_never_shows_a_half() {
    let (_dir, path, live) = start();
    let watch = live.watch(Duration::from_millis(1));
    for number in 2..=101 {
        let text = version(number);
        // Truncates, writes a half, then the rest.
        let (half, rest) = text.split_at(text.len() / 2);
        std::fs::write(&path, half).unwrap();
        assert!((1..=number).contains(&seen(&live)));
        std::fs::write(&path, [half, rest].concat()).unwrap();
        assert!((1..=number).contains(&seen(&live)));
    }
    // The last version comes, however long the machine takes.
    while seen(&live) != 101 {
        std::thread::yield_now();
    }
    drop(watch);
    write_atomic(&path, version(102).as_bytes()).unwrap();
    assert_eq!(seen(&live), 101, "nobody watches any more");
    assert!(live.reload_if_changed().unwrap().is_ok());
    assert_eq!(seen(&live), 102);
    assert!(live.reload_if_changed().is_none());
}

#[test]
fn a_broken_file_leaves_the_old_version_in_force_and_says_so() {
    let (_dir, path, live) = start();
    let told = Arc::new(std::sync::Mutex::new(Vec::new()));
    let tell = Arc::clone(&told);
    live.on_reload(move |outcome| {
        tell.lock().unwrap().push(match outcome {
            Ok(changes) => changes.to_string(),
            Err(report) => report.problems[0].code.to_owned(),
        });
    });
    let held = live.current();
    for broken in ["", "{", "{\"version\": 1, \"models\": [{\"id\": 5}]}", "{\"version\": 2}"] {
        std::fs::write(&path, broken).unwrap();
        assert!(!live.reload().unwrap_err().is_ok(), "{broken}");
        assert_eq!((seen(&live), live.version()), (1, 1));
    }
    std::fs::remove_file(&path).unwrap();
    assert_eq!(live.reload().unwrap_err().problems[0].code, "not-found");
    assert_eq!(seen(&live), 1);
    let text = version(7).replace(r#""id": "m19""#, r#""id": "new""#);
    std::fs::write(&path, text).unwrap();
    let changes = live.reload().unwrap();
    assert_eq!(
        (changes.version, changes.added, changes.removed),
        (2, vec!["new".to_owned()], vec!["m19".to_owned()])
    );
    assert_eq!(changes.changed.len(), 19);
    assert_eq!(held.models()[0].spec.context_length, 1, "who holds a version keeps it");
    assert!(live.get(&ModelId::from("new")).is_some() && live.get(&ModelId::from("m19")).is_none());
    let told = told.lock().unwrap();
    assert_eq!(told[..5], ["syntax", "syntax", "wrong-type", "out-of-range", "not-found"]);
    assert!(told[5].starts_with("version 2; added: new; removed: m19; changed: m0, "), "{told:?}");
}
