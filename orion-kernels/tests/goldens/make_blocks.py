#!/usr/bin/env python3
"""Makes decode.bin: blocks of every type with the numbers they stand for, by two independent decoders that must agree.

Needs numpy, the PyPI package `gguf`, and a build of ggml: the shared library `libggml-base.so` (llama.cpp v0.5.0 was
used), given with --ggml. With --blocks N the files become large; the tests read them from the directory in the
environment variable ORION_KERNELS_GOLDENS.

    make_blocks.py --ggml PATH/libggml-base.so [--out DIR] [--blocks N] [--seed S]

decode.bin, little-endian: records of u32 ggml type, u32 number of blocks, the blocks, their values in f32.
"""
import argparse, ctypes as C, os, struct
import numpy as np
import gguf
from gguf import GGMLQuantizationType as T

TYPES = [T.F32, T.F16, T.BF16, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0, T.Q2_K, T.Q3_K, T.Q4_K, T.Q5_K, T.Q6_K, T.IQ4_NL, T.IQ4_XS]
# Byte offsets of the f16 scales of a block.
SCALES = {T.F16: [0], T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0], T.Q2_K: [80, 82], T.Q3_K: [108],
          T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208], T.IQ4_NL: [0], T.IQ4_XS: [0]}
# Zeros, subnormals, the smallest normal, the largest, infinities, a quiet NaN.
EDGE_SCALES = [0x0000, 0x8000, 0x0001, 0x83FF, 0x0400, 0x7BFF, 0x7C00, 0xFC00, 0x7E00]


def blocks_of(ty, n_random, rng):
    length, size = gguf.GGML_QUANT_SIZES[ty]
    if ty == T.F32:
        return np.array([0, 1, 0x80000000, 0x7F800000, 0x3F800000, 0xC0490FDB], np.uint32).view(np.uint8).reshape(-1, 4)
    if ty == T.BF16:
        return np.array([0, 1, 0x8000, 0x7F80, 0x3F80, 0xC049, 0x007F], np.uint16).view(np.uint8).reshape(-1, 2)
    at = SCALES[ty]
    n = n_random + 2 + len(EDGE_SCALES)
    b = rng.integers(0, 256, (n, size), dtype=np.uint8)
    b[n_random] = 0x00
    b[n_random + 1] = 0xFF
    for i, o in enumerate(at):
        d = (rng.standard_normal(n) * 0.01).astype(np.float16).view(np.uint16)
        d[n_random + 2:] = np.roll(EDGE_SCALES, i * 4)
        b[:, o:o + 2] = d.astype("<u2").view(np.uint8).reshape(n, 2)
    return b


def by_ggml(lib, ty, blocks):
    length, _ = gguf.GGML_QUANT_SIZES[ty]
    out = np.zeros(len(blocks) * length, np.float32)
    src = np.ascontiguousarray(blocks)
    if ty == T.F32:
        return src.view(np.float32).reshape(-1)
    name = {T.F16: "ggml_fp16_to_fp32_row", T.BF16: "ggml_bf16_to_fp32_row"}.get(ty)
    if name is None:
        base = ty.name
        name = "dequantize_row_" + (base.lower() if not base.endswith("_K") else base[:-1].lower() + "K")
    f = getattr(lib, name)
    f.argtypes, f.restype = [C.c_void_p, C.c_void_p, C.c_int64], None
    f(src.ctypes.data, out.ctypes.data, out.size)
    return out


def same(a, b):
    return np.array_equal(np.where(np.isnan(a), 0, a.view(np.uint32)), np.where(np.isnan(b), 0, b.view(np.uint32))) \
        and np.array_equal(np.isnan(a), np.isnan(b))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--ggml", required=True)
    p.add_argument("--out", default=os.path.dirname(os.path.abspath(__file__)))
    p.add_argument("--blocks", type=int, default=2)
    p.add_argument("--seed", type=int, default=1)
    a = p.parse_args()
    lib = C.CDLL(a.ggml)
    lib.ggml_quantize_init.argtypes = [C.c_int]
    rng = np.random.default_rng(a.seed)
    np.seterr(all="ignore")
    with open(os.path.join(a.out, "decode.bin"), "wb") as f:
        for ty in TYPES:
            b = blocks_of(ty, a.blocks, rng)
            one, two = gguf.quants.dequantize(b, ty).reshape(-1).astype(np.float32), by_ggml(lib, ty, b)
            assert same(one, two), f"the two decoders disagree on {ty.name}"
            f.write(struct.pack("<II", ty.value, len(b)) + b.tobytes() + two.astype("<f4").tobytes())
            print(f"{ty.name}: {len(b)} blocks")


if __name__ == "__main__":
    main()
