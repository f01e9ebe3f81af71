#!/usr/bin/env python3
"""Writes the token ids that llama.cpp gives for the hard strings, with and without parsing of special tokens.

    scripts/goldens/tokenizer.py --llama DIR OUT NAME=FILE.gguf...

DIR holds llama.cpp's shared libraries (`libllama*.so`, `libggml*.so`), such as `bins/linux-x64` of the npm package
@node-llama-cpp/linux-x64 3.22.1 (`npm pack`). Only the vocabulary of each GGUF is loaded. A NAME of the form
`name@pre` loads the file with `tokenizer.ggml.pre` set to `pre`.

OUT gets one file per name. Its lines are JSON: first {"vocab", "end_of_generation"}, then one array per string,
[text, ids] or [text, ids, ids with special tokens parsed] where the two differ.
"""

import argparse
import ctypes as C
import glob
import json
import os
import sys
import tempfile

from hard_strings import strings

VOCAB_ONLY = 72  # offset of `vocab_only` in llama_model_params; `use_extra_bufts`, true by default, is two bytes on


class Params(C.Structure):
    _fields_ = [("bytes", C.c_ubyte * 512)]


def library(folder):
    def load(pattern):
        names = sorted(glob.glob(os.path.join(folder, pattern)))
        if not names:
            sys.exit(f"{folder} has no {pattern}")
        return C.CDLL(names[0], mode=C.RTLD_GLOBAL)

    load("libggml-base*.so")
    ggml = load("libggml.*so")
    llama = load("libllama.*so")
    ggml.ggml_backend_load_all_from_path(folder.encode())
    pointer, text, i32, flag = C.c_void_p, C.c_char_p, C.c_int32, C.c_bool
    for name, result, arguments in [
        ("llama_model_default_params", Params, []),
        ("llama_model_load_from_file", pointer, [text, Params]),
        ("llama_model_free", None, [pointer]),
        ("llama_model_get_vocab", pointer, [pointer]),
        ("llama_vocab_n_tokens", i32, [pointer]),
        ("llama_vocab_is_eog", flag, [pointer, i32]),
        ("llama_tokenize", i32, [pointer, text, i32, pointer, i32, flag, flag]),
    ]:
        function = getattr(llama, name)
        function.restype, function.argtypes = result, arguments
    silent = C.CFUNCTYPE(None, C.c_int, C.c_char_p, C.c_void_p)(lambda *_: None)
    llama.llama_log_set(silent, None)
    llama.silent = silent
    return llama


def tokenize(llama, vocab, text, parse):
    raw = text.encode()
    room = len(raw) + 16
    ids = (C.c_int32 * room)()
    count = llama.llama_tokenize(vocab, raw, len(raw), C.addressof(ids), room, False, parse)
    if count < 0:
        sys.exit(f"llama.cpp cannot tokenize {text!r}")
    return list(ids[:count])


def with_pre(path, pre):
    """A copy of the GGUF's vocabulary with another pre-tokenizer, as a scratch file."""
    import gguf

    reader = gguf.GGUFReader(path)
    scratch = tempfile.NamedTemporaryFile(suffix=".gguf", delete=False)
    scratch.close()
    writer = gguf.GGUFWriter(scratch.name, "llama")
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        kind, sub = field.types[0], field.types[-1] if len(field.types) > 1 else None
        value = pre if key == "tokenizer.ggml.pre" else field.contents()
        writer.add_key_value(key, value, kind, sub_type=sub)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return scratch.name


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama", required=True)
    parser.add_argument("out")
    parser.add_argument("models", nargs="+")
    args = parser.parse_args()
    llama = library(os.path.abspath(args.llama))
    params = llama.llama_model_default_params()
    if bytes(params.bytes[64 : VOCAB_ONLY + 3]) != bytes(10) + b"\1":
        sys.exit("llama_model_params is laid out differently in this llama.cpp")
    params.bytes[VOCAB_ONLY] = 1
    for model in args.models:
        name, path = model.split("=", 1)
        scratch = with_pre(path, name.split("@", 1)[1]) if "@" in name else None
        handle = llama.llama_model_load_from_file((scratch or path).encode(), params)
        if scratch:
            os.unlink(scratch)
        if not handle:
            print(f"{name}: llama.cpp cannot load it", file=sys.stderr)
            continue
        vocab = llama.llama_model_get_vocab(handle)
        count = llama.llama_vocab_n_tokens(vocab)
        ends = [i for i in range(count) if llama.llama_vocab_is_eog(vocab, i)]
        with open(os.path.join(args.out, f"{name}.jsonl"), "w", encoding="utf-8") as out:
            print(json.dumps({"vocab": count, "end_of_generation": ends}), file=out)
            for text in strings():
                plain, parsed = tokenize(llama, vocab, text, False), tokenize(llama, vocab, text, True)
                row = [text, plain] if plain == parsed else [text, plain, parsed]
                print(json.dumps(row, separators=(",", ":")), file=out)
        llama.llama_model_free(handle)


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # the libraries' static destructors do not survive a normal exit
