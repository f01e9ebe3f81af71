#!/usr/bin/env python3
"""Makes decode.bin, blocks of every type with the numbers they stand for, and encode.bin, numbers with the blocks that the
reference quantiser makes of them. Where the Python package has a codec of a type, it must agree with ggml's.

Needs numpy, the PyPI package `gguf`, and a build of ggml: the shared library `libggml-base.so` (llama.cpp v0.5.0 was
used), given with --ggml. With --blocks N the files become large; the tests read them from the directory in the
environment variable ORION_KERNELS_GOLDENS.

    make_blocks.py --ggml PATH/libggml-base.so [--out DIR] [--blocks N] [--seed S] [--columns N] [--model FILE.gguf]

decode.bin, little-endian: records of u32 ggml type, u32 number of blocks, the blocks, their values in f32.
encode.bin: u32 rows, u32 columns, the rows in f32, the importances of the columns in f32; then records of u32 ggml type,
u32 whether with importances, u32 number of bytes, the blocks. The rows are random in several distributions, with edge
cases among them; with --model, rows of the tensors of that file.
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


def edge_rows(cols, rng):
    """Rows in which the searches take their rare branches."""
    base = (rng.standard_normal(cols) * 0.02).astype(np.float32)
    mixed = base.copy()
    mixed[0:64] = 0                                     # zero sub-blocks beside others
    mixed[64:96] = -0.0
    mixed[96:128] = 0.5                                 # constant ones
    mixed[128:160] = -0.5
    mixed[160:192] = np.abs(mixed[160:192]) + 1         # all positive: the minimum is limited to zero
    mixed[192:224] *= 1e-4                              # a sub-scale that rounds to zero
    mixed[224:256] *= 1e4
    ties = np.tile(np.array([1, -1, 0.5, -0.5, 0, -0.0, 0.25, 0.75], np.float32), cols // 8)
    tiny = base * np.float32(1e-38)                     # subnormal: some reciprocals are infinite
    tiny[:cols // 2] *= np.float32(1e-4)
    noise = (-1 + rng.integers(0, 3, cols) * 2.0 ** -24).astype(np.float32)     # constant but for the last bit
    signs = np.where(np.arange(cols) % 2, 0.0, -0.0).astype(np.float32)
    spikes = base.copy()
    spikes[::61] = 3
    return [base, mixed, ties, tiny, noise, signs, spikes, np.zeros(cols, np.float32), np.full(cols, -2.5, np.float32),
            np.linspace(-1, 1, cols, dtype=np.float32), np.floor(rng.random(cols) * 4).astype(np.float32) - np.float32(1.5)]


def rows_of(n, cols, model, rng):
    rows = edge_rows(cols, rng)
    if model:
        for t in gguf.GGUFReader(model).tensors:
            if len(t.shape) == 2:
                x = gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float32).reshape(-1)
                x = x[:x.size // cols * cols].reshape(-1, cols)
                rows += list(x[rng.permutation(len(x))[:n]])
    else:
        for i in range(n):
            shape = [rng.standard_normal, lambda k: rng.random(k) - 0.5, lambda k: rng.standard_t(3, k), lambda k: rng.laplace(size=k)][i % 4]
            rows.append((shape(cols) * 10.0 ** rng.uniform(-4, 1)).astype(np.float32))
    return np.stack(rows).astype(np.float32)


def encode(lib, ty, x, im):
    lib.ggml_quantize_chunk.restype = C.c_size_t
    lib.ggml_quantize_chunk.argtypes = [C.c_int, C.c_void_p, C.c_void_p, C.c_int64, C.c_int64, C.c_int64, C.c_void_p]
    length, size = gguf.GGML_QUANT_SIZES[ty]
    out = np.zeros(x.size // length * size, np.uint8)
    got = lib.ggml_quantize_chunk(ty.value, x.ctypes.data, out.ctypes.data, 0, x.shape[0], x.shape[1], None if im is None else im.ctypes.data)
    assert got == out.size, (ty, got, out.size)
    if im is None:
        try:
            other = gguf.quants.quantize(x, ty).view(np.uint8).reshape(-1)
            # The package differs in the sign of a zero scale and in what it makes of infinite reciprocals.
            plain = [r for r in range(len(x)) if np.abs(x[r]).min() > 1e-30]
            a, b = (v.reshape(len(x), -1)[plain] for v in (out, other))
            assert np.array_equal(a, b), f"the two encoders disagree on {ty.name}"
        except NotImplementedError:
            pass
    return out


def write_encode(path, lib, n, cols, model, rng):
    x = np.ascontiguousarray(rows_of(n, cols, model, rng))
    im = (rng.gamma(0.5, 2.0, cols) + 1e-3).astype(np.float32)
    im[5::97] = 0
    im[32:64] = 0
    with open(path, "wb") as f:
        f.write(struct.pack("<II", *x.shape) + x.tobytes() + im.tobytes())
        for ty in (ty for ty in TYPES if cols % gguf.GGML_QUANT_SIZES[ty][0] == 0):
            for weights in (None, im):
                b = encode(lib, ty, x, weights)
                f.write(struct.pack("<III", ty.value, weights is not None, b.size) + b.tobytes())
        print(f"encode.bin: {x.shape[0]} rows of {cols}")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--ggml", required=True)
    p.add_argument("--out", default=os.path.dirname(os.path.abspath(__file__)))
    p.add_argument("--blocks", type=int, default=2)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--model")
    p.add_argument("--columns", type=int, default=512)
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
    print(f"decode.bin: {len(TYPES)} types")
    write_encode(os.path.join(a.out, "encode.bin"), lib, a.blocks, a.columns, a.model, rng)


if __name__ == "__main__":
    main()
