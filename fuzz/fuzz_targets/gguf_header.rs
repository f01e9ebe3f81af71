#![no_main]
//! Any bytes as a GGUF file: refused, or a header whose tensors lie inside the file.

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(header) = orion_formats::gguf::parse(data, data.len() as u64) {
        for tensor in &header.model.tensors {
            assert!(data.get(tensor.range().expect("checked by the parser")).is_some());
        }
    }
});
