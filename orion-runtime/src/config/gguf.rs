//! Options from GGUF metadata.

use orion_core::{Error, MetaArray, MetaValue, ModelHeader, Result};

use super::{Activation, Architecture, DecoderConfig, LayerOptions, RopeConfig, RopePairing, RopeScaling};

/// Typed access to the keys of one architecture.
struct Keys<'a> {
    header: &'a ModelHeader,
    prefix: &'a str,
}

impl<'a> Keys<'a> {
    fn find(&self, key: &str) -> Option<(String, &'a MetaValue)> {
        let full = format!("{}.{key}", self.prefix);
        self.header.metadata.get(&full).map(|value| (full, value))
    }

    fn wrong(key: String, value: &MetaValue, expected: &str) -> Error {
        let mut shown = format!("{value:?}");
        shown.truncate(shown.char_indices().nth(60).map_or(shown.len(), |(at, _)| at));
        Error::corrupt(format!("is {shown}, expected {expected}")).about(key)
    }

    fn opt_usize(&self, key: &str) -> Result<Option<usize>> {
        self.find(key)
            .map(|(full, value)| {
                let number = value.as_u64().and_then(|number| usize::try_from(number).ok());
                number.ok_or_else(|| Self::wrong(full, value, "a non-negative integer"))
            })
            .transpose()
    }

    fn usize(&self, key: &str) -> Result<usize> {
        self.opt_usize(key)?
            .ok_or_else(|| Error::corrupt("is missing").about(format!("{}.{key}", self.prefix)))
    }

    fn opt_f32(&self, key: &str) -> Result<Option<f32>> {
        self.find(key)
            .map(|(full, value)| value.as_f32().ok_or_else(|| Self::wrong(full, value, "a float")))
            .transpose()
    }

    fn f32(&self, key: &str) -> Result<f32> {
        self.opt_f32(key)?.ok_or_else(|| Error::corrupt("is missing").about(format!("{}.{key}", self.prefix)))
    }

    fn opt_str(&self, key: &str) -> Result<Option<&'a str>> {
        self.find(key)
            .map(|(full, value)| value.as_str().ok_or_else(|| Self::wrong(full, value, "a string")))
            .transpose()
    }

    /// A number that newer files may give per layer; all layers must agree.
    fn uniform(&self, key: &str, layers: usize) -> Result<Option<usize>> {
        let Some((full, value)) = self.find(key) else { return Ok(None) };
        let numbers: Vec<u64> = match value {
            MetaValue::Array(MetaArray::U32(list)) => list.iter().map(|&number| number.into()).collect(),
            MetaValue::Array(MetaArray::I32(list)) => {
                list.iter().filter_map(|&number| number.try_into().ok()).collect()
            }
            _ => return self.opt_usize(key),
        };
        let (Some(&first), true) = (numbers.first(), numbers.len() == layers) else {
            return Err(Self::wrong(full, value, "one non-negative integer per layer"));
        };
        if numbers.iter().any(|&number| number != first) {
            return Err(Error::unsupported("differs from layer to layer").about(full));
        }
        Ok(usize::try_from(first).ok())
    }
}

