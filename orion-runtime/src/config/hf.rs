//! Options from a Hugging Face `config.json`, in its old and new spellings.

use orion_core::{Error, ModelHeader, Result};
use serde_json::{Map, Value};

use super::gguf::long_rope_factor;
use super::{Activation, Architecture, DecoderConfig, LayerOptions, RopeConfig, RopePairing, RopeScaling};

/// Typed access to the keys of one JSON object; `null` counts as absent.
#[derive(Clone, Copy)]
struct Keys<'a>(&'a Map<String, Value>);

impl<'a> Keys<'a> {
    fn find(&self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    /// Whether the key is there, be it `null`.
    fn has(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    fn wrong(key: &str, value: &Value, expected: &str) -> Error {
        let shown: String = value.to_string().chars().take(60).collect();
        Error::corrupt(format!("is {shown}, expected {expected}")).about(key)
    }

    fn opt_usize(&self, key: &str) -> Result<Option<usize>> {
        self.find(key)
            .map(|value| {
                let number = value.as_u64().and_then(|number| usize::try_from(number).ok());
                number.ok_or_else(|| Self::wrong(key, value, "a non-negative integer"))
            })
            .transpose()
    }

    fn usize(&self, key: &str) -> Result<usize> {
        self.opt_usize(key)?.ok_or_else(|| Error::corrupt("is missing").about(key))
    }

    #[allow(clippy::cast_possible_truncation, reason = "hyper-parameters are f32 in every runtime")]
    fn opt_f32(&self, key: &str) -> Result<Option<f32>> {
        self.find(key)
            .map(|value| value.as_f64().map(|n| n as f32).ok_or_else(|| Self::wrong(key, value, "a number")))
            .transpose()
    }

    fn bool(&self, key: &str, default: bool) -> Result<bool> {
        self.find(key).map_or(Ok(default), |value| {
            value.as_bool().ok_or_else(|| Self::wrong(key, value, "true or false"))
        })
    }

    fn opt_str(&self, key: &str) -> Result<Option<&'a str>> {
        self.find(key)
            .map(|value| value.as_str().ok_or_else(|| Self::wrong(key, value, "a string")))
            .transpose()
    }

    fn opt_object(&self, key: &str) -> Result<Option<Keys<'a>>> {
        self.find(key)
            .map(|value| value.as_object().map(Keys).ok_or_else(|| Self::wrong(key, value, "an object")))
            .transpose()
    }

    #[allow(clippy::cast_possible_truncation, reason = "factors are f32 in every runtime")]
    fn factors(&self, key: &str) -> Result<Vec<f32>> {
        let value = self.find(key).ok_or_else(|| Error::corrupt("is missing").about(key))?;
        let list = value.as_array().and_then(|list| {
            list.iter().map(|item| item.as_f64().map(|number| number as f32)).collect::<Option<Vec<_>>>()
        });
        list.ok_or_else(|| Self::wrong(key, value, "a list of numbers"))
    }
}

