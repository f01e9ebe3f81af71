//! One named test per class of malformed safetensors file and index, and what must be accepted all the same.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use common::reason;
use orion_core::{Result, TensorType};
use orion_formats::safetensors::{Dtype, SafetensorsHeader, parse};
use orion_formats::{LooksLike, Reason, ShardIndex};

fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 7);
    bytes
}

fn read(bytes: &[u8]) -> Result<SafetensorsHeader> {
    parse(bytes, bytes.len() as u64)
}

#[track_caller]
fn refused(header: &str, data: usize, expected: Reason) {
    let error = read(&file(header, data)).unwrap_err();
    assert_eq!(reason(&error), expected, "{error}");
}

const GOOD: &str = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"b":{"dtype":"I64","shape":[1],"data_offsets":[24,32]}}"#;

#[test]
fn the_sample_is_accepted() {
    let header = read(&file(GOOD, 32)).unwrap();
    assert_eq!(header.metadata["format"], "pt");
    assert_eq!(header.data_start, 8 + GOOD.len() as u64);
    assert_eq!(header.tensors[1].dtype, Dtype::I64);
    let model = header.model().unwrap();
    // Integer buffers are no weights.
    assert_eq!(model.tensors.len(), 1);
    assert_eq!((model.tensors[0].ty, model.tensors[0].bytes), (TensorType::F32, 24));
    assert_eq!(model.tensors[0].shape, [2, 3]);
}

#[test]
fn every_prefix_is_refused() {
    let bytes = file(GOOD, 32);
    for len in 0..bytes.len() {
        let error = parse(&bytes[..len], len as u64).unwrap_err();
        assert!(matches!(reason(&error), Reason::HeaderLength | Reason::IncompleteBuffer), "{len}: {error}");
    }
}

#[test]
fn header_length() {
    for bytes in [&b""[..], b"{", &[0; 7], &[0; 8], &[0; 100]] {
        assert_eq!(reason(&read(bytes).unwrap_err()), Reason::HeaderLength);
    }
    for len in [u64::MAX, 1 << 63, 3, 100_000_001] {
        let bytes = [&len.to_le_bytes()[..], b"{}"].concat();
        assert_eq!(reason(&read(&bytes).unwrap_err()), Reason::HeaderLength);
    }
    // More than is read, though the file would hold it.
    let bytes = [&(64u64 << 20).to_le_bytes()[..], b"{}", &[b' '; 600]].concat();
    assert_eq!(reason(&parse(&bytes, 1 << 40).unwrap_err()), Reason::HeaderLength);
}

