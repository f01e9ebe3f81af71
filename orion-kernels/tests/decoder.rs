//! The forward pass: against a plain implementation in double precision, and the law that chunks, batches, threads and
//! instruction sets change no bit.

#![allow(
    clippy::unwrap_used,
    clippy::needless_range_loop,
    reason = "a test: a panic is a failure, an index names what is compared"
)]

mod common;

use common::model::{Model, Options, PLAIN, build};
use orion_core::TensorType;
use orion_kernels::{
    Activation, ComputePool, DecoderShape, Isa, KvStore, KvType, PackedMatrix, Panel, Projection, Rope,
    Stages, Workspace,
};

/// Logits of every token, run in chunks of the given lengths.
fn run(model: &Model, isa: Isa, threads: usize, tokens: &[u32], chunks: &[usize]) -> Vec<u32> {
    let pool = ComputePool::new(threads).unwrap();
    let most = *chunks.iter().max().unwrap();
    let mut workspace = Workspace::new(pool, isa, model.shape.clone(), model.ropes.clone(), most).unwrap();
    let mut kv = KvStore::new(&model.shape).unwrap();
    kv.reserve(16);
    let pages: Vec<u32> = (0..16).rev().collect();
    let blocks = &model.blocks[..];
    let (mut start, mut out) = (0, Vec::new());
    for &count in chunks.iter().cycle() {
        let count = count.min(tokens.len() - start);
        if count == 0 {
            break;
        }
        let chunk = &tokens[start..start + count];
        workspace.begin();
        workspace.push(chunk.iter().copied(), start, &pages, [0, 1], count).unwrap();
        let mut logits = vec![0.0; count * model.shape.vocab];
        // Cut between the blocks every other time.
        let whole = Stages { embedding: Some(&model.embedding), first: 0, blocks, head: Some(&model.head) };
        if start % 2 == 0 {
            workspace.run(&mut kv, whole, &mut logits).unwrap();
        } else {
            workspace.run(&mut kv, Stages { blocks: &blocks[..1], head: None, ..whole }, &mut []).unwrap();
            let rest = Stages { embedding: None, first: 1, blocks: &blocks[1..], ..whole };
            workspace.run(&mut kv, rest, &mut logits).unwrap();
        }
        out.extend(logits.iter().map(|v| v.to_bits()));
        start += count;
    }
    out
}

fn decoded(matrix: &PackedMatrix) -> Vec<Vec<f64>> {
    let mut panel = Panel::default();
    (0..matrix.rows())
        .map(|row| {
            let mut out = vec![0.0; matrix.cols()];
            matrix.row(Isa::Scalar, row, &mut panel, &mut out).unwrap();
            out.into_iter().map(f64::from).collect()
        })
        .collect()
}

