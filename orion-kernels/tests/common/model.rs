//! A small decoder with random weights and every option.
#![allow(dead_code, reason = "not every test binary needs all of it")]

use orion_core::TensorType;
use orion_kernels::{
    Activation, Block, ComputePool, DecoderShape, Embedding, Head, KvType, PackedMatrix, Projection, Rope,
};

use super::{Rng, random};

pub(crate) struct Model {
    pub(crate) shape: DecoderShape,
    pub(crate) ropes: Vec<Rope>,
    pub(crate) embedding: Embedding,
    pub(crate) blocks: Vec<Block>,
    pub(crate) head: Head,
}

#[derive(Clone, Copy)]
pub(crate) struct Options {
    pub(crate) ty: TensorType,
    pub(crate) post_norms: bool,
    pub(crate) qk_norm: bool,
    pub(crate) bias: bool,
    pub(crate) window: Option<usize>,
    pub(crate) soft_cap: Option<f32>,
    pub(crate) interleaved: bool,
    pub(crate) kv_heads: usize,
    pub(crate) kv: KvType,
}

pub(crate) const PLAIN: Options = Options {
    ty: TensorType::Q8_0,
    post_norms: false,
    qk_norm: false,
    bias: false,
    window: None,
    soft_cap: None,
    interleaved: true,
    kv_heads: 2,
    kv: KvType::F16,
};

pub(crate) fn build(options: Options) -> Model {
    let pool = ComputePool::new(1).unwrap();
    let mut rng = Rng(99);
    let (hidden, ffn, heads, head_dim, vocab, layers) = (64, 96, 6, 32, 50, 2);
    let kv_heads = options.kv_heads;
    let mut matrix = |rows: usize, cols: usize| {
        let bytes = random(options.ty, rows, cols, 0.3, &mut rng);
        PackedMatrix::pack(&pool, options.ty, rows, cols, &bytes).unwrap()
    };
    let norm = |len: usize| (0..len).map(|i| 0.8 + (i % 7) as f32 * 0.05).collect::<Vec<_>>();
    let mut projection = |rows: usize, cols: usize, biased: bool| Projection {
        matrix: matrix(rows, cols),
        bias: (biased && options.bias).then(|| (0..rows).map(|i| (i % 5) as f32 * 0.1 - 0.2).collect()),
    };
    let blocks = (0..layers)
        .map(|layer| Block {
            attn_norm: norm(hidden),
            q: projection(heads * head_dim, hidden, true),
            k: projection(kv_heads * head_dim, hidden, true),
            v: projection(kv_heads * head_dim, hidden, true),
            q_norm: options.qk_norm.then(|| norm(head_dim)),
            k_norm: options.qk_norm.then(|| norm(head_dim)),
            o: projection(hidden, heads * head_dim, false),
            post_attn_norm: options.post_norms.then(|| norm(hidden)),
            ffn_norm: norm(hidden),
            gate: projection(ffn, hidden, false),
            up: projection(ffn, hidden, false),
            down: projection(hidden, ffn, true),
            post_ffn_norm: options.post_norms.then(|| norm(hidden)),
            window: options.window.filter(|_| layer == 0),
            local_rope: layer == 0,
        })
        .collect();
    let rope = |dim: usize, base: f32| Rope {
        frequencies: (0..dim / 2).map(|i| base.powf(-2.0 * i as f32 / dim as f32)).collect(),
        magnitude: 1.0,
    };
    let table = projection(vocab, hidden, false).matrix;
    Model {
        shape: DecoderShape {
            hidden,
            ffn,
            heads,
            kv_heads,
            head_dim,
            layers,
            vocab,
            norm_eps: 1e-5,
            attention_scale: 0.2,
            attention_soft_cap: options.soft_cap,
            activation: if options.post_norms { Activation::GeluTanh } else { Activation::Silu },
            rope_interleaved: options.interleaved,
            kv: options.kv,
        },
        ropes: vec![rope(head_dim, 10_000.0), rope(head_dim / 2, 100.0)],
        embedding: Embedding { table: table.clone(), tokens: None, scale: 1.5 },
        blocks,
        head: Head { norm: norm(hidden), matrix: table, soft_cap: options.soft_cap },
    }
}
