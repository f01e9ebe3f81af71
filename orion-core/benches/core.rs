//! What every request pays: its machine from arrival to the end, and room in the memory budget.

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use orion_core::state::{Event, Trace};
use orion_core::{MemoryBudget, Timestamp};

fn benches(criterion: &mut Criterion) {
    let life = [Event::Validated, Event::Routed, Event::Admitted, Event::PrefillStarted];
    criterion.bench_function("core/request_of_100_tokens", |bench| {
        bench.iter(|| {
            let now = Timestamp(Duration::from_millis(1));
            let mut trace = Trace::new(now);
            let tokens = std::iter::repeat_n(Event::Token, 100);
            for event in life.into_iter().chain(tokens).chain([Event::Finished]) {
                trace.step(black_box(event), now).expect("a legal step");
            }
            trace
        });
    });
    let budget = MemoryBudget::new(1 << 30);
    criterion.bench_function("core/reserve_and_return", |bench| {
        bench.iter(|| budget.reserve(black_box(4096), "a page").expect("there is room"));
    });
}

criterion_group!(core, benches);
criterion_main!(core);
