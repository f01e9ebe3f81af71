//! Merging: the numbers of mergekit, the laws of the random methods, vocabularies, adapters, and what is refused.

#![allow(clippy::unwrap_used, reason = "in a test a panic is a failure")]

use std::collections::BTreeMap;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use orion_core::{MetaValue, ModelFormat, Result, TensorType, WeightSource};
use orion_kernels::{dequantize, quantize as encode};
use orion_loader::{MemorySource, open};
use orion_pipeline::{MergeConfig, MergeOptions, merge};
use serde_json::{Value, json};

type Tensors = BTreeMap<String, (Vec<u64>, Vec<f32>)>;

fn bytes(x: &[f32]) -> Vec<u8> {
    x.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn tensors(source: &dyn WeightSource) -> Tensors {
    let table = source.header().tensors.iter().enumerate();
    let values = table.map(|(index, tensor)| {
        let mut out = vec![0.0; tensor.elements() as usize];
        dequantize(tensor.ty, &source.tensor(index).unwrap(), &mut out).unwrap();
        (tensor.name.clone(), (tensor.shape.clone(), out))
    });
    values.collect()
}

fn model(tensors: &Tensors, ty: TensorType, config: &Value) -> Arc<dyn WeightSource> {
    let mut source =
        MemorySource::new(ModelFormat::Safetensors).side_file("config.json", config.to_string().into_bytes());
    for (name, (shape, values)) in tensors {
        let mut bytes = Vec::new();
        encode(ty, values, *shape.last().unwrap() as usize, None, &mut bytes).unwrap();
        source = source.tensor(name, &**shape, ty, bytes).unwrap();
    }
    source.build()
}

fn llama() -> Value {
    json!({ "model_type": "llama", "num_hidden_layers": 2, "vocab_size": 16, "dtype": "float32" })
}

/// The goldens: per model or case, tensors by name.
fn goldens(mark: char) -> BTreeMap<String, Tensors> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/goldens/merges.safetensors");
    let mut groups: BTreeMap<String, Tensors> = BTreeMap::new();
    for (name, values) in tensors(&*open(path).unwrap()) {
        if let Some((group, tensor)) = name.split_once(mark) {
            groups.entry(group.to_owned()).or_default().insert(tensor.to_owned(), values);
        }
    }
    groups
}

fn known(name: &str, models: &BTreeMap<String, Arc<dyn WeightSource>>) -> Result<Arc<dyn WeightSource>> {
    models
        .get(name)
        .cloned()
        .ok_or_else(|| orion_core::Error::invalid("no such model").about(name.to_owned()))
}

struct Bench {
    directory: tempfile::TempDir,
    models: BTreeMap<String, Arc<dyn WeightSource>>,
}

impl Bench {
    fn new() -> Self {
        let models = goldens(':')
            .into_iter()
            .map(|(name, tensors)| (name, model(&tensors, TensorType::F32, &llama())));
        Self { directory: tempfile::tempdir().unwrap(), models: models.collect() }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("out")
    }

    fn merge(&self, yaml: &str, options: &MergeOptions) -> Result<Arc<dyn WeightSource>> {
        let mut options = options.clone();
        options.overwrite = true;
        merge(&MergeConfig::parse(yaml)?, &|name| known(name, &self.models), &self.path(), &options)?;
        open(self.path())
    }

    fn refusal(&self, yaml: &str) -> String {
        let options = MergeOptions::default();
        let result = MergeConfig::parse(yaml)
            .and_then(|config| merge(&config, &|name| known(name, &self.models), &self.path(), &options));
        let error = result.unwrap_err();
        assert!(error.kind().is_bad_input(), "{error}");
        assert_eq!(std::fs::read_dir(self.directory.path()).unwrap().count(), 0, "{error}");
        error.to_string()
    }
}

/// mergekit computes in 32-bit floats and in other orders.
const TOLERANCE: f32 = 1e-6;

