//! What stands at a bound is accepted, what lies one beyond is refused; and what a message says of it.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::collections::BTreeMap;

use common::*;
use orion_core::{Digest, MetaValue, ModelFormat, TensorType, TileLayout};
use orion_formats::gguf::{self, parse};
use orion_formats::safetensors::{self, Dtype};
use orion_formats::{FileEntry, LooksLike, Reason, Shard, ShardIndex, ShardSet, ShardTensor, looks_like};

const U64: u32 = 10;

#[test]
fn the_largest_hyperparameters_are_accepted() {
    for (name, most) in [
        ("block_count", 512),
        ("context_length", 1 << 40),
        ("embedding_length", 1 << 24),
        ("rope.dimension_count", 1 << 20),
        ("attention.key_length", 1 << 20),
        ("attention.value_length", 1 << 20),
        ("attention.head_count", 1 << 16),
        ("attention.head_count_kv", 1u64 << 16),
    ] {
        let with = |value: u64| {
            let file = Gguf::empty().key("general.architecture", STRING, &text(b"llama"));
            file.key(&format!("llama.{name}"), U64, &value.to_le_bytes())
        };
        with(1).parse().unwrap();
        with(most).parse().unwrap();
        let error = with(most + 1).parse().unwrap_err();
        assert_eq!(reason(&error), Reason::BadHyperparam, "{name}");
        assert!(error.to_string().contains(&format!("llama.{name}")), "{error}");
    }
}

#[test]
fn heads_are_checked_where_there_are_any() {
    let base = |name: &str| Gguf::empty().key("general.architecture", STRING, &text(name.as_bytes()));
    let heads = |heads: u32, kv: u32| {
        base("llama")
            .u32("llama.embedding_length", 64)
            .u32("llama.attention.head_count", heads)
            .u32("llama.attention.head_count_kv", kv)
    };
    heads(64, 64).parse().unwrap();
    heads(64, 1).parse().unwrap();
    assert_eq!(heads(65, 65).refused(), Reason::BadHyperparam);
    // Recurrent in either spelling.
    base("rwkv6").u32("rwkv6.wkv.head_size", 64).u32("rwkv6.attention.head_count", 0).parse().unwrap();
    let other = base("rwkv6").u32("other.wkv.head_size", 64).u32("rwkv6.attention.head_count", 0);
    assert_eq!(other.refused(), Reason::BadHyperparam);
}

#[test]
fn vocabularies_have_values_of_their_own_type_for_every_token() {
    let base = |tokens: &[&str]| Gguf::empty().key("tokenizer.ggml.tokens", ARRAY, &strings(tokens));
    let four = |values: &[u32]| -> Vec<u8> { values.iter().flat_map(|value| value.to_le_bytes()).collect() };
    let (scores, types) = ("tokenizer.ggml.scores", "tokenizer.ggml.token_type");
    for (key, ty, fits) in [
        (scores, F32, true),
        (scores, I32, false),
        (scores, U32, false),
        (types, I32, true),
        (types, U32, true),
        (types, F32, false),
    ] {
        let file = base(&["ab", "b"]).key(key, ARRAY, &array(ty, 2, &four(&[0, 0])));
        assert_eq!(file.parse().is_ok(), fits, "{key} of type {ty}");
        let short = base(&["ab", "b"]).key(key, ARRAY, &array(ty, 1, &four(&[0])));
        assert_eq!(short.refused(), Reason::BadVocab);
    }
    // Type 6 is a byte: spelled, or itself.
    for ty in [I32, U32] {
        let byte = |token: &str| base(&["ab", token]).key(types, ARRAY, &array(ty, 2, &four(&[1, 6])));
        byte("<0xfF>").parse().unwrap();
        byte("x").parse().unwrap();
        for token in ["xy", "<0xfg>", "<0xgf>", "<1x00>"] {
            assert_eq!(byte(token).refused(), Reason::BadVocab, "{token}");
        }
    }
    base(&["a", "b"]).u32("tokenizer.ggml.eos_token_id", 1).parse().unwrap();
    let words = base(&["a"]).key("tokenizer.ggml.eos_token_id", STRING, &text(b"a"));
    assert_eq!(words.refused(), Reason::BadVocab);
}