#[test]
fn bad_header() {
    for header in [
        "{",
        "[]",
        "1",
        "null",
        "{}x",
        "{}{}",
        "\u{feff}{}",
        r#"{"a":1}"#,
        r#"{"a":{}}"#,
        r#"{"a":{"dtype":"F32","shape":[1]}}"#,
        r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0]}}"#,
        r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4,4]}}"#,
        r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#,
        r#"{"a":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}}"#,
        r#"{"a":{"dtype":"F32","shape":[18446744073709551616],"data_offsets":[0,4]}}"#,
        r#"{"a":{"dtype":"F32","shape":"1","data_offsets":[0,4]}}"#,
        r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"more":1}}"#,
        r#"{"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#,
        r#"{"a":{"dtype":1,"shape":[1],"data_offsets":[0,4]}}"#,
        r#"{"__metadata__":{"a":1}}"#,
        r#"{"__metadata__":{"a":{"b":"c"}}}"#,
        r#"{"__metadata__":[]}"#,
        r#"{"a":NaN}"#,
        "{/**/}",
        "{,}",
    ] {
        refused(header, 4, Reason::BadHeader);
    }
    let mut broken = file(r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#, 4);
    broken[10] = 0xff;
    assert_eq!(reason(&read(&broken).unwrap_err()), Reason::BadHeader);
    refused(&"[".repeat(100_000), 0, Reason::BadHeader);
    refused(&r#"{"a":"#.repeat(100_000), 0, Reason::BadHeader);
}

#[test]
fn white_space_either_side_is_accepted() {
    for header in ["{}\r \t\n", "\t\n{}\r ", "   {}   "] {
        assert_eq!(read(&file(header, 0)).unwrap().tensors, []);
    }
}

#[test]
fn duplicate_tensor() {
    let entry = r#""a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}"#;
    refused(&format!("{{{entry},{entry}}}"), 0, Reason::DuplicateTensor);
    let escaped = entry.replace("\"a\"", r#""\u0061""#);
    refused(&format!("{{{entry},{escaped}}}"), 0, Reason::DuplicateTensor);
}

#[test]
fn duplicate_metadata() {
    refused(r#"{"__metadata__":{"a":"b","a":"c"}}"#, 0, Reason::DuplicateKey);
    refused(r#"{"__metadata__":{},"__metadata__":{}}"#, 0, Reason::DuplicateKey);
}

#[test]
fn bad_info() {
    for (dtype, shape, begin, end) in [
        ("F32", "[2,2]", 0, 4),
        ("F32", "[1]", 4, 0),
        ("F16", "[1]", 0, 4),
        ("F4", "[1]", 0, 1),
        ("U8", "[]", 0, 0),
    ] {
        let header =
            format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}}}"#);
        refused(&header, 16, Reason::BadInfo);
    }
}

#[test]
fn shape_overflow() {
    for shape in
        ["[2,18446744073709551614]", "[0,18446744073709551615]", "[4294967296,4294967296]", "[1099511627777]"]
    {
        let header = format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":[0,0]}}}}"#);
        refused(&header, 0, Reason::ShapeOverflow);
    }
}

#[test]
fn incomplete_buffer() {
    refused(GOOD, 31, Reason::IncompleteBuffer);
    refused(GOOD, 33, Reason::IncompleteBuffer);
    refused("{}", 1, Reason::IncompleteBuffer);
    refused(
        r#"{"a":{"dtype":"U8","shape":[9],"data_offsets":[18446744073709551606,18446744073709551615]}}"#,
        0,
        Reason::IncompleteBuffer,
    );
}

#[test]
fn holes_and_overlaps() {
    let pair = |a: (u64, u64), b: (u64, u64)| {
        format!(
            r#"{{"a":{{"dtype":"U8","shape":[{}],"data_offsets":[{},{}]}},"b":{{"dtype":"U8","shape":[{}],"data_offsets":[{},{}]}}}}"#,
            a.1 - a.0,
            a.0,
            a.1,
            b.1 - b.0,
            b.0,
            b.1
        )
    };
    refused(&pair((0, 4), (8, 12)), 12, Reason::BadOffset);
    refused(&pair((1, 4), (4, 8)), 8, Reason::BadOffset);
    refused(&pair((0, 4), (2, 6)), 6, Reason::Overlap);
    refused(&pair((0, 4), (0, 4)), 4, Reason::Overlap);
    // Any order in the header is fine.
    let header = read(&file(&pair((4, 8), (0, 4)), 8)).unwrap();
    assert_eq!(header.tensors[0].name, "b");
}

#[test]
fn too_many_dims() {
    let ones = vec!["1"; 100_000].join(",");
    refused(
        &format!(r#"{{"a":{{"dtype":"U8","shape":[{ones}],"data_offsets":[0,1]}}}}"#),
        1,
        Reason::TooManyDims,
    );
}

#[test]
fn misaligned_tensors_are_accepted() {
    let header = r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"F32","shape":[1],"data_offsets":[1,5]}}"#;
    assert_eq!(read(&file(header, 5)).unwrap().tensors[1].bytes, 4);
}

