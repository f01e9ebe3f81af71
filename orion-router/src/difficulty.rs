//! Is the weak model enough? Learned from records of which of two models answered rightly.

use std::path::Path;
use std::sync::Arc;

use orion_core::{Candidate, Decision, Digest, Embedder, Error, ModelId, Query, Ranked, Result, Router};
use serde::{Deserialize, Serialize};

use crate::data::{DifficultyRecord, split_by_text};
use crate::grams::GramOptions;
use crate::guard;
use crate::head::{Part, check_encoder, digest_of, featurise, load, save};
use crate::linear::shuffle;
use crate::ridge::KernelRidge;

const FORMAT: &str = "orion-router-difficulty-1";
const NAME: &str = "difficulty";
/// Outcomes as classes: bit 0 the weak model was right, bit 1 the strong one.
const OUTCOMES: usize = 4;

/// How a difficulty head is made: by kernel ridge regression of the outcomes on the embedding.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct DifficultyOptions {
    /// Most training prompts to compare with. A decision costs one inner product for each. Default 1000.
    pub landmarks: usize,
    /// Width of the kernel `exp(-γ |x - y|²)` on unit vectors: larger follows finer structure. Default 3.
    pub gamma: f32,
    /// Weight of the penalty; larger for noisier records. Default 10.
    pub regularisation: f32,
    /// Seed of the choice of landmarks.
    pub seed: u64,
}

impl Default for DifficultyOptions {
    fn default() -> Self {
        Self { landmarks: 1000, gamma: 3.0, regularisation: 10.0, seed: 1 }
    }
}

/// What a difficulty head says of a prompt.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Difficulty {
    /// Chance that calling the strong model gains nothing: the weak one is right, or both are wrong.
    pub weak_suffices: f32,
    /// Chance that only the strong model is right, less the chance that only the weak one is: what a strong call
    /// gains on average. Prompts are ranked by it.
    pub gain: f32,
}

/// A trained difficulty head.
#[derive(Debug, Clone, PartialEq)]
pub struct DifficultyHead {
    about: About,
    model: KernelRidge,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct About {
    format: String,
    encoder: String,
    gamma: f32,
    /// The gain at 0 %, 1 %, … 100 % of strong calls, on examples the model had not seen.
    gains: Vec<f32>,
    examples: usize,
    digest: Digest,
}

impl DifficultyHead {
    /// Trains on records. The shares of strong calls are set on the sixth of them that a first
    /// round leaves out.
    ///
    /// # Errors
    /// [`InvalidInput`](orion_core::ErrorKind::InvalidInput) for fewer than 20 records, or records that agree on
    /// one outcome; what the embedder answers.
    pub fn train(
        embedder: &dyn Embedder,
        records: &[DifficultyRecord],
        options: &DifficultyOptions,
    ) -> Result<Self> {
        let class =
            |record: &DifficultyRecord| usize::from(record.weak_right) + 2 * usize::from(record.strong_right);
        if records.len() < 20 {
            return Err(Error::invalid(format!(
                "{} records are too few, expected 20 or more",
                records.len()
            )));
        }
        if records.iter().all(|record| class(record) == class(&records[0])) {
            return Err(Error::invalid("all records have the same outcome, so there is nothing to learn"));
        }
        let texts: Vec<&str> = records.iter().map(|record| record.prompt.as_str()).collect();
        let features = featurise(embedder, &GramOptions::none(), &texts)?;
        let items: Vec<(&DifficultyRecord, &[f32])> =
            records.iter().zip(features.iter().map(|x| x.dense.as_slice())).collect();
        let fit = |items: &[(&DifficultyRecord, &[f32])]| {
            let inputs: Vec<&[f32]> = items.iter().map(|item| item.1).collect();
            let one_hot = |item: &(&DifficultyRecord, &[f32])| {
                let mut row = vec![0.0; OUTCOMES];
                row[class(item.0)] = 1.0;
                row
            };
            let targets: Vec<Vec<f32>> = items.iter().map(one_hot).collect();
            let mut order: Vec<usize> = (0..items.len()).collect();
            let mut random = options.seed;
            shuffle(&mut order, &mut random);
            order.truncate(options.landmarks.max(1));
            KernelRidge::fit(&inputs, &targets, &order, options.gamma, f64::from(options.regularisation))
        };
        let (kept, left) = split_by_text(items.clone(), 6, |(record, _)| &record.prompt);
        let (kept, left) =
            if kept.is_empty() || left.is_empty() { (items.clone(), items.clone()) } else { (kept, left) };
        let first = fit(&kept)?;
        let gains = shares(left.iter().map(|(_, x)| read(&first.predict(x)).gain).collect());
        let model = fit(&items)?;
        let about = About {
            format: FORMAT.to_owned(),
            encoder: embedder.fingerprint(),
            gamma: options.gamma,
            gains,
            examples: records.len(),
            digest: digest_of(&parts(&model)),
        };
        Ok(Self { about, model })
    }

