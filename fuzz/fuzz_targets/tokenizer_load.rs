//! A vocabulary from arbitrary metadata: it loads or is an error, and what loads encodes and decodes any text.
#![no_main]

use libfuzzer_sys::fuzz_target;
use orion_core::{MetaArray, MetaValue, ModelFormat, ModelHeader};
use orion_runtime::{SpecialTokens, Tokenizer};

/// `tokenizer.json`, or lines: kind, pre-tokenizer, text, then entries; entries with a blank are merges too.
fn header(data: &[u8]) -> Option<(ModelHeader, String)> {
    if data.first() == Some(&b'{') {
        let mut header = ModelHeader::new(ModelFormat::Safetensors, Default::default(), Vec::new());
        header.side_files.insert("tokenizer.json".to_owned(), data.into());
        return Some((header, "some text ☃ <s>".to_owned()));
    }
    let mut lines = data.split(|&byte| byte == b'\n');
    let mut text = || lines.next().map(|line| String::from_utf8_lossy(line).into_owned());
    let (kind, pre, sample) = (text()?, text()?, text()?);
    let entries: Vec<&[u8]> = lines.collect();
    let merges = entries.iter().filter(|entry| entry.contains(&b' ')).collect();
    let types = entries.iter().map(|entry| i32::from(entry.first().copied().unwrap_or(1)) % 7).collect();
    let scores = entries.iter().map(|entry| -(entry.len() as f32)).collect();
    let metadata = [
        ("tokenizer.ggml.model", MetaValue::Str(kind)),
        ("tokenizer.ggml.pre", MetaValue::Str(pre)),
        ("tokenizer.ggml.merges", MetaValue::Array(MetaArray::Str(merges))),
        ("tokenizer.ggml.token_type", MetaValue::Array(MetaArray::I32(types))),
        ("tokenizer.ggml.scores", MetaValue::Array(MetaArray::F32(scores))),
        ("tokenizer.ggml.tokens", MetaValue::Array(MetaArray::Str(entries.into_iter().collect()))),
        ("tokenizer.ggml.precompiled_charsmap", MetaValue::Array(MetaArray::U8(sample.clone().into_bytes()))),
    ];
    let metadata = metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    Some((ModelHeader::new(ModelFormat::Gguf, metadata, Vec::new()), sample))
}

fuzz_target!(init: orion_fuzz::forgive_caught_panics_of_libraries(), |data: &[u8]| {
    let Some((header, text)) = header(data) else { return };
    let Ok(tokenizer) = Tokenizer::from_header(&header) else { return };
    for special in [SpecialTokens::Plain, SpecialTokens::Parse] {
        if let Ok(ids) = tokenizer.encode(&text, special) {
            assert!(ids.iter().all(|id| (id.0 as usize) < tokenizer.vocab_size()));
            let _ = tokenizer.decode(&ids);
        }
    }
});
