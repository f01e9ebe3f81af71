//! Whole steps of decoders in the shapes of SmolLM2 135M, Gemma 3 270M and a 1.1B model, with random weights.

use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use orion_core::TensorType as Ty;
use orion_kernels::{
    Activation, Block, ComputePool, DecoderShape, Embedding, Head, Isa, KvStore, KvType, PAGE_TOKENS,
    PackedMatrix, Projection, Rope, Stages, Workspace,
};

struct Model {
    name: &'static str,
    shape: DecoderShape,
    /// Of query, key, value and output; gate and up; down.
    types: [Ty; 3],
    table: Ty,
    gemma: bool,
}

fn models() -> Vec<Model> {
    let shape =
        |[hidden, ffn, heads, kv_heads, head_dim, layers, vocab]: [usize; 7], activation| DecoderShape {
            hidden,
            ffn,
            heads,
            kv_heads,
            head_dim,
            layers,
            vocab,
            norm_eps: 1e-5,
            attention_scale: 0.1,
            attention_soft_cap: None,
            activation,
            rope_interleaved: true,
            kv: KvType::F16,
        };
    let (silu, gelu) = (Activation::Silu, Activation::GeluTanh);
    vec![
        Model {
            name: "smollm2-135m-q4_1",
            shape: shape([576, 1536, 9, 3, 64, 30, 49152], silu),
            types: [Ty::Q4_1; 3],
            table: Ty::Q8_0,
            gemma: false,
        },
        Model {
            name: "gemma3-270m-q4_k_m",
            shape: shape([640, 2048, 4, 1, 256, 18, 262_144], gelu),
            types: [Ty::Q5_0, Ty::Q5_0, Ty::Q4K],
            table: Ty::Q8_0,
            gemma: true,
        },
        Model {
            name: "llama-1.1b-q4_k_m",
            shape: shape([2048, 5632, 32, 4, 64, 22, 32000], silu),
            types: [Ty::Q4K, Ty::Q4K, Ty::Q6K],
            table: Ty::Q6K,
            gemma: false,
        },
    ]
}

/// Any bits are quants; scales get small exponents.
fn random(pool: &ComputePool, ty: Ty, rows: usize, cols: usize) -> PackedMatrix {
    let mut state = 7u32;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8 & 0x1b
    };
    let bytes: Vec<u8> =
        std::iter::repeat_with(next).take(rows * cols / ty.block_len() * ty.block_bytes()).collect();
    PackedMatrix::pack(pool, ty, rows, cols, &bytes).expect("whole blocks")
}

fn block(pool: &ComputePool, model: &Model) -> Block {
    let s = &model.shape;
    let (q, kv) = (s.heads * s.head_dim, s.kv_heads * s.head_dim);
    let projection = |ty, rows, cols| Projection { matrix: random(pool, ty, rows, cols), bias: None };
    let [attention, up, down] = model.types;
    let norm = |len: usize| vec![0.5; len];
    Block {
        attn_norm: norm(s.hidden),
        q: projection(attention, q, s.hidden),
        k: projection(attention, kv, s.hidden),
        v: projection(attention, kv, s.hidden),
        q_norm: model.gemma.then(|| norm(s.head_dim)),
        k_norm: model.gemma.then(|| norm(s.head_dim)),
        o: projection(attention, s.hidden, q),
        post_attn_norm: model.gemma.then(|| norm(s.hidden)),
        ffn_norm: norm(s.hidden),
        gate: projection(up, s.ffn, s.hidden),
        up: projection(up, s.ffn, s.hidden),
        down: projection(down, s.hidden, s.ffn),
        post_ffn_norm: model.gemma.then(|| norm(s.hidden)),
        window: None,
        local_rope: false,
    }
}

fn decoders(criterion: &mut Criterion) {
    let isa = Isa::active().expect("ORION_ISA names an instruction set of this CPU");
    let pool = ComputePool::shared().expect("threads start");
    let mut group = criterion.benchmark_group(format!("decoder/{isa}/{} threads", pool.threads()));
    group.sample_size(10).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(3));
    for model in models() {
        let s = &model.shape;
        let table = random(&pool, model.table, s.vocab, s.hidden);
        let embedding = Embedding { table: table.clone(), tokens: None, scale: 1.0 };
        let head = Head { norm: vec![1.0; s.hidden], matrix: table, soft_cap: None };
        let blocks: Vec<Block> = (0..s.layers).map(|_| block(&pool, &model)).collect();
        let stages = Stages { embedding: Some(&embedding), first: 0, blocks: &blocks, head: Some(&head) };
        let frequencies = (0..s.head_dim / 2).map(|i| 0.9f32.powi(i as i32)).collect();
        let ropes = vec![Rope { frequencies, magnitude: 1.0 }];
        let mut workspace =
            Workspace::new(pool.clone(), isa, s.clone(), ropes, 512).expect("a shape with kernels");
        let mut kv = KvStore::new(s).expect("a shape with kernels");
        let pages: Vec<u32> = (0..4224 / PAGE_TOKENS as u32).collect();
        kv.reserve(pages.len());
        let mut logits = vec![0.0; s.vocab];
        let mut step = |start: usize, rows: usize| {
            workspace.begin();
            let tokens = (0..rows).map(|i| (i * 7919 % 32000) as u32);
            workspace.push(tokens, start, &pages, [0, 0], 1).expect("room");
            workspace.run(&mut kv, stages, &mut logits).expect("weights fit");
        };
        for (what, start, rows) in
            [("prefill", 0, 512), ("decode", 40, 1), ("decode", 4096, 1), ("batch of 8", 40, 8)]
        {
            group.throughput(Throughput::Elements(rows as u64));
            group.bench_function(BenchmarkId::new(format!("{}/{what}", model.name), start), |bencher| {
                bencher.iter_custom(|runs| {
                    let began = Instant::now();
                    (0..runs).for_each(|_| step(start, rows));
                    began.elapsed()
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, decoders);
criterion_main!(benches);
