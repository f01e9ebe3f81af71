//! Vocabularies: the ids of the models that `make models` fetches, streaming, malformed files, long texts.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use orion_core::{ErrorKind, MetaArray, MetaValue, ModelHeader, TokenId};
use orion_runtime::SpecialTokens::{Parse, Plain};
use orion_runtime::{Detokenizer, Tokenizer};
use proptest::prelude::*;
use std::sync::LazyLock;
use support::{check, gguf, golden, string, strings, with_files, with_metadata};

static SMOLLM2: LazyLock<Tokenizer> =
    LazyLock::new(|| Tokenizer::from_header(&gguf(&orion_testkit::models::smollm2())).unwrap());

fn minilm_files() -> Vec<(String, String)> {
    let folder = orion_testkit::models::minilm();
    let names = ["tokenizer.json", "tokenizer_config.json", "config.json"];
    names.map(|name| (name.to_owned(), std::fs::read_to_string(folder.join(name)).unwrap())).into()
}

fn minilm() -> Tokenizer {
    let files = minilm_files();
    let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    Tokenizer::from_header(&with_files(&files)).unwrap()
}

#[test]
fn smollm2_gives_the_ids_of_llama_cpp() {
    check("smollm2", &SMOLLM2, &golden(include_str!("goldens/smollm2.jsonl")));
    assert_eq!((SMOLLM2.bos(), SMOLLM2.eos()), (Some(TokenId(1)), Some(TokenId(2))));
    assert!(!SMOLLM2.add_bos() && !SMOLLM2.add_eos());
    assert!(SMOLLM2.is_end_of_generation(SMOLLM2.id_of("<|im_end|>").unwrap()));
}

#[test]
fn minilm_gives_the_ids_of_hugging_face() {
    let tokenizer = minilm();
    check("minilm", &tokenizer, &golden(include_str!("goldens/minilm.jsonl")));
    let ids = |ids: Vec<TokenId>| ids.into_iter().map(|id| id.0).collect::<Vec<_>>();
    assert_eq!(ids(tokenizer.encode_framed("Hello world", Plain).unwrap()), [101, 7592, 2088, 102]);
    assert_eq!(ids(tokenizer.encode_framed("", Plain).unwrap()), [101, 102]);
    assert_eq!(tokenizer.decode(&tokenizer.encode("Unaffable words", Plain).unwrap()), "unaffable words");
}

/// A byte without an entry cannot be written, and is dropped as llama.cpp drops it.
#[test]
fn texts_come_back_from_their_tokens_but_for_bytes_without_an_entry() {
    let bytes_of = |id: u32| SMOLLM2.token_bytes(TokenId(id)).unwrap().into_owned();
    let ids = 0..SMOLLM2.vocab_size() as u32;
    let known: Vec<u8> = ids.map(bytes_of).filter(|bytes| bytes.len() == 1).map(|bytes| bytes[0]).collect();
    assert!(known.len() > 200 && (b' '..=b'~').all(|byte| known.contains(&byte)));
    for row in golden(include_str!("goldens/smollm2.jsonl")).rows {
        let got: Vec<u8> = row.plain.iter().flat_map(|id| bytes_of(id.0)).collect();
        let expected: Vec<u8> = row.text.bytes().filter(|byte| known.contains(byte)).collect();
        assert_eq!(got, expected, "{:?}", row.text);
    }
}

#[test]
fn a_character_in_several_tokens_appears_when_it_is_complete() {
    let ids = SMOLLM2.encode("a🦙b", Plain).unwrap();
    assert!(ids.len() > 3, "the llama takes several tokens");
    let mut detokenizer = Detokenizer::continuing();
    let pieces: Vec<String> = ids.iter().map(|&id| detokenizer.push(&SMOLLM2, id)).collect();
    assert_eq!(pieces.concat(), "a🦙b");
    assert!(pieces.iter().all(|piece| !piece.contains('\u{FFFD}')));
    assert!(pieces.iter().any(String::is_empty));
    assert_eq!(detokenizer.finish(), "");

    let mut cut = Detokenizer::continuing();
    let half: String = ids[..2].iter().map(|&id| cut.push(&SMOLLM2, id)).collect();
    assert_eq!((half.as_str(), cut.finish().as_str()), ("a", "\u{FFFD}"));
}