#[test]
fn every_method_gives_the_numbers_of_mergekit() {
    let bench = Bench::new();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/merges.json");
    let cases: BTreeMap<String, String> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let expected = goldens('=');
    assert_eq!(cases.len(), expected.len());
    assert!(cases.len() > 30);
    for (case, yaml) in &cases {
        let merged = tensors(
            &*bench.merge(yaml, &MergeOptions::default()).unwrap_or_else(|error| panic!("{case}: {error}")),
        );
        let names = |tensors: &Tensors| tensors.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&merged), names(&expected[case]), "{case}");
        for (name, (shape, values)) in &expected[case] {
            assert_eq!(&merged[name].0, shape, "{case} {name}");
            let far = values.iter().zip(&merged[name].1).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(far <= TOLERANCE, "{case} {name}: {far}");
        }
    }
}

/// Two models of one large matrix, and their base.
fn large() -> Bench {
    let mut bench = Bench::new();
    bench.models.clear();
    let noise = |seed: u64| {
        let mut state = seed;
        move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
        }
    };
    let base: Vec<f32> = std::iter::repeat_with(noise(1)).take(300 * 400).collect();
    for (name, seed) in [("base", 0), ("a", 2), ("b", 3)] {
        let mut change = noise(seed);
        let values = base.iter().map(|x| if seed == 0 { *x } else { x + 0.1 * change() }).collect();
        let tensors =
            BTreeMap::from([("model.layers.0.mlp.up_proj.weight".to_owned(), (vec![300, 400], values))]);
        bench.models.insert(name.to_owned(), model(&tensors, TensorType::F32, &llama()));
    }
    bench
}

const RANDOM: [&str; 4] = ["dare_linear", "dare_ties", "della", "della_linear"];

fn yaml(method: &str, parameters: &str) -> String {
    format!(
        "merge_method: {method}\nbase_model: base\nmodels:\n- {{model: a, parameters: {{weight: 1.0}}}}\nparameters: {{{parameters}}}\n"
    )
}

fn only(source: &dyn WeightSource) -> Vec<f32> {
    tensors(source).into_values().next().unwrap().1
}

#[test]
fn random_methods_keep_their_share_and_the_sum_of_magnitudes() {
    let bench = large();
    let (base, a) = (only(&*bench.models["base"]), only(&*bench.models["a"]));
    let before: f64 = a.iter().zip(&base).map(|(a, b)| f64::from((a - b).abs())).sum();
    for method in RANDOM {
        for density in [0.3, 0.6] {
            let yaml = yaml(method, &format!("density: {density}, epsilon: 0.2, normalize: false"));
            let merged = only(&*bench.merge(&yaml, &MergeOptions::default()).unwrap());
            let deltas: Vec<f32> = merged.iter().zip(&base).map(|(m, b)| m - b).collect();
            let kept = deltas.iter().filter(|delta| **delta != 0.0).count() as f64 / deltas.len() as f64;
            // Six standard deviations of a coin thrown 120,000 times.
            assert!((kept - density).abs() < 0.009, "{method} {density}: {kept}");
            let after: f64 = deltas.iter().map(|delta| f64::from(delta.abs())).sum();
            assert!((after / before - 1.0).abs() < 1e-4, "{method} {density}: {before} {after}");
            let scale = deltas.iter().zip(a.iter().zip(&base)).filter(|(d, _)| **d != 0.0);
            let ratios: Vec<f32> = scale.map(|(d, (a, b))| d / (a - b)).filter(|r| r.is_finite()).collect();
            let mean = ratios.iter().sum::<f32>() / ratios.len() as f32;
            let near = ratios.iter().filter(|ratio| (*ratio / mean - 1.0).abs() < 1e-2).count();
            assert!(near as f64 > 0.99 * ratios.len() as f64, "{method}: what stays is scaled alike");
        }
    }
}

#[test]
fn della_keeps_more_of_the_large_than_of_the_small() {
    let bench = large();
    let (base, a) = (only(&*bench.models["base"]), only(&*bench.models["a"]));
    let merged =
        only(&*bench.merge(&yaml("della", "density: 0.5, epsilon: 0.4"), &MergeOptions::default()).unwrap());
    let mut kept = [(0u32, 0u32); 2];
    for ((merged, base), a) in merged.iter().zip(&base).zip(&a) {
        let which = &mut kept[usize::from((a - base).abs() > 0.025)];
        *which = (which.0 + u32::from(merged != base), which.1 + 1);
    }
    let share = kept.map(|(kept, all)| f64::from(kept) / f64::from(all));
    // Ranks in the lower half are kept with 0.1 to 0.5, in the upper with 0.5 to 0.9.
    assert!((share[0] - 0.3).abs() < 0.02 && (share[1] - 0.7).abs() < 0.02, "{share:?}");
}