#[test]
fn as_many_tensors_keys_and_strings_as_are_read() {
    let many = |tensors: usize| {
        let mut file = Gguf::empty();
        file.tensors = (0..tensors).map(|n| tensor(n.to_string().as_bytes(), &[0], 0, 0)).collect();
        file
    };
    assert_eq!(many(1 << 18).parse().unwrap().model.tensors.len(), 1 << 18);
    assert_eq!(many((1 << 18) + 1).refused(), Reason::CountTooLarge);
    let many = |keys: usize| {
        let mut file = Gguf::empty();
        file.keys = (0..keys).map(|n| key(&n.to_string(), U8, &[0])).collect();
        file
    };
    assert_eq!(many(1 << 16).parse().unwrap().model.metadata.len(), 1 << 16);
    assert_eq!(many((1 << 16) + 1).refused(), Reason::CountTooLarge);
    let many = |texts: u64| {
        let array = array(STRING, texts, &vec![0; 8 * texts as usize]);
        Gguf::empty().key("k", ARRAY, &array)
    };
    many(1 << 20).parse().unwrap();
    assert_eq!(many((1 << 20) + 1).refused(), Reason::LengthTooLarge);
    let arrays = |count: usize| {
        Gguf::empty().key("k", ARRAY, &array(ARRAY, count as u64, &array(U8, 0, &[]).repeat(count)))
    };
    arrays(1 << 16).parse().unwrap();
    assert_eq!(arrays((1 << 16) + 1).refused(), Reason::CountTooLarge);
}

#[test]
fn numbers_arrive_whole_across_the_pieces_that_are_read() {
    let numbers: Vec<u64> = (0..20_000).map(|n| n * 0x0001_0001_0001).collect();
    let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    let long = "lang ".repeat(40_000);
    let header = Gguf::empty()
        .key("numbers", ARRAY, &array(U64, numbers.len() as u64, &bytes))
        .key("long", STRING, &text(long.as_bytes()))
        .parse()
        .unwrap();
    assert_eq!(header.model.metadata["numbers"], MetaValue::Array(orion_core::MetaArray::U64(numbers)));
    assert_eq!(header.model.metadata["long"], MetaValue::Str(long));
}

#[test]
fn alignments_go_up_to_a_mebibyte() {
    Gguf::empty().u32("general.alignment", 1 << 20).parse().unwrap();
    let metadata = |value: u32| [("general.alignment".to_owned(), MetaValue::U32(value))].into();
    gguf::GgufWriter::start(Vec::new(), &metadata(1 << 20), &[]).unwrap();
    gguf::GgufWriter::start(Vec::new(), &metadata(1 << 21), &[]).unwrap_err();
}

#[test]
fn tensors_have_up_to_2_to_the_40_elements() {
    let offsets = |file: Gguf| {
        let bytes = file.bytes();
        parse(&bytes, 1 << 45)
    };
    offsets(Gguf::empty().tensor(b"a", &[1 << 40], 0, 0)).unwrap();
    offsets(Gguf::empty().tensor(b"a", &[1 << 20, 0, 1 << 20], 0, 0)).unwrap();
    let error = offsets(Gguf::empty().tensor(b"a", &[(1 << 40) + 1], 0, 0)).unwrap_err();
    assert_eq!(reason(&error), Reason::ShapeOverflow);
}

