//! What every source of weights must do.

use std::collections::HashSet;

use super::at_once;
use crate::{Error, ErrorKind, TensorBytes, TensorInfo, TileLayout, WeightSource};

/// Checks a source. Every byte is read several times, so give it a small model.
///
/// Names are unique; a tensor has the bytes its row of the table says, the same ones at every call, in pieces, by rows and from
/// several threads; what is not there is an error and not a panic; an error of who reads comes back; hints change nothing.
///
/// # Panics
/// With the law that was broken.
pub fn weight_source(source: &dyn WeightSource) {
    let header = source.header();
    let mut names = HashSet::new();
    for info in &header.tensors {
        assert!(names.insert(&info.name), "two tensors are called {}", info.name);
    }
    let count = header.tensors.len();
    // Hints, one of them nonsense.
    source.expect(&(0..count).rev().collect::<Vec<_>>());
    source.expect(&[0, 0, count, usize::MAX]);
    let tensors: Vec<TensorBytes> = (0..count).map(|index| whole(source, index)).collect();
    for (index, bytes) in tensors.iter().enumerate() {
        pieces(source, index, bytes);
        rows(source, index, bytes);
    }
    for absent in [count, usize::MAX] {
        let missing = |what: &str, error: Option<Error>| match error.map(|error| error.kind()) {
            Some(ErrorKind::NotFound | ErrorKind::InvalidInput) => {}
            other => panic!("{what}({absent}) of {count} tensors: {other:?}, expected that it is not found"),
        };
        missing("tensor", source.tensor(absent).err());
        missing("read", source.read(absent, 16, &mut |_| Ok(())).err());
        missing("rows", source.rows(absent, &[0]).err());
        assert!(
            !matches!(source.read_at(absent, 0, &mut [0], true), Ok(true)),
            "read_at({absent}) of {count}"
        );
        source.release(absent);
    }
    at_once(|| {
        for (index, bytes) in tensors.iter().enumerate() {
            assert_eq!(**bytes, *whole(source, index), "tensor {index} changed from one call to the next");
        }
    });
    if count > 1 {
        source.release(0);
        assert_eq!(*tensors[1], *whole(source, 1), "letting go of tensor 0 changed tensor 1");
    }
    assert_eq!(source.header(), header, "the header changed");
}

fn whole(source: &dyn WeightSource, index: usize) -> TensorBytes {
    let info = &source.header().tensors[index];
    let bytes = source.tensor(index).unwrap_or_else(|error| panic!("tensor {}: {error}", info.name));
    assert_eq!(bytes.len() as u64, info.bytes, "bytes of tensor {}, as its table says", info.name);
    if info.layout == TileLayout::RowMajor {
        let row = info.ty.bytes_of(info.shape.last().copied().unwrap_or(1));
        let rows: u64 = info.shape.iter().rev().skip(1).product();
        assert_eq!(row.map(|row| row * rows), Some(info.bytes), "shape and bytes of tensor {}", info.name);
    }
    bytes
}

fn pieces(source: &dyn WeightSource, index: usize, bytes: &[u8]) {
    let name = &source.header().tensors[index].name;
    for size in [0, bytes.len() / 3 + 1, 4096, usize::MAX] {
        if size == 0 && bytes.len() > 4096 {
            continue; // it means 1: too many calls
        }
        let (mut joined, mut short) = (Vec::new(), false);
        let read = source.read(index, size, &mut |piece| {
            assert!(!short, "a piece of tensor {name} before the last is shorter than {size} bytes");
            assert!(!piece.is_empty() && piece.len() <= size.max(1), "a piece of {} bytes", piece.len());
            short = piece.len() < size;
            joined.extend_from_slice(piece);
            Ok(())
        });
        read.unwrap_or_else(|error| panic!("tensor {name} in pieces of {size}: {error}"));
        assert!(joined == bytes, "tensor {name} in pieces of {size} bytes is not the tensor");
    }
    if !bytes.is_empty() {
        let mut calls = 0;
        let stopped = source.read(index, 8, &mut |_| {
            calls += 1;
            Err(Error::new(ErrorKind::Cancelled, "enough"))
        });
        let kind = stopped.err().map(|error| error.kind());
        assert_eq!((kind, calls), (Some(ErrorKind::Cancelled), 1), "an error of who reads ends it");
    }
    for from in [0, bytes.len() / 2, bytes.len()] {
        let mut out = vec![0; bytes.len() - from];
        for wait in [false, true] {
            let read = source.read_at(index, from as u64, &mut out, wait);
            let read = read.unwrap_or_else(|error| panic!("tensor {name} from {from} on: {error}"));
            assert!(!read || out == bytes[from..], "tensor {name} from {from} on is not the tensor");
        }
        for beyond in [from as u64 + 1, u64::MAX] {
            let read = source.read_at(index, beyond, &mut vec![0; out.len() + 1], true);
            assert!(!matches!(read, Ok(true)), "bytes beyond tensor {name}");
        }
    }
}

fn rows(source: &dyn WeightSource, index: usize, bytes: &[u8]) {
    let info: &TensorInfo = &source.header().tensors[index];
    let [count, _] = info.shape[..] else { return };
    let Ok(count) = u32::try_from(count) else { return };
    if count == 0 {
        return;
    }
    if info.layout != TileLayout::RowMajor {
        assert!(source.rows(index, &[0]).is_err(), "rows of {}, which is not stored by rows", info.name);
        return;
    }
    let wanted = [count - 1, 0, count - 1];
    let picked = source.rows(index, &wanted).unwrap_or_else(|error| panic!("rows of {}: {error}", info.name));
    let width = bytes.len() / count as usize;
    let expected: Vec<u8> =
        wanted.iter().flat_map(|&row| &bytes[row as usize * width..][..width]).copied().collect();
    assert!(*picked == *expected, "rows {wanted:?} of tensor {} are not its rows", info.name);
    for absent in [count, u32::MAX] {
        assert!(source.rows(index, &[0, absent]).is_err(), "row {absent} of {count} of {}", info.name);
    }
}
