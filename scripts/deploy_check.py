#!/usr/bin/env python3
"""Runs everything that must hold before a release and prints the list with what came of it: `deploy_check.py [MAKE]`

Each line is a target of the Makefile or a look at the tree; none is ticked by hand. What a target says is kept in
target/deploy-check/TARGET.log. Exit status 1 if anything does not hold. Standard library only.
"""

import os
import re
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LOGS = os.path.join(os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target")), "deploy-check")

TARGETS = (
    ("lint", "formatted, and clippy has nothing to say"),
    ("doc", "the documentation builds without a warning"),
    ("deny", "licences and sources of all dependencies are allowed"),
    ("package", "every crate packages"),
    ("each-feature", "every crate builds by itself with each feature alone"),
    ("api-check", "the public API is the one in docs/api"),
    ("registry-validate", "models.json is valid"),
    ("test", "all tests pass, those of the documents too"),
    ("test-references", "as do those on Gemma and on the vocabularies of 20 families"),
    ("examples", "every example runs"),
    ("consumer", "programs outside the workspace build on the facade and on each crate"),
    ("shard-check", "a shard set gives back every bit"),
    ("soak", "two minutes of clients, cancels and faults lose nothing and leak nothing"),
)


def git(*arguments):
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def read(name):
    with open(os.path.join(ROOT, name), encoding="utf-8") as file:
        return file.read()


def clean_tree():
    changed = git("status", "--porcelain").splitlines()
    return not changed, f"{len(changed)} files differ from the commit"


def told():
    version = re.search(r'^version = "(.*?)"', read("Cargo.toml"), re.M).group(1)
    sections = re.split(r"^## ", read("CHANGELOG.md"), flags=re.M)[1:]
    for section in sections:
        if section.startswith((f"[{version}]", "[Unreleased]")) and "\n- " in section:
            return True, ""
    return False, f"the changelog says nothing of {version}"


def unfinished():
    places = subprocess.run(["git", "grep", "-nE", r"\b(todo!|unimplemented!|FIXME|XXX)\b", "--", "*.rs"], cwd=ROOT,
                            capture_output=True, text=True, check=False).stdout.splitlines()
    return not places, "; ".join(places[:3])


LOOKS = (
    (clean_tree, "the tree is what is committed"),
    (told, "the changelog says what is new"),
    (unfinished, "no code is marked as unfinished"),
)


def line(holds, what, note):
    print(f"[{'x' if holds else ' '}] {what}{f' ({note})' if note else ''}", flush=True)
    return holds


def run(make, target, what):
    os.makedirs(LOGS, exist_ok=True)
    log = os.path.join(LOGS, f"{target}.log")
    began = time.monotonic()
    with open(log, "wb") as file:
        status = subprocess.run([make, target], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
    took = f"make {target}, {time.monotonic() - began:.0f} s"
    return line(status == 0, what, took if status == 0 else f"{took}; {log}")


def main(make):
    held = []
    for look, what in LOOKS:
        holds, why = look()
        held.append(line(holds, what, "" if holds else why))
    held += [run(make, target, what) for target, what in TARGETS]
    print(f"{sum(held)} of {len(held)} hold")
    sys.exit(0 if all(held) else 1)


main(sys.argv[1] if len(sys.argv) > 1 else "make")