pub(super) fn config(text: &str, header: &ModelHeader) -> Result<DecoderConfig> {
    let root: Value = serde_json::from_str(text)
        .map_err(|error| Error::corrupt(format!("is not JSON: {error}")).with_source(error))?;
    let root = Keys(root.as_object().ok_or_else(|| Error::corrupt("is not a JSON object"))?);
    let name = root.opt_str("model_type")?.ok_or_else(|| Error::corrupt("is missing").about("model_type"))?;
    let architecture = match name {
        "llama" => Architecture::Llama,
        "mistral" => Architecture::Mistral,
        "qwen2" => Architecture::Qwen2,
        "qwen3" => Architecture::Qwen3,
        "gemma2" => Architecture::Gemma2,
        "gemma3_text" => Architecture::Gemma3,
        "phi3" => Architecture::Phi3,
        other => {
            return Err(Error::unsupported(format!(
                "architecture {other:?}; supported: llama, mistral, qwen2, qwen3, gemma2, gemma3_text, phi3"
            ))
            .about("model_type"));
        }
    };
    refuse_unsupported(root)?;
    let hidden = root.usize("hidden_size")?;
    let heads = root.usize("num_attention_heads")?;
    let kv_heads = root.opt_usize("num_key_value_heads")?.unwrap_or(match architecture {
        Architecture::Mistral => 8,
        Architecture::Gemma2 | Architecture::Gemma3 => 4,
        Architecture::Qwen2 | Architecture::Qwen3 => 32,
        _ => heads,
    });
    let layers = root.usize("num_hidden_layers")?;
    for (key, value, most) in
        [("num_attention_heads", heads, super::MAX_HEADS), ("num_hidden_layers", layers, super::MAX_LAYERS)]
    {
        if !(1..=most).contains(&value) {
            return Err(Error::corrupt(format!("is {value}, expected 1 to {most}")).about(key));
        }
    }
    let head_dim = match (root.opt_usize("head_dim")?, architecture) {
        (Some(size), _) => size,
        (None, Architecture::Gemma2 | Architecture::Gemma3) => 256,
        (None, Architecture::Qwen3) => 128,
        (None, _) if hidden % heads == 0 => hidden / heads,
        (None, _) => {
            let message = format!("is {hidden}, no multiple of {heads} heads");
            return Err(Error::corrupt(message).about("hidden_size"));
        }
    };
    let gemma = architecture.is_gemma();
    let context_length = context_length(root, architecture)?;
    let scale = match root.opt_f32("query_pre_attn_scalar")? {
        Some(scalar) if gemma => scalar,
        None if gemma => 256.0,
        _ => head_dim as f32,
    };
    let rotary = (head_dim as f32 * root.opt_f32("partial_rotary_factor")?.unwrap_or(1.0)) as usize;
    let (rope, local_rope) = ropes(root, architecture, rotary, context_length)?;
    let cap = |key: &str, default: Option<f32>| -> Result<Option<f32>> {
        Ok(if root.has(key) { root.opt_f32(key)? } else { default })
    };
    let gemma2 = architecture == Architecture::Gemma2;
    let has = |suffix: &str| header.tensors.iter().any(|tensor| tensor.name.ends_with(suffix));
    let attention_bias = root.bool("attention_bias", false)?;
    let fused = architecture == Architecture::Phi3;
    Ok(DecoderConfig {
        architecture,
        vocab_size: root.usize("vocab_size")?,
        hidden,
        ffn: root.usize("intermediate_size")?,
        heads,
        kv_heads,
        head_dim,
        context_length,
        layers: layer_options(root, architecture, layers)?,
        norm_eps: root.opt_f32("rms_norm_eps")?.unwrap_or(if fused { 1e-5 } else { 1e-6 }),
        norm_offset: gemma,
        post_norms: gemma,
        qk_norm: matches!(architecture, Architecture::Qwen3 | Architecture::Gemma3),
        qkv_bias: architecture == Architecture::Qwen2 || attention_bias,
        output_bias: attention_bias && has("self_attn.o_proj.bias"),
        ffn_bias: root.bool("mlp_bias", false)?,
        fused,
        attention_scale: 1.0 / scale.sqrt(),
        attention_soft_cap: cap("attn_logit_softcapping", Some(50.0))?.filter(|_| gemma2),
        logit_soft_cap: cap("final_logit_softcapping", gemma2.then_some(30.0))?.filter(|_| gemma),
        embedding_scale: if gemma { (hidden as f32).sqrt() } else { 1.0 },
        activation: activation(root, gemma)?,
        tied: root.bool("tie_word_embeddings", gemma)?,
        rope_pairing: RopePairing::Halves,
        rope,
        local_rope,
    })
}

/// The context length, or the default of the family's configuration class: files leave out what equals it.
fn context_length(root: Keys<'_>, architecture: Architecture) -> Result<usize> {
    Ok(root.opt_usize("max_position_embeddings")?.unwrap_or(match architecture {
        Architecture::Llama => 2048,
        Architecture::Mistral | Architecture::Gemma3 => 131_072,
        Architecture::Qwen2 | Architecture::Qwen3 => 32_768,
        Architecture::Gemma2 => 8192,
        Architecture::Phi3 => 4096,
    }))
}

