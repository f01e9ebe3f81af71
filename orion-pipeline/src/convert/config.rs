//! `config.json` and the keys of GGUF that say the same.

use std::collections::BTreeMap;

use orion_core::{Error, MetaValue, ModelHeader, Result};
use serde_json::{Value, json};

use super::names::Naming;

/// Tensors of numbers that follow from a configuration, by name.
type Tables = Vec<(String, Vec<f32>)>;

/// A configuration, and what conversion needs of it.
pub(super) struct Config {
    pub(super) json: Value,
    pub(super) architecture: &'static str,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) naming: Naming,
}

/// Hugging Face's `model_type` and GGUF's architecture.
const ARCHITECTURES: [(&str, &str); 7] = [
    ("llama", "llama"),
    ("mistral", "llama"),
    ("qwen2", "qwen2"),
    ("qwen3", "qwen3"),
    ("gemma2", "gemma2"),
    ("gemma3_text", "gemma3"),
    ("phi3", "phi3"),
];

impl Config {
    /// The configuration of a safetensors model.
    pub(super) fn read(header: &ModelHeader) -> Result<Self> {
        let text = header
            .side_text("config.json")?
            .ok_or_else(|| Error::invalid("is not beside the weights").about("config.json"))?;
        Self::parse(text)
    }

    pub(super) fn parse(text: &str) -> Result<Self> {
        let json: Value = serde_json::from_str(text)
            .map_err(|error| Error::corrupt(format!("is not JSON: {error}")).about("config.json"))?;
        let model_type = json["model_type"].as_str().unwrap_or_default();
        let &(_, architecture) =
            ARCHITECTURES.iter().find(|(theirs, _)| *theirs == model_type).ok_or_else(|| {
                let known: Vec<_> = ARCHITECTURES.iter().map(|(theirs, _)| *theirs).collect();
                Error::unsupported(format!(
                    "model_type {model_type:?} has no GGUF form here; known: {}",
                    known.join(", ")
                ))
                .about("config.json")
            })?;
        let mut config = Self { heads: 0, kv_heads: 0, architecture, naming: naming(architecture), json };
        config.heads = config.usize("num_attention_heads")?;
        config.kv_heads = config.opt_usize("num_key_value_heads").unwrap_or(config.heads);
        Ok(config)
    }

    fn opt_usize(&self, key: &str) -> Option<usize> {
        self.json[key].as_u64().and_then(|n| usize::try_from(n).ok())
    }

    pub(super) fn usize(&self, key: &str) -> Result<usize> {
        self.opt_usize(key).ok_or_else(|| Error::corrupt(format!("{key} is missing")).about("config.json"))
    }

    fn f64(&self, key: &str) -> Option<f64> {
        self.json[key].as_f64()
    }

    /// Parameters of the rotary embedding, global or local, in the spelling of today.
    fn rope(&self, local: bool) -> Value {
        let new = &self.json["rope_parameters"];
        let beside = |mut rope: Value| {
            for key in ["original_max_position_embeddings", "partial_rotary_factor"] {
                if rope[key].is_null() {
                    rope[key] = self.json[key].clone();
                }
            }
            rope
        };
        if new.is_object() {
            let part = &new[if local { "sliding_attention" } else { "full_attention" }];
            return beside(if part.is_object() { part.clone() } else { new.clone() });
        }
        let mut rope = match &self.json["rope_scaling"] {
            scaling @ Value::Object(_) if !local => scaling.clone(),
            _ => json!({}),
        };
        if rope["rope_type"].is_null() {
            rope["rope_type"] = if rope["type"].is_null() { "default".into() } else { rope["type"].clone() };
        }
        let key = if local { "rope_local_base_freq" } else { "rope_theta" };
        let usual = if self.architecture == "gemma3" && !local { 1e6 } else { 1e4 };
        rope["rope_theta"] = self.f64(key).unwrap_or(usual).into();
        beside(rope)
    }

