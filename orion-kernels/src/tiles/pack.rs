//! From rows of blocks, as files hold them, to tiles.
//!
//! Every bit plane is moved in words of four columns and keeps its bits, so packing is a copy in another order. The
//! exceptions are the fifth bits of Q5_0 and Q5_1 (a 32-bit mask per row becomes bytes per column) and the 6-bit
//! scales of the K types.

use std::cell::RefCell;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use orion_core::{Result, TensorType};

use super::{TILE_ROWS, block_shape};
use crate::arena::populate;
use crate::pool::ComputePool;

/// Tiles handed to a thread at a time.
const GRAIN: usize = 16;

pub(super) fn pack(
    pool: &ComputePool,
    ty: TensorType,
    tile_bytes: usize,
    row_bytes: usize,
    from: &[u8],
    to: &mut [u8],
) -> Result<()> {
    if tile_bytes == 0 || row_bytes == 0 {
        return Ok(());
    }
    // Each lock is taken once, by the thread that packs those tiles; it is what hands out the exclusive slices.
    let parts: Vec<Mutex<(&[u8], &mut [u8])>> = from
        .chunks(row_bytes * TILE_ROWS * GRAIN)
        .zip(to.chunks_mut(tile_bytes * GRAIN))
        .map(Mutex::new)
        .collect();
    pool.run(|region| {
        region.for_chunks(parts.len(), 1, |range| {
            for part in &parts[range] {
                let mut part = part.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                let (from, to) = &mut *part;
                populate(to);
                for (rows, tile) in from.chunks(row_bytes * TILE_ROWS).zip(to.chunks_mut(tile_bytes)) {
                    pack_tile(ty, row_bytes, rows, tile);
                }
            }
        });
    })
}

/// Bytes that a thread reads before it packs them: they are still in its cache then.
const PART: usize = 256 << 10;

thread_local! {
    /// Kept from matrix to matrix.
    static BYTES: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Packs rows from `first` on, of which `read` fills in the bytes from an offset on. Returns how many rows are packed: less
/// than all if it answers `false`.
pub(super) fn pack_from(
    pool: &ComputePool,
    ty: TensorType,
    tile_bytes: usize,
    [first, rows, row_bytes]: [usize; 3],
    read: &(dyn Fn(u64, &mut [u8]) -> bool + Sync),
    to: &mut [u8],
) -> Result<usize> {
    let tile = row_bytes * TILE_ROWS;
    if tile_bytes == 0 || tile == 0 {
        return Ok(rows);
    }
    let part_rows = part(pool, rows, row_bytes) / row_bytes;
    let to = &mut to[first / TILE_ROWS * tile_bytes..];
    let parts: Vec<Mutex<&mut [u8]>> =
        to.chunks_mut(tile_bytes * (part_rows / TILE_ROWS)).map(Mutex::new).collect();
    let complete = AtomicUsize::new(parts.len());
    pool.run(|region| {
        region.for_chunks(parts.len(), 1, |range| {
            for index in range.filter(|&index| index < complete.load(Ordering::Relaxed)) {
                let first = first + index * part_rows;
                let count = part_rows.min(rows - first);
                let mut to = parts[index].lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                BYTES.with_borrow_mut(|bytes| {
                    bytes.resize(count * row_bytes, 0);
                    if !read((first * row_bytes) as u64, bytes) {
                        complete.fetch_min(index, Ordering::Relaxed);
                        return;
                    }
                    populate(&mut to);
                    for (rows, tile) in bytes.chunks(tile).zip(to.chunks_mut(tile_bytes)) {
                        pack_tile(ty, row_bytes, rows, tile);
                    }
                });
            }
        });
    })?;
    Ok((first + complete.into_inner() * part_rows).min(rows))
}

/// Bytes of a part: whole tiles, and enough of them for all threads.
pub(super) fn part(pool: &ComputePool, rows: usize, row_bytes: usize) -> usize {
    let (tiles, tile) = (rows.div_ceil(TILE_ROWS), row_bytes * TILE_ROWS);
    tile * (PART / tile.max(1)).min(tiles.div_ceil(pool.threads() * 2)).max(1)
}

/// Packs up to 16 rows; missing ones stay zero.
fn pack_tile(ty: TensorType, row_bytes: usize, rows: &[u8], tile: &mut [u8]) {
    let shape = block_shape(ty).expect("the geometry was computed for this type");
    for (lane, row) in rows.chunks(row_bytes).enumerate() {
        if shape.cols == 1 {
            let width = ty.block_bytes();
            for (column, value) in row.chunks_exact(width).enumerate() {
                tile[(column * TILE_ROWS + lane) * width..][..width].copy_from_slice(value);
            }
            continue;
        }
        for (block, to) in row.chunks_exact(ty.block_bytes()).zip(tile.chunks_mut(shape.bytes())) {
            let (quants, rest) = to.split_at_mut(shape.quants);
            let (scales, floats) = rest.split_at_mut(shape.scales);
            pack_block(ty, lane, block, &mut Out { quants, scales, floats });
        }
    }
}

struct Out<'a> {
    quants: &'a mut [u8],
    scales: &'a mut [u8],
    floats: &'a mut [u8],
}

