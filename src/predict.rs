//! Which model comes next: an order-2 Markov model with decay.
//!
//! Counts of what followed the last two, the last one and nothing in particular are interpolated, each weighted by how
//! often its context was seen (Witten and Bell's method with a constant). Old observations fade, so that it follows a
//! change of habits. The hour of the day breaks near ties.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;

use orion_core::{Error, ModelId, Result};
use serde::{Deserialize, Serialize};

/// What remains of a context's counts each time it is seen again.
const FADE: f64 = 0.95;
/// A context seen this often counts as much as all shorter ones together.
const TRUST: f64 = 1.0;
/// Below this likelihood nothing is foretold.
const LEAST: f64 = 0.4;
/// Foretellings of another model by which it is judged, and how many of them must have come true.
const JUDGED: usize = 24;
const BEFORE_JUDGEMENT: usize = 8;
const MUST_HIT: f64 = 0.5;
/// Models whose likelihoods differ by less are told apart by the hour.
const TIE: f64 = 0.05;
/// Contexts that are kept; the least seen make room.
const CONTEXTS: usize = 4096;

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Counts {
    total: f64,
    next: BTreeMap<ModelId, f64>,
}

impl Counts {
    fn see(&mut self, model: &ModelId) {
        self.next.values_mut().for_each(|count| *count *= FADE);
        self.total = self.total * FADE + 1.0;
        *self.next.entry(model.clone()).or_default() += 1.0;
    }

    fn share(&self, model: &ModelId) -> f64 {
        self.next.get(model).map_or(0.0, |count| count / self.total)
    }
}

/// How well foretelling went.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[non_exhaustive]
pub struct Foresight {
    /// Whether models are preloaded now; not if too little came true of late.
    pub on: bool,
    /// Times another model was foretold.
    pub foretold: u64,
    /// Times it came.
    pub came_true: u64,
    /// Bytes that were loaded ahead and left unused.
    pub wasted_bytes: u64,
}

/// Foretells which model the next request is for.
///
/// ```
/// use orion::Predictor;
/// let mut predictor = Predictor::new();
/// for model in ["plan", "code", "test"].repeat(5) {
///     predictor.observe(&model.into(), 9);
/// }
/// let (next, likely) = predictor.predict(9).unwrap();
/// assert!(next.as_str() == "plan" && likely > 0.8);
/// ```
#[derive(Debug, Clone, Default)]
pub struct Predictor {
    /// What followed the last models, newest first, none to two of them.
    contexts: BTreeMap<Vec<ModelId>, Counts>,
    hours: BTreeMap<ModelId, Vec<f64>>,
    /// The last models, newest first.
    latest: Vec<ModelId>,
    pending: Option<ModelId>,
    recent: VecDeque<bool>,
    foretold: u64,
    came_true: u64,
}

/// The form in which it is kept.
#[derive(Serialize, Deserialize)]
struct Kept {
    version: u32,
    contexts: Vec<(Vec<ModelId>, Counts)>,
    hours: BTreeMap<ModelId, Vec<f64>>,
    recent: VecDeque<bool>,
}

const VERSION: u32 = 1;

impl Predictor {
    /// It has seen nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A request is for `model`, at this hour of the day (0 to 23).
    pub fn observe(&mut self, model: &ModelId, hour: usize) {
        if let Some(pending) = self.pending.take() {
            let hit = pending == *model;
            self.foretold += 1;
            self.came_true += u64::from(hit);
            if self.recent.len() == JUDGED {
                self.recent.pop_front();
            }
            self.recent.push_back(hit);
        }
        for order in 0..=self.latest.len() {
            self.contexts.entry(self.latest[..order].to_vec()).or_default().see(model);
        }
        while self.contexts.len() > CONTEXTS {
            let least = self.contexts.iter().min_by(|a, b| a.1.total.total_cmp(&b.1.total));
            let Some(key) = least.map(|(key, _)| key.clone()) else { break };
            self.contexts.remove(&key);
        }
        let hours = self.hours.entry(model.clone()).or_default();
        hours.resize(24, 0.0);
        hours.iter_mut().for_each(|count| *count *= 0.99);
        hours[hour % 24] += 1.0;
        self.latest.insert(0, model.clone());
        self.latest.truncate(2);
        let likeliest = self.predict(hour).map(|(model, _)| model);
        self.pending = likeliest.filter(|next| next != model);
    }

    /// How likely the next request is for `model`.
    #[must_use]
    pub fn likelihood(&self, model: &ModelId) -> f64 {
        let mut likely = 0.0;
        for order in 0..=self.latest.len() {
            if let Some(counts) = self.contexts.get(&self.latest[..order]) {
                let trust = counts.total / (counts.total + TRUST);
                likely = (1.0 - trust) * likely + trust * counts.share(model);
            }
        }
        likely
    }

