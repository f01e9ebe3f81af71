//! An output that can be read back.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use orion_logging::{Format, LogHandle, LoggingBuilder};
use tracing_subscriber::layer::SubscriberExt;

#[derive(Clone, Default)]
pub(crate) struct Sink(Arc<Mutex<Vec<u8>>>);

impl Sink {
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub(crate) const LONG: Duration = Duration::from_secs(60);

/// Runs `work` with a JSON and a pretty output and gives handle and both texts.
pub(crate) fn logged(builder: LoggingBuilder, work: impl FnOnce(&LogHandle)) -> (LogHandle, String, String) {
    let (json, pretty) = (Sink::default(), Sink::default());
    let builder = builder.quiet().writer(json.clone(), Format::Json).writer(pretty.clone(), Format::Pretty);
    let (layer, handle) = builder.layer().unwrap();
    tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || work(&handle));
    assert!(handle.flush(LONG));
    (handle, json.text(), pretty.text())
}

pub(crate) fn values(lines: &str) -> Vec<serde_json::Value> {
    lines.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}
