//! The sentence encoder against reference embeddings (`encoder_golden.py`), and against hostile files.

#![allow(clippy::unwrap_used, reason = "in a test a panic is a failure")]

mod common;

use std::path::{Path, PathBuf};

use common::Folder;
use orion_core::{Embedder, ErrorKind};
use orion_runtime::{EncoderOptions, Output, Pooling, Precision, SentenceEncoder};

#[derive(serde::Deserialize)]
struct Golden {
    text: String,
    tokens: usize,
    vector: Vec<f32>,
}

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

fn golden(name: &str) -> Vec<Golden> {
    serde_json::from_slice(&std::fs::read(data(name)).unwrap()).unwrap()
}

fn tiny() -> Folder {
    Folder::open(&data("tiny_bert"))
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

fn check(encoder: &SentenceEncoder, golden: &[Golden], least: f64) {
    let texts: Vec<&str> = golden.iter().map(|golden| golden.text.as_str()).collect();
    let batch = encoder.embed(&texts).unwrap();
    for (golden, vector) in golden.iter().zip(&batch) {
        assert_eq!(encoder.tokenize(&golden.text).unwrap().len(), golden.tokens, "{:?}", golden.text);
        let alone = &encoder.embed(&[&golden.text]).unwrap()[0];
        for vector in [vector, alone] {
            let got = cosine(vector, &golden.vector);
            assert!(got >= least, "{:?}: cosine {got}", golden.text);
            let length: f32 = vector.iter().map(|value| value * value).sum();
            assert!((length - 1.0).abs() < 1e-5, "{:?}: squared length {length}", golden.text);
        }
    }
}

#[test]
fn a_tiny_encoder_meets_its_reference() {
    let encoder = SentenceEncoder::load(&tiny(), EncoderOptions::default()).unwrap();
    check(&encoder, &golden("tiny_bert/embeddings.json"), 0.999_999);
}

#[test]
fn minilm_meets_its_reference() {
    let encoder = SentenceEncoder::load(&Folder::open(&common::minilm()), EncoderOptions::default()).unwrap();
    check(&encoder, &golden("minilm_embeddings.json"), 0.999_9);
}

#[test]
fn minilm_in_int8_stays_close_to_its_reference() {
    let options = EncoderOptions::default().precision(Precision::Int8);
    let encoder = SentenceEncoder::load(&Folder::open(&common::minilm()), options).unwrap();
    assert!(encoder.fingerprint().contains("int8"));
    check(&encoder, &golden("minilm_embeddings.json"), 0.998);
}

#[test]
fn three_layers_of_minilm_in_seven_bits_stay_close_to_exact_ones() {
    let embed = |precision| {
        let options = EncoderOptions::for_routing(3).precision(precision);
        let encoder = SentenceEncoder::load(&Folder::open(&common::minilm()), options).unwrap();
        let golden = golden("minilm_embeddings.json");
        let texts: Vec<&str> = golden.iter().map(|golden| golden.text.as_str()).collect();
        (encoder.fingerprint(), encoder.embed(&texts).unwrap())
    };
    let ((exact, wanted), (fingerprint, vectors)) = (embed(Precision::F32), embed(Precision::Int7));
    assert_eq!(exact.replace("f32", "int7").split_once("int7"), fingerprint.split_once("int7"));
    assert!(fingerprint.ends_with("-int7-mean3+mean2+mean1"), "{fingerprint}");
    for (vector, wanted) in vectors.iter().zip(&wanted) {
        assert!(cosine(vector, wanted) > 0.998, "{}", cosine(vector, wanted));
    }
    let options = EncoderOptions::of_fingerprint(&fingerprint).unwrap();
    assert_eq!(
        (options.outputs, options.precision),
        (EncoderOptions::for_routing(3).outputs, Precision::Int7)
    );
    for other in ["", "hash-3", "bert-0-int9-mean1", "bert-0-int7", "bert-0-int7-mean", "bert-0-int7-last1"] {
        assert!(EncoderOptions::of_fingerprint(other).is_none(), "{other}");
    }
}

#[test]
fn int8_refuses_widths_it_has_no_blocks_for() {
    // The tiny encoder's inner width is 48.
    let options = EncoderOptions::default().precision(Precision::Int8);
    let error = SentenceEncoder::load(&tiny(), options).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("48"), "{error}");
}

