#!/usr/bin/env python3
"""One report of all Criterion benches: `bench_report.py CRITERION NAME [--base BASE] --out DIRECTORY`.

CRITERION is the folder Criterion keeps its measurements in, NAME and BASE are the baselines they were saved under. Writes
NAME.md, a table, and NAME.svg, a picture of it: the median time of each bench on a logarithmic axis. With --base, both stand side
by side and the table says by which factor they differ; it prints what changed by more than its own uncertainty. Standard
library only.
"""

import argparse
import html
import json
import math
import os
import platform
import sys

UNITS = (("ns", 1.0), ("µs", 1e3), ("ms", 1e6), ("s", 1e9))


def read(folder, name):
    """Bench → (low, median, high, elements or bytes per iteration), in nanoseconds."""
    found = {}
    for place, _, files in os.walk(folder):
        if os.path.basename(place) != name or "estimates.json" not in files:
            continue
        with open(os.path.join(place, "estimates.json"), encoding="utf-8") as file:
            median = json.load(file)["median"]
        with open(os.path.join(place, "benchmark.json"), encoding="utf-8") as file:
            bench = json.load(file)
        interval = median["confidence_interval"]
        found[bench["full_id"]] = (
            interval["lower_bound"], median["point_estimate"], interval["upper_bound"], bench.get("throughput"))
    return dict(sorted(found.items()))


def time(nanoseconds):
    unit, size = next((unit for unit in UNITS if nanoseconds < 1000 * unit[1]), UNITS[-1])
    return f"{nanoseconds / size:.3g} {unit}"


def rate(nanoseconds, throughput):
    if not throughput:
        return ""
    (kind, amount), = throughput.items()
    per_second = amount / nanoseconds * 1e9
    return f"{per_second / 1e9:.3g} G{'B' if kind.startswith('Bytes') else ''}/s" if per_second >= 1e9 \
        else f"{per_second / 1e6:.3g} M{'B' if kind.startswith('Bytes') else ''}/s"


def processor():
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
        return f"{names[0]}, {len(names)} threads" if names else platform.machine()
    except OSError:
        return platform.machine()


def changed(new, old):
    """Whether the intervals of the two medians do not touch."""
    return new[0] > old[2] or new[2] < old[0]


def table(name, new, base, old):
    head = ["bench", "median", "95 % interval", "throughput"] + ([base, f"{base} / {name}"] if base else [])
    lines = [f"# Benches: {name}", "", f"{processor()}. Medians of Criterion.", "",
             "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for bench, row in new.items():
        cells = [f"`{bench}`", time(row[1]), f"{time(row[0])} – {time(row[2])}", rate(row[1], row[3])]
        if base:
            before = old.get(bench)
            factor = before and f"{before[1] / row[1]:.2f}{'' if changed(row, before) else ' (within noise)'}"
            cells += [time(before[1]) if before else "", factor or ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def picture(name, new, base, old):
    """Bars on a logarithmic axis, one line per bench."""
    left, width, line, top = 380, 520, 18, 60
    values = [row[1] for rows in (new, old) for row in rows.values()]
    low = math.floor(math.log10(min(values)))
    high = math.ceil(math.log10(max(values)) + 1e-9)

    def x(nanoseconds):
        return left + width * (math.log10(nanoseconds) - low) / max(high - low, 1)

    height = top + line * len(new) + 30
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 110} {height}" '
           'font-family="sans-serif" font-size="11">',
           '<rect width="100%" height="100%" fill="white"/>',
           f'<text x="12" y="20" font-size="14">Benches: {html.escape(name)}'
           f'{f" (grey: {html.escape(base)})" if base else ""}</text>',
           f'<text x="12" y="36" fill="#555">median time per call, logarithmic; {html.escape(processor())}</text>']
    for power in range(low, high + 1):
        at = x(10.0 ** power)
        out.append(f'<line x1="{at:.1f}" y1="{top - 8}" x2="{at:.1f}" y2="{height - 24}" stroke="#ddd"/>'
                   f'<text x="{at:.1f}" y="{height - 10}" text-anchor="middle" fill="#555">{time(10.0 ** power)}</text>')
    for row, (bench, values) in enumerate(new.items()):
        y = top + line * row
        out.append(f'<text x="{left - 8}" y="{y + 10}" text-anchor="end">{html.escape(bench)}</text>')
        if bench in old:
            out.append(f'<rect x="{left}" y="{y + 8}" width="{x(old[bench][1]) - left:.1f}" height="5" fill="#bbb"/>')
        out.append(f'<rect x="{left}" y="{y + 1}" width="{max(x(values[1]) - left, 1):.1f}" height="7" fill="#2a6fb0"/>'
                   f'<text x="{x(values[1]) + 6:.1f}" y="{y + 10}">{time(values[1])}</text>')
    return "\n".join(out + ["</svg>"]) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("criterion")
    parser.add_argument("name")
    parser.add_argument("--base")
    parser.add_argument("--out", required=True)
    arguments = parser.parse_args()
    new = read(arguments.criterion, arguments.name)
    old = read(arguments.criterion, arguments.base) if arguments.base else {}
    for name, rows in [(arguments.name, new)] + ([(arguments.base, old)] if arguments.base else []):
        if not rows:
            sys.exit(f"nothing was measured under the name {name}; `make bench NAME={name}` does it")
    os.makedirs(arguments.out, exist_ok=True)
    stem = f"{arguments.base}-{arguments.name}" if arguments.base else arguments.name
    for end, text in (("md", table(arguments.name, new, arguments.base, old)),
                      ("svg", picture(arguments.name, new, arguments.base, old))):
        path = os.path.join(arguments.out, f"{stem}.{end}")
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        print(path)
    for bench, row in new.items():
        if bench in old and changed(row, old[bench]):
            factor = old[bench][1] / row[1]
            print(f"{bench}: {f'{factor:.2f} times faster' if factor > 1 else f'{1 / factor:.2f} times slower'}")


main()
