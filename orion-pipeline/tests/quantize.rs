//! Quantising whole models: the file, the report, and what is refused.

#![allow(clippy::unwrap_used, reason = "in a test a panic is a failure")]

use std::num::NonZero;
use std::path::Path;
use std::sync::Arc;

use orion_core::{MetaValue, ModelFormat, ModelHeader, TensorType, WeightSource};
use orion_kernels::quantize as encode;
use orion_loader::MemorySource;
use orion_pipeline::{FileType, QuantizeOptions, quantize};

fn numbers(count: usize) -> Vec<f32> {
    (0..count).map(|i| (i as f32 * 0.7).sin() * 0.05).collect()
}

fn bytes(x: &[f32]) -> Vec<u8> {
    x.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// Two layers of one value matrix each, a norm, and an embedding whose rows do not fit K-quants.
fn model(value: &[f32]) -> Arc<dyn WeightSource> {
    MemorySource::new(ModelFormat::Gguf)
        .meta("general.architecture", MetaValue::Str("llama".into()))
        .meta("llama.block_count", MetaValue::U32(2))
        .meta("split.count", MetaValue::U16(3))
        .tensor("token_embd.weight", [8, 96], TensorType::F32, bytes(&numbers(8 * 96)))
        .unwrap()
        .tensor("blk.0.attn_norm.weight", [96], TensorType::F32, bytes(&numbers(96)))
        .unwrap()
        .tensor("blk.0.attn_v.weight", [300, 256], TensorType::F32, bytes(value))
        .unwrap()
        .tensor("blk.1.attn_q.weight", [2, 3, 256], TensorType::F32, bytes(&numbers(6 * 256)))
        .unwrap()
        .build()
}

fn entries(directory: &Path) -> usize {
    std::fs::read_dir(directory).unwrap().count()
}

#[test]
fn the_file_holds_the_blocks_of_the_reference_quantiser() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("out.gguf");
    let x = numbers(300 * 256);
    let mut options = QuantizeOptions::new(FileType::Q4Km);
    let importances: Vec<f32> = (0..512).map(|i| 1.0 + (i / 100) as f32).collect();
    options.imatrix.insert("blk.1.attn_q.weight", importances.clone());
    let report = quantize(&*model(&x), &path, &options).unwrap();

    let source = orion_loader::open(&path).unwrap();
    let header = source.header();
    assert_eq!(header.metadata["general.file_type"], MetaValue::U32(15));
    assert_eq!(header.metadata["general.quantization_version"], MetaValue::U32(2));
    assert!(!header.metadata.contains_key("split.count"));
    let types: Vec<_> = header.tensors.iter().map(|tensor| tensor.ty).collect();
    assert_eq!(types, [TensorType::Q8_0, TensorType::F32, TensorType::Q6K, TensorType::Q4K]);
    assert_eq!(types, report.tensors.iter().map(|tensor| tensor.to).collect::<Vec<_>>());

    let mut expected = Vec::new();
    encode(TensorType::Q6K, &x, 256, None, &mut expected).unwrap();
    assert!(*source.tensor(2).unwrap() == *expected);
    // Each of the stacked matrices has importances of its own.
    let (stack, imatrix) = (numbers(6 * 256), &importances);
    let mut expected = Vec::new();
    for (x, imatrix) in stack.chunks(3 * 256).zip(imatrix.chunks(256)) {
        encode(TensorType::Q4K, x, 256, Some(imatrix), &mut expected).unwrap();
    }
    assert!(*source.tensor(3).unwrap() == *expected);
    assert_eq!(&*source.tensor(1).unwrap(), &*bytes(&numbers(96)));

    assert_eq!(report.tensors[1].relative_error, 0.0);
    assert!(report.tensors[2].relative_error > 0.0 && report.tensors[2].relative_error < 1e-3, "{report:?}");
    assert_eq!(
        report.tensors.iter().map(|tensor| tensor.bytes).sum::<u64>(),
        header.tensors.iter().map(|t| t.bytes).sum::<u64>()
    );
    assert_eq!(entries(directory.path()), 1);
}

#[test]
fn the_number_of_threads_does_not_show() {
    let directory = tempfile::tempdir().unwrap();
    let source = model(&numbers(300 * 256));
    let results: Vec<_> = [1, 3]
        .map(|threads| {
            let path = directory.path().join(format!("{threads}.gguf"));
            let mut options = QuantizeOptions::new(FileType::Q3Km);
            options.threads = NonZero::new(threads).unwrap();
            let report = quantize(&*source, &path, &options).unwrap();
            (std::fs::read(&path).unwrap(), report)
        })
        .into();
    assert!(results[0] == results[1]);
}

