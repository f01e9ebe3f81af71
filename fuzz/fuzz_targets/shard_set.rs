#![no_main]
//! Any bytes as a shard set's manifest: refused, or one that writes and reads back equal.

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(set) = orion_formats::ShardSet::parse(data) {
        let json = set.to_json().expect("what was read can be written");
        assert_eq!(orion_formats::ShardSet::parse(json.as_bytes()).expect("and read again"), set);
    }
});
