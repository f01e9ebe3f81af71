//! What is written reads back equal, twice the same bytes, and other readers accept it.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeMap;

use orion_core::{MetaArray, MetaValue, StringTable, TensorType};
use orion_formats::{ShardIndex, gguf, safetensors};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

fn value() -> impl Strategy<Value = MetaValue> {
    // Floats compare by value, so no NaN.
    let float = prop_oneof![Just(0.0f32), Just(f32::INFINITY), any::<i32>().prop_map(|v| v as f32 / 7.0)];
    let leaf = prop_oneof![
        vec(any::<u8>(), 0..9).prop_map(MetaArray::U8),
        vec(any::<i8>(), 0..9).prop_map(MetaArray::I8),
        vec(any::<u16>(), 0..9).prop_map(MetaArray::U16),
        vec(any::<i16>(), 0..9).prop_map(MetaArray::I16),
        vec(any::<u32>(), 0..9).prop_map(MetaArray::U32),
        vec(any::<i32>(), 0..9).prop_map(MetaArray::I32),
        vec(any::<u64>(), 0..9).prop_map(MetaArray::U64),
        vec(any::<i64>(), 0..9).prop_map(MetaArray::I64),
        vec(float.clone(), 0..9).prop_map(MetaArray::F32),
        vec(float.clone().prop_map(f64::from), 0..9).prop_map(MetaArray::F64),
        vec(any::<bool>(), 0..9).prop_map(MetaArray::Bool),
        vec(vec(any::<u8>(), 0..9), 0..9).prop_map(|texts| MetaArray::Str(StringTable::from_iter(texts))),
    ];
    let array = leaf.prop_recursive(3, 16, 4, |inner| vec(inner, 0..4).prop_map(MetaArray::Array));
    prop_oneof![
        any::<u8>().prop_map(MetaValue::U8),
        any::<i8>().prop_map(MetaValue::I8),
        any::<u16>().prop_map(MetaValue::U16),
        any::<i16>().prop_map(MetaValue::I16),
        any::<u32>().prop_map(MetaValue::U32),
        any::<i32>().prop_map(MetaValue::I32),
        any::<u64>().prop_map(MetaValue::U64),
        any::<i64>().prop_map(MetaValue::I64),
        float.clone().prop_map(MetaValue::F32),
        float.prop_map(|v| MetaValue::F64(v.into())),
        any::<bool>().prop_map(MetaValue::Bool),
        "\\PC{0,20}".prop_map(MetaValue::Str),
        array.prop_map(MetaValue::Array),
    ]
}

fn shapes() -> impl Strategy<Value = BTreeMap<String, (TensorType, Vec<u64>)>> {
    let tensor = (prop::sample::select(TensorType::ALL), vec(0u64..4, 1..4)).prop_map(|(ty, mut shape)| {
        *shape.last_mut().unwrap() *= ty.block_len() as u64;
        (ty, shape)
    });
    btree_map("[a-z][a-z0-9_.]{0,30}", tensor, 0..6)
}

fn contents(bytes: u64, seed: usize) -> Vec<u8> {
    (0..bytes).map(|i| (i as usize * 31 + seed) as u8).collect()
}

const STARTS: &[&[u8]] = &[b"GGUF\x03\0\0\0", b"", b"\x40\0\0\0\0\0\0\0{"];

