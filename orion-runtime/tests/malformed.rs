//! Descriptions of decoders that are wrong: each ends in a typed error that names what is wrong.

#![allow(clippy::unwrap_used, reason = "in a test a panic is a failure")]

mod random;

use std::collections::BTreeMap;
use std::sync::Arc;

use orion_core::{Error, ErrorKind, MetaArray, MetaValue, ModelFormat, ModelHeader};
use orion_runtime::LocalRuntime;
use random::{FFN, HEAD_DIM, HEADS, HIDDEN, KV_HEADS, LAYERS, Memory, VOCAB, config, model};
use serde_json::{Value, json};

const ARCHITECTURES: [&str; 7] = ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3"];

fn open(source: Memory) -> Result<(), Error> {
    LocalRuntime::default().open(Arc::new(source)).and_then(|model| model.wait_loaded())
}

fn refused(source: Memory, case: &str) -> Error {
    let error = open(source).expect_err(case);
    let kinds = [ErrorKind::Corrupt, ErrorKind::Unsupported];
    assert!(kinds.contains(&error.kind()), "{case}: {:?} {error}", error.kind());
    error
}

/// The weights of a whole model, described by another `config.json`.
fn described(architecture: &str, config: &Value) -> Memory {
    let whole = model(architecture, &json!({}));
    let mut header = whole.header.clone();
    header.side_files.insert("config.json".into(), config.to_string().into_bytes().into());
    Memory { header, data: Arc::clone(&whole.data) }
}

/// The same weights as a GGUF describes them.
fn gguf(change: impl FnOnce(&mut BTreeMap<String, MetaValue>)) -> Memory {
    let number = |value: usize| MetaValue::U32(value as u32);
    let mut metadata: BTreeMap<String, MetaValue> = [
        ("general.architecture", MetaValue::Str("llama".into())),
        ("llama.embedding_length", number(HIDDEN)),
        ("llama.block_count", number(LAYERS)),
        ("llama.feed_forward_length", number(FFN)),
        ("llama.attention.head_count", number(HEADS)),
        ("llama.attention.head_count_kv", number(KV_HEADS)),
        ("llama.attention.key_length", number(HEAD_DIM)),
        ("llama.attention.value_length", number(HEAD_DIM)),
        ("llama.rope.dimension_count", number(HEAD_DIM)),
        ("llama.context_length", number(512)),
        ("llama.attention.layer_norm_rms_epsilon", MetaValue::F32(1e-5)),
        ("llama.rope.freq_base", MetaValue::F32(10_000.0)),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value))
    .collect();
    change(&mut metadata);
    let whole = model("llama", &json!({}));
    let names = [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("model.layers.", "blk."),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ];
    let mut tensors = whole.header.tensors.clone();
    for info in &mut tensors {
        info.name = names.iter().fold(info.name.clone(), |name, (from, to)| name.replace(from, to));
    }
    Memory { header: ModelHeader::new(ModelFormat::Gguf, metadata, tensors), data: Arc::clone(&whole.data) }
}

#[test]
fn the_models_the_cases_change_are_good() {
    for architecture in ARCHITECTURES {
        open(described(architecture, &config(architecture, &json!({})))).expect(architecture);
    }
    open(gguf(|_| {})).unwrap();
}

#[test]
fn absurd_numbers_of_a_config_are_refused_by_key() {
    let sizes = [
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "num_hidden_layers",
        "vocab_size",
        "max_position_embeddings",
    ];
    let absurd = [
        json!(0),
        json!(-1),
        json!(1u64 << 40),
        json!(u64::MAX),
        json!(2.5),
        json!(1e30),
        json!("8"),
        json!([8]),
    ];
    for architecture in ARCHITECTURES {
        for (key, value) in sizes.iter().flat_map(|key| absurd.iter().map(move |value| (*key, value))) {
            let case = format!("{architecture}: {key} = {value}");
            let error =
                refused(described(architecture, &config(architecture, &json!({ key: value }))), &case);
            assert!(error.to_string().contains(key), "{case}: {error}");
        }
        let floats = ["rms_norm_eps", "rope_theta"];
        for (key, value) in
            floats.iter().flat_map(|key| [json!(-1.0), json!(1e300), json!("1")].map(|value| (*key, value)))
        {
            let case = format!("{architecture}: {key} = {value}");
            let error =
                refused(described(architecture, &config(architecture, &json!({ key: value }))), &case);
            assert!(error.to_string().contains(key), "{case}: {error}");
        }
    }
}

