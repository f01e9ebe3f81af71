//! Quantising a model, tensor by tensor.

use std::collections::BTreeMap;
use std::num::NonZero;
use std::path::Path;
use std::sync::Mutex;

use orion_core::{Error, MetaValue, Result, TensorInfo, TensorType, WeightSource};
use orion_formats::gguf::{GgufWriter, TensorSpec};
use orion_kernels::{dequantize, quantize as encode};

use crate::mix::{FileType, PlannedTensor, Traits, plan};
use crate::output::Output;

/// How to quantise.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct QuantizeOptions {
    /// The recipe.
    pub file_type: FileType,
    /// One importance per column of each tensor named; for stacked experts, of each expert in turn. Empty: none.
    pub imatrix: BTreeMap<String, Vec<f32>>,
    /// Whether tensors that are quantised already may be quantised again, which loses more than once from the original.
    pub allow_requantize: bool,
    /// Whether a file of the output's name may be replaced.
    pub overwrite: bool,
    /// Threads; the result does not depend on it. Default: as many as the processor runs.
    pub threads: NonZero<usize>,
}

impl QuantizeOptions {
    /// That recipe, without importances, refusing what would lose or replace something.
    #[must_use]
    pub fn new(file_type: FileType) -> Self {
        Self {
            file_type,
            imatrix: BTreeMap::new(),
            allow_requantize: false,
            overwrite: false,
            threads: std::thread::available_parallelism().unwrap_or(NonZero::<usize>::MIN),
        }
    }
}

/// What became of one tensor.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct TensorReport {
    /// Its name.
    pub name: String,
    /// What it was.
    pub from: TensorType,
    /// What it is.
    pub to: TensorType,
    /// What the mix wanted, where its rows do not divide into that type's blocks.
    pub instead_of: Option<TensorType>,
    /// Elements.
    pub elements: u64,
    /// Bytes in the output.
    pub bytes: u64,
    /// Squared error relative to the sum of squares; 0 for what was copied.
    pub relative_error: f64,
}

/// What was done.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Report {
    /// One entry per tensor, in the order of the file.
    pub tensors: Vec<TensorReport>,
}

impl Report {
    /// Bytes of all tensors, over their elements.
    #[must_use]
    pub fn bits_per_weight(&self) -> f64 {
        let (bits, elements) = self
            .tensors
            .iter()
            .fold((0, 0), |(bits, elements), t| (bits + 8 * t.bytes, elements + t.elements));
        bits as f64 / elements as f64
    }

    /// The tensors whose rows did not fit the type that the mix wanted.
    pub fn substituted(&self) -> impl Iterator<Item = &TensorReport> {
        self.tensors.iter().filter(|tensor| tensor.instead_of.is_some())
    }
}

/// Quantises `source` into a GGUF file at `path`, which appears only when it is complete.
///
/// Holds one tensor of the source, its encoded form, and a few rows per thread. Metadata is copied, with the file type recorded.
///
/// # Errors
/// [`InvalidInput`](orion_core::ErrorKind::InvalidInput) if the file exists, a tensor is quantised already, numbers are infinite or NaN,
/// or importances do not fit, unless the options allow it; whatever reading and writing report. Nothing is left at `path` then.
pub fn quantize(source: &dyn WeightSource, path: &Path, options: &QuantizeOptions) -> Result<Report> {
    let header = source.header();
    let traits = Traits::of(header);
    let weighted = !options.imatrix.is_empty();
    if options.file_type == FileType::Q2Ks && !weighted {
        return Err(Error::invalid("Q2_K_S needs importances; compute an imatrix or choose Q2_K"));
    }
    let planned = plan(&header.tensors, &traits, options.file_type, weighted).tensors;
    for (tensor, plan) in header.tensors.iter().zip(&planned) {
        if tensor.ty.is_quantised() && tensor.ty != plan.to && !options.allow_requantize {
            return Err(Error::invalid(format!(
                "is {} already; start from the original or allow quantising it again as {}",
                tensor.ty, plan.to
            ))
            .about(format!("tensor {}", tensor.name)));
        }
    }

    let mut metadata = header.metadata.clone();
    metadata.retain(|key, _| !key.starts_with("split."));
    metadata.insert("general.quantization_version".to_owned(), MetaValue::U32(2));
    metadata.insert("general.file_type".to_owned(), MetaValue::U32(options.file_type.id()));
    let specs: Vec<_> = header
        .tensors
        .iter()
        .zip(&planned)
        .map(|(tensor, plan)| TensorSpec::new(&*tensor.name, &*tensor.shape, plan.to))
        .collect();

    let mut writer = GgufWriter::start(Output::create(path, options.overwrite)?, &metadata, &specs)?;
    let mut report = Report { tensors: Vec::with_capacity(specs.len()) };
    for (index, (tensor, &plan)) in header.tensors.iter().zip(&planned).enumerate() {
        let data = source.tensor(index)?;
        let (bytes, relative_error) = if tensor.ty == plan.to {
            writer.tensor(&data)?;
            (data.len(), 0.0)
        } else {
            let imatrix = options.imatrix.get(&tensor.name).map(Vec::as_slice);
            let (bytes, error) = convert(tensor, &data, plan, imatrix, options.threads)
                .map_err(|error| error.about(format!("tensor {}", tensor.name)))?;
            writer.tensor(&bytes)?;
            (bytes.len(), error)
        };
        source.release(index);
        report.tensors.push(TensorReport {
            name: tensor.name.clone(),
            from: tensor.ty,
            to: plan.to,
            instead_of: plan.instead_of,
            elements: tensor.elements(),
            bytes: bytes as u64,
            relative_error,
        });
    }
    writer.finish()?.publish()?;
    Ok(report)
}

