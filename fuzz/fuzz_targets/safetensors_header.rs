#![no_main]
//! Any bytes as a safetensors file: refused, or a header whose tensors lie inside the file.

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(header) = orion_formats::safetensors::parse(data, data.len() as u64) {
        for tensor in &header.tensors {
            let start = usize::try_from(tensor.offset).expect("inside a slice");
            let len = usize::try_from(tensor.bytes).expect("inside a slice");
            assert!(data[start..].len() >= len);
        }
        let _ = header.model();
    }
});
