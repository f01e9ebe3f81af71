//! Prints what a model says of itself: `cargo run -p orion-loader --example inspect -- PATH`.
#![allow(clippy::print_stdout, reason = "printing is what it does")]

use std::collections::BTreeMap;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args_os().nth(1).ok_or("usage: inspect PATH")?;
    let source = orion_loader::open(path)?;
    let header = source.header();
    for (key, value) in &header.metadata {
        let text = format!("{value:?}");
        println!("{key}: {}", text.chars().take(100).collect::<String>());
    }
    for (name, bytes) in &header.side_files {
        println!("{name}: {} bytes", bytes.len());
    }
    let mut types: BTreeMap<&str, (usize, u64)> = BTreeMap::new();
    for (index, tensor) in header.tensors.iter().enumerate() {
        let (count, bytes) = types.entry(tensor.ty.name()).or_default();
        *count += 1;
        *bytes += source.tensor(index)?.len() as u64;
    }
    for (ty, (count, bytes)) in types {
        println!("{count} tensors of {ty}, {bytes} bytes");
    }
    Ok(())
}
