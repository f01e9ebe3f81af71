#!/usr/bin/env python3
"""Makes the goldens of real quantised models: the same weights widened to f32 (the "twin") and run by transformers in f32.

    make_twin.py smollm2|gemma …

llama.cpp quantises activations, so it is itself off the twin; by how much is kept beside the golden (`peer` in tokens.json),
because a runtime should be no further away than it is. Each sequence is the tokens of a text, by llama.cpp's tokenizer.

    make_twin.py --judge LOGITS.JSON smollm2     how far a program's logits are from the golden

LOGITS.JSON: a list, one per sequence, of what `orion logits --json` prints.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM

from check_gguf import load_peer
from make_models import REFERENCES, ROOT

TOP = 20
MARGIN = 0.5
TEXTS = [
    "The harbour was quiet before dawn. Fishing boats knocked against the pier, and a lamp burned in the window of the "
    "customs house, where two clerks were counting crates that nobody had asked them to count. At six the bell rang.",
    "def merge(left, right):\n    \"\"\"Merges two sorted lists.\"\"\"\n    out = []\n    while left and right:\n"
    "        out.append(left.pop(0) if left[0] <= right[0] else right.pop(0))\n    return out + left + right\n",
    "1. Mix 250 g of flour with 3 eggs, a pinch of salt and 1/2 litre of milk. 2. Let it rest for 20 minutes. 3. Fry thin "
    "pancakes. Guten Appetit! Bon appétit ! ¡Buen provecho! いただきます。",
]


def model_path(name):
    return Path(subprocess.check_output([sys.executable, ROOT / "scripts/models.py", "--print-path", name], text=True).strip())


def distance(twin, other_at_top, other_top1):
    """How far logits are from the twin's: over the twin's top-20 ids of every position, and where the choice differs although
    the twin was sure of it."""
    ids, values = twin["top_ids"], twin["top_logits"]
    difference = np.abs(other_at_top - values)
    margin = values[..., 0] - values[..., 1]
    wrong = other_top1 != ids[..., 0]
    return {"mean": round(float(difference.mean()), 4), "max": round(float(difference.max()), 4),
            "top1_differs": int(wrong.sum()), "top1_differs_beyond_margin": int((wrong & (margin >= MARGIN)).sum()),
            "positions": int(margin.size)}


def top(logits):
    ids = np.argsort(-logits, axis=-1, kind="stable")[:, :TOP]
    return ids.astype(np.int32), np.take_along_axis(logits, ids, -1)


def make(name, peer):
    path = model_path(name)
    llama = peer.Model(peer.Lib(), str(path)).context(512, 2)
    bos = llama.lib.L.llama_vocab_get_add_bos(llama.vocab)
    sequences = [llama.tokenize(text, bool(bos), False) for text in TEXTS]
    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager").eval()
    flat, theirs = {"top_ids": [], "top_logits": []}, {"at": [], "top1": []}
    for tokens in sequences:
        with torch.no_grad():
            twin = model(torch.tensor([tokens])).logits[0].numpy()
        ids, values = top(twin)
        flat["top_ids"].append(ids)
        flat["top_logits"].append(values)
        llama.clear()
        llama.decode(tokens, all_logits=True)
        logits = llama.all(len(tokens))
        theirs["at"].append(np.take_along_axis(logits, ids, -1))
        theirs["top1"].append(logits.argmax(-1))
    golden = {key: np.concatenate(value) for key, value in flat.items()}
    judged = distance(golden, np.concatenate(theirs["at"]), np.concatenate(theirs["top1"]))
    out = REFERENCES / name
    out.mkdir(parents=True, exist_ok=True)
    save_file(golden, out / "golden.safetensors")
    (out / "golden.safetensors").chmod(0o644)
    rows = ",\n".join(f"    {json.dumps(tokens)}" for tokens in sequences)
    (out / "tokens.json").write_text(f'{{\n  "peer": {json.dumps(judged)},\n  "sequences": [\n{rows}\n  ]\n}}\n')
    print(name, [len(s) for s in sequences], "llama.cpp to twin:", judged)


def judge(name, file):
    golden = load_file(REFERENCES / name / "golden.safetensors")
    recorded = json.loads((REFERENCES / name / "tokens.json").read_text())
    positions = [p for sequence in json.loads(Path(file).read_text()) for p in sequence["positions"]]
    assert len(positions) == len(golden["top_ids"]), "other sequences than the golden's"
    at, found = np.copy(golden["top_logits"]), np.zeros(golden["top_ids"].shape, bool)
    for row, position in enumerate(positions):
        given = {entry["id"]: entry["logit"] for entry in position["top"]}
        for column, token in enumerate(golden["top_ids"][row]):
            if int(token) in given:
                at[row, column], found[row, column] = given[int(token)], True
    best = np.array([position["top"][0]["id"] for position in positions])
    print(name, "to twin:", distance(golden, at, best), f"compared {found.mean():.1%} of the ids")
    print(name, "llama.cpp:", recorded["peer"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", metavar="LOGITS.JSON")
    parser.add_argument("models", nargs="+", choices=["smollm2", "gemma"])
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for name in args.models:
        if args.judge:
            judge(name, args.judge)
        else:
            make(name, load_peer())


if __name__ == "__main__":
    main()
