#!/usr/bin/env python3
"""Writes a llama model of random weights with the shape of TinyLlama 1.1B (2048 wide, 5632 inside, 22 layers, 32 heads over 4
KV heads, 32,000 tokens, context 8192) in the types that Q4_K_M gives it: 661 MB. For speed and memory only: its text means nothing.

    benches/peers/random_llama.py OUT.gguf [--layers 22]

Needs the PyPI packages gguf 0.19 and numpy. The blocks are random bytes with scales that keep activations near one; the same bytes every time.
"""

import argparse
import os

import gguf
import numpy as np

HIDDEN, INNER, HEADS, KV_HEADS, VOCAB, CONTEXT = 2048, 5632, 32, 4, 32_000, 8192
Q4_K, Q6_K, F32 = gguf.GGMLQuantizationType.Q4_K, gguf.GGMLQuantizationType.Q6_K, gguf.GGMLQuantizationType.F32


def scale(value):
    return np.frombuffer(np.float16(value).tobytes(), np.uint8)


def blocks(rng, kind, rows, width):
    """Random super-blocks of 256 weights, of a spread that a trained matrix of this width has."""
    size = {Q4_K: 144, Q6_K: 210}[kind]
    data = rng.integers(0, 256, (rows * width // 256, size), np.uint8)
    spread = 1 / np.sqrt(width)
    if kind == Q4_K:  # (6-bit scale, mean 32) x (4 bits, mean 7.5) minus (6-bit minimum, mean 32)
        data[:, 0:2], data[:, 2:4] = scale(spread / 32 / 4.6), scale(spread * 7.5 / 32 / 4.6)
    else:  # (signed scale) x (6 bits - 32)
        data[:, 208:210] = scale(spread / 18.5 / 74)
    return data.reshape(rows, -1)


def more_bits(layer, layers):
    """llama.cpp's rule for the layers whose values and down projections get Q6_K in Q4_K_M."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--layers", type=int, default=22)
    args = parser.parse_args()
    rng = np.random.default_rng(7)
    part = args.out + ".part"
    out = gguf.GGUFWriter(part, "llama")
    out.add_name(f"Random llama 1.1B shape, {args.layers} layers")
    out.add_description("RANDOM weights: for measurements of speed only")
    out.add_context_length(CONTEXT)
    out.add_embedding_length(HIDDEN)
    out.add_block_count(args.layers)
    out.add_feed_forward_length(INNER)
    out.add_head_count(HEADS)
    out.add_head_count_kv(KV_HEADS)
    out.add_rope_dimension_count(HIDDEN // HEADS)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_vocab_size(VOCAB)
    out.add_file_type(15)
    out.add_tokenizer_model("llama")
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    kinds = [2, 3, 3] + [6] * 256 + [1] * (VOCAB - 259)
    tokens += [f"\u2581w{number}" for number in range(VOCAB - 259)]
    out.add_token_list(tokens)
    out.add_token_scores([-float(number) for number in range(VOCAB)])
    out.add_token_types(kinds)
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)

    def matrix(name, kind, rows, width):
        out.add_tensor(name, blocks(rng, kind, rows, width), raw_dtype=kind)

    def ones(name):
        out.add_tensor(name, np.ones(HIDDEN, np.float32))

    matrix("token_embd.weight", Q4_K, VOCAB, HIDDEN)
    for layer in range(args.layers):
        high = Q6_K if more_bits(layer, args.layers) else Q4_K
        at, kv = f"blk.{layer}.", HIDDEN // HEADS * KV_HEADS
        ones(at + "attn_norm.weight")
        matrix(at + "attn_q.weight", Q4_K, HIDDEN, HIDDEN)
        matrix(at + "attn_k.weight", Q4_K, kv, HIDDEN)
        matrix(at + "attn_v.weight", high, kv, HIDDEN)
        matrix(at + "attn_output.weight", Q4_K, HIDDEN, HIDDEN)
        ones(at + "ffn_norm.weight")
        matrix(at + "ffn_gate.weight", Q4_K, INNER, HIDDEN)
        matrix(at + "ffn_up.weight", Q4_K, INNER, HIDDEN)
        matrix(at + "ffn_down.weight", high, HIDDEN, INNER)
    ones("output_norm.weight")
    matrix("output.weight", Q6_K, VOCAB, HIDDEN)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    os.replace(part, args.out)


if __name__ == "__main__":
    main()