#[test]
fn substitutes_are_reported() {
    let directory = tempfile::tempdir().unwrap();
    let source = MemorySource::new(ModelFormat::Gguf)
        .tensor("blk.0.ffn_up.weight", [2, 576], TensorType::F32, bytes(&numbers(2 * 576)))
        .unwrap()
        .tensor("blk.0.ffn_gate.weight", [2, 80], TensorType::F32, bytes(&numbers(2 * 80)))
        .unwrap()
        .build();
    let report =
        quantize(&*source, &directory.path().join("o"), &QuantizeOptions::new(FileType::Q4Km)).unwrap();
    let substituted: Vec<_> = report.substituted().map(|t| (t.instead_of, t.to)).collect();
    assert_eq!(
        substituted,
        [(Some(TensorType::Q4K), TensorType::Q5_0), (Some(TensorType::Q4K), TensorType::F16)]
    );
}

#[test]
fn a_refusal_names_the_tensor_and_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("out.gguf");
    let refusal = |source: &dyn WeightSource, options: &QuantizeOptions| {
        let error = quantize(source, &path, options).unwrap_err();
        assert!(error.kind().is_bad_input(), "{error}");
        assert_eq!(entries(directory.path()), 0, "{error}");
        error.to_string()
    };
    let good = numbers(300 * 256);
    let mut bad = good.clone();
    bad[299 * 256 + 7] = f32::NAN;
    let options = QuantizeOptions::new(FileType::Q4Km);
    let message = refusal(&*model(&bad), &options);
    assert!(message.contains("blk.0.attn_v.weight") && message.contains("NaN"), "{message}");

    let mut wrong = options.clone();
    wrong.imatrix.insert("blk.0.attn_v.weight", vec![1.0; 255]);
    let message = refusal(&*model(&good), &wrong);
    assert!(message.contains("blk.0.attn_v.weight") && message.contains("255 importances"), "{message}");

    assert!(refusal(&*model(&good), &QuantizeOptions::new(FileType::Q2Ks)).contains("needs importances"));

    let mut blocks = Vec::new();
    encode(TensorType::Q8_0, &good, 256, None, &mut blocks).unwrap();
    let quantised = MemorySource::new(ModelFormat::Gguf)
        .tensor("blk.0.attn_k.weight", [300, 256], TensorType::Q8_0, blocks)
        .unwrap()
        .build();
    let message = refusal(&*quantised, &options);
    assert!(message.contains("blk.0.attn_k.weight") && message.contains("is Q8_0 already"), "{message}");
    let mut allowed = options;
    allowed.allow_requantize = true;
    quantize(&*quantised, &path, &allowed).unwrap();
}

#[test]
fn an_existing_file_is_kept_unless_it_may_go() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("out.gguf");
    std::fs::write(&path, "precious").unwrap();
    let source = model(&numbers(300 * 256));
    let mut options = QuantizeOptions::new(FileType::Q8_0);
    let message = quantize(&*source, &path, &options).unwrap_err().to_string();
    assert!(message.contains("exists already"), "{message}");
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    options.overwrite = true;
    quantize(&*source, &path, &options).unwrap();
    assert!(orion_loader::open(&path).is_ok());
}

/// A model larger than any disk.
struct Huge(ModelHeader);

impl WeightSource for Huge {
    fn header(&self) -> &ModelHeader {
        &self.0
    }
    fn tensor(&self, _: usize) -> orion_core::Result<orion_core::TensorBytes> {
        panic!("nothing is read for what there is no room for")
    }
}

#[test]
fn what_the_disk_has_no_room_for_is_not_begun() {
    let directory = tempfile::tempdir().unwrap();
    let mut header = model(&numbers(300 * 256)).header().clone();
    let (elements, stored) = (1u64 << 40, 1u64 << 42);
    header.tensors.truncate(1);
    let tensor = &mut header.tensors[0];
    (tensor.ty, tensor.shape, tensor.bytes) = (TensorType::F32, vec![elements >> 8, 256], stored);
    let options = QuantizeOptions::new(FileType::Q8_0);
    let error = quantize(&Huge(header), &directory.path().join("out.gguf"), &options).unwrap_err();
    assert_eq!(error.kind(), orion_core::ErrorKind::Io, "{error}");
    assert!(error.to_string().contains("make room"), "{error}");
    assert_eq!(entries(directory.path()), 0);
}
