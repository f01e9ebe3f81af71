//! The conformance suite of `WeightSource` on every source of this crate.

#![allow(clippy::unwrap_used, reason = "in a test a panic is a failure")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use orion_core::{Digest, ModelFormat, TensorType, TileLayout, testing};
use orion_formats::gguf::{GgufWriter, TensorSpec};
use orion_formats::safetensors::{self, Dtype, SafetensorsWriter};
use orion_formats::{FileEntry, Shard, ShardSet, ShardTensor};
use orion_loader::{Loader, LoaderOptions, MemorySource, open};
use orion_testkit::server::Server;
use sha2::{Digest as _, Sha256};

/// `[rows, columns]`: several pages, no round number, one row, nothing.
const SHAPES: [(&str, [u64; 2]); 4] =
    [("large", [300, 256]), ("odd", [7, 32]), ("row", [1, 64]), ("empty", [0, 32])];

fn bytes(elements: u64) -> Vec<u8> {
    (0..4 * elements).map(|at| (at * at % 251) as u8).collect()
}

fn gguf() -> Vec<u8> {
    let full = || SHAPES.iter().filter(|(_, [rows, _])| *rows > 0);
    let specs: Vec<_> = full().map(|(name, shape)| TensorSpec::new(*name, *shape, TensorType::F32)).collect();
    let mut writer = GgufWriter::start(Vec::new(), &BTreeMap::new(), &specs).unwrap();
    full().for_each(|(_, [rows, columns])| writer.tensor(&bytes(rows * columns)).unwrap());
    writer.finish().unwrap()
}

fn safetensors(shapes: &[(&str, [u64; 2])]) -> Vec<u8> {
    let specs: Vec<_> =
        shapes.iter().map(|(name, shape)| safetensors::TensorSpec::new(*name, *shape, Dtype::F32)).collect();
    let mut writer = SafetensorsWriter::start(Vec::new(), &BTreeMap::new(), &specs).unwrap();
    shapes.iter().for_each(|(_, [rows, columns])| writer.tensor(&bytes(rows * columns)).unwrap());
    writer.finish().unwrap()
}

#[test]
fn weights_in_memory() {
    let add = |source: MemorySource, (name, shape): (&str, [u64; 2])| {
        source.tensor(name, shape, TensorType::F32, bytes(shape[0] * shape[1])).unwrap()
    };
    testing::weight_source(&SHAPES.into_iter().fold(MemorySource::new(ModelFormat::Gguf), add));
    testing::weight_source(&MemorySource::new(ModelFormat::Safetensors));
}

#[test]
fn a_local_gguf_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("m.gguf");
    fs::write(&path, gguf()).unwrap();
    testing::weight_source(&*open(&path).unwrap());
}

#[test]
fn a_local_safetensors_file_and_a_sharded_model() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::write(at("model.safetensors"), safetensors(&SHAPES)).unwrap();
    testing::weight_source(&*open(at("model.safetensors")).unwrap());

    let sharded = tempfile::tempdir().unwrap();
    let at = |name: &str| sharded.path().join(name);
    let parts = [("model-1.safetensors", &SHAPES[..2]), ("model-2.safetensors", &SHAPES[2..])];
    let mut map = Vec::new();
    for (file, shapes) in parts {
        fs::write(at(file), safetensors(shapes)).unwrap();
        map.extend(shapes.iter().map(|(name, _)| format!("{name:?}: {file:?}")));
    }
    let index = format!("{{\"metadata\": {{}}, \"weight_map\": {{{}}}}}", map.join(", "));
    fs::write(at("model.safetensors.index.json"), index).unwrap();
    testing::weight_source(&*open(at("model.safetensors.index.json")).unwrap());
}

#[test]
fn a_shard_set() {
    let (set, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write_shard_set(set.path());
    testing::weight_source(&*loader(cache.path()).open(set.path().to_str().unwrap()).unwrap());
}

#[test]
fn a_model_that_arrives_over_the_network() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::of(vec![("/m.gguf", gguf())]);
    let source = loader(cache.path()).open(&format!("{}/m.gguf", server.url)).unwrap();
    testing::weight_source(&*source);
}

fn loader(cache: &Path) -> Loader {
    Loader::new(LoaderOptions::new().cache_directory(cache).offline(false)).unwrap()
}

fn sha256(bytes: &[u8]) -> Digest {
    Digest(Sha256::digest(bytes).into())
}

/// One shard of two chunks, a tensor over the border of them.
fn write_shard_set(directory: &Path) {
    const CHUNK: usize = 1 << 16;
    let data = bytes(2 * CHUNK as u64 / 4);
    let tensor = |name: &str, rows: u64, offset: u64| ShardTensor {
        name: name.into(),
        shape: vec![rows, 256],
        ty: TensorType::F32,
        layout: TileLayout::RowMajor,
        shard: 0,
        offset,
        bytes: rows * 1024,
    };
    let set = ShardSet {
        model_format: ModelFormat::Safetensors,
        chunk_bytes: CHUNK as u64,
        metadata: None,
        side_files: Vec::new(),
        shards: vec![Shard {
            entry: FileEntry { file: "s.bin".into(), bytes: data.len() as u64, digest: sha256(&data) },
            chunks: data.chunks(CHUNK).map(sha256).collect(),
        }],
        tensors: vec![tensor("first", 40, 0), tensor("across", 88, 40 * 1024)],
    };
    fs::write(directory.join("orion-manifest.json"), set.to_json().unwrap()).unwrap();
    fs::write(directory.join("s.bin"), data).unwrap();
}
