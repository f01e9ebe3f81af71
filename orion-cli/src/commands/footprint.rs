//! What a model costs before and after: size, memory, time to load, time to the first token, perplexity.

use std::path::Path;
use std::process::Command;

use orion::{Error, ErrorKind, Result};
use serde_json::{Value, json};

use super::verify::Verdict;
use super::work::size;
use crate::output::table;

/// What one model costs. What could not be measured is not there.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Footprint {
    pub(crate) bytes: u64,
    peak_rss_bytes: Option<f64>,
    load_s: Option<f64>,
    ttft_s: Option<f64>,
    perplexity: Option<f64>,
}

/// A prompt of usual length.
const PROMPT: &str = "Explain in three sentences why the sky is blue.";

impl Footprint {
    pub(crate) fn of_size(bytes: u64) -> Self {
        Self { bytes, ..Self::default() }
    }

    /// Lets a process of its own answer with the model, since the memory of this one has seen too much.
    pub(crate) fn measure(&mut self, model: &Path) -> Result<()> {
        let binary = std::env::current_exe().map_err(|error| Error::io(error, "finding this program"))?;
        let run = Command::new(binary)
            .arg("generate")
            .arg("--model")
            .arg(model)
            .args(["--prompt", PROMPT, "-n", "1", "--json"])
            .output()
            .map_err(|error| Error::io(error, "starting this program"))?;
        let report: Value = serde_json::from_slice(&run.stdout).unwrap_or_default();
        if !run.status.success() {
            let message = report["error"]["message"].as_str().unwrap_or("ended without a word");
            return Err(Error::new(ErrorKind::Internal, message).about(model.display().to_string()));
        }
        self.peak_rss_bytes = report["peak_rss_mb"].as_f64().map(|mib| mib * f64::from(1 << 20));
        self.load_s = report["timings"]["load_s"].as_f64();
        self.ttft_s = report["timings"]["ttft_s"].as_f64();
        Ok(())
    }

    fn json(&self) -> Value {
        json!({
            "bytes": self.bytes,
            "peak_rss_bytes": self.peak_rss_bytes.map(|bytes| bytes as u64),
            "load_s": self.load_s,
            "ttft_s": self.ttft_s,
            "perplexity": self.perplexity,
        })
    }
}

/// One model before and after.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Comparison {
    pub(crate) before: Footprint,
    pub(crate) after: Footprint,
}

impl Comparison {
    pub(crate) fn smaller_percent(&self) -> f64 {
        100.0 * (1.0 - self.after.bytes as f64 / self.before.bytes.max(1) as f64)
    }

    pub(crate) fn judged(&mut self, verdict: &Verdict) {
        (self.before.perplexity, self.after.perplexity) = (Some(verdict.before), Some(verdict.after));
    }

    pub(crate) fn json(&self) -> Value {
        json!({ "before": self.before.json(), "after": self.after.json() })
    }

    /// A table; lines nothing was measured for are left out.
    pub(crate) fn text(&self) -> String {
        #[allow(clippy::cast_sign_loss, reason = "a size is not negative")]
        let bytes = |value: f64| size(value as u64);
        let seconds = |value: f64| format!("{value:.3} s");
        let plain = |value: f64| format!("{value:.3}");
        type Figure<'a> = (&'a str, fn(&Footprint) -> Option<f64>, &'a dyn Fn(f64) -> String);
        let figures: [Figure<'_>; 5] = [
            ("size", |it| Some(it.bytes as f64), &bytes),
            ("peak memory", |it| it.peak_rss_bytes, &bytes),
            ("load", |it| it.load_s, &seconds),
            ("first token", |it| it.ttft_s, &seconds),
            ("perplexity", |it| it.perplexity, &plain),
        ];
        let mut rows = vec![["", "before", "after", "change"].map(str::to_owned)];
        for (name, figure, shown) in figures {
            if let (Some(before), Some(after)) = (figure(&self.before), figure(&self.after)) {
                let change = 100.0 * (after / before - 1.0);
                rows.push([name.to_owned(), shown(before), shown(after), format!("{change:+.1} %")]);
            }
        }
        table(&rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_measured_is_not_shown() {
        let mut both =
            Comparison { before: Footprint::of_size(4_000_000), after: Footprint::of_size(1_000_000) };
        assert_eq!(both.smaller_percent(), 75.0);
        assert_eq!(both.text(), "      before  after   change\nsize  4.0 MB  1.0 MB  -75.0 %\n");
        (both.before.load_s, both.after.load_s) = (Some(0.5), Some(0.25));
        assert!(both.text().contains("load  0.500 s  0.250 s  -50.0 %"), "{}", both.text());
        assert_eq!(both.json()["after"]["load_s"], 0.25);
        assert_eq!(both.json()["after"]["ttft_s"], Value::Null);
    }
}
