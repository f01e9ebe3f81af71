//! Which elements of a delta stay.

use orion_core::{Error, Result};
use sha2::{Digest as _, Sha256};

use super::group::{Group, Piece, Scratch};
use super::method::Sparsify;

/// What a model's delta is thinned by.
#[derive(Debug, Clone, Copy)]
pub(super) struct Thinning {
    pub(super) how: Sparsify,
    pub(super) density: f64,
    pub(super) gamma: f64,
    pub(super) epsilon: f64,
    /// Whether the sum of magnitudes is kept.
    pub(super) rescale: bool,
}

/// The element at one rank of all elements, smallest key first and earlier before later among equals.
#[derive(Debug)]
pub(super) struct Cut {
    key: u32,
    /// Elements with a smaller key.
    less: u64,
    /// Elements with this key.
    equal: u64,
    /// Elements with this key before each piece.
    equal_before: Vec<u64>,
}

/// Which elements stay.
#[derive(Debug)]
pub(super) enum Mask {
    All,
    Nothing,
    /// The largest so many.
    Largest(u64, Cut),
    /// Those of ranks from, and to before.
    Band((u64, Cut), (u64, Option<Cut>)),
    /// By a coin that shows heads below this, of 2^32.
    Coin(u64, u64),
    /// By coins weighted by rank within the row: density and its spread.
    Ranked(u64, f64, f64),
}

/// The bucket that holds rank `rank`, what is in those before it on top of `less`, and what is in it.
fn find(counts: impl Iterator<Item = u64>, mut less: u64, rank: u64) -> (usize, u64, u64) {
    let mut last = 0;
    for (at, count) in counts.enumerate() {
        if less + count > rank {
            return (at, less, count);
        }
        less += count;
        last = at;
    }
    (last, less, 0)
}

/// Magnitudes order as these do.
pub(super) fn magnitude(x: f32) -> u32 {
    x.to_bits() & 0x7fff_ffff
}

