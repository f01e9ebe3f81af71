//! `orion-loader` alone: weights from a file and from memory. `consumer-loader MODEL`

use orion_core::{ErrorKind, ModelFormat, TensorType};
use orion_loader::{MemorySource, open};

fn main() -> orion_core::Result<()> {
    let source = open(std::env::args().nth(1).expect("consumer-loader MODEL"))?;
    let tensors = &source.header().tensors;
    assert_eq!(source.tensor(0)?.len() as u64, tensors[0].bytes);

    let memory = MemorySource::new(ModelFormat::Gguf).tensor("t", [2], TensorType::F32, vec![0; 8])?.build();
    assert_eq!(memory.tensor(0)?.len(), 8);
    assert_eq!(open("nowhere.gguf").map(|_| ()).unwrap_err().kind(), ErrorKind::NotFound);
    println!("loader: {} tensors, the first is {}", tensors.len(), tensors[0].name);
    Ok(())
}
