//! Between safetensors and GGUF: what transformers computes is what llama.cpp computes, and nothing is lost on the way back.

#![allow(clippy::unwrap_used, reason = "in a test a panic is a failure")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use orion_core::{MetaValue, ModelFormat, TensorType, WeightSource};
use orion_formats::{gguf, safetensors};
use orion_loader::{MemorySource, open};
use orion_pipeline::{ConvertOptions, as_gguf, as_hugging_face, convert};
use orion_runtime::{SpecialTokens, TextCodec};
use orion_testkit::references::{Case, cases};

/// A model in memory from the bytes of its file.
fn from_bytes(file: &[u8], header: orion_core::ModelHeader) -> MemorySource {
    let mut source = MemorySource::new(header.format);
    for tensor in &header.tensors {
        let bytes = file[tensor.range().unwrap()].to_vec();
        source = source.tensor(&*tensor.name, &*tensor.shape, tensor.ty, bytes).unwrap();
    }
    header.metadata.into_iter().fold(source, |source, (key, value)| source.meta(key, value))
}

fn hugging_face(case: &Case, config: &serde_json::Value) -> Arc<dyn WeightSource> {
    let file = case.safetensors();
    let header = safetensors::parse(&file, file.len() as u64).unwrap().model().unwrap();
    from_bytes(&file, header).side_file("config.json", config.to_string().into_bytes()).build()
}

fn tensors(source: &dyn WeightSource) -> BTreeMap<String, (Vec<u64>, TensorType, Vec<u8>)> {
    let table = source.header().tensors.iter().enumerate();
    table
        .map(|(index, t)| (t.name.clone(), (t.shape.clone(), t.ty, source.tensor(index).unwrap().to_vec())))
        .collect()
}

/// Every reference model that has a GGUF form, written by another program: the same tensors bit for bit, the same keys.
#[test]
fn references_become_the_gguf_that_another_writer_makes() {
    let mut seen = 0;
    for case in cases() {
        let Some(file) = case.gguf() else { continue };
        let header = gguf::parse(&file, file.len() as u64).unwrap().model;
        let expected = from_bytes(&file, header.clone()).build();
        for config in &case.configs {
            let made =
                as_gguf(hugging_face(&case, config)).unwrap_or_else(|error| panic!("{}: {error}", case.name));
            let (made_tensors, expected_tensors) = (tensors(&*made), tensors(&*expected));
            assert!(made_tensors.keys().eq(expected_tensors.keys()), "{}", case.name);
            for (name, (shape, ty, bytes)) in &expected_tensors {
                let (own_shape, own_ty, own) = &made_tensors[name];
                assert_eq!((own_shape, own_ty), (shape, ty), "{} {name}", case.name);
                assert!(own == bytes, "{} {name}", case.name);
            }
            for (key, value) in header.metadata.iter().filter(|(key, _)| *key != "general.name") {
                assert_eq!(made.header().metadata.get(key), Some(value), "{} {key}", case.name);
            }
            seen += 1;
        }
    }
    assert!(seen >= 15, "{seen} references have a GGUF form");
}

#[test]
fn going_back_gives_every_bit_and_the_configuration() {
    for case in cases() {
        let source = hugging_face(&case, &case.configs[0]);
        // What has no GGUF form is refused by name, and computes nothing else instead.
        let Ok(there) = as_gguf(source.clone()) else {
            assert!(case.gguf().is_none(), "{}", case.name);
            continue;
        };
        let back = as_hugging_face(there).unwrap();
        assert_eq!(back.header().format, ModelFormat::Safetensors);
        assert_eq!(back.header().side_files["config.json"], source.header().side_files["config.json"]);
        assert!(tensors(&*back) == tensors(&*source), "{}", case.name);
    }
}

#[test]
fn norms_that_adding_one_rounds_come_back() {
    let config = cases().into_iter().find(|case| case.name == "gemma2").unwrap().configs[0].clone();
    let values = [1e-9f32, -3e-5, 0.5, 0.0, -1.0, f32::MIN_POSITIVE];
    for ty in [TensorType::F32, TensorType::BF16] {
        let mut bytes = Vec::new();
        orion_kernels::quantize(ty, &values, values.len(), None, &mut bytes).unwrap();
        let source = MemorySource::new(ModelFormat::Safetensors)
            .side_file("config.json", config.to_string().into_bytes())
            .tensor("model.norm.weight", [6], ty, bytes)
            .unwrap()
            .build();
        let there = as_gguf(source.clone()).unwrap();
        assert_eq!(there.header().tensors[0].ty, TensorType::F32);
        assert!(tensors(&*as_hugging_face(there).unwrap()) == tensors(&*source), "{ty}");
    }
}

