//! Layers, inheritance, queries, recommendations, edits, entries from headers, the demo catalogue.

#![allow(clippy::unwrap_used, reason = "in a test a panic is a failure")]

use std::collections::BTreeMap;
use std::path::Path;

use orion_core::{Catalog, MetaValue, ModelFormat, ModelHeader, ModelId, TensorInfo, TensorType, TileLayout};
use orion_registry::{
    Edited, FileRole, Format, Hardware, Measured, MissingFiles, ModelEntry, ModelOnDisk, Need, Preference,
    Profile, Registry, Sources, entry_from_files, entry_from_header, entry_from_path, find_models,
    put_measured, put_model, save_measured, save_model, validate,
};

const DEMO: &str = include_str!("../../models.json");
const GIB: u64 = 1 << 30;

fn demo() -> Registry {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models.json");
    Registry::load(&Sources::new(path).missing_files(MissingFiles::Ignore)).unwrap()
}

/// A machine with this much memory, all of it free.
fn machine(bytes: u64) -> Hardware {
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir(root.path().join("proc")).unwrap();
    let kib = bytes / 1024;
    std::fs::write(root.path().join("proc/meminfo"), format!("MemTotal: {kib} kB\nMemAvailable: {kib} kB\n"))
        .unwrap();
    Hardware::detect_under(root.path())
}

#[test]
fn the_demo_is_complete() {
    let registry = demo();
    assert!(registry.warnings().problems.is_empty(), "{}", registry.warnings());
    let agents = registry.in_group("agents").unwrap();
    assert_eq!(agents.len(), 6);
    let smollm2 = registry.model("smollm2").unwrap();
    for agent in agents {
        assert_eq!(agent.spec.files, smollm2.spec.files, "{} shares the weights", agent.id());
        assert_eq!(agent.spec.kv_bytes_per_token, 23_040);
        assert!(agent.spec.examples.len() >= 10 && agent.spec.keywords.len() >= 10, "{}", agent.id());
        assert!(!agent.spec.description.is_empty() && agent.spec.system_prompt.is_some());
        assert!(!agent.spec.fallback.is_empty());
        agent.spec.sampling.validate().unwrap();
    }
    for model in registry.models() {
        let entry = &model.entry;
        assert!(entry.files.iter().all(|file| file.bytes.is_some() && file.sha256.is_some()), "{}", entry.id);
        assert!(
            entry.architecture.is_some()
                && entry.quantization.is_some()
                && entry.context_length.is_some()
                && entry.parameters.is_some()
                && entry.memory.weight_bytes.is_some()
                && entry.min_ram_bytes.is_some()
                && entry.licence.is_some(),
            "{}",
            entry.id
        );
        assert!(model.spec.files.iter().all(|file| file.digest.is_some()));
    }
    assert_eq!(registry.get(&ModelId::from("default")).unwrap().id.as_str(), "conversation");
    assert_eq!(registry.defaults().embedder.as_deref(), Some("all-minilm-l6-v2"));
    assert!(
        registry.model("gemma").unwrap().can("completion") && !registry.model("gemma").unwrap().can("chat")
    );
}

#[test]
fn a_base_gives_what_is_not_set_and_no_more() {
    let text = r#"{"version": 1, "defaults": {"sampling": {"top_k": 7, "temperature": 0.1}}, "models": [
        {"id": "agent", "base": "middle", "sampling": {"temperature": 0.9}, "stop": ["X"]},
        {"id": "middle", "base": "root", "context_length": 100},
        {"id": "root", "name": "Root", "files": [{"path": "r.gguf", "bytes": 5}], "context_length": 50, "priority": 3,
         "sampling": {"min_p": 0.2}, "stop": ["Y"], "capabilities": ["chat"], "routing": {"keywords": ["k"]},
         "prompt": {"user_prefix": "U", "assistant_prefix": "A", "end_tokens": ["<end>"]}}]}"#;
    let registry =
        Registry::load(&Sources::text("models.json", text).missing_files(MissingFiles::Ignore)).unwrap();
    let spec = registry.get(&ModelId::from("agent")).unwrap();
    assert_eq!(
        (spec.context_length, spec.weight_bytes, spec.priority, spec.name.as_str()),
        (100, 5, 0, "agent")
    );
    let sampling = (spec.sampling.temperature, spec.sampling.min_p, spec.sampling.top_k, spec.sampling.top_p);
    assert_eq!(sampling, (0.9, 0.2, 7, 0.95));
    assert_eq!(spec.stop, ["X", "<end>"]);
    assert!(spec.keywords.is_empty() && spec.capabilities == ["chat"]);
}

