"""The weights of the reference models: filled by a counter-based integer generator, so that no weight file is committed.

Value `i` of tensor `name` in a model of seed `seed`:

    key   = FNV-1a 64 of the name's UTF-8 bytes, xor seed
    z     = SplitMix64's output function on key + (i + 1) * 0x9E3779B97F4A7C15        (mod 2^64)
    u     = (z >> 40) / 2^23 - 1                                                     exact in f32, in [-1, 1)
    value = offset + scale * u                                     two f32 operations, each rounded; then to the dtype

`orion-testkit` does the same in Rust.
"""

import numpy as np

GOLDEN = 0x9E3779B97F4A7C15
MASK = (1 << 64) - 1


def fnv1a(text):
    h = 0xCBF29CE484222325
    for byte in text.encode():
        h = ((h ^ byte) * 0x100000001B3) & MASK
    return h


def stream(seed, name, count):
    """The first `count` 64-bit outputs for tensor `name`."""
    with np.errstate(over="ignore"):
        z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(GOLDEN) + np.uint64(fnv1a(name) ^ seed)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def values(seed, name, shape, offset, scale):
    """Tensor `name` in f32, before it is rounded to the model's dtype."""
    u = (stream(seed, name, int(np.prod(shape))) >> np.uint64(40)).astype(np.float32) / np.float32(1 << 23) - np.float32(1)
    return (np.float32(offset) + np.float32(scale) * u).reshape(shape)


def round_to(array, dtype):
    """Rounds to the model's dtype, nearest even, and widens again."""
    if dtype == "F32":
        return array
    if dtype == "F16":
        return array.astype(np.float16).astype(np.float32)
    bits = array.view(np.uint32).astype(np.uint64)
    bits = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16).astype(np.uint32)
    return bits.view(np.float32)


def encode(array, dtype):
    """The bytes of an array whose values are exact in `dtype`."""
    if dtype == "BF16":
        return (array.view(np.uint32) >> 16).astype("<u2").tobytes()
    return array.astype("<f2" if dtype == "F16" else "<f4").tobytes()


def fill(name, shape, unit_offset_norms, tied):
    """(offset, scale) of a tensor: norms spread around what leaves a vector as it is, matrices keep its length and a
    bit more, so that attention is sharp enough for every option to show in the logits."""
    if "norm" in name.lower() and name.endswith(".weight"):
        return (0.0 if unit_offset_norms else 1.0), 0.25
    if len(shape) == 1:
        return 0.0, 0.25
    if "embed" in name:
        return 0.0, (0.375 if tied else 1.0)
    return 0.0, float(np.sqrt(np.float32(6) / np.float32(shape[1])))


def tokens(seed, count, vocab):
    return [int(t) for t in (stream(seed, "tokens", count) >> np.uint64(40)) % np.uint64(vocab)]
