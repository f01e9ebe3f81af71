#!/usr/bin/env python3
"""Measures ORION beside llama.cpp on one model, in turns, so that a busy moment of the machine hits both.

    scripts/bench_peers.py MODEL [-p 512] [-n 128] [-t 2] [-r 3] [--rounds 3] [--more]

Each round is one process of each: `orion bench` (built in target/release, or $ORION_BIN) and scripts/peer.py, which fetches a
prebuilt llama.cpp once into $WORK, and is measured with its weights repacked and plain; ratios are to the better of both. Prints the median, least and greatest over the rounds; the memory of llama.cpp is without that
of the Python around it. Beside them stands what memory delivers to as many threads and how many products of bytes they do, measured
in every round, and how much of that decoding and prefill take.

--more adds: both with a process that keeps one core busy, and ORION with 4,096 tokens in its context, and with eight sequences.
"""

import argparse
import collections
import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def target_dir():
    return Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target")


def last_json(command):
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{command[0]} failed: {done.stdout.strip()}")
    return json.loads(done.stdout.strip().splitlines()[-1])


@contextlib.contextmanager
def busy_core():
    """A process that takes one core."""
    cores = sorted(os.sched_getaffinity(0))
    spins = f"import os; os.sched_setaffinity(0, [{cores[0]}])\nwhile True: pass"
    neighbour = subprocess.Popen([sys.executable, "-c", spins])
    try:
        yield
    finally:
        neighbour.kill()
        neighbour.wait()


class Weights:
    """What a token reads, of a GGUF."""

    def __init__(self, orion, path):
        told = json.loads(subprocess.run([orion, "inspect", path, "--json"], stdout=subprocess.PIPE, check=True).stdout)
        tensors = {tensor["name"]: tensor["bytes"] for tensor in told["tensors"]}
        # A table that is no output matrix, too, is looked up by the row.
        table = tensors["token_embd.weight"] if "output.weight" in tensors else 0
        self.bytes = sum(tensors.values()) - table
        # What a prompt's token is multiplied with; the head is for the last one alone.
        matrices = [t for t in told["tensors"] if len(t["shape"]) == 2 and t["name"].startswith("blk.")]
        self.products = sum(t["shape"][0] * t["shape"][1] for t in matrices)
        # What reads the same input is multiplied in one go.
        phases = collections.Counter()
        for t in matrices:
            _, layer, role = t["name"].split(".", 2)
            role = re.sub("^attn_[qkv]\\b", "attn_qkv", re.sub("^ffn_(gate|up)\\b", "ffn_gate_up", role))
            phases[layer, role, t["type"], t["shape"][1]] += t["shape"][0]
        kinds = collections.Counter((kind, rows, cols) for (_, _, kind, cols), rows in phases.items())
        self.matrices = [f"{kind}:{rows}x{cols}:{count}" for (kind, rows, cols), count in kinds.items()]
        shape = told["model"]
        self.kv_bytes_per_token = 2 * 2 * shape["layers"] * shape["kv_heads"] * shape["head_dim"]


def middle(values):
    return statistics.median(values)


