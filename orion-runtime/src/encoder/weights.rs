//! The tensors of a BERT encoder, by name, checked against its config.

use std::collections::HashMap;

use half::{bf16, f16};
use orion_core::{Error, Result, TensorType, WeightSource};
use orion_kernels::{
    ComputePool, EncoderBlock, EncoderMatrix, EncoderProjection, LayerNorm, PackedMatrix, SevenBitMatrix,
    quantize,
};
use sha2::{Digest as _, Sha256};

use super::Precision;
use super::config::EncoderConfig;

/// All weights.
pub(super) struct BertWeights {
    pub(super) words: Vec<f32>,     // [vocabulary, hidden]
    pub(super) positions: Vec<f32>, // [positions, hidden], the embedding of token type 0 added
    pub(super) embedding_norm: LayerNorm,
    pub(super) blocks: Vec<EncoderBlock>,
}

/// Reads tensors as f32 and remembers what it read.
struct Reader<'a> {
    source: &'a dyn WeightSource,
    index: HashMap<&'a str, usize>,
    digest: Sha256,
}

impl<'a> Reader<'a> {
    fn new(source: &'a dyn WeightSource) -> Self {
        let tensors = source.header().tensors.iter().enumerate();
        let index = tensors
            .map(|(at, tensor)| (tensor.name.strip_prefix("bert.").unwrap_or(&tensor.name), at))
            .collect();
        Self { source, index, digest: Sha256::new() }
    }

    /// The tensor of that name, if it has that shape and a type that can be read.
    fn find(&self, name: &str, shape: &[usize]) -> Result<usize> {
        let about = |error: Error| error.about(format!("tensor {name}"));
        let &at = self
            .index
            .get(name)
            .ok_or_else(|| about(Error::corrupt("the file does not hold it; is this a BERT encoder?")))?;
        let info = &self.source.header().tensors[at];
        if info.shape.len() != shape.len()
            || info.shape.iter().zip(shape).any(|(&have, &want)| have != want as u64)
        {
            let message = format!("shape {:?} contradicts config.json, which says {shape:?}", info.shape);
            return Err(about(Error::corrupt(message)));
        }
        if !matches!(info.ty, TensorType::F32 | TensorType::F16 | TensorType::BF16) {
            let message = format!("type {} is not supported by the encoder", info.ty);
            return Err(about(Error::unsupported(message)));
        }
        Ok(at)
    }

    fn read(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let about = |error: Error| error.about(format!("tensor {name}"));
        let at = self.find(name, shape)?;
        let info = &self.source.header().tensors[at];
        let bytes = orion_kernels::row_major(info, &self.source.tensor(at)?).map_err(about)?;
        let elements: usize = shape.iter().product();
        if info.ty.bytes_of(elements as u64) != Some(bytes.len() as u64) {
            return Err(about(Error::corrupt(format!("{} bytes do not fit its shape", bytes.len()))));
        }
        self.digest.update(name.as_bytes());
        self.digest.update(&*bytes);
        let values: Vec<f32> = match info.ty {
            TensorType::F32 => {
                bytes.as_chunks::<4>().0.iter().map(|&chunk| f32::from_le_bytes(chunk)).collect()
            }
            TensorType::F16 => {
                bytes.as_chunks::<2>().0.iter().map(|&chunk| f16::from_le_bytes(chunk).to_f32()).collect()
            }
            TensorType::BF16 => {
                bytes.as_chunks::<2>().0.iter().map(|&chunk| bf16::from_le_bytes(chunk).to_f32()).collect()
            }
            other => unreachable!("{other} was refused when the tensor was looked up"),
        };
        self.source.release(at);
        match values.iter().all(|value| value.is_finite()) {
            true => Ok(values),
            false => Err(about(Error::corrupt("holds NaN or infinity"))),
        }
    }

    fn norm(&mut self, name: &str, hidden: usize) -> Result<LayerNorm> {
        Ok(LayerNorm {
            weight: self.read(&format!("{name}.weight"), &[hidden])?,
            bias: self.read(&format!("{name}.bias"), &[hidden])?,
        })
    }

    fn dense(&mut self, name: &str, outputs: usize, inputs: usize) -> Result<(Vec<f32>, Vec<f32>)> {
        Ok((
            self.read(&format!("{name}.weight"), &[outputs, inputs])?,
            self.read(&format!("{name}.bias"), &[outputs])?,
        ))
    }
}

