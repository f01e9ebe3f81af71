//! What a head is worth on examples it has not seen, beside baselines.

use std::collections::BTreeMap;
use std::time::Duration;

use orion_core::{Clock, Embedder, Error, Result};
use serde::Serialize;

use crate::calibrate::calibration_error;
use crate::data::{DifficultyRecord, Example, OUT_OF_SCOPE};
use crate::difficulty::DifficultyHead;
use crate::head::Head;

/// Percentiles of the time per decision, in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Latency {
    /// Half of the decisions were faster.
    pub p50_us: f64,
    /// 95 % were faster.
    pub p95_us: f64,
    /// 99 % were faster.
    pub p99_us: f64,
}

impl Latency {
    /// Percentiles of some times; zeros for none.
    #[must_use]
    pub fn of(mut times: Vec<Duration>) -> Self {
        times.sort();
        let at = |share: f64| {
            let last = times.len().checked_sub(1)?;
            Some(times[(share * last as f64).round() as usize].as_secs_f64() * 1e6)
        };
        let at = |share| at(share).unwrap_or(0.0);
        Self { p50_us: at(0.5), p95_us: at(0.95), p99_us: at(0.99) }
    }
}

/// How one label fared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct LabelReport {
    /// Examples of the label.
    pub examples: usize,
    /// Of these, answered rightly.
    pub right: usize,
    /// Of these, abstained.
    pub abstained: usize,
    /// Examples of others that were given this label.
    pub wrongly_given: usize,
    /// `right / examples`.
    pub recall: f64,
    /// Of the times the label was given, how many were right.
    pub precision: f64,
}

/// One cell of the confusion matrix, off its diagonal too; `abstained` where there was no answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Confusion {
    /// The right label.
    pub label: String,
    /// What was answered.
    pub answer: String,
    /// How often.
    pub count: usize,
}

/// What answers without looking at the prompt would reach.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ClassBaselines {
    /// A label at random.
    pub random: f64,
    /// Always the most frequent label of the examples evaluated.
    pub majority: f64,
    /// The best a single model could do if every label were a model: the same number, seen from the model's side.
    pub best_single: f64,
}

/// Accuracy at one threshold of confidence.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct RiskPoint {
    /// Share of examples answered.
    pub coverage: f64,
    /// Share of wrong answers among them.
    pub risk: f64,
}

/// The report on a classification head.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ClassReport {
    /// Examples in all.
    pub examples: usize,
    /// Examples whose label the head knows.
    pub in_scope: usize,
    /// Of the examples in scope, answered rightly; an abstention counts as wrong.
    pub accuracy: f64,
    /// The same if the head never abstained.
    pub accuracy_without_abstaining: f64,
    /// Share of all examples without an answer.
    pub abstained: f64,
    /// Error in one direction: examples in scope that were not answered.
    pub wrongly_rejected: f64,
    /// Examples out of scope.
    pub out_of_scope: usize,
    /// Of these, rejected; `null` if there is none.
    pub out_of_scope_recall: Option<f64>,
    /// Error in the other direction: examples out of scope that were answered; `null` if there is none.
    pub wrongly_accepted: Option<f64>,
    /// Expected calibration error of the probabilities, in scope.
    pub ece: f64,
    /// Baselines, in scope.
    pub baselines: ClassBaselines,
    /// Per label.
    pub per_label: BTreeMap<String, LabelReport>,
    /// The confusion matrix's cells that are not zero, most frequent error first, the diagonal last.
    pub confusion: Vec<Confusion>,
    /// Risk against coverage when the least familiar prompts are rejected first, everything included.
    pub risk_coverage: Vec<RiskPoint>,
    /// Time per decision, one prompt at a time.
    pub latency: Latency,
}

