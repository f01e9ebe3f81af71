//! The choice of types against what llama.cpp's quantiser chose (`goldens/make_mixes.py`).

#![allow(clippy::unwrap_used, reason = "in a test a panic is a failure")]

use orion_core::{ModelFormat, ModelHeader, TensorInfo, TensorType, TileLayout};
use orion_pipeline::{FileType, Traits, plan};

const GOLDEN: &str = include_str!("goldens/mixes.txt");

fn tensor(line: &str) -> TensorInfo {
    let mut words = line.split_whitespace();
    let name = words.next().unwrap().to_owned();
    let dims: Vec<u64> = words.map(|word| word.parse().unwrap()).collect();
    let shape = if dims[0] == 0 { vec![dims[1]] } else { dims };
    TensorInfo {
        name,
        shape,
        ty: TensorType::F32,
        layout: TileLayout::RowMajor,
        file: 0,
        offset: 0,
        bytes: 0,
    }
}

/// `architecture=… layers=…` as the metadata of a file.
fn traits(words: &str) -> Traits {
    let get = |key: &str| words.split_whitespace().find_map(|word| word.strip_prefix(key)).unwrap();
    let arch = get("arch=");
    let number = |key: &str| orion_core::MetaValue::U32(get(key).parse().unwrap());
    let metadata = [
        ("general.architecture".to_owned(), orion_core::MetaValue::Str(arch.to_owned())),
        (format!("{arch}.block_count"), number("layers=")),
        (format!("{arch}.attention.head_count"), number("heads=")),
        (format!("{arch}.attention.head_count_kv"), number("kv_heads=")),
    ];
    Traits::of(&ModelHeader::new(ModelFormat::Gguf, metadata.into(), Vec::new()))
}

#[test]
fn every_mix_gives_the_types_that_llama_quantize_gives() {
    let (mut model, mut tensors) = (None, Vec::new());
    let mut compared = 0;
    let mut lines = GOLDEN.lines().peekable();
    while let Some(line) = lines.next() {
        let body: Vec<&str> = std::iter::from_fn(|| lines.next_if(|line| line.starts_with("  "))).collect();
        if let Some(words) = line.strip_prefix("model ") {
            model = Some(traits(words));
            tensors = body.iter().map(|line| tensor(line)).collect();
            continue;
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        let id: u32 = words[2].parse().unwrap();
        let file_type = *FileType::ALL.iter().find(|ty| ty.id() == id).expect("the file type is known");
        let mut expected = vec![TensorType::F32; tensors.len()];
        let (rest, named): (Vec<&str>, Vec<&str>) =
            body.iter().copied().partition(|line| line.ends_with(" rest"));
        let ty = |line: &str| TensorType::from_name(line.split_whitespace().next().unwrap()).unwrap();
        for (i, tensor) in tensors.iter().enumerate() {
            if tensor.shape.len() == 2 {
                expected[i] = ty(rest[0]);
            }
        }
        for line in named {
            for index in line.split_whitespace().skip(1) {
                expected[index.parse::<usize>().unwrap()] = ty(line);
            }
        }
        let planned = plan(&tensors, model.as_ref().unwrap(), file_type, words[3] == "1");
        for ((tensor, planned), expected) in tensors.iter().zip(&planned.tensors).zip(expected) {
            assert_eq!(planned.to, expected, "{line}: {}", tensor.name);
        }
        compared += 1;
    }
    // 8 models; 20 mixes without importances but for Q2_K_S, and all with.
    assert_eq!(compared, 8 * (2 * FileType::ALL.len() - 1));
}

#[test]
fn names_go_both_ways() {
    for &ty in FileType::ALL {
        assert_eq!(FileType::from_name(&ty.name().to_lowercase()).unwrap(), ty);
    }
    assert_eq!(FileType::from_name("q4_k").unwrap(), FileType::Q4Km);
    assert!(FileType::from_name("Q9").unwrap_err().to_string().contains("Q4_K_M"));
}