#[test]
fn what_a_config_leaves_out_is_named() {
    for key in [
        "model_type",
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_hidden_layers",
        "vocab_size",
    ] {
        let mut config = config("llama", &json!({}));
        config.as_object_mut().unwrap().remove(key);
        let error = refused(described("llama", &config), key);
        assert!(error.to_string().contains(key) && error.to_string().contains("missing"), "{error}");
    }
    for (text, expected) in [("", "JSON"), ("[]", "object"), ("{", "JSON"), ("null", "object")] {
        let whole = model("llama", &json!({}));
        let mut header = whole.header.clone();
        header.side_files.insert("config.json".into(), text.as_bytes().into());
        let error = refused(Memory { header, data: Arc::clone(&whole.data) }, text);
        assert!(error.to_string().contains("config.json") && error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn options_that_contradict_themselves_are_refused_by_key() {
    let long = |short: usize, long: usize| {
        json!({ "original_max_position_embeddings": 64, "rope_scaling": {
            "type": "longrope", "short_factor": vec![1.0; short], "long_factor": vec![1.0; long] } })
    };
    let scaling = |value: Value| json!({ "rope_scaling": value });
    let cases: Vec<(&str, Value, &str)> = vec![
        ("llama", json!({ "num_key_value_heads": 3 }), "num_key_value_heads"),
        ("llama", json!({ "num_key_value_heads": 8 }), "num_key_value_heads"),
        (
            "llama",
            json!({ "num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": null }),
            "hidden_size",
        ),
        ("llama", scaling(json!({ "rope_type": "linear" })), "factor"),
        ("llama", scaling(json!({ "rope_type": "linear", "factor": 0.0 })), "rope_scaling"),
        ("llama", scaling(json!({ "rope_type": "upside-down" })), "upside-down"),
        ("llama", scaling(json!("linear")), "rope_scaling"),
        (
            "llama",
            scaling(
                json!({ "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0 }),
            ),
            "high_freq_factor",
        ),
        ("qwen2", scaling(json!({ "rope_type": "yarn", "factor": -4.0 })), "rope_scaling"),
        ("phi3", long(HEAD_DIM / 2, 3), "long"),
        ("phi3", long(3, HEAD_DIM / 2), "short"),
        ("phi3", json!({ "partial_rotary_factor": 0.0 }), "partial_rotary_factor"),
        ("phi3", json!({ "partial_rotary_factor": 9.0 }), "partial_rotary_factor"),
        ("phi3", json!({ "partial_rotary_factor": -1.0 }), "partial_rotary_factor"),
        ("mistral", json!({ "sliding_window": 0 }), "sliding_window"),
        ("mistral", json!({ "sliding_window": "wide" }), "sliding_window"),
        ("gemma2", json!({ "sliding_window_pattern": 0 }), "sliding_window_pattern"),
        ("gemma2", json!({ "attn_logit_softcapping": 0.0 }), "attn_logit_softcapping"),
        ("gemma2", json!({ "final_logit_softcapping": -3.0 }), "final_logit_softcapping"),
        ("gemma2", json!({ "query_pre_attn_scalar": 0 }), "query_pre_attn_scalar"),
        ("gemma3_text", json!({ "rope_local_base_freq": 0.0 }), "rope_local_base_freq"),
        ("gemma3_text", json!({ "layer_types": ["full_attention"] }), "layer_types"),
        (
            "gemma3_text",
            json!({ "layer_types": ["full_attention", "sideways", "full_attention"] }),
            "sideways",
        ),
        ("llama", json!({ "hidden_act": "sigmoid" }), "sigmoid"),
        ("llama", json!({ "quantization_config": { "bits": 4 } }), "quantization_config"),
        ("llama", json!({ "model_type": "mamba" }), "mamba"),
    ];
    for (architecture, change, name) in cases {
        let case = format!("{architecture} {change}");
        let error = refused(described(architecture, &config(architecture, &change)), &case);
        assert!(error.to_string().contains(name), "{case}: {error}");
    }
}

#[test]
fn tensors_that_contradict_the_config_are_named_with_both_shapes() {
    let cases = [
        (json!({ "hidden_size": HIDDEN * 2 }), "model.embed_tokens.weight", "[90, 128]"),
        (json!({ "vocab_size": VOCAB + 1 }), "model.embed_tokens.weight", "[91, 64]"),
        (json!({ "vocab_size": VOCAB - 1 }), "model.embed_tokens.weight", "[89, 64]"),
        (json!({ "num_attention_heads": HEADS * 2 }), "self_attn.q_proj.weight", "[256, 64]"),
        (json!({ "num_key_value_heads": 4 }), "self_attn.k_proj.weight", "[128, 64]"),
        (json!({ "head_dim": 64 }), "self_attn.q_proj.weight", "[256, 64]"),
        (json!({ "intermediate_size": FFN + 32 }), "mlp.gate_proj.weight", "[128, 64]"),
        (json!({ "num_hidden_layers": LAYERS + 1 }), "model.layers.3.", "missing"),
        (json!({ "num_hidden_layers": LAYERS - 1 }), "model.layers.2.", "not part"),
        (json!({ "tie_word_embeddings": false }), "lm_head.weight", "missing"),
        (json!({ "attention_bias": true }), "self_attn.q_proj.bias", "missing"),
        (json!({ "mlp_bias": true }), "mlp.gate_proj.bias", "missing"),
    ];
    for (change, tensor, shown) in cases {
        let error = refused(described("llama", &config("llama", &change)), &change.to_string());
        let text = error.to_string();
        assert!(text.contains(tensor) && text.contains(shown), "{change}: {text}");
    }
}

#[test]
fn absurd_numbers_of_a_gguf_are_refused_by_key() {
    let keys = [
        "llama.embedding_length",
        "llama.block_count",
        "llama.feed_forward_length",
        "llama.attention.head_count",
        "llama.attention.head_count_kv",
        "llama.attention.key_length",
        "llama.rope.dimension_count",
        "llama.context_length",
    ];
    let absurd = [
        MetaValue::U32(0),
        MetaValue::I32(-8),
        MetaValue::U64(1 << 40),
        MetaValue::U64(u64::MAX),
        MetaValue::Str("64".into()),
        MetaValue::F32(64.0),
        MetaValue::Array(MetaArray::U32(vec![64])),
    ];
    for (key, value) in keys.iter().flat_map(|key| absurd.iter().map(move |value| (*key, value))) {
        let case = format!("{key} = {value:?}");
        let source = gguf(|metadata| {
            metadata.insert(key.to_owned(), value.clone());
            if key == "llama.attention.key_length" {
                metadata.remove("llama.attention.value_length");
            }
        });
        let text = refused(source, &case).to_string();
        assert!(text.contains(key), "{case}: {text}");
    }
    for key in ["llama.attention.layer_norm_rms_epsilon", "llama.rope.freq_base"] {
        for value in [f32::NAN, f32::INFINITY, -1.0] {
            let source = gguf(|metadata| drop(metadata.insert(key.to_owned(), MetaValue::F32(value))));
            let text = refused(source, key).to_string();
            assert!(text.contains(key), "{key} = {value}: {text}");
        }
    }
    for key in keys.iter().filter(|key| !key.contains("kv") && !key.contains("key_") && !key.contains("rope"))
    {
        let text = refused(gguf(|metadata| drop(metadata.remove(*key))), key).to_string();
        assert!(text.contains(key) && text.contains("missing"), "{key}: {text}");
    }
}

#[test]
fn room_for_rope_factors_is_bounded_before_it_is_made() {
    let mut source = gguf(|metadata| {
        metadata.insert("llama.rope.dimension_count".to_owned(), MetaValue::U64(1 << 44));
    });
    let mut freqs = source.header.tensors[1].clone();
    freqs.name = "rope_freqs.weight".to_owned();
    source.header.tensors.push(freqs);
    let text = refused(source, "rope.dimension_count").to_string();
    assert!(text.contains("llama.rope.dimension_count"), "{text}");
}

#[test]
fn a_vocabulary_that_does_not_fit_its_embedding_is_refused() {
    let with_tokens = |count: usize| {
        gguf(|metadata| {
            let tokens = (0..count).map(|n| format!("t{n}").into_bytes()).collect();
            let types = vec![1; count];
            metadata.insert("tokenizer.ggml.model".to_owned(), MetaValue::Str("gpt2".into()));
            metadata.insert("tokenizer.ggml.pre".to_owned(), MetaValue::Str("default".into()));
            metadata.insert("tokenizer.ggml.tokens".to_owned(), MetaValue::Array(MetaArray::Str(tokens)));
            metadata.insert("tokenizer.ggml.token_type".to_owned(), MetaValue::Array(MetaArray::I32(types)));
            let merges = MetaValue::Array(MetaArray::Str(Default::default()));
            metadata.insert("tokenizer.ggml.merges".to_owned(), merges);
        })
    };
    for count in [0, 1, VOCAB - 1, VOCAB + 1] {
        let text = refused(with_tokens(count), "vocabulary").to_string();
        let named = text.contains("tokenizer.ggml.tokens") && text.contains(&format!("{count} tokens"));
        assert!(named && text.contains("90"), "{count}: {text}");
    }
    open(with_tokens(VOCAB)).unwrap();
}
