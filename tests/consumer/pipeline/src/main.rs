//! `orion-pipeline` alone: a model of this program's own is quantised.

use orion_core::{
    Error, ModelFormat, ModelHeader, Result, TensorBytes, TensorInfo, TensorType, TileLayout, WeightSource,
};
use orion_pipeline::{FileType, QuantizeOptions, quantize};

/// One matrix of a sine.
struct Sine(ModelHeader);

impl WeightSource for Sine {
    fn header(&self) -> &ModelHeader {
        &self.0
    }

    fn tensor(&self, index: usize) -> Result<TensorBytes> {
        let info = self.0.tensors.get(index).ok_or_else(|| Error::invalid(format!("no tensor {index}")))?;
        let values = (0..info.elements()).flat_map(|at| ((at as f32).sin() * 0.1).to_le_bytes());
        Ok(values.collect::<Vec<u8>>().into())
    }
}

fn main() -> Result<()> {
    let matrix = TensorInfo {
        name: "blk.0.attn_q.weight".into(),
        shape: vec![4, 256],
        ty: TensorType::F32,
        layout: TileLayout::RowMajor,
        file: 0,
        offset: 0,
        bytes: 4 * 4 * 256,
    };
    let source = Sine(ModelHeader::new(ModelFormat::Gguf, Default::default(), vec![matrix]));
    let path = std::env::temp_dir().join(format!("consumer-pipeline-{}.gguf", std::process::id()));
    let report = quantize(&source, &path, &QuantizeOptions::new(FileType::from_name("Q4_K_M")?))?;
    std::fs::remove_file(&path).map_err(|error| Error::io(error, path.display().to_string()))?;
    assert_eq!(report.tensors[0].to, TensorType::Q4K);
    println!("pipeline: {:.1} bits per weight", report.bits_per_weight());
    Ok(())
}