proptest! {
    #[test]
    fn gguf(metadata in btree_map("[a-z][a-z.]{0,20}", value(), 0..8), tensors in shapes(), power in 0u32..8) {
        let mut metadata = metadata;
        metadata.insert("general.alignment".into(), MetaValue::U32(1 << power));
        let specs: Vec<_> =
            tensors.iter().map(|(name, (ty, shape))| gguf::TensorSpec::new(name, shape.clone(), *ty)).collect();
        let write = || {
            let mut writer = gguf::GgufWriter::start(Vec::new(), &metadata, &specs).unwrap();
            for (index, (ty, shape)) in tensors.values().enumerate() {
                writer.tensor(&contents(ty.bytes_of(shape.iter().product()).unwrap(), index)).unwrap();
            }
            writer.finish().unwrap()
        };
        let file = write();
        prop_assert_eq!(&file, &write());
        let header = gguf::parse(&file, file.len() as u64).unwrap();
        prop_assert_eq!(&header.model.metadata, &metadata);
        prop_assert_eq!(header.alignment, 1 << power);
        prop_assert_eq!(header.model.tensors.len(), specs.len());
        for (index, (info, spec)) in header.model.tensors.iter().zip(&specs).enumerate() {
            prop_assert_eq!((&info.name, &info.shape, info.ty), (&spec.name, &spec.shape, spec.ty));
            prop_assert_eq!(&file[info.range().unwrap()], &contents(info.bytes, index)[..]);
            prop_assert_eq!(info.offset % (1 << power), 0);
        }
    }

    #[test]
    fn safetensors_and_the_safetensors_crate_agrees(
        metadata in btree_map("\\PC{0,10}", "\\PC{0,10}", 0..4),
        tensors in btree_map("[a-z][a-z0-9_.\"\\\\]{0,30}", (prop::sample::select(&[
            safetensors::Dtype::F32, safetensors::Dtype::BF16, safetensors::Dtype::U8, safetensors::Dtype::I64,
        ][..]), vec(0u64..4, 0..4)), 0..6),
    ) {
        let specs: Vec<_> = tensors
            .iter()
            .map(|(name, (dtype, shape))| safetensors::TensorSpec::new(name, shape.clone(), *dtype))
            .collect();
        prop_assume!(specs.iter().all(|spec| !spec.name.starts_with('\\') && !spec.name.contains("..")));
        let mut writer = safetensors::SafetensorsWriter::start(Vec::new(), &metadata, &specs).unwrap();
        for (index, spec) in specs.iter().enumerate() {
            writer.tensor(&contents(spec.bytes().unwrap(), index)).unwrap();
        }
        let file = writer.finish().unwrap();
        let header = safetensors::parse(&file, file.len() as u64).unwrap();
        prop_assert_eq!(&header.metadata, &metadata);
        prop_assert_eq!(header.data_start % 64, 0);
        let theirs = ::safetensors::SafeTensors::deserialize(&file).unwrap();
        prop_assert_eq!(theirs.len(), specs.len());
        for (index, spec) in specs.iter().enumerate() {
            let entry = header.tensors.iter().find(|entry| entry.name == spec.name).unwrap();
            prop_assert_eq!((&entry.shape, entry.dtype), (&spec.shape, spec.dtype));
            let start = entry.offset as usize;
            let bytes = &file[start..start + entry.bytes as usize];
            prop_assert_eq!(bytes, &contents(entry.bytes, index)[..]);
            prop_assert_eq!(theirs.tensor(&spec.name).unwrap().data(), bytes);
        }
    }

    #[test]
    fn what_is_accepted_the_safetensors_crate_accepts(file in mutated_safetensors()) {
        if safetensors::parse(&file, file.len() as u64).is_ok() {
            prop_assert!(::safetensors::SafeTensors::deserialize(&file).is_ok());
        }
    }

    #[test]
    fn index(map in btree_map("[a-z.]{1,20}[a-z]", "[a-z][a-z0-9-]{0,20}\\.safetensors", 1..8), total in any::<Option<u64>>()) {
        prop_assume!(map.keys().all(|name| name != ".."));
        let index = ShardIndex::new(total, map);
        prop_assert_eq!(ShardIndex::parse(index.to_json().as_bytes()).unwrap(), index);
    }

    #[test]
    fn parsers_survive_any_bytes(bytes in vec(any::<u8>(), 0..400), start in prop::sample::select(STARTS)) {
        let file = [start, &bytes].concat();
        let _ = gguf::parse(&file, file.len() as u64);
        let _ = safetensors::parse(&file, file.len() as u64);
        let _ = ShardIndex::parse(&file);
    }
}

fn mutated_safetensors() -> impl Strategy<Value = Vec<u8>> {
    let specs = [
        safetensors::TensorSpec::new("a", [2, 2], safetensors::Dtype::F32),
        safetensors::TensorSpec::new("b", [3], safetensors::Dtype::U8),
    ];
    let mut writer =
        safetensors::SafetensorsWriter::start(Vec::new(), &[("k".into(), "v".into())].into(), &specs)
            .unwrap();
    writer.tensor(&[0; 16]).unwrap();
    writer.tensor(&[0; 3]).unwrap();
    let file = writer.finish().unwrap();
    let len = file.len();
    vec((0..len, prop::sample::select(&b"0123456789abFU{}[],:\" _"[..])), 0..3).prop_map(move |changes| {
        let mut file = file.clone();
        changes.into_iter().for_each(|(at, byte)| file[at] = byte);
        file
    })
}

#[test]
fn writers_refuse_what_readers_refuse() {
    use orion_core::ErrorKind::InvalidInput;
    let start =
        |specs: &[gguf::TensorSpec]| gguf::GgufWriter::start(Vec::new(), &BTreeMap::new(), specs).map(|_| ());
    let spec = |name: &str, shape: &[u64], ty| gguf::TensorSpec::new(name, shape, ty);
    for specs in [
        vec![spec("", &[1], TensorType::F32)],
        vec![spec(&"n".repeat(64), &[1], TensorType::F32)],
        vec![spec("a", &[33], TensorType::Q8_0)],
        vec![spec("a", &[1; 5], TensorType::F32)],
        vec![spec("a", &[u64::MAX, 2], TensorType::F32)],
        vec![spec("a", &[1], TensorType::F32), spec("a", &[1], TensorType::F32)],
    ] {
        assert_eq!(start(&specs).unwrap_err().kind(), InvalidInput);
    }
    for (key, value) in [
        ("", MetaValue::U8(0)),
        ("general.alignment", MetaValue::U32(3)),
        ("general.alignment", MetaValue::I32(32)),
    ] {
        let metadata = [(key.to_owned(), value)].into();
        assert_eq!(gguf::GgufWriter::start(Vec::new(), &metadata, &[]).unwrap_err().kind(), InvalidInput);
    }
    let mut writer =
        gguf::GgufWriter::start(Vec::new(), &BTreeMap::new(), &[spec("a", &[2], TensorType::F32)]).unwrap();
    assert_eq!(writer.tensor(&[0; 7]).unwrap_err().kind(), InvalidInput);
    let writer =
        gguf::GgufWriter::start(Vec::new(), &BTreeMap::new(), &[spec("a", &[2], TensorType::F32)]).unwrap();
    assert_eq!(writer.finish().unwrap_err().kind(), InvalidInput);
    let specs = [safetensors::TensorSpec::new("__metadata__", [1], safetensors::Dtype::U8)];
    let error = safetensors::SafetensorsWriter::start(Vec::new(), &BTreeMap::new(), &specs).unwrap_err();
    assert_eq!(error.kind(), InvalidInput);
}
