//! Weights in the layout the kernels read: tiles of 16 rows.
//!
//! A tile holds 16 rows of a matrix, block after block along the columns, each block with its quants and scales
//! together, so that a product reads one ascending stream. Within a block four columns of a row stand together and
//! the 16 rows follow each other (64 bytes): one vector of weights meets one broadcast of four activations, there is
//! nothing to add across lanes, and both AVX2 (two halves) and 512-bit dot products can read it. Quants and scales
//! are those of the source format, bit for bit; only their order changes, and the 6-bit scales of Q4_K, Q5_K and
//! Q3_K take a byte each (2.3 to 3.6 % more).

mod pack;
mod restore;
mod unpack;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use orion_core::{Error, Result, TensorBytes, TensorInfo, TensorType, TileLayout};

use crate::aligned::AlignedBuf;
use crate::arena::Arena;
use crate::isa::Isa;
use crate::pool::ComputePool;

pub(crate) use unpack::CHUNK;
pub use unpack::Panel;

/// Rows per tile.
pub const TILE_ROWS: usize = 16;

/// How the blocks of one type lie in a tile. Lengths in bytes, for all 16 rows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BlockShape {
    /// Columns per block.
    pub(crate) cols: usize,
    /// Quants (all bit planes).
    pub(crate) quants: usize,
    /// Integer scales and minima.
    pub(crate) scales: usize,
    /// Scale of the block, and its minimum if it has one, as halves.
    pub(crate) floats: usize,
}

impl BlockShape {
    pub(crate) const fn bytes(self) -> usize {
        self.quants + self.scales + self.floats
    }
}

/// The shape of a type's blocks, if there are kernels for it.
pub(crate) const fn block_shape(ty: TensorType) -> Option<BlockShape> {
    let (cols, quants, scales, floats) = match ty {
        TensorType::F32 => (1, 64, 0, 0),
        TensorType::F16 | TensorType::BF16 => (1, 32, 0, 0),
        TensorType::Q4_0 => (32, 256, 0, 32),
        TensorType::Q4_1 => (32, 256, 0, 64),
        TensorType::Q5_0 => (32, 256 + 64, 0, 32),
        TensorType::Q5_1 => (32, 256 + 64, 0, 64),
        TensorType::Q8_0 => (32, 512, 0, 32),
        TensorType::Q2K => (256, 1024, 256, 64),
        TensorType::Q3K => (256, 1024 + 512, 256, 32),
        TensorType::Q4K => (256, 2048, 256, 64),
        TensorType::Q5K => (256, 2048 + 512, 256, 64),
        TensorType::Q6K => (256, 2048 + 1024, 256, 32),
        _ => return None,
    };
    Some(BlockShape { cols, quants, scales, floats })
}

#[derive(Clone)]
enum Storage {
    Owned(Arc<AlignedBuf<u8>>),
    Shared(TensorBytes),
}

/// A matrix of weights, `[rows, cols]`, packed into tiles. Cloning shares the bytes.
#[derive(Clone)]
pub struct PackedMatrix {
    ty: TensorType,
    shape: BlockShape,
    rows: usize,
    cols: usize,
    tile_bytes: usize,
    data: Storage,
}

impl PackedMatrix {
    /// Whether matrices of that type can be packed.
    #[must_use]
    pub fn supports(ty: TensorType) -> bool {
        block_shape(ty).is_some()
    }

    /// Bytes that a packed matrix takes.
    ///
    /// # Errors
    /// [`Unsupported`](orion_core::ErrorKind::Unsupported) for a type without kernels,
    /// [`Corrupt`](orion_core::ErrorKind::Corrupt) if a row is no whole number of blocks or the size overflows.
    pub fn packed_bytes(ty: TensorType, rows: usize, cols: usize) -> Result<usize> {
        let (_, tile_bytes) = Self::geometry(ty, cols)?;
        tile_bytes
            .checked_mul(rows.div_ceil(TILE_ROWS))
            .ok_or_else(|| Error::corrupt("matrix size overflows"))
    }

    fn geometry(ty: TensorType, cols: usize) -> Result<(BlockShape, usize)> {
        let shape = block_shape(ty)
            .ok_or_else(|| Error::unsupported(format!("there are no matrix kernels for type {ty}")))?;
        if !cols.is_multiple_of(shape.cols) {
            return Err(Error::corrupt(format!("rows of {cols} columns are no whole number of {ty} blocks")));
        }
        let tile_bytes = (cols / shape.cols)
            .checked_mul(shape.bytes())
            .and_then(|bytes| bytes.checked_next_multiple_of(64))
            .ok_or_else(|| Error::corrupt("matrix size overflows"))?;
        Ok((shape, tile_bytes))
    }

