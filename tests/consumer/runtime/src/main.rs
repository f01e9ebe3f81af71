//! `orion-runtime` alone: a tokenizer without weights, and a runtime that refuses what is no model.

use std::sync::Arc;

use orion_core::{
    Error, MetaArray, MetaValue, ModelFormat, ModelHeader, Result, Runtime, TensorBytes, WeightSource,
};
use orion_runtime::{LocalRuntime, SpecialTokens, Tokenizer};

struct Nothing(ModelHeader);

impl WeightSource for Nothing {
    fn header(&self) -> &ModelHeader {
        &self.0
    }

    fn tensor(&self, index: usize) -> Result<TensorBytes> {
        Err(Error::invalid(format!("there is no tensor {index}")))
    }
}

fn main() -> Result<()> {
    let strings = |texts: &[&str]| MetaValue::Array(MetaArray::Str(texts.iter().collect()));
    let metadata = [
        ("tokenizer.ggml.model".to_owned(), MetaValue::Str("gpt2".to_owned())),
        ("tokenizer.ggml.pre".to_owned(), MetaValue::Str("gpt-2".to_owned())),
        ("tokenizer.ggml.tokens".to_owned(), strings(&["o", "r", "i", "n", "or", "io", "ion"])),
        ("tokenizer.ggml.merges".to_owned(), strings(&["o r", "i o", "io n"])),
    ];
    let header = ModelHeader::new(ModelFormat::Gguf, metadata.into(), Vec::new());
    let tokenizer = Tokenizer::from_header(&header)?;
    let ids = tokenizer.encode("orion", SpecialTokens::Plain)?;
    assert_eq!(tokenizer.decode(&ids), "orion");
    let refused = LocalRuntime::default().load(Arc::new(Nothing(header))).map(|_| ()).unwrap_err();
    println!("runtime: {} tokens; {refused}", ids.len());
    Ok(())
}
