//! A folder of safetensors and side files as a weight source, whole in memory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use orion_core::{
    ModelFormat, ModelHeader, Result, TensorBytes, TensorInfo, TensorType, TileLayout, WeightSource,
};

/// Where `scripts/models.py` puts all-MiniLM-L6-v2.
pub(crate) fn minilm() -> PathBuf {
    let set = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let home = || set("HOME").expect("HOME or ORION_MODELS is set").join(".cache");
    let models = set("ORION_MODELS")
        .unwrap_or_else(|| set("XDG_CACHE_HOME").unwrap_or_else(home).join("orion/models"));
    models.join("all-MiniLM-L6-v2")
}

pub(crate) struct Folder {
    pub(crate) header: ModelHeader,
    bytes: Arc<Vec<u8>>,
}

impl Folder {
    pub(crate) fn open(path: &Path) -> Self {
        let read = |name: &str| std::fs::read(path.join(name));
        let bytes = read("model.safetensors")
            .unwrap_or_else(|error| panic!("{}: {error}; run scripts/models.py first", path.display()));
        let (prefix, metadata) =
            safetensors::SafeTensors::read_metadata(&bytes).expect("a safetensors header");
        let data = prefix + 8;
        let tensors = metadata
            .tensors()
            .into_iter()
            .map(|(name, info)| TensorInfo {
                name,
                shape: info.shape.iter().map(|&n| n as u64).collect(),
                ty: match info.dtype {
                    safetensors::Dtype::F32 => TensorType::F32,
                    safetensors::Dtype::F16 => TensorType::F16,
                    _ => TensorType::Q8_0, // position ids and the like: never read
                },
                layout: TileLayout::RowMajor,
                file: 0,
                offset: (data + info.data_offsets.0) as u64,
                bytes: (info.data_offsets.1 - info.data_offsets.0) as u64,
            })
            .collect();
        let mut header = ModelHeader::new(ModelFormat::Safetensors, BTreeMap::new(), tensors);
        for name in ["config.json", "tokenizer.json", "sentence_bert_config.json", "1_Pooling/config.json"] {
            if let Ok(bytes) = read(name) {
                header.side_files.insert(name.to_owned(), bytes.into());
            }
        }
        Self { header, bytes: Arc::new(bytes) }
    }
}

impl WeightSource for Folder {
    fn header(&self) -> &ModelHeader {
        &self.header
    }

    fn tensor(&self, index: usize) -> Result<TensorBytes> {
        Ok(TensorBytes::shared(self.bytes.clone(), self.header.tensors[index].range()?))
    }
}