    /// The same head with its shares of strong calls set on other prompts: what is easy for one traffic may be hard
    /// for another. Nobody has to know who would be right.
    ///
    /// # Errors
    /// [`InvalidInput`](orion_core::ErrorKind::InvalidInput) for no prompt; what [`judge_all`](Self::judge_all)
    /// answers.
    pub fn calibrated(mut self, embedder: &dyn Embedder, prompts: &[&str]) -> Result<Self> {
        if prompts.is_empty() {
            return Err(Error::invalid("there is no prompt to calibrate on"));
        }
        let judged = self.judge_all(embedder, prompts)?;
        self.about.gains = shares(judged.iter().map(|difficulty| difficulty.gain).collect());
        Ok(self)
    }

    /// The gain above which a call goes to the strong model, so that about `share` (0 to 1) of calls do.
    #[must_use]
    pub fn threshold_for_share(&self, share: f32) -> f32 {
        if share <= 0.0 {
            return f32::INFINITY;
        }
        if share >= 1.0 {
            return f32::NEG_INFINITY;
        }
        let place = share * 100.0;
        let (low, part) = (place.floor() as usize, place.fract());
        let gains = &self.about.gains;
        gains[low] + (gains[(low + 1).min(100)] - gains[low]) * part
    }

    /// Judges prompts, in order.
    ///
    /// # Errors
    /// An encoder the head was not trained on; what the embedder answers.
    pub fn judge_all(&self, embedder: &dyn Embedder, prompts: &[&str]) -> Result<Vec<Difficulty>> {
        self.check_encoder(embedder)?;
        let features = featurise(embedder, &GramOptions::none(), prompts)?;
        Ok(features.iter().map(|x| read(&self.model.predict(&x.dense))).collect())
    }

    fn check_encoder(&self, embedder: &dyn Embedder) -> Result<()> {
        let landmarks = (self.model.weights.len() / OUTCOMES).max(1);
        check_encoder(&self.about.encoder, embedder, self.model.landmarks.len() / landmarks)
    }

    /// Writes the head, as [`Head::save`](crate::Head::save) does.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        save(path, &self.about, &parts(&self.model))
    }

    /// Reads a head and refuses it if it was trained on another encoder than `embedder`.
    ///
    /// # Errors
    /// As [`Head::load`](crate::Head::load).
    pub fn load(path: &Path, embedder: &dyn Embedder) -> Result<Self> {
        Self::read(path, embedder).map_err(|error| error.about(path.display().to_string()))
    }