/// Evaluates a classification head.
///
/// # Errors
/// No examples, a head of another encoder, what the embedder answers.
pub fn evaluate(
    head: &Head,
    embedder: &dyn Embedder,
    examples: &[Example],
    clock: &dyn Clock,
) -> Result<ClassReport> {
    if examples.is_empty() {
        return Err(Error::invalid("there is no example to evaluate on"));
    }
    let labels = head.labels();
    let mut per_label: BTreeMap<String, LabelReport> =
        labels.iter().map(|label| (label.clone(), LabelReport::default())).collect();
    let mut confusion: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    let mut times = Vec::with_capacity(examples.len());
    let mut calibration = Vec::new();
    let mut scored = Vec::with_capacity(examples.len());
    let (mut forced, mut right_count, mut abstained, mut rejected, mut foreign, mut caught) =
        (0, 0, 0, 0, 0, 0);
    for example in examples {
        let start = clock.now();
        let verdict = head.judge_all(embedder, &[&example.text])?.pop().expect("one prompt, one verdict");
        times.push(clock.now().since(start));
        let answer = &labels[verdict.label];
        abstained += usize::from(verdict.abstained);
        let given = if verdict.abstained { "abstained" } else { answer.as_str() };
        *confusion.entry((&example.label, given)).or_default() += 1;
        let right = *answer == example.label;
        scored.push((verdict.familiarity, right));
        if example.label == OUT_OF_SCOPE {
            foreign += 1;
            caught += usize::from(verdict.abstained);
        } else {
            let report = per_label.entry(example.label.clone()).or_default();
            report.examples += 1;
            report.right += usize::from(right && !verdict.abstained);
            report.abstained += usize::from(verdict.abstained);
            rejected += usize::from(verdict.abstained);
            forced += usize::from(right);
            right_count += usize::from(right && !verdict.abstained);
            calibration.push((verdict.probabilities[verdict.label], right));
        }
        if !right && !verdict.abstained {
            per_label.entry(answer.clone()).or_default().wrongly_given += 1;
        }
    }
    let in_scope = examples.len() - foreign;
    let share = |count: usize, of: usize| if of == 0 { 0.0 } else { count as f64 / of as f64 };
    for report in per_label.values_mut() {
        report.recall = share(report.right, report.examples);
        report.precision = share(report.right, report.right + report.wrongly_given);
    }
    let most = per_label.values().map(|report| report.examples).max().unwrap_or(0);
    let mut cells: Vec<Confusion> = confusion
        .into_iter()
        .map(|((label, answer), count)| Confusion {
            label: label.to_owned(),
            answer: answer.to_owned(),
            count,
        })
        .collect();
    cells.sort_by(|a, b| (a.label == a.answer).cmp(&(b.label == b.answer)).then(b.count.cmp(&a.count)));
    Ok(ClassReport {
        examples: examples.len(),
        in_scope,
        accuracy: share(right_count, in_scope),
        accuracy_without_abstaining: share(forced, in_scope),
        abstained: share(abstained, examples.len()),
        wrongly_rejected: share(rejected, in_scope),
        out_of_scope: foreign,
        out_of_scope_recall: (foreign > 0).then(|| share(caught, foreign)),
        wrongly_accepted: (foreign > 0).then(|| share(foreign - caught, foreign)),
        ece: calibration_error(&calibration),
        baselines: ClassBaselines {
            random: 1.0 / labels.len() as f64,
            majority: share(most, in_scope),
            best_single: share(most, in_scope),
        },
        per_label,
        confusion: cells,
        risk_coverage: risk_coverage(scored),
        latency: Latency::of(times),
    })
}

/// At most 101 points, from the most familiar prompts to all.
fn risk_coverage(mut scored: Vec<(f32, bool)>) -> Vec<RiskPoint> {
    scored.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut wrong_so_far = Vec::with_capacity(scored.len());
    let mut wrong = 0;
    for (_, right) in &scored {
        wrong += usize::from(!right);
        wrong_so_far.push(wrong);
    }
    let points = scored.len().min(100);
    (1..=points)
        .map(|at| {
            let answered = at * scored.len() / points;
            RiskPoint {
                coverage: answered as f64 / scored.len() as f64,
                risk: f64::from(wrong_so_far[answered - 1] as u32) / answered as f64,
            }
        })
        .collect()
}

/// Quality at one share of strong calls.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct CostPoint {
    /// Share of calls that go to the strong model.
    pub strong_share: f64,
    /// Share of right answers.
    pub accuracy: f64,
    /// What a random choice of the same share reaches.
    pub random: f64,
}