#[test]
fn the_seed_decides_and_threads_do_not() {
    let bench = large();
    for method in RANDOM.iter().chain(&["ties", "karcher", "model_stock", "sce"]) {
        let models = "- {model: a, parameters: {weight: 0.7}}\n- {model: b, parameters: {weight: 0.4}}";
        let yaml = format!(
            "merge_method: {method}\nbase_model: base\nmodels:\n{models}\nparameters: {{density: 0.5, select_topk: 0.4}}\n"
        );
        let run = |seed: u64, threads: usize| {
            let mut options = MergeOptions::default();
            (options.seed, options.threads) = (seed, NonZero::new(threads).unwrap());
            bench.merge(&yaml, &options).unwrap();
            std::fs::read(bench.path().join("model.safetensors")).unwrap()
        };
        assert!(run(1, 1) == run(1, 3), "{method}");
        if RANDOM.contains(method) {
            assert!(run(1, 2) != run(2, 2), "{method}");
        }
    }
}

#[test]
fn the_order_of_models_and_equal_models_change_nothing() {
    let bench = Bench::new();
    let of = |yaml: &str| tensors(&*bench.merge(yaml, &MergeOptions::default()).unwrap());
    let near = |a: &Tensors, b: &Tensors| {
        a.iter().all(|(name, (_, a))| a.iter().zip(&b[name].1).all(|(a, b)| (a - b).abs() < TOLERANCE))
    };
    for method in ["linear", "multislerp", "karcher"] {
        let pair = |first: &str, second: &str| {
            let weighted = |name: &str| format!("- {{model: {name}, parameters: {{weight: 0.5}}}}\n");
            of(&format!("merge_method: {method}\nmodels:\n{}{}", weighted(first), weighted(second)))
        };
        assert!(near(&pair("a", "b"), &pair("b", "a")), "{method}");
    }
    let alone =
        of("merge_method: ties\nbase_model: base\nmodels:\n- {model: a, parameters: {weight: 1.0}}\n");
    assert!(near(&alone, &tensors(&*bench.models["a"])));
}

#[test]
fn types_are_what_the_configuration_says() {
    let bench = Bench::new();
    let yaml = "merge_method: linear\nmodels:\n- {model: a, parameters: {weight: 1}}\n- {model: b, parameters: {weight: 1}}\n";
    let half = bench
        .merge(&format!("{yaml}dtype: float32\nout_dtype: bfloat16\n"), &MergeOptions::default())
        .unwrap();
    assert!(half.header().tensors.iter().all(|tensor| tensor.ty == TensorType::BF16));
    let config: Value =
        serde_json::from_str(half.header().side_text("config.json").unwrap().unwrap()).unwrap();
    assert_eq!(config["dtype"], "bfloat16");
    let full = tensors(&*bench.merge(yaml, &MergeOptions::default()).unwrap());
    for (name, (_, values)) in tensors(&*half) {
        // Rounded once, to the nearest.
        assert!(
            values.iter().zip(&full[&name].1).all(|(h, f)| *h == half::bf16::from_f32(*f).to_f32()),
            "{name}"
        );
    }
    let kept = std::fs::read_to_string(bench.path().join("mergekit_config.yml")).unwrap();
    assert_eq!(kept, yaml);
    assert!(half.header().metadata.contains_key("orion.provenance"));
}

