//! Quantises a model: `cargo run --release --example quantize -- IN OUT Q4_K_M`.

#![allow(clippy::print_stdout, reason = "the report is the point")]

use std::path::Path;
use std::time::Instant;

use orion_core::{Error, Result};
use orion_pipeline::{FileType, QuantizeOptions, quantize};

fn main() -> Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [input, output, name] = &arguments[..] else {
        return Err(Error::invalid("expected: IN OUT TYPE"));
    };
    let source = orion_loader::open(input)?;
    let started = Instant::now();
    let report = quantize(&*source, Path::new(output), &QuantizeOptions::new(FileType::from_name(name)?))?;
    for tensor in &report.tensors {
        let wanted = tensor.instead_of.map_or(String::new(), |ty| format!(" instead of {ty}"));
        println!(
            "{}: {} -> {}{wanted}, error {:.2e}",
            tensor.name, tensor.from, tensor.to, tensor.relative_error
        );
    }
    println!("{:.2} bits per weight in {:.2?}", report.bits_per_weight(), started.elapsed());
    Ok(())
}
