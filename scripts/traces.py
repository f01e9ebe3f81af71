#!/usr/bin/env python3
"""Makes the traces of benches/data/traces: 500 requests each, one model id per line.

    scripts/traces.py             writes order2.txt and uniform.txt anew, from their seeds
    scripts/traces.py --record    writes recorded.txt anew: lets the example helpdesk work (minutes; needs `make models`)
    scripts/traces.py --history   writes history.txt anew, from the history of this repository
    scripts/traces.py --entropy   prints what stands in benches/data/traces/README.md

Two runs write the same bytes; a recording does as long as the model, the router and the tickets are the same, and the CPU
rounds alike where two tokens are about as likely.
"""

import collections
import math
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
TRACES = ROOT / "benches/data/traces"
MODELS = ["code", "test", "docs", "build"]
REQUESTS = 500
# How many in a hundred requests of order2.txt follow from the two before them; the others are drawn.
SURE = 90
# The commit up to which history.txt was taken, and the most files one of its requests is for.
UNTIL = "2cf0202"
MOST_FILES = 20


def draws(seed):
    """Draws that are the same everywhere: a linear congruential generator."""
    state = seed

    def draw(below):
        nonlocal state
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        return (state >> 33) % below

    return draw


def de_bruijn(draw):
    """What follows each pair of models, such that every pair comes once in sixteen requests: nothing can be told from
    one request before, everything from two. A random Eulerian circuit of the graph whose arrows are the pairs."""
    while True:
        last = {model: draw(4) for model in range(1, 4)}
        arrows = {}
        for model in range(4):
            order = list(range(4))
            for at in range(3, 0, -1):
                other = draw(at + 1)
                order[at], order[other] = order[other], order[at]
            if model in last:
                order.remove(last[model])
                order.append(last[model])
            arrows[model] = order
        walk, at = [0], 0
        while arrows[at]:
            at = arrows[at].pop(0)
            walk.append(at)
        if len(walk) == 17:
            return {(walk[i], walk[(i + 1) % 16]): walk[(i + 2) % 16] for i in range(16)}


def order2(seed):
    draw = draws(seed)
    follows = de_bruijn(draw)
    trace = [0, 1]
    while len(trace) < REQUESTS:
        trace.append(follows[trace[-2], trace[-1]] if draw(100) < SURE else draw(4))
    return [MODELS[model] for model in trace]


def uniform(seed):
    draw = draws(seed)
    return [MODELS[draw(4)] for _ in range(REQUESTS)]


def kind(path):
    name = path.rsplit("/", 1)[-1]
    if name.endswith(".md"):
        return "docs"
    if "/tests/" in f"/{path}" or name.startswith("test"):
        return "test"
    if name.endswith(".rs"):
        return "code"
    return "build"


def recorded():
    """The models that the help desk asks, one request after the other."""
    desk = ["cargo", "run", "--quiet", "--release", "--example", "helpdesk", "--", str(REQUESTS)]
    return subprocess.run(desk, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()


def history():
    log = ["git", "-C", str(ROOT), "log", "--reverse", "--no-merges", "--name-only", "--format=%x00", UNTIL]
    lines = subprocess.run(log, capture_output=True, text=True, check=True).stdout.split("\n")
    trace, last, files = [], None, 0
    for line in filter(None, lines):
        if line == "\0":
            last = None
        elif kind(line) == last and files < MOST_FILES:
            files += 1
        else:
            last, files = kind(line), 1
            trace.append(last)
    return trace[:REQUESTS]


def entropy(trace, order):
    """Bits per request, given as many before it, of the trace's own counts."""
    contexts = collections.defaultdict(collections.Counter)
    for at in range(order, len(trace)):
        contexts[tuple(trace[at - order : at])][trace[at]] += 1
    total = len(trace) - order
    bits = 0.0
    for counts in contexts.values():
        seen = sum(counts.values())
        bits -= sum(n * math.log2(n / seen) for n in counts.values())
    return bits / total


def waits(trace):
    """Requests that wait, if the two models are in memory that follow the last two most often in the whole trace."""
    contexts = collections.defaultdict(collections.Counter)
    for at in range(2, len(trace)):
        contexts[tuple(trace[at - 2 : at])][trace[at]] += 1
    return sum(sum(counts.values()) - sum(n for _, n in counts.most_common(2)) for counts in contexts.values())


def write(name, trace):
    TRACES.mkdir(parents=True, exist_ok=True)
    (TRACES / f"{name}.txt").write_text("\n".join(trace) + "\n")


def main(arguments):
    if arguments == ["--record"]:
        write("recorded", recorded())
    elif arguments == ["--history"]:
        write("history", history())
    elif arguments == ["--entropy"]:
        for name in ["order2", "recorded", "uniform", "history"]:
            trace = (TRACES / f"{name}.txt").read_text().split()
            bits = [f"{entropy(trace, order):.2f}" for order in range(3)]
            print(f"{name}: {len(trace)} requests; {', '.join(bits)} bits given none, one, two before; {waits(trace)} wait in hindsight")
        sure = SURE / 100 + (1 - SURE / 100) / 4
        rest = (1 - SURE / 100) / 4
        print(f"the source of order2: {-sure * math.log2(sure) - 3 * rest * math.log2(rest):.2f} bits given two before")
    elif not arguments:
        write("order2", order2(1))
        write("uniform", uniform(1))
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