fn ids(source: &dyn WeightSource, text: &str) -> Vec<u32> {
    let codec = TextCodec::from_header(source.header(), usize::MAX).unwrap();
    let ids = codec.tokenizer().unwrap().encode(text, SpecialTokens::Parse).unwrap();
    ids.into_iter().map(|id| id.0).collect()
}

const TEXT: &str =
    "<|im_start|>user\nWhy is 1234 + 5678 not 7,000?  \n\n\tÜber l'été, naïve 日本語 🦀 it's<|im_end|>";

/// A real model in GGUF becomes files that the `tokenizers` crate and our own vocabulary read alike, and goes back.
#[test]
fn a_real_vocabulary_goes_both_ways() {
    let directory = tempfile::tempdir().unwrap();
    let source = open(orion_testkit::models::smollm2()).unwrap();
    let there = directory.path().join("hf");
    convert(&source, &there, &ConvertOptions::default()).unwrap();
    let theirs = open(&there).unwrap();
    assert_eq!(ids(&*theirs, TEXT), ids(&*source, TEXT));
    let back = directory.path().join("back.gguf");
    convert(&theirs, &back, &ConvertOptions::default()).unwrap();
    let ours = open(&back).unwrap();
    assert_eq!(ids(&*ours, TEXT), ids(&*source, TEXT));
    for key in [
        "tokenizer.ggml.tokens",
        "tokenizer.ggml.merges",
        "tokenizer.ggml.token_type",
        "tokenizer.ggml.bos_token_id",
        "tokenizer.ggml.eos_token_id",
        "tokenizer.chat_template",
        "llama.block_count",
        "llama.rope.freq_base",
    ] {
        let same = ours.header().metadata.get(key) == source.header().metadata.get(key);
        assert!(same, "{key}");
    }
    // Both hold the numbers of the quantised file, as halves.
    let (ours, theirs) = (tensors(&*ours), tensors(&*theirs));
    assert!(ours["blk.3.ffn_down.weight"].2 == theirs["model.layers.3.mlp.down_proj.weight"].2);
    assert!(
        ours["blk.3.attn_q.weight"].2 != theirs["model.layers.3.self_attn.q_proj.weight"].2,
        "rows are permuted"
    );
}

#[test]
fn what_has_no_other_form_is_refused_by_name() {
    let refusal = |config: &str, tensor: &str| {
        let source = MemorySource::new(ModelFormat::Safetensors)
            .side_file("config.json", config.as_bytes().to_vec())
            .tensor(tensor, [2, 2], TensorType::F32, vec![0; 16])
            .unwrap()
            .build();
        as_gguf(source).err().unwrap().to_string()
    };
    assert!(refusal(r#"{"model_type":"mamba"}"#, "x").contains("\"mamba\""));
    assert!(refusal("{", "x").contains("config.json"));
    let llama = r#"{"model_type":"llama","num_attention_heads":1,"vocab_size":2,"max_position_embeddings":8,"hidden_size":2,"num_hidden_layers":1,"intermediate_size":2}"#;
    assert!(refusal(llama, "model.layers.0.experts.weight").contains("model.layers.0.experts.weight"));
    let gguf = MemorySource::new(ModelFormat::Gguf)
        .meta("general.architecture", MetaValue::Str("rwkv".into()))
        .build();
    assert!(as_hugging_face(gguf).err().unwrap().to_string().contains("\"rwkv\""));
    let directory = tempfile::tempdir().unwrap();
    let source = open(orion_testkit::models::smollm2()).unwrap();
    let taken = directory.path().join("taken");
    std::fs::create_dir(&taken).unwrap();
    assert!(
        convert(&source, Path::new(&taken), &ConvertOptions::default())
            .unwrap_err()
            .to_string()
            .contains("exists already")
    );
}
