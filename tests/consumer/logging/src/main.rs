//! `orion-logging` alone: a secret does not reach the log.

use std::time::Duration;

use orion_logging::{Format, Logging};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let log = Logging::builder().levels("info").format(Format::Json).ignore_environment().install()?;
    tracing::info!(prompt = "my secret plan", "key=sk-0123456789abcdef");
    assert!(log.flush(Duration::from_secs(5)));
    let line = &log.captured()[0];
    assert!(!line.contains("secret plan") && !line.contains("0123456789abcdef"), "{line}");
    println!("logging: {line}");
    Ok(())
}