#[test]
fn control_tokens_have_a_name_but_no_text() {
    let end = SMOLLM2.id_of("<|im_end|>").unwrap();
    assert!(SMOLLM2.is_control(end));
    assert_eq!(SMOLLM2.token_bytes(end).unwrap().as_ref(), b"<|im_end|>");
    assert_eq!(SMOLLM2.decode(&[end]), "");
    let beyond = TokenId(SMOLLM2.vocab_size() as u32);
    assert_eq!((SMOLLM2.token_bytes(beyond), SMOLLM2.token_text(beyond)), (None, None));
    assert_eq!(SMOLLM2.decode(&[beyond]), "");
}

proptest! {
    #[test]
    fn streaming_gives_the_lossy_text_of_all_bytes(ids in prop::collection::vec(0u32..49_152, 0..40)) {
        let mut detokenizer = Detokenizer::continuing();
        let mut text = String::new();
        let mut bytes = Vec::new();
        for id in ids.into_iter().map(TokenId).filter(|&id| !SMOLLM2.is_control(id)) {
            text.push_str(&detokenizer.push(&SMOLLM2, id));
            bytes.extend_from_slice(&SMOLLM2.token_bytes(id).unwrap());
        }
        text.push_str(&detokenizer.finish());
        prop_assert_eq!(text, String::from_utf8_lossy(&bytes).into_owned());
    }

    #[test]
    fn ascii_survives_encoding(text in "[ -~\n\t]{0,200}") {
        let ids = SMOLLM2.encode(&text, Plain).unwrap();
        prop_assert_eq!(SMOLLM2.decode(&ids), text);
    }
}

#[test]
fn a_megabyte_of_anything_is_tokenised() {
    for unit in ["a", " ", "\n", "7", "!", "é", "😀", "aB", "<|im_end|>", "\t "] {
        let text = unit.repeat(1_000_000 / unit.len());
        let ids = SMOLLM2.encode(&text, Parse).unwrap();
        assert!(!ids.is_empty() && ids.len() <= text.len(), "{unit:?}");
    }
}

