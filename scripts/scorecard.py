#!/usr/bin/env python3
"""The project's headline figures in one table: `scorecard.py ORION MODEL TEXT DIRECTORY [RESPONSIVE] [COVERAGE]`.

ORION is the binary, MODEL a GGUF file, TEXT a text for perplexity, DIRECTORY where models may be written (6 GB, removed
afterwards). Before: the model as one file of halves, run by the portable executor. After: the optimised shard set, run by the
kernels. Both from the local disk and from a web server on this machine that sends 50 MB/s; "start to first token" is the whole
life of a process that says one token, so it holds what is fetched before. The fault is a connection that breaks in the middle
of the largest file; recovery is what it adds to the same start without it.

RESPONSIVE is the example of that name, built: it says how long a caller was held up at most. COVERAGE is the report of
`make coverage`, if there is one. The size of a model whose rows divide by 256 is shown on one of 1.1 billion parameters and the
shape of TinyLlama, with random weights, since the demo model's rows do not. Nothing is asserted; every figure is measured by
the commands it names.
"""

import array
import http.server
import json
import os
import random
import re
import shutil
import struct
import subprocess
import sys
import threading
import time

PROMPT = "Explain in three sentences why the sky is blue."
LAYERS, HIDDEN, FFN, VOCAB, KV = 22, 2048, 5632, 32000, 256


def orion(binary, *arguments):
    run = subprocess.run([binary, *arguments, "--json"], capture_output=True, text=True, check=False)
    if run.returncode != 0:
        sys.exit(f"orion {' '.join(arguments)} failed: {run.stdout}{run.stderr}")
    return json.loads(run.stdout.splitlines()[-1])


def size(path):
    if os.path.isfile(path):
        return os.path.getsize(path)
    return sum(os.path.getsize(os.path.join(path, name)) for name in os.listdir(path))


def measured(binary, model, *options):
    answer = orion(binary, "generate", "--model", model, "--prompt", PROMPT, "-n", "64", *options)
    timings = answer["timings"]
    return {
        "size, MB": size(model) / 1e6,
        "peak RSS, MB": answer["peak_rss_mb"] * 1.048576,
        "load, s": timings["load_s"],
        "time to first token, s": timings["ttft_s"],
        "decode, tokens/s": timings["decode_tps"],
    }


class Link(http.server.ThreadingHTTPServer):
    """Files of a folder over a link of so many bytes per second, whatever the number of connections. With `fault` set, the
    next answer of more than a megabyte breaks in its middle."""

    daemon_threads = True

    def __init__(self, folder, rate):
        super().__init__(("127.0.0.1", 0), Served)
        self.folder, self.rate, self.fault, self.broken = folder, rate, False, 0
        self.lock, self.free_at = threading.Lock(), 0.0
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def url(self, name):
        return f"http://127.0.0.1:{self.server_address[1]}/{name}"

    def handle_error(self, request, client_address):
        pass  # a reader that hung up

    def take(self, count):
        """Waits until the link has carried so many bytes more."""
        with self.lock:
            now = time.monotonic()
            # Waits are longer than asked for; up to a twentieth of a second of it is made up for.
            self.free_at = max(self.free_at, now - 0.05) + count / self.rate
            wait = self.free_at - now
        time.sleep(max(wait, 0))


class Served(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(False)

    def do_GET(self):
        self.answer(True)

    def answer(self, with_body):
        path = os.path.join(self.server.folder, *[part for part in self.path.split("/") if part not in ("", "..")])
        if not os.path.isfile(path):
            self.send_error(404)
            return
        size = os.path.getsize(path)
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start = int(wanted[1]) if wanted else 0
        end = min(int(wanted[2]) if wanted and wanted[2] else size - 1, size - 1)
        self.send_response(206 if wanted else 200)
        self.send_header("ETag", f'"{size}-{os.stat(path).st_mtime_ns}"')
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(end - start + 1))
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{end}/{size}")
        self.end_headers()
        if not with_body:
            return
        breaks_at = None
        if self.server.fault and end - start > 1 << 20:
            self.server.fault, breaks_at = False, (start + end) // 2
            self.server.broken += 1
        with open(path, "rb") as file:
            file.seek(start)
            while start <= end:
                piece = file.read(min(1 << 18, end + 1 - start))
                self.server.take(len(piece))
                self.wfile.write(piece)
                start += len(piece)
                if breaks_at is not None and start >= breaks_at:
                    self.close_connection = True
                    return


