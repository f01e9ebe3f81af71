//! Installing for the whole process. One test: what is installed stays.

#![allow(clippy::unwrap_used, reason = "in a test a panic is a failure")]

mod common;

use orion_logging::{Format, Installed, Logging, Prometheus};

#[test]
fn installing_twice_gives_the_first_again_with_the_new_levels() {
    let sink = common::Sink::default();
    let builder = Logging::builder().ignore_environment().quiet().levels("error");
    let first = builder.writer(sink.clone(), Format::Json).install().unwrap();
    assert_eq!(first.installed(), Installed::Now);
    tracing::info!("not yet");
    let second = Logging::builder().ignore_environment().levels("info").install().unwrap();
    assert_eq!(second.installed(), Installed::Already);
    tracing::info!("now");
    assert!(second.flush(common::LONG));
    let lines = common::values(&sink.text());
    assert_eq!((lines.len(), &lines[0]["message"]), (1, &"now".into()));
    assert_eq!(first.captured(), second.captured());

    let metrics = Prometheus::install().unwrap();
    let again = Prometheus::install().unwrap();
    orion_logging::metric::queue_depth(3);
    assert!(again.render().contains("orion_queue_depth 3"));
    assert_eq!(metrics.render(), again.render());
}
