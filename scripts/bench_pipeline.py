#!/usr/bin/env python3
"""Speed and memory of quantising and merging: `bench_pipeline.py ORION MODEL DIRECTORY [--rounds 3] [--large]`.

ORION is the binary, MODEL a GGUF file, DIRECTORY where models may be written (2 GB, with --large 10 GB; removed afterwards).
Each figure is a process of its own, start and end included; memory is its largest resident set.

Quantising: MODEL as halves, to Q4_K_M and Q4_0, in turns with llama.cpp's own quantiser (`llama_model_quantize`, its call alone).
Merging: three models of halves as safetensors, linear and TIES (density 0.5, half of each of two differences).
--large: 4 GB of random halves in the shape of a llama 2048 wide, quantised and merged with itself. The memory allowed is three times the largest
tensor in 32-bit floats and 64 MB.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from scorecard import HIDDEN, VOCAB, random_model

PEER = Path(__file__).with_name("peer.py")
THREADS = "2"


def run(*command):
    """Seconds and largest resident set in MB of a process that must succeed."""
    began = time.monotonic()
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True)
    answer = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"{command} failed: {answer}")
    return time.monotonic() - began, usage.ru_maxrss * 1024 / 1e6


def spread(values):
    return f"{statistics.median(values):.2f} ({min(values):.2f} - {max(values):.2f})"


def limit_mb(rows, columns):
    return (3 * 4 * rows * columns) / 1e6 + 64


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("orion")
    parser.add_argument("model")
    parser.add_argument("directory")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--large", action="store_true")
    args = parser.parse_args()
    scratch = Path(args.directory) / "bench-pipeline"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        small(args, scratch)
        if args.large:
            large(args, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def small(args, scratch):
    orion, halves = args.orion, scratch / "f16.gguf"
    run(orion, "quantize", args.model, halves, "--type", "F16", "--allow-requantize", "--json")
    info = json.loads(subprocess.run([orion, "inspect", str(halves), "--json"], capture_output=True, text=True, check=True).stdout)
    largest = max((tensor["shape"] for tensor in info["tensors"]), key=lambda shape: (shape + [1])[0] * (shape + [1])[1])
    allowed = limit_mb(*largest)
    print(f"Memory allowed: {allowed:.0f} MB.\n\n| | s | MB | llama.cpp s | times as fast |\n|---|---|---|---|---|")
    for name, number in (("Q4_K_M", 15), ("Q4_0", 2)):
        ours, theirs, memory = [], [], []
        for _ in range(args.rounds):
            out = scratch / "out.gguf"
            seconds, rss = run(orion, "quantize", halves, out, "--type", name, "--force", "-t", THREADS, "--json")
            ours.append(seconds)
            memory.append(rss)
            peer = subprocess.run([sys.executable, str(PEER), "quantize", str(halves), "--out", str(out), "--ftype", str(number), "-t", THREADS],
                                  capture_output=True, text=True, check=True)
            theirs.append(json.loads(peer.stdout.splitlines()[-1])["seconds"])
        ratio = statistics.median(theirs) / statistics.median(ours)
        print(f"| quantise {name} | {spread(ours)} | {max(memory):.0f} | {spread(theirs)} | {ratio:.1f} |", flush=True)
    models = [scratch / f"model-{number}" for number in range(3)]
    run(orion, "convert", halves, models[0], "--json")
    for model, kind in zip(models[1:], ("Q8_0", "Q4_0")):
        coarse, again = scratch / "coarse.gguf", scratch / "again.gguf"
        run(orion, "quantize", halves, coarse, "--type", kind, "--force", "--json")
        run(orion, "quantize", coarse, again, "--type", "F16", "--allow-requantize", "--force", "--json")
        run(orion, "convert", again, model, "--json")
    entries = "\n".join(f"  - model: {model.resolve()}\n    parameters: {{weight: 0.5, density: 0.5}}" for model in models[1:])
    linear = "\n".join(f"  - model: {model.resolve()}\n    parameters: {{weight: 1.0}}" for model in models)
    configs = {
        "linear": f"merge_method: linear\ndtype: float16\nmodels:\n{linear}\n",
        "TIES": f"merge_method: ties\nbase_model: {models[0].resolve()}\ndtype: float16\nmodels:\n{entries}\n",
    }
    for name, text in configs.items():
        config = scratch / f"{name}.yml"
        config.write_text(text)
        runs = [run(orion, "merge", config, scratch / "merged", "--force", "-t", THREADS, "--json") for _ in range(args.rounds)]
        print(f"| merge {name} | {spread([seconds for seconds, _ in runs])} | {max(rss for _, rss in runs):.0f} | | |", flush=True)


def large(args, scratch):
    model, out = scratch / "large.gguf", scratch / "out.gguf"
    random_model(model, layers=42)
    again = scratch / "again.gguf"
    again.hardlink_to(model)
    allowed = limit_mb(VOCAB, HIDDEN)
    print(f"\n{model.stat().st_size / 1e9:.1f} GB of random halves; memory allowed {allowed:.0f} MB:\n\n| | s | MB |\n|---|---|---|")
    for name, command in {
        "quantise Q4_K_M": ["quantize", model, out, "--type", "Q4_K_M"],
        "quantise Q4_0": ["quantize", model, out, "--type", "Q4_0"],
        "merge linear": ["merge", out, "--models", model, again, "--ratios", "0.5", "0.5", "--method", "linear"],
        "shard": ["shard", model, scratch / "shards", "--shards", "8"],
    }.items():
        seconds, rss = run(args.orion, *command, "--force", "-t", THREADS, "--json")
        out.unlink(missing_ok=True)
        print(f"| {name} | {seconds:.1f} | {rss:.0f}{'' if rss <= allowed else ', over'} |", flush=True)


if __name__ == "__main__":
    main()