pub(super) fn config(header: &ModelHeader) -> Result<DecoderConfig> {
    let name = header
        .metadata
        .get("general.architecture")
        .ok_or_else(|| Error::corrupt("is missing").about("general.architecture"))?
        .as_str()
        .ok_or_else(|| Error::corrupt("is not a string").about("general.architecture"))?;
    let architecture = match name {
        "llama" => Architecture::Llama,
        "qwen2" => Architecture::Qwen2,
        "qwen3" => Architecture::Qwen3,
        "gemma2" => Architecture::Gemma2,
        "gemma3" => Architecture::Gemma3,
        "phi3" => Architecture::Phi3,
        other => {
            return Err(Error::unsupported(format!(
                "architecture {other:?}; supported: llama, qwen2, qwen3, gemma2, gemma3, phi3"
            ))
            .about("general.architecture"));
        }
    };
    let keys = Keys { header, prefix: name };
    if keys.opt_usize("expert_count")?.is_some_and(|experts| experts > 0) {
        return Err(Error::unsupported("mixture of experts").about(format!("{name}.expert_count")));
    }
    let hidden = keys.usize("embedding_length")?;
    let layers = keys.usize("block_count")?;
    if !(1..=super::MAX_LAYERS).contains(&layers) {
        let message = format!("is {layers}, expected 1 to {}", super::MAX_LAYERS);
        return Err(Error::corrupt(message).about(format!("{name}.block_count")));
    }
    let missing = |key: &str| Error::corrupt("is missing").about(format!("{name}.{key}"));
    let heads =
        keys.uniform("attention.head_count", layers)?.ok_or_else(|| missing("attention.head_count"))?;
    if heads == 0 {
        return Err(Error::corrupt("is 0").about(format!("{name}.attention.head_count")));
    }
    let kv_heads = keys.uniform("attention.head_count_kv", layers)?.unwrap_or(heads);
    let ffn = keys.uniform("feed_forward_length", layers)?.ok_or_else(|| missing("feed_forward_length"))?;
    let head_dim = match keys.opt_usize("attention.key_length")? {
        Some(length) => length,
        None if hidden % heads == 0 => hidden / heads,
        None => {
            return Err(Error::corrupt(format!("hidden size {hidden} is no multiple of {heads} heads"))
                .about(format!("{name}.embedding_length")));
        }
    };
    if keys.opt_usize("attention.value_length")?.is_some_and(|length| length != head_dim) {
        return Err(Error::unsupported("value heads that differ in size from key heads")
            .about(format!("{name}.attention.value_length")));
    }
    let context_length = keys.usize("context_length")?;
    let vocab_size = vocab_size(header, &keys)?;
    let has = |tensor: &str| header.tensors.iter().any(|info| info.name == tensor);
    let rotary = keys.opt_usize("rope.dimension_count")?.unwrap_or(head_dim);
    if rotary > super::MAX_HEAD_DIM {
        // As many factors will be made room for.
        let message = format!("is {rotary}, expected at most {}", super::MAX_HEAD_DIM);
        return Err(Error::corrupt(message).about(format!("{name}.rope.dimension_count")));
    }
    let rope = RopeConfig {
        dim: rotary,
        base: keys.opt_f32("rope.freq_base")?.unwrap_or(10_000.0),
        scaling: RopeScaling::None,
    };
    let scaling = rope_scaling(&keys, context_length, rope.dim)?;
    let local_rope = (architecture == Architecture::Gemma3)
        .then(|| {
            let base = keys.opt_f32("rope.freq_base_swa")?.unwrap_or(10_000.0);
            Ok::<_, Error>(RopeConfig { base, ..rope.clone() })
        })
        .transpose()?;
    // The 27B models of both Gemmas scale by hidden size over heads; GGUF does not say so, their depth does.
    let scaled_by_hidden =
        matches!((architecture, layers), (Architecture::Gemma2, 46) | (Architecture::Gemma3, 62));
    let scale_width = if scaled_by_hidden { hidden / heads } else { head_dim };
    Ok(DecoderConfig {
        architecture,
        vocab_size,
        hidden,
        ffn,
        heads,
        kv_heads,
        head_dim,
        context_length,
        layers: layer_options(&keys, architecture, layers)?,
        norm_eps: keys.f32("attention.layer_norm_rms_epsilon")?,
        norm_offset: false, // converters add the one
        post_norms: architecture.is_gemma(),
        qk_norm: matches!(architecture, Architecture::Qwen3 | Architecture::Gemma3),
        qkv_bias: has("blk.0.attn_q.bias") || has("blk.0.attn_qkv.bias"),
        output_bias: has("blk.0.attn_output.bias"),
        ffn_bias: has("blk.0.ffn_down.bias"),
        fused: has("blk.0.attn_qkv.weight"),
        attention_scale: keys.opt_f32("attention.scale")?.unwrap_or(1.0 / (scale_width.max(1) as f32).sqrt()),
        attention_soft_cap: match architecture {
            Architecture::Gemma2 => Some(keys.opt_f32("attn_logit_softcapping")?.unwrap_or(50.0)),
            _ => None,
        },
        logit_soft_cap: match architecture {
            Architecture::Gemma2 => Some(keys.opt_f32("final_logit_softcapping")?.unwrap_or(30.0)),
            _ => keys.opt_f32("final_logit_softcapping")?.filter(|&cap| cap != 0.0),
        },
        embedding_scale: if architecture.is_gemma() { (hidden as f32).sqrt() } else { 1.0 },
        activation: if architecture.is_gemma() { Activation::GeluTanh } else { Activation::Silu },
        tied: !has("output.weight"),
        rope_pairing: match architecture {
            Architecture::Llama => RopePairing::Interleaved,
            _ => RopePairing::Halves,
        },
        rope: RopeConfig { scaling, ..rope },
        local_rope,
    })
}

