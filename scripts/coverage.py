#!/usr/bin/env python3
"""Line coverage per crate, from an LCOV file: coverage.py REPORT [--json OUT]

What stands in the crates' own sources counts; their unit tests, the test kit, integration tests and dependencies do not.
"""

import json
import re
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Clippy sees to it that a module of tests is the last item of its file.
TESTS = re.compile(r"^#\[cfg\((?:test|all\(test,.*)\)\]\n(?:#\[.*\]\n)*mod (\w+)(;| \{)", re.MULTILINE)


def sources():
    """Each source file of a crate, with the crate and the first line of its tests."""
    found, apart = {}, set()
    for path in sorted([*ROOT.glob("src/**/*.rs"), *ROOT.glob("orion-*/src/**/*.rs")]):
        top = path.relative_to(ROOT).parts[0]
        crate = "orion-engine" if top == "src" else top
        text = path.read_text(encoding="utf-8")
        tests = TESTS.search(text)
        if tests and tests.group(2) == ";":
            beside = path.parent if path.name in ("lib.rs", "main.rs", "mod.rs") else path.with_suffix("")
            apart |= {beside / f"{tests.group(1)}.rs", beside / tests.group(1) / "mod.rs"}
        if crate != "orion-testkit":
            found[path] = crate, text[: tests.start()].count("\n") + 1 if tests else None
    return {path: of for path, of in found.items() if path not in apart}


def main(report, out=None):
    known, lines = sources(), defaultdict(lambda: [0, 0])
    crate, tests = None, None
    for line in Path(report).read_text(encoding="utf-8").splitlines():
        kind, _, rest = line.partition(":")
        if kind == "SF":
            crate, tests = known.get(Path(rest).resolve(), (None, None))
        elif kind == "DA" and crate is not None:
            number, hits = rest.split(",")[:2]
            if tests is None or int(number) < tests:
                lines[crate][0] += hits != "0"
                lines[crate][1] += 1
    if not lines:
        sys.exit("the report holds no source file of this workspace")
    total = [sum(column) for column in zip(*lines.values())]
    share = {name: 100 * covered / max(count, 1) for name, (covered, count) in [*sorted(lines.items()), ("all", total)]}
    print(f"{'crate':<18} {'lines':>7} {'covered':>8} {'share':>7}")
    for name, (covered, count) in [*sorted(lines.items()), ("all", total)]:
        print(f"{name:<18} {count:>7} {covered:>8} {share[name]:>6.1f} %")
    if out is not None:
        Path(out).write_text(json.dumps({"line_coverage_percent": share}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[3] if sys.argv[2:3] == ["--json"] else None)