    /// The keys of a GGUF, and tensors of numbers that belong to them.
    pub(super) fn to_gguf(&self) -> Result<(BTreeMap<String, MetaValue>, Tables)> {
        let arch = self.architecture;
        let mut metadata = BTreeMap::new();
        metadata.insert("general.architecture".to_owned(), MetaValue::Str(arch.to_owned()));
        let mut put = |key: &str, value: MetaValue| drop(metadata.insert(format!("{arch}.{key}"), value));
        let u32_of = |value: usize| {
            u32::try_from(value)
                .map(MetaValue::U32)
                .map_err(|_| Error::corrupt("a number is too large").about("config.json"))
        };
        let head_dim = self.opt_usize("head_dim").unwrap_or_else(|| match self.architecture {
            // What their configurations leave out.
            "gemma2" | "gemma3" => 256,
            "qwen3" => 128,
            _ => self.opt_usize("hidden_size").unwrap_or(0) / self.heads.max(1),
        });
        for (key, theirs) in [
            ("vocab_size", "vocab_size"),
            ("context_length", "max_position_embeddings"),
            ("embedding_length", "hidden_size"),
            ("block_count", "num_hidden_layers"),
            ("feed_forward_length", "intermediate_size"),
        ] {
            put(key, u32_of(self.usize(theirs)?)?);
        }
        put("attention.head_count", u32_of(self.heads)?);
        put("attention.head_count_kv", u32_of(self.kv_heads)?);
        put("attention.key_length", u32_of(head_dim)?);
        put("attention.value_length", u32_of(head_dim)?);
        put(
            "attention.layer_norm_rms_epsilon",
            MetaValue::F32(self.f64("rms_norm_eps").unwrap_or(1e-6) as f32),
        );
        let rope = self.rope(false);
        let rotary = (head_dim as f64 * rope["partial_rotary_factor"].as_f64().unwrap_or(1.0)) as usize;
        put("rope.dimension_count", u32_of(rotary)?);
        let theta = rope["rope_theta"].as_f64().unwrap_or(1e4);
        put("rope.freq_base", MetaValue::F32(theta as f32));
        if self.naming.gemma {
            put("attention.sliding_window", u32_of(self.opt_usize("sliding_window").unwrap_or(4096))?);
            for (key, usual) in [("attn_logit_softcapping", 50.0), ("final_logit_softcapping", 30.0)] {
                let absent = self.json.get(key).is_none() && arch == "gemma2";
                if let Some(cap) = self.f64(key).or(absent.then_some(usual)) {
                    put(key, MetaValue::F32(cap as f32));
                }
            }
        }
        if arch == "gemma3" {
            let local = self.rope(true);
            put("rope.freq_base_swa", MetaValue::F32(local["rope_theta"].as_f64().unwrap_or(1e4) as f32));
        }
        self.refuse_what_gguf_lacks(head_dim)?;
        let number = |key: &str| {
            rope[key].as_f64().ok_or_else(|| {
                Error::corrupt(format!("the rotary embedding lacks {key}")).about("config.json")
            })
        };
        let list = |key: &str| -> Result<Vec<f32>> {
            let list = rope[key].as_array().ok_or_else(|| {
                Error::corrupt(format!("the rotary embedding lacks {key}")).about("config.json")
            })?;
            Ok(list.iter().filter_map(Value::as_f64).map(|x| x as f32).collect())
        };
        let mut tensors = Vec::new();
        match rope["rope_type"].as_str().unwrap_or("default") {
            "default" | "dynamic" => {}
            kind @ ("linear" | "yarn") => {
                put("rope.scaling.type", MetaValue::Str(kind.to_owned()));
                put("rope.scaling.factor", MetaValue::F32(number("factor")? as f32));
                if kind == "yarn" {
                    let original = rope["original_max_position_embeddings"].as_u64();
                    let original =
                        original.or(self.opt_usize("max_position_embeddings").map(|n| n as u64)).unwrap_or(0);
                    put("rope.scaling.original_context_length", u32_of(original as usize)?);
                    for (key, ours) in [
                        ("beta_fast", "rope.scaling.yarn_beta_fast"),
                        ("beta_slow", "rope.scaling.yarn_beta_slow"),
                    ] {
                        if let Some(value) = rope[key].as_f64() {
                            put(ours, MetaValue::F32(value as f32));
                        }
                    }
                    if ["attention_factor", "mscale", "mscale_all_dim"]
                        .iter()
                        .any(|key| rope[*key].is_number())
                        || rope["truncate"] == false
                    {
                        return Err(
                            Error::unsupported("this kind of YaRN has no GGUF form").about("config.json")
                        );
                    }
                }
            }
            "llama3" => {
                let length = number("original_max_position_embeddings")?;
                let (low, high) = (number("low_freq_factor")?, number("high_freq_factor")?);
                let factor = number("factor")?;
                let factors = (0..rotary).step_by(2).map(|i| {
                    let wavelength = std::f64::consts::TAU * theta.powf(i as f64 / rotary as f64);
                    let value = if wavelength < length / high {
                        1.0
                    } else if wavelength > length / low {
                        factor
                    } else {
                        let smooth = (length / wavelength - low) / (high - low);
                        1.0 / ((1.0 - smooth) / factor + smooth)
                    };
                    value as f32
                });
                tensors.push(("rope_freqs.weight".to_owned(), factors.collect()));
            }
            "longrope" | "su" => {
                let original = number("original_max_position_embeddings")?;
                put("rope.scaling.original_context_length", u32_of(original as usize)?);
                let scale = self.usize("max_position_embeddings")? as f64 / original;
                let usual = if scale <= 1.0 { 1.0 } else { (1.0 + scale.ln() / original.ln()).sqrt() };
                let factor = rope["attention_factor"].as_f64().unwrap_or(usual);
                put("rope.scaling.attn_factor", MetaValue::F32(factor as f32));
                tensors.push(("rope_factors_long.weight".to_owned(), list("long_factor")?));
                tensors.push(("rope_factors_short.weight".to_owned(), list("short_factor")?));
            }
            other => {
                return Err(Error::unsupported(format!(
                    "rotary embedding of type {other:?} has no GGUF form"
                ))
                .about("config.json"));
            }
        }
        Ok((metadata, tensors))
    }