#[test]
fn bad_name() {
    for name in ["../x", "", "a\\u0000b", "/etc/passwd", "a/../b", "..\\\\x", &"n".repeat(1025)] {
        let header = format!(r#"{{"{name}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}}}"#);
        refused(&header, 0, Reason::BadName);
    }
}

#[test]
fn unsupported_dtype() {
    let header = |dtype: &str| format!(r#"{{"a":{{"dtype":"{dtype}","shape":[8],"data_offsets":[0,8]}}}}"#);
    refused(&header("F128"), 8, Reason::UnsupportedDtype);
    refused(&header("f32"), 8, Reason::UnsupportedDtype);
    // Known to the format, not read as a weight.
    let error = read(&file(&header("F8_E4M3"), 8)).unwrap().model().unwrap_err();
    assert_eq!(reason(&error), Reason::UnsupportedDtype);
    assert_eq!(error.to_string(), "tensor a: type F8_E4M3 is not supported");
}

#[test]
fn too_many_tensors() {
    let entries: Vec<String> = (0..(1 << 18) + 1)
        .map(|i| format!(r#""{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#))
        .collect();
    refused(&format!("{{{}}}", entries.join(",")), 0, Reason::CountTooLarge);
}

#[test]
fn files_that_are_no_models_are_named() {
    for (bytes, kind) in [
        (&b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"[..], LooksLike::LfsPointer),
        (b"<html><body>404</body></html>", LooksLike::Html),
        (b"\x1f\x8b\x08\0\0\0\0\0\0\0\0\0", LooksLike::Gzip),
        (b"PK\x03\x04\x14\0\0\0\x08\0data.pkl", LooksLike::Zip),
        (b"\x80\x02}q\0(X\x01\0\0\0a", LooksLike::Pickle),
        (b"\x7fELF\x02\x01\x01\0\0\0\0\0", LooksLike::Elf),
        (b"GGUF\x03\0\0\0\0\0\0\0\0\0\0\0", LooksLike::Gguf),
        (b"<html>", LooksLike::Html),
    ] {
        assert_eq!(reason(&read(bytes).unwrap_err()), Reason::NotAModel(kind));
    }
}

fn index(map: &str) -> Result<ShardIndex> {
    ShardIndex::parse(format!(r#"{{"metadata":{{"total_size":8}},"weight_map":{map}}}"#).as_bytes())
}

#[test]
fn an_index_goes_both_ways() {
    let parsed = index(r#"{"b":"m-2.safetensors","a":"m-1.safetensors"}"#).unwrap();
    assert_eq!(parsed.total_bytes, Some(8));
    assert_eq!(parsed.files(), ["m-1.safetensors", "m-2.safetensors"]);
    assert_eq!(ShardIndex::parse(parsed.to_json().as_bytes()).unwrap(), parsed);
}

#[test]
fn path_escape() {
    for name in [
        "../x",
        "/etc/passwd",
        "C:\\\\x",
        "a/../../b",
        "%2e%2e/x",
        "a/b.safetensors",
        "..",
        ".hidden.safetensors",
        "",
    ] {
        let error = index(&format!(r#"{{"a":"{name}"}}"#)).unwrap_err();
        assert_eq!(reason(&error), Reason::PathEscape, "{name}");
    }
}

#[test]
fn bad_index() {
    for json in [
        "",
        "{",
        "[]",
        "{}",
        r#"{"metadata":{}}"#,
        r#"{"weight_map":{}}"#,
        r#"{"weight_map":[]}"#,
        r#"{"weight_map":{"a":1}}"#,
        r#"{"weight_map":{"a":null}}"#,
        r#"{"weight_map":{"a":"x.bin"}}"#,
        r#"{"weight_map":{"a":"x.safetensors"}} trailing"#,
        "\u{feff}{\"weight_map\":{\"a\":\"x.safetensors\"}}",
    ] {
        assert_eq!(reason(&ShardIndex::parse(json.as_bytes()).unwrap_err()), Reason::BadIndex, "{json}");
    }
    assert_eq!(
        reason(&index(r#"{"a":"x.safetensors","a":"y.safetensors"}"#).unwrap_err()),
        Reason::DuplicateTensor
    );
    assert_eq!(reason(&index(r#"{"../a":"x.safetensors"}"#).unwrap_err()), Reason::BadName);
}

#[test]
fn index_mismatch() {
    let shard = |names: &[&str]| {
        let entries: Vec<String> = names
            .iter()
            .enumerate()
            .map(|(i, name)| {
                format!(r#""{name}":{{"dtype":"F32","shape":[1],"data_offsets":[{},{}]}}"#, 4 * i, 4 * i + 4)
            })
            .collect();
        read(&file(&format!("{{{}}}", entries.join(",")), 4 * names.len())).unwrap()
    };
    let index = index(r#"{"a":"1.safetensors","b":"2.safetensors"}"#).unwrap();
    let model = index.join(&[shard(&["a"]), shard(&["b"])]).unwrap();
    assert_eq!(model.tensors.iter().map(|tensor| tensor.file).collect::<Vec<_>>(), [0, 1]);
    for shards in [
        vec![shard(&["a"]), shard(&[])],
        vec![shard(&["b"]), shard(&["a"])],
        vec![shard(&["a", "c"]), shard(&["b"])],
        vec![shard(&["a", "b"]), shard(&["b"])],
        vec![shard(&["a"])],
    ] {
        assert_eq!(reason(&index.join(&shards).unwrap_err()), Reason::IndexMismatch);
    }
}
