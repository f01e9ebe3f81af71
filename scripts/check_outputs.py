#!/usr/bin/env python3
"""Opens what ORION writes in the programs it is written for: `check_outputs.py ORION MODEL TEXT DIRECTORY`.

ORION is the binary, MODEL a GGUF file, TEXT a text for perplexity, DIRECTORY where 2 GB may be written (removed afterwards).

1. MODEL as halves, quantised by ORION and by llama.cpp to the same types: both open in llama.cpp, whose perplexity of ours may
   differ from that of its own by 0.1 %. The last column is ORION's perplexity of ORION's file, which rounds activations in
   its own way.
2. The same cut into split GGUF, ORION's and the type of the source: opens in llama.cpp with the same perplexity as the whole.
3. The model as safetensors shards with an index, read by the package `safetensors`: every tensor the index names is in its file,
   none is missing, and each equals that of the whole.

Needs numpy and safetensors from PyPI. `scripts/peer.py` fetches a prebuilt llama.cpp. Ends with 1 if anything differs.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from safetensors import safe_open

PEER = Path(__file__).with_name("peer.py")
TYPES = {"Q4_0": 2, "Q4_K_M": 15, "Q8_0": 7, "IQ4_NL": 25}
CONTEXT = 512
LIMIT = 0.001


def last_json(*command):
    run = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if run.returncode != 0:
        sys.exit(f"{command} failed: {run.stdout[-2000:]}{run.stderr[-2000:]}")
    return json.loads(run.stdout.splitlines()[-1])


def peer(command, model, *arguments):
    return last_json(sys.executable, PEER, command, model, *arguments)


def first_of(folder, ending):
    return sorted(path for path in Path(folder).iterdir() if path.name.endswith(ending))[0]


def tensors_of(folder):
    """Every tensor of a folder of safetensors, found as transformers finds them: through the index, if there is one."""
    index = Path(folder) / "model.safetensors.index.json"
    if not index.exists():
        with safe_open(Path(folder) / "model.safetensors", framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}
    index = json.loads(index.read_text())
    found = {}
    for name in sorted(set(index["weight_map"].values())):
        with safe_open(Path(folder) / name, framework="numpy") as file:
            for tensor in file.keys():
                assert index["weight_map"].get(tensor) == name, f"{tensor} stands in {name}, the index says otherwise"
                found[tensor] = file.get_tensor(tensor)
    assert found.keys() == index["weight_map"].keys(), "the index names a tensor that is not there"
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in found.values()), "total_size is another"
    return found


def main():
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    orion, model, text, directory = sys.argv[1:]
    scratch = Path(directory) / "outputs"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    failed = []

    def perplexity(file):
        return peer("ppl", file, "--file", sample, "--ctx", CONTEXT)["ppl"]

    def orions(file):
        return last_json(orion, "eval", "--model", file, "--file", sample, "--ctx", CONTEXT, "--json")["perplexity"]

    try:
        sample = scratch / "sample.txt"
        sample.write_bytes(Path(text).read_bytes()[:16_000])
        halves = scratch / "f16.gguf"
        last_json(orion, "quantize", model, halves, "--type", "F16", "--allow-requantize", "--json")
        print(f"Perplexity of the first {sample.stat().st_size} bytes of {Path(text).name}:\n")
        print("| type | llama.cpp of ORION's file | llama.cpp of its own | difference | ORION of ORION's file |\n|---|---|---|---|---|")
        for name, number in TYPES.items():
            ours, theirs = scratch / f"{name}.gguf", scratch / f"{name}.peer.gguf"
            last_json(orion, "quantize", halves, ours, "--type", name, "--json")
            peer("quantize", halves, "--out", theirs, "--ftype", number)
            of_ours, of_theirs = perplexity(ours), perplexity(theirs)
            difference = of_ours / of_theirs - 1
            print(f"| {name} | {of_ours:.4f} | {of_theirs:.4f} | {100 * difference:+.3f} % | {orions(ours):.4f} |", flush=True)
            if not abs(difference) <= LIMIT:
                failed.append(f"{name}: perplexity differs by {100 * difference:.3f} %")
            theirs.unlink()

        whole = perplexity(scratch / "Q4_0.gguf")
        last_json(orion, "shard", scratch / "Q4_0.gguf", scratch / "split", "--shards", "3", "--format", "gguf", "--json")
        first = first_of(scratch / "split", ".gguf")
        opened, cut = peer("open", first), perplexity(first)
        print(f"\nsplit GGUF, 3 files: opens as {opened['description']}, perplexity {cut:.4f}, whole {whole:.4f}")
        if cut != whole or not opened["decoded_one_token"]:
            failed.append("the split GGUF says something else than the whole")

        last_json(orion, "convert", halves, scratch / "hf", "--json")
        last_json(orion, "shard", scratch / "hf", scratch / "shards", "--shards", "3", "--format", "safetensors", "--json")
        one, many = tensors_of(scratch / "hf"), tensors_of(scratch / "shards")
        if one.keys() != many.keys():
            failed.append(f"tensors differ: {sorted(one.keys() ^ many.keys())[:4]}")
        failed += [f"{name} differs" for name in one.keys() & many.keys() if not np.array_equal(one[name], many[name])]
        shape = many["model.embed_tokens.weight"].shape
        print(f"safetensors, 3 files and an index: {len(many)} tensors as in the whole, embedding {list(shape)}")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if failed:
        sys.exit("\n".join(failed))


if __name__ == "__main__":
    main()
