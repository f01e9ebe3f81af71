//! Block codecs against files made by ggml and by the Python package `gguf` (`goldens/make_blocks.py`).

use std::path::PathBuf;

use orion_core::{ErrorKind, TensorType};
use orion_kernels::{dequantize, quantize};

/// The committed goldens, or a larger set that the same script made elsewhere.
fn golden(file: &str) -> Vec<u8> {
    let committed = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/goldens");
    let dir =
        std::env::var_os("ORION_KERNELS_GOLDENS").map_or_else(|| PathBuf::from(committed), PathBuf::from);
    std::fs::read(dir.join(file)).expect("the golden file is readable")
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, n: usize) -> &'a [u8] {
        let (head, tail) = self.0.split_at(n);
        self.0 = tail;
        head
    }
    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.bytes(4).as_chunks().0[0])
    }
    fn floats(&mut self, n: usize) -> Vec<f32> {
        self.bytes(4 * n).as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    }
    fn ty(&mut self) -> TensorType {
        TensorType::from_ggml_id(self.u32()).expect("a type that can be read")
    }
}

/// Equal bits; a NaN equals any NaN, since which payload survives a sum of two is not defined.
fn same(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()
}

#[test]
fn decoding_gives_the_bits_that_ggml_gives() {
    let file = golden("decode.bin");
    let mut reader = Reader(&file);
    let mut seen = Vec::new();
    while !reader.0.is_empty() {
        let (ty, blocks) = (reader.ty(), reader.u32() as usize);
        let bytes = reader.bytes(blocks * ty.block_bytes());
        let expected = reader.floats(blocks * ty.block_len());
        let mut out = vec![f32::NAN; expected.len()];
        dequantize(ty, bytes, &mut out).unwrap();
        for (i, (&ours, &ggml)) in out.iter().zip(&expected).enumerate() {
            let block = i / ty.block_len();
            assert!(
                same(ours, ggml),
                "{ty} block {block} element {}: {ours} is not {ggml}",
                i % ty.block_len()
            );
        }
        seen.push(ty);
    }
    seen.sort_unstable();
    assert_eq!(seen, {
        let mut all = TensorType::ALL.to_vec();
        all.sort_unstable();
        all
    });
}

#[test]
fn encoding_gives_the_bytes_of_the_reference_quantiser() {
    let file = golden("encode.bin");
    let mut reader = Reader(&file);
    let (rows, columns) = (reader.u32() as usize, reader.u32() as usize);
    let x = reader.floats(rows * columns);
    let importances = reader.floats(columns);
    let mut failures = Vec::new();
    let mut seen = 0;
    while !reader.0.is_empty() {
        let (ty, weighted, len) = (reader.ty(), reader.u32() != 0, reader.u32() as usize);
        let expected = reader.bytes(len);
        let mut out = Vec::new();
        quantize(ty, &x, columns, weighted.then_some(&importances), &mut out).unwrap();
        assert_eq!(out.len(), len, "{ty}");
        let blocks = out.chunks(ty.block_bytes()).zip(expected.chunks(ty.block_bytes()));
        let different: Vec<_> = blocks.enumerate().filter(|(_, (a, b))| a != b).collect();
        if let Some((block, (ours, ggml))) = different.first() {
            let count = different.len();
            let row = block * ty.block_len() / columns;
            failures.push(format!(
                "{ty} weighted {weighted}: {count} of {} blocks, first {block} in row {row}:\n  {ours:02x?}\n  {ggml:02x?}",
                len / ty.block_bytes()
            ));
        }
        seen += 1;
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert_eq!(seen, 2 * TensorType::ALL.iter().filter(|ty| columns % ty.block_len() == 0).count());
}

#[test]
fn lengths_that_do_not_match_are_refused() {
    for &ty in TensorType::ALL {
        let bytes = vec![0; ty.block_bytes()];
        let mut out = vec![0.0; ty.block_len()];
        assert!(dequantize(ty, &bytes, &mut out).is_ok());
        assert!(dequantize(ty, &[], &mut []).is_ok());
        for (bytes, len) in [(&bytes[1..], ty.block_len()), (&bytes[..], 2 * ty.block_len()), (&bytes[..], 0)]
        {
            let error = dequantize(ty, bytes, &mut vec![0.0; len]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{ty}: {error}");
        }
        if ty.block_len() > 1 {
            let error = dequantize(ty, &bytes, &mut out[1..]).unwrap_err();
            assert!(error.to_string().contains("whole number"), "{error}");
        }
    }
}
