#!/usr/bin/env python3
"""The public API of every crate, one item per line: `api.py [--check] [CARGO]`

Without --check it writes docs/api/CRATE.txt anew. With it nothing is written: what differs is printed, `+` for what is new and
`-` for what is gone, and the exit status is 1 if anything does. The items are listed by cargo-public-api, of all features, without
the traits that every type has or that are derived.
"""

import difflib
import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs/api"
# The list is made from rustdoc's JSON, which a stable toolchain only writes if told that this is known to be unstable.
ENVIRONMENT = os.environ | {"RUSTC_BOOTSTRAP": "1", "CARGO_TERM_QUIET": "true"}


def crates(cargo):
    command = [cargo, "metadata", "--no-deps", "--format-version", "1"]
    packages = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout)["packages"]
    return sorted(
        package["name"]
        for package in packages
        if package["publish"] is None and any("lib" in target["kind"] for target in package["targets"])
    )


def items(cargo, crate):
    # A target directory of its own: other flags would have everything built anew.
    built = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "api"
    command = [cargo, "public-api", "--package", crate, "--all-features", "-sss", "--target-dir", str(built)]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{crate}: {done.stderr.strip()}")
    return done.stdout.splitlines(keepends=True)


def main(arguments):
    check = "--check" in arguments
    cargo = next((argument for argument in arguments if argument != "--check"), "cargo")
    names, changed = crates(cargo), False
    FOLDER.mkdir(parents=True, exist_ok=True)
    for crate in names:
        path = FOLDER / f"{crate}.txt"
        now = items(cargo, crate)
        if not check:
            path.write_text("".join(now), encoding="utf-8")
            print(f"{crate}: {len(now)} items")
            continue
        before = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        difference = [line for line in difflib.unified_diff(before, now, n=0) if line[:1] in "+-"][2:]
        if difference:
            changed = True
            print(f"{crate}:\n", *difference, sep="", end="")
    for path in FOLDER.glob("*.txt"):
        if path.stem not in names:
            changed = True
            print(f"{path.relative_to(ROOT)}: no such crate")
            if not check:
                path.unlink()
    if check and changed:
        sys.exit("the public API differs from docs/api; if that is meant, run `make api` and say it in CHANGELOG.md")


main(sys.argv[1:])