/// Names and shapes of all tensors that a config calls for.
fn expected(config: &EncoderConfig) -> Vec<(String, Vec<usize>)> {
    let (hidden, ffn) = (config.hidden, config.ffn);
    let mut all = vec![
        ("embeddings.word_embeddings.weight".to_owned(), vec![config.vocab_size, hidden]),
        ("embeddings.position_embeddings.weight".to_owned(), vec![config.positions, hidden]),
        ("embeddings.token_type_embeddings.weight".to_owned(), vec![config.token_types, hidden]),
    ];
    let mut pair = |name: String, shape: Vec<usize>| {
        let outputs = shape[0];
        all.extend([(format!("{name}.weight"), shape), (format!("{name}.bias"), vec![outputs])]);
    };
    pair("embeddings.LayerNorm".to_owned(), vec![hidden]);
    for at in 0..config.layers {
        for (part, shape) in [
            ("attention.self.query", vec![hidden, hidden]),
            ("attention.self.key", vec![hidden, hidden]),
            ("attention.self.value", vec![hidden, hidden]),
            ("attention.output.dense", vec![hidden, hidden]),
            ("attention.output.LayerNorm", vec![hidden]),
            ("intermediate.dense", vec![ffn, hidden]),
            ("output.dense", vec![hidden, ffn]),
            ("output.LayerNorm", vec![hidden]),
        ] {
            pair(format!("encoder.layer.{at}.{part}"), shape);
        }
    }
    all
}

/// Checks that the header lists every tensor the config calls for, without reading any.
pub(super) fn check(source: &dyn WeightSource, config: &EncoderConfig) -> Result<()> {
    let reader = Reader::new(source);
    expected(config).iter().try_for_each(|(name, shape)| reader.find(name, shape).map(drop))
}

/// A matrix, packed as the precision asks, and its bias.
fn projection(
    pool: &ComputePool,
    precision: Precision,
    weight: &[f32],
    bias: Vec<f32>,
) -> Result<EncoderProjection> {
    let inputs = weight.len() / bias.len();
    let ty = match precision {
        Precision::F32 => TensorType::F32,
        Precision::Int8 => TensorType::Q8_0,
        Precision::Int7 => {
            let matrix = SevenBitMatrix::quantise(inputs, weight).map_err(|error| error.about("encoder"))?;
            return Ok(EncoderProjection { matrix: EncoderMatrix::SevenBit(matrix), bias });
        }
    };
    let block = ty.block_len();
    if !inputs.is_multiple_of(block) {
        let message = format!("int8 needs widths that are multiples of {block}, this one is {inputs}");
        return Err(Error::unsupported(message).about("encoder"));
    }
    let mut bytes = Vec::new();
    quantize(ty, weight, inputs, None, &mut bytes)?;
    let matrix = PackedMatrix::pack(pool, ty, bias.len(), inputs, &bytes)?;
    Ok(EncoderProjection { matrix: EncoderMatrix::Packed(matrix), bias })
}

impl BertWeights {
    /// Reads every tensor of the first `layers` layers. Returns the weights and the digest of all bytes read.
    pub(super) fn read(
        source: &dyn WeightSource,
        config: &EncoderConfig,
        pool: &ComputePool,
        precision: Precision,
        layers: usize,
    ) -> Result<(Self, orion_core::Digest)> {
        let mut reader = Reader::new(source);
        let hidden = config.hidden;
        let words = reader.read("embeddings.word_embeddings.weight", &[config.vocab_size, hidden])?;
        let mut positions =
            reader.read("embeddings.position_embeddings.weight", &[config.positions, hidden])?;
        let types = reader.read("embeddings.token_type_embeddings.weight", &[config.token_types, hidden])?;
        for row in positions.chunks_exact_mut(hidden) {
            row.iter_mut().zip(&types).for_each(|(a, b)| *a += b);
        }
        let embedding_norm = reader.norm("embeddings.LayerNorm", hidden)?;
        let mut blocks = Vec::new();
        for at in 0..layers {
            let name = |part: &str| format!("encoder.layer.{at}.{part}");
            let (mut weight, mut bias) = (Vec::new(), Vec::new());
            for part in ["query", "key", "value"] {
                let (w, b) = reader.dense(&name(&format!("attention.self.{part}")), hidden, hidden)?;
                weight.extend(w);
                bias.extend(b);
            }
            let qkv = projection(pool, precision, &weight, bias)?;
            let mut dense = |part: &str, outputs: usize, inputs: usize| {
                let (weight, bias) = reader.dense(&name(part), outputs, inputs)?;
                projection(pool, precision, &weight, bias)
            };
            let attention_out = dense("attention.output.dense", hidden, hidden)?;
            let up = dense("intermediate.dense", config.ffn, hidden)?;
            let down = dense("output.dense", hidden, config.ffn)?;
            let attention_norm = reader.norm(&name("attention.output.LayerNorm"), hidden)?;
            let output_norm = reader.norm(&name("output.LayerNorm"), hidden)?;
            blocks.push(EncoderBlock { qkv, attention_out, attention_norm, up, down, output_norm });
        }
        let digest = orion_core::Digest(reader.digest.finalize().into());
        Ok((Self { words, positions, embedding_norm, blocks }, digest))
    }
}
