//! Opening models from disk.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use orion_core::{Digest, Error, ErrorKind, FileSpec, MetaValue, ModelFormat, TensorType, WeightSource};
use orion_formats::gguf::{GgufWriter, TensorSpec};
use orion_formats::safetensors::{self, Dtype, SafetensorsWriter};
use orion_formats::{LooksLike, Reason, ShardIndex};
use orion_loader::{Cache, MemorySource, open, open_files};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

fn gguf(metadata: &[(&str, MetaValue)], tensors: &[(&str, u8)]) -> Vec<u8> {
    let metadata = metadata.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
    let specs: Vec<_> =
        tensors.iter().map(|(name, _)| TensorSpec::new(*name, [2, 4], TensorType::F32)).collect();
    let mut writer = GgufWriter::start(Vec::new(), &metadata, &specs).unwrap();
    tensors.iter().for_each(|(_, byte)| writer.tensor(&[*byte; 32]).unwrap());
    writer.finish().unwrap()
}

fn split(no: u16, count: u16, total: i32, tensors: &[(&str, u8)]) -> Vec<u8> {
    let keys = [
        ("split.no", MetaValue::U16(no)),
        ("split.count", MetaValue::U16(count)),
        ("split.tensors.count", MetaValue::I32(total)),
    ];
    gguf(&keys, tensors)
}

fn shard(tensors: &[(&str, u8)]) -> Vec<u8> {
    let specs: Vec<_> =
        tensors.iter().map(|(name, _)| safetensors::TensorSpec::new(*name, [2], Dtype::F16)).collect();
    let mut writer = SafetensorsWriter::start(Vec::new(), &BTreeMap::new(), &specs).unwrap();
    tensors.iter().for_each(|(_, byte)| writer.tensor(&[*byte; 4]).unwrap());
    writer.finish().unwrap()
}

fn write(directory: &TempDir, files: &[(&str, &[u8])]) {
    for (name, bytes) in files {
        fs::write(directory.path().join(name), bytes).unwrap();
    }
}

fn contents(source: &Arc<dyn WeightSource>) -> Vec<(String, u8)> {
    let table = source.header().tensors.iter().enumerate();
    table.map(|(index, info)| (info.name.clone(), source.tensor(index).unwrap()[0])).collect()
}

fn owned(tensors: &[(&str, u8)]) -> Vec<(String, u8)> {
    tensors.iter().map(|(name, byte)| ((*name).to_owned(), *byte)).collect()
}

fn refused(path: &Path) -> Error {
    open(path).map(|_| ()).unwrap_err()
}

#[test]
fn a_gguf_file_under_any_name() {
    let directory = TempDir::new().unwrap();
    let bytes = gguf(&[("general.architecture", MetaValue::Str("llama".into()))], &[("a", 1), ("b", 2)]);
    write(&directory, &[("model.gguf", &bytes), ("blob", &bytes)]);
    for name in ["model.gguf", "blob"] {
        let source = open(directory.path().join(name)).unwrap();
        assert_eq!(source.header().format, ModelFormat::Gguf);
        assert_eq!(source.header().metadata["general.architecture"].as_str(), Some("llama"));
        assert_eq!(contents(&source), owned(&[("a", 1), ("b", 2)]));
        assert_eq!(source.tensor(2).unwrap_err().kind(), ErrorKind::NotFound);
    }
}

#[test]
fn a_split_gguf_opens_by_any_part() {
    let directory = TempDir::new().unwrap();
    let parts = [split(0, 2, 3, &[("a", 1)]), split(1, 2, 3, &[("b", 2), ("c", 3)])];
    write(&directory, &[("m-00001-of-00002.gguf", &parts[0]), ("m-00002-of-00002.gguf", &parts[1])]);
    for path in [
        directory.path().to_owned(),
        directory.path().join("m-00001-of-00002.gguf"),
        directory.path().join("m-00002-of-00002.gguf"),
    ] {
        assert_eq!(contents(&open(path).unwrap()), owned(&[("a", 1), ("b", 2), ("c", 3)]));
    }
    fs::remove_file(directory.path().join("m-00002-of-00002.gguf")).unwrap();
    let error = refused(&directory.path().join("m-00001-of-00002.gguf"));
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(
        error.to_string().contains("m-00002-of-00002.gguf: this part of the split model is missing"),
        "{error}"
    );
}

#[test]
fn a_part_under_another_name_is_refused() {
    let directory = TempDir::new().unwrap();
    write(&directory, &[("part.gguf", &split(0, 2, 3, &[("a", 1)]))]);
    let error = refused(&directory.path().join("part.gguf"));
    assert_eq!(Reason::of(&error), Some(Reason::BadSplit));
}

