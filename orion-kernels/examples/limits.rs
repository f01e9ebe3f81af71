//! What the machine allows: `limits BYTES [THREADS] [TYPE:ROWSxCOLUMNS:COUNT ...]` prints how fast so many threads read a buffer
//! of that size, in GB/s, and how many products of unsigned and signed bytes they add up, in 10^9 a second, both as medians of
//! nine passes. Products are those of four-bit weights with the instructions that `ORION_ISA` names or the CPU has: with AVX2
//! in 16-bit sums. With matrices it also prints how many products a second the kernels do when 512 rows of activations are
//! quantised and multiplied with each of them, so often.
#![allow(clippy::print_stdout, reason = "an example")]
#![allow(unsafe_code, reason = "intrinsics")]

use std::hint::black_box;
use std::thread;
use std::time::Instant;

use orion_core::TensorType;
use orion_kernels::{ComputePool, Isa, LinearScratch, PackedMatrix, linear};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let bytes: usize = arguments.next().ok_or("usage: limits BYTES [THREADS]")?.parse()?;
    let threads: usize = arguments.next().map_or(Ok(2), |number| number.parse())?;
    let isa = Isa::active()?;
    let buffer: Vec<u64> = (0..(bytes / 8).max(threads) as u64).collect();
    let share = buffer.len().div_ceil(threads.max(1));
    let read = median(|| {
        let began = Instant::now();
        thread::scope(|scope| {
            for part in buffer.chunks(share) {
                scope.spawn(move || black_box(sum(part)));
            }
        });
        size_of_val(&buffer[..]) as f64 / began.elapsed().as_secs_f64() / 1e9
    });
    let products = median(|| {
        let began = Instant::now();
        let done: u64 = thread::scope(|scope| {
            let running: Vec<_> = (0..threads).map(|_| scope.spawn(move || multiply(isa))).collect();
            running.into_iter().map(|thread| thread.join().expect("products do not panic")).sum()
        });
        done as f64 / began.elapsed().as_secs_f64() / 1e9
    });
    let products = if products > 0.0 { format!("{products:.1}") } else { "null".into() };
    let matrices: Vec<String> = arguments.collect();
    let inside = match matrices.is_empty() {
        true => String::new(),
        false => format!(", \"matrices_g_s\": {:.1}", multiply_all(isa, threads, &matrices)?),
    };
    println!("{{\"read_gb_s\": {read:.2}, \"products_g_s\": {products}{inside}}}");
    Ok(())
}

/// 10^9 products a second over all matrices, each written `TYPE:ROWSxCOLUMNS:COUNT`, with 512 rows of activations.
fn multiply_all(isa: Isa, threads: usize, matrices: &[String]) -> Result<f64, Box<dyn std::error::Error>> {
    const TOKENS: usize = 512;
    let pool = ComputePool::new(threads)?;
    let (mut products, mut seconds) = (0.0, 0.0);
    for matrix in matrices {
        let [kind, shape, count] = matrix.split(':').collect::<Vec<_>>()[..] else {
            return Err(format!("{matrix}: not TYPE:ROWSxCOLUMNS:COUNT").into());
        };
        let ty = TensorType::from_name(kind).ok_or_else(|| format!("{matrix}: unknown type"))?;
        // What has no kernels runs as halves.
        let ty = if PackedMatrix::supports(ty) { ty } else { TensorType::F16 };
        let (rows, columns) = shape.split_once('x').ok_or("a shape is ROWSxCOLUMNS")?;
        let (rows, columns, count): (usize, usize, f64) = (rows.parse()?, columns.parse()?, count.parse()?);
        // Scales whose exponents are clear of infinity.
        let bytes: Vec<u8> = (0..rows * columns / ty.block_len() * ty.block_bytes())
            .map(|i| ((i * 2_654_435_761) >> 13) as u8 & 0x3b)
            .collect();
        let packed = PackedMatrix::pack(&pool, ty, rows, columns, &bytes)?;
        let input: Vec<f32> = (0..TOKENS * columns).map(|i| (i % 97) as f32 / 64.0 - 0.7).collect();
        let mut scratch = LinearScratch::new(&pool, TOKENS, columns);
        let mut out = vec![0.0; TOKENS * rows];
        let work = (TOKENS * rows * columns) as f64 * 1e-9;
        let rate = median(|| {
            let began = Instant::now();
            linear(&pool, isa, &packed, &input, &mut scratch, &mut out).expect("sizes fit");
            work / began.elapsed().as_secs_f64()
        });
        products += count * work;
        seconds += count * work / rate;
    }
    Ok(products / seconds)
}