    /// Options under which llama.cpp would compute something else.
    fn refuse_what_gguf_lacks(&self, head_dim: usize) -> Result<()> {
        let unsupported =
            |what: &str| Err(Error::unsupported(format!("{what} has no GGUF form")).about("config.json"));
        let activation = self.json["hidden_activation"].as_str().or(self.json["hidden_act"].as_str());
        let usual = if self.naming.gemma { "gelu_pytorch_tanh" } else { "silu" };
        if activation.is_some_and(|activation| activation != usual) {
            return unsupported("this activation");
        }
        if !self.naming.gemma {
            // Their windows are ignored by GGUF's readers.
            let used =
                self.json["use_sliding_window"].as_bool().unwrap_or(!self.architecture.starts_with("qwen"));
            let usual = (self.json["model_type"] == "mistral" && self.json.get("sliding_window").is_none())
                .then_some(4096);
            let window = self.opt_usize("sliding_window").or(usual).filter(|_| used);
            if let (Some(window), Some(context)) = (window, self.opt_usize("max_position_embeddings"))
                && window < context
            {
                return unsupported("a sliding window");
            }
        } else {
            let scalar = self.f64("query_pre_attn_scalar").unwrap_or(256.0);
            if (scalar - head_dim as f64).abs() > 1e-9
                && !matches!(
                    (self.architecture, self.opt_usize("num_hidden_layers")),
                    ("gemma2", Some(46)) | ("gemma3", Some(62))
                )
            {
                return unsupported("query_pre_attn_scalar other than the head size");
            }
            let period = if self.architecture == "gemma2" { 2 } else { 6 };
            if self.opt_usize("sliding_window_pattern").is_some_and(|own| own != period) {
                return unsupported("this sliding_window_pattern");
            }
            if let Some(types) = self.json["layer_types"].as_array() {
                let expected = |layer: usize| {
                    if layer % period == period - 1 { "full_attention" } else { "sliding_attention" }
                };
                if types.iter().enumerate().any(|(layer, kind)| kind != expected(layer)) {
                    return unsupported("this order of layer types");
                }
            }
            let missing = self.architecture == "gemma2"
                && ["attn_logit_softcapping", "final_logit_softcapping"]
                    .iter()
                    .any(|key| self.json.get(*key).is_some_and(Value::is_null));
            if missing {
                return unsupported("Gemma 2 without soft caps");
            }
        }
        Ok(())
    }
}

pub(super) fn naming(architecture: &str) -> Naming {
    Naming { gemma: architecture.starts_with("gemma"), fused: architecture == "phi3" }
}