    /// The likeliest next model and how likely it is, if anything can be said.
    #[must_use]
    pub fn predict(&self, hour: usize) -> Option<(ModelId, f64)> {
        let nothing: &[ModelId] = &[];
        let known = self.contexts.get(nothing)?.next.keys();
        let mut ranked: Vec<(f64, &ModelId)> = known.map(|model| (self.likelihood(model), model)).collect();
        ranked.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(b.1)));
        let best = ranked.first()?.0;
        if best < LEAST {
            return None;
        }
        let at_this_hour = |model: &ModelId| {
            let hours = self.hours.get(model);
            hours.and_then(|hours| hours.get(hour % 24)).copied().unwrap_or(0.0)
        };
        let near = ranked.iter().take_while(|(likely, _)| best - likely < TIE);
        let (likely, model) = near.max_by(|a, b| {
            at_this_hour(a.1).total_cmp(&at_this_hour(b.1)).then_with(|| a.0.total_cmp(&b.0))
        })?;
        Some(((*model).clone(), *likely))
    }

    /// Whether what it foretold came true often enough of late to act on it.
    #[must_use]
    pub fn pays(&self) -> bool {
        let hits = self.recent.iter().filter(|hit| **hit).count();
        self.recent.len() < BEFORE_JUDGEMENT || hits as f64 >= MUST_HIT * self.recent.len() as f64
    }

    /// How well it went.
    #[must_use]
    pub fn foresight(&self) -> Foresight {
        Foresight { on: self.pays(), foretold: self.foretold, came_true: self.came_true, wasted_bytes: 0 }
    }

    /// Reads what an earlier one kept. A file that is not there is one that has seen nothing.
    ///
    /// # Errors
    /// [`Corrupt`](orion_core::ErrorKind::Corrupt) if it holds something else, [`Io`](orion_core::ErrorKind::Io).
    pub fn open(path: &Path) -> Result<Self> {
        let name = || path.display().to_string();
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::new()),
            Err(error) => return Err(Error::io(error, name())),
        };
        let broken = |error: String| Error::corrupt(error).about(name());
        let kept: Kept = serde_json::from_slice(&bytes).map_err(|error| broken(error.to_string()))?;
        if kept.version != VERSION {
            return Err(broken(format!("of version {}, this build reads version {VERSION}", kept.version)));
        }
        let sound = |count: &f64| count.is_finite() && *count >= 0.0;
        let fine = kept.contexts.len() <= CONTEXTS
            && kept.contexts.iter().all(|(context, counts)| {
                let sum: f64 = counts.next.values().sum();
                context.len() <= 2
                    && sound(&counts.total)
                    && counts.total > 0.0
                    && counts.next.values().all(sound)
                    && sum <= counts.total * 1.000_001
            })
            && kept.hours.values().all(|hours| hours.len() == 24 && hours.iter().all(sound))
            && kept.recent.len() <= JUDGED;
        if !fine {
            return Err(broken("counts that contradict themselves".to_owned()));
        }
        let contexts = kept.contexts.into_iter().collect();
        Ok(Self { contexts, hours: kept.hours, recent: kept.recent, ..Self::default() })
    }

    /// What it has seen, to be written to a file.
    #[must_use]
    pub fn to_json(&self) -> String {
        let contexts = self.contexts.iter().map(|(key, counts)| (key.clone(), counts.clone())).collect();
        let (hours, recent) = (self.hours.clone(), self.recent.clone());
        serde_json::to_string(&Kept { version: VERSION, contexts, hours, recent })
            .expect("names and numbers always serialise")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use orion_core::ErrorKind;

    fn of(models: &[&str]) -> Predictor {
        let mut predictor = Predictor::new();
        models.iter().for_each(|model| predictor.observe(&(*model).into(), 12));
        predictor
    }

    const MODELS: [&str; 4] = ["a", "b", "c", "d"];

    /// Draws that are the same everywhere: a linear congruential generator.
    fn draws(seed: u64) -> impl FnMut(u64) -> u64 {
        let mut state = seed;
        move |below| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        }
    }

    /// 500 requests: `sure` in a hundred follow from the two before them, the others are drawn.
    fn trace(seed: u64, sure: u64) -> Vec<ModelId> {
        let mut draw = draws(seed);
        let next: Vec<usize> = (0..16).map(|_| draw(4) as usize).collect();
        let mut trace = vec![0, 1];
        while trace.len() < 500 {
            let follows = next[4 * trace[trace.len() - 2] + trace[trace.len() - 1]];
            trace.push(if draw(100) < sure { follows } else { draw(4) as usize });
        }
        trace.into_iter().map(|model| MODELS[model].into()).collect()
    }

    /// Requests that find their model absent, with room for two of four: what is foretold is brought in between requests.
    fn misses(trace: &[ModelId], foretell: bool) -> usize {
        let (mut predictor, mut here, mut misses) = (Predictor::new(), Vec::<ModelId>::new(), 0);
        let least = |here: &[ModelId], predictor: &Predictor| {
            let of = |at: &usize| predictor.likelihood(&here[*at]);
            (0..here.len()).min_by(|a, b| of(a).total_cmp(&of(b))).unwrap()
        };
        for model in trace {
            match here.iter().position(|other| other == model) {
                Some(at) => {
                    here.remove(at);
                }
                None => {
                    misses += 1;
                    if here.len() == 2 {
                        here.remove(if foretell { least(&here, &predictor) } else { 0 });
                    }
                }
            }
            here.push(model.clone());
            predictor.observe(model, 12);
            if let Some((next, likely)) = predictor.predict(12).filter(|_| foretell && predictor.pays())
                && !here.contains(&next)
            {
                let victim = least(&here, &predictor);
                if here.len() < 2 {
                    here.push(next);
                } else if predictor.likelihood(&here[victim]) < likely {
                    here[victim] = next;
                }
            }
        }
        misses
    }

    #[test]
    fn it_saves_most_of_what_could_be_saved_and_costs_next_to_nothing_where_nothing_can() {
        let sum = |sure, foretell| (1..9).map(|seed| misses(&trace(seed, sure), foretell)).sum::<usize>();
        let (without, with) = (sum(90, false) as f64, sum(90, true) as f64);
        // One who knew the future would miss the first request of each trace only.
        let saved = (without - with) / (without - 8.0);
        assert!(saved >= 0.7, "{saved} of what could be saved");
        let cost = sum(0, true) as f64 / sum(0, false) as f64;
        assert!(cost <= 1.02, "{cost} times the misses");
    }

    #[test]
    fn what_two_models_back_decides_is_learned() {
        // After a b comes c, after c b comes a: b alone says nothing.
        let predictor = of(&["a", "b", "c", "b"].repeat(8));
        assert_eq!(predictor.predict(12).unwrap().0.as_str(), "a");
        let mut predictor = predictor;
        predictor.observe(&"a".into(), 12);
        predictor.observe(&"b".into(), 12);
        assert_eq!(predictor.predict(12).unwrap().0.as_str(), "c");
        let foresight = predictor.foresight();
        assert!(foresight.on && foresight.came_true * 10 >= foresight.foretold * 7, "{foresight:?}");
    }

    #[test]
    fn likelihoods_add_up_to_at_most_one() {
        let mut draw = draws(7);
        let mut predictor = Predictor::new();
        for _ in 0..200 {
            predictor.observe(&MODELS[draw(4) as usize].into(), 3);
            let all = ["a", "b", "c", "d"].map(|model| predictor.likelihood(&model.into()));
            assert!(all.iter().sum::<f64>() <= 1.0 + 1e-9 && all.iter().all(|p| *p >= 0.0));
        }
    }

    #[test]
    fn it_switches_itself_off_where_nothing_can_be_foretold_and_on_again() {
        let mut draw = draws(7);
        let mut predictor = Predictor::new();
        let mut acted = 0;
        for n in 0..500 {
            predictor.observe(&MODELS[draw(4) as usize].into(), 12);
            acted += usize::from(n > 100 && predictor.pays() && predictor.pending.is_some());
        }
        assert!(acted <= 20, "it acted {acted} times in 400 on a source that cannot be foretold");
        ["a", "b", "c"].repeat(40).iter().for_each(|model| predictor.observe(&(*model).into(), 12));
        assert!(predictor.pays());
    }

    #[test]
    fn a_change_of_habit_is_followed() {
        let mut predictor = of(&["a", "b"].repeat(50));
        ["a", "c"].repeat(12).iter().for_each(|model| predictor.observe(&(*model).into(), 12));
        predictor.observe(&"a".into(), 12);
        assert_eq!(predictor.predict(12).unwrap().0.as_str(), "c");
    }

    #[test]
    fn what_was_kept_is_read_again_and_nonsense_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("habits.json");
        assert!(Predictor::open(&path).unwrap().predict(0).is_none());
        let mut learned = of(&["a", "b", "c", "b"].repeat(8));
        std::fs::write(&path, learned.to_json()).unwrap();
        let mut read = Predictor::open(&path).unwrap();
        for model in ["a", "b"] {
            learned.observe(&model.into(), 12);
            read.observe(&model.into(), 12);
        }
        assert_eq!(read.predict(12).unwrap().0, learned.predict(12).unwrap().0);
        let broken = [
            "",
            "[]",
            r#"{"version":2,"contexts":[],"hours":{},"recent":[]}"#,
            r#"{"version":1,"contexts":[[[],{"total":-1.0,"next":{}}]],"hours":{},"recent":[]}"#,
            r#"{"version":1,"contexts":[[[],{"total":1.0,"next":{"a":5.0}}]],"hours":{},"recent":[]}"#,
            r#"{"version":1,"contexts":[],"hours":{"a":[1.0]},"recent":[]}"#,
        ];
        for text in broken {
            std::fs::write(&path, text).unwrap();
            assert_eq!(Predictor::open(&path).unwrap_err().kind(), ErrorKind::Corrupt, "{text}");
        }
    }
}
