//! Learning from outcomes: success rates per region of embedding space and model.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use orion_core::{Candidate, Clock, Decision, Embedder, Error, ModelId, Query, Ranked, Result, Router};
use serde::{Deserialize, Serialize};

use crate::embedding::dot;
use crate::guard;
use crate::head::write_atomically;
use crate::text::start_of;

const FORMAT: &str = "orion-router-feedback-1";

/// Options of a [`FeedbackRouter`].
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct FeedbackOptions {
    /// Most regions; the least used one makes room. Default 256.
    pub regions: usize,
    /// A prompt belongs to the nearest region if it is at least this similar (cosine), else it opens one.
    /// Default 0.6.
    pub similarity: f32,
    /// After this time an outcome counts half. Default 30 days.
    pub half_life: Duration,
    /// Outcomes that must be known of a model in a region before it changes anything there. Default 8.
    pub least_outcomes: f32,
    /// A model is moved only if its success rate differs from the others' by more than this many standard errors.
    /// Default 2.
    pub standard_errors: f32,
    /// The most a score moves. Default 0.5.
    pub strength: f32,
}

impl Default for FeedbackOptions {
    fn default() -> Self {
        Self {
            regions: 256,
            similarity: 0.6,
            half_life: Duration::from_secs(30 * 24 * 3600),
            least_outcomes: 8.0,
            standard_errors: 2.0,
            strength: 0.5,
        }
    }
}

