//! The inputs of one output tensor, read in pieces by several threads.
//!
//! Pieces are whole rows and are cut alike for any number of threads; sums of pieces are added in their order. So no
//! result depends on threads.

use std::num::NonZero;
use std::ops::Range;
use std::sync::Mutex;

use orion_core::{Error, Result, TensorBytes, TensorType};
use orion_kernels::{dequantize, quantize as encode};

use crate::control::Control;

/// Elements of a piece, about: few enough for the cache.
const PIECE: usize = 1 << 15;

/// One model's tensor.
#[derive(Debug, Clone)]
pub(super) struct Input {
    pub(super) model: String,
    pub(super) ty: TensorType,
    pub(super) bytes: TensorBytes,
}

/// What is merged into one tensor. All inputs have the same shape.
#[derive(Debug)]
pub(super) struct Group<'a> {
    pub(super) inputs: Vec<Input>,
    pub(super) base: Option<usize>,
    /// Names the tensor in seeds.
    pub(super) name: &'a str,
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// The type inputs are rounded to before, and the result after.
    pub(super) work: TensorType,
    pub(super) out: TensorType,
    pub(super) seed: u64,
    pub(super) threads: NonZero<usize>,
    pub(super) control: &'a Control,
}

/// What a thread reuses from piece to piece.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// One buffer per input.
    pub(super) x: Vec<Vec<f32>>,
    pub(super) y: Vec<f32>,
    pub(super) z: Vec<f32>,
    pub(super) keys: Vec<u32>,
    pub(super) signs: Vec<f32>,
    bytes: Vec<u8>,
}

impl Scratch {
    fn with(inputs: usize) -> Self {
        Self { x: vec![Vec::new(); inputs], ..Self::default() }
    }
}

/// A piece: its number, and its elements.
#[derive(Debug, Clone)]
pub(super) struct Piece {
    pub(super) number: usize,
    pub(super) elements: Range<usize>,
}

