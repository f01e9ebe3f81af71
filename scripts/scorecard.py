#!/usr/bin/env python3
"""The project's headline figures in one table: `scorecard.py ORION MODEL TEXT DIRECTORY`.

ORION is the binary, MODEL a GGUF file, TEXT a text for perplexity, DIRECTORY where models may be written (3 GB, removed
afterwards). Before: the model as one file of halves, run by the portable executor. After: the optimised shard set, run by the
kernels. The size of a model whose rows divide by 256 is shown on one of 1.1 billion parameters and the shape of TinyLlama, with
random weights, since the demo model's rows do not. Nothing is asserted; every figure is measured by the commands it names.
"""

import array
import json
import os
import random
import shutil
import struct
import subprocess
import sys

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


def random_model(path):
    """A GGUF with the shape of TinyLlama 1.1B and normally distributed halves that repeat after 8 MB."""
    def text(value):
        return struct.pack("<Q", len(value)) + value.encode()

    def u32(key, value):
        return text(key) + struct.pack("<II", 4, value)

    shapes = [("token_embd.weight", (VOCAB, HIDDEN), 1)]
    for layer in range(LAYERS):
        at = f"blk.{layer}."
        shapes += [(at + "attn_norm.weight", (HIDDEN,), 0), (at + "attn_q.weight", (HIDDEN, HIDDEN), 1),
                   (at + "attn_k.weight", (KV, HIDDEN), 1), (at + "attn_v.weight", (KV, HIDDEN), 1),
                   (at + "attn_output.weight", (HIDDEN, HIDDEN), 1), (at + "ffn_norm.weight", (HIDDEN,), 0),
                   (at + "ffn_gate.weight", (FFN, HIDDEN), 1), (at + "ffn_up.weight", (FFN, HIDDEN), 1),
                   (at + "ffn_down.weight", (HIDDEN, FFN), 1)]
    shapes += [("output_norm.weight", (HIDDEN,), 0), ("output.weight", (VOCAB, HIDDEN), 1)]
    meta = [text("general.architecture") + struct.pack("<I", 8) + text("llama")]
    meta += [u32("llama.block_count", LAYERS), u32("llama.embedding_length", HIDDEN), u32("llama.context_length", 2048),
             u32("llama.feed_forward_length", FFN), u32("llama.attention.head_count", 32),
             u32("llama.attention.head_count_kv", 4)]
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
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    binary, model, text, directory = sys.argv[1:]
    scratch = os.path.join(directory, "scorecard")
    shutil.rmtree(scratch, ignore_errors=True)
    os.makedirs(scratch)
    try:
        whole, small = os.path.join(scratch, "f16.gguf"), os.path.join(scratch, "optimised")
        orion(binary, "quantize", model, whole, "--type", "F16", "--allow-requantize")
        done = orion(binary, "optimize", whole, small, "--type", "Q4_0", "--verify", text)
        before, after = measured(binary, whole, "--executor", "portable"), measured(binary, small)
        before["perplexity"], after["perplexity"] = (done["verify"][key] for key in ("perplexity_before", "perplexity_after"))
        print(f"{os.path.basename(model)} as one file of halves on the portable executor, and as an optimised shard set:\n")
        print(f"| | before | after | change |\n|---|---|---|---|")
        for key, was in before.items():
            now = after[key]
            print(f"| {key} | {was:.2f} | {now:.2f} | {100 * (now / was - 1):+.0f} % |")
        print(f"\nKL divergence {done['verify']['kl_divergence']:.4f} over {done['verify']['scored']} tokens.")
        large, packed = os.path.join(scratch, "1b.gguf"), os.path.join(scratch, "1b")
        random_model(large)
        target = str(int(size(large) * 0.245))
        planned = orion(binary, "optimize", large, packed, "--target-size", target, "--dry-run")
        mixed = orion(binary, "optimize", large, packed, "--type", "Q4_K_M", "--dry-run")
        print("\n1.1 billion random weights in the shape of TinyLlama (GGUF tensors; tiles take 2 to 4 % more):\n")
        print("| | MB | smaller |\n|---|---|---|")
        for name, tensors in (("halves", size(large)), ("Q4_K_M", mixed["tensor_bytes"]), ("--target-size", planned["tensor_bytes"])):
            print(f"| {name} | {tensors / 1e6:.0f} | {100 * (1 - tensors / size(large)):.1f} % |")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main()
