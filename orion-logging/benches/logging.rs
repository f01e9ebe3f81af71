//! What logging costs the thread that logs.

use std::hint::black_box;
use std::io::{self, Write};

use criterion::{Criterion, criterion_group, criterion_main};
use orion_logging::{Format, Logging, Redactor};
use tracing_subscriber::layer::SubscriberExt;

/// Takes everything at once, so that what is measured is the calling thread.
struct Null;

impl Write for Null {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn events(c: &mut Criterion) {
    let builder = Logging::builder().ignore_environment().quiet().queue(1 << 16).writer(Null, Format::Json);
    let (layer, _handle) = builder.layer().expect("the defaults make sense");
    let _default = tracing::subscriber::set_default(tracing_subscriber::registry().with(layer));
    c.bench_function("disabled debug event", |b| {
        b.iter(|| tracing::debug!(target: "orion_router", model = black_box("small"), score = black_box(0.5), "chosen"));
    });
    c.bench_function("emitted JSON event, 5 fields", |b| {
        b.iter(|| {
            tracing::info!(
                target: "orion_router",
                model = black_box("smollm2-135m-instruct"),
                score = black_box(0.875),
                tokens = black_box(512u64),
                cached = black_box(true),
                reason = black_box("nearest example of class code"),
                "model chosen"
            );
        });
    });
    let span = tracing::info_span!(target: "orion_router", "request", id = "r42");
    let _entered = span.enter();
    c.bench_function("emitted JSON event, 5 fields, in a span", |b| {
        b.iter(|| {
            tracing::info!(
                target: "orion_router",
                model = black_box("smollm2-135m-instruct"),
                score = black_box(0.875),
                tokens = black_box(512u64),
                cached = black_box(true),
                reason = black_box("nearest example of class code"),
                "model chosen"
            );
        });
    });
}

fn redaction(c: &mut Criterion) {
    let redactor = Redactor::new();
    let clean = "loaded smollm2 in 213 ms from the cache, all tensors verified";
    let dirty = "retrying with api_key=sk-0123456789abcdef for ann@example.org";
    c.bench_function("redact 60 clean bytes", |b| b.iter(|| redactor.text(black_box(clean)).len()));
    c.bench_function("redact 60 dirty bytes", |b| b.iter(|| redactor.text(black_box(dirty)).len()));
}

fn metric(c: &mut Criterion) {
    c.bench_function("metric without recorder", |b| {
        b.iter(|| orion_logging::metric::queue_depth(black_box(3)))
    });
}

criterion_group!(benches, events, redaction, metric);
criterion_main!(benches);