/// A configuration for a GGUF that came without one.
pub(super) fn from_gguf(header: &ModelHeader) -> Result<Value> {
    let arch = header.metadata.get("general.architecture").and_then(MetaValue::as_str).unwrap_or_default();
    let (model_type, class) = match arch {
        "llama" => ("llama", "LlamaForCausalLM"),
        "qwen2" => ("qwen2", "Qwen2ForCausalLM"),
        "qwen3" => ("qwen3", "Qwen3ForCausalLM"),
        "gemma2" => ("gemma2", "Gemma2ForCausalLM"),
        "gemma3" => ("gemma3_text", "Gemma3ForCausalLM"),
        "phi3" => ("phi3", "Phi3ForCausalLM"),
        other => {
            return Err(Error::unsupported(format!("architecture {other:?} has no configuration here"))
                .about("general.architecture"));
        }
    };
    let find = |key: &str| header.metadata.get(&format!("{arch}.{key}"));
    let usize_of = |key: &str| find(key).and_then(MetaValue::as_u64);
    let need =
        |key: &str| usize_of(key).ok_or_else(|| Error::corrupt("is missing").about(format!("{arch}.{key}")));
    // A number as it was written before it became 32-bit.
    let f32_of = |key: &str| {
        find(key).and_then(MetaValue::as_f32).map(|x| x.to_string().parse::<f64>().unwrap_or(x.into()))
    };
    let has = |name: &str| header.position(name).is_some();
    for name in ["rope_freqs.weight", "rope_factors_long.weight"] {
        if has(name) {
            return Err(
                Error::unsupported("is not turned back into a configuration").about(format!("tensor {name}"))
            );
        }
    }
    let (hidden, heads) = (need("embedding_length")?, need("attention.head_count")?);
    let head_dim = usize_of("attention.key_length").unwrap_or(hidden / heads.max(1));
    let embedding = header
        .position("token_embd.weight")
        .ok_or_else(|| Error::corrupt("is missing").about("tensor token_embd.weight"))?;
    let mut json = json!({
        "architectures": [class],
        "model_type": model_type,
        "vocab_size": header.tensors[embedding].shape.first(),
        "hidden_size": hidden,
        "intermediate_size": need("feed_forward_length")?,
        "num_hidden_layers": need("block_count")?,
        "num_attention_heads": heads,
        "num_key_value_heads": usize_of("attention.head_count_kv").unwrap_or(heads),
        "head_dim": head_dim,
        "max_position_embeddings": need("context_length")?,
        "rms_norm_eps": f32_of("attention.layer_norm_rms_epsilon").unwrap_or(1e-6),
        "rope_theta": f32_of("rope.freq_base").unwrap_or(1e4),
        "tie_word_embeddings": !has("output.weight"),
        "attention_bias": has("blk.0.attn_q.bias"),
    });
    let gemma = arch.starts_with("gemma");
    json[if gemma { "hidden_activation" } else { "hidden_act" }] =
        if gemma { "gelu_pytorch_tanh" } else { "silu" }.into();
    if gemma {
        json["query_pre_attn_scalar"] = head_dim.into();
        json["sliding_window"] = usize_of("attention.sliding_window").into();
        let cap = |key: &str, usual: Option<f64>| f32_of(key).or(usual);
        let second = arch == "gemma2";
        json["attn_logit_softcapping"] = cap("attn_logit_softcapping", second.then_some(50.0)).into();
        json["final_logit_softcapping"] = cap("final_logit_softcapping", second.then_some(30.0)).into();
        if !second {
            json["rope_local_base_freq"] = f32_of("rope.freq_base_swa").unwrap_or(1e4).into();
        }
    }
    if let Some(factor) = f32_of("rope.scaling.factor").filter(|factor| *factor != 1.0) {
        let kind = find("rope.scaling.type").and_then(MetaValue::as_str).unwrap_or("linear");
        json["rope_scaling"] = json!({ "rope_type": kind, "factor": factor });
        if let Some(original) = usize_of("rope.scaling.original_context_length") {
            json["rope_scaling"]["original_max_position_embeddings"] = original.into();
        }
    }
    for (key, ours) in [("bos_token_id", "bos_token_id"), ("eos_token_id", "eos_token_id")] {
        if let Some(id) = header.metadata.get(&format!("tokenizer.ggml.{ours}")).and_then(MetaValue::as_u64) {
            json[key] = id.into();
        }
    }
    Ok(json)
}