/// Elements that a thread takes at a time: enough to be worth the hand-over, little enough to stay in the cache.
const PIECE: usize = 1 << 15;

/// Some rows of a tensor on their way.
struct Piece<'a> {
    from: &'a [u8],
    to: &'a mut [u8],
    imatrix: Option<&'a [f32]>,
}

/// The bytes of the tensor's new type, and its relative error. Pieces are cut alike for any number of threads.
fn convert(
    tensor: &TensorInfo,
    data: &[u8],
    plan: PlannedTensor,
    imatrix: Option<&[f32]>,
    threads: NonZero<usize>,
) -> Result<(Vec<u8>, f64)> {
    let columns = tensor.shape.last().copied().unwrap_or(1) as usize;
    let rows = data.len() / row_bytes(tensor.ty, columns)?;
    let stacks = if tensor.shape.len() > 2 { tensor.shape[0] as usize } else { 1 };
    if let Some(imatrix) = imatrix
        && imatrix.len() != columns
        && imatrix.len() != columns * stacks
    {
        return Err(Error::invalid(format!(
            "{} importances for {stacks} times {columns} columns",
            imatrix.len()
        )));
    }
    let (from_row, to_row) = (row_bytes(tensor.ty, columns)?, row_bytes(plan.to, columns)?);
    let mut out = vec![0; rows * to_row];
    let piece_rows = (PIECE / columns).max(1);
    let stack_rows = (rows / stacks).max(1);
    let mut pieces = Vec::new();
    let stacked = data.chunks(stack_rows * from_row).zip(out.chunks_mut(stack_rows * to_row));
    for (stack, (data, out)) in stacked.enumerate() {
        let imatrix =
            imatrix.map(|im| if im.len() == columns { im } else { &im[stack * columns..][..columns] });
        let cut = data.chunks(piece_rows * from_row).zip(out.chunks_mut(piece_rows * to_row));
        pieces.extend(cut.map(|(from, to)| Piece { from, to, imatrix }));
    }

    let count = pieces.len();
    let queue = Mutex::new(pieces.into_iter().enumerate());
    let results = Mutex::new(Vec::with_capacity(count));
    std::thread::scope(|scope| {
        for _ in 0..threads.get().min(count) {
            scope.spawn(|| {
                let mut work = Worker::default();
                loop {
                    let next = queue.lock().expect("no holder panics").next();
                    let Some((index, piece)) = next else { return };
                    let result = work.convert(tensor.ty, plan.to, columns, piece);
                    results.lock().expect("no holder panics").push((index, result));
                }
            });
        }
    });
    let mut results = results.into_inner().expect("no holder panics");
    results.sort_by_key(|(index, _)| *index);
    let (mut error, mut total) = (0.0, 0.0);
    for (index, result) in results {
        let (piece_error, piece_total) =
            result.map_err(|error: Error| error.about(format!("rows from {}", index * piece_rows)))?;
        error += piece_error;
        total += piece_total;
    }
    Ok((out, if total > 0.0 { error / total } else { 0.0 }))
}

fn row_bytes(ty: TensorType, columns: usize) -> Result<usize> {
    let bytes =
        ty.bytes_of(columns as u64).and_then(|bytes| usize::try_from(bytes).ok()).filter(|&bytes| bytes > 0);
    bytes.ok_or_else(|| Error::invalid(format!("rows of {columns} are no whole number of {ty} blocks")))
}

/// What a thread reuses from piece to piece.
#[derive(Default)]
struct Worker {
    x: Vec<f32>,
    y: Vec<f32>,
    encoded: Vec<u8>,
}

impl Worker {
    /// Fills the piece; returns the sums of squared errors and of squares.
    fn convert(
        &mut self,
        from: TensorType,
        to: TensorType,
        columns: usize,
        piece: Piece<'_>,
    ) -> Result<(f64, f64)> {
        let Piece { from: data, to: out, imatrix } = piece;
        let elements = out.len() / to.block_bytes() * to.block_len();
        self.x.resize(elements, 0.0);
        self.y.resize(elements, 0.0);
        self.encoded.clear();
        dequantize(from, data, &mut self.x)?;
        encode(to, &self.x, columns, imatrix, &mut self.encoded)?;
        dequantize(to, &self.encoded, &mut self.y)?;
        out.copy_from_slice(&self.encoded);
        let (mut error, mut total) = (0.0, 0.0);
        for (x, y) in self.x.iter().zip(&self.y) {
            error += f64::from(x - y).powi(2);
            total += f64::from(*x).powi(2);
        }
        Ok((error, total))
    }
}
