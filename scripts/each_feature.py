#!/usr/bin/env python3
"""Checks every crate of the workspace by itself: without features, with each one alone, with all. `each_feature.py [CARGO]`

What `cargo hack check --each-feature` does, without having to install it.
"""

import json
import subprocess
import sys


def main(cargo):
    listing = [cargo, "metadata", "--no-deps", "--format-version", "1"]
    packages = json.loads(subprocess.run(listing, capture_output=True, check=True).stdout)["packages"]
    failed = []
    for package in packages:
        features = sorted(set(package["features"]) - {"default"})
        sets = [[]] + [[feature] for feature in features] + ([features] if len(features) > 1 else [])
        for features in sets:
            name = f"{package['name']} with {', '.join(features) or 'no feature'}"
            print(name, flush=True)
            check = [cargo, "check", "--quiet", "--release", "-p", package["name"], "--no-default-features",
                     "--features", ",".join(features)]
            if subprocess.run(check, check=False).returncode != 0:
                failed.append(name)
    if failed:
        sys.exit("failed: " + "; ".join(failed))


main(sys.argv[1] if len(sys.argv) > 1 else "cargo")