    /// Packs a row-major matrix as it stands in model files. The work is shared out over the pool.
    ///
    /// # Errors
    /// As [`packed_bytes`](Self::packed_bytes); [`Corrupt`](orion_core::ErrorKind::Corrupt) too if `bytes` has
    /// another length than the shape asks for; what [`ComputePool::run`] returns.
    pub fn pack(pool: &ComputePool, ty: TensorType, rows: usize, cols: usize, bytes: &[u8]) -> Result<Self> {
        let mut packer = Packer::new(ty, rows, cols)?;
        packer.push(pool, bytes)?;
        packer.finish()
    }

    /// A matrix that is packed already, for instance in a mapped shard.
    ///
    /// # Errors
    /// As [`packed_bytes`](Self::packed_bytes); [`Corrupt`](orion_core::ErrorKind::Corrupt) too if the bytes have
    /// the wrong length or do not start on a 64-byte boundary.
    pub fn from_packed(ty: TensorType, rows: usize, cols: usize, bytes: TensorBytes) -> Result<Self> {
        let (shape, tile_bytes) = Self::geometry(ty, cols)?;
        let total = Self::packed_bytes(ty, rows, cols)?;
        if bytes.len() != total {
            let message =
                format!("a packed {ty} matrix of {rows} x {cols} takes {total} bytes, got {}", bytes.len());
            return Err(Error::corrupt(message));
        }
        if !bytes.as_ptr().addr().is_multiple_of(64) {
            return Err(Error::corrupt("a packed matrix must start on a 64-byte boundary"));
        }
        Ok(Self { ty, shape, rows, cols, tile_bytes, data: Storage::Shared(bytes) })
    }

    /// The matrix in the tensor's bytes, in whichever layout the tensor has: tiles are taken as they are, copied only
    /// if they do not start on a cache line; rows are packed.
    ///
    /// `rows` are the rows of the tensor that make up the matrix.
    ///
    /// # Errors
    /// As [`pack`](Self::pack) and [`from_packed`](Self::from_packed).
    pub fn from_tensor(
        pool: &ComputePool,
        info: &TensorInfo,
        bytes: &TensorBytes,
        rows: Range<usize>,
    ) -> Result<Self> {
        let (all, cols) = rows_and_columns(info)?;
        if rows.start > rows.end || rows.end > all {
            return Err(Error::corrupt(format!("rows {rows:?} of {all}")));
        }
        let (_, tile_bytes) = Self::geometry(info.ty, cols)?;
        let whole_tiles =
            rows.start.is_multiple_of(TILE_ROWS) && (rows.end.is_multiple_of(TILE_ROWS) || rows.end == all);
        if info.layout == TileLayout::Tiles16
            && whole_tiles
            && bytes.len() == Self::packed_bytes(info.ty, all, cols)?
        {
            let range = rows.start / TILE_ROWS * tile_bytes..rows.end.div_ceil(TILE_ROWS) * tile_bytes;
            let mut tiles = bytes.slice(range);
            if !tiles.as_ptr().addr().is_multiple_of(64) {
                let mut aligned = AlignedBuf::<u8>::zeroed(tiles.len());
                aligned.copy_from_slice(&tiles);
                let len = aligned.len();
                tiles = TensorBytes::shared(Arc::new(aligned), 0..len);
            }
            return Self::from_packed(info.ty, rows.len(), cols, tiles);
        }
        let bytes = row_major(info, bytes)?;
        let row_bytes = cols / info.ty.block_len() * info.ty.block_bytes();
        let range = rows.start * row_bytes..rows.end * row_bytes;
        let bytes = bytes.get(range).ok_or_else(|| Error::corrupt("is shorter than its shape says"))?;
        Self::pack(pool, info.ty, rows.len(), cols, bytes)
    }

    /// The type whose quants and scales it holds.
    #[must_use]
    pub fn ty(&self) -> TensorType {
        self.ty
    }

    /// Number of rows (outputs).
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns (inputs).
    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Number of tiles; the last may be padded with zero rows.
    #[must_use]
    pub fn tiles(&self) -> usize {
        self.rows.div_ceil(TILE_ROWS)
    }

