//! Single rows of a matrix: the prompt needs few of an embedding.

use std::ops::Range;

use orion_core::{Error, Result, TensorInfo, TileLayout};

/// Rows that lie closer than this are read in one go.
const NEAR: u64 = 16 << 10;
/// Most pieces that are asked for one by one.
const MOST_PIECES: usize = 64;

/// The byte range of each row within its file, in the order asked for.
///
/// # Errors
/// If the tensor is not stored row by row, or has no such row.
pub(crate) fn ranges(info: &TensorInfo, rows: &[u32]) -> Result<Vec<Range<u64>>> {
    let about = |error: Error| error.about(format!("tensor {}", info.name));
    let count = info.shape.first().copied().unwrap_or(0);
    if info.layout != TileLayout::RowMajor || info.shape.len() != 2 || count == 0 {
        return Err(about(Error::unsupported("is not stored row by row")));
    }
    let bytes = info.bytes / count;
    rows.iter()
        .map(|&row| match u64::from(row) < count {
            true => Ok(info.offset + u64::from(row) * bytes..info.offset + (u64::from(row) + 1) * bytes),
            false => Err(about(Error::invalid(format!("row {row} of {count}")))),
        })
        .collect()
}

/// The ranges in ascending order, near ones joined, so that there are not too many.
pub(crate) fn joined(ranges: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut sorted = ranges.to_vec();
    sorted.sort_by_key(|range| range.start);
    let mut near = NEAR;
    loop {
        let mut joined: Vec<Range<u64>> = Vec::new();
        for range in &sorted {
            match joined.last_mut() {
                Some(last) if range.start <= last.end.saturating_add(near) => {
                    last.end = last.end.max(range.end)
                }
                _ => joined.push(range.clone()),
            }
        }
        if joined.len() <= MOST_PIECES {
            return joined;
        }
        near *= 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use orion_core::TensorType;

    fn matrix() -> TensorInfo {
        let (ty, layout) = (TensorType::Q4_1, TileLayout::RowMajor);
        TensorInfo {
            name: "e".into(),
            shape: vec![1000, 64],
            ty,
            layout,
            file: 0,
            offset: 100,
            bytes: 40_000,
        }
    }

    #[test]
    fn rows_are_where_the_shape_says() {
        assert_eq!(ranges(&matrix(), &[2, 0]).unwrap(), [180..220, 100..140]);
        assert!(ranges(&matrix(), &[1000]).unwrap_err().to_string().contains("row 1000 of 1000"));
        assert!(ranges(&TensorInfo { shape: vec![64], ..matrix() }, &[0]).is_err());
    }

    #[test]
    fn near_rows_are_read_together_and_far_ones_apart() {
        assert_eq!(joined(&[100_000..100_040, 40..80, 0..40]), [0..80, 100_000..100_040]);
        let far: Vec<_> = (0..1000u64).map(|n| n * 100_000..n * 100_000 + 40).collect();
        let pieces = joined(&far);
        assert!(pieces.len() <= MOST_PIECES);
        assert!(
            far.iter().all(|row| pieces.iter().any(|piece| piece.start <= row.start && row.end <= piece.end))
        );
    }
}
