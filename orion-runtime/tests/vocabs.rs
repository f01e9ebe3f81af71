//! Vocabularies of many families against llama.cpp's ids. They are too large for the repository:
//! `scripts/fetch-vocabs.py` fetches them.

mod support;

use orion_runtime::Tokenizer;
use support::{check, gguf, golden, model};

macro_rules! families {
    ($($test:ident: $name:literal,)+) => {
        $(#[test]
        fn $test() {
            let path = model(concat!("vocabs/ggml-vocab-", $name, ".gguf"), "scripts/fetch-vocabs.py");
            let tokenizer = Tokenizer::from_header(&gguf(&path)).unwrap();
            check($name, &tokenizer, &golden(include_str!(concat!("goldens/vocabs/", $name, ".jsonl"))));
        })+
    };
}

families! {
    aquila: "aquila",
    baichuan: "baichuan",
    bert_bge: "bert-bge",
    command_r: "command-r",
    deepseek_coder: "deepseek-coder",
    deepseek_llm: "deepseek-llm",
    falcon: "falcon",
    gemma_4: "gemma-4",
    gpt_2: "gpt-2",
    gpt_neox: "gpt-neox",
    llama_bpe: "llama-bpe",
    llama_spm: "llama-spm",
    mpt: "mpt",
    nomic_bert_moe: "nomic-bert-moe",
    phi_3: "phi-3",
    qwen2: "qwen2",
    qwen35: "qwen35",
    refact: "refact",
    starcoder: "starcoder",
}

#[test]
fn gemma_3() {
    let path = model("gemma-3-270m-Q4_K_M.gguf", "make models-gemma");
    let tokenizer = Tokenizer::from_header(&gguf(&path)).unwrap();
    check("gemma3", &tokenizer, &golden(include_str!("goldens/vocabs/gemma3.jsonl")));
}