#[test]
fn prefixes_become_a_template_that_renders_them() {
    let text = r#"{"version": 1, "models": [{"id": "a", "files": [{"path": "a"}], "prompt":
        {"system_prefix": "<s>\n", "user_prefix": "<u>\"'{{", "assistant_prefix": "<a>\n", "turn_end": "</t>\n"}}]}"#;
    let registry =
        Registry::load(&Sources::text("models.json", text).missing_files(MissingFiles::Ignore)).unwrap();
    let template = registry.get(&ModelId::from("a")).unwrap().chat_template.clone().unwrap();
    let turn = |role: &str, content: &str| {
        BTreeMap::from([("role", role.to_owned()), ("content", content.to_owned())])
    };
    let messages =
        [turn("system", "S"), turn("user", " {{ x }} "), turn("assistant", "A"), turn("user", "é\n")];
    let render = |go_on: bool| {
        let context = minijinja::context! { messages => &messages, add_generation_prompt => go_on };
        minijinja::Environment::new().render_str(&template, context).unwrap()
    };
    let turns = "<s>\nS</t>\n<u>\"'{{ {{ x }} </t>\n<a>\nA</t>\n<u>\"'{{é\n</t>\n";
    assert_eq!(render(false), turns);
    assert_eq!(render(true), format!("{turns}<a>\n"));
}