impl Group<'_> {
    pub(super) fn elements(&self) -> usize {
        self.rows * self.columns
    }

    /// The inputs that are not the base.
    pub(super) fn others(&self) -> impl Iterator<Item = usize> + use<> {
        let base = self.base;
        (0..self.inputs.len()).filter(move |index| Some(*index) != base)
    }

    fn pieces(&self) -> impl Iterator<Item = Piece> + use<> {
        let (all, rows) = (self.elements(), (PIECE / self.columns.max(1)).max(1));
        let length = (rows * self.columns).max(1);
        (0..all.div_ceil(length))
            .map(move |number| Piece { number, elements: number * length..((number + 1) * length).min(all) })
    }

    /// Reads a piece of one input as 32-bit floats, rounded to the type that is worked in.
    pub(super) fn read(&self, input: usize, piece: &Piece, out: &mut Vec<f32>) -> Result<()> {
        let Input { model, ty, bytes } = &self.inputs[input];
        let at = |element: usize| element / ty.block_len() * ty.block_bytes();
        let range = at(piece.elements.start)..at(piece.elements.end);
        out.resize(piece.elements.len(), 0.0);
        let about = |error: Error| error.about(model.clone());
        let bytes =
            bytes.get(range).ok_or_else(|| about(Error::corrupt("is shorter than its shape says")))?;
        dequantize(*ty, bytes, out).map_err(about)?;
        // The largest magnitude by its bits: NaN and infinity have the largest of all.
        let largest = out.iter().fold(0, |largest, x| largest.max(x.to_bits() & 0x7fff_ffff));
        if largest >= f32::INFINITY.to_bits() {
            return Err(about(Error::invalid("holds NaN or infinity")));
        }
        if *ty != self.work {
            round(self.work, out);
        }
        Ok(())
    }

    /// Reads a piece of all inputs into `scratch.x`.
    pub(super) fn read_all(&self, piece: &Piece, scratch: &mut Scratch) -> Result<()> {
        let Scratch { x, .. } = scratch;
        x.iter_mut().enumerate().try_for_each(|(input, out)| self.read(input, piece, out))
    }

    /// Reads the base into `scratch.y` and a model's difference from it into `scratch.z`.
    pub(super) fn read_delta(&self, input: usize, piece: &Piece, scratch: &mut Scratch) -> Result<()> {
        self.read(input, piece, &mut scratch.z)?;
        if let Some(base) = self.base {
            self.read(base, piece, &mut scratch.y)?;
            scratch.z.iter_mut().zip(&scratch.y).for_each(|(x, b)| *x -= b);
        }
        Ok(())
    }

    /// Calls `work` on every piece; the results in the order of the pieces.
    pub(super) fn each<T: Send>(
        &self,
        work: impl Fn(&Piece, &mut Scratch) -> Result<T> + Sync,
    ) -> Result<Vec<T>> {
        let nothing = std::iter::repeat_with(|| ());
        self.share(self.pieces().zip(nothing), |piece, (), scratch| work(piece, scratch))
    }

    /// Adds up what `work` puts into one `A` per thread. For sums that do not depend on their order.
    pub(super) fn fold<A: Send>(
        &self,
        new: impl Fn() -> A + Sync,
        work: impl Fn(&mut A, &Piece, &mut Scratch) -> Result<()> + Sync,
        add: impl Fn(&mut A, A),
    ) -> Result<A> {
        let accumulators = Mutex::new(Vec::new());
        self.each(|piece, scratch| {
            let taken = accumulators.lock().expect("no holder panics").pop();
            let mut accumulator = taken.unwrap_or_else(&new);
            let result = work(&mut accumulator, piece, scratch);
            accumulators.lock().expect("no holder panics").push(accumulator);
            result
        })?;
        let mut sum = new();
        accumulators.into_inner().expect("no holder panics").into_iter().for_each(|part| add(&mut sum, part));
        Ok(sum)
    }

    /// The output: `work` leaves the numbers of each piece in `scratch.y`.
    pub(super) fn write(&self, work: impl Fn(&Piece, &mut Scratch) -> Result<()> + Sync) -> Result<Vec<u8>> {
        let width = self.out.block_bytes();
        let mut out = vec![0; self.elements() * width];
        let mut rest = &mut out[..];
        let mut places = Vec::new();
        for piece in self.pieces() {
            let (place, later) = std::mem::take(&mut rest).split_at_mut(piece.elements.len() * width);
            places.push((piece, place));
            rest = later;
        }
        self.share(places.into_iter(), |piece, place, scratch| {
            work(piece, scratch)?;
            let Scratch { y, bytes, .. } = scratch;
            if self.work != self.out {
                round(self.work, y);
            }
            bytes.clear();
            encode(self.out, y, y.len().max(1), None, bytes)?;
            place.copy_from_slice(bytes);
            Ok(())
        })?;
        Ok(out)
    }

    /// Shares pieces out over the threads.
    fn share<P: Send, T: Send>(
        &self,
        pieces: impl Iterator<Item = (Piece, P)> + Send,
        work: impl Fn(&Piece, P, &mut Scratch) -> Result<T> + Sync,
    ) -> Result<Vec<T>> {
        let count = self.pieces().count();
        let queue = Mutex::new(pieces);
        let results = Mutex::new(Vec::with_capacity(count));
        let run = || {
            let mut scratch = Scratch::with(self.inputs.len());
            loop {
                let next = queue.lock().expect("no holder panics").next();
                let Some((piece, place)) = next else { return };
                let result = self.control.check().and_then(|()| work(&piece, place, &mut scratch));
                let failed = result.is_err();
                results.lock().expect("no holder panics").push((piece.number, result));
                if failed {
                    return;
                }
            }
        };
        std::thread::scope(|scope| {
            (1..self.threads.get().min(count)).for_each(|_| drop(scope.spawn(run)));
            run();
        });
        let mut results = results.into_inner().expect("no holder panics");
        results.sort_by_key(|(number, _)| *number);
        results.into_iter().map(|(_, result)| result).collect()
    }
}

/// Rounds numbers to what a type can hold.
fn round(ty: TensorType, x: &mut [f32]) {
    match ty {
        TensorType::F16 => x.iter_mut().for_each(|x| *x = half::f16::from_f32(*x).to_f32()),
        TensorType::BF16 => x.iter_mut().for_each(|x| *x = half::bf16::from_f32(*x).to_f32()),
        _ => {}
    }
}