def first_token(binary, model, cache, *options):
    """Seconds of a process that says one token of an answer."""
    began = time.monotonic()
    orion(binary, "generate", "--model", model, "--prompt", PROMPT, "-n", "1", "--cache", cache, *options)
    return time.monotonic() - began


def over_link(binary, scratch, link, name, *options):
    """Seconds to the first token over the link into an empty cache, and what a broken connection adds."""
    seconds = []
    for fault in (False, True):
        link.fault, before = fault, link.broken
        cache = os.path.join(scratch, "cache")
        seconds.append(first_token(binary, link.url(name), cache, *options))
        shutil.rmtree(cache, ignore_errors=True)
        if fault and link.broken == before:
            sys.exit(f"no connection broke while {name} was fetched")
    return {"start to first token over 50 MB/s, s": seconds[0], "recovery from a broken connection, s": seconds[1] - seconds[0]}


def random_model(path, layers=LAYERS):
    """A GGUF with the shape of TinyLlama 1.1B, or so many of its layers, and normally distributed halves that repeat after 8 MB."""
    def text(value):
        return struct.pack("<Q", len(value)) + value.encode()

    def u32(key, value):
        return text(key) + struct.pack("<II", 4, value)

    shapes = [("token_embd.weight", (VOCAB, HIDDEN), 1)]
    for layer in range(layers):
        at = f"blk.{layer}."
        shapes += [(at + "attn_norm.weight", (HIDDEN,), 0), (at + "attn_q.weight", (HIDDEN, HIDDEN), 1),
                   (at + "attn_k.weight", (KV, HIDDEN), 1), (at + "attn_v.weight", (KV, HIDDEN), 1),
                   (at + "attn_output.weight", (HIDDEN, HIDDEN), 1), (at + "ffn_norm.weight", (HIDDEN,), 0),
                   (at + "ffn_gate.weight", (FFN, HIDDEN), 1), (at + "ffn_up.weight", (FFN, HIDDEN), 1),
                   (at + "ffn_down.weight", (HIDDEN, FFN), 1)]
    shapes += [("output_norm.weight", (HIDDEN,), 0), ("output.weight", (VOCAB, HIDDEN), 1)]
    meta = [text("general.architecture") + struct.pack("<I", 8) + text("llama")]
    meta += [u32("llama.block_count", layers), u32("llama.embedding_length", HIDDEN), u32("llama.context_length", 2048),
             u32("llama.feed_forward_length", FFN), u32("llama.attention.head_count", 32),
             u32("llama.attention.head_count_kv", 4),
             text("llama.attention.layer_norm_rms_epsilon") + struct.pack("<If", 6, 1e-5)]
    # A vocabulary that knows bytes and nothing else, so that any text can be read.
    def listed(key, kind, values):
        return text(key) + struct.pack("<IIQ", 9, kind, len(values)) + b"".join(values)

    names = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    names += [f"<{at}>" for at in range(len(names), VOCAB)]
    meta += [text("tokenizer.ggml.model") + struct.pack("<I", 8) + text("llama"),
             listed("tokenizer.ggml.tokens", 8, [text(name) for name in names]),
             listed("tokenizer.ggml.scores", 6, [struct.pack("<f", 0)] * VOCAB),
             listed("tokenizer.ggml.token_type", 5,
                    [struct.pack("<i", kind) for kind in [2, 3, 3] + [6] * 256 + [1] * (VOCAB - 259)])]
    draw = random.Random(1)
    halves = b"".join(struct.pack("<e", draw.gauss(0, 0.02)) for _ in range(1 << 18)) * 16
    table, offset, sizes = b"", 0, []
    for name, shape, kind in shapes:
        count = 1
        for dimension in shape:
            count *= dimension
        table += text(name) + struct.pack("<I", len(shape))
        table += b"".join(struct.pack("<Q", dimension) for dimension in reversed(shape))
        table += struct.pack("<IQ", kind, offset)
        sizes.append((count, kind))
        offset += count * (2 if kind else 4)
    with open(path, "wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, len(shapes), len(meta)) + b"".join(meta) + table)
        file.write(b"\0" * (-file.tell() % 32))
        for count, kind in sizes:
            if not kind:
                array.array("f", [1.0] * count).tofile(file)
                continue
            left, start = 2 * count, draw.randrange(1 << 17) * 2
            while left:
                piece = halves[start:start + left]
                file.write(piece)
                left, start = left - len(piece), 0


def main():
    if not 5 <= len(sys.argv) <= 7:
        sys.exit(__doc__)
    binary, model, text, directory, responsive, coverage = (sys.argv[1:] + ["", ""])[:6]
    scratch = os.path.join(directory, "scorecard")
    shutil.rmtree(scratch, ignore_errors=True)
    os.makedirs(scratch)
    try:
        whole, small = os.path.join(scratch, "f16.gguf"), os.path.join(scratch, "optimised")
        orion(binary, "quantize", model, whole, "--type", "F16", "--allow-requantize")
        done = orion(binary, "optimize", whole, small, "--type", "Q4_0", "--verify", text)
        before, after = measured(binary, whole, "--executor", "portable"), measured(binary, small)
        portable = ("--executor", "portable")
        nowhere = os.path.join(scratch, "cache")
        before["start to first token, s"] = first_token(binary, whole, nowhere, *portable)
        after["start to first token, s"] = first_token(binary, small, nowhere)
        link = Link(scratch, 50e6)
        before |= over_link(binary, scratch, link, "f16.gguf", *portable)
        after |= over_link(binary, scratch, link, "optimised/orion-manifest.json")
        link.shutdown()
        before["perplexity"], after["perplexity"] = (done["verify"][key] for key in ("perplexity_before", "perplexity_after"))
        print(f"{os.path.basename(model)} as one file of halves on the portable executor, and as an optimised shard set:\n")
        print(f"| | before | after | change |\n|---|---|---|---|")
        for key, was in before.items():
            now = after[key]
            change = f"{100 * (now / was - 1):+.0f} %" if was >= 0.005 else ""
            print(f"| {key} | {was:.2f} | {now:.2f} | {change} |")
        print(f"\nKL divergence {done['verify']['kl_divergence']:.4f} over {done['verify']['scored']} tokens.")
        if responsive:
            said = subprocess.run([responsive], capture_output=True, text=True, check=True).stdout
            longest = re.search(r"taking events took (\S+) at most", said)
            print(f"\nLongest a caller was held up while the model loaded and answered: {longest[1] if longest else 'not said'}.")
        if coverage and os.path.isfile(coverage):
            with open(coverage, encoding="utf-8") as file:
                share = json.load(file)["line_coverage_percent"]["all"]
            print(f"\nLine coverage of the tests: {share:.1f} %.")
        else:
            print("\nLine coverage: `make coverage` measures it.")
        large = os.path.join(scratch, "1b.gguf")
        random_model(large)
        verify = ("--verify", text, "--verify-chunks", "1", "--no-measure")
        print("\n1.1 billion RANDOM weights in the shape of TinyLlama, as optimised shard sets:\n")
        print("| | MB | smaller | bits per weight | perplexity | KL divergence |\n|---|---|---|---|---|---|")
        before = None
        for name, recipe in (("Q4_K_M", ("--type", "Q4_K_M")), ("--target-size", ("--target-size", str(int(size(large) * 0.249))))):
            packed = os.path.join(scratch, "1b")
            report = orion(binary, "optimize", large, packed, *recipe, *verify)
            judged = report["verify"]
            if before is None:
                before = judged["perplexity_before"]
                print(f"| halves | {size(large) / 1e6:.0f} | | 16.00 | {before:.1f} | |")
            print(f"| {name} | {size(packed) / 1e6:.0f} | {report['smaller_percent']:.1f} % | {report['bits_per_weight']:.2f} "
                  f"| {judged['perplexity_after']:.1f} | {judged['kl_divergence']:.4f} |")
            shutil.rmtree(packed)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main()
