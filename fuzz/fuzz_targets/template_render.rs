//! Any source: it renders or is an error, within bounds. The first line is the message, the rest the template.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use orion_core::{MetaArray, MetaValue, Message, ModelFormat, ModelHeader, Role};
use orion_runtime::{ChatTemplate, RenderOptions, Tokenizer};

static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| {
    let texts = ["<s>", "</s>", "a", "b"];
    let metadata = [
        ("tokenizer.ggml.model", MetaValue::Str("gpt2".to_owned())),
        ("tokenizer.ggml.tokens", MetaValue::Array(MetaArray::Str(texts.iter().collect()))),
        ("tokenizer.ggml.token_type", MetaValue::Array(MetaArray::I32(vec![3, 3, 1, 1]))),
        ("tokenizer.ggml.merges", MetaValue::Array(MetaArray::Str(Default::default()))),
    ];
    let metadata = metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    let header = ModelHeader::new(ModelFormat::Gguf, metadata, Vec::new());
    Tokenizer::from_header(&header).expect("a well-formed vocabulary")
});

fuzz_target!(init: orion_fuzz::forgive_caught_panics_of_libraries(), |data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    let (message, source) = text.split_once('\n').unwrap_or(("", &text));
    let Ok(template) = ChatTemplate::new(source) else { return };
    let messages = [Message::new(Role::System, "S"), Message::new(Role::User, message)];
    if let Ok(prompt) = template.render(&TOKENIZER, &messages, &RenderOptions::default()) {
        assert!(prompt.plain().iter().all(|&at| at < prompt.text().len()));
        let _ = TOKENIZER.encode_prompt(&prompt);
    }
});
