//! Setting it up.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use orion_core::{Clock, Error, Result, SystemClock};
use tracing::Subscriber;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::reload;

use crate::capture::{CaptureStatistics, Ring};
use crate::layer::{OrionLayer, Output, Shared};
use crate::levels;
use crate::record::Format;
use crate::redact::Redactor;
use crate::writer::{NonBlocking, RotatingFile, Rotation};

/// Sets up logging. See [`Logging::builder`].
#[derive(Debug)]
pub struct Logging;

impl Logging {
    /// Logging to standard error: pretty lines on a terminal, JSON lines elsewhere; ORION's crates from `info`,
    /// others from `warn`; the environment is looked at.
    #[must_use]
    pub fn builder() -> LoggingBuilder {
        LoggingBuilder {
            levels: levels::DEFAULT.to_owned(),
            verbose_levels: levels::VERBOSE.to_owned(),
            verbose: false,
            format: None,
            sinks: vec![Sink::Stderr],
            queue: 8192,
            capture: 1024,
            redactor: Redactor::new(),
            clock: Arc::new(SystemClock::new()),
            environment: Box::new(|name| std::env::var(name).ok()),
        }
    }
}

/// Looks a variable up.
type Environment = Box<dyn Fn(&str) -> Option<String> + Send>;

enum Sink {
    Stderr,
    File(PathBuf, Rotation, Option<Format>),
    Custom(Box<dyn Write + Send>, Format),
}

/// What logging shall do. The environment overrides it, unless [`ignore_environment`](Self::ignore_environment) is
/// called: `ORION_LOG` sets levels, `ORION_LOG_VERBOSE=1` the verbose switch, `ORION_LOG_FORMAT` the format of
/// standard error, `ORION_LOG_FILE` adds a file. What may be written of prompts and secrets cannot be set from there.
pub struct LoggingBuilder {
    levels: String,
    verbose_levels: String,
    verbose: bool,
    format: Option<Format>,
    sinks: Vec<Sink>,
    queue: usize,
    capture: usize,
    redactor: Redactor,
    clock: Arc<dyn Clock>,
    environment: Environment,
}

impl std::fmt::Debug for LoggingBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoggingBuilder")
            .field("levels", &self.levels)
            .field("outputs", &self.sinks.len())
            .finish()
    }
}

impl LoggingBuilder {
    /// Levels: `info,router=debug,hyper=off`. `warn,orion=info` unless set.
    #[must_use]
    pub fn levels(mut self, levels: impl Into<String>) -> Self {
        self.levels = levels.into();
        self
    }

    /// Levels while the verbose switch is on. `info,orion=debug` unless set.
    #[must_use]
    pub fn verbose_levels(mut self, levels: impl Into<String>) -> Self {
        self.verbose_levels = levels.into();
        self
    }

    /// Starts with the verbose switch on.
    #[must_use]
    pub fn verbose(mut self, on: bool) -> Self {
        self.verbose = on;
        self
    }

    /// Format of standard error, in place of pretty on a terminal and JSON elsewhere.
    #[must_use]
    pub fn format(mut self, format: Format) -> Self {
        self.format = Some(format);
        self
    }

    /// Does not write to standard error.
    #[must_use]
    pub fn quiet(mut self) -> Self {
        self.sinks.retain(|sink| !matches!(sink, Sink::Stderr));
        self
    }

    /// Also writes JSON lines to a file.
    #[must_use]
    pub fn file(mut self, path: impl Into<PathBuf>, rotation: Rotation) -> Self {
        self.sinks.push(Sink::File(path.into(), rotation, None));
        self
    }

    /// Also writes pretty lines to a file.
    #[must_use]
    pub fn pretty_file(mut self, path: impl Into<PathBuf>, rotation: Rotation) -> Self {
        self.sinks.push(Sink::File(path.into(), rotation, Some(Format::Pretty)));
        self
    }

    /// Also writes to anything that takes bytes, on a thread of its own.
    #[must_use]
    pub fn writer(mut self, writer: impl Write + Send + 'static, format: Format) -> Self {
        self.sinks.push(Sink::Custom(Box::new(writer), format));
        self
    }

    /// Lines each output may lag behind before lines are dropped. 8192 unless set.
    #[must_use]
    pub fn queue(mut self, lines: usize) -> Self {
        self.queue = lines;
        self
    }

    /// Events kept in memory; 0 keeps none. 1024 unless set.
    #[must_use]
    pub fn capture(mut self, events: usize) -> Self {
        self.capture = events;
        self
    }

