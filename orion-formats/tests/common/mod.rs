//! Builds files byte by byte, right or wrong.
#![allow(dead_code, reason = "each test binary uses its part")]

use orion_core::{Error, Result};
use orion_formats::Reason;
use orion_formats::gguf::{GgufHeader, parse};

pub(crate) const U8: u32 = 0;
pub(crate) const I8: u32 = 1;
pub(crate) const U32: u32 = 4;
pub(crate) const I32: u32 = 5;
pub(crate) const F32: u32 = 6;
pub(crate) const BOOL: u32 = 7;
pub(crate) const STRING: u32 = 8;
pub(crate) const ARRAY: u32 = 9;

/// A GGUF file in pieces; every count, length and offset can be a lie.
#[derive(Clone)]
pub(crate) struct Gguf {
    pub(crate) magic: [u8; 4],
    pub(crate) version: u32,
    pub(crate) tensor_count: Option<u64>,
    pub(crate) key_count: Option<u64>,
    pub(crate) keys: Vec<Vec<u8>>,
    pub(crate) tensors: Vec<Vec<u8>>,
    pub(crate) alignment: usize,
    pub(crate) data: Vec<u8>,
}

pub(crate) fn text(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u64).to_le_bytes()[..], bytes].concat()
}

pub(crate) fn key(name: &str, ty: u32, value: &[u8]) -> Vec<u8> {
    [&text(name.as_bytes())[..], &ty.to_le_bytes(), value].concat()
}

pub(crate) fn array(ty: u32, len: u64, elements: &[u8]) -> Vec<u8> {
    [&ty.to_le_bytes()[..], &len.to_le_bytes(), elements].concat()
}

pub(crate) fn strings(texts: &[&str]) -> Vec<u8> {
    let elements: Vec<u8> = texts.iter().flat_map(|t| text(t.as_bytes())).collect();
    array(STRING, texts.len() as u64, &elements)
}

/// A line of the tensor table, dimensions in GGUF's order.
pub(crate) fn tensor(name: &[u8], dims: &[u64], ty: u32, offset: u64) -> Vec<u8> {
    let mut line = text(name);
    line.extend((dims.len() as u32).to_le_bytes());
    dims.iter().for_each(|dim| line.extend(dim.to_le_bytes()));
    line.extend(ty.to_le_bytes());
    line.extend(offset.to_le_bytes());
    line
}

impl Gguf {
    pub(crate) fn empty() -> Self {
        Self {
            magic: *b"GGUF",
            version: 3,
            tensor_count: None,
            key_count: None,
            keys: Vec::new(),
            tensors: Vec::new(),
            alignment: 32,
            data: Vec::new(),
        }
    }

    pub(crate) fn key(mut self, name: &str, ty: u32, value: &[u8]) -> Self {
        self.keys.push(key(name, ty, value));
        self
    }

    pub(crate) fn u32(self, name: &str, value: u32) -> Self {
        self.key(name, U32, &value.to_le_bytes())
    }

    pub(crate) fn raw_key(mut self, bytes: &[u8]) -> Self {
        self.keys.push(bytes.to_vec());
        self
    }

    pub(crate) fn tensor(mut self, name: &[u8], dims: &[u64], ty: u32, offset: u64) -> Self {
        self.tensors.push(tensor(name, dims, ty, offset));
        self
    }

    pub(crate) fn raw_tensor(mut self, bytes: &[u8]) -> Self {
        self.tensors.push(bytes.to_vec());
        self
    }

    pub(crate) fn data(mut self, len: usize) -> Self {
        self.data = (0..len).map(|i| i as u8).collect();
        self
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut file = self.magic.to_vec();
        file.extend(self.version.to_le_bytes());
        file.extend(self.tensor_count.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        file.extend(self.key_count.unwrap_or(self.keys.len() as u64).to_le_bytes());
        self.keys.iter().chain(&self.tensors).for_each(|piece| file.extend(piece));
        if !self.tensors.is_empty() {
            file.resize(file.len().next_multiple_of(self.alignment), 0);
        }
        file.extend(&self.data);
        file
    }

    pub(crate) fn parse(&self) -> Result<GgufHeader> {
        let bytes = self.bytes();
        parse(&bytes, bytes.len() as u64)
    }

    pub(crate) fn refused(&self) -> Reason {
        reason(&self.parse().unwrap_err())
    }
}

pub(crate) fn reason(error: &Error) -> Reason {
    Reason::of(error).unwrap_or_else(|| panic!("{error:?} carries no reason"))
}

/// A file of about 2 KB with every value type and tensors of several types.
pub(crate) fn sample() -> Gguf {
    let tokens: Vec<String> = (0..40).map(|i| format!("token{i}")).collect();
    let tokens: Vec<&str> = tokens.iter().map(String::as_str).collect();
    Gguf::empty()
        .key("general.architecture", STRING, &text(b"llama"))
        .u32("llama.block_count", 2)
        .u32("llama.embedding_length", 64)
        .u32("llama.attention.head_count", 4)
        .u32("llama.attention.head_count_kv", 2)
        .key("llama.rope.freq_base", F32, &10_000f32.to_le_bytes())
        .key("tokenizer.ggml.tokens", ARRAY, &strings(&tokens))
        .u32("tokenizer.ggml.bos_token_id", 1)
        .key("flag", BOOL, &[1])
        .key("nested", ARRAY, &array(ARRAY, 2, &[array(U8, 3, b"abc"), array(I8, 1, b"d")].concat()))
        .tensor(b"token_embd.weight", &[64, 4], 8, 0)
        .tensor(b"blk.0.attn_norm.weight", &[64], 0, 288)
        .tensor(b"output_norm.weight", &[64], 0, 544)
        .data(800)
}
