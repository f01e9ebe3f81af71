//! One named test per class of malformed shard-set manifest.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use common::reason;
use orion_core::{Digest, ModelFormat, TensorType, TileLayout};
use orion_formats::{FileEntry, Reason, Shard, ShardSet, ShardTensor};
use serde_json::{Value, json};

fn sample() -> ShardSet {
    let entry = |file: &str, bytes| FileEntry { file: file.into(), bytes, digest: Digest([7; 32]) };
    let tensor = |name: &str, shard, offset| ShardTensor {
        name: name.into(),
        shape: vec![4, 32],
        ty: TensorType::Q8_0,
        layout: TileLayout::RowMajor,
        shard,
        offset,
        bytes: 136,
    };
    ShardSet {
        model_format: ModelFormat::Gguf,
        chunk_bytes: 1 << 16,
        metadata: Some(entry("metadata.gguf", 1000)),
        side_files: vec![entry("config.json", 10)],
        shards: vec![
            Shard { entry: entry("shard-0.bin", 70_000), chunks: vec![Digest([1; 32]), Digest([2; 32])] },
            Shard { entry: entry("shard-1.bin", 136), chunks: vec![Digest([3; 32])] },
        ],
        tensors: vec![tensor("a", 0, 0), tensor("b", 0, 192), tensor("c", 1, 0)],
    }
}

/// The sample's JSON with one value replaced.
fn with(pointer: &str, value: Value) -> Vec<u8> {
    let mut json: Value = serde_json::from_str(&sample().to_json().unwrap()).unwrap();
    *json.pointer_mut(pointer).unwrap_or_else(|| panic!("{pointer}")) = value;
    serde_json::to_vec(&json).unwrap()
}

#[track_caller]
fn refused(pointer: &str, value: Value, expected: Reason) {
    let error = ShardSet::parse(&with(pointer, value)).unwrap_err();
    assert_eq!(reason(&error), expected, "{error}");
}

#[test]
fn a_manifest_goes_both_ways() {
    let json = sample().to_json().unwrap();
    assert_eq!(ShardSet::parse(json.as_bytes()).unwrap(), sample());
    let model = sample().model(Default::default());
    assert_eq!(model.tensors[2].file, 1);
    assert_eq!(model.tensors[1].offset, 192);
}

#[test]
fn bad_manifest() {
    for json in ["", "{", "[]", "{}", "null"] {
        assert_eq!(reason(&ShardSet::parse(json.as_bytes()).unwrap_err()), Reason::BadManifest, "{json}");
    }
    refused("/format", json!("other"), Reason::BadManifest);
    refused("/model_format", json!("onnx"), Reason::BadManifest);
    refused("/tensors/0/layout", json!("diagonal"), Reason::BadManifest);
    refused("/shards/0/bytes", json!(-1), Reason::BadManifest);
    refused("/shards/0/bytes", json!(1.5), Reason::BadManifest);
    for chunk in [0, 1, 3 << 16, 1 << 15, 1 << 27] {
        refused("/chunk_bytes", json!(chunk), Reason::BadManifest);
    }
    refused("/shards/1/file", json!("shard-0.bin"), Reason::BadManifest);
    refused("/shards/1/file", json!("CONFIG.json"), Reason::BadManifest);
    refused("/shards/0/chunks", json!([]), Reason::BadManifest);
    refused("/shards/1/bytes", json!(65_537), Reason::BadManifest);
    let mut json: Value = serde_json::from_str(&sample().to_json().unwrap()).unwrap();
    json["more"] = json!(1);
    assert_eq!(reason(&ShardSet::parse(json.to_string().as_bytes()).unwrap_err()), Reason::BadManifest);
}

#[test]
fn unsupported_version() {
    refused("/version", json!(2), Reason::UnsupportedVersion);
}

#[test]
fn bad_digest() {
    let good = "ab".repeat(32);
    for text in
        ["", &good[1..], &good.to_uppercase(), "sha256:../../x", &"ab".repeat(20), &format!("sha1:{good}")]
    {
        refused("/shards/0/sha256", json!(text), Reason::BadDigest);
        refused("/shards/0/chunks/0", json!(text), Reason::BadDigest);
        refused("/side_files/0/sha256", json!(text), Reason::BadDigest);
        refused("/metadata/sha256", json!(text), Reason::BadDigest);
    }
}

#[test]
fn path_escape() {
    for name in ["../x", "/etc/passwd", "C:\\x", "a/../../b", "%2e%2e/x", "", ".", "..", "a/b"] {
        refused("/shards/0/file", json!(name), Reason::PathEscape);
        refused("/side_files/0/file", json!(name), Reason::PathEscape);
        refused("/metadata/file", json!(name), Reason::PathEscape);
    }
}

#[test]
fn bad_tensors() {
    refused("/tensors/0/name", json!("b"), Reason::DuplicateTensor);
    refused("/tensors/0/name", json!("../b"), Reason::BadName);
    refused("/tensors/0/type", json!("MXFP4"), Reason::UnsupportedDtype);
    refused("/tensors/0/shape", json!([1, 1, 1, 1, 1, 1, 1, 4, 32]), Reason::TooManyDims);
    refused("/tensors/0/shape", json!([4, 33]), Reason::BadBlock);
    refused("/tensors/0/shape", json!([u64::MAX, 32]), Reason::ShapeOverflow);
    refused("/tensors/0/bytes", json!(135), Reason::BadInfo);
    refused("/tensors/0/bytes", json!(137), Reason::BadInfo);
    refused("/tensors/0/offset", json!(8), Reason::BadOffset);
    refused("/tensors/0/offset", json!(70_016), Reason::OutOfBounds);
    refused("/tensors/0/offset", json!(u64::MAX - 63), Reason::OutOfBounds);
    refused("/tensors/0/shard", json!(2), Reason::OutOfBounds);
    refused("/tensors/0/offset", json!(128), Reason::Overlap);
    refused("/shards/0/bytes", json!(1u64 << 49), Reason::TooLarge);
}
