#!/usr/bin/env python3
"""Line coverage per crate, from tarpaulin's JSON report: coverage.py REPORT"""

import json
import sys
from collections import defaultdict
from pathlib import Path


def crate_of(path, root):
    """The crate a source file belongs to, or None for what is not a crate's own source."""
    try:
        parts = Path(*path).resolve().relative_to(root).parts
    except ValueError:
        return None
    if parts[0] == "src":
        return "orion-engine"
    if parts[0].startswith("orion-") and parts[0] != "orion-testkit" and parts[1] == "src":
        return parts[0]
    return None


def main():
    root = Path(__file__).resolve().parent.parent
    report = json.loads(Path(sys.argv[1]).read_text())
    lines = defaultdict(lambda: [0, 0])
    for file in report["files"]:
        crate = crate_of(file["path"], root)
        if crate is None:
            continue
        lines[crate][0] += file["covered"]
        lines[crate][1] += file["coverable"]
    if not lines:
        sys.exit("the report holds no source file of this workspace")
    print(f"{'crate':<18} {'lines':>7} {'covered':>8} {'share':>7}")
    total = [sum(column) for column in zip(*lines.values())]
    for crate, (covered, coverable) in [*sorted(lines.items()), ("all", total)]:
        print(f"{crate:<18} {coverable:>7} {covered:>8} {100 * covered / max(coverable, 1):>6.1f} %")


if __name__ == "__main__":
    main()
