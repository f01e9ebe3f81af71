#!/usr/bin/env python3
"""Makes `orion-runtime/tests/encoder-references/minilm`: sentence embeddings of all-MiniLM-L6-v2 by transformers in f32.

The model is the one that `make models` fetches. As its `modules.json` says: the last hidden states are averaged over the tokens
([CLS] and [SEP] among them), and the mean is scaled to length 1. Texts are cut after 256 tokens, `max_seq_length`.
"""

import json
import os
import subprocess
import sys

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
import transformers
from safetensors.numpy import save_file
from transformers import AutoModel, AutoTokenizer

from make_models import ENCODERS, ROOT

LONG = " ".join(
    f"Paragraph {i}: the committee met on the {i}th, heard the treasurer, and postponed the question of the roof." for i in range(1, 60))
SENTENCES = [
    "The quick brown fox jumps over the lazy dog.",
    "A fast auburn fox leaped above a sleepy hound.",
    "How do I reset my password?",
    "fn main() { println!(\"{}\", (1..=10).sum::<u32>()); }",
    "Solve 3x + 7 = 22 for x, and show every step.",
    "Der Zug nach München fährt um 8 Uhr 15 von Gleis 7 ab.",
    "春はあけぼの。やうやう白くなりゆく山ぎは、すこしあかりて。",
    "Café naïve coöperate — “quotes”, ellipsis… and ½ of it; e\u0301 is é decomposed.",
    "🚀 to the moon 👩‍👩‍👧‍👦 flags 🇩🇪 and zero\u200bwidth",
    "  \t many   spaces\n\nand lines  ",
    "antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis " + "a" * 120,
    "",
    LONG,
]


def main():
    path = subprocess.check_output(
        [sys.executable, ROOT / "scripts/models.py", "--print-path", "minilm"], text=True).strip()
    transformers.logging.set_verbosity_error()
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModel.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
    ids, vectors = [], []
    for text in SENTENCES:
        batch = tokenizer(text, truncation=True, max_length=256, return_tensors="pt")
        with torch.no_grad():
            mean = model(**batch).last_hidden_state[0].mean(0)
        ids.append(batch["input_ids"][0].tolist())
        vectors.append((mean / mean.norm()).numpy())
    vectors = np.stack(vectors)
    out = ENCODERS / "minilm"
    out.mkdir(parents=True, exist_ok=True)
    rows = ",\n".join(json.dumps({"text": t, "ids": i}, ensure_ascii=False) for t, i in zip(SENTENCES, ids))
    (out / "sentences.json").write_text(f"[\n{rows}\n]\n")
    save_file({"embeddings": vectors}, out / "golden.safetensors")
    (out / "golden.safetensors").chmod(0o644)
    print([len(i) for i in ids], np.round(vectors @ vectors[0], 3))


if __name__ == "__main__":
    main()