/// Decayed counts of one model in one region.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Count {
    model: ModelId,
    right: f32,
    total: f32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Region {
    centre: Vec<f32>,
    counts: Vec<Count>,
    /// Wall-clock seconds at which the counts were last decayed.
    at: f64,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Memory {
    format: String,
    encoder: String,
    regions: Vec<Region>,
}

impl Region {
    fn decay(&mut self, now: f64, half_life: Duration) {
        // Wall clocks jump back; outcomes do not grow younger for it.
        let passed = (now - self.at).max(0.0);
        let factor = 0.5_f64.powf(passed / half_life.as_secs_f64().max(1.0)) as f32;
        self.at = self.at.max(now);
        for count in &mut self.counts {
            count.right *= factor;
            count.total *= factor;
        }
        self.counts.retain(|count| count.total > 0.01);
    }

    fn weight(&self) -> f32 {
        self.counts.iter().map(|count| count.total).sum()
    }
}

/// Moves the scores of a router by what became of earlier decisions in the same region.
///
/// Evidence moves a score only once it is clear: a model whose rate in a region cannot be told from that of the
/// others stays where the inner router put it, so a few unlucky outcomes change nothing.
pub struct FeedbackRouter<R> {
    inner: R,
    embedder: Arc<dyn Embedder>,
    clock: Arc<dyn Clock>,
    options: FeedbackOptions,
    path: Option<PathBuf>,
    memory: Mutex<Memory>,
}

impl<R> std::fmt::Debug for FeedbackRouter<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let regions = self.memory.lock().unwrap_or_else(PoisonError::into_inner).regions.len();
        f.debug_struct("FeedbackRouter")
            .field("regions", &regions)
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl<R: Router> FeedbackRouter<R> {
    /// Wraps a router. What was learned lives in memory; see [`persisted_at`](Self::persisted_at).
    pub fn new(
        inner: R,
        embedder: Arc<dyn Embedder>,
        clock: Arc<dyn Clock>,
        options: FeedbackOptions,
    ) -> Self {
        let memory =
            Memory { format: FORMAT.to_owned(), encoder: embedder.fingerprint(), regions: Vec::new() };
        Self { inner, embedder, clock, options, path: None, memory: Mutex::new(memory) }
    }

    /// Reads what was learned from `path`, if that file is there, and lets [`save`](Self::save) write it.
    ///
    /// # Errors
    /// A file that is no feedback memory, or of another encoder; reading fails.
    pub fn persisted_at(mut self, path: impl Into<PathBuf>) -> Result<Self> {
        let path: PathBuf = path.into();
        match std::fs::read(&path) {
            Ok(bytes) => self.memory = Mutex::new(self.parse(&bytes, &path)?),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io(error, path.display().to_string())),
        }
        self.path = Some(path);
        Ok(self)
    }

    fn parse(&self, bytes: &[u8], path: &Path) -> Result<Memory> {
        let subject = path.display().to_string();
        let mut memory: Memory = serde_json::from_slice(bytes)
            .map_err(|error| Error::corrupt(error.to_string()).about(subject.clone()).with_source(error))?;
        if memory.format != FORMAT {
            return Err(Error::corrupt("not a feedback memory of this version").about(subject));
        }
        if memory.encoder != self.embedder.fingerprint() {
            let message = format!(
                "learned with encoder {}, but this is {}",
                memory.encoder,
                self.embedder.fingerprint()
            );
            return Err(Error::invalid(message).about(subject));
        }
        let sound = memory.regions.iter().all(|region| {
            region.centre.len() == self.embedder.dimension()
                && region.at.is_finite()
                && region
                    .counts
                    .iter()
                    .all(|count| count.right >= 0.0 && count.right <= count.total && count.total.is_finite())
        });
        if !sound {
            return Err(Error::corrupt("a region's centre or counts are out of range").about(subject));
        }
        memory.regions.truncate(self.options.regions);
        Ok(memory)
    }

    /// Records what became of a decision: whether `model` answered `prompt` well.
    ///
    /// # Errors
    /// What the embedder answers.
    pub fn feedback(&self, prompt: &str, model: &ModelId, success: bool) -> Result<()> {
        let Some(vector) = self.embed(prompt)? else { return Ok(()) };
        let now = self.clock.wall().as_secs_f64();
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let at = match nearest(&memory.regions, &vector, self.options.similarity) {
            Some(at) => at,
            None => {
                if memory.regions.len() >= self.options.regions.max(1) {
                    let aged = |region: &Region| {
                        let mut region = region.clone();
                        region.decay(now, self.options.half_life);
                        region.weight()
                    };
                    let least = (0..memory.regions.len())
                        .min_by(|&a, &b| aged(&memory.regions[a]).total_cmp(&aged(&memory.regions[b])));
                    if let Some(least) = least {
                        memory.regions.swap_remove(least);
                    }
                }
                memory.regions.push(Region { centre: vector.clone(), counts: Vec::new(), at: now });
                memory.regions.len() - 1
            }
        };
        let region = &mut memory.regions[at];
        region.decay(now, self.options.half_life);
        let place = match region.counts.iter().position(|count| count.model == *model) {
            Some(place) => place,
            None => {
                region.counts.push(Count { model: model.clone(), right: 0.0, total: 0.0 });
                region.counts.len() - 1
            }
        };
        region.counts[place].total += 1.0;
        region.counts[place].right += f32::from(u8::from(success));
        Ok(())
    }

    /// Writes what was learned, atomically. Does nothing without a path.
    ///
    /// # Errors
    /// When writing fails; the file that was there before stays whole.
    pub fn save(&self) -> Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        let bytes = {
            let memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
            serde_json::to_vec(&*memory)
                .map_err(|error| Error::corrupt(error.to_string()).with_source(error))?
        };
        write_atomically(path, &bytes)
    }

    /// Number of regions in memory.
    #[must_use]
    pub fn regions(&self) -> usize {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner).regions.len()
    }

    fn embed(&self, prompt: &str) -> Result<Option<Vec<f32>>> {
        if crate::text::unroutable(prompt).is_some() {
            return Ok(None);
        }
        Ok(self.embedder.embed(&[start_of(prompt)])?.pop())
    }

    /// How much each model's score moves for a prompt.
    fn shifts(&self, vector: &[f32]) -> Vec<(ModelId, f32, f32)> {
        let now = self.clock.wall().as_secs_f64();
        let memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(at) = nearest(&memory.regions, vector, self.options.similarity) else { return Vec::new() };
        let mut region = memory.regions[at].clone();
        drop(memory);
        region.decay(now, self.options.half_life);
        let (right, total) =
            region.counts.iter().fold((0.0, 0.0), |(r, t), count| (r + count.right, t + count.total));
        let shift = |count: &Count| {
            let rest = total - count.total;
            // Laplace's rule of succession: no outcome at all counts as a half.
            let rate = (count.right + 1.0) / (count.total + 2.0);
            let others = (right - count.right + 1.0) / (rest + 2.0);
            let variance = rate * (1.0 - rate) / (count.total + 2.0) + others * (1.0 - others) / (rest + 2.0);
            let clear = (rate - others).abs() > self.options.standard_errors * variance.sqrt();
            let enough = count.total >= self.options.least_outcomes && rest >= self.options.least_outcomes;
            let shift = if clear && enough { (rate - others) * self.options.strength } else { 0.0 };
            (count.model.clone(), shift, rate)
        };
        region.counts.iter().map(shift).filter(|(_, shift, _)| *shift != 0.0).collect()
    }
}

fn nearest(regions: &[Region], vector: &[f32], least: f32) -> Option<usize> {
    let similarity = |region: &Region| dot(&region.centre, vector);
    let best = regions
        .iter()
        .enumerate()
        .map(|(at, region)| (at, similarity(region)))
        .max_by(|a, b| a.1.total_cmp(&b.1))?;
    (best.1 >= least).then_some(best.0)
}