/// A small SentencePiece vocabulary with byte fallback.
fn spm(flags: Vec<(&'static str, MetaValue)>) -> ModelHeader {
    let bytes: Vec<String> = (0..=255u8).map(|byte| format!("<0x{byte:02X}>")).collect();
    let words = ["▁", "a", "b", "ab", "▁ab", "▁a"];
    let scores = [-9.0, -8.0, -7.0, -2.0, -1.0, -3.0];
    let mut texts = vec!["<unk>", "<s>", "</s>"];
    texts.extend(bytes.iter().map(String::as_str));
    texts.extend(words);
    let mut types = vec![2, 3, 3];
    types.extend([6; 256]);
    types.extend([1; 6]);
    let mut all_scores = vec![0.0; 259];
    all_scores.extend(scores);
    let mut entries = vec![
        ("tokenizer.ggml.model", string("llama")),
        ("tokenizer.ggml.tokens", strings(&texts)),
        ("tokenizer.ggml.token_type", MetaValue::Array(MetaArray::I32(types))),
        ("tokenizer.ggml.scores", MetaValue::Array(MetaArray::F32(all_scores))),
    ];
    entries.extend(flags);
    with_metadata(entries)
}

#[test]
fn sentencepiece_puts_a_space_first_and_takes_it_off_again() {
    let tokenizer = Tokenizer::from_header(&spm(vec![])).unwrap();
    let texts = |ids: &[TokenId]| {
        ids.iter().map(|&id| tokenizer.token_text(id).unwrap().into_owned()).collect::<Vec<_>>()
    };
    let ids = tokenizer.encode("ab ab\n", Plain).unwrap();
    assert_eq!(texts(&ids), ["▁ab", "▁ab", "<0x0A>"]);
    assert_eq!(tokenizer.decode(&ids), "ab ab\n");
    let framed = tokenizer.encode_framed("ab", Plain).unwrap();
    assert_eq!(texts(&framed), ["<s>", "▁ab"]);
    let mut continuing = Detokenizer::continuing();
    assert_eq!(continuing.push(&tokenizer, ids[0]), " ab");
    let parsed = tokenizer.encode("a</s>b", Parse).unwrap();
    assert_eq!(texts(&parsed), ["▁a", "</s>", "▁", "b"]);

    let bare = spm(vec![("tokenizer.ggml.add_space_prefix", MetaValue::Bool(false))]);
    let bare = Tokenizer::from_header(&bare).unwrap();
    assert_eq!(bare.decode(&bare.encode(" ab", Plain).unwrap()), " ab");
    assert_eq!(bare.encode("ab", Plain).unwrap().len(), 1);
}

#[test]
fn bytes_without_an_entry_become_byte_tokens_and_come_back() {
    let tokenizer = Tokenizer::from_header(&spm(vec![])).unwrap();
    let ids = tokenizer.encode("ab🦙", Plain).unwrap();
    assert_eq!(ids.len(), 5);
    let mut detokenizer = Detokenizer::new(&tokenizer);
    let pieces: Vec<String> = ids.iter().map(|&id| detokenizer.push(&tokenizer, id)).collect();
    assert_eq!(pieces, ["ab", "", "", "", "🦙"]);
}

/// A well-formed byte-pair vocabulary, to be broken in one place at a time.
fn bpe(change: impl FnOnce(&mut ModelHeader)) -> Result<Tokenizer, orion_core::Error> {
    let mut header = with_metadata(vec![
        ("tokenizer.ggml.model", string("gpt2")),
        ("tokenizer.ggml.pre", string("gpt-2")),
        ("tokenizer.ggml.tokens", strings(&["a", "b", "ab", "<s>"])),
        ("tokenizer.ggml.token_type", MetaValue::Array(MetaArray::I32(vec![1, 1, 1, 3]))),
        ("tokenizer.ggml.merges", strings(&["a b"])),
        ("tokenizer.ggml.bos_token_id", MetaValue::U32(3)),
        ("tokenizer.ggml.eos_token_id", MetaValue::U32(3)),
    ]);
    change(&mut header);
    Tokenizer::from_header(&header)
}

/// A part of a character is no special token: cut out of a text, it would leave the rest of the character behind.
#[test]
fn a_special_token_of_broken_utf8_cuts_no_character() {
    let tokens: [&[u8]; 3] = [b"a", b"\xc3", b"</s>"];
    for kind in [3, 4] {
        let header = with_metadata(vec![
            ("tokenizer.ggml.model", string("llama")),
            ("tokenizer.ggml.tokens", MetaValue::Array(MetaArray::Str(tokens.into_iter().collect()))),
            ("tokenizer.ggml.token_type", MetaValue::Array(MetaArray::I32(vec![1, kind, 3]))),
            ("tokenizer.ggml.scores", MetaValue::Array(MetaArray::F32(vec![0.0; 3]))),
        ]);
        let tokenizer = Tokenizer::from_header(&header).unwrap();
        for special in [Plain, Parse] {
            assert!(!tokenizer.encode("aé", special).unwrap().is_empty());
        }
        assert!(tokenizer.encode("é</s>", Parse).unwrap().contains(&TokenId(2)));
    }
}

#[test]
fn each_malformed_field_of_a_gguf_is_named() {
    assert_eq!(bpe(|_| {}).unwrap().encode("ab", Plain).unwrap(), [TokenId(2)]);
    let i32s = |values: &[i32]| MetaValue::Array(MetaArray::I32(values.to_vec()));
    let cases: Vec<(&str, Option<MetaValue>)> = vec![
        ("tokenizer.ggml.model", Some(MetaValue::U32(1))),
        ("tokenizer.ggml.pre", Some(MetaValue::Bool(true))),
        ("tokenizer.ggml.tokens", None),
        ("tokenizer.ggml.tokens", Some(strings::<&str>(&[]))),
        ("tokenizer.ggml.tokens", Some(strings(&["a", "b", "ab", "a"]))),
        ("tokenizer.ggml.tokens", Some(i32s(&[1, 2, 3, 4]))),
        ("tokenizer.ggml.token_type", Some(i32s(&[1, 1, 1]))),
        ("tokenizer.ggml.token_type", Some(string("1"))),
        ("tokenizer.ggml.token_type", Some(MetaValue::Array(MetaArray::F32(vec![1.0; 4])))),
        ("tokenizer.ggml.scores", Some(MetaValue::Array(MetaArray::F32(vec![0.0; 3])))),
        ("tokenizer.ggml.scores", Some(MetaValue::Array(MetaArray::I8(vec![0; 4])))),
        ("tokenizer.ggml.merges", None),
        ("tokenizer.ggml.merges", Some(strings(&["ab"]))),
        ("tokenizer.ggml.merges", Some(strings(&["a "]))),
        ("tokenizer.ggml.merges", Some(strings(&[" "]))),
        ("tokenizer.ggml.merges", Some(strings(&[""]))),
        ("tokenizer.ggml.merges", Some(strings(&["a c"]))),
        ("tokenizer.ggml.merges", Some(strings(&["b a"]))),
        ("tokenizer.ggml.bos_token_id", Some(MetaValue::U32(4))),
        ("tokenizer.ggml.bos_token_id", Some(MetaValue::U64(1 << 32))),
        ("tokenizer.ggml.eos_token_id", Some(MetaValue::U32(u32::MAX))),
        ("tokenizer.ggml.eos_token_id", Some(MetaValue::I32(-1))),
        ("tokenizer.ggml.eot_token_id", Some(MetaValue::U32(99))),
        ("tokenizer.ggml.add_bos_token", Some(MetaValue::U32(1))),
    ];
    for (key, value) in cases {
        let shown = format!("{key} = {value:?}");
        let error = bpe(|header| {
            match value {
                Some(value) => header.metadata.insert(key.to_owned(), value),
                None => header.metadata.remove(key),
            };
        });
        let error = error.expect_err(&shown);
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{shown}: {error}");
        assert!(error.to_string().starts_with(key), "{shown}: {error}");
    }
}

#[test]
fn byte_tokens_that_name_no_byte_are_refused() {
    for bad in ["<0x-1>", "<0xZZ>", "<0x+1>", "<0x1>", "<0x123>", "0x41", "<0x41", "", "<0xé>"] {
        let error = bpe(|header| {
            header.metadata.insert("tokenizer.ggml.tokens".to_owned(), strings(&["a", "b", "ab", bad]));
            let types = MetaValue::Array(MetaArray::I32(vec![1, 1, 1, 6]));
            header.metadata.insert("tokenizer.ggml.token_type".to_owned(), types);
        });
        let error = error.expect_err(bad);
        assert!(error.to_string().starts_with("tokenizer.ggml.tokens: entry 3"), "{bad}: {error}");
    }
}

#[test]
fn unknown_kinds_are_unsupported_by_name() {
    for (key, name) in [("tokenizer.ggml.model", "rwkv"), ("tokenizer.ggml.pre", "no-such-family")] {
        let error = bpe(|header| {
            header.metadata.insert(key.to_owned(), string(name));
        });
        let error = error.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains(key) && error.to_string().contains(name), "{error}");
    }
    let none = Tokenizer::from_header(&with_metadata(vec![])).unwrap_err();
    assert_eq!(none.kind(), ErrorKind::NotFound);
}