#[test]
fn types_that_are_not_read_are_named() {
    for (id, name) in [
        (9, "Q8_1"),
        (15, "Q8_K"),
        (16, "IQ2_XXS"),
        (17, "IQ2_XS"),
        (18, "IQ3_XXS"),
        (19, "IQ1_S"),
        (21, "IQ3_S"),
        (22, "IQ2_S"),
        (24, "I8"),
        (25, "I16"),
        (26, "I32"),
        (27, "I64"),
        (28, "F64"),
        (29, "IQ1_M"),
        (34, "TQ1_0"),
        (35, "TQ2_0"),
        (39, "MXFP4"),
        (40, "NVFP4"),
    ] {
        let error = Gguf::empty().tensor(b"a", &[256], id, 0).data(4096).parse().unwrap_err();
        assert_eq!(error.to_string(), format!("tensor a: type {name} is not supported"));
    }
    let error = Gguf::empty().tensor(b"a", &[256], 99, 0).data(4096).parse().unwrap_err();
    assert_eq!(error.to_string(), "tensor a: unknown type 99");
}

#[test]
fn versions_of_the_other_byte_order_are_named() {
    let message = |version: u32| {
        let mut file = sample();
        file.version = version;
        file.parse().unwrap_err().to_string()
    };
    assert!(message(3u32.swap_bytes()).contains("big-endian"));
    for version in [0, 1, 4, 0x0103_0003] {
        let message = message(version);
        assert!(!message.contains("big-endian") && message.contains(&version.to_string()), "{message}");
    }
}