impl Group<'_> {
    /// The element of rank `rank` among the keys that `keys` leaves in its last argument.
    pub(super) fn cut(
        &self,
        rank: u64,
        keys: &(impl Fn(&Piece, &mut Scratch, &mut Vec<u32>) -> Result<()> + Sync),
    ) -> Result<Cut> {
        // Pairs of counters, one for even and one for odd places: equal keys often follow each other, and one counter
        // would have to be read back before it can be raised again.
        let counts = self.fold(
            || vec![[0u64; 2]; 1 << 16],
            |counts, piece, scratch| {
                let mut found = std::mem::take(&mut scratch.keys);
                keys(piece, scratch, &mut found)?;
                for pair in found.chunks(2) {
                    pair.iter().enumerate().for_each(|(at, key)| counts[(key >> 16) as usize][at] += 1);
                }
                scratch.keys = found;
                Ok(())
            },
            |sum, part| {
                sum.iter_mut().zip(part).for_each(|(sum, part)| *sum = [sum[0] + part[0], sum[1] + part[1]]);
            },
        )?;
        let (high, below, _) = find(counts.iter().map(|[even, odd]| even + odd), 0, rank);
        let within = self.each(|piece, scratch| {
            let mut found = std::mem::take(&mut scratch.keys);
            keys(piece, scratch, &mut found)?;
            let same = found.iter().filter(|&&key| (key >> 16) as usize == high);
            let low: Vec<u16> = same.map(|&key| key as u16).collect();
            scratch.keys = found;
            Ok(low)
        })?;
        let mut counts = vec![0u64; 1 << 16];
        within.iter().flatten().for_each(|&low| counts[usize::from(low)] += 1);
        let (low, less, equal) = find(counts.into_iter(), below, rank);
        let mut before = 0;
        let equal_before = if equal > 1 {
            let running = within.iter().map(|piece| {
                let here = before;
                before += piece.iter().filter(|&&other| usize::from(other) == low).count() as u64;
                here
            });
            running.collect()
        } else {
            Vec::new()
        };
        Ok(Cut { key: (high << 16 | low) as u32, less, equal, equal_before })
    }

    /// The mask of one model's delta.
    pub(super) fn mask(&self, input: usize, thinning: &Thinning) -> Result<Mask> {
        let Thinning { how, density, gamma, epsilon, .. } = *thinning;
        if how == Sparsify::None || density >= 1.0 {
            return Ok(Mask::All);
        }
        let all = self.elements();
        if density <= 0.0 || all == 0 {
            return match how {
                Sparsify::Random if density < 0.0 => {
                    Err(Error::invalid(format!("density {density} is no probability")))
                }
                _ => Ok(Mask::Nothing),
            };
        }
        let part = |share: f64| ((share * all as f64).max(0.0) as u64).min(all as u64);
        let keys = |piece: &Piece, scratch: &mut Scratch, out: &mut Vec<u32>| {
            self.read_delta(input, piece, scratch)?;
            out.clear();
            out.extend(scratch.z.iter().map(|&x| magnitude(x)));
            Ok(())
        };
        let all = all as u64;
        match how {
            Sparsify::None => Ok(Mask::All),
            Sparsify::Magnitude => {
                let kept = part(density).max(1);
                Ok(Mask::Largest(kept, self.cut(all - kept, &keys)?))
            }
            Sparsify::Outliers => {
                let (kept, top) = (part(density), part(gamma));
                if kept == 0 {
                    return Ok(Mask::Nothing);
                }
                let from = all.saturating_sub(kept).saturating_sub(top);
                let to = from + kept;
                let end = (to < all).then(|| self.cut(to, &keys)).transpose()?;
                Ok(Mask::Band((from, self.cut(from, &keys)?), (to, end)))
            }
            Sparsify::Random => Ok(Mask::Coin(self.key(input), chance(density))),
            Sparsify::Ranked => {
                if density + epsilon >= 1.0 || density - epsilon <= 0.0 {
                    return Err(Error::invalid(format!(
                        "density {density} with epsilon {epsilon}: their sum and difference must lie between 0 and 1"
                    )));
                }
                Ok(Mask::Ranked(self.key(input), density, epsilon))
            }
        }
    }

    /// The seed of this tensor and model.
    fn key(&self, input: usize) -> u64 {
        let mut hasher = Sha256::new();
        hasher.update(self.seed.to_le_bytes());
        hasher.update((input as u64).to_le_bytes());
        hasher.update(self.name.as_bytes());
        let digest: [u8; 32] = hasher.finalize().into();
        u64::from_le_bytes(std::array::from_fn(|i| digest[i]))
    }

    /// Zeroes what does not stay of a piece of a delta.
    pub(super) fn apply(&self, mask: &Mask, piece: &Piece, x: &mut [f32]) {
        match mask {
            Mask::All => {}
            Mask::Nothing => x.fill(0.0),
            Mask::Largest(kept, cut) => {
                let greater = (self.elements() as u64) - cut.less - cut.equal;
                let mut equal = greater + cut.before(piece);
                let equals = x.iter().filter(|x| magnitude(**x) == cut.key).count() as u64;
                if equals == 0 || equal + equals <= *kept || equal >= *kept {
                    // All equals of this piece stay, or none does.
                    let least = cut.key + u32::from(equal >= *kept);
                    x.iter_mut().for_each(|x| *x = if magnitude(*x) >= least { *x } else { 0.0 });
                    return;
                }
                for x in x {
                    let key = magnitude(*x);
                    let stays = if key == cut.key {
                        equal += 1;
                        equal <= *kept
                    } else {
                        key > cut.key
                    };
                    if !stays {
                        *x = 0.0;
                    }
                }
            }
            Mask::Band((from, low), (to, high)) => {
                let mut low_rank = low.less + low.before(piece);
                let mut high_rank = high.as_ref().map_or(0, |high| high.less + high.before(piece));
                for x in x {
                    let key = magnitude(*x);
                    let mut stays = key >= low.key;
                    if key == low.key {
                        stays = low_rank >= *from;
                        low_rank += 1;
                    }
                    if let Some(high) = high {
                        stays &= key <= high.key;
                        if key == high.key {
                            stays &= high_rank < *to;
                            high_rank += 1;
                        }
                    }
                    if !stays {
                        *x = 0.0;
                    }
                }
            }
            Mask::Coin(key, chance) => {
                for (index, x) in piece.elements.clone().zip(x) {
                    if coin(*key, index) >= *chance {
                        *x = 0.0;
                    }
                }
            }
            Mask::Ranked(key, density, epsilon) => {
                let mut order: Vec<u32> = Vec::new();
                let rows = piece.elements.clone().step_by(self.columns).zip(x.chunks_mut(self.columns));
                for (start, row) in rows {
                    order.clear();
                    order.extend(0..row.len() as u32);
                    order.sort_by_key(|&at| magnitude(row[at as usize]));
                    let last = (row.len() - 1).max(1) as f64;
                    for (rank, &at) in order.iter().enumerate() {
                        let probability = density - epsilon + 2.0 * epsilon * rank as f64 / last;
                        if coin(*key, start + at as usize) >= chance(probability) {
                            row[at as usize] = 0.0;
                        }
                    }
                }
            }
        }
    }

    /// By what a thinned delta is multiplied to have the sum of magnitudes it had.
    pub(super) fn rescaling(&self, input: usize, mask: &Mask) -> Result<f32> {
        if matches!(mask, Mask::All | Mask::Nothing) {
            return Ok(1.0);
        }
        let parts = self.each(|piece, scratch| {
            self.read_delta(input, piece, scratch)?;
            let sum = |x: &[f32]| x.iter().map(|x| f64::from(x.abs())).sum::<f64>();
            let before = sum(&scratch.z);
            self.apply(mask, piece, &mut scratch.z);
            Ok((before, sum(&scratch.z)))
        })?;
        let (before, after) = parts.into_iter().fold((0.0, 0.0), |(a, b), (c, d)| (a + c, b + d));
        Ok(if before < 1e-7 || after < 1e-7 { 1.0 } else { (before / after) as f32 })
    }
}

impl Cut {
    /// The element's key.
    pub(super) fn key(&self) -> u32 {
        self.key
    }

    fn before(&self, piece: &Piece) -> u64 {
        self.equal_before.get(piece.number).copied().unwrap_or(0)
    }

    /// Whether the element with this key, of a piece of which `seen` equals came before, is among the largest `kept` of `all`.
    pub(super) fn keeps(&self, key: u32, piece: &Piece, seen: &mut u64, all: u64, kept: u64) -> bool {
        if key != self.key {
            return key > self.key;
        }
        *seen += 1;
        all - self.less - self.equal + self.before(piece) + *seen <= kept
    }
}

fn chance(probability: f64) -> u64 {
    (probability * (1u64 << 32) as f64) as u64
}

/// 32 random bits that depend on nothing but the key and the place (SplitMix64).
fn coin(key: u64, index: usize) -> u64 {
    let mut z = key.wrapping_add((index as u64).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ z >> 31) >> 32
}
