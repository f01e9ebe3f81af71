"""Reference embeddings for the sentence encoder, computed with numpy alone (needs numpy, safetensors, tokenizers).

    python3 orion-runtime/tests/encoder_golden.py MINILM_DIR

writes `data/minilm_embeddings.json` from the model in MINILM_DIR, and a tiny random encoder with its own
embeddings into `data/tiny_bert`. The forward pass is written from the BERT paper and the model card, and shares no
code with the crate.
"""

import json
import math
import pathlib
import sys

import numpy as np
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

HERE = pathlib.Path(__file__).parent / "data"

TEXTS = [
    "hello",
    "",
    "Write a Rust function that reverses a linked list in place.",
    "What is the derivative of x^2 * sin(x)?",
    "Traduis cette phrase en anglais : où est la bibliothèque ?",
    "ÉCOLE naïve façade coöperate Straße",
    "日本語のテキスト and emoji 🎉🎉",
    "it's 12:30, isn't it? (yes/no) -- e-mail me@example.org",
    "Summarise the following report in three bullet points for a busy reader. " * 3,
    "a " * 600,
    "supercalifragilisticexpialidocious" * 8,
    "tabs\tand\nnewlines\r\nand\u00a0spaces\u200b",
]


def erf(x):
    return np.vectorize(math.erf, otypes=[np.float64])(x)


def embed(folder, text, max_tokens):
    config = json.loads((folder / "config.json").read_text())
    weights = {name: value.astype(np.float64) for name, value in load_file(folder / "model.safetensors").items()}
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)
    ids = tokenizer.encode(text).ids
    heads, eps = config["num_attention_heads"], config["layer_norm_eps"]

    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x * x).mean(-1, keepdims=True) + eps)
        return x * weights[name + ".weight"] + weights[name + ".bias"]

    def dense(x, name):
        return x @ weights[name + ".weight"].T + weights[name + ".bias"]

    x = weights["embeddings.word_embeddings.weight"][ids]
    x = x + weights["embeddings.position_embeddings.weight"][: len(ids)]
    x = x + weights["embeddings.token_type_embeddings.weight"][0]
    x = norm(x, "embeddings.LayerNorm")
    for layer in range(config["num_hidden_layers"]):
        name = f"encoder.layer.{layer}."
        split = lambda part: dense(x, name + "attention.self." + part).reshape(len(ids), heads, -1).transpose(1, 0, 2)
        query, key, value = split("query"), split("key"), split("value")
        scores = query @ key.transpose(0, 2, 1) / math.sqrt(query.shape[-1])
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        scores = scores / scores.sum(-1, keepdims=True)
        mixed = (scores @ value).transpose(1, 0, 2).reshape(len(ids), -1)
        x = norm(x + dense(mixed, name + "attention.output.dense"), name + "attention.output.LayerNorm")
        inner = dense(x, name + "intermediate.dense")
        inner = 0.5 * inner * (1 + erf(inner / math.sqrt(2)))
        x = norm(x + dense(inner, name + "output.dense"), name + "output.LayerNorm")
    pooled = x.mean(0)
    return {"text": text, "tokens": len(ids), "vector": [round(float(v), 7) for v in pooled / np.linalg.norm(pooled)]}


def tiny(folder):
    """A random encoder of two layers over a vocabulary of letters and a few words."""
    folder.mkdir(parents=True, exist_ok=True)
    hidden, inner, layers, positions = 32, 48, 2, 24
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "hello", "the", "cat", "write", "a"]
    words += list("abcdefghijklmnopqrstuvwxyz0123456789.,?")[1:] + ["##" + c for c in "abcdefghijklmnopqrstuvwxyz"]
    vocabulary = {word: at for at, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    config = {
        "model_type": "bert", "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": 4,
        "intermediate_size": inner, "vocab_size": len(words), "max_position_embeddings": positions,
        "type_vocab_size": 2, "layer_norm_eps": 1e-5, "hidden_act": "gelu",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    random = np.random.default_rng(7)
    tensors = {}

    def matrix(name, *shape, scale=0.3):
        tensors[name] = (random.standard_normal(shape) * scale).astype(np.float32)

    def norm(name):
        tensors[name + ".weight"] = (1 + 0.2 * random.standard_normal(hidden)).astype(np.float32)
        matrix(name + ".bias", hidden, scale=0.1)

    def dense(name, outputs, inputs):
        matrix(name + ".weight", outputs, inputs)
        matrix(name + ".bias", outputs, scale=0.1)

    matrix("embeddings.word_embeddings.weight", len(words), hidden)
    matrix("embeddings.position_embeddings.weight", positions, hidden)
    matrix("embeddings.token_type_embeddings.weight", 2, hidden)
    norm("embeddings.LayerNorm")
    for layer in range(layers):
        name = f"encoder.layer.{layer}."
        for part in ("query", "key", "value"):
            dense(name + "attention.self." + part, hidden, hidden)
        dense(name + "attention.output.dense", hidden, hidden)
        norm(name + "attention.output.LayerNorm")
        dense(name + "intermediate.dense", inner, hidden)
        dense(name + "output.dense", hidden, inner)
        norm(name + "output.LayerNorm")
    save_file(tensors, folder / "model.safetensors")
    texts = ["hello", "", "the cat, write a cat?", "zebra 42 .", "a " * 40]
    golden = [embed(folder, text, positions) for text in texts]
    (folder / "embeddings.json").write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
    tiny(HERE / "tiny_bert")
    minilm = pathlib.Path(sys.argv[1])
    golden = [embed(minilm, text, 256) for text in TEXTS]
    (HERE / "minilm_embeddings.json").write_text(json.dumps(golden) + "\n")