#[test]
fn outputs_of_several_layers_stand_side_by_side() {
    let outputs = [
        Output { layer: 2, pooling: Pooling::Mean },
        Output { layer: 1, pooling: Pooling::Max },
        Output { layer: 0, pooling: Pooling::First },
    ];
    let encoder = SentenceEncoder::load(&tiny(), EncoderOptions::default().outputs(outputs)).unwrap();
    let plain = SentenceEncoder::load(&tiny(), EncoderOptions::default()).unwrap();
    assert_eq!(encoder.dimension(), 3 * plain.dimension());
    assert_ne!(encoder.fingerprint(), plain.fingerprint());
    let wide = &encoder.embed(&["the cat"]).unwrap()[0];
    let narrow = &plain.embed(&["the cat"]).unwrap()[0];
    for (a, b) in wide.iter().zip(narrow) {
        assert!((a * 3f32.sqrt() - b).abs() < 1e-6);
    }
    // Token 0 is always [CLS] at position 0: before the first layer its state cannot depend on the text.
    let other = &encoder.embed(&["zebra"]).unwrap()[0];
    for (a, b) in wide[2 * 32..].iter().zip(&other[2 * 32..]) {
        assert!((a - b).abs() < 1e-6);
    }
}

#[test]
fn a_megabyte_is_cut_not_read() {
    let encoder = SentenceEncoder::load(&tiny(), EncoderOptions::default()).unwrap();
    for text in ["x".repeat(1 << 20), "é ".repeat(1 << 19), "\u{fffd}".repeat(1 << 18)] {
        assert!(encoder.tokenize(&text).unwrap().len() <= 24);
        assert_eq!(encoder.embed(&[&text]).unwrap().len(), 1);
    }
    assert!(encoder.embed(&[]).unwrap().is_empty());
}

#[test]
fn files_that_contradict_each_other_are_refused_by_name() {
    let config = |from: &str, to: &str| {
        let mut folder = tiny();
        let text = folder.header.side_text("config.json").unwrap().unwrap().replace(from, to);
        folder.header.side_files.insert("config.json".to_owned(), text.into_bytes().into());
        folder
    };
    let without = |name: &str| {
        let mut folder = tiny();
        folder.header.side_files.remove(name);
        folder
    };
    let mut lost = tiny();
    lost.header.tensors.retain(|tensor| tensor.name != "encoder.layer.1.output.dense.bias");
    for (folder, kind, word) in [
        (config("\"bert\"", "\"roberta\""), ErrorKind::Unsupported, "roberta"),
        (config("\"gelu\"", "\"silu\""), ErrorKind::Unsupported, "hidden_act"),
        (config("\"hidden_size\": 32", "\"hidden_size\": 0"), ErrorKind::Corrupt, "hidden_size"),
        (config("\"hidden_size\": 32", "\"hidden_size\": 64"), ErrorKind::Corrupt, "word_embeddings"),
        (
            config("\"num_attention_heads\": 4", "\"num_attention_heads\": 5"),
            ErrorKind::Corrupt,
            "num_attention_heads",
        ),
        (
            config("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3"),
            ErrorKind::Corrupt,
            "encoder.layer.2",
        ),
        (config("\"vocab_size\"", "\"vocab_sizes\""), ErrorKind::Corrupt, "vocab_size"),
        (config("1e-05", "1e30"), ErrorKind::Corrupt, "layer_norm_eps"),
        (without("config.json"), ErrorKind::Corrupt, "config.json"),
        (without("tokenizer.json"), ErrorKind::Corrupt, "tokenizer.json"),
        (lost, ErrorKind::Corrupt, "encoder.layer.1.output.dense.bias"),
    ] {
        let error = SentenceEncoder::load(&folder, EncoderOptions::default()).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(word), "{error} does not name {word}");
    }
}