#[test]
fn quantised_gguf_models_merge_into_gguf() {
    let bench = Bench::new();
    let gguf = |phase: f32| {
        let x: Vec<f32> = (0..4 * 64).map(|i| (i as f32 * 0.3 + phase).sin()).collect();
        let mut blocks = Vec::new();
        encode(TensorType::Q8_0, &x, 64, None, &mut blocks).unwrap();
        let source = MemorySource::new(ModelFormat::Gguf)
            .meta("general.architecture", MetaValue::Str("llama".into()))
            .meta("llama.block_count", MetaValue::U32(1))
            .tensor("blk.0.attn_norm.weight", [2], TensorType::F32, bytes(&[phase, 2.0]))
            .unwrap()
            .tensor("blk.0.attn_q.weight", [4, 64], TensorType::Q8_0, blocks)
            .unwrap();
        source.build()
    };
    let models = BTreeMap::from([("x".to_owned(), gguf(0.0)), ("y".to_owned(), gguf(1.0))]);
    let yaml = "merge_method: linear\nmodels:\n- {model: x, parameters: {weight: 1}}\n- {model: y, parameters: {weight: 3}}\n";
    let path = bench.directory.path().join("out.gguf");
    merge(&MergeConfig::parse(yaml).unwrap(), &|name| known(name, &models), &path, &MergeOptions::default())
        .unwrap();
    let merged = open(&path).unwrap();
    let types: Vec<_> = merged.header().tensors.iter().map(|tensor| tensor.ty).collect();
    assert_eq!(types, [TensorType::F32, TensorType::F16]);
    assert_eq!(merged.header().metadata["general.file_type"], MetaValue::U32(1));
    let (merged, x, y) = (tensors(&*merged), tensors(&*models["x"]), tensors(&*models["y"]));
    assert_eq!(merged["blk.0.attn_norm.weight"].1, [0.75, 2.0]);
    let name = "blk.0.attn_q.weight";
    let pairs = x[name].1.iter().zip(&y[name].1).zip(&merged[name].1);
    assert!(pairs.into_iter().all(|((x, y), m)| ((x + 3.0 * y) / 4.0 - m).abs() < 1e-3));
}

fn with_tokens(bench: &mut Bench, name: &str, tokens: &[&str], hidden: u64) {
    let vocab: serde_json::Map<String, Value> =
        tokens.iter().enumerate().map(|(id, t)| ((*t).to_owned(), id.into())).collect();
    let tokenizer = json!({ "model": { "type": "BPE", "vocab": vocab, "merges": [] }, "added_tokens": [] });
    let rows: Vec<f32> =
        (0..tokens.len() as u64 * hidden).map(|i| (name.len() as f32) * 100.0 + i as f32).collect();
    let mut config = llama();
    config["vocab_size"] = tokens.len().into();
    let source = MemorySource::new(ModelFormat::Safetensors)
        .side_file("config.json", config.to_string().into_bytes())
        .side_file("tokenizer.json", tokenizer.to_string().into_bytes())
        .tensor("model.embed_tokens.weight", [tokens.len() as u64, hidden], TensorType::F32, bytes(&rows))
        .unwrap();
    bench.models.insert(name.to_owned(), source.build());
}

#[test]
fn vocabularies_are_united_token_by_token() {
    let mut bench = Bench::new();
    with_tokens(&mut bench, "u", &["x", "y", "z"], 2);
    with_tokens(&mut bench, "vv", &["y", "w", "x", "q"], 2);
    let (u, v) = (only(&*bench.models["u"]), only(&*bench.models["vv"]));
    let models = "models:\n- {model: u, parameters: {weight: 1}}\n- {model: vv, parameters: {weight: 1}}\n";
    let yaml = |rest: &str| format!("merge_method: linear\n{models}{rest}");
    let merged = bench.merge(&yaml("tokenizer: {source: union, pad_to_multiple_of: 4, tokens: {q: {source: {kind: zero}, force: true}}}\n"), &MergeOptions::default()).unwrap();
    let text = merged.header().side_text("tokenizer.json").unwrap().unwrap();
    let tokenizer: Value = serde_json::from_str(text).unwrap();
    let added: Vec<_> = tokenizer["added_tokens"]
        .as_array()
        .unwrap()
        .iter()
        .map(|t| (t["content"].as_str().unwrap(), t["id"].as_u64().unwrap()))
        .collect();
    assert_eq!(added, [("w", 3), ("q", 4)]);
    let config: Value =
        serde_json::from_str(merged.header().side_text("config.json").unwrap().unwrap()).unwrap();
    assert_eq!(config["vocab_size"], 8);
    let rows = only(&*merged);
    let (row, of) =
        (|i: usize| [rows[2 * i], rows[2 * i + 1]], |x: &[f32], i: usize| [x[2 * i], x[2 * i + 1]]);
    let mean = |a: [f32; 2], b: [f32; 2]| [(a[0] + b[0]) / 2.0, (a[1] + b[1]) / 2.0];
    // In both; then in one only: its row in both models; then forced.
    assert_eq!(row(0), mean(of(&u, 0), of(&v, 2)));
    assert_eq!(row(1), mean(of(&u, 1), of(&v, 0)));
    assert_eq!((row(2), row(3), row(4)), (of(&u, 2), of(&v, 1), [0.0, 0.0]));
    let average = [0, 1, 2, 3, 4]
        .map(row)
        .iter()
        .fold([0.0, 0.0], |sum, row| [sum[0] + row[0] / 5.0, sum[1] + row[1] / 5.0]);
    assert!((row(7)[0] - average[0]).abs() < 1e-3 && (row(7)[1] - average[1]).abs() < 1e-3);

    let base = bench.merge(&yaml("tokenizer_source: base\n"), &MergeOptions::default()).unwrap();
    assert_eq!(base.header().tensors[0].shape, [3, 2]);
    let other = bench.merge(&yaml("tokenizer_source: vv\n"), &MergeOptions::default()).unwrap();
    assert_eq!(only(&*other)[2..4], of(&v, 1));
    std::fs::remove_dir_all(bench.path()).unwrap();
    let message = bench.refusal(&yaml(""));
    assert!(
        message.contains("u has [3, 2]")
            && message.contains("vv has [4, 2]")
            && message.contains("tokenizer_source"),
        "{message}"
    );
    let message = bench
        .refusal(&yaml("tokenizer: {tokens: {q: {source: {kind: model_token, model: u, token: none}}}}\n"));
    assert!(message.contains("\"none\""), "{message}");
}

