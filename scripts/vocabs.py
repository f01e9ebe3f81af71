#!/usr/bin/env python3
"""Fetches the vocabularies of many model families, for `cargo test -p orion-runtime --test vocabs`.

    scripts/vocabs.py

They are files of llama.cpp (`ggml-vocab-*.gguf`, with texts in `.inp` and expected ids in `.out`), taken from the
source archive of the Python package llama-cpp-python (77 MB), through `pip download`. Nothing of it is installed or
built. The archive's SHA-256 is pinned. They go to `vocabs/` in the model cache: $ORION_MODELS, else
$XDG_CACHE_HOME/orion/models, else ~/.cache/orion/models.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

VERSION = "0.3.36"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
COUNT = 49  # files; the marker is written last


def cache():
    if os.environ.get("ORION_MODELS"):
        return Path(os.environ["ORION_MODELS"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "orion" / "models"


def main():
    out = cache() / "vocabs"
    marker = out / f".complete-{VERSION}"
    if marker.exists():
        print(f"vocabularies are in {out}")
        return
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        print("fetching llama-cpp-python's source archive (77 MB)", flush=True)
        command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "download", "--no-deps"]
        subprocess.run([*command, "--no-binary", "llama-cpp-python", "-d", scratch, f"llama-cpp-python=={VERSION}"], check=True)
        archive = next(Path(scratch).glob("*.tar.gz"))
        digest = hashlib.sha256(archive.read_bytes()).hexdigest()
        if digest != SHA256:
            sys.exit(f"{archive.name} has SHA-256 {digest}, expected {SHA256}")
        found = 0
        with tarfile.open(archive) as tar:
            for member in tar:
                name = os.path.basename(member.name)
                if member.isfile() and "/llama.cpp/models/" in member.name and name.startswith("ggml-vocab-"):
                    part = out / f".{name}.part"
                    with tar.extractfile(member) as source, part.open("wb") as target:
                        shutil.copyfileobj(source, target)
                    part.rename(out / name)
                    found += 1
        if found != COUNT:
            sys.exit(f"the archive holds {found} vocabulary files, expected {COUNT}")
    marker.touch()
    print(f"{found} files in {out}")


if __name__ == "__main__":
    main()
