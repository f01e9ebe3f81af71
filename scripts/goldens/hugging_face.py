#!/usr/bin/env python3
"""Writes the token ids that Hugging Face's `tokenizers` gives for the hard strings, in the form of tokenizer.py.

    scripts/goldens/hugging_face.py OUT NAME=tokenizer.json...
"""

import json
import os
import sys

from hard_strings import strings
from tokenizers import Tokenizer

out, models = sys.argv[1], sys.argv[2:]
for model in models:
    name, path = model.split("=", 1)
    tokenizer = Tokenizer.from_file(path)
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def encode(text, parse):
        tokenizer.encode_special_tokens = not parse
        return tokenizer.encode(text, add_special_tokens=False).ids

    with open(os.path.join(out, f"{name}.jsonl"), "w", encoding="utf-8") as file:
        print(json.dumps({"vocab": tokenizer.get_vocab_size(), "end_of_generation": []}), file=file)
        for text in strings():
            plain, parsed = encode(text, False), encode(text, True)
            row = [text, plain] if plain == parsed else [text, plain, parsed]
            print(json.dumps(row, separators=(",", ":")), file=file)
