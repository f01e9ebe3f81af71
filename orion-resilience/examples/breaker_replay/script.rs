//! The mini-language of the conformance table: `id|config|script|anchor`, one row a line.
//!
//! A script is steps with blanks between. `S F Z Y I P X` ask (and must be permitted) and finish as success,
//! failure, slow success, slow failure, ignored, panic, cancelled. `p` must be permitted and is held, `r` must be refused.
//! `s f z y i x P!` finish the permit held longest. `tN` moves the clock on by N seconds (`t0.001` is a
//! millisecond). `=C =O =H =K =D =M` check the state: closed, open, half-open, forced open, disabled, metrics only.
//! `!O !K !D !M !R` open, force open, disable, metrics only, reset. `*n` after a step repeats it.

use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::Duration;

use orion_core::ManualClock;
use orion_resilience::{
    Backoff, BreakerSettings, BreakerState, CircuitBreaker, Judgement, OwnedPermit, SlowCalls, WindowKind,
};

/// Calls that are slow take this long; others take no time. The limit of config A is 4 s.
const SLOW: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Success,
    Failure,
    SlowSuccess,
    SlowFailure,
    Ignored,
    Panic,
    Cancelled,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Command {
    Open,
    ForceOpen,
    Disable,
    MetricsOnly,
    Reset,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Call(End),
    Hold,
    Refused,
    Finish(End),
    Advance(Duration),
    State(BreakerState),
    Do(Command),
}

/// One row of the table.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) id: String,
    pub(crate) config: String,
    /// Steps and how often each is repeated, numbered from 1 as they stand in the script.
    pub(crate) steps: Vec<(Step, u32)>,
}

/// Where a row went wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mismatch {
    pub(crate) step: usize,
    pub(crate) expected: String,
    pub(crate) got: String,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FAIL at step {}: expected {}, got {}", self.step, self.expected, self.got)
    }
}

/// The rows of a file, or what is wrong with each bad line. Blank lines and lines that begin with `#` are skipped.
pub(crate) fn parse(text: &str) -> Result<Vec<Row>, Vec<String>> {
    let mut rows = Vec::new();
    let mut errors = Vec::new();
    for (number, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match parse_row(line) {
            Ok(row) => rows.push(row),
            Err(message) => errors.push(format!("line {}: {message}", number + 1)),
        }
    }
    if rows.is_empty() && errors.is_empty() {
        errors.push("no rows".to_owned());
    }
    if errors.is_empty() { Ok(rows) } else { Err(errors) }
}

fn parse_row(line: &str) -> Result<Row, String> {
    let fields: Vec<&str> = line.splitn(4, '|').map(str::trim).collect();
    let [id, config, script, _anchor] = fields[..] else {
        return Err(format!("expected id|config|script|anchor, found {} of 4 fields", fields.len()));
    };
    if id.is_empty() {
        return Err("the id is empty".to_owned());
    }
    settings(config).ok_or_else(|| format!("config `{config}` is not one of A, B, C, E, G"))?;
    let steps = script
        .split_whitespace()
        .enumerate()
        .map(|(at, token)| {
            parse_step(token).map_err(|message| format!("step {} `{token}`: {message}", at + 1))
        })
        .collect::<Result<Vec<_>, _>>()?;
    if steps.is_empty() {
        return Err("the script is empty".to_owned());
    }
    let mut held = 0u64;
    for (at, (step, times)) in steps.iter().enumerate() {
        match step {
            Step::Hold => held += u64::from(*times),
            Step::Finish(_) => {
                held = held
                    .checked_sub(u64::from(*times))
                    .ok_or_else(|| format!("step {}: finishes a permit, but none is held", at + 1))?;
            }
            _ => {}
        }
    }
    Ok(Row { id: id.to_owned(), config: config.to_owned(), steps })
}