#[test]
fn a_safetensors_file_brings_its_side_files() {
    let directory = TempDir::new().unwrap();
    write(
        &directory,
        &[("model.safetensors", &shard(&[("a", 1)])), ("config.json", b"{}"), ("unrelated.txt", b"x")],
    );
    fs::create_dir(directory.path().join("1_Pooling")).unwrap();
    write(&directory, &[("1_Pooling/config.json", b"{\"p\":1}")]);
    for path in [directory.path().to_owned(), directory.path().join("model.safetensors")] {
        let source = open(path).unwrap();
        assert_eq!(
            source.header().side_files.keys().collect::<Vec<_>>(),
            ["1_Pooling/config.json", "config.json"]
        );
        assert_eq!(source.header().side_text("config.json").unwrap(), Some("{}"));
        assert_eq!(contents(&source), owned(&[("a", 1)]));
    }
}

#[test]
fn a_sharded_model_opens_by_index_and_directory() {
    let directory = TempDir::new().unwrap();
    let map = [("a", "model-1.safetensors"), ("b", "model-2.safetensors")];
    let index = ShardIndex::new(Some(8), map.map(|(k, v)| (k.to_owned(), v.to_owned())).into()).to_json();
    write(
        &directory,
        &[
            ("model.safetensors.index.json", index.as_bytes()),
            ("model-1.safetensors", &shard(&[("a", 1)])),
            ("model-2.safetensors", &shard(&[("b", 2)])),
            ("tokenizer.json", b"{}"),
        ],
    );
    for path in [directory.path().to_owned(), directory.path().join("model.safetensors.index.json")] {
        let source = open(path).unwrap();
        assert_eq!(contents(&source), owned(&[("a", 1), ("b", 2)]));
        assert!(source.header().side_files.contains_key("tokenizer.json"));
    }
    fs::remove_file(directory.path().join("model-2.safetensors")).unwrap();
    assert_eq!(refused(directory.path()).kind(), ErrorKind::NotFound);
}

#[test]
fn links_out_of_the_directory_are_refused_and_a_hub_cache_opens() {
    let root = TempDir::new().unwrap();
    let index = ShardIndex::new(None, [("a".to_owned(), "m.safetensors".to_owned())].into()).to_json();
    let repository = root.path().join("models--org--name");
    let snapshot = repository.join("snapshots/abc");
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(repository.join("blobs")).unwrap();
    fs::write(repository.join("blobs/123"), shard(&[("a", 1)])).unwrap();
    fs::write(root.path().join("secret.safetensors"), shard(&[("a", 1)])).unwrap();
    fs::write(snapshot.join("model.safetensors.index.json"), &index).unwrap();
    let link = snapshot.join("m.safetensors");
    std::os::unix::fs::symlink("../../blobs/123", &link).unwrap();
    assert_eq!(contents(&open(&snapshot).unwrap()), owned(&[("a", 1)]));
    fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink("../../../secret.safetensors", &link).unwrap();
    assert_eq!(Reason::of(&refused(&snapshot)), Some(Reason::PathEscape));
}

#[test]
fn unclear_and_missing_models_are_named() {
    let directory = TempDir::new().unwrap();
    assert_eq!(refused(directory.path()).kind(), ErrorKind::NotFound);
    assert_eq!(refused(&directory.path().join("no")).kind(), ErrorKind::NotFound);
    write(&directory, &[("a.gguf", &gguf(&[], &[])), ("b.gguf", &gguf(&[], &[]))]);
    let error = refused(directory.path());
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(error.to_string().ends_with("name one: a.gguf, b.gguf"), "{error}");
}

#[test]
fn files_that_are_no_models_are_named() {
    let directory = TempDir::new().unwrap();
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n";
    for name in ["a.gguf", "a.safetensors", "a.bin", "a"] {
        write(&directory, &[(name, pointer)]);
        let error = refused(&directory.path().join(name));
        assert_eq!(Reason::of(&error), Some(Reason::NotAModel(LooksLike::LfsPointer)), "{name}");
        assert!(error.to_string().contains(name), "{error}");
    }
    write(&directory, &[("empty", b""), ("noise", b"noise"), ("x.json", b"{}")]);
    assert_eq!(Reason::of(&refused(&directory.path().join("empty"))), Some(Reason::BadMagic));
    assert_eq!(Reason::of(&refused(&directory.path().join("noise"))), Some(Reason::BadMagic));
    assert_eq!(Reason::of(&refused(&directory.path().join("x.json"))), Some(Reason::BadIndex));
}

#[test]
fn devices_and_pipes_are_refused_without_waiting() {
    assert_eq!(refused(Path::new("/dev/zero")).kind(), ErrorKind::InvalidInput);
    let directory = TempDir::new().unwrap();
    let (path, made) = (directory.path().join("pipe.gguf"), std::process::Command::new("mkfifo"));
    let mut made = made;
    assert!(made.arg(&path).status().unwrap().success());
    assert_eq!(refused(&path).kind(), ErrorKind::InvalidInput);
}