#[test]
fn layers_are_laid_on_top_of_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    };
    let base = file(
        "models.json",
        r#"{"version": 1, "defaults": {"model": "a", "sampling": {"top_k": 1}}, "aliases": {"x": "a", "y": "a"},
        "groups": {"g": {"models": ["a"]}, "h": {"models": ["a"]}},
        "models": [{"id": "a", "files": [{"path": "a.gguf"}], "context_length": 1, "licence": "MIT"},
                   {"id": "b", "files": [{"path": "b.gguf"}]}]}"#,
    );
    let custom = file(
        "custom/models.json",
        r#"{"version": 1, "defaults": {"sampling": {"min_p": 0.5}}, "aliases": {"x": "c"}, "groups": {"g": {"models": ["c", "b"]}},
        "models": [{"id": "c", "base": "b", "fallback": ["a"]}, {"id": "a", "files": [{"path": "own.gguf"}]}]}"#,
    );
    let user =
        file("user.json", r#"{"version": 1, "measured": {"x": {"tokens_per_second": 42.5, "ttft_ms": 80}}}"#);
    let sources =
        Sources::new(&base).with_layer(&custom).with_layer(&user).with_layer(dir.path().join("absent.json"));
    let sources = sources.missing_files(MissingFiles::Ignore);
    let registry = Registry::load(&sources).unwrap();
    let ids: Vec<_> = registry.models().iter().map(|model| model.id()).collect();
    assert_eq!(ids, ["a", "b", "c"], "a replaced model keeps its place");
    let a = registry.model("y").unwrap();
    assert_eq!((a.id(), a.spec.context_length, &a.entry.licence), ("a", 0, &None), "replaced as a whole");
    assert!(a.spec.files[0].location.ends_with("custom/own.gguf"), "{}", a.spec.files[0].location);
    let c = registry.model("x").unwrap();
    assert!(c.spec.files[0].location.ends_with("b.gguf") && !c.spec.files[0].location.contains("custom"));
    assert_eq!(c.measured.as_ref().unwrap().tokens_per_second, Some(42.5));
    assert_eq!(registry.in_group("g").unwrap().len(), 2);
    assert_eq!(registry.in_group("h").unwrap().len(), 1);
    let sampling = &registry.defaults().sampling;
    assert_eq!(
        (registry.defaults().model.as_deref(), sampling.top_k, sampling.min_p),
        (Some("a"), Some(1), Some(0.5))
    );

    // A problem in an upper layer is reported there.
    file("custom/models.json", r#"{"version": 1, "models": [{"id": "c", "base": "bb"}]}"#);
    let report = validate(&sources);
    assert_eq!(report.problems[0].place.file, custom.display().to_string());
    assert_eq!(
        (report.problems[0].code, report.problems[0].place.pointer.as_str()),
        ("unknown-model", "/models/0/base")
    );
    // A layer that cannot be parsed does not make the others look wrong.
    file("custom/models.json", "{");
    assert_eq!(validate(&sources).errors, 1);
}

#[test]
fn queries_by_capability_group_language_and_memory() {
    let registry = demo();
    let ids = |models: Vec<&orion_registry::RegisteredModel>| {
        models.iter().map(|model| model.id().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(ids(registry.with_capability("embedding").collect()), ["all-minilm-l6-v2"]);
    assert_eq!(ids(registry.speaking("fr").collect()), ["gemma-3-270m", "translation"]);
    assert_eq!(ids(registry.in_group("encoders").unwrap()), ["all-minilm-l6-v2"]);
    assert!(registry.in_group("nothing").is_none());
    let smollm2 = registry.model("smollm2").unwrap();
    let expected = 96_576_768 + 2048 * 23_040 + (64 << 20);
    assert_eq!(smollm2.memory_bytes(2048), expected);
    assert_eq!(smollm2.memory_bytes(1_000_000), smollm2.memory_bytes(8192), "no more than it has");
    let fit = ids(registry.fitting(expected, 2048).collect());
    assert!(fit.contains(&"code".to_owned()) && !fit.contains(&"gemma-3-270m".to_owned()));
    let error = registry.expect_model("smolm2").unwrap_err();
    assert_eq!(
        error.to_string(),
        "model smolm2: no model of that name in the registry; did you mean \"smollm2\"?"
    );
    let row = &registry.rows()[0];
    assert_eq!((row.id.as_str(), row.aliases.len()), ("smollm2-135m-instruct", 2));
    assert_eq!(serde_json::to_value(row).unwrap()["quantization"], "Q4_1");
}

#[test]
fn recommendations_give_reasons_for_and_against() {
    let registry = demo();
    let large = registry.recommend(&machine(16 * GIB), &Need::named("coding")).unwrap();
    assert_eq!((large.best(), large.profile), (Some("code"), Profile::Full));
    assert_eq!(large.fitting.len(), 3);
    assert!(large.fitting[0].reasons[0].contains("number 1 of 3 for coding"), "{large}");
    let out = large.ruled_out.iter().find(|it| it.model == "creative").unwrap();
    assert_eq!(out.reasons, ["is not in the recommendation coding"]);

    let small = registry.recommend(&machine(GIB), &Need::any().memory(200 << 20)).unwrap();
    let gemma = small.ruled_out.iter().find(|it| it.model == "gemma-3-270m").unwrap();
    assert!(
        gemma.reasons.iter().any(|reason| reason.starts_with("needs 336 MiB with 2048 tokens, 200 MiB")),
        "{small}"
    );
    assert_eq!(small.profile, Profile::Micro);

    let french =
        registry.recommend(&machine(16 * GIB), &Need::capability("translation").language("fr")).unwrap();
    assert_eq!((french.best(), french.fitting.len()), (Some("translation"), 1));
    let long = registry.recommend(&machine(16 * GIB), &Need::any().context(30_000)).unwrap();
    assert_eq!((long.best(), long.fitting.len()), (Some("gemma-3-270m"), 1));
    let encoder = registry.recommend(&machine(16 * GIB), &Need::capability("embedding")).unwrap();
    assert_eq!(encoder.best(), Some("all-minilm-l6-v2"));
    let any = registry.recommend(&machine(16 * GIB), &Need::any()).unwrap();
    assert!(any.fitting.iter().all(|it| it.model != "all-minilm-l6-v2"));
    let error = registry.recommend(&machine(GIB), &Need::named("codin")).unwrap_err();
    assert!(error.to_string().contains("did you mean \"coding\"?"), "{error}");
    let unknown = registry
        .recommend(&Hardware::detect_under(Path::new("/nothing/here")), &Need::capability("chat"))
        .unwrap();
    assert!(unknown.memory_bytes.is_none() && unknown.to_string().contains("memory unknown"));
    assert!(!unknown.fitting.is_empty(), "what is not known rules nothing out");
}

#[test]
fn what_was_measured_outweighs_what_is_said() {
    let text = r#"{"version": 1, "models": [
        {"id": "said-fast", "files": [{"path": "a"}], "speed": "fast", "quality": "fair"},
        {"id": "measured", "files": [{"path": "b"}], "speed": "slow", "quality": "fair"},
        {"id": "good", "files": [{"path": "c"}], "speed": "slow", "quality": "best"}],
        "measured": {"measured": {"tokens_per_second": 200}}}"#;
    let registry =
        Registry::load(&Sources::text("models.json", text).missing_files(MissingFiles::Ignore)).unwrap();
    let best = |prefer| {
        registry.recommend(&machine(GIB), &Need::any().prefer(prefer)).unwrap().best().unwrap().to_owned()
    };
    assert_eq!(best(Preference::Speed), "measured");
    assert_eq!(best(Preference::Quality), "good");
}

#[test]
fn edits_leave_every_other_byte_alone() {
    let mut entry = ModelEntry::new("new");
    entry.licence = Some("MIT".into());
    let (added, edited) = put_model(DEMO, &entry).unwrap();
    assert_eq!(edited, Edited::Added);
    let text = "    {\n      \"id\": \"new\",\n      \"licence\": \"MIT\"\n    }\n";
    let at = added.find(text).expect("indented as its neighbours");
    let without = [added[..at].trim_end_matches([',', '\n']), "\n", &added[at + text.len()..]].concat();
    assert_eq!(without, DEMO);
    assert_eq!(put_model(&added, &entry).unwrap(), (added.clone(), Edited::Unchanged));
    entry.licence = Some("Apache-2.0".into());
    let (replaced, edited) = put_model(&added, &entry).unwrap();
    assert_eq!(
        (replaced, edited),
        (added.replacen("\"licence\": \"MIT\"", "\"licence\": \"Apache-2.0\"", 1), Edited::Replaced)
    );
    // Whatever a document looks like before, it parses after.
    for text in [
        "{}",
        "{\"version\":1}",
        "{\"models\":[]}",
        "{\"models\":[{\"id\":\"a\"}],\"version\":1}",
        "{\n\t\"models\": [\n\t]\n}",
    ] {
        let (after, _) = put_model(text, &entry).unwrap();
        let value: serde_json::Value = serde_json::from_str(&after).unwrap();
        assert_eq!(value["models"].as_array().unwrap().last().unwrap()["licence"], "Apache-2.0", "{after}");
        let mut figures = Measured::default();
        figures.ttft_ms = Some(1.5);
        let (after, _) = put_measured(&after, "a/b\"", &figures).unwrap();
        let (after, edited) = put_measured(&after, "c", &figures).unwrap();
        let value: serde_json::Value = serde_json::from_str(&after).unwrap();
        assert_eq!(
            (edited, &value["measured"]["a/b\""]["ttft_ms"], &value["measured"]["c"]["ttft_ms"]),
            (Edited::Added, &1.5.into(), &1.5.into())
        );
    }
    assert!(put_model("{", &entry).unwrap_err().to_string().contains("line 1, column 2"));
    assert!(put_model("[]", &entry).is_err());
}

#[test]
fn files_are_written_whole_by_many_writers() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("user/measured.json");
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let path = &path;
            scope.spawn(move || {
                let mut figures = Measured::default();
                figures.tokens_per_second = Some(f64::from(writer) + 0.5);
                save_measured(path, &format!("m{writer}"), &figures).unwrap();
            });
        }
        for _ in 0..200 {
            if let Ok(text) = std::fs::read_to_string(&path) {
                serde_json::from_str::<serde_json::Value>(&text).expect("never half a file");
            }
        }
    });
    let left: Vec<_> =
        std::fs::read_dir(path.parent().unwrap()).unwrap().map(|it| it.unwrap().file_name()).collect();
    assert_eq!(left, ["measured.json"], "no temporary file stays");
    let broken = dir.path().join("broken.json");
    std::fs::write(&broken, "{").unwrap();
    assert!(save_model(&broken, &ModelEntry::new("a")).is_err());
    assert_eq!(std::fs::read_to_string(&broken).unwrap(), "{");
}