fn parse_step(token: &str) -> Result<(Step, u32), String> {
    let (base, times) = match token.split_once('*') {
        None => (token, 1),
        Some((base, times)) => {
            let count = times.parse().ok().filter(|count| (1..=1_000_000).contains(count));
            (base, count.ok_or_else(|| format!("`{times}` is not a count from 1 to 1000000"))?)
        }
    };
    let step = match base {
        "S" => Step::Call(End::Success),
        "F" => Step::Call(End::Failure),
        "Z" => Step::Call(End::SlowSuccess),
        "Y" => Step::Call(End::SlowFailure),
        "I" => Step::Call(End::Ignored),
        "P" => Step::Call(End::Panic),
        "X" => Step::Call(End::Cancelled),
        "p" => Step::Hold,
        "r" => Step::Refused,
        "s" => Step::Finish(End::Success),
        "f" => Step::Finish(End::Failure),
        "z" => Step::Finish(End::SlowSuccess),
        "y" => Step::Finish(End::SlowFailure),
        "i" => Step::Finish(End::Ignored),
        "P!" => Step::Finish(End::Panic),
        "x" => Step::Finish(End::Cancelled),
        "=C" => Step::State(BreakerState::Closed),
        "=O" => Step::State(BreakerState::Open),
        "=H" => Step::State(BreakerState::HalfOpen),
        "=K" => Step::State(BreakerState::ForcedOpen),
        "=D" => Step::State(BreakerState::Disabled),
        "=M" => Step::State(BreakerState::MetricsOnly),
        "!O" => Step::Do(Command::Open),
        "!K" => Step::Do(Command::ForceOpen),
        "!D" => Step::Do(Command::Disable),
        "!M" => Step::Do(Command::MetricsOnly),
        "!R" => Step::Do(Command::Reset),
        _ => match base.strip_prefix('t') {
            Some(seconds) => Step::Advance(parse_seconds(seconds)?),
            None => return Err("no such step".to_owned()),
        },
    };
    Ok((step, times))
}

/// Decimal seconds to the nanosecond, without rounding.
fn parse_seconds(text: &str) -> Result<Duration, String> {
    let bad = || format!("`{text}` is not a number of seconds such as 5 or 0.001");
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(fraction) || fraction.len() > 9 {
        return Err(bad());
    }
    // A thousand years is as far as a clock of nanoseconds can be moved with ease.
    let seconds = whole.parse().ok().filter(|&seconds| seconds <= 100_000_000).ok_or_else(bad)?;
    let nanos = format!("{fraction:0<9}").parse().map_err(|_| bad())?;
    Ok(Duration::new(seconds, nanos))
}

/// The configurations of the table.
pub(crate) fn settings(config: &str) -> Option<BreakerSettings> {
    let seconds = Duration::from_secs;
    let rate_only = BreakerSettings::new().consecutive_failures(None).minimum_calls(5).half_open_limit(None);
    let streak_only = BreakerSettings::new().failure_rate(None).half_open_limit(None);
    Some(match config {
        "A" => rate_only
            .window(WindowKind::Time(seconds(20)))
            .failure_rate(0.5)
            .slow_calls(SlowCalls { longer_than: seconds(4), rate: 0.5 })
            .half_open(4, Judgement::Rate)
            .wait(Backoff::constant(seconds(5)))
            .half_open_limit(seconds(1)),
        "B" => rate_only
            .window(WindowKind::Calls(5))
            .failure_rate(0.5)
            .half_open(4, Judgement::Rate)
            .wait(Backoff::constant(seconds(5))),
        "G" => rate_only
            .window(WindowKind::Time(seconds(30)))
            .minimum_calls(3)
            .failure_rate(0.6)
            .half_open(3, Judgement::FirstFailure)
            .wait(Backoff::constant(seconds(90))),
        "C" => streak_only
            .consecutive_failures(6)
            .half_open(1, Judgement::FirstFailure)
            .wait(Backoff::constant(seconds(60))),
        "E" => streak_only
            .consecutive_failures(3)
            .half_open(1, Judgement::FirstFailure)
            .wait(Backoff::exponential(seconds(5), seconds(40))),
        _ => return None,
    })
}

/// A breaker under replay.
pub(crate) struct Replay {
    pub(crate) breaker: Arc<CircuitBreaker>,
    clock: ManualClock,
    held: VecDeque<OwnedPermit>,
}