    /// The packed bytes, as [`from_packed`](Self::from_packed) takes them.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        match &self.data {
            Storage::Owned(data) => data,
            Storage::Shared(data) => data,
        }
    }

    /// [`as_bytes`](Self::as_bytes), shared.
    #[must_use]
    pub fn into_bytes(self) -> TensorBytes {
        match self.data {
            Storage::Owned(data) => {
                let len = data.len();
                TensorBytes::shared(data, 0..len)
            }
            Storage::Shared(data) => data,
        }
    }

    pub(crate) fn shape(&self) -> BlockShape {
        self.shape
    }

    pub(crate) fn tiles_bytes(&self, tiles: Range<usize>) -> &[u8] {
        &self.as_bytes()[tiles.start * self.tile_bytes..tiles.end * self.tile_bytes]
    }

    pub(crate) fn tile(&self, tile: usize) -> &[u8] {
        &self.as_bytes()[tile * self.tile_bytes..][..self.tile_bytes]
    }

    /// Writes row `row` as f32.
    ///
    /// # Errors
    /// [`InvalidInput`](orion_core::ErrorKind::InvalidInput) if there is no such row or `out` has another length
    /// than the row.
    pub fn row(&self, isa: Isa, row: usize, panel: &mut Panel, out: &mut [f32]) -> Result<()> {
        if row >= self.rows || out.len() != self.cols {
            return Err(Error::invalid(format!(
                "row {row} into {} values, of a matrix of {} x {}",
                out.len(),
                self.rows,
                self.cols
            )));
        }
        self.gather(isa, row, panel, out);
        Ok(())
    }

    /// [`row`](Self::row) with the arguments checked.
    pub(crate) fn gather(&self, isa: Isa, row: usize, panel: &mut Panel, out: &mut [f32]) {
        let (tile, lane) = (row / TILE_ROWS, row % TILE_ROWS);
        for start in (0..self.cols).step_by(CHUNK) {
            let cols = CHUNK.min(self.cols - start);
            panel.fill(isa, self, tile, start, cols);
            panel.read_row(self, lane, &mut out[start..start + cols]);
        }
    }
}

/// Packs a matrix that comes in pieces, so that its bytes need not be held twice.
pub struct Packer {
    matrix: PackedMatrix,
    data: AlignedBuf<u8>,
    row_bytes: usize,
    /// Bytes that have come.
    taken: usize,
}

/// Bytes of a piece that keep all threads busy and stay in the caches.
const PIECE: usize = 2 << 20;

impl Packer {
    /// A packer for a matrix of `rows` by `cols`.
    ///
    /// # Errors
    /// As [`PackedMatrix::packed_bytes`].
    pub fn new(ty: TensorType, rows: usize, cols: usize) -> Result<Self> {
        Self::within(ty, rows, cols, AlignedBuf::zeroed)
    }

    /// A packer whose matrix lies beside those of the same arena.
    ///
    /// # Errors
    /// As [`PackedMatrix::packed_bytes`].
    pub fn new_in(arena: &Arena, ty: TensorType, rows: usize, cols: usize) -> Result<Self> {
        Self::within(ty, rows, cols, |len| arena.zeroed(len))
    }

    fn within(
        ty: TensorType,
        rows: usize,
        cols: usize,
        zeroed: impl FnOnce(usize) -> AlignedBuf<u8>,
    ) -> Result<Self> {
        let (shape, tile_bytes) = PackedMatrix::geometry(ty, cols)?;
        let data = zeroed(PackedMatrix::packed_bytes(ty, rows, cols)?);
        let row_bytes = cols / ty.block_len() * ty.block_bytes();
        let none = Storage::Owned(Arc::default());
        let matrix = PackedMatrix { ty, shape, rows, cols, tile_bytes, data: none };
        Ok(Self { matrix, data, row_bytes, taken: 0 })
    }

    /// The bytes all pieces but the last should have: whole tiles, about two megabytes.
    #[must_use]
    pub fn piece(&self) -> usize {
        let tile = (self.row_bytes * TILE_ROWS).max(1);
        PIECE.div_ceil(tile) * tile
    }

    /// Packs the bytes that follow.
    ///
    /// # Errors
    /// [`Corrupt`](orion_core::ErrorKind::Corrupt) if they are more than the matrix has or follow a piece that was no
    /// whole number of tiles; what [`ComputePool::run`] returns.
    pub fn push(&mut self, pool: &ComputePool, bytes: &[u8]) -> Result<()> {
        let PackedMatrix { ty, rows, tile_bytes, .. } = self.matrix;
        let (whole, tile) = (self.row_bytes.checked_mul(rows), self.row_bytes * TILE_ROWS);
        let end = self.taken + bytes.len();
        if whole.is_none_or(|whole| end > whole) || (tile > 0 && !self.taken.is_multiple_of(tile)) {
            return Err(self.wrong(end));
        }
        if let Some(first) = self.taken.checked_div(tile) {
            let to = &mut self.data[first * tile_bytes..];
            pack::pack(pool, ty, tile_bytes, self.row_bytes, bytes, to)?;
        }
        self.taken = end;
        Ok(())
    }

