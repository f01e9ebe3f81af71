"""A reference model as GGUF: metadata and, for each tensor, which Hugging Face tensor it is and what is done to it.

Operations: `copy`; `permute N` (llama rotates neighbouring pairs in GGUF and halves in Hugging Face: the rows of each of the N
heads are interleaved); `add_one` (Gemma's norms multiply by 1 + weight); `values` (the numbers themselves). Matrices keep the
model's dtype, vectors are F32.
"""

import math

import numpy as np

import recipe

LAYER = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.": "attn_q.",
    "self_attn.k_proj.": "attn_k.",
    "self_attn.v_proj.": "attn_v.",
    "self_attn.o_proj.": "attn_output.",
    "self_attn.qkv_proj.": "attn_qkv.",
    "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.": "ffn_gate.",
    "mlp.up_proj.": "ffn_up.",
    "mlp.gate_up_proj.": "ffn_up.",
    "mlp.down_proj.": "ffn_down.",
}
GEMMA_LAYER = LAYER | {
    "post_attention_layernorm.weight": "post_attention_norm.weight",
    "pre_feedforward_layernorm.weight": "ffn_norm.weight",
    "post_feedforward_layernorm.weight": "post_ffw_norm.weight",
}
OUTER = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
         "lm_head.weight": "output.weight"}
ARCHITECTURE = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma2": "gemma2",
                "gemma3_text": "gemma3", "phi3": "phi3"}


def tensor_name(name, layer_names):
    if name in OUTER:
        return OUTER[name]
    _, _, number, rest = name.split(".", 3)
    for theirs, ours in layer_names.items():
        if rest.startswith(theirs):
            return f"blk.{number}.{ours}{rest[len(theirs):]}"
    raise KeyError(name)


def form(config, tensors):
    """The GGUF recipe of a model, given its transformers config and its tensors' shapes."""
    arch = ARCHITECTURE[config.model_type]
    gemma = arch.startswith("gemma")
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = config.rope_parameters
    local = None
    if "full_attention" in rope:
        rope, local = rope["full_attention"], rope["sliding_attention"]
    rotary = int(head_dim * rope.get("partial_rotary_factor", 1.0))
    meta = [["general.architecture", "str", arch], ["general.name", "str", "reference"]]

    def put(key, kind, value):
        meta.append([f"{arch}.{key}", kind, value])

    put("vocab_size", "u32", config.vocab_size)
    put("context_length", "u32", config.max_position_embeddings)
    put("embedding_length", "u32", config.hidden_size)
    put("block_count", "u32", config.num_hidden_layers)
    put("feed_forward_length", "u32", config.intermediate_size)
    put("attention.head_count", "u32", config.num_attention_heads)
    put("attention.head_count_kv", "u32", config.num_key_value_heads)
    put("attention.key_length", "u32", head_dim)
    put("attention.value_length", "u32", head_dim)
    put("attention.layer_norm_rms_epsilon", "f32", config.rms_norm_eps)
    put("rope.dimension_count", "u32", rotary)
    put("rope.freq_base", "f32", rope["rope_theta"])
    if gemma:
        put("attention.sliding_window", "u32", config.sliding_window)
        for key, name in (("attn_logit_softcapping", "attn_logit_softcapping"),
                          ("final_logit_softcapping", "final_logit_softcapping")):
            if getattr(config, key):
                put(name, "f32", getattr(config, key))
    if local is not None:
        put("rope.freq_base_swa", "f32", local["rope_theta"])

    out = []
    permuted = arch == "llama"
    for name in tensors:
        op = "copy"
        if permuted and ("q_proj" in name or "k_proj" in name):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            op = f"permute {heads}"
        if gemma and name.endswith("norm.weight"):
            op = "add_one"
        out.append({"name": tensor_name(name, GEMMA_LAYER if gemma else LAYER), "from": name, "op": op})

    kind = rope["rope_type"]
    if kind in ("linear", "yarn"):
        put("rope.scaling.type", "str", kind)
        put("rope.scaling.factor", "f32", rope["factor"])
    if kind == "yarn":
        put("rope.scaling.original_context_length", "u32", rope["original_max_position_embeddings"])
    if kind == "llama3":
        out.append({"name": "rope_freqs.weight", "op": "values", "values": llama3_factors(rope, head_dim)})
    if kind == "longrope":
        original = rope["original_max_position_embeddings"]
        scale = config.max_position_embeddings / original
        put("rope.scaling.original_context_length", "u32", original)
        put("rope.scaling.attn_factor", "f32", math.sqrt(1 + math.log(scale) / math.log(original)))
        out.append({"name": "rope_factors_long.weight", "op": "values", "values": rope["long_factor"]})
        out.append({"name": "rope_factors_short.weight", "op": "values", "values": rope["short_factor"]})
    meta.append(["tokenizer.ggml.model", "str", "no_vocab"])
    return {"metadata": meta, "tensors": out}


def llama3_factors(rope, dim):
    """What each frequency is divided by: the same rule as transformers', as a factor."""
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    length = rope["original_max_position_embeddings"]
    out = []
    for i in range(0, dim, 2):
        wavelength = 2 * math.pi * rope["rope_theta"] ** (i / dim)
        if wavelength < length / high:
            out.append(1.0)
        elif wavelength > length / low:
            out.append(rope["factor"])
        else:
            smooth = (length / wavelength - low) / (high - low)
            out.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return [float(np.float32(x)) for x in out]


def apply(op, array):
    if op == "copy":
        return array
    if op == "add_one":
        return array + np.float32(1)
    heads = int(op.split()[1])
    shape = array.shape
    return array.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def write(path, case, weights):
    """Writes the case as a GGUF file with the package `gguf`."""
    import gguf

    arch = case["gguf"]["metadata"][0][2]
    writer = gguf.GGUFWriter(path, arch)
    add = {"str": writer.add_string, "u32": writer.add_uint32, "f32": writer.add_float32}
    for key, kind, value in case["gguf"]["metadata"][1:]:
        add[kind](key, value)
    for tensor in case["gguf"]["tensors"]:
        if tensor["op"] == "values":
            array = np.array(tensor["values"], np.float32)
        else:
            array = np.ascontiguousarray(apply(tensor["op"], weights[tensor["from"]]))
        if array.ndim == 2 and case["dtype"] == "F16":
            writer.add_tensor(tensor["name"], array.astype(np.float16))
        elif array.ndim == 2 and case["dtype"] == "BF16":
            raw = np.frombuffer(recipe.encode(array, "BF16"), np.uint8).reshape(array.shape[0], -1)
            writer.add_tensor(tensor["name"], raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
        else:
            writer.add_tensor(tensor["name"], array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
