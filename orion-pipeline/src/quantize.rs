//! Quantising a model, tensor by tensor.

use std::collections::BTreeMap;
use std::num::NonZero;
use std::path::Path;
use std::sync::Mutex;

use orion_core::{
    Error, MetaValue, ModelFormat, ModelHeader, Result, TensorBytes, TensorInfo, TensorType, TileLayout,
    WeightSource,
};
use orion_formats::gguf::{GgufWriter, TensorSpec, file_bytes};
use orion_kernels::{dequantize, quantize as encode};
use regex::Regex;
use serde_json::json;

use crate::control::Control;
use crate::imatrix::Imatrix;
use crate::mix::{FileType, PlannedTensor, Traits, fitting, is_quantisable, plan};
use crate::output::Output;
use crate::provenance;
use crate::shard::{ShardOptions, ShardReport, plan_shards, rows_of, shard};

/// What decides the types.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Recipe {
    /// The mix that llama.cpp knows by that name.
    Mix(FileType),
    /// One type per tensor, in the order of the table, as [`types_for`](crate::types_for) finds them.
    Types(Vec<TensorType>),
}

/// How to quantise.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct QuantizeOptions {
    /// The recipe.
    pub recipe: Recipe,
    /// Types for tensors whose names match a pattern somewhere; the first that matches counts. Tensors that are never
    /// quantised are left alone.
    pub overrides: Vec<(Regex, TensorType)>,
    /// One importance per column of each tensor named; for stacked experts, of each expert in turn. Empty: none.
    pub imatrix: Imatrix,
    /// Whether tensors that are quantised already may be quantised again, which loses more than once from the original.
    pub allow_requantize: bool,
    /// Whether a file of the output's name may be replaced.
    pub overwrite: bool,
    /// Threads; the result does not depend on it. Default: as many as the processor runs.
    pub threads: NonZero<usize>,
    /// Watches and stops the work.
    pub control: Control,
}

