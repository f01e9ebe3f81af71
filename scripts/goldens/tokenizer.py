#!/usr/bin/env python3
"""Writes the token ids that llama.cpp gives for the hard strings, with and without parsing of special tokens.

    scripts/goldens/tokenizer.py --llama DIR OUT NAME=FILE.gguf...

DIR holds llama.cpp's shared libraries (`libllama*.so`, `libggml*.so`), such as `bins/linux-x64` of the npm package
@node-llama-cpp/linux-x64 3.22.1 (`npm pack`). Only the vocabulary of each GGUF is loaded.

OUT gets one file per name. Its lines are JSON: first {"vocab", "end_of_generation"}, then one array per string,
[text, ids] or [text, ids, ids with special tokens parsed] where the two differ.

    scripts/goldens/tokenizer.py --llama DIR --pre OUT.jsonl NAME=FILE.gguf...

does the same with every pre-tokenizer llama.cpp knows put in the place of the file's own. Each line is
[NAME, pre-tokenizer, the low half of a CRC-32 of the ids of each string, in hex, all joined].
"""

import argparse
import ctypes as C
import glob
import json
import os
import sys
import tempfile
import zlib

from hard_strings import strings

VOCAB_ONLY = 72  # offset of `vocab_only` in llama_model_params; `use_extra_bufts`, true by default, is two bytes on


# Without glm4: this llama.cpp merges its words, later ones and Hugging Face take those that are entries whole.
PRE = """default minicpm5 llama3 llama-bpe deepseek-llm deepseek-coder deepseek-v3 spark2_5 youtu falcon mpt starcoder
gpt-2 jais-2 gemma4 sarvam-moe refact command-r qwen2 qwen35 stablelm2 olmo dbrx smaug-bpe poro-chat chatglm-bpe
viking jais tekken smollm codeshell bloom gpt3-finnish exaone exaone4 exaone-moe chameleon minerva-7b megrez gpt-4o
llama4 granite-embed-multi-97m tiny_aya superbpe trillion granite-docling bailingmoe seed-coder hunyuan hunyuan-dense
joyai-llm kimi-k2 ufakzeka grok-2 afmoe laguna minimax-m2 solar-open mellum2 hy_v4""".split()


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
    """A copy of the GGUF in which the name of the pre-tokenizer is another, as a scratch file."""
    data = open(path, "rb").read()
    key = b"tokenizer.ggml.pre"
    at = data.index(key) + len(key) + 4
    end = at + 8 + int.from_bytes(data[at : at + 8], "little")
    with tempfile.NamedTemporaryFile(suffix=".gguf", delete=False) as scratch:
        scratch.write(data[:at] + len(pre).to_bytes(8, "little") + pre.encode() + data[end:])
    return scratch.name


def digest(ids):
    return f"{zlib.crc32(b''.join(i.to_bytes(4, 'little') for i in ids)) & 0xFFFF:04x}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama", required=True)
    parser.add_argument("--pre", action="store_true")
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
        if args.pre:
            with open(args.out, "a", encoding="utf-8") as out:
                for pre in PRE:
                    scratch = with_pre(path, pre)
                    with_vocab(llama, params, scratch, pre, lambda vocab: write_digests(llama, vocab, name, pre, out))
                    os.unlink(scratch)
        else:
            with_vocab(llama, params, path, name, lambda vocab: write_ids(llama, vocab, os.path.join(args.out, f"{name}.jsonl")))


def with_vocab(llama, params, path, name, use):
    handle = llama.llama_model_load_from_file(path.encode(), params)
    if not handle:
        print(f"{name}: llama.cpp cannot load it", file=sys.stderr)
        return
    use(llama.llama_model_get_vocab(handle))
    llama.llama_model_free(handle)


def write_digests(llama, vocab, name, pre, out):
    row = [name, pre, "".join(digest(tokenize(llama, vocab, text, False)) for text in strings())]
    print(json.dumps(row, separators=(",", ":")), file=out)


def write_ids(llama, vocab, path):
    count = llama.llama_vocab_n_tokens(vocab)
    ends = [i for i in range(count) if llama.llama_vocab_is_eog(vocab, i)]
    with open(path, "w", encoding="utf-8") as out:
        print(json.dumps({"vocab": count, "end_of_generation": ends}), file=out)
        for text in strings():
            plain, parsed = tokenize(llama, vocab, text, False), tokenize(llama, vocab, text, True)
            row = [text, plain] if plain == parsed else [text, plain, parsed]
            print(json.dumps(row, separators=(",", ":")), file=out)


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # the libraries' static destructors do not survive a normal exit