#[test]
fn what_is_no_model_is_named_in_words() {
    let tar = [&[b'a'; 257][..], b"ustar\0"].concat();
    for (start, words) in [
        (&b"version https://git-lfs.github.com/spec/v1\n"[..], "a Git LFS pointer, run `git lfs pull`"),
        (b"<!doctype html>", "an HTML page"),
        (b"<head>", "an HTML page"),
        (b"<Error><Code>AccessDenied", "an XML document"),
        (b"\x1f\x8b\x08\0", "gzip data"),
        (b"PK\x05\x06", "a zip archive (perhaps a PyTorch checkpoint)"),
        (b"\x80\x02c", "a Python pickle"),
        (b"\x7fELF", "an ELF program"),
        (b"MZ\x90\0", "a Windows program"),
        (b"\x28\xb5\x2f\xfd", "zstd data"),
        (b"\xfd7zXZ\0", "xz data"),
        (b"BZh9", "bzip2 data"),
        (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
        (&tar, "a tar archive"),
        (b"%PDF-1.7", "a PDF document"),
        (b"\x93NUMPY", "a NumPy array"),
        (b"\x89HDF\r\n", "an HDF5 file"),
        (b"algg", "a ggml file older than GGUF"),
        (b"GGUF", "a GGUF file"),
    ] {
        assert_eq!(looks_like(start).unwrap().to_string(), words);
    }
    let error = parse(b"PK\x03\x04\0\0\0\0", 8).unwrap_err();
    assert!(error.to_string().ends_with(LooksLike::Zip.as_str()), "{error}");
}

fn table(metadata: &str, tensor: &str, data: usize) -> orion_core::Result<safetensors::SafetensorsHeader> {
    let header = format!(r#"{{"__metadata__":{metadata},"a":{tensor}}}"#);
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.resize(file.len() + data, 0);
    safetensors::parse(&file, file.len() as u64)
}

#[test]
fn a_safetensors_header_says_what_it_expected() {
    let good = r#"{"dtype":"U8","shape":[1],"data_offsets":[0,1]}"#;
    table("{}", good, 1).unwrap();
    for (metadata, tensor, expected) in [
        ("{}", r#"{"dtype":"U8","shape":5,"data_offsets":[0,1]}"#, "expected a list of dimensions"),
        ("[]", good, "expected a map from strings to strings"),
    ] {
        let error = table(metadata, tensor, 1).unwrap_err();
        assert_eq!(reason(&error), Reason::BadHeader);
        assert!(error.to_string().contains(expected), "{error}");
    }
    let error = ShardIndex::parse(br#"{"weight_map":[]}"#).unwrap_err();
    assert!(error.to_string().contains("expected a map from tensor names to file names"), "{error}");
}

#[test]
fn safetensors_have_up_to_8_dimensions_and_whole_bytes() {
    let tensor = |dtype: &str, shape: &str, bytes: usize| {
        table("{}", &format!(r#"{{"dtype":"{dtype}","shape":{shape},"data_offsets":[0,{bytes}]}}"#), bytes)
    };
    tensor("U8", "[1,1,1,1,1,1,1,3]", 3).unwrap();
    assert_eq!(reason(&tensor("U8", "[1,1,1,1,1,1,1,1,3]", 3).unwrap_err()), Reason::TooManyDims);
    tensor("F4", "[2]", 1).unwrap();
    for bytes in [1, 2] {
        assert_eq!(reason(&tensor("F4", "[3]", bytes).unwrap_err()), Reason::BadInfo);
    }
    let spec = |shape: &[u64], dtype| safetensors::TensorSpec::new("a", shape, dtype);
    assert_eq!(spec(&[1, 1, 1, 1, 1, 1, 1, 3], Dtype::F16).bytes().unwrap(), 6);
    assert_eq!(spec(&[2, 3], Dtype::F4).bytes().unwrap(), 3);
    spec(&[1; 9], Dtype::F16).bytes().unwrap_err();
    spec(&[3], Dtype::F4).bytes().unwrap_err();
}

#[test]
fn a_safetensors_file_with_the_most_tensors() {
    let entries: Vec<String> =
        (0..1 << 18).map(|i| format!(r#""{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#)).collect();
    let header = format!("{{{}}}", entries.join(","));
    let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
    assert_eq!(safetensors::parse(&file, file.len() as u64).unwrap().tensors.len(), 1 << 18);
}

#[test]
fn keys_that_stand_twice_are_named() {
    let tensor = r#"{"dtype":"U8","shape":[0],"data_offsets":[0,0]}"#;
    let error = table(r#"{"x":"1","x":"2"}"#, tensor, 0).unwrap_err();
    assert_eq!(error.to_string(), "key x: appears twice");
    let error = table("{}", &format!(r#"{tensor},"__metadata__":{{}}"#), 0).unwrap_err();
    assert_eq!(error.to_string(), "key __metadata__: appears twice");
}

#[test]
fn writers_pad_and_say_how_long_a_file_will_be() {
    let metadata: BTreeMap<String, MetaValue> = [("a".to_owned(), MetaValue::U8(1))].into();
    let specs = [3, 8].map(|n| gguf::TensorSpec::new(format!("t{n}"), [n], TensorType::F32));
    let mut writer = gguf::GgufWriter::start(Vec::new(), &metadata, &specs).unwrap();
    writer.tensor(&[1; 12]).unwrap();
    writer.tensor(&[2; 32]).unwrap();
    assert!(writer.tensor(&[]).unwrap_err().to_string().contains("more data than tensors"));
    let file = writer.finish().unwrap();
    assert_eq!(file.len() as u64, gguf::file_bytes(&metadata, &specs).unwrap());
    let start = file.len() - 64;
    assert_eq!(file[start..], [[&[1; 12][..], &[0; 20]].concat(), vec![2; 32]].concat());

    let specs = [safetensors::TensorSpec::new("a", [3], Dtype::U8)];
    let mut writer = safetensors::SafetensorsWriter::start(Vec::new(), &BTreeMap::new(), &specs).unwrap();
    writer.tensor(&[1, 2, 3]).unwrap();
    writer.tensor(&[]).unwrap_err();
    let file = writer.finish().unwrap();
    let start = safetensors::data_offset(&BTreeMap::new(), &specs).unwrap();
    assert_eq!((start % 64, file.len() as u64), (0, start + 3));
    assert_eq!(start, safetensors::parse(&file, file.len() as u64).unwrap().data_start);
    let mut writer = safetensors::SafetensorsWriter::start(Vec::new(), &BTreeMap::new(), &specs).unwrap();
    writer.tensor(&[1, 2]).unwrap_err();
    let writer = safetensors::SafetensorsWriter::start(Vec::new(), &BTreeMap::new(), &specs).unwrap();
    writer.finish().unwrap_err();
}

#[test]
fn writers_take_keys_as_long_as_readers_do() {
    let start = |key: &str| {
        let metadata = [(key.to_owned(), MetaValue::U8(0))].into();
        gguf::GgufWriter::start(Vec::new(), &metadata, &[]).map(|_| ())
    };
    start(&"k".repeat(65_535)).unwrap();
    start(&"k".repeat(65_536)).unwrap_err();
    start("a\nb").unwrap_err();
    let four = gguf::TensorSpec::new("a", [1, 1, 1, 2], TensorType::F32);
    gguf::GgufWriter::start(Vec::new(), &BTreeMap::new(), &[four]).unwrap();
}

fn set() -> ShardSet {
    let entry = |file: &str, bytes| FileEntry { file: file.into(), bytes, digest: Digest([7; 32]) };
    let tensor = |name: &str, offset| ShardTensor {
        name: name.into(),
        shape: vec![1, 1, 1, 1, 1, 1, 1, 16],
        ty: TensorType::F32,
        layout: TileLayout::RowMajor,
        shard: 0,
        offset,
        bytes: 64,
    };
    ShardSet {
        model_format: ModelFormat::Gguf,
        chunk_bytes: 1 << 16,
        metadata: None,
        side_files: vec![entry("config.json", 1 << 48)],
        shards: vec![Shard { entry: entry("shard-0.bin", 128), chunks: vec![Digest([1; 32])] }],
        tensors: vec![tensor("a", 0), tensor("b", 64)],
    }
}

#[test]
fn a_shard_set_at_its_bounds() {
    // Tensors side by side up to the end of the shard, and a side file as large as any may be.
    set().to_json().unwrap();
    let changed = |change: fn(&mut ShardSet)| {
        let mut set = set();
        change(&mut set);
        set.to_json().map(|json| assert_eq!(ShardSet::parse(json.as_bytes()).unwrap(), set))
    };
    changed(|set| set.chunk_bytes = 1 << 26).unwrap();
    for change in [
        (|set| set.chunk_bytes = 1 << 27) as fn(&mut ShardSet),
        |set| set.chunk_bytes = 1 << 15,
        |set| set.chunk_bytes = 3 << 16,
        |set| set.side_files[0].bytes += 1,
        |set| set.tensors[1].offset = 0,
        |set| set.tensors[1].bytes = 128,
        |set| set.shards[0].entry.bytes = 127,
        |set| set.shards[0].chunks.push(Digest([2; 32])),
        |set| set.tensors[0].shape.push(1),
    ] {
        changed(change).unwrap_err();
    }
    // Tiles may pad, and never drop.
    changed(|set| {
        set.tensors.pop();
        set.tensors[0].layout = TileLayout::Tiles16;
        set.tensors[0].bytes = 128;
    })
    .unwrap();
    changed(|set| {
        set.tensors[0].layout = TileLayout::Tiles16;
        set.tensors[0].bytes = 63;
    })
    .unwrap_err();
}

#[test]
fn a_shard_set_with_the_most_shards() {
    let shards = |count: usize| {
        let mut set = set();
        let empty = |n: usize| Shard {
            entry: FileEntry { file: format!("s{n}"), bytes: 0, digest: Digest([7; 32]) },
            chunks: Vec::new(),
        };
        set.shards.extend((1..count).map(empty));
        set.to_json().map(|_| ())
    };
    shards(1 << 16).unwrap();
    assert_eq!(reason(&shards((1 << 16) + 1).unwrap_err()), Reason::CountTooLarge);
    let mut set = set();
    set.tensors = vec![set.tensors[0].clone(); (1 << 18) + 1];
    assert_eq!(reason(&set.to_json().unwrap_err()), Reason::CountTooLarge);
}

#[test]
fn file_names_of_up_to_255_bytes() {
    let index = |name: &str| {
        let json = format!(r#"{{"weight_map":{{"a":"{name}"}}}}"#);
        ShardIndex::parse(json.as_bytes())
    };
    index(&format!("{}.safetensors", "n".repeat(243))).unwrap();
    let error = index(&format!("{}.safetensors", "n".repeat(244))).unwrap_err();
    assert_eq!(reason(&error), Reason::PathEscape);
}
