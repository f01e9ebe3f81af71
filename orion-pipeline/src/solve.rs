//! Types for a given size: the least error that fits, measured on the tensors themselves.

use orion_core::{Error, ModelFormat, Result, TensorInfo, TensorType, WeightSource};
use orion_formats::gguf::{TensorSpec, file_bytes};

use crate::mix::is_quantisable;
use crate::quantize::{QuantizeOptions, convert};
use crate::shard::{rows_of, stored_bytes};

/// How large the output may be.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Target {
    /// Bytes of the whole GGUF file.
    Bytes(u64),
    /// Bytes of the whole shard set, packed for the kernels.
    PackedBytes(u64),
    /// Bits per weight over all tensors.
    BitsPerWeight(f64),
}

/// From small to large; what has a kernel in the runtime.
const CANDIDATES: [TensorType; 11] = [
    TensorType::Q2K,
    TensorType::Q3K,
    TensorType::Q4_0,
    TensorType::Q4K,
    TensorType::Q4_1,
    TensorType::Q5_0,
    TensorType::Q5K,
    TensorType::Q5_1,
    TensorType::Q6K,
    TensorType::Q8_0,
    TensorType::F16,
];

/// Rows of a tensor that are measured, spread over it.
const MEASURED_ROWS: usize = 64;

/// A way to store one tensor.
#[derive(Debug, Clone, Copy)]
struct Choice {
    ty: TensorType,
    bytes: u64,
    /// Squared error, relative, times elements.
    error: f64,
}

/// The types that give the least error within the target, one per tensor in the order of the table. Error is that of
/// rows spread over each tensor, relative to their size, per element; importances count if there are some.
///
/// # Errors
/// [`InvalidInput`](orion_core::ErrorKind::InvalidInput) with the smallest size there is if the target lies below it, or if
/// the source is in safetensors; what reading reports.
pub fn types_for(
    source: &dyn WeightSource,
    target: Target,
    options: &QuantizeOptions,
) -> Result<Vec<TensorType>> {
    let header = source.header();
    if header.format != ModelFormat::Gguf {
        return Err(Error::invalid("the model is in safetensors; show it as GGUF first"));
    }
    let all: u64 = header.tensors.iter().map(|tensor| tensor.bytes).sum();
    let packed = matches!(target, Target::PackedBytes(_));
    let mut choices = Vec::with_capacity(header.tensors.len());
    let mut done = 0;
    for (index, tensor) in header.tensors.iter().enumerate() {
        options.control.step(&tensor.name, done, all)?;
        choices.push(measure(source, index, packed, options)?);
        done += tensor.bytes;
    }
    let overhead = {
        let specs: Vec<_> =
            header.tensors.iter().map(|t| TensorSpec::new(&*t.name, &*t.shape, t.ty)).collect();
        // What a file has besides data; padding is at most a line per tensor.
        file_bytes(&header.metadata, &specs)?.saturating_sub(all)
    };
    let elements: u64 = header.tensors.iter().map(TensorInfo::elements).sum();
    let budget = match target {
        Target::Bytes(bytes) | Target::PackedBytes(bytes) => bytes.saturating_sub(overhead),
        Target::BitsPerWeight(bits) if bits.is_finite() && bits > 0.0 => {
            (bits * elements as f64 / 8.0) as u64
        }
        Target::BitsPerWeight(bits) => return Err(Error::invalid(format!("{bits} bits per weight"))),
    };
    let picked = solve(&choices, budget).map_err(|least| {
        let what = format!("the smallest this model can be is {} bytes", least + overhead);
        Error::invalid(format!("the target is too small: {what}"))
    })?;
    Ok(picked.iter().zip(&choices).map(|(&at, choices)| choices[at].ty).collect())
}