/// The report on a difficulty head.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct DifficultyReport {
    /// Records.
    pub examples: usize,
    /// Accuracy of the weak model alone.
    pub weak_accuracy: f64,
    /// Accuracy of the strong model alone: the best single one, if it deserves its name.
    pub strong_accuracy: f64,
    /// Accuracy of asking, for each prompt, a model that is right if there is one.
    pub oracle_accuracy: f64,
    /// Average performance gap recovered, over all shares of strong calls (Ong et al. 2024): 0 for the weak
    /// model alone, 1 for the strong one; a random choice reaches 0.5. `null` if the strong model is no better.
    pub apgr: Option<f64>,
    /// The least share of strong calls that recovers half of the gap.
    pub strong_share_at_50: Option<f64>,
    /// The least share that recovers 80 % of it.
    pub strong_share_at_80: Option<f64>,
    /// At half of the calls strong: strong calls where the weak model was right as well, a waste.
    pub waste: f64,
    /// At half of the calls strong: weak calls that were wrong where the strong model was right, a loss of quality.
    pub quality_risk: f64,
    /// Calibration error of the chance that the weak model suffices.
    pub ece: f64,
    /// Accuracy against share of strong calls, 101 points.
    pub curve: Vec<CostPoint>,
    /// Time per decision, one prompt at a time.
    pub latency: Latency,
}

/// Evaluates a difficulty head.
///
/// # Errors
/// No records, a head of another encoder, what the embedder answers.
pub fn evaluate_difficulty(
    head: &DifficultyHead,
    embedder: &dyn Embedder,
    records: &[DifficultyRecord],
    clock: &dyn Clock,
) -> Result<DifficultyReport> {
    if records.is_empty() {
        return Err(Error::invalid("there is no record to evaluate on"));
    }
    let mut times = Vec::with_capacity(records.len());
    let mut judged = Vec::with_capacity(records.len());
    for record in records {
        let start = clock.now();
        judged.push(head.judge_all(embedder, &[&record.prompt])?[0]);
        times.push(clock.now().since(start));
    }
    let gains: Vec<f32> = judged.iter().map(|difficulty| difficulty.gain).collect();
    let suffices: Vec<(f32, bool)> = judged
        .iter()
        .zip(records)
        .map(|(difficulty, record)| (difficulty.weak_suffices, record.weak_right || !record.strong_right))
        .collect();
    let mut report = rank_difficulty(&gains, records);
    report.ece = calibration_error(&suffices);
    report.latency = Latency::of(times);
    Ok(report)
}