    fn read(path: &Path, embedder: &dyn Embedder) -> Result<Self> {
        let mut loaded = load(path, |about: &About| about.format == FORMAT)?;
        let weights = loaded.take("weights", OUTCOMES, None)?;
        let bias = loaded.take("bias", OUTCOMES, Some(1))?;
        let landmarks = loaded.take("landmarks", embedder.dimension(), None);
        // Another dimension means another encoder, which is the better message.
        check_encoder(&loaded.about.encoder, embedder, embedder.dimension())?;
        let landmarks = landmarks?;
        if landmarks.len() / embedder.dimension() != weights.len() / OUTCOMES {
            return Err(Error::corrupt("tensors landmarks and weights differ in their rows"));
        }
        let about = loaded.about;
        let model = KernelRidge { gamma: about.gamma, outputs: OUTCOMES, landmarks, weights, bias };
        if digest_of(&parts(&model)) != about.digest {
            return Err(Error::corrupt("the weights do not match their digest"));
        }
        if !about.gamma.is_finite() || about.gains.len() != 101 {
            return Err(Error::corrupt("gamma or gains out of range"));
        }
        Ok(Self { about, model })
    }
}

/// The gain at 0 %, 1 %, … 100 % of the prompts, largest first.
fn shares(mut gains: Vec<f32>) -> Vec<f32> {
    gains.sort_by(|a, b| b.total_cmp(a));
    (0..=100).map(|percent| gains[(percent * (gains.len() - 1)).div_ceil(100)]).collect()
}

/// Whether a head is one of difficulty, as far as its file says; of labels otherwise.
///
/// # Errors
/// [`Corrupt`](orion_core::ErrorKind::Corrupt) for a file that is no head; when it cannot be read.
pub fn is_difficulty_head(path: &Path) -> Result<bool> {
    #[derive(Deserialize)]
    struct Kind {
        format: String,
    }
    let loaded = load(path, |_: &Kind| true).map_err(|error| error.about(path.display().to_string()))?;
    Ok(loaded.about.format == FORMAT)
}

/// Fingerprint of the encoder that the head in a file was trained on, as far as the file says.
///
/// # Errors
/// As [`is_difficulty_head`].
pub fn encoder_of_head(path: &Path) -> Result<String> {
    #[derive(Deserialize)]
    struct Trained {
        encoder: String,
    }
    let loaded = load(path, |_: &Trained| true).map_err(|error| error.about(path.display().to_string()))?;
    Ok(loaded.about.encoder)
}

fn parts(model: &KernelRidge) -> [Part<'_>; 3] {
    let width = model.landmarks.len() / (model.weights.len() / OUTCOMES).max(1);
    [
        Part { name: "bias", values: &model.bias, width: OUTCOMES },
        Part { name: "landmarks", values: &model.landmarks, width },
        Part { name: "weights", values: &model.weights, width: OUTCOMES },
    ]
}

/// Regression on one-hot outcomes estimates their chances, but may leave 0 to 1.
fn read(outcomes: &[f32]) -> Difficulty {
    let p: Vec<f32> = outcomes.iter().map(|value| value.clamp(0.0, 1.0)).collect();
    let total = p.iter().sum::<f32>().max(f32::MIN_POSITIVE);
    // The ranking keeps what clamping would tie.
    Difficulty { weak_suffices: 1.0 - p[2] / total, gain: outcomes[2] - outcomes[1] }
}

/// Routes between two models by difficulty.
pub struct DifficultyRouter {
    embedder: Arc<dyn Embedder>,
    head: DifficultyHead,
    weak: ModelId,
    strong: ModelId,
    threshold: f32,
}

impl std::fmt::Debug for DifficultyRouter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DifficultyRouter")
            .field("weak", &self.weak)
            .field("strong", &self.strong)
            .field("threshold", &self.threshold)
            .finish_non_exhaustive()
    }
}

impl DifficultyRouter {
    /// Sends about `share` (0 to 1) of the calls to `strong`, the rest to `weak`.
    ///
    /// # Errors
    /// A head of another encoder, a share that is no number from 0 to 1.
    pub fn new(
        embedder: Arc<dyn Embedder>,
        head: DifficultyHead,
        (weak, strong): (ModelId, ModelId),
        share: f32,
    ) -> Result<Self> {
        head.check_encoder(&*embedder)?;
        if !(0.0..=1.0).contains(&share) {
            return Err(Error::invalid(format!("a share of strong calls of {share}, expected 0 to 1")));
        }
        let threshold = head.threshold_for_share(share);
        Ok(Self { embedder, head, weak, strong, threshold })
    }
}

