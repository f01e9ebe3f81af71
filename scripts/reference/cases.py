"""The reference cases: one tiny model of each architecture and option set, as a person would find its config.json.

`config` is written as Hugging Face's tools write it today, `old` (where given) as they wrote it before version 5; both must
mean the same model. `gguf` says whether the model can be expressed in GGUF such that llama.cpp computes the same function.
"""

LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}
SHORT = [1.0, 1.05, 1.1, 1.2, 1.35, 1.5, 1.75, 2.0]
LONG = [1.1, 1.4, 2.0, 3.0, 4.5, 6.0, 8.0, 12.0]
PATTERN = ["sliding_attention", "full_attention"]


def base(model_type, architecture, **options):
    config = {
        "architectures": [architecture], "model_type": model_type, "vocab_size": 128, "hidden_size": 64,
        "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
        "bos_token_id": 1, "eos_token_id": 2, "dtype": "float32",
    }
    config.update(options)
    return {key: value for key, value in config.items() if value is not DROP}


class Drop:
    """An option that is left out, so that its default counts."""


DROP = Drop()


def llama(**o):
    o.setdefault("hidden_act", "silu")
    return base("llama", "LlamaForCausalLM", **o)


def mistral(**o):
    o.setdefault("hidden_act", "silu")
    return base("mistral", "MistralForCausalLM", **o)


def qwen2(**o):
    o.setdefault("hidden_act", "silu")
    return base("qwen2", "Qwen2ForCausalLM", **{"rms_norm_eps": 1e-3, **o})


def qwen3(**o):
    o.setdefault("hidden_act", "silu")
    return base("qwen3", "Qwen3ForCausalLM", **{"rms_norm_eps": 1e-3, "head_dim": 32, "attention_bias": False, **o})


def gemma2(**o):
    return base("gemma2", "Gemma2ForCausalLM", **{
        "rms_norm_eps": 1e-3, "head_dim": 32, "hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": True,
        "num_hidden_layers": 3, "sliding_window": 8, "query_pre_attn_scalar": 32, "attn_logit_softcapping": 4.0,
        "final_logit_softcapping": 6.0, "attention_bias": False, **o})