    /// Packs on as far as `read` fills in the bytes from an offset on; each thread reads a part and packs it while that is in
    /// its cache. See [`rest`](Self::rest) for how far it came.
    ///
    /// # Errors
    /// [`Corrupt`](orion_core::ErrorKind::Corrupt) after a piece that was no whole number of tiles; what
    /// [`ComputePool::run`] returns.
    pub fn fill(&mut self, pool: &ComputePool, read: &(dyn Fn(u64, &mut [u8]) -> bool + Sync)) -> Result<()> {
        let PackedMatrix { ty, rows, tile_bytes, .. } = self.matrix;
        let row_bytes = self.row_bytes;
        if self.rest().is_empty() {
            return Ok(());
        }
        if !self.taken.is_multiple_of(row_bytes * TILE_ROWS) {
            return Err(self.wrong(self.taken));
        }
        let first = self.taken / row_bytes;
        let packed = pack::pack_from(pool, ty, tile_bytes, [first, rows, row_bytes], read, &mut self.data)?;
        self.taken = packed * row_bytes;
        Ok(())
    }

    /// The bytes that are still to come.
    #[must_use]
    pub fn rest(&self) -> Range<usize> {
        self.taken..self.row_bytes * self.matrix.rows
    }

    /// The bytes a thread reads at a time in [`fill`](Self::fill).
    #[must_use]
    pub fn part(&self, pool: &ComputePool) -> usize {
        pack::part(pool, self.matrix.rows, self.row_bytes)
    }

    /// The packed matrix.
    ///
    /// # Errors
    /// [`Corrupt`](orion_core::ErrorKind::Corrupt) if fewer bytes have come than the matrix has.
    pub fn finish(self) -> Result<PackedMatrix> {
        if self.row_bytes.checked_mul(self.matrix.rows) != Some(self.taken) {
            return Err(self.wrong(self.taken));
        }
        Ok(PackedMatrix { data: Storage::Owned(Arc::new(self.data)), ..self.matrix })
    }

    fn wrong(&self, got: usize) -> Error {
        let PackedMatrix { ty, rows, cols, .. } = self.matrix;
        let row_bytes = self.row_bytes;
        Error::corrupt(format!(
            "a {ty} matrix of {rows} x {cols} takes {rows} x {row_bytes} bytes, got {got}"
        ))
    }
}

impl fmt::Debug for Packer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Packer({:?}, {} bytes taken)", self.matrix, self.taken)
    }
}

/// Rows and columns of a tensor seen as one matrix.
fn rows_and_columns(info: &TensorInfo) -> Result<(usize, usize)> {
    let overflow = || Error::corrupt("shape exceeds the address space");
    let cols = usize::try_from(info.shape.last().copied().unwrap_or(1)).map_err(|_| overflow())?;
    let rows = info
        .shape
        .iter()
        .rev()
        .skip(1)
        .try_fold(1usize, |rows, &dim| usize::try_from(dim).ok().and_then(|dim| rows.checked_mul(dim)));
    Ok((rows.ok_or_else(overflow)?, cols))
}

/// The bytes of a tensor, row after row: as they are, or restored from tiles bit for bit.
///
/// # Errors
/// [`Corrupt`](orion_core::ErrorKind::Corrupt) if tiles have another length than shape and type ask for,
/// [`Unsupported`](orion_core::ErrorKind::Unsupported) for a layout or type that is never packed.
pub fn row_major(info: &TensorInfo, bytes: &TensorBytes) -> Result<TensorBytes> {
    match info.layout {
        TileLayout::RowMajor => return Ok(bytes.clone()),
        TileLayout::Tiles16 => {}
        other => return Err(Error::unsupported(format!("layout {other:?} is not read"))),
    }
    let (rows, cols) = rows_and_columns(info)?;
    let (_, tile_bytes) = PackedMatrix::geometry(info.ty, cols)?;
    let total = PackedMatrix::packed_bytes(info.ty, rows, cols)?;
    if bytes.len() != total {
        return Err(Error::corrupt(format!(
            "a packed {} matrix of {rows} x {cols} takes {total} bytes, got {}",
            info.ty,
            bytes.len()
        )));
    }
    let row_bytes = cols / info.ty.block_len() * info.ty.block_bytes();
    let mut out = vec![0; rows * row_bytes];
    if row_bytes > 0 {
        for (tile, rows) in bytes.chunks(tile_bytes).zip(out.chunks_mut(row_bytes * TILE_ROWS)) {
            restore::restore_tile(info.ty, row_bytes, tile, rows);
        }
    }
    Ok(out.into())
}

impl fmt::Debug for PackedMatrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PackedMatrix({} {} x {})", self.ty, self.rows, self.cols)
    }
}
