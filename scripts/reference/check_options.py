#!/usr/bin/env python3
"""Would a wrong option show? Changes each option of each reference model a little and lists those that hardly move its logits.

    check_options.py [NAME…]

What stays in the list must have a reason: a window that is switched off, the other set of longrope factors, dynamic NTK within
the trained length, a bound that is rounded.
"""

import copy
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import transformers
from huggingface_hub.errors import StrictDataclassClassValidationError
from safetensors.numpy import load_file

from make_models import REFERENCES, output, weights_of, write_model

VISIBLE = 1e-3
SCALED = {"rope_theta", "factor", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow", "attention_factor", "mscale",
          "mscale_all_dim", "attn_logit_softcapping", "final_logit_softcapping"}
CHANGE = {
    "rms_norm_eps": lambda v: v * 10,
    "query_pre_attn_scalar": lambda v: v + v // 4,
    "sliding_window": lambda v: v + 1,
    "max_window_layers": lambda v: v + 1,
    "original_max_position_embeddings": lambda v: v + v // 4,
    "hidden_act": lambda v: "gelu_pytorch_tanh" if v == "gelu" else "gelu",
    "hidden_activation": lambda v: "gelu",
    "layer_types": lambda v: v[1:] + v[:1],
    "partial_rotary_factor": lambda v: v / 2,
    "truncate": lambda v: not v,
    "long_factor": lambda v: [x * 1.1 for x in v],
    "short_factor": lambda v: [x * 1.1 for x in v],
}


def changed(config):
    """(option, changed config) for every option that has a value."""
    def walk(node, path):
        for key, value in node.items():
            if isinstance(value, dict):
                yield from walk(value, [*path, key])
            elif value is not None and (key in SCALED or key in CHANGE):
                copied = copy.deepcopy(config)
                inner = copied
                for step in path:
                    inner = inner[step]
                inner[key] = CHANGE.get(key, lambda v: v * 1.1)(value)
                yield ".".join([*path, key]), copied

    return walk(config, [])


def main():
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for folder in sorted(path.parent for path in REFERENCES.glob("*/case.json")):
        if sys.argv[1:] and not folder.name.startswith(tuple(sys.argv[1:])):
            continue
        case = json.loads((folder / "case.json").read_text())
        golden = load_file(folder / "golden.safetensors")["expected"]
        weights = weights_of(case)
        for option, config in changed(json.loads((folder / "config.json").read_text())):
            with tempfile.TemporaryDirectory() as scratch:
                write_model(Path(scratch), config, weights)
                try:
                    moved = np.abs(output(scratch, case["tokens"]) - golden).max()
                except StrictDataclassClassValidationError as refused:
                    print(f"{folder.name:30} {option}: {str(refused).splitlines()[-1]}")
                    continue
            if moved < VISIBLE:
                print(f"{folder.name:30} {option}: {moved:.1e}", flush=True)


if __name__ == "__main__":
    main()
