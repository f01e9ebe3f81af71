#!/usr/bin/env python3
"""Merges tiny models with mergekit 0.1.5, for tests/merges.rs: `make_merges.py`.

Needs PyPI mergekit 0.1.5 and what it depends on. Inputs and results go into merges.safetensors; the configurations stand in
merges.json. The random methods are here with density 1 only: their masks are torch's.
"""

import json
import os
import tempfile

import numpy
import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from safetensors.numpy import load_file, save_file

HERE = os.path.dirname(os.path.abspath(__file__))
HIDDEN, FFN, VOCAB, LAYERS = 8, 12, 16, 2
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": FFN,
    "num_hidden_layers": LAYERS, "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": VOCAB,
    "rms_norm_eps": 1e-5, "max_position_embeddings": 64, "tie_word_embeddings": False, "hidden_act": "silu",
    "dtype": "float32", "bos_token_id": 1, "eos_token_id": 2,
}


def shapes():
    yield "model.embed_tokens.weight", (VOCAB, HIDDEN)
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        for part in "qkvo":
            yield f"{at}self_attn.{part}_proj.weight", (HIDDEN, HIDDEN)
        for part in ("gate", "up"):
            yield f"{at}mlp.{part}_proj.weight", (FFN, HIDDEN)
        yield f"{at}mlp.down_proj.weight", (HIDDEN, FFN)
        yield f"{at}input_layernorm.weight", (HIDDEN,)
        yield f"{at}post_attention_layernorm.weight", (HIDDEN,)
    yield "model.norm.weight", (HIDDEN,)
    yield "lm_head.weight", (VOCAB, HIDDEN)


def main():
    random = numpy.random.default_rng(9)
    base = {name: random.normal(0, 0.1, shape).astype(numpy.float32) for name, shape in shapes()}
    models = {"base": base}
    for model, change in (("a", 0.02), ("b", 0.02), ("c", 0.03), ("far", 0.2)):
        models[model] = {
            name: (values + random.normal(0, change, values.shape)).astype(numpy.float32) for name, values in base.items()
        }
    out = {f"{model}:{name}": values for model, tensors in models.items() for name, values in tensors.items()}
    with open(os.path.join(HERE, "merges.json"), encoding="utf-8") as file:
        cases = json.load(file)
    with tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)
        for model, tensors in models.items():
            os.mkdir(model)
            save_file(tensors, f"{model}/model.safetensors", metadata={"format": "pt"})
            with open(f"{model}/config.json", "w", encoding="utf-8") as file:
                json.dump(CONFIG, file)
        for case, text in cases.items():
            config = MergeConfiguration.model_validate(yaml.safe_load(text))
            options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True)
            run_merge(config, f"out-{case}", options)
            for name, values in load_file(f"out-{case}/model.safetensors").items():
                out[f"{case}={name}"] = values
    save_file(out, os.path.join(HERE, "merges.safetensors"))


if __name__ == "__main__":
    main()
