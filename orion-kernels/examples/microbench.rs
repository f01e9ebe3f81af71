use orion_core::TensorType as T;
use orion_kernels::*;
use std::time::Instant;
fn main() {
    let isa = Isa::active().unwrap();
    for threads in [1, 2] {
        let pool = ComputePool::new(threads).unwrap();
        // bandwidth
        let buf = vec![1u64; 200 << 17];
        let mut best = f64::MAX;
        for _ in 0..8 {
            let t = Instant::now();
            let total = std::sync::atomic::AtomicU64::new(0);
            pool.run(|r| r.for_chunks(buf.len() / 4096, 8, |c| {
                let mut s = [0u64; 16];
                for x in buf[c.start * 4096..c.end * 4096].chunks_exact(16) { for i in 0..16 { s[i] = s[i].wrapping_add(x[i]); } }
                total.fetch_add(s.iter().fold(0, |a, b| a ^ b), std::sync::atomic::Ordering::Relaxed);
            })).unwrap();
            best = best.min(t.elapsed().as_secs_f64());
            std::hint::black_box(total);
        }
        println!("{isa} t={threads} read {:.1} GB/s", buf.len() as f64 * 8.0 / best / 1e9);
        let t = Instant::now();
        pool.run(|r| for _ in 0..10000 { r.barrier() }).unwrap();
        println!("barrier {:.2} us", t.elapsed().as_secs_f64() * 1e2);
        for ty in [T::Q4_1, T::Q5_0, T::Q8_0, T::Q4K, T::Q6K, T::F16, T::F32] {
            for (n, k, ms) in [(1536usize, 1024usize, vec![1usize, 2, 4, 8, 64, 512]), (98304, 1024, vec![1])] {
                let bytes = ty.bytes_of((n * k) as u64).unwrap() as usize;
                let mut r = 1u32;
                let raw: Vec<u8> = (0..bytes).map(|_| { r ^= r << 13; r ^= r >> 17; r ^= r << 5; (r >> 8) as u8 & 0x3b }).collect();
                let t = Instant::now();
                let w = PackedMatrix::pack(&pool, ty, n, k, &raw).unwrap();
                let pack = t.elapsed().as_secs_f64();
                drop(raw);
                print!("{ty} {n}x{k} {:.1} MB pack {:.0} ms |", w.as_bytes().len() as f64 / 1e6, pack * 1e3);
                for m in ms {
                    let x: Vec<f32> = (0..m * k).map(|i| ((i * 7919) % 1000) as f32 / 500.0 - 1.0).collect();
                    let mut y = vec![0f32; m * n];
                    let mut s = LinearScratch::new(&pool, m, k);
                    let mut best = f64::MAX;
                    for _ in 0..(12.max(40 / m)) {
                        let t = Instant::now();
                        linear(&pool, isa, &w, &x, &mut s, &mut y).unwrap();
                        best = best.min(t.elapsed().as_secs_f64());
                    }
                    print!(" m={m}: {:.1} GMAC/s {:.1} GB/s", (m * n * k) as f64 / best / 1e9, w.as_bytes().len() as f64 / best / 1e9);
                }
                println!();
            }
        }
    }
}
