use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::{Args, Subcommand, ValueEnum};
use orion::registry::write_atomic;
use orion::router::{
    AbstainAt, CachedEmbedder, ClassReport, DifficultyHead, DifficultyOptions, DifficultyRecord,
    DifficultyReport, Example, GramOptions, Head, HeadOptions, evaluate, evaluate_difficulty,
    is_difficulty_head, read_difficulty, read_examples,
};
use orion::runtime::{Precision, SentenceEncoder};
use orion::{Embedder, Error, Result, SystemClock, open_encoder, open_encoder_of_head};
use serde_json::{Value, json};

use crate::output::{self, table};

/// Texts whose vectors are kept, so that what is trained on and then measured is encoded once.
const CACHED_TEXTS: usize = 100_000;
/// Wrong answers that are shown to people.
const SHOWN: usize = 15;

#[derive(Debug, Args)]
pub(crate) struct Router {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train a head on labelled prompts, or with --difficulty on who was right
    Train(Train),
    /// Measure a head beside baselines
    Eval(Eval),
    /// Set temperature and threshold, or the share of strong calls, on other data
    Calibrate(Calibrate),
}

impl Router {
    pub(crate) fn run(&self) -> Result<()> {
        match &self.command {
            Command::Train(command) => command.run(),
            Command::Eval(command) => command.run(),
            Command::Calibrate(command) => command.run(),
        }
    }
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub(crate) enum PrecisionArg {
    #[default]
    Int7,
    Int8,
    F32,
}

impl From<PrecisionArg> for Precision {
    fn from(precision: PrecisionArg) -> Self {
        match precision {
            PrecisionArg::Int7 => Self::Int7,
            PrecisionArg::Int8 => Self::Int8,
            PrecisionArg::F32 => Self::F32,
        }
    }
}

#[derive(Debug, Args)]
struct DataArgs {
    /// The sentence encoder: a folder with config.json, tokenizer.json and weights
    #[arg(long, value_name = "DIR")]
    encoder: PathBuf,
    /// Arithmetic of the encoder; part of what a head is bound to [default: what the head was trained on, int7 to train]
    #[arg(long, value_enum, value_name = "NAME")]
    precision: Option<PrecisionArg>,
    /// CSV or JSON lines: text,label; for difficulty prompt,weak_right,strong_right; may be given several times
    #[arg(long, value_name = "FILE", required = true)]
    data: Vec<PathBuf>,
    /// Is one model enough? The data say which of two models was right
    #[arg(long)]
    difficulty: bool,
}

impl DataArgs {
    fn examples(&self) -> Result<Vec<Example>> {
        Ok(self.data.iter().map(|path| read_examples(path)).collect::<Result<Vec<_>>>()?.concat())
    }

    fn records(&self) -> Result<Vec<DifficultyRecord>> {
        Ok(self.data.iter().map(|path| read_difficulty(path)).collect::<Result<Vec<_>>>()?.concat())
    }

    /// The encoder that a head is measured with.
    fn encoder_of(&self, head: &Path) -> Result<SentenceEncoder> {
        match self.precision {
            None => open_encoder_of_head(&self.encoder, head),
            Some(precision) => open_encoder(&self.encoder, precision.into(), None),
        }
    }