fn tensor(name: &str, ty: TensorType, rows: u64, columns: u64) -> TensorInfo {
    let bytes = ty.bytes_of(rows * columns).unwrap();
    TensorInfo {
        name: name.into(),
        shape: vec![rows, columns],
        ty,
        layout: TileLayout::RowMajor,
        file: 0,
        offset: 0,
        bytes,
    }
}

/// The header of SmolLM2, without most of its tensors.
fn gguf() -> ModelHeader {
    let text = |text: &str| MetaValue::Str(text.into());
    let metadata = [
        ("general.architecture", text("llama")),
        ("general.name", text("SmolLM2 135M")),
        ("general.license", text("apache-2.0")),
        ("general.file_type", MetaValue::U32(3)),
        ("llama.block_count", MetaValue::U32(30)),
        ("llama.context_length", MetaValue::U32(8192)),
        ("llama.embedding_length", MetaValue::U32(576)),
        ("llama.attention.head_count", MetaValue::U32(9)),
        ("llama.attention.head_count_kv", MetaValue::U32(3)),
        ("tokenizer.chat_template", text("{{ messages }}")),
    ];
    let metadata = metadata.map(|(key, value)| (key.to_owned(), value)).into();
    let tensors = vec![tensor("a", TensorType::Q4_1, 64, 576), tensor("b", TensorType::F32, 1, 576)];
    ModelHeader::new(ModelFormat::Gguf, metadata, tensors)
}