fn refuse_unsupported(root: Keys<'_>) -> Result<()> {
    if root.find("quantization_config").is_some() {
        return Err(Error::unsupported("quantised safetensors").about("quantization_config"));
    }
    if root.bool("use_bidirectional_attention", false)? {
        return Err(Error::unsupported("bidirectional attention").about("use_bidirectional_attention"));
    }
    if root.opt_usize("pretraining_tp")?.is_some_and(|ranks| ranks > 1) {
        return Err(Error::unsupported("tensor-parallel arithmetic").about("pretraining_tp"));
    }
    Ok(())
}

fn activation(root: Keys<'_>, gemma: bool) -> Result<Activation> {
    // Gemma's first releases said "gelu" in hidden_act and meant the tanh approximation; hidden_activation overrides.
    let (key, name) = match root.opt_str("hidden_activation")? {
        Some(name) => ("hidden_activation", name),
        None if gemma => return Ok(Activation::GeluTanh),
        None => ("hidden_act", root.opt_str("hidden_act")?.unwrap_or("silu")),
    };
    match name {
        "silu" | "swish" => Ok(Activation::Silu),
        "gelu_pytorch_tanh" | "gelu_new" => Ok(Activation::GeluTanh),
        "gelu" => Ok(Activation::GeluErf),
        other => Err(Error::unsupported(format!("activation {other:?}")).about(key)),
    }
}

fn layer_options(root: Keys<'_>, architecture: Architecture, layers: usize) -> Result<Vec<LayerOptions>> {
    use Architecture as A;
    let window = match architecture {
        A::Mistral | A::Gemma2 | A::Gemma3 if !root.has("sliding_window") => Some(4096),
        A::Qwen2 | A::Qwen3 if !root.bool("use_sliding_window", false)? => None,
        A::Qwen2 | A::Qwen3 => Some(root.opt_usize("sliding_window")?.unwrap_or(4096)),
        A::Llama => None,
        _ => root.opt_usize("sliding_window")?,
    };
    let local: Vec<bool> = match root.find("layer_types") {
        Some(value) => layer_types(value, layers)?,
        None => {
            let from = root.opt_usize("max_window_layers")?.unwrap_or(28);
            let period = match root.opt_usize("sliding_window_pattern")? {
                Some(0) => return Err(Error::corrupt("is 0").about("sliding_window_pattern")),
                Some(period) => period,
                None if architecture == A::Gemma2 => 2,
                None => 6,
            };
            (0..layers)
                .map(|layer| match architecture {
                    A::Gemma2 | A::Gemma3 => (layer + 1) % period != 0,
                    A::Qwen2 | A::Qwen3 => layer >= from,
                    _ => true,
                })
                .collect()
        }
    };
    let local_rope = architecture == A::Gemma3;
    Ok(local
        .into_iter()
        .map(|local| LayerOptions { window: window.filter(|_| local), local_rope: local && local_rope })
        .collect())
}

fn layer_types(value: &Value, layers: usize) -> Result<Vec<bool>> {
    let list = value.as_array().filter(|list| list.len() == layers);
    let list = list.ok_or_else(|| Keys::wrong("layer_types", value, "one entry per layer"))?;
    list.iter()
        .map(|item| match item.as_str() {
            Some("full_attention") => Ok(false),
            Some("sliding_attention") => Ok(true),
            Some(other) => Err(Error::unsupported(format!("layer type {other:?}")).about("layer_types")),
            None => Err(Keys::wrong("layer_types", item, "a string")),
        })
        .collect()
}

