//! A decoding step allocates nothing.

#![allow(clippy::unwrap_used, reason = "a test: a panic is a failure, an index names what is compared")]
#![allow(unsafe_code, reason = "a global allocator that counts")]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use common::model::{PLAIN, build};
use orion_kernels::{ComputePool, Isa, KvStore, Stages, Workspace, top_k};

struct Counting;

static COUNT: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        // SAFETY: passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_decoding_step_allocates_nothing() {
    let model = build(PLAIN);
    let pool = ComputePool::new(2).unwrap();
    let mut workspace =
        Workspace::new(pool, Isa::best(), model.shape.clone(), model.ropes.clone(), 64).unwrap();
    let mut kv = KvStore::new(&model.shape).unwrap();
    kv.reserve(8);
    let stages = Stages {
        embedding: Some(&model.embedding),
        first: 0,
        blocks: &model.blocks,
        head: Some(&model.head),
    };
    let mut logits = vec![0.0; model.shape.vocab];
    let mut best = Vec::with_capacity(40);
    let mut step = |position: usize| {
        workspace.begin();
        let token = position as u32 % 50;
        workspace.push([token].into_iter(), position, &[0, 1, 2, 3, 4, 5, 6, 7], [0, 1], 1).unwrap();
        workspace.run(&mut kv, stages, &mut logits).unwrap();
        top_k(&logits, 40, &mut best);
    };
    (0..300).for_each(&mut step);
    let before = COUNT.load(Ordering::Relaxed);
    (300..380).for_each(&mut step);
    assert_eq!(COUNT.load(Ordering::Relaxed), before);
}