def gemma3(**o):
    return base("gemma3_text", "Gemma3ForCausalLM", **{
        "rms_norm_eps": 1e-3, "head_dim": 32, "hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": True,
        "num_hidden_layers": 3, "sliding_window": 8, "query_pre_attn_scalar": 32, "attention_bias": False,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"], **o})


def phi3(**o):
    o.setdefault("hidden_act", "silu")
    return base("phi3", "Phi3ForCausalLM", **{"original_max_position_embeddings": 128, "pad_token_id": 0, **o})


def bert(**o):
    config = base("bert", "BertModel", **{
        "hidden_act": "gelu", "layer_norm_eps": 1e-12, "type_vocab_size": 2, "pad_token_id": 0, "position_embedding_type":
        "absolute", "max_position_embeddings": 64, **o})
    for key in ("num_key_value_heads", "rms_norm_eps", "tie_word_embeddings", "bos_token_id", "eos_token_id"):
        del config[key]
    return config


def theta(value, **more):
    return {"rope_theta": value, "rope_type": "default", **more}


def old(config, **changes):
    """`config` in the spelling before version 5: `torch_dtype`, `rope_theta` and `rope_scaling` at the top level."""
    config = dict(config)
    config["torch_dtype"] = config.pop("dtype")
    rope = dict(config.pop("rope_parameters", {}))
    if "rope_theta" in rope:
        config["rope_theta"] = rope.pop("rope_theta")
    if rope.get("rope_type", "default") != "default":
        config["rope_scaling"] = rope
    config.update(changes)
    return {key: value for key, value in config.items() if value is not DROP}


def cases():
    """(name, config, options) of every case. Options: `old`, `dtype`, `length` of the test sequence, `gguf`."""
    out = []

    def case(name, config, **options):
        out.append((name, config, {"length": 24, "gguf": False, "dtype": "F32", **options}))

    # llama
    c = llama(num_key_value_heads=4, rope_parameters=theta(10000.0))
    case("llama-mha", c, old=old(c, num_key_value_heads=DROP), gguf=True)
    c = llama(tie_word_embeddings=True, rope_parameters=theta(100000.0))
    case("llama-gqa-tied", c, old=old(c), gguf=True)
    case("llama-mqa", llama(num_key_value_heads=1, rope_parameters=theta(10000.0)), gguf=True)
    c = llama(head_dim=32, rope_parameters=theta(10000.0))
    case("llama-head-dim", c, old=old(c), gguf=True)
    case("llama-attention-bias", llama(attention_bias=True, rope_parameters=theta(10000.0)), gguf=True)
    case("llama-mlp-bias", llama(mlp_bias=True, rope_parameters=theta(10000.0)), gguf=True)
    case("llama-gelu", llama(hidden_act="gelu", rope_parameters=theta(10000.0)))
    case("llama-gelu-tanh", llama(hidden_act="gelu_pytorch_tanh", rope_parameters=theta(10000.0)))
    case("llama-eps", llama(rms_norm_eps=0.05, rope_parameters=theta(10000.0)), gguf=True)
    case("llama-one-layer", llama(num_hidden_layers=1, hidden_size=32, num_attention_heads=2, num_key_value_heads=2,
                                  intermediate_size=40, vocab_size=130, rope_parameters=theta(10000.0)), gguf=True)
    case("llama-four-layers", llama(num_hidden_layers=4, hidden_size=48, num_attention_heads=3, num_key_value_heads=3,
                                    rope_parameters=theta(10000.0)), gguf=True)
    case("llama-defaults", llama(num_key_value_heads=DROP, max_position_embeddings=DROP, rms_norm_eps=DROP,
                                 tie_word_embeddings=DROP, hidden_act=DROP, bos_token_id=DROP, eos_token_id=DROP,
                                 dtype=DROP))
    c = llama(rope_parameters={"rope_theta": 5000.0, **LLAMA3})
    case("llama-rope-llama3", c, old=old(c), gguf=True, length=32)
    c = llama(rope_parameters={"rope_theta": 10000.0, "rope_type": "linear", "factor": 3.0})
    case("llama-rope-linear", c, old=old(c, rope_scaling={"type": "linear", "factor": 3.0}), gguf=True)
    c = llama(rope_parameters={"rope_theta": 10000.0, "rope_type": "yarn", "factor": 4.0,
                               "original_max_position_embeddings": 512}, max_position_embeddings=2048)
    case("llama-rope-yarn", c, old=old(c), gguf=True, length=32)
    case("llama-rope-yarn-options", llama(rope_parameters={
        "rope_theta": 500.0, "rope_type": "yarn", "factor": 3.0, "original_max_position_embeddings": 200, "beta_fast": 8.0,
        "beta_slow": 0.5, "attention_factor": 1.4, "truncate": False}, max_position_embeddings=600), length=32)
    case("llama-rope-yarn-mscale", llama(rope_parameters={
        "rope_theta": 10000.0, "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 512,
        "mscale": 1.2, "mscale_all_dim": 0.7}), length=32)
    # Dynamic NTK changes nothing up to max_position_embeddings; beyond it every earlier key would have to be rotated anew.
    c = llama(rope_parameters={"rope_theta": 10000.0, "rope_type": "dynamic", "factor": 2.0}, max_position_embeddings=32)
    case("llama-rope-dynamic-within", c, old=old(c, rope_scaling={"type": "dynamic", "factor": 2.0}))
    case("llama-f16", llama(dtype="float16", rope_parameters=theta(10000.0)), dtype="F16", gguf=True)
    case("llama-bf16", llama(dtype="bfloat16", rope_parameters=theta(10000.0)), dtype="BF16", gguf=True)

    # mistral
    c = mistral(sliding_window=8, rope_parameters=theta(10000.0))
    case("mistral-window", c, old=old(c), length=32)
    c = mistral(sliding_window=None, head_dim=32, rope_parameters=theta(1000000.0))
    case("mistral-no-window", c, old=old(c), gguf=True)
    case("mistral-window-one", mistral(sliding_window=1, rope_parameters=theta(10000.0)))
    case("mistral-defaults", mistral(num_key_value_heads=4, rms_norm_eps=DROP, tie_word_embeddings=DROP, hidden_act=DROP,
                                     max_position_embeddings=DROP, dtype=DROP))

    # qwen2, qwen2.5: bias on q, k, v without any option; a window that is switched off
    c = qwen2(tie_word_embeddings=True, use_sliding_window=False, sliding_window=8, max_window_layers=1,
              rope_parameters=theta(1000000.0))
    case("qwen2-tied", c, old=old(c), gguf=True)
    c = qwen2(num_key_value_heads=4, rope_parameters=theta(10000.0))
    case("qwen2-untied", c, old=old(c), gguf=True)
    c = qwen2(num_hidden_layers=3, use_sliding_window=True, sliding_window=8, max_window_layers=1,
              rope_parameters=theta(10000.0))
    case("qwen2-window", c, old=old(c), length=32)
    case("qwen2-layer-types", qwen2(num_hidden_layers=3, use_sliding_window=True, sliding_window=8, max_window_layers=3,
                                    layer_types=["full_attention", "sliding_attention", "full_attention"],
                                    rope_parameters=theta(10000.0)), length=32)
    c = qwen2(max_position_embeddings=2048, rope_parameters={
        "rope_theta": 1000000.0, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512})
    case("qwen2-yarn", c, old=old(c, rope_scaling={"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}),
         gguf=True, length=32)
    case("qwen2-bf16", qwen2(dtype="bfloat16", rope_parameters=theta(10000.0)), dtype="BF16", gguf=True)

    # qwen3: a norm on each head's query and key
    c = qwen3(tie_word_embeddings=True, rope_parameters=theta(1000000.0))
    case("qwen3-tied", c, old=old(c), gguf=True)
    case("qwen3-untied", qwen3(num_key_value_heads=4, head_dim=16, rope_parameters=theta(10000.0)), gguf=True)
    case("qwen3-attention-bias", qwen3(attention_bias=True, rope_parameters=theta(10000.0)))
    c = qwen3(num_hidden_layers=3, use_sliding_window=True, sliding_window=8, max_window_layers=2,
              rope_parameters=theta(10000.0))
    case("qwen3-window", c, old=old(c), length=32)
    c = qwen3(rope_parameters={"rope_theta": 1000000.0, "rope_type": "yarn", "factor": 4.0,
                               "original_max_position_embeddings": 512}, max_position_embeddings=2048)
    case("qwen3-yarn", c, old=old(c), gguf=True, length=32)

    # gemma2: norms before and after, two soft-caps, every other layer windowed, embeddings scaled
    c = gemma2(rope_parameters=theta(10000.0))
    case("gemma2", c, old=old(c), gguf=True, length=32)
    case("gemma2-scalar", gemma2(query_pre_attn_scalar=10, rope_parameters=theta(10000.0)), length=32)
    case("gemma2-no-caps", gemma2(attn_logit_softcapping=None, final_logit_softcapping=None,
                                  rope_parameters=theta(10000.0)), length=32)
    case("gemma2-default-caps", gemma2(attn_logit_softcapping=DROP, final_logit_softcapping=DROP,
                                       rope_parameters=theta(10000.0)), length=32)
    case("gemma2-layer-types", gemma2(layer_types=["full_attention", "sliding_attention", "sliding_attention"],
                                      rope_parameters=theta(10000.0)), length=32)
    case("gemma2-attention-bias", gemma2(attention_bias=True, rope_parameters=theta(10000.0)), length=32)
    case("gemma2-untied", gemma2(tie_word_embeddings=False, rope_parameters=theta(10000.0)), length=32)

    # gemma3 text: QK norm, local and global rope, a pattern of windows
    nested = {"sliding_attention": theta(10000.0), "full_attention": theta(1000000.0)}
    c = gemma3(rope_parameters=nested)
    case("gemma3", c, length=32, old=old({**c, "rope_parameters": {}}, rope_theta=1000000.0, rope_local_base_freq=10000.0,
                                        layer_types=DROP, sliding_window_pattern=2))
    scaled = {**nested, "full_attention": {"rope_theta": 1000000.0, "rope_type": "linear", "factor": 8.0}}
    c = gemma3(rope_parameters=scaled)
    case("gemma3-linear", c, length=32, old=old(
        {**c, "rope_parameters": {}}, rope_theta=1000000.0, rope_local_base_freq=10000.0,
        rope_scaling={"rope_type": "linear", "factor": 8.0}, layer_types=DROP, sliding_window_pattern=2))
    c = gemma3(num_hidden_layers=7, hidden_size=32, num_attention_heads=2, num_key_value_heads=1, head_dim=24,
               query_pre_attn_scalar=24, layer_types=DROP, intermediate_size=48, rope_parameters=nested)
    case("gemma3-pattern-6", c, gguf=True, length=32, old=old(
        {**c, "rope_parameters": {}}, rope_theta=1000000.0, rope_local_base_freq=10000.0, sliding_window_pattern=6))
    case("gemma3-scalar", gemma3(query_pre_attn_scalar=9, rope_parameters=nested), length=32)
    # transformers reads gemma3's attn_logit_softcapping and does not apply it; no published model sets it.
    case("gemma3-final-cap", gemma3(attn_logit_softcapping=None, final_logit_softcapping=5.0, rope_parameters=nested),
         length=32)
    case("gemma3-defaults", gemma3(rope_parameters=DROP, rms_norm_eps=DROP, max_position_embeddings=DROP,
                                   tie_word_embeddings=DROP, layer_types=DROP, hidden_activation=DROP, dtype=DROP,
                                   query_pre_attn_scalar=DROP, num_hidden_layers=7, hidden_size=32, num_attention_heads=2,
                                   num_key_value_heads=1, intermediate_size=48), length=32)
    case("gemma3-bf16", gemma3(dtype="bfloat16", rope_parameters=nested), dtype="BF16", length=32)

    # phi3: fused q/k/v and gate/up, partial rotary, two sets of rope factors
    c = phi3(rope_parameters=theta(10000.0, partial_rotary_factor=1.0), num_key_value_heads=4)
    case("phi3", c, old=old(c, rope_scaling=None), gguf=True)
    c = phi3(rope_parameters=theta(10000.0, partial_rotary_factor=1.0), sliding_window=8)
    case("phi3-window", c, old=old(c), length=32)
    c = phi3(rope_parameters=theta(10000.0, partial_rotary_factor=0.5))
    case("phi3-partial", c, old=old(c, partial_rotary_factor=0.5), gguf=True)
    longrope = {"rope_theta": 10000.0, "rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG}
    long = {"max_position_embeddings": 128, "original_max_position_embeddings": 16}
    factors = {"type": "longrope", "short_factor": SHORT, "long_factor": LONG}
    c = phi3(**long, rope_parameters={**longrope, "partial_rotary_factor": 1.0})
    case("phi3-longrope-short", c, old=old(c, rope_scaling=factors), length=16)
    case("phi3-longrope-long", c, old=old(c, rope_scaling=factors), length=32, gguf=True)
    c = phi3(**long, tie_word_embeddings=True, rope_parameters={
        **longrope, "short_factor": SHORT[:6], "long_factor": LONG[:6], "partial_rotary_factor": 0.75})
    case("phi3-longrope-partial-tied", c, length=17, gguf=True, old=old(c, partial_rotary_factor=0.75, rope_scaling={
        "type": "longrope", "short_factor": SHORT[:6], "long_factor": LONG[:6]}))
    case("phi3-bf16", phi3(dtype="bfloat16", rope_parameters=theta(10000.0, partial_rotary_factor=1.0)), dtype="BF16")
    return out


def encoder_cases():
    """The same for encoders; what is kept of them is the last hidden state."""
    options = {"length": 24, "dtype": "F32"}
    return [
        ("bert", bert(), options),
        ("bert-gelu-tanh", bert(hidden_act="gelu_new", num_hidden_layers=3, num_attention_heads=2), options),
        ("bert-relu", bert(hidden_act="relu", type_vocab_size=1, intermediate_size=128), options),
        ("bert-eps", bert(layer_norm_eps=0.05, hidden_size=48, num_attention_heads=3), options),
        ("bert-f16", bert(dtype="float16"), {**options, "dtype": "F16"}),
    ]
