//! The vocabularies of the models that `make models` fetches, against llama.cpp's and Hugging Face's ids.

mod support;

use orion_runtime::Tokenizer;
use support::{check, gguf, golden, model};

#[test]
fn smollm2_gives_the_ids_of_llama_cpp() {
    let header = gguf(&model("SmolLM2-135M-Instruct.Q4_1.gguf", "make models"));
    let tokenizer = Tokenizer::from_header(&header).unwrap();
    check("smollm2", &tokenizer, &golden(include_str!("goldens/smollm2.jsonl")));
}
