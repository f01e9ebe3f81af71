//! One named test per class of malformed GGUF file, and what must be accepted all the same.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use common::*;
use orion_core::{ErrorKind, MetaArray, MetaValue, TensorType};
use orion_formats::gguf::parse;
use orion_formats::{LooksLike, Reason};

#[test]
fn the_sample_is_accepted() {
    let header = sample().parse().unwrap();
    assert_eq!((header.version, header.alignment), (3, 32));
    assert_eq!(header.data_start % 32, 0);
    assert_eq!(header.model.tensors[0].shape, [4, 64]);
    assert_eq!(header.model.tensors[0].ty, TensorType::Q8_0);
    assert_eq!(header.model.tensors[1].offset, header.data_start + 288);
    assert_eq!(header.model.metadata["flag"], MetaValue::Bool(true));
    assert_eq!(
        header.model.metadata["nested"],
        MetaValue::Array(MetaArray::Array(vec![MetaArray::U8(b"abc".to_vec()), MetaArray::I8(vec![100])]))
    );
}

#[test]
fn every_prefix_is_truncated() {
    let file = sample().bytes();
    assert!((1500..3000).contains(&file.len()), "{}", file.len());
    for len in 0..file.len() {
        let error = parse(&file[..len], len as u64).unwrap_err();
        assert_eq!(reason(&error), Reason::Truncated, "{len}: {error}");
    }
}

#[test]
fn a_file_that_shrinks_while_it_is_read_is_truncated() {
    let file = sample().bytes();
    let error = parse(&file[..200], file.len() as u64).unwrap_err();
    assert_eq!(reason(&error), Reason::Truncated);
}

#[test]
fn bad_magic() {
    for magic in [*b"FUGG", *b"GGJT", *b"gguf", [0; 4]] {
        let mut file = sample();
        file.magic = magic;
        assert_eq!(file.refused(), Reason::BadMagic);
    }
    assert_eq!(reason(&parse(b"GG", 2).unwrap_err()), Reason::Truncated);
    assert_eq!(reason(&parse(b"ab", 2).unwrap_err()), Reason::BadMagic);
}