    /// Replaces the rules of redaction.
    #[must_use]
    pub fn redactor(mut self, redactor: Redactor) -> Self {
        self.redactor = redactor;
        self
    }

    /// Replaces the clock.
    #[must_use]
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Takes variables from `lookup` in place of the process's environment.
    #[must_use]
    pub fn environment(mut self, lookup: impl Fn(&str) -> Option<String> + Send + 'static) -> Self {
        self.environment = Box::new(lookup);
        self
    }

    /// Does not look at the environment.
    #[must_use]
    pub fn ignore_environment(self) -> Self {
        self.environment(|_| None)
    }

    fn apply_environment(&mut self) -> Result<()> {
        let set = |name: &str| (self.environment)(name).filter(|value| !value.trim().is_empty());
        let (levels, verbose) = (set("ORION_LOG"), set("ORION_LOG_VERBOSE"));
        let (format, file) = (set("ORION_LOG_FORMAT"), set("ORION_LOG_FILE"));
        if let Some(levels) = levels {
            levels::parse(&levels).map_err(|error| error.about("ORION_LOG"))?;
            self.levels = levels;
        }
        if let Some(verbose) = verbose {
            self.verbose = match verbose.trim() {
                "1" | "true" | "on" => true,
                "0" | "false" | "off" => false,
                other => {
                    let message = format!("{other:?} is neither 1 nor 0");
                    return Err(Error::invalid(message).about("ORION_LOG_VERBOSE"));
                }
            };
        }
        if let Some(format) = format {
            self.format = Some(Format::parse(&format).map_err(|error| error.about("ORION_LOG_FORMAT"))?);
        }
        if let Some(file) = file {
            self.sinks.push(Sink::File(file.into(), Rotation::default(), None));
        }
        Ok(())
    }

    /// A layer for a subscriber of your own, and the handle to it. The layer brings its filter along; what it
    /// filters out, other layers still see.
    ///
    /// # Errors
    /// Levels or environment that make no sense, a file that cannot be opened, a thread that cannot be started.
    pub fn layer<S>(mut self) -> Result<(impl Layer<S> + Send + Sync, LogHandle)>
    where
        S: Subscriber + for<'s> LookupSpan<'s> + Send + Sync,
    {
        self.apply_environment()?;
        let verbose = levels::parse(&self.verbose_levels)?;
        let normal = levels::parse(&self.levels)?;
        let mut outputs = Vec::new();
        for sink in self.sinks {
            let clock = Arc::clone(&self.clock);
            let terminal = || std::io::stderr().is_terminal();
            let (format, colours, sink): (_, _, Box<dyn Write + Send>) = match sink {
                Sink::Stderr => {
                    let format =
                        self.format.unwrap_or(if terminal() { Format::Pretty } else { Format::Json });
                    let colours = terminal() && (self.environment)("NO_COLOR").is_none_or(|it| it.is_empty());
                    (format, colours, Box::new(std::io::stderr()))
                }
                Sink::File(path, rotation, format) => {
                    let about = path.display().to_string();
                    let file = RotatingFile::open(&path, rotation, clock);
                    let file = file.map_err(|error| Error::io(error, about))?;
                    (format.unwrap_or(Format::Json), false, Box::new(file))
                }
                Sink::Custom(writer, format) => (format, false, writer),
            };
            let writer = NonBlocking::start(sink, self.queue, format, Arc::clone(&self.clock));
            let writer = writer.map_err(|error| Error::io(error, "log thread"))?;
            outputs.push(Output { format, colours, writer });
        }
        let ring = Ring::new(self.capture);
        let shared = Arc::new(Shared { outputs, ring, redactor: self.redactor, clock: self.clock });
        let first = if self.verbose { verbose.clone() } else { normal.clone() };
        let (filter, reload) = reload::Layer::new(first);
        let control = Control {
            apply: Box::new(move |targets| {
                // It fails only if the subscriber is gone, and then nothing is filtered any more.
                let _gone = reload.reload(targets);
            }),
            verbose: AtomicBool::new(self.verbose),
            levels: Mutex::new((normal, verbose)),
        };
        let handle = LogHandle {
            shared: Arc::clone(&shared),
            control: Arc::new(control),
            installed: Installed::Layer,
        };
        Ok((OrionLayer(shared).with_filter(filter), handle))
    }

