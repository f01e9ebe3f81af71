//! Splits: what joins and what does not.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use common::*;
use orion_formats::Reason;
use orion_formats::gguf::{GgufHeader, join};

fn part(no: u32, count: u32, total: i32, tensors: &[&str]) -> GgufHeader {
    let mut file = Gguf::empty().u32("split.no", no).u32("split.count", count).key(
        "split.tensors.count",
        I32,
        &total.to_le_bytes(),
    );
    for (index, name) in tensors.iter().enumerate() {
        file = file.tensor(name.as_bytes(), &[8], 0, 32 * index as u64);
    }
    file.data(32 * tensors.len()).parse().unwrap()
}

fn refused(parts: Vec<GgufHeader>) -> Reason {
    reason(&join(parts).unwrap_err())
}

#[test]
fn parts_join_in_order() {
    let model = join(vec![part(0, 2, 3, &["a", "b"]), part(1, 2, 3, &["c"])]).unwrap();
    let table: Vec<_> = model.tensors.iter().map(|tensor| (tensor.name.as_str(), tensor.file)).collect();
    assert_eq!(table, [("a", 0), ("b", 0), ("c", 1)]);
    // A first part may hold metadata alone.
    join(vec![part(0, 2, 1, &[]), part(1, 2, 1, &["a"])]).unwrap();
}

#[test]
fn whole_files_are_models() {
    join(vec![Gguf::empty().parse().unwrap()]).unwrap();
    join(vec![part(0, 0, 1, &["a"])]).unwrap();
    join(vec![part(0, 1, 1, &["a"])]).unwrap();
}

#[test]
fn bad_split() {
    let a = || part(0, 2, 2, &["a"]);
    assert_eq!(refused(vec![]), Reason::BadSplit);
    assert_eq!(refused(vec![a()]), Reason::BadSplit);
    assert_eq!(refused(vec![a(), part(0, 2, 2, &["b"])]), Reason::BadSplit);
    assert_eq!(refused(vec![part(1, 2, 2, &["b"]), a()]), Reason::BadSplit);
    assert_eq!(refused(vec![a(), part(1, 3, 2, &["b"])]), Reason::BadSplit);
    assert_eq!(refused(vec![a(), part(1, 2, 3, &["b"])]), Reason::BadSplit);
    assert_eq!(refused(vec![a(), part(1, 2, 2, &["b", "c"])]), Reason::BadSplit);
    assert_eq!(refused(vec![a(), Gguf::empty().parse().unwrap()]), Reason::BadSplit);
    assert_eq!(refused(vec![part(0, 2, -1, &["a"]), part(1, 2, -1, &["b"])]), Reason::BadSplit);
}

#[test]
fn a_tensor_in_two_parts() {
    assert_eq!(refused(vec![part(0, 2, 2, &["a"]), part(1, 2, 2, &["a"])]), Reason::DuplicateTensor);
}
