//! Entries made of headers: classes at their bounds, names, what each key of a header comes to.

#![allow(clippy::unwrap_used, reason = "in a test a panic is a failure")]

use std::collections::BTreeMap;

use orion_core::{
    MetaArray, MetaValue, ModelFormat, ModelHeader, StringTable, TensorInfo, TensorType, TileLayout,
};
use orion_registry::{ModelEntry, Quality, Speed, entry_from_header};

fn tensor(name: &str, ty: TensorType, elements: u64, bytes: u64) -> TensorInfo {
    let (name, shape, layout) = (name.to_owned(), vec![elements], TileLayout::RowMajor);
    TensorInfo { name, shape, ty, layout, file: 0, offset: 0, bytes }
}

fn gguf(metadata: Vec<(&str, MetaValue)>, tensors: Vec<TensorInfo>) -> ModelEntry {
    let metadata = metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    entry_from_header("m.gguf", 1, &ModelHeader::new(ModelFormat::Gguf, metadata, tensors))
}

fn text(text: &str) -> MetaValue {
    MetaValue::Str(text.to_owned())
}

#[test]
fn classes_of_quality_and_speed_begin_where_they_are_said_to() {
    let of = |elements, bytes| {
        let entry = gguf(vec![], vec![tensor("w", TensorType::F32, elements, bytes)]);
        (entry.quality.unwrap(), entry.speed.unwrap())
    };
    assert_eq!(of(999_999_999, 499_999_999), (Quality::Basic, Speed::Fast));
    assert_eq!(of(1_000_000_000, 500_000_000), (Quality::Fair, Speed::Medium));
    assert_eq!(of(5_999_999_999, 5_999_999_999), (Quality::Fair, Speed::Medium));
    assert_eq!(of(6_000_000_000, 6_000_000_000), (Quality::Good, Speed::Slow));
    assert_eq!(of(29_999_999_999, 6_000_000_000), (Quality::Good, Speed::Slow));
    assert_eq!(of(30_000_000_000, 6_000_000_000).0, Quality::Best);
}

#[test]
fn a_description_has_name_architecture_size_and_type() {
    let described = |elements| {
        let metadata = vec![("general.name", text("Some Model")), ("general.architecture", text("llama"))];
        gguf(metadata, vec![tensor("w", TensorType::Q4_0, elements, 18)]).routing.description.unwrap()
    };
    assert_eq!(described(135_000_000), "Some Model, llama, 135.0 M parameters, Q4_0");
    assert_eq!(described(999_999_999), "Some Model, llama, 1000.0 M parameters, Q4_0");
    assert_eq!(described(1_500_000_000), "Some Model, llama, 1.5 B parameters, Q4_0");
    let empty = gguf(vec![], vec![]);
    assert_eq!(empty.routing.description.as_deref(), Some("m"));
    assert_eq!((empty.parameters, empty.memory.weight_bytes, empty.quantization), (None, None, None));
}

#[test]
fn memory_is_reckoned_with_4096_tokens_and_rounded_up_to_64_mib() {
    let metadata = |context: u32| {
        vec![
            ("general.architecture", text("llama")),
            ("llama.context_length", MetaValue::U32(context)),
            ("llama.block_count", MetaValue::U32(2)),
            ("llama.embedding_length", MetaValue::U32(64)),
            ("llama.attention.head_count", MetaValue::U32(4)),
        ]
    };
    // 2 layers of 4 heads of 16, keys and values, 2 bytes each.
    let entry = gguf(metadata(8192), vec![tensor("w", TensorType::F32, 1, 1)]);
    assert_eq!(entry.memory.kv_bytes_per_token, Some(2 * 4 * 32 * 2));
    // 1 + 512 x 4096 + 128 MiB is a little more than two times 64 MiB.
    assert_eq!(entry.min_ram_bytes, Some(192 << 20));
    // 128 MiB to the byte, with keys and values for 1 MiB less of weights.
    let entry = gguf(metadata(2048), vec![tensor("w", TensorType::F32, 1, (64 << 20) - (1 << 20))]);
    assert_eq!(entry.min_ram_bytes, Some(192 << 20));
    let entry = gguf(metadata(2048), vec![tensor("w", TensorType::F32, 1, (64 << 20) - (1 << 20) + 1)]);
    assert_eq!(entry.min_ram_bytes, Some(256 << 20));
}

