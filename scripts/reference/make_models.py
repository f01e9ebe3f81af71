#!/usr/bin/env python3
"""Makes the numeric references of `orion-runtime/tests` with transformers and torch. See README.md beside it.

    make_models.py [NAME…]     all cases, or those whose name starts with one of NAME
"""

import argparse
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
import transformers
from safetensors.numpy import save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

import gguf_form
import recipe
from cases import cases, encoder_cases

ROOT = Path(__file__).resolve().parents[2]
REFERENCES = ROOT / "orion-runtime/tests/references"
ENCODERS = ROOT / "orion-runtime/tests/encoder-references"


def model_class(config):
    return AutoModel if config.model_type == "bert" else AutoModelForCausalLM


def shapes(config):
    """Names and shapes of the tensors that a file of this model holds: a tied head is not among them."""
    with torch.device("meta"):
        model = model_class(config).from_config(config)
    tensors = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    return tensors


def weights_of(case):
    """The model's tensors in f32, rounded to its dtype."""
    return {
        name: recipe.round_to(recipe.values(case["seed"], name, t["shape"], t["offset"], t["scale"]), case["dtype"])
        for name, t in case["tensors"].items()
    }


def output(directory, tokens, wide=False):
    """What the model in `directory` computes for every position: logits, or an encoder's last hidden state. `wide` computes
    all but norms and softmax in f64."""
    model, info = model_class(AutoConfig.from_pretrained(directory)).from_pretrained(
        directory, dtype=torch.float64 if wide else torch.float32, attn_implementation="eager", output_loading_info=True)
    assert not any(info.values()), info
    with torch.no_grad():
        return model.eval()(torch.tensor([tokens])).to_tuple()[0][0].numpy()


def digest_of(weights, dtype):
    """SHA-256 of the tensors in the order of their names, as a file holds them; the Rust side must make the same."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(recipe.encode(weights[name], dtype))
    return digest.hexdigest()


def write_model(directory, config, weights):
    (directory / "config.json").write_text(json.dumps(config))
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


def dump(value, path):
    """JSON with one line per tensor and per metadata entry: small, and a change shows where it is."""
    def lines(items):
        return ",\n".join(f"    {json.dumps(key)}: {json.dumps(item)}" for key, item in items)

    parts = [f'  {json.dumps(key)}: {json.dumps(item)}' for key, item in value.items() if key not in ("tensors", "gguf")]
    parts.append('  "tensors": {\n' + lines(value["tensors"].items()) + "\n  }")
    if value["gguf"]:
        rows = [",\n".join(f"    {json.dumps(row)}" for row in value["gguf"][key]) for key in ("metadata", "tensors")]
        parts.append('  "gguf": {"metadata": [\n' + rows[0] + '\n  ], "tensors": [\n' + rows[1] + "\n  ]}")
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n")


def make(name, config, options, out):
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        (scratch / "config.json").write_text(json.dumps(config))
        parsed = AutoConfig.from_pretrained(scratch)
        seed = recipe.fnv1a(name) >> 12
        unit_offset = parsed.model_type.startswith("gemma")
        tensors = {}
        for tensor, shape in shapes(parsed).items():
            offset, scale = recipe.fill(tensor, shape, unit_offset, parsed.tie_word_embeddings)
            tensors[tensor] = {"shape": shape, "offset": offset, "scale": scale}
        gguf = options.get("gguf") and gguf_form.form(parsed, tensors)
        case = {"seed": seed, "dtype": options["dtype"], "tokens": recipe.tokens(seed, options["length"], parsed.vocab_size),
                "tensors": tensors, "gguf": gguf}
        weights = weights_of(case)
        case["weights_sha256"] = digest_of(weights, case["dtype"])
        if case["gguf"]:
            gguf_form.write(scratch / "model.gguf", case, weights)
            case["gguf_sha256"] = hashlib.sha256((scratch / "model.gguf").read_bytes()).hexdigest()
        write_model(scratch, config, weights)
        golden = output(scratch, case["tokens"])
        if "old" in options:
            write_model(scratch, options["old"], weights)
            assert np.array_equal(golden, output(scratch, case["tokens"])), f"{name}: the old spelling means another model"
        write_model(scratch, config, weights)
        noise = np.abs(golden - output(scratch, case["tokens"], wide=True)).max()

    target = out / name
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if "old" in options:
        (target / "config.old.json").write_text(json.dumps(options["old"], indent=2) + "\n")
    dump(case, target / "case.json")
    save_file({"expected": golden.astype(np.float32)}, target / "golden.safetensors")
    return golden, noise


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    print(f"transformers {transformers.__version__}, torch {torch.__version__}")
    everything = [(REFERENCES, case) for case in cases()] + [(ENCODERS, case) for case in encoder_cases()]
    for folder, (name, config, options) in everything:
        if args.names and not any(name.startswith(prefix) for prefix in args.names):
            continue
        golden, noise = make(name, config, options, folder)
        assert np.isfinite(golden).all(), name
        # The tests allow 1e-4: that must leave room for the rounding of f32 itself.
        assert noise < 2e-5, (name, noise)
        print(f"{name:30} {list(golden.shape)} std {golden.std():.2f} rounding {noise:.1e}", flush=True)


if __name__ == "__main__":
    main()
