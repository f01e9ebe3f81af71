#!/usr/bin/env python3
"""The third opinion: writes the reference models as GGUF with the package `gguf` and lets llama.cpp compute their logits.

    check_gguf.py [--keep DIR] [NAME…]

`scripts/peer.py` drives a prebuilt llama.cpp. Prints the largest difference to transformers'
logits per case. llama.cpp keeps keys and values in f16 and multiplies BF16 weights with activations rounded to BF16, so
a hundredth is agreement; a wrong option gives tenths.
"""

import argparse
import importlib.util
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

import gguf_form
from make_models import REFERENCES, ROOT, weights_of

LIMIT = {"F32": 0.02, "F16": 0.02, "BF16": 0.1}


def load_peer():
    spec = importlib.util.spec_from_file_location("peer", ROOT / "scripts/peer.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, help="leave the GGUF files here")
    parser.add_argument("names", nargs="*")
    args = parser.parse_args()
    peer = load_peer()
    lib = peer.Lib()
    failed = []
    with tempfile.TemporaryDirectory() as scratch:
        out = args.keep or Path(scratch)
        out.mkdir(parents=True, exist_ok=True)
        for directory in sorted(path.parent for path in REFERENCES.glob("*/case.json")):
            name = directory.name
            case = json.loads((directory / "case.json").read_text())
            if not case.get("gguf") or args.names and not any(name.startswith(prefix) for prefix in args.names):
                continue
            path = str(out / f"{name}.gguf")
            gguf_form.write(path, case, weights_of(case))
            golden = load_file(directory / "golden.safetensors")["expected"]
            try:
                model = peer.Model(lib, path).context(256, 1)
            except RuntimeError as error:
                print(f"{name:30} {error}")
                failed.append(name)
                continue
            model.decode(case["tokens"], all_logits=True)
            difference = np.abs(model.all(len(case["tokens"])) - golden).max()
            print(f"{name:30} {difference:.1e}", flush=True)
            if difference > LIMIT[case["dtype"]]:
                failed.append(name)
    if failed:
        sys.exit(f"no agreement: {', '.join(failed)}")


if __name__ == "__main__":
    main()