/// The ways to store a tensor, smaller first, each better than the one before.
fn measure(
    source: &dyn WeightSource,
    index: usize,
    packed: bool,
    options: &QuantizeOptions,
) -> Result<Vec<Choice>> {
    let tensor = &source.header().tensors[index];
    let stored = |ty: TensorType| {
        let columns = tensor.shape.last().copied().unwrap_or(1);
        ty.bytes_of(columns)?;
        stored_bytes(&TensorInfo { ty, ..tensor.clone() }, packed).ok()
    };
    let own = Choice { ty: tensor.ty, bytes: stored(tensor.ty).unwrap_or(tensor.bytes), error: 0.0 };
    let pinned =
        options.overrides.iter().find(|(pattern, _)| pattern.is_match(&tensor.name)).map(|(_, ty)| *ty);
    if !is_quantisable(tensor) || (tensor.ty.is_quantised() && !options.allow_requantize) {
        return Ok(vec![own]);
    }
    let about = |error: Error| error.about(format!("tensor {}", tensor.name));
    let columns = tensor.shape.last().copied().unwrap_or(1);
    let rows = (tensor.elements() / columns.max(1)) as usize;
    let data = rows_of(source, index)?;
    let width = data.len() / rows.max(1);
    let stacks = if tensor.shape.len() > 2 { tensor.shape[0] as usize } else { 1 };
    let taken = rows.min(MEASURED_ROWS);
    let sample: Vec<u8> =
        (0..taken).flat_map(|i| &data[i * rows / taken * width..][..width]).copied().collect();
    source.release(index);
    let part = TensorInfo { shape: vec![taken as u64, columns], ..tensor.clone() };
    // Experts have importances of their own, a sample of all has none.
    let imatrix = options.imatrix.of(&tensor.name).filter(|_| stacks == 1);
    let mut choices: Vec<Choice> = Vec::new();
    for ty in CANDIDATES.into_iter().filter(|ty| pinned.is_none_or(|pinned| pinned == *ty)) {
        let Some(bytes) = stored(ty) else { continue };
        if bytes >= own.bytes && ty != tensor.ty && pinned.is_none() {
            continue;
        }
        let error = if ty == tensor.ty {
            0.0
        } else {
            convert(&part, &sample, ty, imatrix, options.threads).map_err(about)?.1
        };
        let choice = Choice { ty, bytes, error: error * tensor.elements() as f64 };
        choices.push(choice);
    }
    if pinned.is_none() && !choices.iter().any(|choice| choice.bytes >= own.bytes) {
        choices.push(own);
    }
    if choices.is_empty() {
        choices.push(own);
    }
    choices.sort_by(|a, b| {
        (a.bytes, a.error).partial_cmp(&(b.bytes, b.error)).unwrap_or(std::cmp::Ordering::Equal)
    });
    let mut better: Vec<Choice> = Vec::new();
    for choice in choices {
        if better.last().is_none_or(|last| choice.error < last.error && choice.bytes > last.bytes) {
            better.push(choice);
        }
    }
    Ok(better)
}

/// Which choice of each tensor; or the least bytes there can be.
fn solve(choices: &[Vec<Choice>], budget: u64) -> Result<Vec<usize>, u64> {
    let bytes = |picked: &[usize]| picked.iter().zip(choices).map(|(&at, list)| list[at].bytes).sum::<u64>();
    let least = bytes(&vec![0; choices.len()]);
    if least > budget {
        return Err(least);
    }
    // At a price per byte each tensor chooses for itself; the price is found by bisection.
    let at_price = |price: f64| -> Vec<usize> {
        let cost = |choice: &Choice| choice.error + price * choice.bytes as f64;
        let best = |list: &Vec<Choice>| {
            (0..list.len()).min_by(|&a, &b| cost(&list[a]).total_cmp(&cost(&list[b]))).unwrap_or(0)
        };
        choices.iter().map(best).collect()
    };
    let (mut low, mut high) = (0.0f64, 1.0f64);
    while bytes(&at_price(high)) > budget && high < 1e30 {
        high *= 4.0;
    }
    for _ in 0..200 {
        let middle = (low + high) / 2.0;
        if bytes(&at_price(middle)) > budget { low = middle } else { high = middle }
    }
    let mut picked = at_price(high);
    if bytes(&picked) > budget {
        picked = vec![0; choices.len()];
    }
    // What is left goes where a byte helps most.
    loop {
        let left = budget - bytes(&picked);
        let gain = |tensor: usize, to: usize| {
            let (now, then) = (choices[tensor][picked[tensor]], choices[tensor][to]);
            let extra = then.bytes - now.bytes;
            (extra <= left).then(|| (now.error - then.error) / extra as f64)
        };
        let steps = (0..choices.len()).flat_map(|t| (picked[t] + 1..choices[t].len()).map(move |to| (t, to)));
        let best = steps
            .filter_map(|(tensor, to)| gain(tensor, to).map(|gain| (gain, tensor, to)))
            .max_by(|a, b| a.0.total_cmp(&b.0));
        match best {
            Some((_, tensor, to)) => picked[tensor] = to,
            None => return Ok(picked),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_solution_fits_and_leaves_less_than_the_next_step() {
        let list = |scale: f64| {
            (1..6u64)
                .map(|step| Choice { ty: TensorType::Q4_0, bytes: 100 * step, error: scale / step as f64 })
                .collect::<Vec<_>>()
        };
        let choices: Vec<_> = [1.0, 50.0, 3.0, 10.0].map(list).into();
        let bytes =
            |picked: &[usize]| picked.iter().zip(&choices).map(|(&at, list)| list[at].bytes).sum::<u64>();
        let error =
            |picked: &[usize]| picked.iter().zip(&choices).map(|(&at, list)| list[at].error).sum::<f64>();
        for budget in [400, 450, 700, 1200, 1999, 2000, 9999] {
            let picked = solve(&choices, budget).unwrap();
            let used = bytes(&picked);
            assert!(used <= budget && (budget - used < 100 || used == 2000), "{budget}: {used}");
            // As good as the best of all that fit.
            let mut best = f64::INFINITY;
            for code in 0..5usize.pow(4) {
                let other = [code % 5, code / 5 % 5, code / 25 % 5, code / 125];
                if bytes(&other) <= budget {
                    best = best.min(error(&other));
                }
            }
            assert!(error(&picked) <= best * 1.0001, "{budget}: {} {best}", error(&picked));
        }
        assert_eq!(solve(&choices, 399), Err(400));
    }
}