/// The report on any ranking of records, one gain each: strong calls go to the largest gains first, of equals to the
/// earlier. Calibration and latency are left at zero. For comparing a head with something else.
#[must_use]
pub fn rank_difficulty(gains: &[f32], records: &[DifficultyRecord]) -> DifficultyReport {
    let count = records.len();
    let total = count as f64;
    let sum = |pick: &dyn Fn(&DifficultyRecord) -> bool| records.iter().filter(|record| pick(record)).count();
    let weak = sum(&|record| record.weak_right);
    let strong = sum(&|record| record.strong_right);
    let mut order: Vec<usize> = (0..count).collect();
    order.sort_by(|&a, &b| gains[b].total_cmp(&gains[a]));
    // right[k]: right answers when the first k prompts of the order go to the strong model.
    let mut right = vec![weak as i64];
    for &at in &order {
        let change = i64::from(records[at].strong_right) - i64::from(records[at].weak_right);
        right.push(right[right.len() - 1] + change);
    }
    let gap = strong as f64 - weak as f64;
    let recovered = |k: usize| (right[k] - weak as i64) as f64 / gap;
    let better = gap > 0.0;
    let share_at = |part: f64| {
        let least = (0..=count).find(|&k| recovered(k) >= part)?;
        better.then_some(least as f64 / total)
    };
    let curve = (0..=100)
        .map(|percent| {
            let k = percent * count / 100;
            let strong_share = k as f64 / total;
            CostPoint {
                strong_share,
                accuracy: right[k] as f64 / total,
                random: (weak as f64 + gap * strong_share) / total,
            }
        })
        .collect();
    let (called, spared) = order.split_at(count / 2);
    let waste = called.iter().filter(|&&at| records[at].weak_right).count();
    let lost = spared.iter().filter(|&&at| records[at].strong_right && !records[at].weak_right).count();
    DifficultyReport {
        examples: count,
        weak_accuracy: weak as f64 / total,
        strong_accuracy: strong as f64 / total,
        oracle_accuracy: sum(&|record| record.weak_right || record.strong_right) as f64 / total,
        apgr: better.then(|| (0..=count).map(recovered).sum::<f64>() / (count + 1) as f64),
        strong_share_at_50: share_at(0.5),
        strong_share_at_80: share_at(0.8),
        waste: waste as f64 / total,
        quality_risk: lost as f64 / total,
        ece: 0.0,
        curve,
        latency: Latency::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(weak_right: bool, strong_right: bool) -> DifficultyRecord {
        DifficultyRecord { prompt: String::new(), weak_right, strong_right }
    }

    #[test]
    fn a_perfect_ranking_recovers_the_gap_early() {
        // Two of four prompts gain, none loses.
        let records = [record(false, true), record(true, true), record(false, true), record(false, false)];
        let report = rank_difficulty(&[0.9, 0.1, 0.8, 0.2], &records);
        assert_eq!(
            (report.weak_accuracy, report.strong_accuracy, report.oracle_accuracy),
            (0.25, 0.75, 0.75)
        );
        // Recovered at 0..=4 strong calls: 0, 1/2, 1, 1, 1.
        assert!((report.apgr.unwrap() - 3.5 / 5.0).abs() < 1e-12);
        assert_eq!((report.strong_share_at_50, report.strong_share_at_80), (Some(0.25), Some(0.5)));
        assert_eq!((report.waste, report.quality_risk), (0.0, 0.0));
        let worst = rank_difficulty(&[0.1, 0.9, 0.2, 0.8], &records);
        assert!((worst.apgr.unwrap() - 1.5 / 5.0).abs() < 1e-12);
        assert_eq!((worst.waste, worst.quality_risk), (0.25, 0.5));
        assert_eq!(rank_difficulty(&[0.0], &[record(true, false)]).apgr, None);
    }

    #[test]
    fn percentiles_and_risk() {
        let times = (1..=100).map(Duration::from_micros).collect();
        let latency = Latency::of(times);
        assert!((latency.p50_us - 51.0).abs() < 1.0 && (latency.p95_us - 95.0).abs() < 1.0);
        assert_eq!(Latency::of(Vec::new()), Latency::default());
        let curve = risk_coverage(vec![(0.1, false), (0.9, true), (0.5, true), (0.4, false)]);
        let points: Vec<_> = curve.iter().map(|point| (point.coverage, point.risk)).collect();
        assert_eq!(points, [(0.25, 0.0), (0.5, 0.0), (0.75, 1.0 / 3.0), (1.0, 0.5)]);
    }

    #[test]
    fn long_curves_have_a_hundred_points() {
        // 250 answers, the 50 least familiar of them wrong.
        let scored = (0..250).map(|at| (at as f32, at >= 50)).collect();
        let curve = risk_coverage(scored);
        assert_eq!(curve.len(), 100);
        for (at, point) in curve.iter().enumerate() {
            let answered = (at + 1) * 250 / 100;
            assert_eq!(point.coverage, answered as f64 / 250.0);
            assert_eq!(point.risk, answered.saturating_sub(200) as f64 / answered as f64);
        }
        assert_eq!(risk_coverage(Vec::new()), []);
    }

    #[test]
    fn a_curve_of_costs_at_every_percent() {
        // Ranked: two gains, a loss, and a draw both models answer.
        let records = [record(false, true), record(false, true), record(true, false), record(true, true)];
        let report = rank_difficulty(&[0.4, 0.3, 0.2, 0.1], &records);
        assert_eq!((report.weak_accuracy, report.strong_accuracy, report.oracle_accuracy), (0.5, 0.75, 1.0));
        assert_eq!(report.curve.len(), 101);
        for (percent, accuracy) in [(0, 0.5), (24, 0.5), (25, 0.75), (50, 1.0), (75, 0.75), (100, 0.75)] {
            let point = report.curve[percent];
            let share = (percent / 25) as f64 / 4.0;
            assert_eq!(
                (point.strong_share, point.accuracy, point.random),
                (share, accuracy, 0.5 + 0.25 * share)
            );
        }
        // Of a gap of one: 0, 1, 2, 1, 1 recovered.
        assert_eq!(
            (report.apgr, report.strong_share_at_50, report.strong_share_at_80),
            (Some(1.0), Some(0.25), Some(0.25))
        );
        assert_eq!((report.waste, report.quality_risk), (0.0, 0.0));
        let backwards = rank_difficulty(&[0.1, 0.2, 0.3, 0.4], &records);
        assert_eq!((backwards.waste, backwards.quality_risk), (0.5, 0.5));
    }

    #[test]
    fn percentiles_round_to_the_nearest_time() {
        let latency = Latency::of((0..=200).rev().map(Duration::from_micros).collect());
        assert_eq!(
            (latency.p50_us.round(), latency.p95_us.round(), latency.p99_us.round()),
            (100.0, 190.0, 198.0)
        );
        let one = Latency::of(vec![Duration::from_millis(2)]);
        assert_eq!((one.p50_us.round(), one.p99_us.round()), (2000.0, 2000.0));
    }
}
