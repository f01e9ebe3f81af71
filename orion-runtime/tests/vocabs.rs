//! Vocabularies of many families against llama.cpp's ids. They are too large for the repository, so this test runs
//! only when it is named: `make test-references` fetches them and runs it.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use orion_runtime::{SpecialTokens, Tokenizer};
use support::{check, gguf, golden, vocab};

macro_rules! families {
    ($($test:ident: $name:literal,)+) => {
        $(#[test]
        fn $test() {
            let tokenizer = Tokenizer::from_header(&gguf(&vocab($name))).unwrap();
            let expected = golden(include_str!(concat!("goldens/vocabs/", $name, ".jsonl")));
            check($name, &tokenizer, &expected);
            check_llama_cpp_files($name, &tokenizer);
            check_long_texts($name, &tokenizer);
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
    let tokenizer = Tokenizer::from_header(&gguf(&orion_testkit::models::gemma())).unwrap();
    check("gemma3", &tokenizer, &golden(include_str!("goldens/vocabs/gemma3.jsonl")));
    check_long_texts("gemma3", &tokenizer);
}

/// llama.cpp's own test: `.inp` holds texts, `.out` their ids, which come from Hugging Face. Some families bring none.
fn check_llama_cpp_files(name: &str, tokenizer: &Tokenizer) {
    let path = vocab(name);
    let beside = |extension: &str| std::fs::read_to_string(path.with_extension(format!("gguf.{extension}")));
    let (Ok(texts), Ok(ids)) = (beside("inp"), beside("out")) else {
        assert!(
            ["aquila", "baichuan", "gpt-neox", "nomic-bert-moe"].contains(&name),
            "{name} has no .inp and .out"
        );
        return;
    };
    let texts: Vec<&str> = texts.split("\n__ggml_vocab_test__\n").collect();
    let ids: Vec<&str> = ids.lines().collect();
    assert!(ids.len() >= 40 && texts.len() >= ids.len(), "{name}: {} texts, {} rows", texts.len(), ids.len());
    for (text, expected) in texts.iter().zip(ids) {
        let got = tokenizer.encode(text, SpecialTokens::Plain).unwrap();
        let got = got.iter().map(|id| id.0.to_string()).collect::<Vec<_>>().join(" ");
        assert_eq!(got, expected.trim(), "{name}: {text:?}");
    }
}

/// Two hundred kilobytes of what makes back-tracking or quadratic merging take hours.
fn check_long_texts(name: &str, tokenizer: &Tokenizer) {
    for unit in [
        "a",
        "A",
        " ",
        "\n",
        "\t ",
        "7",
        "!",
        "é",
        "語",
        "😀",
        "\u{301}",
        "aB",
        "a ",
        "<|im_end|>",
        "</s>",
        "▁",
    ] {
        let text = unit.repeat(200_000 / unit.len());
        let ids = tokenizer.encode(&text, SpecialTokens::Parse).unwrap();
        assert!(ids.len() <= text.len() + 1, "{name}: {unit:?} gave {} ids", ids.len());
    }
}

/// Every pre-tokenizer, in front of the vocabulary of Llama 3: one checksum of the ids per text.
#[test]
fn every_pre_tokenizer_splits_as_llama_cpp_does() {
    use orion_core::MetaValue;
    let mut header = gguf(&vocab("llama-bpe"));
    let texts: Vec<String> =
        golden(include_str!("goldens/smollm2.jsonl")).rows.into_iter().map(|row| row.text).collect();
    let mut wrong = Vec::new();
    let rows = include_str!("goldens/vocabs/pre-tokenizers.jsonl").lines();
    let mut names = 0;
    for row in rows {
        let (_, pre, sums): (String, String, String) = serde_json::from_str(row).unwrap();
        names += 1;
        header.metadata.insert("tokenizer.ggml.pre".to_owned(), MetaValue::Str(pre.clone()));
        let tokenizer = match Tokenizer::from_header(&header) {
            Ok(tokenizer) => tokenizer,
            Err(error) => {
                wrong.push(format!("{pre}: {error}"));
                continue;
            }
        };
        assert_eq!(sums.len(), 4 * texts.len(), "{pre}");
        for (at, text) in texts.iter().enumerate() {
            let ids = tokenizer.encode(text, SpecialTokens::Plain).unwrap();
            let bytes = ids.iter().flat_map(|id| id.0.to_le_bytes());
            let sum = format!("{:04x}", crc32(bytes) & 0xFFFF);
            if sum != sums[4 * at..4 * at + 4] {
                let words = ids.iter().map(|&id| tokenizer.token_text(id).unwrap_or_default().into_owned());
                wrong.push(format!("{pre}: {text:?} became {}", words.collect::<Vec<_>>().join("|")));
            }
        }
    }
    assert!(names >= 50, "{names} pre-tokenizers");
    assert!(wrong.is_empty(), "{} differences\n{}", wrong.len(), wrong.join("\n"));
}

fn crc32(bytes: impl Iterator<Item = u8>) -> u32 {
    !bytes.fold(!0, |sum, byte| {
        (0..8).fold(sum ^ u32::from(byte), |sum, _| (sum >> 1) ^ (0xEDB8_8320 & (sum & 1).wrapping_neg()))
    })
}