#[test]
fn a_gguf_header_becomes_a_complete_entry() {
    let entry = entry_from_header("models/SmolLM2 135M.Q4_1.gguf", 98_362_432, &gguf());
    assert_eq!((entry.id.as_str(), entry.name.as_deref()), ("smollm2-135m.q4_1", Some("SmolLM2 135M")));
    assert_eq!((entry.architecture.as_deref(), entry.format), (Some("llama"), Some(Format::Gguf)));
    assert_eq!((entry.quantization.as_deref(), entry.context_length), (Some("Q4_1"), Some(8192)));
    assert_eq!((entry.parameters, entry.disk_bytes), (Some(65 * 576), Some(98_362_432)));
    // 64 × 576 / 32 × 20 + 576 × 4; 30 layers × 3 heads × (64 + 64) × 2 bytes.
    assert_eq!((entry.memory.weight_bytes, entry.memory.kv_bytes_per_token), (Some(25_344), Some(23_040)));
    assert_eq!(
        (entry.capabilities.as_slice(), entry.licence.as_deref()),
        (&["chat".to_owned()][..], Some("apache-2.0"))
    );
    // Whatever a header says, the entry is one the registry takes.
    let dir = tempfile::tempdir().unwrap();
    let mut entry = entry_from_header("a.gguf", 25_344, &gguf());
    entry.files[0].bytes = None;
    let path = dir.path().join("models.json");
    save_model(&path, &entry).unwrap();
    Registry::load(&Sources::new(&path).missing_files(MissingFiles::Ignore)).unwrap();
}

#[test]
fn a_safetensors_header_is_read_with_its_side_files() {
    let mut header = ModelHeader::new(
        ModelFormat::Safetensors,
        BTreeMap::new(),
        vec![tensor("w", TensorType::F16, 10, 10)],
    );
    let config = r#"{"model_type": "qwen2", "max_position_embeddings": 32768, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2, "hidden_size": 896}"#;
    header.side_files.insert("config.json".into(), config.as_bytes().into());
    let entry = entry_from_header("qwen/model.safetensors", 300, &header);
    assert_eq!((entry.id.as_str(), entry.architecture.as_deref()), ("qwen", Some("qwen2")));
    assert_eq!(
        (entry.context_length, entry.memory.kv_bytes_per_token),
        (Some(32_768), Some(24 * 2 * 64 * 2 * 2))
    );
    assert_eq!((entry.quantization.as_deref(), entry.capabilities[0].as_str()), (Some("F16"), "completion"));
    // Nonsense is left out, never a panic.
    header.side_files.insert(
        "config.json".into(),
        r#"{"model_type": 5, "num_attention_heads": 0, "hidden_size": -1}"#.as_bytes().into(),
    );
    let entry = entry_from_header("x", 0, &header);
    assert_eq!(
        (entry.architecture, entry.context_length, entry.memory.kv_bytes_per_token),
        (None, None, None)
    );
}