def more(args, commands, weights, bandwidth):
    """In every round all that is compared, one after the other; medians of the rounds."""
    orion = commands["orion"]
    commands = {name: commands[name] for name in ("orion", "llama.cpp")}
    rates = {}
    for turn in range(args.rounds):
        print(f"more, round {turn + 1} of {args.rounds}", file=sys.stderr, flush=True)

        def note(title, command):
            rates.setdefault(title, []).append(last_json(command)["decode_tps"]["median"])

        note("deep", [*orion, "--depth", "4096"])
        note("eight", [*orion, "--streams", "8"])
        for name, command in commands.items():
            note(name, command)
            with busy_core():
                note(f"busy {name}", command)
    rate = {title: middle(values) for title, values in rates.items()}
    print()
    for name in commands:
        busy = rate[f"busy {name}"]
        print(f"{name} while a process keeps one core busy: {busy:.1f} tokens/s, {100 * busy / rate[name]:.0f} % of {rate[name]:.1f}")
    bound = 1 / rate["orion"] + 4096 * weights.kv_bytes_per_token / (bandwidth * 1e9)
    print(f"orion with 4096 tokens in the context: {rate['deep']:.1f} tokens/s, {1e3 / rate['deep']:.2f} ms each; without "
          f"{1e3 / rate['orion']:.2f} ms, with the reading of keys and values {1e3 * bound:.2f} ms: {1 / rate['deep'] / bound:.2f} x")
    print(f"orion with 8 sequences at once: {rate['eight']:.1f} tokens/s in all, {rate['eight'] / rate['orion']:.2f} x one")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("-p", default="512", help="prompt tokens")
    parser.add_argument("-n", default="128", help="tokens to decode")
    parser.add_argument("-t", default="2", help="threads")
    parser.add_argument("-r", default="3", help="runs in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--more", action="store_true", help="also a busy neighbour, a long context, eight sequences")
    args = parser.parse_args()
    common = ["-p", args.p, "-n", args.n, "-t", args.t, "-r", args.r]
    orion = os.environ.get("ORION_BIN") or str(target_dir() / "release/orion")
    commands = {
        "orion": [orion, "bench", "--model", args.model, *common, "--json"],
        "llama.cpp": [sys.executable, str(ROOT / "scripts/peer.py"), "bench", args.model, *common],
    }
    commands["llama.cpp plain"] = [*commands["llama.cpp"], "--no-repack"]
    weights = Weights(orion, args.model)
    reads = [str(target_dir() / "release/examples/limits"), str(weights.bytes), args.t, *weights.matrices]
    # From huge pages, where weights lie, too (glibc).
    huge = os.environ | {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    results, limits = {name: [] for name in commands}, []
    for turn in range(args.rounds):
        limits.append(json.loads(subprocess.run(reads, stdout=subprocess.PIPE, check=True, text=True, env=huge).stdout))
        for name, command in commands.items():
            print(f"round {turn + 1} of {args.rounds}: {name}", file=sys.stderr, flush=True)
            results[name].append(last_json(command))
    rows = [("prefill tokens/s", lambda r: r["prefill_tps"]["median"]), ("decode tokens/s", lambda r: r["decode_tps"]["median"]),
            ("load s", lambda r: r["load_s"]), ("peak RSS MB", lambda r: r["peak_rss_mb"] - r.get("python_rss_mb", 0))]
    print(f"{'':18}" + "".join(f"{name:>28}" for name in commands) + f"{'ratio':>8}")
    for title, pick in rows:
        cells, medians = [], []
        for name in commands:
            values = [pick(result) for result in results[name]]
            medians.append(middle(values))
            cells.append(f"{medians[-1]:.2f} ({min(values):.2f} - {max(values):.2f})")
        best = (max if "tokens" in title else min)(medians[1:])
        print(f"{title:18}" + "".join(f"{cell:>28}" for cell in cells) + f"{medians[0] / best:>8.2f}")
    bandwidths = [limit["read_gb_s"] for limit in limits]
    bandwidth = middle(bandwidths)
    print(f"\n{args.t} threads read {bandwidth:.1f} GB/s of a buffer of {weights.bytes / 1e6:.0f} MB ({min(bandwidths):.1f} - "
          f"{max(bandwidths):.1f}); decoding reads that many per token:")
    for name in commands:
        took = weights.bytes * middle([result["decode_tps"]["median"] for result in results[name]]) / 1e9
        print(f"{name:16} {took:.1f} GB/s, {100 * took / bandwidth:.0f} %")
    if all(limit["products_g_s"] for limit in limits):
        peak = middle([limit["products_g_s"] for limit in limits])
        print(f"\n{args.t} threads do {peak:.0f} 10^9 products of bytes a second; a token of the prompt takes "
              f"{weights.products / 1e6:.0f} 10^6, and attention:")
        for name in commands:
            done = weights.products * middle([result["prefill_tps"]["median"] for result in results[name]]) / 1e9
            print(f"{name:16} {done:.0f} 10^9 a second, {100 * done / peak:.0f} %")
        gemm = middle([limit["matrices_g_s"] for limit in limits])
        print(f"the products alone, of 512 tokens with all its matrices: {gemm:.0f} 10^9 a second, {100 * gemm / peak:.0f} %")
    if args.more:
        more(args, commands, weights, bandwidth)


if __name__ == "__main__":
    main()