impl Replay {
    /// A breaker of the row's configuration.
    pub(crate) fn new(row: &Row) -> orion_core::Result<Self> {
        let clock = ManualClock::new();
        let settings = settings(&row.config).unwrap_or_default();
        let breaker = CircuitBreaker::new(row.id.as_str(), settings, Arc::new(clock.clone()))?;
        Ok(Self { breaker: Arc::new(breaker), clock, held: VecDeque::new() })
    }

    /// Holds a permit that was asked for elsewhere.
    #[allow(dead_code, reason = "the contended replay of the tests asks on other threads")]
    pub(crate) fn hold(&mut self, permit: OwnedPermit) {
        self.held.push_back(permit);
    }

    /// Does one step; what was expected and what came instead, if it was not as expected.
    pub(crate) fn step(&mut self, step: Step) -> Result<(), (String, String)> {
        let ask = || {
            CircuitBreaker::acquire_owned(&self.breaker)
                .map_err(|_| ("a permit".to_owned(), format!("a refusal in state {}", self.breaker.state())))
        };
        match step {
            Step::Call(end) => finish(ask()?, end),
            Step::Hold => {
                let permit = ask()?;
                self.held.push_back(permit);
            }
            Step::Refused => {
                if CircuitBreaker::acquire_owned(&self.breaker).is_ok() {
                    let got = format!("a permit in state {}", self.breaker.state());
                    return Err(("a refusal".to_owned(), got));
                }
            }
            Step::Finish(end) => {
                let permit = self.held.pop_front();
                finish(permit.ok_or_else(|| ("a held permit".to_owned(), "none".to_owned()))?, end);
            }
            Step::Advance(time) => self.clock.advance(time),
            Step::State(expected) => {
                let state = self.breaker.state();
                if state != expected {
                    return Err((format!("state {expected}"), format!("state {state}")));
                }
            }
            Step::Do(command) => match command {
                Command::Open => self.breaker.trip(),
                Command::ForceOpen => self.breaker.force_open(),
                Command::Disable => self.breaker.disable(),
                Command::MetricsOnly => self.breaker.metrics_only(),
                Command::Reset => self.breaker.reset(),
            },
        }
        Ok(())
    }
}

fn finish(permit: OwnedPermit, end: End) {
    match end {
        End::Success => permit.success(Duration::ZERO),
        End::Failure => permit.failure(Duration::ZERO),
        End::SlowSuccess => permit.success(SLOW),
        End::SlowFailure => permit.failure(SLOW),
        End::Ignored => permit.ignore(),
        End::Cancelled => drop(permit),
        End::Panic => {
            // Unwinds through the permit without the message a `panic!` prints.
            let unwound = catch_unwind(AssertUnwindSafe(move || {
                let _permit = permit;
                resume_unwind(Box::new("the call panicked"));
            }));
            debug_assert!(unwound.is_err());
        }
    }
}

/// Replays a row on a breaker of its own.
pub(crate) fn replay(row: &Row) -> Result<(), Mismatch> {
    let mut replay = Replay::new(row).map_err(|error| Mismatch {
        step: 0,
        expected: "a breaker".to_owned(),
        got: error.to_string(),
    })?;
    for (at, &(step, times)) in row.steps.iter().enumerate() {
        for _ in 0..times {
            replay.step(step).map_err(|(expected, got)| Mismatch { step: at + 1, expected, got })?;
        }
    }
    Ok(())
}

/// What the tool answers to a file of this text: exit status, standard output, standard error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) status: u8,
    pub(crate) output: String,
    pub(crate) errors: String,
}

/// Replays every row of a file, or says what is wrong with its lines.
pub(crate) fn report(path: &str, text: &str) -> Report {
    let rows = match parse(text) {
        Ok(rows) => rows,
        Err(errors) => {
            let errors = errors.iter().map(|error| format!("{path}: {error}\n")).collect();
            return Report { status: 2, output: String::new(), errors };
        }
    };
    let mut output = String::new();
    let mut passed = 0;
    for row in &rows {
        match replay(row) {
            Ok(()) => {
                passed += 1;
                output.push_str(&format!("{} pass\n", row.id));
            }
            Err(mismatch) => output.push_str(&format!("{} {mismatch}\n", row.id)),
        }
    }
    output.push_str(&format!("{passed} of {} pass\n", rows.len()));
    Report { status: u8::from(passed != rows.len()), output, errors: String::new() }
}
