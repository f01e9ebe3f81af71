//! Tensor types and what a tensor table says of each tensor.

use std::fmt;
use std::ops::{Deref, Range};
use std::sync::Arc;

use crate::error::{Error, Result};

macro_rules! tensor_types {
    ($($(#[$doc:meta])* $variant:ident = $ggml:literal, $name:literal, $block:literal, $bytes:literal;)*) => {
        /// How the numbers of a tensor are stored. The quantised types are ggml's, block for block.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum TensorType { $($(#[$doc])* $variant,)* }

        impl TensorType {
            /// Every type that can be read.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The type's number in GGUF files.
            #[must_use]
            pub const fn ggml_id(self) -> u32 { match self { $(Self::$variant => $ggml,)* } }

            /// The type with that number in GGUF files, if it is one that can be read.
            #[must_use]
            pub const fn from_ggml_id(id: u32) -> Option<Self> { match id { $($ggml => Some(Self::$variant),)* _ => None } }

            /// The name as llama.cpp writes it.
            #[must_use]
            pub const fn name(self) -> &'static str { match self { $(Self::$variant => $name,)* } }

            /// Elements per block; a row is a whole number of blocks.
            #[must_use]
            pub const fn block_len(self) -> usize { match self { $(Self::$variant => $block,)* } }

            /// Bytes per block.
            #[must_use]
            pub const fn block_bytes(self) -> usize { match self { $(Self::$variant => $bytes,)* } }
        }
    };
}

tensor_types! {
    /// 32-bit float.
    F32 = 0, "F32", 1, 4;
    /// IEEE half.
    F16 = 1, "F16", 1, 2;
    /// bfloat16.
    BF16 = 30, "BF16", 1, 2;
    /// 4 bits, one scale per 32.
    Q4_0 = 2, "Q4_0", 32, 18;
    /// 4 bits, scale and minimum per 32.
    Q4_1 = 3, "Q4_1", 32, 20;
    /// 5 bits, one scale per 32.
    Q5_0 = 6, "Q5_0", 32, 22;
    /// 5 bits, scale and minimum per 32.
    Q5_1 = 7, "Q5_1", 32, 24;
    /// 8 bits, one scale per 32.
    Q8_0 = 8, "Q8_0", 32, 34;
    /// 2 bits, super-blocks of 256.
    Q2K = 10, "Q2_K", 256, 84;
    /// 3 bits, super-blocks of 256.
    Q3K = 11, "Q3_K", 256, 110;
    /// 4 bits, super-blocks of 256.
    Q4K = 12, "Q4_K", 256, 144;
    /// 5 bits, super-blocks of 256.
    Q5K = 13, "Q5_K", 256, 176;
    /// 6 bits, super-blocks of 256.
    Q6K = 14, "Q6_K", 256, 210;
    /// 4 bits on a non-linear grid, one scale per 32.
    Iq4Nl = 20, "IQ4_NL", 32, 18;
    /// 4 bits on a non-linear grid, super-blocks of 256.
    Iq4Xs = 23, "IQ4_XS", 256, 136;
}

impl TensorType {
    /// The type of that name, as llama.cpp writes it, in any case.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|ty| ty.name().eq_ignore_ascii_case(name))
    }

    /// Whether it is stored in blocks with shared scales.
    #[must_use]
    pub const fn is_quantised(self) -> bool {
        self.block_len() > 1
    }

    /// Bytes of `elements` consecutive elements; `None` if they are no whole number of blocks or overflow.
    #[must_use]
    pub fn bytes_of(self, elements: u64) -> Option<u64> {
        let block = self.block_len() as u64;
        elements.is_multiple_of(block).then(|| (elements / block).checked_mul(self.block_bytes() as u64))?
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// How a tensor's blocks are arranged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum TileLayout {
    /// Row after row, as ggml and safetensors store it.
    #[default]
    RowMajor,
    /// Tiles of 16 rows, as the kernels of `orion-kernels` read them.
    Tiles16,
}

/// One line of a tensor table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// The name in the file.
    pub name: String,
    /// Outermost dimension first: `[rows, columns]`. GGUF's order is the reverse.
    pub shape: Vec<u64>,
    /// Element type.
    pub ty: TensorType,
    /// Arrangement of the blocks.
    pub layout: TileLayout,
    /// Which of the model's files holds it.
    pub file: usize,
    /// First byte, counted from the start of that file.
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u64,
}

impl TensorInfo {
    /// Number of elements; parsers have checked that it does not overflow.
    #[must_use]
    pub fn elements(&self) -> u64 {
        self.shape.iter().product()
    }

    /// The byte range within its file.
    ///
    /// # Errors
    /// [`Corrupt`](crate::ErrorKind::Corrupt) if the end does not fit the address space.
    pub fn range(&self) -> Result<Range<usize>> {
        let end = self.offset.checked_add(self.bytes).and_then(|end| usize::try_from(end).ok());
        match (usize::try_from(self.offset), end) {
            (Ok(start), Some(end)) => Ok(start..end),
            _ => {
                Err(Error::corrupt("byte range exceeds the address space")
                    .about(format!("tensor {}", self.name)))
            }
        }
    }
}

impl TensorInfo {
    /// Picks rows out of the bytes of a matrix, `[rows, columns]`.
    ///
    /// # Errors
    /// [`Unsupported`](crate::ErrorKind::Unsupported) if it is not stored row by row,
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) if there is no such row,
    /// [`Corrupt`](crate::ErrorKind::Corrupt) if `bytes` has another length than the table says.
    pub fn rows_of(&self, bytes: &[u8], rows: &[u32]) -> Result<TensorBytes> {
        let about = |error: Error| error.about(format!("tensor {}", self.name));
        let count = self.shape.first().copied().unwrap_or(0);
        if self.layout != TileLayout::RowMajor || self.shape.len() != 2 || count == 0 {
            return Err(about(Error::unsupported("is not stored row by row")));
        }
        if bytes.len() as u64 != self.bytes {
            return Err(about(Error::corrupt(format!("{} bytes, expected {}", bytes.len(), self.bytes))));
        }
        let row_bytes =
            bytes.len() / usize::try_from(count).map_err(|_| about(Error::corrupt("too many rows")))?;
        let mut picked = Vec::with_capacity(rows.len() * row_bytes);
        for &row in rows {
            let start = row as usize * row_bytes;
            let found = (u64::from(row) < count).then(|| &bytes[start..start + row_bytes]);
            picked.extend_from_slice(
                found.ok_or_else(|| about(Error::invalid(format!("row {row} of {count}"))))?,
            );
        }
        Ok(picked.into())
    }
}

