//! Cutting models up and putting them together again: nothing is lost, nothing is left half-made.

#![allow(clippy::unwrap_used, reason = "in a test a panic is a failure")]

use std::num::NonZero;
use std::path::Path;
use std::sync::{Arc, Mutex};

use orion_core::{
    CancelToken, ErrorKind, MetaValue, ModelFormat, TensorType, TileLayout, TokenId, WeightSource,
};
use orion_formats::gguf::{GgufWriter, TensorSpec};
use orion_kernels::{quantize as encode, row_major};
use orion_loader::{MemorySource, open};
use orion_pipeline::{
    Control, ShardFormat, ShardOptions, ShardSize, UnshardOptions, plan_shards, provenance, shard, unshard,
};
use orion_runtime::{ExecutorKind, LocalRuntime, Positions, RuntimeOptions};

fn numbers(count: usize, phase: f32) -> Vec<f32> {
    (0..count).map(|i| (i as f32 * 0.37 + phase).sin() * 0.05).collect()
}

fn blocks(ty: TensorType, rows: usize, columns: usize) -> Vec<u8> {
    let mut out = Vec::new();
    encode(ty, &numbers(rows * columns, ty.ggml_id() as f32), columns, None, &mut out).unwrap();
    out
}

/// One layer per tensor type, whose rows are no whole number of tiles.
fn model() -> Arc<dyn WeightSource> {
    let mut source = MemorySource::new(ModelFormat::Gguf)
        .meta("general.architecture", MetaValue::Str("llama".into()))
        .tensor("output.weight", [40, 256], TensorType::F16, blocks(TensorType::F16, 40, 256))
        .unwrap()
        .tensor("token_embd.weight", [33, 256], TensorType::Q6K, blocks(TensorType::Q6K, 33, 256))
        .unwrap();
    for (layer, &ty) in TensorType::ALL.iter().enumerate() {
        source = source
            .tensor(format!("blk.{layer}.attn_q.weight"), [21, 512], ty, blocks(ty, 21, 512))
            .unwrap()
            .tensor(
                format!("blk.{layer}.attn_norm.weight"),
                [5],
                TensorType::F32,
                blocks(TensorType::F32, 1, 5),
            )
            .unwrap();
    }
    source.tensor("output_norm.weight", [7], TensorType::F32, blocks(TensorType::F32, 1, 7)).unwrap().build()
}

/// The model as a file.
fn file(source: &dyn WeightSource, path: &Path) {
    let header = source.header();
    let specs: Vec<_> = header.tensors.iter().map(|t| TensorSpec::new(&*t.name, &*t.shape, t.ty)).collect();
    let mut writer =
        GgufWriter::start(std::fs::File::create(path).unwrap(), &header.metadata, &specs).unwrap();
    (0..specs.len()).for_each(|index| writer.tensor(&source.tensor(index).unwrap()).unwrap());
    writer.finish().unwrap();
}

fn by_count(count: usize) -> ShardOptions {
    ShardOptions::new(ShardSize::Count(NonZero::new(count).unwrap()))
}

fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_packed_set_holds_every_bit_and_goes_back_to_the_same_file() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    file(&*model(), &at("in.gguf"));
    let source = open(at("in.gguf")).unwrap();
    for pack in [false, true] {
        let out = at(if pack { "packed" } else { "plain" });
        let mut options = by_count(5);
        options.pack = pack;
        options.chunk_bytes = 1 << 16;
        let reports = shard(&*source, &out, &options).unwrap();
        assert_eq!(reports.len(), 5);
        let manifests = names(&out).into_iter().filter(|name| name.contains("manifest")).count();
        assert_eq!(manifests, 1, "{:?}", names(&out));

        let set = open(&out).unwrap();
        for (index, (old, new)) in source.header().tensors.iter().zip(&set.header().tensors).enumerate() {
            assert_eq!((&old.name, &old.shape, old.ty), (&new.name, &new.shape, new.ty));
            let packed =
                pack && new.shape.len() == 2 && !matches!(new.ty, TensorType::Iq4Nl | TensorType::Iq4Xs);
            assert_eq!(
                new.layout,
                if packed { TileLayout::Tiles16 } else { TileLayout::RowMajor },
                "{}",
                new.name
            );
            let bytes = set.tensor(index).unwrap();
            assert!(bytes.as_ptr().addr().is_multiple_of(64), "{}", new.name);
            assert!(*row_major(new, &bytes).unwrap() == *source.tensor(index).unwrap(), "{}", new.name);
        }
        let steps = provenance(&set.header().metadata);
        assert_eq!((steps.len(), &steps[0]["step"]), (1, &"shard".into()));
        // The head comes last, the embedding first.
        let place = |name: &str| set.header().tensors.iter().find(|t| t.name == name).unwrap().file;
        assert_eq!((place("token_embd.weight"), place("output.weight")), (0, 4));
        let layers: Vec<_> = reports.iter().filter_map(|report| report.layers).collect();
        assert_eq!((layers[0].0, layers[layers.len() - 1].1), (0, 14));
        assert!(layers.is_sorted());

        let back = at(if pack { "a.gguf" } else { "b.gguf" });
        unshard(&*set, &back, &UnshardOptions::default()).unwrap();
        assert!(std::fs::read(&back).unwrap() == std::fs::read(at("in.gguf")).unwrap());
    }
}

#[test]
fn split_gguf_is_read_as_the_whole_was() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let source = model();
    let mut options = ShardOptions::new(ShardSize::Bytes(NonZero::new(9000).unwrap()));
    options.format = ShardFormat::Gguf;
    options.stem = "tiny".into();
    options.metadata_alone = true;
    let planned = plan_shards(&*source, &options).unwrap();
    let reports = shard(&*source, &at("split"), &options).unwrap();
    assert_eq!(
        planned.iter().map(|p| (&p.file, p.tensors)).collect::<Vec<_>>(),
        reports.iter().map(|p| (&p.file, p.tensors)).collect::<Vec<_>>()
    );
    assert_eq!(reports[0].tensors, 0);
    // One that is larger than a shard stands alone.
    assert!(planned.iter().all(|shard| shard.bytes <= 9000 || shard.tensors == 1), "{planned:?}");
    let count = reports.len();
    assert_eq!(names(&at("split"))[0], format!("tiny-00001-of-{count:05}.gguf"));
    let split = open(at("split")).unwrap();
    assert_eq!(split.header().tensors.len(), source.header().tensors.len());
    for (index, tensor) in split.header().tensors.iter().enumerate() {
        assert_eq!(tensor.name, source.header().tensors[index].name);
        assert!(*split.tensor(index).unwrap() == *source.tensor(index).unwrap());
    }
    unshard(&*split, &at("back.gguf"), &UnshardOptions::default()).unwrap();
    let back = open(at("back.gguf")).unwrap();
    assert_eq!(back.header().metadata, source.header().metadata);
}

#[test]
fn safetensors_shards_have_an_index_and_their_side_files() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let mut source = MemorySource::new(ModelFormat::Safetensors).side_file("config.json", *b"{}");
    for layer in 0..4 {
        let name = format!("model.layers.{layer}.mlp.up_proj.weight");
        source = source.tensor(name, [3, 5], TensorType::BF16, blocks(TensorType::BF16, 3, 5)).unwrap();
    }
    let source = source.build();
    let mut options = by_count(2);
    options.format = ShardFormat::Safetensors;
    shard(&*source, &at("two"), &options).unwrap();
    assert_eq!(
        names(&at("two")),
        [
            "config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json"
        ]
    );
    let index = std::fs::read_to_string(at("two").join("model.safetensors.index.json")).unwrap();
    assert!(index.contains("\"total_size\": 120"), "{index}");
    let set = open(at("two")).unwrap();
    unshard(&*set, &at("one"), &UnshardOptions::default()).unwrap();
    assert_eq!(names(&at("one")), ["config.json", "model.safetensors"]);
    let one = open(at("one")).unwrap();
    for (index, tensor) in one.header().tensors.iter().enumerate() {
        let before = source.header().position(&tensor.name).unwrap();
        assert!(*one.tensor(index).unwrap() == *source.tensor(before).unwrap());
    }
    let message = shard(&*model(), &at("no"), &options).unwrap_err().to_string();
    assert!(message.contains("convert it first"), "{message}");
    assert!(!at("no").exists());
}