/// Of nine, after one that is not counted.
fn median(mut pass: impl FnMut() -> f64) -> f64 {
    let mut rates: Vec<f64> = (0..10).map(|_| pass()).skip(1).collect();
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

/// In sixteen sums, so that loads do not wait for additions.
fn sum(part: &[u64]) -> u64 {
    let mut sums = [0u64; 16];
    let (chunks, rest) = part.as_chunks::<16>();
    for chunk in chunks {
        for (sum, value) in sums.iter_mut().zip(chunk) {
            *sum = sum.wrapping_add(*value);
        }
    }
    sums.into_iter().chain(rest.iter().copied()).fold(0, u64::wrapping_add)
}

/// Groups of four columns by sixteen rows of weights; they and the activations stay in the first-level cache.
const GROUPS: usize = 128;
/// Rows of activations.
const ROWS: usize = 6;
const PASSES: usize = 3000;

/// Does many products and returns how many; none where this example knows no instructions for them.
fn multiply(isa: Isa) -> u64 {
    let weights: Vec<u8> = (0..GROUPS * 64).map(|i| (i * 7 % 16) as u8).collect();
    let rows: Vec<i8> = (0..GROUPS * 4 * ROWS).map(|i| (i * 11 % 255) as u8 as i8).collect();
    let (weights, rows) = (black_box(&weights[..]), black_box(&rows[..]));
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: these instruction sets are only active on a CPU that has them.
        Isa::Avx2(_) => unsafe { x86::avx2(weights, rows) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::AvxVnni(_) => unsafe { x86::vnni_256(weights, rows) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx512Vnni(_) => unsafe { x86::vnni_512(weights, rows) },
        _ => return 0,
    }
    (PASSES * GROUPS * ROWS * 64) as u64
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{GROUPS, PASSES, ROWS};
    use std::arch::asm;
    use std::arch::x86_64::*;

    /// Two vectors of weights by six rows, with the same loop for all: what adds one row's products to its sums, of which
    /// the compiler may make neither fewer nor others.
    macro_rules! products {
        ($(#[$meta:meta])* $name:ident, $vector:ty, $class:ident, $bytes:literal, $zero:expr, $load:expr, $splat:expr, $add:expr) => {
            $(#[$meta])*
            pub(super) unsafe fn $name(weights: &[u8], rows: &[i8]) {
                const VECTORS: usize = 64 / $bytes;
                assert!(weights.len() >= GROUPS * 64 && rows.len() >= GROUPS * 4 * ROWS);
                let mut sums = [[$zero; VECTORS]; ROWS];
                for _ in 0..PASSES {
                    for group in 0..GROUPS {
                        // SAFETY: the lengths are checked above.
                        unsafe {
                            let from = weights.as_ptr().add(group * 64);
                            let w: [$vector; VECTORS] = std::array::from_fn(|i| $load(from.add($bytes * i)));
                            for m in 0..ROWS {
                                let four = rows.as_ptr().add((group * ROWS + m) * 4).cast::<i32>().read_unaligned();
                                for i in 0..VECTORS {
                                    sums[m][i] = $add(sums[m][i], w[i], $splat(four));
                                    asm!("/* {0} */", inout($class) sums[m][i], options(pure, nomem, nostack, preserves_flags));
                                }
                            }
                        }
                    }
                }
                std::hint::black_box(&sums);
            }
        };
    }
    products! {
        #[target_feature(enable = "avx2")]
        avx2, __m256i, ymm_reg, 32, _mm256_setzero_si256(), |from: *const u8| _mm256_loadu_si256(from.cast()),
        |four| _mm256_set1_epi32(four), |sum, w, x| _mm256_add_epi16(sum, _mm256_maddubs_epi16(w, x))
    }
    products! {
        #[target_feature(enable = "avx2,avxvnni")]
        vnni_256, __m256i, ymm_reg, 32, _mm256_setzero_si256(), |from: *const u8| _mm256_loadu_si256(from.cast()),
        |four| _mm256_set1_epi32(four), |sum, w, x| _mm256_dpbusd_avx_epi32(sum, w, x)
    }
    products! {
        #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
        vnni_512, __m512i, zmm_reg, 64, _mm512_setzero_si512(), |from: *const u8| _mm512_loadu_si512(from.cast()),
        |four| _mm512_set1_epi32(four), |sum, w, x| _mm512_dpbusd_epi32(sum, w, x)
    }
}
