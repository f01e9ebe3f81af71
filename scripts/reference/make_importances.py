#!/usr/bin/env python3
"""Sums the squares of what goes into each matrix of some reference models, with hooks on transformers' own layers: the golden of
`orion-runtime/tests/importances.rs`. The models are those that `make_models.py` left in `orion-runtime/tests/references`."""

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import AutoModelForCausalLM

from make_models import REFERENCES, ROOT, weights_of, write_model

# Grouped queries with a tied head, post-norms and windows, fused projections, biases.
CASES = ["llama-gqa-tied", "gemma3", "phi3", "llama-attention-bias"]


def sums(name):
    case = json.loads((REFERENCES / name / "case.json").read_text())
    config = json.loads((REFERENCES / name / "config.json").read_text())
    with tempfile.TemporaryDirectory() as scratch:
        write_model(Path(scratch), config, weights_of(case))
        model = AutoModelForCausalLM.from_pretrained(scratch, dtype=torch.float32, attn_implementation="eager").eval()
    seen = {}

    def hook(path):
        def watch(_, inputs):
            x = inputs[0].detach().reshape(-1, inputs[0].shape[-1]).double()
            assert path not in seen, path
            seen[path] = (x * x).sum(0).numpy()
        return watch

    for path, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and ".layers." in path:
            module.register_forward_pre_hook(hook(f"{path}.weight"))
    with torch.no_grad():
        model(torch.tensor([case["tokens"]]))
    return {f"{name}/{path}": values.astype(np.float32) for path, values in seen.items()}


def main():
    torch.set_num_threads(1)
    golden = {}
    for name in CASES:
        found = sums(name)
        print(f"{name:24} {len(found)} matrices")
        golden |= found
    save_file(golden, ROOT / "orion-runtime/tests/goldens/importances.safetensors")


if __name__ == "__main__":
    main()
