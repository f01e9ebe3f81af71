//! From tiles back to rows of blocks: the inverse of packing, bit for bit.

use orion_core::TensorType;

use super::{TILE_ROWS, block_shape};

/// Writes the rows that a tile holds; as many as `rows` has room for.
pub(super) fn restore_tile(ty: TensorType, row_bytes: usize, tile: &[u8], rows: &mut [u8]) {
    let shape = block_shape(ty).expect("the geometry was computed for this type");
    for (lane, row) in rows.chunks_mut(row_bytes).enumerate() {
        if shape.cols == 1 {
            let width = ty.block_bytes();
            for (column, value) in row.chunks_exact_mut(width).enumerate() {
                value.copy_from_slice(&tile[(column * TILE_ROWS + lane) * width..][..width]);
            }
            continue;
        }
        for (block, from) in row.chunks_exact_mut(ty.block_bytes()).zip(tile.chunks(shape.bytes())) {
            let (quants, rest) = from.split_at(shape.quants);
            let (scales, floats) = rest.split_at(shape.scales);
            restore_block(ty, block, &In { lane, quants, scales, floats });
        }
    }
}

struct In<'a> {
    lane: usize,
    quants: &'a [u8],
    scales: &'a [u8],
    floats: &'a [u8],
}

impl In<'_> {
    /// Words of four bytes of consecutive groups from `group` on.
    fn words(&self, group: usize, to: &mut [u8]) {
        for (to, from) in to.chunks_exact_mut(4).zip(self.quants[group * 64..].chunks_exact(64)) {
            to.copy_from_slice(&from[self.lane * 4..][..4]);
        }
    }

    fn float(&self, index: usize, to: &mut [u8]) {
        to[..2].copy_from_slice(&self.floats[(index * TILE_ROWS + self.lane) * 2..][..2]);
    }

    fn scale(&self, index: usize) -> u8 {
        self.scales[index * TILE_ROWS + self.lane]
    }

    fn fifth_bits(&self, to: &mut [u8]) {
        let mut bytes = [0; 4];
        self.words(4, &mut bytes);
        let mask = (0..32).fold(0u32, |mask, k| mask | u32::from(bytes[k % 4] >> (k / 4) & 1) << k);
        to[..4].copy_from_slice(&mask.to_le_bytes());
    }

    /// Eight 6-bit scales and eight 6-bit minima in twelve bytes.
    fn k_scales(&self, to: &mut [u8]) {
        for j in 0..4 {
            let [low_scale, low_min] = [self.scale(j), self.scale(j + 8)];
            let [high_scale, high_min] = [self.scale(j + 4), self.scale(j + 12)];
            to[j] = low_scale & 63 | high_scale >> 4 << 6;
            to[j + 4] = low_min & 63 | high_min >> 4 << 6;
            to[j + 8] = high_scale & 15 | high_min << 4;
        }
    }

    /// Sixteen signed 6-bit scales in twelve bytes.
    fn q3k_scales(&self, to: &mut [u8]) {
        to[..12].fill(0);
        for i in 0..16 {
            let scale = self.scale(i).wrapping_add(32);
            to[i % 8] |= (scale & 15) << (4 * (i / 8));
            to[8 + i % 4] |= (scale >> 4 & 3) << (2 * (i / 4));
        }
    }
}

fn restore_block(ty: TensorType, block: &mut [u8], from: &In<'_>) {
    match ty {
        TensorType::Q4_0 | TensorType::Q8_0 => {
            from.float(0, block);
            from.words(0, &mut block[2..]);
        }
        TensorType::Q4_1 => {
            from.float(0, block);
            from.float(1, &mut block[2..]);
            from.words(0, &mut block[4..]);
        }
        TensorType::Q5_0 => {
            from.float(0, block);
            from.fifth_bits(&mut block[2..]);
            from.words(0, &mut block[6..]);
        }
        TensorType::Q5_1 => {
            from.float(0, block);
            from.float(1, &mut block[2..]);
            from.fifth_bits(&mut block[4..]);
            from.words(0, &mut block[8..]);
        }
        TensorType::Q2K => {
            (0..16).for_each(|i| block[i] = from.scale(i));
            from.words(0, &mut block[16..80]);
            from.float(0, &mut block[80..]);
            from.float(1, &mut block[82..]);
        }
        TensorType::Q3K => {
            from.words(16, &mut block[..32]);
            from.words(0, &mut block[32..96]);
            from.q3k_scales(&mut block[96..]);
            from.float(0, &mut block[108..]);
        }
        TensorType::Q4K | TensorType::Q5K => {
            from.float(0, block);
            from.float(1, &mut block[2..]);
            from.k_scales(&mut block[4..]);
            if ty == TensorType::Q4K {
                from.words(0, &mut block[16..]);
            } else {
                from.words(32, &mut block[16..48]);
                from.words(0, &mut block[48..]);
            }
        }
        TensorType::Q6K => {
            from.words(0, &mut block[..192]);
            (0..16).for_each(|i| block[192 + i] = from.scale(i));
            from.float(0, &mut block[208..]);
        }
        other => unreachable!("{other} has no blocks in tiles"),
    }
}
