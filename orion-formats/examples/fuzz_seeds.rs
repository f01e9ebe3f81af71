//! Writes small valid files for the fuzz targets to begin with:
//! `cargo run -p orion-formats --example fuzz_seeds -- fuzz/corpus`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use orion_core::{Digest, MetaArray, MetaValue, ModelFormat, TensorType, TileLayout};
use orion_formats::gguf::{GgufWriter, TensorSpec};
use orion_formats::safetensors::{self, Dtype, SafetensorsWriter};
use orion_formats::{FileEntry, Shard, ShardIndex, ShardSet, ShardTensor};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory = std::env::args_os().nth(1).ok_or("usage: fuzz_seeds DIRECTORY")?;
    let seeds: [(&str, Vec<u8>); 4] = [
        ("gguf_header", gguf()?),
        ("safetensors_header", safetensors_file()?),
        ("shard_index", index().into_bytes()),
        ("shard_set", shard_set().to_json()?.into_bytes()),
    ];
    for (target, bytes) in seeds {
        let folder = Path::new(&directory).join(target);
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("seed"), bytes)?;
    }
    Ok(())
}

fn gguf() -> orion_core::Result<Vec<u8>> {
    let tokens = ["<s>", "</s>", "<0x0A>"].into_iter().collect();
    let metadata: BTreeMap<_, _> = [
        ("general.architecture", MetaValue::Str("llama".into())),
        ("general.alignment", MetaValue::U32(32)),
        ("llama.block_count", MetaValue::U32(1)),
        ("llama.attention.head_count", MetaValue::U32(4)),
        ("tokenizer.ggml.tokens", MetaValue::Array(MetaArray::Str(tokens))),
        ("tokenizer.ggml.token_type", MetaValue::Array(MetaArray::I32(vec![3, 3, 6]))),
        ("tokenizer.ggml.bos_token_id", MetaValue::U32(0)),
        (
            "nested",
            MetaValue::Array(MetaArray::Array(vec![MetaArray::Bool(vec![true]), MetaArray::F64(vec![0.5])])),
        ),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into();
    let specs = [
        TensorSpec::new("token_embd.weight", [3, 32], TensorType::Q8_0),
        TensorSpec::new("output_norm.weight", [32], TensorType::F32),
    ];
    let mut writer = GgufWriter::start(Vec::new(), &metadata, &specs)?;
    writer.tensor(&[1; 102])?;
    writer.tensor(&[2; 128])?;
    writer.finish()
}

fn safetensors_file() -> orion_core::Result<Vec<u8>> {
    let specs = [
        safetensors::TensorSpec::new("a.weight", [2, 3], Dtype::BF16),
        safetensors::TensorSpec::new("a.ids", [1], Dtype::I64),
    ];
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    let mut writer = SafetensorsWriter::start(Vec::new(), &metadata, &specs)?;
    writer.tensor(&[1; 12])?;
    writer.tensor(&[2; 8])?;
    writer.finish()
}

fn index() -> String {
    let map = [("a", "model-00001-of-00002.safetensors"), ("b", "model-00002-of-00002.safetensors")];
    ShardIndex::new(Some(20), map.map(|(name, file)| (name.to_owned(), file.to_owned())).into()).to_json()
}

fn shard_set() -> ShardSet {
    let entry = |file: &str, bytes| FileEntry { file: file.to_owned(), bytes, digest: Digest([7; 32]) };
    ShardSet {
        model_format: ModelFormat::Gguf,
        chunk_bytes: 1 << 16,
        metadata: Some(entry("metadata.gguf", 24)),
        side_files: vec![entry("config.json", 2)],
        shards: vec![Shard { entry: entry("shard-0.bin", 136), chunks: vec![Digest([1; 32])] }],
        tensors: vec![ShardTensor {
            name: "a".to_owned(),
            shape: vec![4, 32],
            ty: TensorType::Q8_0,
            layout: TileLayout::RowMajor,
            shard: 0,
            offset: 0,
            bytes: 136,
        }],
    }
}