    /// Makes this the process's logging. Doing so again is no error: where ORION's logging is installed already, its
    /// handle is given and the new levels are applied to it; where the program has a subscriber of its own, that one
    /// stays, and [`LogHandle::installed`] says so.
    ///
    /// # Errors
    /// As [`layer`](Self::layer).
    pub fn install(self) -> Result<LogHandle> {
        static OURS: OnceLock<LogHandle> = OnceLock::new();
        static INSTALLING: Mutex<()> = Mutex::new(());
        let _one_at_a_time = INSTALLING.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(ours) = OURS.get() {
            let mut settings = self;
            settings.apply_environment()?;
            ours.set_levels(&settings.levels)?;
            ours.set_verbose(settings.verbose);
            return Ok(LogHandle { installed: Installed::Already, ..ours.clone() });
        }
        let (layer, handle) = self.layer()?;
        let installed =
            match tracing::subscriber::set_global_default(tracing_subscriber::registry().with(layer)) {
                Ok(()) => Installed::Now,
                Err(_) => Installed::Foreign,
            };
        let handle = LogHandle { installed, ..handle };
        if installed == Installed::Now {
            OURS.get_or_init(|| handle.clone());
        }
        Ok(handle)
    }
}

/// What became of an installation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Installed {
    /// It is a layer; whoever made it puts it into a subscriber.
    Layer,
    /// It is the process's logging now.
    Now,
    /// ORION's logging was installed before; this is its handle.
    Already,
    /// The program has a subscriber of its own, which stays. Add [`LoggingBuilder::layer`] to it to see ORION's events.
    Foreign,
}

struct Control {
    apply: Box<dyn Fn(Targets) + Send + Sync>,
    verbose: AtomicBool,
    /// Normal and verbose.
    levels: Mutex<(Targets, Targets)>,
}

/// Controls logging while it runs. Clones control the same logging.
#[derive(Clone)]
pub struct LogHandle {
    shared: Arc<Shared>,
    control: Arc<Control>,
    installed: Installed,
}

impl std::fmt::Debug for LogHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogHandle")
            .field("installed", &self.installed)
            .field("verbose", &self.is_verbose())
            .finish()
    }
}

impl LogHandle {
    /// What became of the installation.
    #[must_use]
    pub fn installed(&self) -> Installed {
        self.installed
    }

    /// Turns the verbose switch.
    pub fn set_verbose(&self, on: bool) {
        let levels = self.control.levels.lock().unwrap_or_else(PoisonError::into_inner);
        self.control.verbose.store(on, Ordering::Relaxed);
        (self.control.apply)(if on { levels.1.clone() } else { levels.0.clone() });
    }

    /// Whether the verbose switch is on.
    #[must_use]
    pub fn is_verbose(&self) -> bool {
        self.control.verbose.load(Ordering::Relaxed)
    }

    /// Replaces the levels and turns the verbose switch off.
    ///
    /// # Errors
    /// [`InvalidInput`](orion_core::ErrorKind::InvalidInput) if they make no sense; nothing changes then.
    pub fn set_levels(&self, levels: &str) -> Result<()> {
        let parsed = levels::parse(levels)?;
        self.control.levels.lock().unwrap_or_else(PoisonError::into_inner).0 = parsed;
        self.set_verbose(false);
        Ok(())
    }

    /// Waits until what was logged so far is written, at most for `timeout` per output. Whether it was.
    #[must_use]
    pub fn flush(&self, timeout: Duration) -> bool {
        let flushed: Vec<bool> =
            self.shared.outputs.iter().map(|output| output.writer.flush(timeout)).collect();
        flushed.into_iter().all(|flushed| flushed)
    }

    /// Lines that were dropped because an output lagged behind.
    #[must_use]
    pub fn dropped_lines(&self) -> u64 {
        self.shared.outputs.iter().map(|output| output.writer.losses().dropped.load(Ordering::Relaxed)).sum()
    }

    /// Lines that an output refused: the disk is full, the pipe closed.
    #[must_use]
    pub fn failed_lines(&self) -> u64 {
        self.shared.outputs.iter().map(|output| output.writer.losses().failed.load(Ordering::Relaxed)).sum()
    }

    /// The latest events, oldest first, each as a JSON object.
    #[must_use]
    pub fn captured(&self) -> Vec<String> {
        self.shared.ring.events()
    }

    /// What was captured, counted by level and component.
    #[must_use]
    pub fn statistics(&self) -> CaptureStatistics {
        self.shared.ring.statistics()
    }

    /// Statistics and captured events as one JSON object.
    #[must_use]
    pub fn export_capture(&self) -> String {
        self.shared.ring.export()
    }
}