#[test]
fn adapters_are_added_in() {
    let mut bench = Bench::new();
    let target = "model.layers.1.mlp.up_proj.weight";
    let (a, b): (Vec<f32>, Vec<f32>) =
        ((0..16).map(|i| i as f32 * 0.1).collect(), (0..24).map(|i| 1.0 - i as f32 * 0.1).collect());
    let adapter = |config: Value| {
        MemorySource::new(ModelFormat::Safetensors)
            .side_file("adapter_config.json", config.to_string().into_bytes())
            .tensor(
                "base_model.model.model.layers.1.mlp.up_proj.lora_A.weight",
                [2, 8],
                TensorType::F32,
                bytes(&a),
            )
            .unwrap()
            .tensor(
                "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight",
                [12, 2],
                TensorType::F32,
                bytes(&b),
            )
            .unwrap()
            .build()
    };
    bench.models.insert("tune".into(), adapter(json!({ "r": 2, "lora_alpha": 6, "fan_in_fan_out": false })));
    bench.models.insert("dora".into(), adapter(json!({ "r": 2, "lora_alpha": 6, "use_dora": true })));
    let merged = tensors(
        &*bench
            .merge("merge_method: passthrough\nmodels:\n- {model: a+tune}\n", &MergeOptions::default())
            .unwrap(),
    );
    let before = tensors(&*bench.models["a"]);
    for (name, (shape, values)) in &merged {
        for (at, (new, old)) in values.iter().zip(&before[name].1).enumerate() {
            let (row, column) = (at / *shape.last().unwrap() as usize, at % *shape.last().unwrap() as usize);
            let change = if name == target {
                3.0 * (b[row * 2] * a[column] + b[row * 2 + 1] * a[8 + column])
            } else {
                0.0
            };
            assert!((new - old - change).abs() < 1e-5, "{name} {at}");
        }
    }
    std::fs::remove_dir_all(bench.path()).unwrap();
    assert!(bench.refusal("merge_method: passthrough\nmodels:\n- {model: a+dora}\n").contains("use_dora"));
}

