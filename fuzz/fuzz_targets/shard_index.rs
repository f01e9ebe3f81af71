#![no_main]
//! Any bytes as a shard index: refused, or plain file names.

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(index) = orion_formats::ShardIndex::parse(data) {
        for file in index.files() {
            assert!(!file.contains(['/', '\\']) && !file.starts_with('.'));
        }
    }
});