    /// Whether the head and what was asked for speak of difficulty; if only one does, that is an error.
    fn is_difficulty(&self, head: &Path) -> Result<bool> {
        let of_difficulty = is_difficulty_head(head)?;
        if self.difficulty && !of_difficulty {
            let message = "a head of labels, not of difficulty; leave --difficulty out";
            return Err(Error::invalid(message).about(head.display().to_string()));
        }
        Ok(of_difficulty)
    }
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum Grams {
    /// Runs of words
    #[default]
    Words,
    /// Runs of words and of letters: for languages the encoder does not know
    Letters,
    /// Nothing but the embedding
    None,
}

#[derive(Debug, Args)]
struct Train {
    #[command(flatten)]
    data: DataArgs,
    /// Where the head is written
    #[arg(long, value_name = "HEAD")]
    out: PathBuf,
    /// Examples on which temperature and threshold are set [default: a sixth of the data]
    #[arg(long, value_name = "FILE", conflicts_with = "difficulty")]
    validation: Option<PathBuf>,
    /// Abstain where this share of the prompts in scope is still answered rightly [default: where accuracy and
    /// rejections are best together]
    #[arg(long, value_name = "SHARE", conflicts_with_all = ["difficulty", "never_abstain"])]
    in_scope: Option<f32>,
    /// Never abstain
    #[arg(long, conflicts_with = "difficulty")]
    never_abstain: bool,
    /// N-grams beside the embedding
    #[arg(long, value_enum, value_name = "KIND", default_value_t, conflicts_with = "difficulty")]
    grams: Grams,
    /// Layers of the encoder that are run, a part of what a head is bound to: fewer are faster [default: all]
    #[arg(long, value_name = "N")]
    depth: Option<usize>,
    /// Seed; the same data and seed give the same head
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Train {
    fn run(&self) -> Result<()> {
        let began = Instant::now();
        let precision = self.data.precision.unwrap_or_default().into();
        let encoder = open_encoder(&self.data.encoder, precision, self.depth)?;
        let embedder = CachedEmbedder::new(encoder, CACHED_TEXTS);
        let value = if self.data.difficulty {
            let records = self.data.records()?;
            let mut options = DifficultyOptions::default();
            options.seed = self.seed;
            DifficultyHead::train(&embedder, &records, &options)?.save(&self.out)?;
            json!({ "kind": "difficulty", "examples": records.len() })
        } else {
            let examples = self.data.examples()?;
            let validation = self.validation.as_deref().map(read_examples).transpose()?.unwrap_or_default();
            let mut options = HeadOptions::default().abstain(abstain_at(self.in_scope, self.never_abstain)?);
            options.grams = match self.grams {
                Grams::Words => GramOptions::default(),
                Grams::Letters => GramOptions::with_letters(),
                Grams::None => GramOptions::none(),
            };
            options.train.seed = self.seed;
            let head = Head::train(&embedder, &examples, &validation, &options)?;
            head.save(&self.out)?;
            json!({
                "kind": "labels",
                "examples": examples.len(),
                "labels": head.labels(),
                "label_fingerprint": head.label_fingerprint(),
                "threshold": finite(head.threshold()),
            })
        };
        let mut value = value;
        value["encoder"] = embedder.fingerprint().into();
        value["out"] = self.out.display().to_string().into();
        value["seconds"] = began.elapsed().as_secs_f64().into();
        if self.json {
            return output::print_json(&value);
        }
        output::print(&format!(
            "trained on {} examples in {:.1} s: {}\n",
            value["examples"],
            began.elapsed().as_secs_f64(),
            self.out.display()
        ))
    }
}

fn abstain_at(in_scope: Option<f32>, never: bool) -> Result<AbstainAt> {
    match in_scope {
        Some(share) if !(share > 0.0 && share <= 1.0) => {
            Err(Error::invalid(format!("--in-scope is {share}, expected a share above 0 and up to 1")))
        }
        Some(share) => Ok(AbstainAt::InScopeAccuracy(share)),
        None if never => Ok(AbstainAt::Never),
        None => Ok(AbstainAt::Best),
    }
}

/// JSON has no infinity: a head that never abstains has no threshold.
fn finite(value: f32) -> Value {
    if value.is_finite() { value.into() } else { Value::Null }
}

#[derive(Debug, Args)]
struct Eval {
    #[command(flatten)]
    data: DataArgs,
    /// The head
    #[arg(long, value_name = "HEAD")]
    head: PathBuf,
    /// Draw the curve (risk and coverage, or cost and quality) as SVG
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Eval {
    fn run(&self) -> Result<()> {
        let difficulty = self.data.is_difficulty(&self.head)?;
        let encoder = self.data.encoder_of(&self.head)?;
        let clock = SystemClock::new();
        let (svg, value, text) = if difficulty {
            let records = self.data.records()?;
            let head = DifficultyHead::load(&self.head, &encoder)?;
            let report = evaluate_difficulty(&head, &encoder, &records, &clock)?;
            (report.cost_quality_svg(), output::to_value(&report)?, difficulty_text(&report))
        } else {
            let examples = self.data.examples()?;
            let head = Head::load(&self.head, &encoder)?;
            let report = evaluate(&head, &encoder, &examples, &clock)?;
            (report.risk_coverage_svg(), output::to_value(&report)?, class_text(&report))
        };
        if let Some(path) = &self.plot {
            write_atomic(path, svg.as_bytes())?;
        }
        if self.json { output::print_json(&value) } else { output::print(&text) }
    }
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

fn latency_line(latency: &orion::router::Latency) -> String {
    let ms = |us: f64| us / 1000.0;
    format!(
        "a decision     {:.2} ms at the median, {:.2} ms at 95 %, {:.2} ms at 99 %\n",
        ms(latency.p50_us),
        ms(latency.p95_us),
        ms(latency.p99_us)
    )
}

fn class_text(report: &ClassReport) -> String {
    let mut text = format!(
        "accuracy       {} of {} in scope ({} if it never abstained)\n\
         baselines      random {}, majority {}, best single {}\n\
         abstained      {} of all\n\
         errors         {} in scope not answered, {} answered wrongly\n",
        percent(report.accuracy),
        report.in_scope,
        percent(report.accuracy_without_abstaining),
        percent(report.baselines.random),
        percent(report.baselines.majority),
        percent(report.baselines.best_single),
        percent(report.abstained),
        percent(report.wrongly_rejected),
        percent(1.0 - report.accuracy - report.wrongly_rejected),
    );
    if let (Some(caught), Some(accepted)) = (report.out_of_scope_recall, report.wrongly_accepted) {
        text += &format!(
            "out of scope   {} of {} rejected, {} answered\n",
            percent(caught),
            report.out_of_scope,
            percent(accepted)
        );
    }
    text += &format!("calibration    error {}\n", percent(report.ece));
    text += &latency_line(&report.latency);
    let labels: Vec<&String> = report.per_label.keys().collect();
    if labels.len() <= 12 {
        text += &format!("\nright label (rows), answer (columns)\n{}", matrix(report));
    }
    let wrong: Vec<_> =
        report.confusion.iter().filter(|cell| cell.label != cell.answer).take(SHOWN).collect();
    if !wrong.is_empty() && labels.len() > 12 {
        let mut rows = vec![["label", "answer", "times"].map(str::to_owned)];
        rows.extend(
            wrong.into_iter().map(|cell| [cell.label.clone(), cell.answer.clone(), cell.count.to_string()]),
        );
        text += &format!("\nmost frequent errors\n{}", table(&rows));
    }
    let mut rows = vec![["label", "examples", "recall", "precision", "abstained"].map(str::to_owned)];
    rows.extend(report.per_label.iter().map(|(label, of)| {
        [
            label.clone(),
            of.examples.to_string(),
            percent(of.recall),
            percent(of.precision),
            of.abstained.to_string(),
        ]
    }));
    text + "\n" + &table(&rows)
}

/// The confusion matrix as rows of numbers.
fn matrix(report: &ClassReport) -> String {
    let mut rows: Vec<&str> = report.confusion.iter().map(|cell| cell.label.as_str()).collect();
    rows.sort_unstable();
    rows.dedup();
    let mut columns: Vec<&str> = report.confusion.iter().map(|cell| cell.answer.as_str()).collect();
    columns.sort_unstable();
    columns.dedup();
    let width = |name: &str| name.chars().count().max(4);
    let first = rows.iter().map(|row| width(row)).max().unwrap_or(4);
    let mut text = " ".repeat(first);
    for column in &columns {
        text += &format!("  {column:>width$}", width = width(column));
    }
    text += "\n";
    for row in rows {
        text += &format!("{row:<first$}");
        for column in &columns {
            let cell = report.confusion.iter().find(|cell| cell.label == row && cell.answer == *column);
            text += &format!("  {:>width$}", cell.map_or(0, |cell| cell.count), width = width(column));
        }
        text += "\n";
    }
    text
}

fn difficulty_text(report: &DifficultyReport) -> String {
    let share = |share: Option<f64>| share.map_or_else(|| "never".to_owned(), percent);
    let mut text = format!(
        "gap recovered  {} on average over all shares of strong calls (random 50.0 %)\n\
         strong calls   {} for half of the gap, {} for 80 % of it\n\
         baselines      weak alone {}, strong alone (best single) {}, oracle {}\n\
         errors         at half strong calls: {} wasted on the strong model, {} lost to the weak one\n\
         calibration    error {}\n",
        report.apgr.map_or_else(|| "not defined".to_owned(), |apgr| format!("{:.3}", apgr)),
        share(report.strong_share_at_50),
        share(report.strong_share_at_80),
        percent(report.weak_accuracy),
        percent(report.strong_accuracy),
        percent(report.oracle_accuracy),
        percent(report.waste),
        percent(report.quality_risk),
        percent(report.ece),
    );
    text += &latency_line(&report.latency);
    let mut rows = vec![["strong calls", "accuracy", "random"].map(str::to_owned)];
    rows.extend(
        report
            .curve
            .iter()
            .step_by(10)
            .map(|point| [percent(point.strong_share), percent(point.accuracy), percent(point.random)]),
    );
    text + "\n" + &table(&rows)
}

#[derive(Debug, Args)]
struct Calibrate {
    #[command(flatten)]
    data: DataArgs,
    /// The head
    #[arg(long, value_name = "HEAD")]
    head: PathBuf,
    /// Where the calibrated head is written; it may be the same file
    #[arg(long, value_name = "HEAD")]
    out: PathBuf,
    /// Of labels: abstain where this share of the prompts in scope is still answered rightly
    #[arg(long, value_name = "SHARE")]
    in_scope: Option<f32>,
    /// Of labels: never abstain
    #[arg(long, conflicts_with = "in_scope")]
    never_abstain: bool,
    /// Of difficulty: the share of calls that may go to the strong model
    #[arg(long, value_name = "SHARE", conflicts_with_all = ["in_scope", "never_abstain"])]
    share: Option<f32>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Calibrate {
    fn run(&self) -> Result<()> {
        let embedder = CachedEmbedder::new(self.data.encoder_of(&self.head)?, CACHED_TEXTS);
        let (value, text) = if self.data.is_difficulty(&self.head)? {
            let share =
                self.share.ok_or_else(|| Error::invalid("--share is needed for a head of difficulty"))?;
            if !(0.0..=1.0).contains(&share) {
                return Err(Error::invalid(format!("--share is {share}, expected 0 to 1")));
            }
            let records = self.data.records()?;
            let prompts: Vec<&str> = records.iter().map(|record| record.prompt.as_str()).collect();
            let head = DifficultyHead::load(&self.head, &embedder)?.calibrated(&embedder, &prompts)?;
            head.save(&self.out)?;
            let threshold = head.threshold_for_share(share);
            let judged = head.judge_all(&embedder, &prompts)?;
            let strong = judged.iter().filter(|difficulty| difficulty.gain > threshold).count();
            let right = |(difficulty, record): &(&orion::router::Difficulty, &DifficultyRecord)| {
                if difficulty.gain > threshold { record.strong_right } else { record.weak_right }
            };
            let right = judged.iter().zip(&records).filter(right).count();
            let of_all = |count: usize| count as f64 / records.len() as f64;
            let value = json!({
                "kind": "difficulty",
                "share": share,
                "threshold": finite(threshold),
                "strong_share": of_all(strong),
                "accuracy": of_all(right),
            });
            let text = format!(
                "a gain above {threshold:+.3} calls the strong model: {} of these {} prompts, {} right\n",
                percent(of_all(strong)),
                records.len(),
                percent(of_all(right)),
            );
            (value, text)
        } else {
            if self.share.is_some() {
                return Err(Error::invalid("--share is for heads of difficulty"));
            }
            let examples = self.data.examples()?;
            let rule = abstain_at(self.in_scope, self.never_abstain)?;
            let head = Head::load(&self.head, &embedder)?.calibrated(&embedder, &examples, rule)?;
            head.save(&self.out)?;
            let report = evaluate(&head, &embedder, &examples, &SystemClock::new())?;
            let value = json!({
                "kind": "labels",
                "temperature": head.temperature(),
                "threshold": finite(head.threshold()),
                "accuracy": report.accuracy,
                "abstained": report.abstained,
                "out_of_scope_recall": report.out_of_scope_recall,
                "ece": report.ece,
            });
            let text = format!(
                "temperature {:.3}, threshold {:.2}: {} right and {} abstained on these {} examples\n",
                head.temperature(),
                head.threshold(),
                percent(report.accuracy),
                percent(report.abstained),
                examples.len(),
            );
            (value, text)
        };
        let mut value = value;
        value["out"] = self.out.display().to_string().into();
        if self.json { output::print_json(&value) } else { output::print(&text) }
    }
}