impl QuantizeOptions {
    /// That recipe, without importances, refusing what would lose or replace something.
    #[must_use]
    pub fn new(file_type: FileType) -> Self {
        Self {
            recipe: Recipe::Mix(file_type),
            overrides: Vec::new(),
            imatrix: Imatrix::default(),
            allow_requantize: false,
            overwrite: false,
            threads: std::thread::available_parallelism().unwrap_or(NonZero::<usize>::MIN),
            control: Control::default(),
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

/// Quantises `source` into a GGUF file at `path`, which appears only when it is complete. A safetensors model is shown
/// as GGUF first, by [`as_gguf`](crate::as_gguf).
///
/// Holds one tensor of the source, its encoded form, and a few rows per thread. Metadata is copied, with the file type recorded.
///
/// # Errors
/// [`InvalidInput`](orion_core::ErrorKind::InvalidInput) if the file exists, a tensor is quantised already, numbers are infinite or NaN,
/// or importances do not fit, unless the options allow it; whatever reading and writing report. Nothing is left at `path` then.
pub fn quantize(source: &dyn WeightSource, path: &Path, options: &QuantizeOptions) -> Result<Report> {
    let quantised = Quantised::new(source, options)?;
    let header = quantised.header();
    let specs: Vec<_> = header.tensors.iter().map(|t| TensorSpec::new(&*t.name, &*t.shape, t.ty)).collect();
    let bytes = file_bytes(&header.metadata, &specs)?;
    let out = Output::create(path, options.overwrite, bytes)?;
    let mut writer = GgufWriter::start(out, &header.metadata, &specs)?;
    let total: u64 = header.tensors.iter().map(|tensor| tensor.bytes).sum();
    let mut done = 0;
    for (index, tensor) in header.tensors.iter().enumerate() {
        options.control.step(&tensor.name, done, total)?;
        writer.tensor(&quantised.tensor(index)?)?;
        source.release(index);
        done += tensor.bytes;
    }
    options.control.step("", total, total)?;
    writer.finish()?.publish()?;
    Ok(quantised.report())
}

/// Quantises `source` and cuts it into shards, in one pass and without a file between.
///
/// # Errors
/// As [`quantize`] and [`shard`](crate::shard()).
pub fn optimize(
    source: &dyn WeightSource,
    path: &Path,
    options: &QuantizeOptions,
    sharding: &ShardOptions,
) -> Result<(Report, Vec<ShardReport>)> {
    let quantised = Quantised::new(source, options)?;
    let shards = shard(&quantised, path, sharding)?;
    Ok((quantised.report(), shards))
}

/// Says what [`quantize`] would do; errors per tensor are not known before and are 0.
///
/// # Errors
/// As [`quantize`], as far as the header tells.
pub fn plan_quantize(source: &dyn WeightSource, options: &QuantizeOptions) -> Result<Report> {
    Ok(Quantised::new(source, options)?.report())
}

/// Says what [`optimize`] would write.
///
/// # Errors
/// As [`optimize`], as far as the header tells.
pub fn plan_optimize(
    source: &dyn WeightSource,
    options: &QuantizeOptions,
    sharding: &ShardOptions,
) -> Result<(Report, Vec<ShardReport>)> {
    let quantised = Quantised::new(source, options)?;
    let shards = plan_shards(&quantised, sharding)?;
    Ok((quantised.report(), shards))
}

/// A source as it will be: tensors are quantised when they are asked for.
struct Quantised<'a> {
    source: &'a dyn WeightSource,
    options: &'a QuantizeOptions,
    planned: Vec<PlannedTensor>,
    header: ModelHeader,
    tensors: Mutex<Vec<TensorReport>>,
}

impl<'a> Quantised<'a> {
    fn new(source: &'a dyn WeightSource, options: &'a QuantizeOptions) -> Result<Self> {
        let before = source.header();
        if before.format != ModelFormat::Gguf {
            return Err(Error::invalid("the model is in safetensors; show it as GGUF first"));
        }
        let planned = planned(source, options)?;
        let mut metadata = before.metadata.clone();
        metadata.retain(|key, _| !key.starts_with("split."));
        metadata.insert("general.quantization_version".to_owned(), MetaValue::U32(2));
        let (name, file_type) = match &options.recipe {
            Recipe::Mix(file_type) => (file_type.name(), *file_type),
            Recipe::Types(_) => ("solved", most_common(&before.tensors, &planned)),
        };
        metadata.insert("general.file_type".to_owned(), MetaValue::U32(file_type.id()));
        options.imatrix.record(&mut metadata);
        provenance::record(
            &mut metadata,
            json!({ "step": "quantize", "type": name, "imatrix": !options.imatrix.is_empty() }),
        );
        let tensors = before.tensors.iter().zip(&planned).map(|(tensor, &plan)| entry(tensor, plan));
        let tensors = tensors.collect::<Result<Vec<_>>>()?;
        let mut offset = 0;
        let table = before.tensors.iter().zip(&tensors).map(|(tensor, report)| {
            let start = offset;
            offset += report.bytes;
            TensorInfo {
                ty: report.to,
                layout: TileLayout::RowMajor,
                file: 0,
                offset: start,
                bytes: report.bytes,
                ..tensor.clone()
            }
        });
        let mut header = ModelHeader::new(ModelFormat::Gguf, metadata, table.collect());
        header.side_files.clone_from(&before.side_files);
        Ok(Self { source, options, planned, header, tensors: Mutex::new(tensors) })
    }

    fn report(self) -> Report {
        Report { tensors: self.tensors.into_inner().expect("no holder panics") }
    }
}

impl WeightSource for Quantised<'_> {
    fn header(&self) -> &ModelHeader {
        &self.header
    }

    fn tensor(&self, index: usize) -> Result<TensorBytes> {
        let tensor = &self.source.header().tensors[index];
        let plan = self.planned[index];
        let data = rows_of(self.source, index)?;
        if tensor.ty == plan.to {
            return Ok(data);
        }
        let imatrix = self.options.imatrix.of(&tensor.name);
        let (bytes, error) = convert(tensor, &data, plan.to, imatrix, self.options.threads)
            .map_err(|error| error.about(format!("tensor {}", tensor.name)))?;
        self.tensors.lock().expect("no holder panics")[index].relative_error = error;
        Ok(bytes.into())
    }

    fn release(&self, index: usize) {
        self.source.release(index);
    }
}

/// The recipe whose own type most elements have.
fn most_common(tensors: &[TensorInfo], planned: &[PlannedTensor]) -> FileType {
    let mut elements: BTreeMap<TensorType, u64> = BTreeMap::new();
    for (tensor, plan) in tensors.iter().zip(planned) {
        *elements.entry(plan.to).or_default() += tensor.elements();
    }
    let most = elements.into_iter().max_by_key(|(_, count)| *count).map_or(TensorType::F32, |(ty, _)| ty);
    FileType::ALL.iter().copied().find(|file_type| file_type.default_type() == most).unwrap_or(FileType::F32)
}

fn entry(tensor: &TensorInfo, plan: PlannedTensor) -> Result<TensorReport> {
    let columns = tensor.shape.last().copied().unwrap_or(1);
    let rows: u64 = tensor.shape.iter().rev().skip(1).product();
    let bytes = plan.to.bytes_of(columns).and_then(|row| row.checked_mul(rows)).ok_or_else(|| {
        Error::corrupt("rows are no whole number of blocks").about(format!("tensor {}", tensor.name))
    })?;
    Ok(TensorReport {
        name: tensor.name.clone(),
        from: tensor.ty,
        to: plan.to,
        instead_of: plan.instead_of,
        elements: tensor.elements(),
        bytes,
        relative_error: 0.0,
    })
}

/// The type of each tensor, once it is clear that none is lost by it.
fn planned(source: &dyn WeightSource, options: &QuantizeOptions) -> Result<Vec<PlannedTensor>> {
    let header = source.header();
    let weighted = !options.imatrix.is_empty();
    let mut planned = match &options.recipe {
        Recipe::Mix(FileType::Q2Ks) if !weighted => {
            return Err(Error::invalid("Q2_K_S needs importances; compute an imatrix or choose Q2_K"));
        }
        Recipe::Mix(file_type) => plan(&header.tensors, &Traits::of(header), *file_type, weighted).tensors,
        Recipe::Types(types) if types.len() == header.tensors.len() => {
            types.iter().map(|&to| PlannedTensor { to, instead_of: None }).collect()
        }
        Recipe::Types(types) => {
            return Err(Error::invalid(format!(
                "{} types for {} tensors",
                types.len(),
                header.tensors.len()
            )));
        }
    };
    for (tensor, plan) in header.tensors.iter().zip(&mut planned) {
        let wanted = options.overrides.iter().find(|(pattern, _)| pattern.is_match(&tensor.name));
        if let Some(&(_, wanted)) = wanted.filter(|_| is_quantisable(tensor)) {
            let to = fitting(wanted, tensor.shape.last().copied().unwrap_or(1));
            *plan = PlannedTensor { to, instead_of: (to != wanted).then_some(wanted) };
        }
        if tensor.ty.is_quantised() && tensor.ty != plan.to && !options.allow_requantize {
            return Err(Error::invalid(format!(
                "is {} already; start from the original or allow quantising it again as {}",
                tensor.ty, plan.to
            ))
            .about(format!("tensor {}", tensor.name)));
        }
    }
    Ok(planned)
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
pub(crate) fn convert(
    tensor: &TensorInfo,
    data: &[u8],
    to: TensorType,
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
    let (from_row, to_row) = (row_bytes(tensor.ty, columns)?, row_bytes(to, columns)?);
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
                    let result = work.convert(tensor.ty, to, columns, piece);
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
        // Eight sums side by side: one alone would wait for itself at every step.
        let (mut error, mut total) = ([0.0; 8], [0.0; 8]);
        for (x, y) in self.x.chunks(8).zip(self.y.chunks(8)) {
            for (((error, total), x), y) in error.iter_mut().zip(&mut total).zip(x).zip(y) {
                *error += f64::from(x - y).powi(2);
                *total += f64::from(*x).powi(2);
            }
        }
        Ok((error.iter().sum(), total.iter().sum()))
    }
}