/// The embedding decides; `vocab_size` keys are often missing. Converters give padded rows tokens of their own, so that a
/// vocabulary of another length belongs to another model.
fn vocab_size(header: &ModelHeader, keys: &Keys<'_>) -> Result<usize> {
    let embedding = header.tensors.iter().find(|tensor| tensor.name == "token_embd.weight");
    let rows = embedding.and_then(|tensor| tensor.shape.first()).and_then(|&rows| usize::try_from(rows).ok());
    let tokens = header.metadata.get("tokenizer.ggml.tokens").and_then(MetaValue::as_strings);
    match (rows, tokens) {
        (Some(rows), Some(tokens)) if tokens.len() != rows => {
            Err(Error::corrupt(format!("{} tokens, but the embedding has {rows} rows", tokens.len()))
                .about("tokenizer.ggml.tokens"))
        }
        (Some(rows), _) => Ok(rows),
        (None, Some(tokens)) => Ok(tokens.len()),
        (None, None) => keys.usize("vocab_size"),
    }
}

fn layer_options(keys: &Keys<'_>, architecture: Architecture, layers: usize) -> Result<Vec<LayerOptions>> {
    let window = keys.opt_usize("attention.sliding_window")?.filter(|&window| window > 0);
    let explicit = match keys.find("attention.sliding_window_pattern") {
        Some((_, MetaValue::Array(MetaArray::Bool(list)))) if list.len() == layers => Some(list),
        Some((_, value)) if value.as_u64().is_some() => None,
        Some((full, value)) => return Err(Keys::wrong(full, value, "one boolean per layer or a period")),
        None => None,
    };
    let period = match architecture {
        Architecture::Gemma2 => 2,
        Architecture::Gemma3 => 6,
        _ => usize::MAX,
    };
    let period = match keys.find("attention.sliding_window_pattern") {
        Some((_, value)) => value.as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or(period),
        None => period,
    };
    Ok((0..layers)
        .map(|layer| {
            // The last layer of each period sees everything.
            let local = match explicit {
                Some(list) => list[layer],
                None => period != 0 && (period == usize::MAX || layer % period != period - 1),
            };
            let windowed = local && window.is_some();
            LayerOptions {
                window: window.filter(|_| local),
                local_rope: windowed && architecture == Architecture::Gemma3,
            }
        })
        .collect())
}

fn rope_scaling(keys: &Keys<'_>, context_length: usize, dim: usize) -> Result<RopeScaling> {
    let original = keys.opt_usize("rope.scaling.original_context_length")?;
    // Llama 3's factors and Phi 3's two sets are tensors; they are read with the weights and put in here.
    let has = |name: &str| keys.header.tensors.iter().any(|tensor| tensor.name == name);
    if has("rope_factors_long.weight") || has("rope_factors_short.weight") {
        let original_context = original.unwrap_or(context_length);
        let attention_factor = match keys.opt_f32("rope.scaling.attn_factor")? {
            Some(factor) => factor,
            None => {
                long_rope_factor(context_length as f32 / original_context.max(1) as f32, original_context)
            }
        };
        let unit = vec![1.0; dim / 2];
        return Ok(RopeScaling::LongRope {
            short: unit.clone(),
            long: unit,
            original_context,
            attention_factor,
        });
    }
    if has("rope_freqs.weight") {
        return Ok(RopeScaling::Factors(vec![1.0; dim / 2]));
    }
    let kind = keys.opt_str("rope.scaling.type")?;
    let factor = match keys.opt_f32("rope.scaling.factor")? {
        Some(factor) => Some(factor),
        None => keys.opt_f32("rope.scale_linear")?,
    };
    match (kind, factor) {
        (None | Some("none"), None) | (Some("none"), _) => Ok(RopeScaling::None),
        (None | Some("linear"), Some(factor)) if factor != 1.0 && factor != 0.0 => {
            Ok(RopeScaling::Linear { factor })
        }
        (None | Some("linear"), _) => Ok(RopeScaling::None),
        (Some("yarn"), Some(factor)) => Ok(RopeScaling::Yarn {
            factor,
            beta_fast: keys.opt_f32("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
            beta_slow: keys.opt_f32("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
            original_context: original.unwrap_or(context_length),
            truncate: true,
            attention_factor: keys.opt_f32("rope.scaling.attn_factor")?.unwrap_or(1.0)
                * (0.1 * factor.ln() + 1.0),
        }),
        (Some(other), _) => Err(Error::unsupported(format!("rope scaling {other:?}"))
            .about(format!("{}.rope.scaling.type", keys.prefix))),
    }
}

/// `sqrt(1 + ln(scale) / ln(original context))`, Phi 3's correction of attention for longer contexts.
pub(super) fn long_rope_factor(scale: f32, original_context: usize) -> f32 {
    if scale <= 1.0 { 1.0 } else { (1.0 + scale.ln() / (original_context as f32).ln()).sqrt() }
}
