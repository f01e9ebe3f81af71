//! Limits on shapes.

use orion_core::{Result, TensorType};

use crate::reason::Reason;

/// Most elements of one tensor: 2^40, eight hundred times the largest that is known.
const MOST_ELEMENTS: u64 = 1 << 40;

/// Number of elements. Zeros count as ones against the limit, so `[0, 2^64-1]` is refused too.
pub(crate) fn elements(shape: &[u64]) -> Result<u64> {
    let bounded = shape.iter().try_fold(1u64, |product, &dim| {
        product.checked_mul(dim.max(1)).filter(|&product| product <= MOST_ELEMENTS)
    });
    match bounded {
        Some(_) => Ok(shape.iter().product()),
        None => Err(Reason::ShapeOverflow.error(format!("shape {shape:?} has more than 2^40 elements"))),
    }
}

/// Bytes of a tensor of that shape, whose rows must be whole blocks.
pub(crate) fn bytes(ty: TensorType, shape: &[u64]) -> Result<u64> {
    let elements = elements(shape)?;
    let row = shape.last().copied().unwrap_or(1);
    if !row.is_multiple_of(ty.block_len() as u64) {
        return Err(Reason::BadBlock.error(format!(
            "rows of {row} elements are no whole number of {ty} blocks of {}",
            ty.block_len()
        )));
    }
    ty.bytes_of(elements).ok_or_else(|| Reason::ShapeOverflow.error(format!("shape {shape:?} overflows")))
}