#[test]
fn heads_are_counted_as_the_header_states_them() {
    let with = |more: Vec<(&'static str, MetaValue)>| {
        let mut metadata = vec![
            ("general.architecture", text("llama")),
            ("llama.block_count", MetaValue::U32(3)),
            ("llama.embedding_length", MetaValue::U32(64)),
            ("llama.attention.head_count", MetaValue::U32(4)),
        ];
        metadata.extend(more);
        gguf(metadata, vec![]).memory.kv_bytes_per_token
    };
    let kv = "llama.attention.head_count_kv";
    assert_eq!(with(vec![]), Some(3 * 4 * 32 * 2));
    assert_eq!(with(vec![(kv, MetaValue::U32(2))]), Some(3 * 2 * 32 * 2));
    assert_eq!(with(vec![(kv, MetaValue::Array(MetaArray::I32(vec![2, 0, 1])))]), Some(3 * 32 * 2));
    assert_eq!(with(vec![(kv, MetaValue::Array(MetaArray::U32(vec![2, 1, 1])))]), Some(4 * 32 * 2));
    let lengths = vec![
        ("llama.attention.key_length", MetaValue::U32(10)),
        ("llama.attention.value_length", MetaValue::U32(20)),
    ];
    assert_eq!(with(lengths), Some(3 * 4 * 30 * 2));
    // A billion bytes a token is no model.
    assert_eq!(with(vec![("llama.attention.key_length", MetaValue::U32(1 << 30))]), None);
    let encoder =
        gguf(vec![("general.architecture", text("bert")), ("bert.block_count", MetaValue::U32(3))], vec![]);
    assert_eq!(encoder.memory.kv_bytes_per_token, Some(0));
    assert_eq!(encoder.capabilities, ["embedding"]);
    let pooled = vec![("general.architecture", text("qwen3")), ("qwen3.pooling_type", MetaValue::U32(3))];
    assert_eq!(gguf(pooled, vec![]).capabilities, ["embedding"]);
}

#[test]
fn texts_of_a_header_are_trimmed_cut_and_checked() {
    let languages = |codes: &[&str]| {
        let table: StringTable = codes.iter().collect();
        ("general.languages", MetaValue::Array(MetaArray::Str(table)))
    };
    let entry = gguf(
        vec![
            ("general.name", text(&format!("  {} ", "é".repeat(70)))),
            ("general.license", text(" ")),
            languages(&["en", "fra", "EN", "e", "engl", "f1"]),
            ("tokenizer.chat_template", text("")),
        ],
        vec![],
    );
    assert_eq!(entry.name, Some("é".repeat(64)));
    assert_eq!(entry.licence, None);
    assert_eq!(entry.languages, ["en", "fra"]);
    assert_eq!(entry.capabilities, ["chat", "multilingual"]);
    let code = gguf(vec![("general.name", text("StarCoder")), languages(&["en"])], vec![]);
    assert_eq!(code.capabilities, ["completion", "code"]);
    let whole = gguf(vec![("general.name", text(&"n".repeat(64)))], vec![]);
    assert_eq!(whole.name, Some("n".repeat(64)));
    for (tokens, expected) in
        [(0, None), (1, Some(1)), (16_777_216, Some(16_777_216)), (16_777_217, None), (u64::MAX, None)]
    {
        let metadata =
            vec![("general.architecture", text("llama")), ("llama.context_length", MetaValue::U64(tokens))];
        assert_eq!(gguf(metadata, vec![]).context_length, expected);
    }
}