#[test]
fn a_tensor_read_in_pieces_is_the_tensor() {
    let directory = TempDir::new().unwrap();
    let numbered: Vec<u8> = (0..32).collect();
    let specs =
        [TensorSpec::new("a", [2, 4], TensorType::F32), TensorSpec::new("b", [2, 4], TensorType::F32)];
    let mut writer = GgufWriter::start(Vec::new(), &BTreeMap::new(), &specs).unwrap();
    writer.tensor(&[7; 32]).unwrap();
    writer.tensor(&numbered).unwrap();
    write(&directory, &[("m.gguf", &writer.finish().unwrap())]);
    let source = open(directory.path().join("m.gguf")).unwrap();
    for (piece, sizes) in [(0, vec![1; 32]), (5, vec![5, 5, 5, 5, 5, 5, 2]), (32, vec![32]), (1000, vec![32])]
    {
        let (mut all, mut found) = (Vec::new(), Vec::new());
        let mut each = |bytes: &[u8]| {
            all.extend_from_slice(bytes);
            found.push(bytes.len());
            Ok(())
        };
        source.read(1, piece, &mut each).unwrap();
        assert_eq!((all, found), (numbered.clone(), sizes), "pieces of {piece}");
    }
    let stop = source.read(1, 8, &mut |_| Err(Error::invalid("enough"))).unwrap_err();
    assert_eq!(stop.to_string(), "enough");
    assert_eq!(source.read(2, 8, &mut |_| Ok(())).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn truncation_after_opening_is_an_error_and_replacement_is_not_seen() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("a.gguf");
    write(&directory, &[("a.gguf", &gguf(&[], &[("a", 1), ("b", 2)]))]);
    let source = open(&path).unwrap();
    write(&directory, &[("new", &gguf(&[], &[("a", 9), ("b", 9)]))]);
    fs::rename(directory.path().join("new"), &path).unwrap();
    assert_eq!(contents(&source), owned(&[("a", 1), ("b", 2)]));

    let source = open(&path).unwrap();
    let info = source.header().tensors[1].clone();
    fs::File::options().write(true).open(&path).unwrap().set_len(info.offset + 1).unwrap();
    assert_eq!(source.tensor(0).unwrap()[0], 9);
    let error = source.tensor(1).unwrap_err();
    assert_eq!(Reason::of(&error), Some(Reason::Truncated));
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().starts_with("tensor b: "), "{error}");
}

#[test]
fn memory_sources_check_what_they_are_given() {
    let source = MemorySource::new(ModelFormat::Safetensors)
        .side_file("config.json", *b"{}")
        .tensor("a", [2, 32], TensorType::Q8_0, vec![5; 68])
        .unwrap();
    assert_eq!(source.header().tensors[0].bytes, 68);
    assert_eq!(WeightSource::tensor(&source, 0).unwrap()[67], 5);
    assert_eq!(WeightSource::tensor(&source, 1).unwrap_err().kind(), ErrorKind::NotFound);
    for (shape, bytes) in
        [(vec![2, 32], 67), (vec![2, 16], 34), (vec![u64::MAX, 32], 34), (vec![u64::MAX, u64::MAX, 32], 0)]
    {
        let source = MemorySource::new(ModelFormat::Gguf);
        let error = source.tensor("a", shape, TensorType::Q8_0, vec![0; bytes]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
}

#[test]
fn files_that_are_not_what_the_catalogue_says_are_refused() {
    let directory = TempDir::new().unwrap();
    let bytes = gguf(&[], &[("a", 1), ("b", 2)]);
    write(&directory, &[("m.gguf", &bytes), ("tokenizer.json", b"{}")]);
    let digest = |bytes: &[u8]| Some(Digest(Sha256::digest(bytes).into()));
    let file = |name: &str, bytes: Option<u64>, digest: Option<Digest>| {
        let mut file = FileSpec::new(directory.path().join(name).to_string_lossy());
        (file.bytes, file.digest) = (bytes, digest);
        file
    };
    let weights = || file("m.gguf", Some(bytes.len() as u64), digest(&bytes));
    let cache = Cache::open(directory.path().join("cache")).unwrap();
    for cache in [None, Some(&cache), Some(&cache)] {
        open_files(&[file("tokenizer.json", None, digest(b"{}")), weights()], cache).unwrap();
        for wrong in [
            file("tokenizer.json", None, digest(b"[]")),
            file("tokenizer.json", Some(3), None),
            file("m.gguf", None, digest(b"")),
        ] {
            let error = open_files(&[wrong.clone(), weights()], cache).map(drop).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
            assert!(error.to_string().contains(&wrong.location), "{error}");
        }
    }
    // What was noted of a file does not outlive it.
    let mut flipped = bytes.clone();
    *flipped.last_mut().unwrap() ^= 1;
    write(&directory, &[("m.gguf", &flipped)]);
    assert_eq!(open_files(&[weights()], Some(&cache)).map(drop).unwrap_err().kind(), ErrorKind::Corrupt);
    assert_eq!(open_files(&[], None).map(drop).unwrap_err().kind(), ErrorKind::NotFound);
}