/// Global and local rope. New files put everything into `rope_parameters` (Gemma 3: one object per layer type), older
/// ones into `rope_theta`, `rope_local_base_freq` and `rope_scaling`.
fn ropes(
    root: Keys<'_>,
    architecture: Architecture,
    dim: usize,
    context: usize,
) -> Result<(RopeConfig, Option<RopeConfig>)> {
    let gemma3 = architecture == Architecture::Gemma3;
    let default_base = if gemma3 { 1_000_000.0 } else { 10_000.0 };
    let theta = root.opt_f32("rope_theta")?.unwrap_or(default_base);
    let local_theta = root.opt_f32("rope_local_base_freq")?.unwrap_or(10_000.0);
    let new = root.opt_object("rope_parameters")?;
    let per_type =
        |kind: &str| -> Result<Option<Keys<'_>>> { new.map_or(Ok(None), |new| new.opt_object(kind)) };
    let (global, local) = (per_type("full_attention")?, per_type("sliding_attention")?);
    let flat = match (global, new) {
        (Some(global), _) => Some(global),
        (None, Some(new)) => Some(new),
        (None, None) => root.opt_object("rope_scaling")?,
    };
    let read = |options, theta| {
        rope(root, options, RopeConfig { dim, base: theta, scaling: RopeScaling::None }, context)
    };
    let rope = read(flat, theta)?;
    let local_rope = gemma3.then(|| read(local, local_theta)).transpose()?;
    Ok((rope, local_rope))
}

/// `plain` changed by what `options` say.
fn rope(root: Keys<'_>, options: Option<Keys<'_>>, plain: RopeConfig, context: usize) -> Result<RopeConfig> {
    let Some(options) = options else { return Ok(plain) };
    let RopeConfig { dim, base: theta, .. } = plain;
    let about = |error: Error| error.about("rope_scaling");
    let base = options.opt_f32("rope_theta")?.unwrap_or(theta);
    let dim = match options.opt_f32("partial_rotary_factor")? {
        Some(share) if root.find("partial_rotary_factor").is_none() => (dim as f32 * share) as usize,
        _ => dim,
    };
    let original = match options.opt_usize("original_max_position_embeddings").map_err(about)? {
        Some(original) => Some(original),
        None => root.opt_usize("original_max_position_embeddings")?,
    };
    let need = |key: &str| {
        let value = options.opt_f32(key).map_err(about)?;
        value.ok_or_else(|| about(Error::corrupt("is missing").about(key)))
    };
    let kind = match options.opt_str("rope_type").map_err(about)? {
        Some(kind) => kind,
        None => options.opt_str("type").map_err(about)?.unwrap_or("default"),
    };
    let scaling = match kind {
        // NTK by length changes nothing within the trained context, and nothing beyond it is run.
        "default" | "dynamic" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: need("factor")? },
        "llama3" => RopeScaling::Llama3 {
            factor: need("factor")?,
            low_freq_factor: need("low_freq_factor")?,
            high_freq_factor: need("high_freq_factor")?,
            original_context: original.unwrap_or(context),
        },
        "yarn" => {
            let factor = need("factor")?;
            let magnitude = |scale: f32| if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 };
            let ratio = match (options.opt_f32("mscale")?, options.opt_f32("mscale_all_dim")?) {
                (Some(own), Some(all)) if own != 0.0 && all != 0.0 => magnitude(own) / magnitude(all),
                _ => magnitude(1.0),
            };
            RopeScaling::Yarn {
                factor,
                beta_fast: options.opt_f32("beta_fast")?.unwrap_or(32.0),
                beta_slow: options.opt_f32("beta_slow")?.unwrap_or(1.0),
                original_context: original.unwrap_or(context),
                truncate: options.bool("truncate", true)?,
                attention_factor: options.opt_f32("attention_factor")?.unwrap_or(ratio),
            }
        }
        "longrope" | "su" => {
            let original_context = original.unwrap_or(context);
            let factor = match options.opt_f32("factor")? {
                Some(factor) => factor,
                None => context as f32 / original_context.max(1) as f32,
            };
            RopeScaling::LongRope {
                short: options.factors("short_factor").map_err(about)?,
                long: options.factors("long_factor").map_err(about)?,
                original_context,
                attention_factor: match options.opt_f32("attention_factor")? {
                    Some(factor) => factor,
                    None => long_rope_factor(factor, original_context),
                },
            }
        }
        other => return Err(about(Error::unsupported(format!("rope scaling {other:?}")))),
    };
    Ok(RopeConfig { dim, base, scaling })
}