/// The same decoder in double precision, written down plainly.
fn reference(model: &Model, tokens: &[u32]) -> Vec<Vec<f64>> {
    let shape = &model.shape;
    let apply = |p: &Projection, x: &[f64]| -> Vec<f64> {
        let rows = decoded(&p.matrix);
        (0..rows.len())
            .map(|i| {
                rows[i].iter().zip(x).map(|(w, x)| w * x).sum::<f64>()
                    + p.bias.as_ref().map_or(0.0, |bias| f64::from(bias[i]))
            })
            .collect()
    };
    let norm = |x: &[f64], w: &[f32]| -> Vec<f64> {
        let mean = x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64 + f64::from(shape.norm_eps);
        x.iter().zip(w).map(|(v, w)| v / mean.sqrt() * f64::from(*w)).collect()
    };
    let opt_norm = |x: Vec<f64>, w: &Option<Vec<f32>>| w.as_ref().map_or(x.clone(), |w| norm(&x, w));
    let cap = |v: f64, cap: Option<f32>| cap.map_or(v, |c| f64::from(c) * (v / f64::from(c)).tanh());
    let rotate = |x: &mut [f64], position: usize, rope: &Rope| {
        let half = rope.frequencies.len();
        for (i, f) in rope.frequencies.iter().enumerate() {
            let (a, b) = if shape.rope_interleaved { (2 * i, 2 * i + 1) } else { (i, i + half) };
            let (s, c) = (position as f64 * f64::from(*f)).sin_cos();
            (x[a], x[b]) = (x[a] * c - x[b] * s, x[b] * c + x[a] * s);
        }
    };
    let table = decoded(&model.embedding.table);
    let mut xs: Vec<Vec<f64>> = tokens
        .iter()
        .map(|&t| table[t as usize].iter().map(|v| v * f64::from(model.embedding.scale)).collect())
        .collect();
    let add = |x: &mut [f64], y: &[f64]| x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
    for block in &model.blocks {
        let rope = &model.ropes[usize::from(block.local_rope)];
        let heads = |x: Vec<f64>, w: &Option<Vec<f32>>, position: usize| -> Vec<Vec<f64>> {
            x.chunks(shape.head_dim)
                .map(|head| {
                    let mut head = opt_norm(head.to_vec(), w);
                    rotate(&mut head, position, rope);
                    head
                })
                .collect()
        };
        let normed: Vec<Vec<f64>> = xs.iter().map(|x| norm(x, &block.attn_norm)).collect();
        let q: Vec<_> =
            normed.iter().enumerate().map(|(i, x)| heads(apply(&block.q, x), &block.q_norm, i)).collect();
        let k: Vec<_> =
            normed.iter().enumerate().map(|(i, x)| heads(apply(&block.k, x), &block.k_norm, i)).collect();
        let v: Vec<_> = normed.iter().map(|x| apply(&block.v, x)).collect();
        for i in 0..xs.len() {
            let mut mixed = Vec::new();
            for head in 0..shape.heads {
                let kv = head / (shape.heads / shape.kv_heads);
                let first = block.window.map_or(0, |w| (i + 1).saturating_sub(w));
                let scores: Vec<f64> = (first..=i)
                    .map(|j| {
                        let dot: f64 = q[i][head].iter().zip(&k[j][kv]).map(|(a, b)| a * b).sum();
                        cap(dot * f64::from(shape.attention_scale), shape.attention_soft_cap).exp()
                    })
                    .collect();
                let total: f64 = scores.iter().sum();
                for d in 0..shape.head_dim {
                    let values = (first..=i).map(|j| v[j][kv * shape.head_dim + d]);
                    mixed.push(values.zip(&scores).map(|(v, s)| v * s).sum::<f64>() / total);
                }
            }
            add(&mut xs[i], &opt_norm(apply(&block.o, &mixed), &block.post_attn_norm));
            let normed = norm(&xs[i], &block.ffn_norm);
            let (gate, up) = (apply(&block.gate, &normed), apply(&block.up, &normed));
            let h: Vec<f64> = gate
                .iter()
                .zip(up)
                .map(|(&g, u)| match shape.activation {
                    Activation::Silu => g / (1.0 + (-g).exp()) * u,
                    _ => 0.5 * g * (1.0 + (0.797_884_560_802_865_4 * (g + 0.044_715 * g * g * g)).tanh()) * u,
                })
                .collect();
            add(&mut xs[i], &opt_norm(apply(&block.down, &h), &block.post_ffn_norm));
        }
    }
    let head = Projection { matrix: model.head.matrix.clone(), bias: None };
    xs.iter()
        .map(|x| {
            apply(&head, &norm(x, &model.head.norm))
                .into_iter()
                .map(|v| cap(v, model.head.soft_cap))
                .collect()
        })
        .collect()
}

fn variants() -> Vec<Options> {
    vec![
        PLAIN,
        Options { bias: true, interleaved: false, kv_heads: 6, ..PLAIN },
        Options {
            post_norms: true,
            qk_norm: true,
            window: Some(70),
            interleaved: false,
            kv_heads: 1,
            ..PLAIN
        },
        Options { post_norms: true, soft_cap: Some(3.0), window: Some(200), kv_heads: 3, ..PLAIN },
        Options { ty: TensorType::F32, kv_heads: 1, window: Some(1), ..PLAIN },
        Options { kv: KvType::Q8, ..PLAIN },
        Options { kv: KvType::Q8, window: Some(70), qk_norm: true, kv_heads: 1, ..PLAIN },
        Options { kv: KvType::Q8, soft_cap: Some(3.0), kv_heads: 6, ..PLAIN },
    ]
}

fn tokens(count: usize) -> Vec<u32> {
    (0..count as u32).map(|i| i * 7919 % 50).collect()
}

#[test]
fn logits_match_double_precision() {
    let tokens = tokens(150);
    for (index, mut options) in variants().into_iter().enumerate() {
        // Float weights, so that only the halves of keys and values are approximate.
        options.ty = TensorType::F32;
        let model = build(options);
        let out = run(&model, Isa::best(), 2, &tokens, &[150]);
        let exact = reference(&model, &tokens);
        let (mut worst, mut greatest) = (0f64, 0f64);
        for (y, exact) in out.iter().zip(exact.iter().flatten()) {
            worst = worst.max((f64::from(f32::from_bits(*y)) - exact).abs());
            greatest = greatest.max(exact.abs());
        }
        // Halves round to 5e-4 of a value, bytes to 4e-3 of the greatest beside it; sums of many average that out.
        let bound = if options.kv == KvType::Q8 { 5e-2 } else { 2e-3 };
        assert!(worst < bound * greatest, "variant {index}: off by {worst} of {greatest}");
    }
}