impl Out<'_> {
    /// Copies words of four bytes to consecutive groups from `group` on.
    fn words(&mut self, lane: usize, group: usize, from: &[u8]) {
        for (word, to) in from.chunks_exact(4).zip(self.quants[group * 64..].chunks_exact_mut(64)) {
            to[lane * 4..lane * 4 + 4].copy_from_slice(word);
        }
    }

    /// Sets the block's float number `index` (0 scale, 1 minimum).
    fn float(&mut self, lane: usize, index: usize, from: &[u8]) {
        self.floats[(index * TILE_ROWS + lane) * 2..][..2].copy_from_slice(&from[..2]);
    }

    fn scales(&mut self, lane: usize, from: &[u8]) {
        for (index, &scale) in from.iter().enumerate() {
            self.scales[index * TILE_ROWS + lane] = scale;
        }
    }
}

fn pack_block(ty: TensorType, lane: usize, block: &[u8], out: &mut Out<'_>) {
    match ty {
        TensorType::Q4_0 => {
            out.float(lane, 0, &block[..2]);
            out.words(lane, 0, &block[2..]);
        }
        TensorType::Q4_1 => {
            out.float(lane, 0, &block[..2]);
            out.float(lane, 1, &block[2..4]);
            out.words(lane, 0, &block[4..]);
        }
        TensorType::Q5_0 => {
            out.float(lane, 0, &block[..2]);
            out.words(lane, 0, &block[6..]);
            out.words(lane, 4, &fifth_bits(&block[2..6]));
        }
        TensorType::Q5_1 => {
            out.float(lane, 0, &block[..2]);
            out.float(lane, 1, &block[2..4]);
            out.words(lane, 0, &block[8..]);
            out.words(lane, 4, &fifth_bits(&block[4..8]));
        }
        TensorType::Q8_0 => {
            out.float(lane, 0, &block[..2]);
            out.words(lane, 0, &block[2..]);
        }
        TensorType::Q2K => {
            out.scales(lane, &block[..16]);
            out.words(lane, 0, &block[16..80]);
            out.float(lane, 0, &block[80..]);
            out.float(lane, 1, &block[82..]);
        }
        TensorType::Q3K => {
            out.words(lane, 0, &block[32..96]);
            out.words(lane, 16, &block[..32]);
            out.scales(lane, &q3k_scales(&block[96..108]));
            out.float(lane, 0, &block[108..]);
        }
        TensorType::Q4K => {
            out.float(lane, 0, &block[..2]);
            out.float(lane, 1, &block[2..4]);
            out.scales(lane, &k_scales(&block[4..16]));
            out.words(lane, 0, &block[16..]);
        }
        TensorType::Q5K => {
            out.float(lane, 0, &block[..2]);
            out.float(lane, 1, &block[2..4]);
            out.scales(lane, &k_scales(&block[4..16]));
            out.words(lane, 0, &block[48..]);
            out.words(lane, 32, &block[16..48]);
        }
        TensorType::Q6K => {
            out.words(lane, 0, &block[..192]);
            out.scales(lane, &block[192..208]);
            out.float(lane, 0, &block[208..]);
        }
        other => unreachable!("{other} has no blocks in tiles"),
    }
}

/// Bit `k` of the mask becomes bit `k / 4` of byte `k % 4`.
fn fifth_bits(mask: &[u8]) -> [u8; 4] {
    let mask = u32::from_le_bytes([mask[0], mask[1], mask[2], mask[3]]);
    std::array::from_fn(|column| {
        let mut bits = mask >> column & 0x1111_1111;
        bits = (bits | bits >> 3) & 0x0303_0303;
        bits = (bits | bits >> 6) & 0x000f_000f;
        (bits | bits >> 12) as u8
    })
}

/// Eight 6-bit scales, then eight 6-bit minima.
fn k_scales(packed: &[u8]) -> [u8; 16] {
    std::array::from_fn(|i| {
        let (j, minimum) = (i % 8, i / 8);
        match (j < 4, minimum) {
            (true, 0) => packed[j] & 63,
            (true, _) => packed[j + 4] & 63,
            (false, 0) => packed[j + 4] & 15 | packed[j - 4] >> 6 << 4,
            (false, _) => packed[j + 4] >> 4 | packed[j] >> 6 << 4,
        }
    })
}

/// Sixteen 6-bit scales, made signed by taking 32 off.
fn q3k_scales(packed: &[u8]) -> [u8; 16] {
    std::array::from_fn(|i| {
        let low = if i < 8 { packed[i] & 15 } else { packed[i - 8] >> 4 };
        let high = packed[8 + i % 4] >> (2 * (i / 4)) & 3;
        (low | high << 4).wrapping_sub(32)
    })
}