#[test]
fn models_are_found_with_their_shards_and_side_files() {
    let dir = tempfile::tempdir().unwrap();
    for name in [
        "b/x-00001-of-00002.gguf",
        "b/x-00002-of-00002.gguf",
        "a.GGUF",
        "c/model.safetensors",
        "c/config.json",
        ".hidden/h.gguf",
        "n.txt",
    ] {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, name).unwrap();
    }
    let found: Vec<ModelOnDisk> = find_models(dir.path()).unwrap().into_iter().map(Result::unwrap).collect();
    let names: Vec<Vec<_>> = found
        .iter()
        .map(|model| {
            model
                .weights
                .iter()
                .map(|it| it.strip_prefix(dir.path()).unwrap().to_str().unwrap().to_owned())
                .collect()
        })
        .collect();
    assert_eq!(
        names,
        [
            vec!["a.GGUF"],
            vec!["b/x-00001-of-00002.gguf", "b/x-00002-of-00002.gguf"],
            vec!["c/model.safetensors"]
        ]
    );
    let second = ModelOnDisk::of(&dir.path().join("b/x-00002-of-00002.gguf")).unwrap();
    assert_eq!(second, found[1], "a shard stands for its set");
    let entry = entry_from_files(dir.path(), &found[1], &gguf()).unwrap();
    assert_eq!((entry.id.as_str(), entry.files.len(), entry.disk_bytes), ("x", 2, Some(46)));
    let digest = "8a9284a55e6b4d6bfd4ab9c9dc064dd5d12f742f79c894f1a9a5e8e1c4197c2e";
    assert_eq!(entry.files[0].sha256.as_deref(), Some(digest), "of the text its name");
    let entry = entry_from_files(dir.path(), &found[2], &gguf()).unwrap();
    assert_eq!(
        (entry.files[1].role, entry.files[1].path.as_deref()),
        (FileRole::Config, Some("c/config.json"))
    );
    assert!(
        entry_from_files(&dir.path().join("c"), &found[1], &gguf())
            .unwrap_err()
            .to_string()
            .contains("not below")
    );
    std::fs::remove_file(dir.path().join("b/x-00001-of-00002.gguf")).unwrap();
    let left = find_models(dir.path()).unwrap();
    assert_eq!(left.len(), 3, "the others are found all the same");
    assert!(left[1].as_ref().unwrap_err().to_string().contains("x-00001-of-00002.gguf"));
    assert!(ModelOnDisk::of(&dir.path().join("n.txt")).is_err());
}

#[test]
fn the_demo_says_what_the_models_files_say() {
    let registry = demo();
    let root = orion_testkit::models::cache();
    for (id, path) in [
        ("smollm2", orion_testkit::models::smollm2()),
        ("minilm", orion_testkit::models::minilm().join("model.safetensors")),
    ] {
        let read = entry_from_path(&root, &path).unwrap();
        let stated = &registry.model(id).unwrap().entry;
        let facts = |entry: &ModelEntry| {
            let mut files = entry.files.clone();
            files.sort_by(|a, b| a.path.cmp(&b.path));
            (
                (files, entry.disk_bytes, entry.memory.clone()),
                (entry.architecture.clone(), entry.format, entry.quantization.clone()),
                (entry.context_length, entry.parameters, entry.capabilities.clone()),
            )
        };
        assert_eq!(facts(stated), facts(&read), "{id}");
    }
    // With the folder of models named, nothing is missing but what need not be fetched.
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models.json");
    let report = validate(&Sources::new(path).with_model_folder(&root));
    assert!(report.problems.iter().all(|problem| problem.message.contains("gemma")), "{report}");
}