#[test]
fn what_does_not_fit_is_refused_by_name_and_leaves_nothing() {
    let mut bench = Bench::new();
    let two = "models:\n- {model: a, parameters: {weight: 1}}\n- {model: b, parameters: {weight: 1}}\n";
    let mut cases = vec![
        ("merge_method: magic\nmodels: [{model: a}]\n".to_owned(), "known: linear"),
        (two.to_owned(), "merge_method is missing"),
        ("merge_method: linear\n".to_owned(), "exactly one of models"),
        (format!("merge_method: linear\n{two}slices: [{{sources: [{{model: a, layer_range: [0, 1]}}]}}]\n"), "exactly one of models"),
        ("merge_method: linear\nmodels: [{model: a}]\n".to_owned(), "parameter weight is missing"),
        (format!("merge_method: ties\n{two}"), "base_model"),
        ("merge_method: slerp\nbase_model: a\nmodels: [{model: a}, {model: b}, {model: c}]\nparameters: {t: 0.5}\n".to_owned(), "exactly 2"),
        (format!("merge_method: slerp\nbase_model: a\n{two}"), "parameter t is missing"),
        ("merge_method: linear\nmodels: [{model: nowhere, parameters: {weight: 1}}]\n".to_owned(), "nowhere"),
        (format!("merge_method: linear\n{two}dtype: int4\n"), "float32, float16, bfloat16"),
        (format!("merge_method: linear\n{two}parameters: {{normalize: maybe}}\n"), "neither true nor false"),
        ("merge_method: linear\nmodels:\n- {model: a, parameters: {weight: .nan}}\n".to_owned(), "weight"),
        ("merge_method: passthrough\nslices: [{sources: [{model: a, layer_range: [1, 3]}]}]\n".to_owned(), "layers 1 to 3 of a model of 2"),
        ("merge_method: della\nbase_model: base\nmodels: [{model: a, parameters: {weight: 1, density: 0.9}}]\n".to_owned(), "epsilon"),
        ("a: &a [x,x]\nb: &b [*a,*a]\n".to_owned(), "merge_method is missing"),
        ("[1, 2".to_owned(), "YAML"),
    ];
    let change = |bench: &Bench, edit: &dyn Fn(&mut Tensors)| {
        let mut changed = tensors(&*bench.models["b"]);
        edit(&mut changed);
        changed
    };
    let (lacks, narrow, broken) = (
        change(&bench, &|t| drop(t.remove("model.layers.1.self_attn.q_proj.weight"))),
        change(&bench, &|t| drop(t.insert("model.norm.weight".into(), (vec![4], vec![0.0; 4])))),
        change(&bench, &|t| drop(t.remove("lm_head.weight"))),
    );
    let mut other = llama();
    other["model_type"] = "gemma".into();
    bench.models.insert("lacks".into(), model(&lacks, TensorType::F32, &llama()));
    bench.models.insert("narrow".into(), model(&narrow, TensorType::F32, &llama()));
    bench.models.insert("gemma".into(), model(&broken, TensorType::F32, &other));
    let mut nan = MemorySource::new(ModelFormat::Safetensors)
        .side_file("config.json", llama().to_string().into_bytes());
    for (name, (shape, mut values)) in tensors(&*bench.models["b"]) {
        if name == "model.norm.weight" {
            values[3] = f32::NAN;
        }
        nan = nan.tensor(name, shape, TensorType::F32, bytes(&values)).unwrap();
    }
    bench.models.insert("nan".into(), nan.build());
    let with = |name: &str| {
        format!(
            "merge_method: linear\nmodels:\n- {{model: a, parameters: {{weight: 1}}}}\n- {{model: {name}, parameters: {{weight: 1}}}}\n"
        )
    };
    cases.push((with("lacks"), "lacks has no tensor model.layers.1.self_attn.q_proj.weight, a has"));
    cases.push((with("narrow"), "a has [8], narrow has [4]"));
    cases.push((with("gemma"), "a is llama, gemma is gemma"));
    cases.push((with("nan"), "nan: holds NaN or infinity"));
    for (yaml, part) in cases {
        let message = bench.refusal(&yaml);
        assert!(message.contains(part), "{yaml}\n{message}");
    }
}

#[test]
fn simple_merges_need_no_file() {
    let bench = Bench::new();
    let names = ["a", "b"].map(str::to_owned);
    let config = MergeConfig::simple("slerp", &names, &[0.6, 0.4], None, &[]).unwrap();
    merge(&config, &|name| known(name, &bench.models), &bench.path(), &MergeOptions::default()).unwrap();
    let merged = tensors(&*open(bench.path()).unwrap());
    let same = "merge_method: slerp\nbase_model: a\nmodels: [{model: a}, {model: b}]\nparameters: {t: 0.4}\n";
    assert_eq!(merged, tensors(&*bench.merge(same, &MergeOptions::default()).unwrap()));
    assert!(MergeConfig::simple("slerp", &names, &[1.0], None, &[]).is_err());
    assert!(
        MergeConfig::simple("karcher", &names, &[0.5, 0.5], None, &[])
            .unwrap_err()
            .to_string()
            .contains("takes no ratios")
    );
}
