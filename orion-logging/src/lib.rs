#![doc = include_str!("../README.md")]
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod capture;
mod layer;
mod levels;
mod logging;
pub mod metric;
mod perf;
mod record;
mod redact;
mod request_log;
mod time;
mod writer;

pub use capture::CaptureStatistics;
pub use logging::{Installed, LogHandle, Logging, LoggingBuilder};
pub use metric::{METRICS, Prometheus};
pub use perf::{MemoryUse, Perf, log_memory, memory_use};
pub use record::Format;
pub use redact::Redactor;
pub use request_log::RequestLog;
pub use writer::Rotation;
