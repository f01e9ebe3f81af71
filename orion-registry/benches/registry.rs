//! Loading, checking and asking a catalogue of 10,000 models.

use std::fmt::Write as _;
use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use orion_core::{Catalog, ModelId};
use orion_registry::{MissingFiles, Registry, Sources};

const ENTRIES: usize = 10_000;

/// Entries as full as those of the demo: files with digests, routing hints in two languages, fallbacks, aliases.
fn catalogue(entries: usize) -> String {
    let mut text = "{\n  \"version\": 1,\n  \"models\": [".to_owned();
    for n in 0..entries {
        let comma = if n == 0 { "" } else { "," };
        let fallback = if n == 0 { String::new() } else { format!(", \"fallback\": [\"model-{}\"]", n - 1) };
        let _ = write!(
            text,
            "{comma}\n    {{\"id\": \"model-{n}\", \"name\": \"Model {n}\", \"architecture\": \"llama\", \"format\": \"gguf\",\n      \
             \"files\": [{{\"path\": \"models/model-{n}.gguf\", \"bytes\": {bytes}, \"sha256\": \"{n:064x}\"}}],\n      \
             \"quantization\": \"Q4_1\", \"context_length\": 8192, \"parameters\": 134515008, \"disk_bytes\": {bytes},\n      \
             \"memory\": {{\"weight_bytes\": 96576768, \"kv_bytes_per_token\": 23040}},\n      \
             \"capabilities\": [\"chat\", \"code\"], \"languages\": [\"en\", \"fr\"], \"quality\": \"basic\", \"speed\": \"fast\",\n      \
             \"min_ram_bytes\": 536870912, \"licence\": \"Apache-2.0\", \"system_prompt\": \"You are a careful programmer.\",\n      \
             \"sampling\": {{\"temperature\": 0.2, \"top_p\": 0.9}},\n      \
             \"routing\": {{\"description\": \"Writing, explaining and correcting programs.\",\n        \
             \"examples\": [\"Write a function that reverses a string.\", \"Écris une fonction qui calcule une factorielle.\"],\n        \
             \"keywords\": [\"code\", \"function\", \"bug\", \"fonction\"]}}{fallback}}}",
            bytes = 98_000_000 + n,
        );
    }
    text + "\n  ],\n  \"aliases\": {\"default\": \"model-1\"}\n}\n"
}

fn load(c: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("models.json");
    let text = catalogue(ENTRIES);
    std::fs::write(&path, &text).expect("the folder is writable");
    eprintln!("models.json with {ENTRIES} entries: {} KiB", text.len() / 1024);
    let sources = Sources::new(&path).missing_files(MissingFiles::Ignore);
    let mut group = c.benchmark_group("registry");
    group.sample_size(20);
    group.bench_function("load and validate 10,000 entries", |b| {
        b.iter_with_large_drop(|| Registry::load(&sources).expect("the catalogue is valid"));
    });
    group.finish();
}

fn lookup(c: &mut Criterion) {
    let sources = Sources::text("models.json", catalogue(ENTRIES)).missing_files(MissingFiles::Ignore);
    let registry = Registry::load(&sources).expect("the catalogue is valid");
    let ids: Vec<ModelId> = (0..ENTRIES).step_by(7).map(|n| ModelId::new(format!("model-{n}"))).collect();
    let mut next = ids.iter().cycle();
    c.bench_function("look up one of 10,000 models by id", |b| {
        b.iter(|| registry.get(black_box(next.next().expect("a cycle does not end"))).is_some());
    });
    let alias = ModelId::from("default");
    c.bench_function("look up by alias", |b| b.iter(|| registry.get(black_box(&alias)).is_some()));
}

criterion_group!(benches, load, lookup);
criterion_main!(benches);
