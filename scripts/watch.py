#!/usr/bin/env python3
"""Runs a command, and again whenever a source of the workspace changes: `watch.py COMMAND…`. Ctrl-C ends it.

Sources are what git tracks or would track, so neither build output nor downloads start a run.
"""

import os
import subprocess
import sys
import time


def sources():
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", "*.rs", "*.toml", "*.json"]
    names = subprocess.run(listing, capture_output=True, check=True).stdout.split(b"\0")
    times = {}
    for name in filter(None, names):
        try:
            times[name] = os.stat(name).st_mtime_ns
        except FileNotFoundError:
            pass  # removed, but not yet from the index
    return times


def main(command):
    if not command:
        sys.exit(__doc__.splitlines()[0])
    before = None
    try:
        while True:
            now = sources()
            if now != before:
                before = now
                status = subprocess.run(command, check=False).returncode
                print(f"{'passed' if status == 0 else 'FAILED'}; waiting for a change", flush=True)
            time.sleep(0.5)
    except KeyboardInterrupt:
        pass


main(sys.argv[1:])
