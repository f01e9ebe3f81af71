//! Which model comes next: an order-2 Markov model with decay.
//!
//! Counts of what followed the last two, the last one and nothing in particular are interpolated, each weighted by how
//! often its context was seen (Witten and Bell's method with a constant). Old observations fade, so that it follows a
//! change of habits. The hour of the day breaks near ties.
//!
//! Whether that pays is judged by swaps, not by how often the likeliest came: a swap brings one model in and sends
//! another off, the next request may be for either, and if it is for neither nothing was won or lost.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;

use orion_core::{Error, ModelId, Result};
use serde::{Deserialize, Serialize};

/// What remains of a context's counts each time it is seen again.
const FADE: f64 = 0.95;
/// A context seen this often counts as much as all shorter ones together.
const TRUST: f64 = 1.0;
/// Below this likelihood nothing is foretold.
const LEAST: f64 = 0.2;
/// Swaps that won or lost something by which it is judged, and how many of them must have won. At half of them they
/// save nothing.
const JUDGED: usize = 48;
const BEFORE_JUDGEMENT: usize = 8;
const MUST_WIN: f64 = 0.65;
/// Models whose likelihoods differ by less are told apart by the hour, and not swapped for each other.
pub(crate) const TIE: f64 = 0.05;
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
    /// Times a model was to be brought in for the next request, be it that it was or only would have been.
    pub foretold: u64,
    /// Times the next request was for it.
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
    /// What comes for the next request, and what leaves for it.
    swaps: Vec<(ModelId, Vec<ModelId>)>,
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
        for (comes, leaves) in std::mem::take(&mut self.swaps) {
            let won = comes == *model;
            self.foretold += 1;
            self.came_true += u64::from(won);
            // Lost if what left comes instead; what came into free room cost nothing.
            if leaves.is_empty() || !(won || leaves.contains(model)) {
                continue;
            }
            if self.recent.len() == JUDGED {
                self.recent.pop_front();
            }
            self.recent.push_back(won);
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
    }

    /// Takes note that `comes` is brought in for the next request, or would be if that paid, and that `leaves` go for
    /// it. By the next request it is judged.
    pub fn swap(&mut self, comes: &ModelId, leaves: &[ModelId]) {
        if self.swaps.iter().all(|(known, _)| known != comes) {
            self.swaps.push((comes.clone(), leaves.to_vec()));
        }
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

    /// All models that may come next and how likely each is, likeliest first.
    #[must_use]
    pub fn ranked(&self, hour: usize) -> Vec<(ModelId, f64)> {
        let nothing: &[ModelId] = &[];
        let Some(all) = self.contexts.get(nothing) else { return Vec::new() };
        let at_this_hour = |model: &ModelId| {
            let hours = self.hours.get(model);
            hours.and_then(|hours| hours.get(hour % 24)).copied().unwrap_or(0.0)
        };
        let most = all.next.keys().map(at_this_hour).fold(f64::MIN_POSITIVE, f64::max);
        let mut ranked: Vec<(f64, f64, &ModelId)> = all
            .next
            .keys()
            .map(|model| {
                let likely = self.likelihood(model);
                (likely + TIE * at_this_hour(model) / most, likely, model)
            })
            .filter(|(_, likely, _)| *likely >= LEAST)
            .collect();
        ranked.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.2.cmp(b.2)));
        ranked.into_iter().map(|(_, likely, model)| (model.clone(), likely)).collect()
    }

    /// The likeliest next model and how likely it is, if anything can be said.
    #[must_use]
    pub fn predict(&self, hour: usize) -> Option<(ModelId, f64)> {
        self.ranked(hour).into_iter().next()
    }

    /// Whether swaps won often enough of late to make them.
    #[must_use]
    pub fn pays(&self) -> bool {
        let won = self.recent.iter().filter(|won| **won).count();
        self.recent.len() < BEFORE_JUDGEMENT || won as f64 >= MUST_WIN * self.recent.len() as f64
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

    /// A model is requested; the one that is foretold then comes in its place.
    fn see(predictor: &mut Predictor, model: &str) {
        let model = model.into();
        predictor.observe(&model, 12);
        let worse = predictor.likelihood(&model) + TIE;
        if let Some((next, _)) =
            predictor.predict(12).filter(|(next, likely)| *next != model && *likely > worse)
        {
            predictor.swap(&next, &[model]);
        }
    }

    fn of(models: &[&str]) -> Predictor {
        let mut predictor = Predictor::new();
        models.iter().for_each(|model| see(&mut predictor, model));
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

    /// Requests that find their model absent, with room for two of four: between requests what is likelier comes in for
    /// what is less likely.
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
                        let on = foretell && predictor.pays();
                        here.remove(if on { least(&here, &predictor) } else { 0 });
                    }
                }
            }
            here.push(model.clone());
            predictor.observe(model, 12);
            let mut would_be = here.clone();
            for (next, likely) in predictor.ranked(12) {
                let victim = least(&would_be, &predictor);
                if would_be.contains(&next) {
                    continue;
                }
                if would_be.len() < 2 {
                    would_be.push(next);
                } else if predictor.likelihood(&would_be[victim]) + TIE < likely {
                    predictor.swap(&next, std::slice::from_ref(&would_be[victim]));
                    would_be[victim] = next;
                }
            }
            if foretell && predictor.pays() {
                here = would_be;
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
    fn of_the_committed_traces_it_saves_most_and_where_nothing_can_be_foretold_it_costs_next_to_nothing() {
        let misses_of = |text: &str| {
            let trace: Vec<ModelId> = text.lines().map(ModelId::from).collect();
            assert_eq!(trace.len(), 500);
            (misses(&trace, false) as f64, misses(&trace, true) as f64)
        };
        for text in [
            include_str!("../benches/data/traces/order2.txt"),
            include_str!("../benches/data/traces/recorded.txt"),
        ] {
            let (without, with) = misses_of(text);
            let saved = (without - with) / (without - 1.0);
            assert!(saved >= 0.7, "{saved} of what could be saved");
        }
        let (without, with) = misses_of(include_str!("../benches/data/traces/uniform.txt"));
        assert!(with <= 1.02 * without, "{with} misses in place of {without}");
    }

    #[test]
    fn what_two_models_back_decides_is_learned() {
        // After a b comes c, after c b comes a: b alone says nothing.
        let predictor = of(&["a", "b", "c", "b"].repeat(8));
        assert_eq!(predictor.predict(12).unwrap().0.as_str(), "a");
        let mut predictor = predictor;
        see(&mut predictor, "a");
        see(&mut predictor, "b");
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
            see(&mut predictor, MODELS[draw(4) as usize]);
            acted += usize::from(n > 100 && predictor.pays() && !predictor.swaps.is_empty());
        }
        assert!(acted <= 20, "it acted {acted} times in 400 on a source that cannot be foretold");
        ["a", "b", "c"].repeat(40).iter().for_each(|model| see(&mut predictor, model));
        assert!(predictor.pays());
    }

    #[test]
    fn a_swap_is_judged_by_what_it_brought_and_what_it_took_away() {
        let mut predictor = Predictor::new();
        let [a, b, c] = ["a", "b", "c"].map(ModelId::from);
        let judged = |predictor: &mut Predictor, request: &ModelId, times: usize| {
            for _ in 0..times {
                predictor.swap(&a, std::slice::from_ref(&b));
                predictor.observe(request, 12);
            }
            let foresight = predictor.foresight();
            (foresight.foretold, foresight.came_true, foresight.on)
        };
        // Neither won nor lost: it goes on, however long.
        assert_eq!(judged(&mut predictor, &c, 21), (21, 0, true));
        assert_eq!(judged(&mut predictor, &b, 8), (29, 0, false));
        assert_eq!(judged(&mut predictor, &a, 14), (43, 14, false));
        assert_eq!(judged(&mut predictor, &a, 1), (44, 15, true));
        // What came into free room took nothing away.
        predictor.swap(&a, &[]);
        predictor.observe(&b, 12);
        assert_eq!(predictor.recent.len(), 23);
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