#[test]
fn nothing_stands_there_after_a_cancel_and_resumed_work_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("set");
    let source = model();
    // Cancels when the tensor of layer 9 begins.
    let cancelling = |seen: &Arc<Mutex<Vec<String>>>| {
        let (cancel, seen) = (CancelToken::new(), seen.clone());
        let flag = cancel.clone();
        Control::new(cancel).watched_by(move |progress| {
            seen.lock().unwrap().push(progress.item.to_owned());
            if progress.item.starts_with("blk.9.") {
                flag.cancel();
            }
        })
    };
    let mut options = by_count(4);
    let seen = Arc::new(Mutex::new(Vec::new()));
    options.control = cancelling(&seen);
    assert_eq!(shard(&*source, &out, &options).unwrap_err().kind(), ErrorKind::Cancelled);
    assert_eq!(names(directory.path()), Vec::<String>::new());

    options.resume = Some("the same model".into());
    options.control = cancelling(&seen);
    assert!(shard(&*source, &out, &options).is_err());
    assert_eq!(names(directory.path()), [".set.partial"]);
    let again = Arc::new(Mutex::new(Vec::new()));
    let log = again.clone();
    options.control = Control::default().watched_by(move |p| log.lock().unwrap().push(p.item.to_owned()));
    let resumed = shard(&*source, &out, &options).unwrap();
    assert!(
        !again.lock().unwrap().iter().any(|item| item.starts_with("blk.0.")),
        "layer 0 was there already"
    );
    assert_eq!(names(directory.path()), ["set"]);
    options.resume = None;
    options.control = Control::default();
    let fresh = shard(&*source, &directory.path().join("fresh"), &options).unwrap();
    assert_eq!(resumed, fresh);
    assert_eq!(names(&out), names(&directory.path().join("fresh")));
}

#[test]
fn an_existing_directory_is_kept_unless_it_may_go() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("set");
    std::fs::create_dir(&out).unwrap();
    let mut options = by_count(1);
    let message = shard(&*model(), &out, &options).unwrap_err().to_string();
    assert!(message.contains("exists already"), "{message}");
    std::fs::write(out.join("old"), "old").unwrap();
    options.overwrite = true;
    shard(&*model(), &out, &options).unwrap();
    assert!(!out.join("old").exists() && open(&out).is_ok());
    assert_eq!(names(directory.path()), ["set"]);
    options.size = ShardSize::Count(NonZero::new(999).unwrap());
    assert!(shard(&*model(), &out, &options).unwrap_err().to_string().contains("999 shards for 33 tensors"));
    assert!(open(&out).is_ok());
}

/// The runtime takes tiles as they are: the same logits, bit for bit, on both executors.
#[test]
fn a_model_runs_from_its_packed_set_as_from_its_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = orion_testkit::models::smollm2();
    let mut options = by_count(3);
    options.pack = true;
    let out = directory.path().join("set");
    shard(&*open(&path).unwrap(), &out, &options).unwrap();
    let tokens: Vec<_> = [1, 9690, 198, 2683, 359, 253].map(TokenId).to_vec();
    for executor in [ExecutorKind::Cpu, ExecutorKind::Portable] {
        let logits = [&path, &out].map(|path| {
            let mut options = RuntimeOptions::default();
            options.executor = executor;
            let model = LocalRuntime::new(options).open(open(path).unwrap()).unwrap();
            let mut bits = Vec::new();
            model
                .evaluate(&tokens, Positions::All, |_, logits| {
                    bits.extend(logits.iter().map(|l| l.to_bits()))
                })
                .unwrap();
            bits
        });
        assert_eq!(logits[0].len(), tokens.len() * 49_152);
        assert!(logits[0] == logits[1], "{executor:?}");
    }
}
