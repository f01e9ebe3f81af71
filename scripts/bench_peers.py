#!/usr/bin/env python3
"""Measures ORION beside llama.cpp on one model, in turns, so that a busy moment of the machine hits both.

    scripts/bench_peers.py MODEL [-p 512] [-n 128] [-t 2] [-r 3] [--rounds 3]

Each round is one process of either: `orion bench` (built in target/release, or $ORION_BIN) and scripts/peer.py, which fetches a
prebuilt llama.cpp once into $WORK. Prints the median, least and
greatest over the rounds; the memory of llama.cpp is without that of the Python around it.
"""

import argparse
import json
import os
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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("-p", default="512", help="prompt tokens")
    parser.add_argument("-n", default="128", help="tokens to decode")
    parser.add_argument("-t", default="2", help="threads")
    parser.add_argument("-r", default="3", help="runs in a round")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    common = ["-p", args.p, "-n", args.n, "-t", args.t, "-r", args.r]
    orion = os.environ.get("ORION_BIN") or str(target_dir() / "release/orion")
    commands = {
        "orion": [orion, "bench", "--model", args.model, *common, "--json"],
        "llama.cpp": [sys.executable, str(ROOT / "scripts/peer.py"), "bench", args.model, *common],
    }
    results = {name: [] for name in commands}
    for turn in range(args.rounds):
        for name, command in commands.items():
            print(f"round {turn + 1} of {args.rounds}: {name}", file=sys.stderr, flush=True)
            results[name].append(last_json(command))
    rows = [("prefill tokens/s", lambda r: r["prefill_tps"]["median"]), ("decode tokens/s", lambda r: r["decode_tps"]["median"]),
            ("load s", lambda r: r["load_s"]), ("peak RSS MB", lambda r: r["peak_rss_mb"] - r.get("python_rss_mb", 0))]
    print(f"{'':18}" + "".join(f"{name:>28}" for name in commands))
    for title, pick in rows:
        cells = []
        for name in commands:
            values = [pick(result) for result in results[name]]
            cells.append(f"{statistics.median(values):.2f} ({min(values):.2f} - {max(values):.2f})")
        print(f"{title:18}" + "".join(f"{cell:>28}" for cell in cells))


if __name__ == "__main__":
    main()