impl<R: Router> Router for FeedbackRouter<R> {
    fn route(&self, query: &Query<'_>, candidates: &[Candidate<'_>]) -> Result<Decision> {
        if let Some(abstained) = guard(query, candidates, "feedback")? {
            return Ok(abstained);
        }
        let decision = self.inner.route(query, candidates)?;
        if decision.abstained || self.regions() == 0 {
            return Ok(decision);
        }
        let shifts = match self.embed(query.prompt)? {
            Some(vector) => self.shifts(&vector),
            None => Vec::new(),
        };
        if shifts.is_empty() {
            return Ok(decision);
        }
        let before = decision.ranked[0].model.clone();
        let shift_of =
            |model: &ModelId| shifts.iter().find(|(id, ..)| id == model).map_or(0.0, |(_, shift, _)| *shift);
        let ranked = decision
            .ranked
            .iter()
            .map(|ranked| Ranked {
                model: ranked.model.clone(),
                score: (ranked.score + shift_of(&ranked.model)).clamp(0.0, 1.0),
            })
            .collect();
        let mut moved = Decision::new(ranked, decision.confidence, false, decision.reason, decision.router);
        if moved.ranked[0].model != before {
            let rates: Vec<String> =
                shifts.iter().map(|(model, _, rate)| format!("{model} {:.0} %", rate * 100.0)).collect();
            moved.confidence = moved.ranked[0].score;
            moved.reason =
                format!("{}; outcomes of similar prompts say otherwise ({})", moved.reason, rates.join(", "));
        }
        Ok(moved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use orion_core::{ManualClock, ModelSpec};

    /// Prompts are points on a circle, by the degrees they spell.
    struct Circle;

    impl Embedder for Circle {
        fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>> {
            let angle =
                |text: &str| text.trim_start_matches("at ").parse::<f32>().unwrap_or(0.0).to_radians();
            Ok(texts.iter().map(|text| vec![angle(text).cos(), angle(text).sin()]).collect())
        }
        fn dimension(&self) -> usize {
            2
        }
        fn fingerprint(&self) -> String {
            "circle".to_owned()
        }
    }

    struct Even;

    impl Router for Even {
        fn route(&self, _: &Query<'_>, candidates: &[Candidate<'_>]) -> Result<Decision> {
            let score = |c: &Candidate<'_>| if c.spec.id.as_str() == "a" { 0.55 } else { 0.45 };
            let ranked = candidates.iter().map(|c| Ranked { model: c.spec.id.clone(), score: score(c) });
            Ok(Decision::new(ranked.collect(), 0.55, false, "it stands first", "even"))
        }
    }

    fn router(clock: &ManualClock, regions: usize) -> FeedbackRouter<Even> {
        let options = FeedbackOptions { regions, similarity: 0.9, ..FeedbackOptions::default() };
        FeedbackRouter::new(Even, Arc::new(Circle), Arc::new(clock.clone()), options)
    }

    fn tell(router: &FeedbackRouter<Even>, prompt: &str, model: &str, right: usize, wrong: usize) {
        (0..right).for_each(|_| router.feedback(prompt, &model.into(), true).unwrap());
        (0..wrong).for_each(|_| router.feedback(prompt, &model.into(), false).unwrap());
    }

    fn decide(router: &FeedbackRouter<Even>, prompt: &str) -> Decision {
        let specs = ["a", "b"].map(|id| ModelSpec::new(id.into(), vec![]));
        let candidates: Vec<_> = specs.iter().map(Candidate::new).collect();
        router.route(&Query::new(prompt), &candidates).unwrap()
    }

    #[test]
    fn clear_outcomes_move_scores_by_half_of_the_difference_of_rates() {
        let clock = ManualClock::new();
        let router = router(&clock, 4);
        tell(&router, "at 0", "a", 2, 10);
        tell(&router, "at 0", "b", 9, 1);
        // (2 + 1) / (12 + 2) against (9 + 1) / (10 + 2).
        let shift = 0.5 * (10.0 / 12.0 - 3.0 / 14.0);
        let decision = decide(&router, "at 10");
        let scores: Vec<_> = decision.ranked.iter().map(|it| (it.model.as_str(), it.score)).collect();
        assert!(scores[0].0 == "b" && (scores[0].1 - (0.45 + shift)).abs() < 1e-6, "{scores:?}");
        assert!(scores[1].0 == "a" && (scores[1].1 - (0.55 - shift)).abs() < 1e-6, "{scores:?}");
        assert!((decision.confidence - (0.45 + shift)).abs() < 1e-6);
        assert_eq!(
            decision.reason,
            "it stands first; outcomes of similar prompts say otherwise (a 21 %, b 83 %)"
        );
        // Elsewhere nothing is known.
        assert_eq!(decide(&router, "at 90").reason, "it stands first");
        assert_eq!(decide(&router, "at 90").ranked[0].score, 0.55);
    }

    #[test]
    fn too_few_outcomes_of_either_or_a_small_difference_move_nothing() {
        for (a, b, moves) in [
            ((0, 8), (8, 0), true),
            ((0, 7), (20, 0), false),
            ((0, 20), (7, 0), false),
            // 2.5 standard errors apart, and 1.6.
            ((4, 8), (10, 2), true),
            ((5, 7), (9, 3), false),
        ] {
            let clock = ManualClock::new();
            let router = router(&clock, 4);
            tell(&router, "at 0", "a", a.0, a.1);
            tell(&router, "at 0", "b", b.0, b.1);
            assert_eq!(decide(&router, "at 0").ranked[0].model.as_str() == "b", moves, "{a:?} {b:?}");
        }
    }

    #[test]
    fn outcomes_count_half_after_a_half_life_and_do_not_grow_back() {
        let clock = ManualClock::new();
        let router = router(&clock, 4);
        tell(&router, "at 0", "a", 0, 16);
        tell(&router, "at 0", "b", 16, 0);
        let month = Duration::from_secs(30 * 24 * 3600);
        clock.advance(month);
        // Eight of each are left, which is just enough: 1/10 against 9/10.
        let decision = decide(&router, "at 0");
        assert!((decision.ranked[0].score - (0.45 + 0.4)).abs() < 1e-4, "{decision:?}");
        clock.advance(Duration::from_secs(3600));
        assert_eq!(decide(&router, "at 0").ranked[0].model.as_str(), "a");
        // One more of each makes up for the hour; a clock that jumps back brings nothing back.
        tell(&router, "at 0", "a", 0, 1);
        tell(&router, "at 0", "b", 1, 0);
        let decision = decide(&router, "at 0");
        assert_eq!(decision.ranked[0].model.as_str(), "b");
        clock.set_wall(Duration::ZERO);
        assert_eq!(decide(&router, "at 0"), decision);
    }

    #[test]
    fn the_least_used_region_makes_room() {
        let clock = ManualClock::new();
        let router = router(&clock, 2);
        tell(&router, "at 0", "a", 0, 20);
        tell(&router, "at 0", "b", 20, 0);
        tell(&router, "at 90", "a", 1, 0);
        assert_eq!(router.regions(), 2);
        tell(&router, "at 180", "a", 1, 0);
        assert_eq!(router.regions(), 2);
        assert_eq!(decide(&router, "at 0").ranked[0].model.as_str(), "b", "what was used most has stayed");
        // Used long ago is used less.
        clock.advance(Duration::from_secs(20 * 30 * 24 * 3600));
        tell(&router, "at 180", "a", 1, 0);
        tell(&router, "at 270", "a", 1, 0);
        clock.set_wall(Duration::ZERO);
        assert_eq!(decide(&router, "at 0").ranked[0].model.as_str(), "a");
        assert!(format!("{router:?}").starts_with("FeedbackRouter { regions: 2, path: None"));
    }

    #[test]
    fn memories_out_of_range_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("memory.json");
        let read = |centre: &str, right: &str, total: &str, at: &str| {
            let text = format!(
                r#"{{"format": "{FORMAT}", "encoder": "circle", "regions": [{{"centre": {centre}, "at": {at},
                    "counts": [{{"model": "a", "right": {right}, "total": {total}}}]}}]}}"#
            );
            std::fs::write(&path, text).unwrap();
            router(&ManualClock::new(), 4).persisted_at(&path).map(|router| router.regions())
        };
        assert_eq!(read("[1, 0]", "2", "2", "0").unwrap(), 1);
        for (centre, right, total, at) in [
            ("[1]", "1", "2", "0"),
            ("[1, 0]", "3", "2", "0"),
            ("[1, 0]", "-1", "2", "0"),
            ("[1, 0]", "1", "1e39", "0"),
        ] {
            assert!(read(centre, right, total, at).is_err(), "{centre} {right} {total} {at}");
        }
        std::fs::write(&path, r#"{"format": "other", "encoder": "circle", "regions": []}"#).unwrap();
        assert!(router(&ManualClock::new(), 4).persisted_at(&path).is_err());
        assert!(router(&ManualClock::new(), 4).persisted_at(folder.path()).is_err());
    }
}