impl Router for DifficultyRouter {
    fn route(&self, query: &Query<'_>, candidates: &[Candidate<'_>]) -> Result<Decision> {
        if let Some(abstained) = guard(query, candidates, NAME)? {
            return Ok(abstained);
        }
        let difficulty = self.head.judge_all(&*self.embedder, &[query.prompt])?[0];
        let strong = difficulty.gain > self.threshold;
        // The score of the chosen side is at least a half, so that it stands first.
        let sure = if strong { 1.0 - difficulty.weak_suffices } else { difficulty.weak_suffices };
        let score = |candidate: &Candidate<'_>| {
            let score = match (&candidate.spec.id, strong) {
                (id, true) if *id == self.strong => 0.5 + 0.5 * sure,
                (id, true) if *id == self.weak => 0.5 - 0.5 * sure,
                (id, false) if *id == self.weak => 0.5 + 0.5 * sure,
                (id, false) if *id == self.strong => 0.5 - 0.5 * sure,
                _ => 0.0,
            };
            Ranked { model: candidate.spec.id.clone(), score }
        };
        let ranked: Vec<Ranked> = candidates.iter().map(score).collect();
        let known = ranked.iter().any(|ranked| ranked.score > 0.0);
        let reason = format!(
            "{} suffices with probability {:.2}, a call of {} gains {:+.2} (threshold {:+.2})",
            self.weak, difficulty.weak_suffices, self.strong, difficulty.gain, self.threshold
        );
        let mut decision = Decision::new(ranked, 0.0, !known, reason, NAME);
        decision.confidence = decision.ranked[0].score;
        Ok(decision)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(gains: Vec<f32>) -> DifficultyHead {
        let model = KernelRidge {
            gamma: 1.0,
            outputs: OUTCOMES,
            landmarks: Vec::new(),
            weights: Vec::new(),
            bias: vec![0.0; OUTCOMES],
        };
        let about = About {
            format: FORMAT.to_owned(),
            encoder: "e".to_owned(),
            gamma: 1.0,
            gains,
            examples: 0,
            digest: digest_of(&parts(&model)),
        };
        DifficultyHead { about, model }
    }

    #[test]
    fn shares_are_the_gains_at_every_percent() {
        // 201 gains, two to a percent: the largest first, and between two the one further down.
        let gains = shares((0..201).map(|at| at as f32).collect());
        let expected: Vec<f32> = (0..=100).map(|percent| 200.0 - 2.0 * percent as f32).collect();
        assert_eq!(gains, expected);
        assert_eq!(shares(vec![1.0, 3.0])[..2], [3.0, 1.0]);
        assert_eq!(shares(vec![7.0]), [7.0; 101]);
    }

    #[test]
    fn thresholds_lie_between_the_gains_of_two_percents() {
        let head = head(shares((0..201).map(|at| at as f32).collect()));
        assert_eq!(head.threshold_for_share(0.0), f32::INFINITY);
        assert_eq!(head.threshold_for_share(1.0), f32::NEG_INFINITY);
        for (share, expected) in [(0.25, 150.0), (0.5, 100.0), (0.125, 175.0), (0.995, 1.0)] {
            assert!((head.threshold_for_share(share) - expected).abs() < 1e-3, "{share}");
        }
    }

    #[test]
    fn outcomes_are_read_as_chances() {
        // Neither, only the weak one, only the strong one, both.
        let it = read(&[0.1, 0.2, 0.3, 0.4]);
        assert!((it.weak_suffices - 0.7).abs() < 1e-6 && (it.gain - 0.1).abs() < 1e-6);
        // What lies beyond 0 to 1 is no chance, and still ranks.
        let it = read(&[-1.0, -0.5, 1.5, 0.25]);
        assert!((it.weak_suffices - 0.2).abs() < 1e-6 && (it.gain - 2.0).abs() < 1e-6);
        assert_eq!(read(&[0.0; 4]).weak_suffices, 1.0);
    }
}