/// The bytes of one tensor: owned, or a window into something larger that is shared.
#[derive(Clone)]
pub struct TensorBytes {
    owner: Arc<dyn AsRef<[u8]> + Send + Sync>,
    range: Range<usize>,
}

impl TensorBytes {
    /// A window into `owner`.
    ///
    /// # Panics
    /// If `range` lies outside the owner's bytes.
    pub fn shared(owner: Arc<dyn AsRef<[u8]> + Send + Sync>, range: Range<usize>) -> Self {
        let len = (*owner).as_ref().len();
        assert!(range.start <= range.end && range.end <= len, "window {range:?} of {len} bytes");
        Self { owner, range }
    }

    /// A window into these bytes that shares them.
    ///
    /// # Panics
    /// If `range` lies outside.
    #[must_use]
    pub fn slice(&self, range: Range<usize>) -> Self {
        let len = self.range.len();
        assert!(range.start <= range.end && range.end <= len, "window {range:?} of {len} bytes");
        let start = self.range.start;
        Self { owner: self.owner.clone(), range: start + range.start..start + range.end }
    }
}

impl From<Vec<u8>> for TensorBytes {
    fn from(bytes: Vec<u8>) -> Self {
        let range = 0..bytes.len();
        Self { owner: Arc::new(bytes), range }
    }
}

impl Deref for TensorBytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &(*self.owner).as_ref()[self.range.clone()]
    }
}

impl fmt::Debug for TensorBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TensorBytes({} bytes)", self.range.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_go_both_ways() {
        for &ty in TensorType::ALL {
            assert_eq!(TensorType::from_ggml_id(ty.ggml_id()), Some(ty));
            assert_eq!(TensorType::from_name(&ty.name().to_lowercase()), Some(ty));
        }
        // 4 and 5 were removed from ggml, 15 is an activation format, 24 to 28 are plain integers.
        for id in [4, 5, 9, 15, 24, 99, u32::MAX] {
            assert_eq!(TensorType::from_ggml_id(id), None);
        }
    }

    #[test]
    fn bytes_of_refuses_broken_blocks_and_overflow() {
        assert_eq!(TensorType::Q4_1.bytes_of(576), Some(18 * 20));
        assert_eq!(TensorType::Q4K.bytes_of(576), None);
        assert_eq!(TensorType::F32.bytes_of(u64::MAX), None);
        assert_eq!(TensorType::F32.bytes_of(0), Some(0));
    }

    #[test]
    fn rows_are_picked_in_the_order_asked_for() {
        let (ty, layout) = (TensorType::F16, TileLayout::RowMajor);
        let info =
            TensorInfo { name: "e".into(), shape: vec![3, 2], ty, layout, file: 0, offset: 0, bytes: 12 };
        let bytes: Vec<u8> = (0..12).collect();
        assert_eq!(&*info.rows_of(&bytes, &[2, 0]).unwrap(), &[8, 9, 10, 11, 0, 1, 2, 3]);
        assert!(info.rows_of(&bytes, &[3]).is_err() && info.rows_of(&bytes[1..], &[0]).is_err());
    }

    #[test]
    fn a_window_shows_its_range() {
        let window = TensorBytes::shared(Arc::new(vec![1u8, 2, 3, 4]), 1..3);
        assert_eq!(&*window, &[2, 3]);
        assert_eq!(&*TensorBytes::from(vec![7]), &[7]);
    }
}
