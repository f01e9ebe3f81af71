#!/usr/bin/env python3
"""Makes mixes.txt: the tensor types that llama.cpp's quantiser gives small models in every mix.

Needs numpy, the PyPI package `gguf`, and the shared libraries of llama.cpp v0.5.0 in one directory, given with --lib.

    make_mixes.py --lib DIR [--out FILE]

mixes.txt: for each model a line `model NAME key=value …` and, indented, its tensors `NAME rows columns`; then for each mix a line
`mix MODEL FILE_TYPE with-importances` and, indented, one line per type: `TYPE index index …` of the
tensors that got it; `rest` stands for all others with two dimensions.
"""
import argparse, ctypes as C, os, tempfile
import numpy as np
import gguf

FTYPES = [0, 1, 2, 3, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 21, 25, 30, 32]
LAYER = [("attn_norm.weight", 0), ("attn_q.weight", 1), ("attn_k.weight", 1), ("attn_v.weight", 1), ("attn_output.weight", 1),
         ("ffn_norm.weight", 0), ("ffn_gate.weight", 1), ("ffn_up.weight", 1), ("ffn_down.weight", 2)]
FUSED = [("attn_norm.weight", 0), ("attn_qkv.weight", 1), ("attn_output.weight", 1), ("ffn_norm.weight", 0), ("ffn_up.weight", 1),
         ("ffn_down.weight", 2)]
# name: architecture, layers, heads, key-value heads, columns, columns of ffn_down, tied, layer, experts
MODELS = {
    "llama-mha": ("llama", 32, 32, 32, 256, 512, False, LAYER, 0),
    "llama-gqa-tied": ("llama", 22, 32, 4, 256, 768, True, LAYER, 0),
    "llama-576": ("llama", 30, 9, 3, 576, 1536, True, LAYER, 0),
    "llama-70b": ("llama", 80, 64, 8, 256, 256, False, LAYER, 0),
    "llama-odd": ("llama", 3, 4, 2, 80, 96, False, LAYER, 0),
    "gemma3": ("gemma3", 18, 4, 1, 640, 2048, True, LAYER, 0),
    "qwen2": ("qwen2", 24, 14, 2, 896, 4864, True, LAYER, 0),
    "phi3": ("phi3", 32, 32, 32, 256, 512, False, FUSED, 0),
}


def write_model(path, spec, rng):
    arch, layers, heads, kv, cols, down, tied, layer, experts = spec
    w = gguf.GGUFWriter(path, arch)
    w.add_block_count(layers); w.add_context_length(128); w.add_embedding_length(cols); w.add_feed_forward_length(down)
    w.add_head_count(heads); w.add_head_count_kv(kv); w.add_layer_norm_rms_eps(1e-5); w.add_rope_dimension_count(64)
    w.add_key_length(64); w.add_value_length(64); w.add_sliding_window(64); w.add_vocab_size(4)
    names = [("token_embd.weight", 1), ("output_norm.weight", 0)] + ([] if tied else [("output.weight", 1)])
    names += [(f"blk.{i}.{n}", k) for i in range(layers) for n, k in layer]
    for name, kind in names:
        shape = (cols,) if kind == 0 else (2, cols if kind == 1 else down)
        w.add_tensor(name, (rng.standard_normal(shape) * 0.02).astype(np.float32))
    w.write_header_to_file(); w.write_kv_data_to_file(); w.write_tensors_to_file(); w.close()
    return [(n, 0 if k == 0 else 2, cols if k != 2 else down) for n, k in names]


class Imatrix(C.Structure):
    _fields_ = [("name", C.c_char_p), ("data", C.c_void_p), ("size", C.c_size_t)]


class Params(C.Structure):
    _fields_ = [("nthread", C.c_int32), ("ftype", C.c_int), ("output_type", C.c_int), ("embedding_type", C.c_int)] + \
        [(n, C.c_bool) for n in ("allow_requantize", "quantize_output", "only_copy", "pure", "keep_split", "dry_run")] + \
        [(n, C.c_void_p) for n in ("imatrix", "kv_overrides", "tensor_types", "prune_layers")] + [("max_buf", C.c_size_t)]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--lib", required=True)
    p.add_argument("--out", default=os.path.join(os.path.dirname(os.path.abspath(__file__)), "mixes.txt"))
    a = p.parse_args()
    C.CDLL(os.path.join(a.lib, "libggml-base.so"), mode=C.RTLD_GLOBAL)
    g = C.CDLL(os.path.join(a.lib, "libggml.v0.5.0.so"), mode=C.RTLD_GLOBAL)
    lib = C.CDLL(os.path.join(a.lib, "libllama.v0.5.0.so"), mode=C.RTLD_GLOBAL)
    g.ggml_backend_load_all_from_path(a.lib.encode())
    quiet = C.CFUNCTYPE(None, C.c_int, C.c_char_p, C.c_void_p)(lambda level, text, _: print(text.decode(), end="") if level == 4 else None)
    lib.llama_log_set(quiet, None)
    lib.llama_model_quantize_default_params.restype = Params
    lib.llama_model_quantize.argtypes = [C.c_char_p, C.c_char_p, C.POINTER(Params)]
    rng = np.random.default_rng(3)
    lines = []
    with tempfile.TemporaryDirectory() as d:
        src, dst = os.path.join(d, "in.gguf"), os.path.join(d, "out.gguf")
        for model, spec in MODELS.items():
            tensors = write_model(src, spec, rng)
            lines.append(f"model {model} arch={spec[0]} layers={spec[1]} heads={spec[2]} kv_heads={spec[3]}")
            lines += [f"  {n} {r} {c}" for n, r, c in tensors]
            for ftype in FTYPES:
                for weighted in (False, True):
                    if ftype == 21 and not weighted:
                        continue        # Q2_K_S refuses to work without importances
                    q = lib.llama_model_quantize_default_params()
                    q.nthread, q.ftype = 1, ftype
                    if weighted:
                        keep = {n: np.ones(c, np.float32) for n, r, c in tensors if r}
                        table = (Imatrix * (len(keep) + 1))(*[(n.encode(), v.ctypes.data, v.size) for n, v in keep.items()])
                        q.imatrix = C.addressof(table)
                    assert lib.llama_model_quantize(src.encode(), dst.encode(), C.byref(q)) == 0, (model, ftype)
                    got = {t.name: t.tensor_type.name for t in gguf.GGUFReader(dst).tensors}
                    lines.append(f"mix {model} {ftype} {int(weighted)}")
                    by_type = {}
                    for i, (n, rows, _) in enumerate(tensors):
                        if rows:
                            by_type.setdefault(got[n], []).append(i)
                        else:
                            assert got[n] == "F32", n
                    lines += [f"  {ty} {' '.join(map(str, at))}" for ty, at in sorted(by_type.items(), key=lambda kv: len(kv[1]))[:-1]]
                    lines.append(f"  {max(by_type, key=lambda ty: len(by_type[ty]))} rest")
    with open(a.out, "w") as f:
        f.write("\n".join(lines) + "\n")
    print(len(lines), "lines", os.path.getsize(a.out), "bytes")


if __name__ == "__main__":
    main()