#[test]
fn file_types_have_the_names_of_their_mixtures() {
    for (number, name) in [
        (0, "F32"),
        (1, "F16"),
        (2, "Q4_0"),
        (3, "Q4_1"),
        (7, "Q8_0"),
        (8, "Q5_0"),
        (9, "Q5_1"),
        (10, "Q2_K"),
        (11, "Q3_K_S"),
        (12, "Q3_K_M"),
        (13, "Q3_K_L"),
        (14, "Q4_K_S"),
        (15, "Q4_K_M"),
        (16, "Q5_K_S"),
        (17, "Q5_K_M"),
        (18, "Q6_K"),
        (25, "IQ4_NL"),
        (30, "IQ4_XS"),
        (32, "BF16"),
    ] {
        let entry = gguf(vec![("general.file_type", MetaValue::U32(number))], vec![]);
        assert_eq!(entry.quantization.as_deref(), Some(name));
    }
    // What is not listed is named by the type most bytes are in.
    let tensors = vec![
        tensor("a", TensorType::F32, 10, 40),
        tensor("b", TensorType::Q8_0, 32, 34),
        tensor("c", TensorType::Q8_0, 32, 34),
    ];
    let entry = gguf(vec![("general.file_type", MetaValue::U32(99))], tensors);
    assert_eq!(entry.quantization.as_deref(), Some("Q8_0"));
}

#[test]
fn models_are_named_by_their_file_or_its_folder() {
    let header = ModelHeader::new(ModelFormat::Gguf, BTreeMap::new(), vec![]);
    for (path, id, name) in [
        ("a/b.Q4_0.gguf", "b.q4_0", "b.Q4_0"),
        ("models/Tiny LLM (v2).gguf", "tiny-llm-v2", "Tiny LLM (v2)"),
        ("x-00001-of-00003.gguf", "x", "x"),
        ("x-1-of-3.gguf", "x-1-of-3", "x-1-of-3"),
        ("big/model-00001-of-00002.safetensors", "big", "big"),
        ("a/big/pytorch_model.gguf", "big", "big"),
        ("weights.gguf", "weights", "weights"),
        ("set/orion-manifest.json", "set", "set"),
        ("._-x.gguf", "x", "._-x"),
        ("-- --.gguf", "model", "-- --"),
        ("x.bin", "x.bin", "x.bin"),
    ] {
        let entry = entry_from_header(path, 1, &header);
        assert_eq!((entry.id.as_str(), entry.name.as_deref()), (id, Some(name)), "{path}");
    }
    let long = entry_from_header(&format!("{}.gguf", "n".repeat(200)), 1, &header);
    assert_eq!(long.id, "n".repeat(128));
    let sizeless = entry_from_header("a.gguf", 0, &header);
    assert_eq!((sizeless.disk_bytes, sizeless.files[0].bytes), (None, None));
}

#[test]
fn a_config_gives_what_a_gguf_header_would() {
    let with = |files: &[(&str, &str)]| {
        let mut header = ModelHeader::new(ModelFormat::Safetensors, BTreeMap::new(), vec![]);
        for (name, content) in files {
            header.side_files.insert((*name).to_owned(), content.as_bytes().into());
        }
        entry_from_header("m/model.safetensors", 1, &header)
    };
    let config = |more: &str| {
        let text = format!(
            r#"{{"model_type": "llama", "num_hidden_layers": 3, "num_attention_heads": 4, "hidden_size": 64{more}}}"#
        );
        with(&[("config.json", &text)]).memory.kv_bytes_per_token
    };
    assert_eq!(config(""), Some(3 * 4 * 16 * 4));
    assert_eq!(config(r#", "num_key_value_heads": 2"#), Some(3 * 2 * 16 * 4));
    assert_eq!(config(r#", "head_dim": 10"#), Some(3 * 4 * 10 * 4));
    assert_eq!(with(&[]).capabilities, ["completion"]);
    assert_eq!(with(&[("tokenizer_config.json", r#"{"chat_template": "x"}"#)]).capabilities, ["chat"]);
    assert_eq!(with(&[("tokenizer_config.json", "{}")]).capabilities, ["completion"]);
    assert_eq!(with(&[("chat_template.jinja", "x")]).capabilities, ["chat"]);
    let encoder = with(&[("config.json", r#"{"model_type": "bert"}"#)]);
    assert_eq!(
        (encoder.memory.kv_bytes_per_token, encoder.capabilities),
        (Some(0), vec!["embedding".to_owned()])
    );
}