#[test]
fn chunks_threads_and_instruction_sets_change_no_bit() {
    let tokens = tokens(300);
    for (index, options) in variants().into_iter().enumerate() {
        let model = build(options);
        let one = run(&model, Isa::best(), 1, &tokens, &[300]);
        for (threads, chunks) in
            [(2, &[300usize][..]), (3, &[1]), (1, &[1]), (2, &[128, 1, 5]), (2, &[63, 64, 2])]
        {
            assert!(
                run(&model, Isa::best(), threads, &tokens, chunks) == one,
                "variant {index}, {threads}, {chunks:?}"
            );
        }
        let short = &tokens[..140];
        for isa in Isa::available() {
            let prefix = run(&model, isa, 2, short, &[35]);
            assert!(prefix[..] == one[..prefix.len()], "variant {index} on {isa}");
        }
    }
}

#[test]
fn sequences_in_one_batch_do_not_touch_each_other() {
    for options in variants() {
        let model = build(options);
        let (a, b) = (tokens(200), tokens(333)[200..].to_vec());
        let alone = [run(&model, Isa::best(), 1, &a, &[200]), run(&model, Isa::best(), 1, &b, &[133])];
        let pool = ComputePool::new(2).unwrap();
        let mut workspace =
            Workspace::new(pool, Isa::best(), model.shape.clone(), model.ropes.clone(), 400).unwrap();
        let mut kv = KvStore::new(&model.shape).unwrap();
        kv.reserve(10);
        let pages = [[0, 2, 4, 6], [1, 3, 5, 7]];
        let blocks = &model.blocks[..];
        let stages = Stages { embedding: Some(&model.embedding), first: 0, blocks, head: Some(&model.head) };
        let vocab = model.shape.vocab;
        // A decodes while b prefills, then both decode.
        let mut done = [0, 0];
        for counts in [[190, 0], [1, 100], [1, 30], [1, 1], [1, 1], [1, 1], [5, 0]] {
            workspace.begin();
            let mut expected = Vec::new();
            for (s, text) in [&a, &b].into_iter().enumerate() {
                if counts[s] > 0 {
                    let chunk = text[done[s]..done[s] + counts[s]].iter().copied();
                    workspace.push(chunk, done[s], &pages[s], [0, 1], 1).unwrap();
                    done[s] += counts[s];
                    expected.extend_from_slice(&alone[s][(done[s] - 1) * vocab..done[s] * vocab]);
                }
            }
            let mut logits = vec![0.0; workspace.wanted_rows() * vocab];
            workspace.run(&mut kv, stages, &mut logits).unwrap();
            assert!(logits.iter().map(|v| v.to_bits()).eq(expected), "{counts:?}");
        }
    }
}

#[test]
fn bytes_take_half_the_room_and_other_heads_are_refused() {
    let shape = |head_dim, kv| DecoderShape { head_dim, kv, ..build(PLAIN).shape };
    let bytes = |kv| {
        let mut store = KvStore::new(&shape(64, kv)).unwrap();
        store.reserve(1);
        store.page_bytes()
    };
    assert_eq!(bytes(KvType::Q8) * 32, bytes(KvType::F16) * 17);
    let error = KvStore::new(&shape(48, KvType::Q8)).unwrap_err();
    assert_eq!(error.kind(), orion_core::ErrorKind::Unsupported);
    assert!(error.to_string().contains("48"), "{error}");
}

#[test]
fn misuse_is_refused() {
    let model = build(PLAIN);
    let pool = ComputePool::new(2).unwrap();
    let mut w = Workspace::new(pool, Isa::best(), model.shape.clone(), model.ropes.clone(), 8).unwrap();
    let mut kv = KvStore::new(&model.shape).unwrap();
    kv.reserve(1);
    let blocks = &model.blocks[..];
    let stages = Stages { embedding: Some(&model.embedding), first: 0, blocks, head: None };
    w.begin();
    assert!(w.push([50].into_iter(), 0, &[0], [0, 1], 0).is_err(), "no such token");
    assert!(w.push([1].into_iter(), 64, &[0], [0, 1], 0).is_err(), "too few pages");
    assert!(w.push([1; 9].into_iter(), 0, &[0], [0, 1], 0).is_err(), "too many rows");
    assert!(w.push([1].into_iter(), 0, &[0], [0, 2], 0).is_err(), "no such rope");
    assert!(w.run(&mut kv, stages, &mut []).is_ok(), "nothing pushed, nothing done");
    w.push([1].into_iter(), 0, &[1], [0, 1], 0).unwrap();
    assert!(w.run(&mut kv, stages, &mut []).is_err(), "page not reserved");
    w.begin();
    w.push([1].into_iter(), 0, &[0], [0, 1], 0).unwrap();
    w.push([1].into_iter(), 3, &[0], [0, 1], 0).unwrap();
    assert!(w.run(&mut kv, stages, &mut []).is_err(), "two sequences write one page");
    w.begin();
    w.push([1].into_iter(), 0, &[0], [0, 1], 1).unwrap();
    let head = Stages { head: Some(&model.head), ..stages };
    assert!(w.run(&mut kv, head, &mut []).is_err(), "no room for logits");
    assert!(w.run(&mut kv, Stages { first: 1, ..stages }, &mut []).is_err(), "more blocks than layers");
}