#[test]
fn scores_and_unigram_fields_are_checked() {
    let mut nan = spm(vec![]);
    let mut scores = vec![0.0; 265];
    scores[7] = f32::NAN;
    nan.metadata.insert("tokenizer.ggml.scores".to_owned(), MetaValue::Array(MetaArray::F32(scores)));
    let error = Tokenizer::from_header(&nan).unwrap_err();
    assert!(error.to_string().starts_with("tokenizer.ggml.scores"), "{error}");

    for map in [vec![1, 2], vec![255, 255, 255, 255], vec![8, 0, 0, 0, 1, 2, 3, 4]] {
        let mut unigram =
            spm(vec![("tokenizer.ggml.precompiled_charsmap", MetaValue::Array(MetaArray::U8(map)))]);
        unigram.metadata.insert("tokenizer.ggml.model".to_owned(), string("t5"));
        let error = Tokenizer::from_header(&unigram).unwrap_err();
        assert!(error.to_string().starts_with("tokenizer.ggml.precompiled_charsmap"), "{error}");
    }
}

#[test]
fn malformed_tokenizer_json_is_an_error_and_never_a_panic() {
    let minilm = minilm_files().remove(0).1;
    let with = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut json = serde_json::from_str(&minilm).unwrap();
        change(&mut json);
        json.to_string()
    };
    let bpe = |model: &str| format!(r#"{{"version": "1.0", "added_tokens": [], "model": {model}}}"#);
    let cases: Vec<(&str, String)> = vec![
        ("empty", String::new()),
        ("no object", "[]".to_owned()),
        ("no model", "{}".to_owned()),
        ("unknown model", bpe(r#"{"type": "Nonsense", "vocab": {}}"#)),
        ("long merge", bpe(r#"{"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": ["a b"]}"#)),
        ("merge of unknown", bpe(r#"{"type": "BPE", "vocab": {"a": 0}, "merges": ["a zzzz"]}"#)),
        ("merge that is no pair", bpe(r#"{"type": "BPE", "vocab": {"a": 0}, "merges": ["a"]}"#)),
        (
            "prefix longer than a token",
            bpe(
                r#"{"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"], "continuing_subword_prefix": "@@@@@@"}"#,
            ),
        ),
        ("sparse ids", bpe(r#"{"type": "WordLevel", "vocab": {"a": 4000000000}, "unk_token": "a"}"#)),
        ("empty vocabulary", bpe(r#"{"type": "BPE", "vocab": {}, "merges": []}"#)),
        (
            "bad map",
            with(&|json| {
                json["normalizer"] =
                    serde_json::json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"})
            }),
        ),
    ];
    for (name, json) in cases {
        let error = Tokenizer::from_header(&with_files(&[("tokenizer.json", &json)])).expect_err(name);
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{name}: {error}");
        assert!(error.to_string().starts_with("tokenizer.json"), "{name}: {error}");
    }
    // These load; whatever they then do with a text, it ends in ids or an error.
    let odd = [
        with(&|json| json["pre_tokenizer"] = serde_json::json!({"type": "FixedLength", "length": 0})),
        with(
            &|json| json["truncation"] = serde_json::json!({"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 9}),
        ),
        with(&|json| {
            json["decoder"] = serde_json::json!({"type": "Strip", "content": " ", "start": 9, "stop": 9})
        }),
        with(&|json| json["model"]["unk_token"] = serde_json::json!("no such token")),
    ];
    for json in odd {
        let loaded = Tokenizer::from_header(&with_files(&[("tokenizer.json", &json)]));
        match loaded
            .and_then(|tokenizer| tokenizer.encode("some text ☃", Plain).map(|ids| tokenizer.decode(&ids)))
        {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}"),
        }
    }
}

#[test]
fn files_beside_tokenizer_json_are_checked() {
    let minilm = minilm_files().remove(0).1;
    for (name, text) in [
        ("tokenizer_config.json", r#"{"eos_token": "no such token"}"#),
        ("tokenizer_config.json", "{"),
        ("generation_config.json", r#"{"eos_token_id": 30522}"#),
        ("config.json", r#"{"eos_token_id": [1, 99999999999]}"#),
    ] {
        let error =
            Tokenizer::from_header(&with_files(&[("tokenizer.json", &minilm), (name, text)])).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(error.to_string().starts_with(name), "{error}");
    }
    let two = r#"{"eos_token_id": [7, 9]}"#;
    let header = with_files(&[("tokenizer.json", &minilm), ("generation_config.json", two)]);
    let tokenizer = Tokenizer::from_header(&header).unwrap();
    assert_eq!(tokenizer.end_of_generation(), [TokenId(7), TokenId(9)]);
}