#[test]
fn files_that_are_no_models_are_named() {
    for (bytes, kind) in [
        (&b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"[..], LooksLike::LfsPointer),
        (b"<!DOCTYPE html><html></html>", LooksLike::Html),
        (b"\x1f\x8b\x08\0\0\0\0\0", LooksLike::Gzip),
        (b"PK\x03\x04\0\0\0\0data.pkl", LooksLike::Zip),
        (b"\x80\x02}q\0.", LooksLike::Pickle),
        (b"\x7fELF\x02\x01\x01\0", LooksLike::Elf),
        (b"lmgg\0\0\0\0", LooksLike::LegacyGgml),
    ] {
        let error = parse(bytes, bytes.len() as u64).unwrap_err();
        assert_eq!(reason(&error), Reason::NotAModel(kind));
        assert_eq!(error.kind(), ErrorKind::Corrupt);
    }
}

#[test]
fn unsupported_version() {
    for version in [0, 1, 4, u32::MAX, 3u32.swap_bytes()] {
        let mut file = sample();
        file.version = version;
        let error = file.parse().unwrap_err();
        assert_eq!((reason(&error), error.kind()), (Reason::UnsupportedVersion, ErrorKind::Unsupported));
    }
    let mut file = sample();
    file.version = 2;
    file.parse().unwrap();
}

#[test]
fn count_too_large() {
    for count in [u64::MAX, 1 << 30, 1 << 63, u64::MAX / 24, u64::MAX / 13 + 1] {
        let mut file = Gguf::empty();
        file.tensor_count = Some(count);
        assert_eq!(file.refused(), Reason::CountTooLarge);
        let mut file = Gguf::empty();
        file.key_count = Some(count);
        assert_eq!(file.refused(), Reason::CountTooLarge);
    }
    let mut file = Gguf::empty();
    file.tensor_count = Some(1000);
    assert_eq!(file.refused(), Reason::Truncated);
}

#[test]
fn key_length() {
    for (len, expected) in [
        (u64::MAX, Reason::LengthTooLarge),
        (1 << 30, Reason::LengthTooLarge),
        (1 << 63, Reason::LengthTooLarge),
        (100, Reason::Truncated),
    ] {
        let mut key = key("k", U8, &[0]);
        key[..8].copy_from_slice(&len.to_le_bytes());
        assert_eq!(Gguf::empty().raw_key(&key).refused(), expected);
    }
}

#[test]
fn string_length() {
    for (len, expected) in
        [(u64::MAX, Reason::LengthTooLarge), (1 << 30, Reason::LengthTooLarge), (6, Reason::Truncated)]
    {
        let value = [&len.to_le_bytes()[..], b"hello"].concat();
        assert_eq!(Gguf::empty().key("k", STRING, &value).refused(), expected);
        let array = array(STRING, 1, &value);
        assert_eq!(Gguf::empty().key("k", ARRAY, &array).refused(), expected);
    }
}

#[test]
fn bad_key() {
    assert_eq!(Gguf::empty().key("", U8, &[0]).refused(), Reason::BadKey);
    assert_eq!(Gguf::empty().key("a\0b", U8, &[0]).refused(), Reason::BadKey);
    let broken = [&text(b"a\xff")[..], &U8.to_le_bytes(), &[0]].concat();
    assert_eq!(Gguf::empty().raw_key(&broken).refused(), Reason::BadKey);
    let long = "k".repeat(65_535);
    Gguf::empty().key(&long, U8, &[0]).parse().unwrap();
    assert_eq!(Gguf::empty().key(&(long + "k"), U8, &[0]).refused(), Reason::LengthTooLarge);
}

#[test]
fn an_empty_key_in_37_bytes() {
    let file = Gguf::empty().key("", U8, &[0]).bytes();
    assert_eq!(file.len(), 37);
    assert_eq!(reason(&parse(&file, 37).unwrap_err()), Reason::BadKey);
}

#[test]
fn duplicate_key() {
    let error = Gguf::empty().u32("a", 1).u32("a", 1).parse().unwrap_err();
    assert_eq!(reason(&error), Reason::DuplicateKey);
    assert!(error.to_string().starts_with("key a: "), "{error}");
}

#[test]
fn bad_type() {
    for ty in [13, 99, u32::MAX] {
        assert_eq!(Gguf::empty().key("k", ty, &[0; 16]).refused(), Reason::BadType);
        assert_eq!(Gguf::empty().key("k", ARRAY, &array(ty, 1, &[0; 16])).refused(), Reason::BadType);
    }
    for byte in [2, 255] {
        assert_eq!(Gguf::empty().key("k", BOOL, &[byte]).refused(), Reason::BadType);
        assert_eq!(Gguf::empty().key("k", ARRAY, &array(BOOL, 2, &[0, byte])).refused(), Reason::BadType);
    }
}

#[test]
fn bad_text() {
    assert_eq!(Gguf::empty().key("k", STRING, &text(b"\xff\xfe")).refused(), Reason::BadText);
    // Vocabularies hold bytes that are no UTF-8.
    let tokens = array(STRING, 1, &text(b"\xff\xfe"));
    let header = Gguf::empty().key("k", ARRAY, &tokens).parse().unwrap();
    assert_eq!(header.model.metadata["k"].as_strings().unwrap().get(0), Some(&b"\xff\xfe"[..]));
}

#[test]
fn array_length() {
    for len in [u64::MAX, 1 << 40, 1 << 61, (64 << 20) + 1] {
        for ty in [U8, F32, STRING, ARRAY, 12] {
            let array = array(ty, len, &[0; 64]);
            assert_eq!(Gguf::empty().key("k", ARRAY, &array).refused(), Reason::LengthTooLarge);
        }
    }
    assert_eq!(Gguf::empty().key("k", ARRAY, &array(F32, 5, &[0; 16])).refused(), Reason::Truncated);
}

#[test]
fn header_too_long() {
    let array = array(10, 64 << 20, &[]);
    let file = Gguf::empty().key("k", ARRAY, &array).bytes();
    assert_eq!(reason(&parse(&file, 1 << 40).unwrap_err()), Reason::HeaderLength);
}

#[test]
fn a_large_byte_array_is_kept_at_its_own_width() {
    let array = array(U8, 64_000_000, &vec![7; 64_000_000]);
    let header = Gguf::empty().key("k", ARRAY, &array).parse().unwrap();
    assert_eq!(header.model.metadata["k"], MetaValue::Array(MetaArray::U8(vec![7; 64_000_000])));
}

#[test]
fn nested_too_deep() {
    let nested = |depth: usize| {
        let mut value = array(U8, 0, &[]);
        for _ in 1..depth {
            value = array(ARRAY, 1, &value);
        }
        Gguf::empty().key("k", ARRAY, &value)
    };
    nested(64).parse().unwrap();
    assert_eq!(nested(65).refused(), Reason::TooDeep);
    let deep: Vec<u8> = array(ARRAY, 1, &[]).repeat(100_000);
    assert_eq!(Gguf::empty().key("k", ARRAY, &deep).refused(), Reason::TooDeep);
}

#[test]
fn too_many_nested_arrays() {
    let many = array(ARRAY, 70_000, &array(U8, 0, &[]).repeat(70_000));
    assert_eq!(Gguf::empty().key("k", ARRAY, &many).refused(), Reason::CountTooLarge);
}

#[test]
fn bad_alignment() {
    for value in [0, 3, 13, 33, 1 << 31, u32::MAX, 1 << 21] {
        assert_eq!(sample().u32("general.alignment", value).refused(), Reason::BadAlignment);
    }
    assert_eq!(sample().key("general.alignment", I32, &13i32.to_le_bytes()).refused(), Reason::BadAlignment);
    assert_eq!(sample().key("general.alignment", I32, &32i32.to_le_bytes()).refused(), Reason::BadAlignment);
    assert_eq!(sample().key("general.alignment", STRING, &text(b"32")).refused(), Reason::BadAlignment);
    assert_eq!(Gguf::empty().u32("general.alignment", 0).refused(), Reason::BadAlignment);
}

#[test]
fn custom_alignment_is_obeyed() {
    for alignment in [1, 8, 64, 4096] {
        let mut file = Gguf::empty()
            .u32("general.alignment", alignment)
            .tensor(b"a", &[5], 0, 0)
            .tensor(b"b", &[5], 0, 20u64.next_multiple_of(alignment.into()))
            .data(20usize.next_multiple_of(alignment as usize) * 2);
        file.alignment = alignment as usize;
        let header = file.parse().unwrap();
        assert_eq!(header.alignment, u64::from(alignment));
        assert_eq!(header.data_start % u64::from(alignment), 0);
    }
}

#[test]
fn inconsistent_alignment() {
    let file = Gguf::empty()
        .u32("general.alignment", 64)
        .tensor(b"a", &[8], 0, 0)
        .tensor(b"b", &[8], 0, 32)
        .data(96);
    assert_eq!(file.refused(), Reason::Overlap);
    let file =
        Gguf::empty().u32("general.alignment", 8).tensor(b"a", &[2], 0, 0).tensor(b"b", &[8], 0, 32).data(64);
    assert_eq!(file.refused(), Reason::BadOffset);
}

#[test]
fn bad_tensor_name() {
    for name in [
        &b""[..],
        b"a\0b",
        b"a\nb",
        &[b'x'; 64],
        b"\xff",
        b"../x",
        b"/x",
        b"a/../b",
        b"a\\..\\b",
        &[b'x'; 60_000],
    ] {
        assert_eq!(Gguf::empty().tensor(name, &[1], 0, 0).data(32).refused(), Reason::BadName);
    }
    Gguf::empty().tensor(&[b'x'; 63], &[1], 0, 0).data(32).parse().unwrap();
    Gguf::empty().tensor("größe.weight".as_bytes(), &[1], 0, 0).data(32).parse().unwrap();
}

#[test]
fn too_many_dims() {
    assert_eq!(Gguf::empty().tensor(b"a", &[1; 5], 0, 0).data(32).refused(), Reason::TooManyDims);
    let mut line = tensor(b"a", &[1], 0, 0);
    line[9..13].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(Gguf::empty().raw_tensor(&line).data(32).refused(), Reason::TooManyDims);
}

#[test]
fn shape_overflow() {
    for dims in [
        &[1 << 32, 1 << 32][..],
        &[(1 << 42) + 1],
        &[u64::MAX],
        &[1 << 63, 2],
        &[0, u64::MAX],
        &[1 << 16, 1 << 16, 1 << 16, 1 << 16],
        &[1 << 21, 1 << 21, 1 << 22],
    ] {
        assert_eq!(Gguf::empty().tensor(b"a", dims, 0, 0).data(32).refused(), Reason::ShapeOverflow);
    }
}

#[test]
fn sum_of_sizes_beyond_the_file() {
    let huge = 1 << 40;
    let file = Gguf::empty().tensor(b"a", &[huge], 0, 0).tensor(b"b", &[huge], 0, 4 * huge).data(64);
    assert_eq!(file.refused(), Reason::Truncated);
    let file = Gguf::empty().tensor(b"a", &[8], 0, 0).tensor(b"b", &[huge], 0, u64::MAX - 31).data(64);
    assert_eq!(file.refused(), Reason::OutOfBounds);
}

#[test]
fn unsupported_dtype() {
    for ty in [4, 5, 9, 15, 16, 24, 28, 31, 36, 39, 99, u32::MAX] {
        let error = Gguf::empty().tensor(b"blk.0.x", &[256], ty, 0).data(4096).parse().unwrap_err();
        assert_eq!((reason(&error), error.kind()), (Reason::UnsupportedDtype, ErrorKind::Unsupported));
        assert!(error.to_string().starts_with("tensor blk.0.x: "), "{error}");
    }
}

#[test]
fn every_listed_type_is_accepted() {
    for &ty in TensorType::ALL {
        let file = Gguf::empty().tensor(b"a", &[256], ty.ggml_id(), 0).data(1024);
        assert_eq!(file.parse().unwrap().model.tensors[0].ty, ty);
    }
}

#[test]
fn out_of_bounds() {
    for offset in [u64::MAX, u64::MAX - 31, 1 << 40, 64] {
        assert_eq!(Gguf::empty().tensor(b"a", &[8], 0, offset).data(32).refused(), Reason::OutOfBounds);
    }
}

#[test]
fn overlap() {
    let file = Gguf::empty().tensor(b"a", &[16], 0, 0).tensor(b"b", &[8], 0, 32).data(96);
    assert_eq!(file.refused(), Reason::Overlap);
    let file = Gguf::empty().tensor(b"a", &[8], 0, 0).tensor(b"b", &[8], 0, 0).data(96);
    assert_eq!(file.refused(), Reason::Overlap);
}

#[test]
fn bad_offset() {
    // Misaligned, and with a hole.
    for offset in [1, 33, 64] {
        let file = Gguf::empty().tensor(b"a", &[8], 0, 0).tensor(b"b", &[8], 0, offset).data(256);
        let expected = if offset < 32 { Reason::Overlap } else { Reason::BadOffset };
        assert_eq!(file.refused(), expected);
    }
    assert_eq!(Gguf::empty().tensor(b"a", &[8], 0, 4).data(256).refused(), Reason::BadOffset);
}

#[test]
fn duplicate_tensor() {
    let file = Gguf::empty().tensor(b"a", &[8], 0, 0).tensor(b"a", &[8], 0, 32).data(64);
    assert_eq!(file.refused(), Reason::DuplicateTensor);
}

#[test]
fn data_one_byte_short() {
    let file = Gguf::empty().tensor(b"a", &[8], 0, 0).tensor(b"b", &[5], 0, 32);
    assert_eq!(file.clone().data(51).refused(), Reason::Truncated);
    // Cut inside the padding, which some writers leave out as a whole.
    assert_eq!(file.clone().data(63).refused(), Reason::Truncated);
    file.clone().data(52).parse().unwrap();
    file.data(64).parse().unwrap();
}

#[test]
fn bad_block() {
    for (ty, dims) in [(8, &[33][..]), (12, &[128]), (2, &[16, 2]), (12, &[576, 256])] {
        let error = Gguf::empty().tensor(b"a", dims, ty, 0).data(1 << 20).parse().unwrap_err();
        assert_eq!(reason(&error), Reason::BadBlock);
    }
}

#[test]
fn a_zero_dimension_is_accepted() {
    let file = Gguf::empty().tensor(b"a", &[0, 8], 0, 0).tensor(b"b", &[8], 0, 0).data(32);
    let header = file.parse().unwrap();
    assert_eq!(header.model.tensors[0].bytes, 0);
    assert_eq!(header.model.tensors[1].bytes, 32);
}

#[test]
fn a_scalar_tensor_is_accepted() {
    assert_eq!(Gguf::empty().tensor(b"a", &[], 0, 0).data(32).parse().unwrap().model.tensors[0].bytes, 4);
}

#[test]
fn files_without_tensors_are_accepted() {
    assert_eq!(Gguf::empty().bytes().len(), 24);
    Gguf::empty().parse().unwrap();
    let vocabulary = Gguf::empty()
        .key("general.architecture", STRING, &text(b"llama"))
        .u32("llama.block_count", 32)
        .key("tokenizer.ggml.tokens", ARRAY, &strings(&["<s>", "a"]))
        .u32("tokenizer.ggml.bos_token_id", 0);
    assert_eq!(vocabulary.parse().unwrap().model.tensors, []);
}

#[test]
fn trailing_data_is_accepted() {
    Gguf::empty().tensor(b"a", &[8], 0, 0).data(1000).parse().unwrap();
}

#[test]
fn bad_hyperparameter() {
    let base = || {
        Gguf::empty().key("general.architecture", STRING, &text(b"llama")).u32("llama.embedding_length", 64)
    };
    for (name, value) in [
        ("attention.head_count", 0),
        ("attention.head_count", 65),
        ("attention.head_count_kv", 0),
        ("block_count", 0),
        ("block_count", 513),
        ("block_count", u32::MAX),
        ("rope.dimension_count", 0),
        ("context_length", 0),
        ("attention.key_length", 0),
        ("attention.value_length", 0),
    ] {
        let error = base().u32(&format!("llama.{name}"), value).parse().unwrap_err();
        assert_eq!(reason(&error), Reason::BadHyperparam, "{name} {value}");
        assert!(error.to_string().contains(name), "{error}");
    }
    let error = base().key("llama.block_count", I32, &(-1i32).to_le_bytes());
    assert_eq!(error.refused(), Reason::BadHyperparam);
    assert_eq!(base().key("llama.block_count", STRING, &text(b"2")).refused(), Reason::BadHyperparam);
    let uneven = base().u32("llama.attention.head_count", 8).u32("llama.attention.head_count_kv", 3);
    assert_eq!(uneven.refused(), Reason::BadHyperparam);
}

#[test]
fn hyperparameters_of_other_architectures_are_accepted() {
    // One value per layer, with layers that have no heads.
    let heads = array(U32, 2, &[4u32.to_le_bytes(), 0u32.to_le_bytes()].concat());
    Gguf::empty()
        .key("general.architecture", STRING, &text(b"deci"))
        .key("deci.attention.head_count", ARRAY, &heads)
        .parse()
        .unwrap();
    Gguf::empty()
        .key("general.architecture", STRING, &text(b"mamba"))
        .u32("mamba.ssm.state_size", 16)
        .u32("mamba.attention.head_count", 0)
        .parse()
        .unwrap();
}

#[test]
fn bad_vocabulary() {
    let types = |types: &[i32]| {
        let bytes: Vec<u8> = types.iter().flat_map(|ty| ty.to_le_bytes()).collect();
        array(I32, types.len() as u64, &bytes)
    };
    let base = |tokens: &[&str]| Gguf::empty().key("tokenizer.ggml.tokens", ARRAY, &strings(tokens));
    for token in ["<0x-1>", "<0xZZ>", "<0x>", "<0x100>", "<0x1", ""] {
        let file = base(&["a", token]).key("tokenizer.ggml.token_type", ARRAY, &types(&[1, 6]));
        assert_eq!(file.refused(), Reason::BadVocab, "{token:?}");
    }
    base(&["a", "<0x0A>"]).key("tokenizer.ggml.token_type", ARRAY, &types(&[1, 6])).parse().unwrap();
    for name in ["bos", "eos", "eot", "eom"] {
        for id in [2, u32::MAX] {
            let file = base(&["a", "b"]).u32(&format!("tokenizer.ggml.{name}_token_id"), id);
            assert_eq!(file.refused(), Reason::BadVocab);
        }
    }
    let file = base(&["a", "b"]).key("tokenizer.ggml.token_type", ARRAY, &types(&[1]));
    assert_eq!(file.refused(), Reason::BadVocab);
    let scores = array(I8, 4, &[0; 4]);
    let file = base(&["a", "b", "c", "d"]).key("tokenizer.ggml.scores", ARRAY, &scores);
    assert_eq!(file.refused(), Reason::BadVocab);
    let file = Gguf::empty().key("tokenizer.ggml.tokens", ARRAY, &types(&[1]));
    assert_eq!(file.refused(), Reason::BadVocab);
}
