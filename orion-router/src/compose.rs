//! Routers made of routers: cascade, ensemble, shadow.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use orion_core::{Candidate, Decision, Error, ModelId, Query, Ranked, Result, Router};

use crate::guard;

/// Asks routers in turn until one is sure enough; then a default model, or nobody.
///
/// The usual order is keyword rules (free, exact), then embeddings, then the default.
pub struct Cascade {
    steps: Vec<(Arc<dyn Router>, f32)>,
    default: Option<ModelId>,
}

impl std::fmt::Debug for Cascade {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let thresholds: Vec<f32> = self.steps.iter().map(|step| step.1).collect();
        f.debug_struct("Cascade").field("thresholds", &thresholds).field("default", &self.default).finish()
    }
}

impl Cascade {
    /// A cascade without steps.
    #[must_use]
    pub fn new() -> Self {
        Self { steps: Vec::new(), default: None }
    }

    /// Adds a router that decides when it does not abstain and its confidence reaches `least`.
    #[must_use]
    pub fn then(mut self, router: Arc<dyn Router>, least: f32) -> Self {
        self.steps.push((router, least));
        self
    }

    /// The model that answers when no router is sure. The decision still says that all abstained, with the
    /// default ranked first.
    #[must_use]
    pub fn default_model(mut self, model: impl Into<ModelId>) -> Self {
        self.default = Some(model.into());
        self
    }
}

impl Default for Cascade {
    fn default() -> Self {
        Self::new()
    }
}

impl Router for Cascade {
    fn route(&self, query: &Query<'_>, candidates: &[Candidate<'_>]) -> Result<Decision> {
        if let Some(abstained) = guard(query, candidates, "cascade")? {
            return Ok(self.fall_back(abstained));
        }
        let mut last = None;
        for (router, least) in &self.steps {
            let decision = router.route(query, candidates)?;
            if !decision.abstained && decision.confidence >= *least {
                return Ok(decision);
            }
            last = Some(decision);
        }
        let mut decision = last.ok_or_else(|| Error::invalid("a cascade needs at least one router"))?;
        decision.abstained = true;
        Ok(self.fall_back(decision))
    }
}

impl Cascade {
    fn fall_back(&self, mut decision: Decision) -> Decision {
        let Some(default) = &self.default else { return decision };
        if let Some(at) = decision.ranked.iter().position(|ranked| ranked.model == *default) {
            let mut first = decision.ranked.remove(at);
            first.score = first.score.max(decision.ranked.first().map_or(0.0, |next| next.score));
            decision.ranked.insert(0, first);
            decision.reason = format!("{}; the default is {default}", decision.reason);
        }
        decision
    }
}

/// Averages the scores of several routers, each with a weight. A router that abstains has no vote.
pub struct Ensemble {
    members: Vec<(Arc<dyn Router>, f32)>,
    least: f32,
}

impl std::fmt::Debug for Ensemble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let weights: Vec<f32> = self.members.iter().map(|member| member.1).collect();
        f.debug_struct("Ensemble").field("weights", &weights).field("least", &self.least).finish()
    }
}

impl Ensemble {
    /// An ensemble that abstains below confidence `least`.
    #[must_use]
    pub fn new(least: f32) -> Self {
        Self { members: Vec::new(), least }
    }

    /// Adds a router; a weight that is negative or no number counts as zero.
    #[must_use]
    pub fn with(mut self, router: Arc<dyn Router>, weight: f32) -> Self {
        self.members.push((router, if weight.is_finite() { weight.max(0.0) } else { 0.0 }));
        self
    }
}

impl Router for Ensemble {
    fn route(&self, query: &Query<'_>, candidates: &[Candidate<'_>]) -> Result<Decision> {
        if let Some(abstained) = guard(query, candidates, "ensemble")? {
            return Ok(abstained);
        }
        let mut scores: BTreeMap<&ModelId, f32> = candidates.iter().map(|c| (&c.spec.id, 0.0)).collect();
        let (mut total, mut votes) = (0.0, Vec::new());
        for (router, weight) in &self.members {
            let decision = router.route(query, candidates)?;
            let sum: f32 = decision.ranked.iter().map(|ranked| ranked.score.max(0.0)).sum();
            if decision.abstained || sum <= 0.0 {
                continue;
            }
            // Scores of different routers are on different scales: each router hands out its confidence.
            let scale = weight * decision.confidence / sum;
            for ranked in &decision.ranked {
                if let Some(score) = scores.get_mut(&ranked.model) {
                    *score += scale * ranked.score.max(0.0);
                }
            }
            total += weight;
            if let Some(first) = decision.chosen() {
                votes.push(format!("{} says {first}", decision.router));
            }
        }
        let scale = if total > 0.0 { 1.0 / total } else { 0.0 };
        let ranked = scores
            .iter()
            .map(|(&model, &score)| Ranked { model: model.clone(), score: score * scale })
            .collect();
        let reason = if votes.is_empty() { "every member abstained".to_owned() } else { votes.join(", ") };
        let mut decision = Decision::new(ranked, 0.0, false, reason, "ensemble");
        decision.confidence = decision.ranked.first().map_or(0.0, |first| first.score);
        decision.abstained = votes.is_empty() || decision.confidence < self.least;
        Ok(decision)
    }
}

/// Two routers that disagreed.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Disagreement {
    /// The prompt, its first 200 bytes.
    pub prompt: String,
    /// What the first router chose; `None` for an abstention.
    pub active: Option<ModelId>,
    /// What the shadow chose.
    pub shadow: Option<ModelId>,
    /// Confidence of the first and of the shadow.
    pub confidence: (f32, f32),
}

/// How a shadow compares so far.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct ShadowReport {
    /// Decisions seen by both.
    pub decisions: u64,
    /// Decisions on which they differed.
    pub differed: u64,
    /// Decisions on which the shadow failed.
    pub failed: u64,
    /// The latest disagreements, oldest first.
    pub latest: Vec<Disagreement>,
}

/// Lets one router decide and runs a second beside it, only to record where they differ.
pub struct Shadow {
    active: Arc<dyn Router>,
    shadow: Arc<dyn Router>,
    keep: usize,
    state: Mutex<(ShadowReport, VecDeque<Disagreement>)>,
}

impl std::fmt::Debug for Shadow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shadow").field("report", &self.report()).finish_non_exhaustive()
    }
}

impl Shadow {
    /// Runs `shadow` beside `active` and keeps the latest `keep` disagreements.
    #[must_use]
    pub fn new(active: Arc<dyn Router>, shadow: Arc<dyn Router>, keep: usize) -> Self {
        Self { active, shadow, keep, state: Mutex::default() }
    }

    /// What was seen so far.
    #[must_use]
    pub fn report(&self) -> ShadowReport {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        ShadowReport { latest: state.1.iter().cloned().collect(), ..state.0.clone() }
    }
}

impl Router for Shadow {
    fn route(&self, query: &Query<'_>, candidates: &[Candidate<'_>]) -> Result<Decision> {
        let decision = self.active.route(query, candidates)?;
        let other = self.shadow.route(query, candidates);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.0.decisions += 1;
        match other {
            Err(_) => state.0.failed += 1,
            Ok(other) if other.chosen() != decision.chosen() => {
                state.0.differed += 1;
                state.1.push_back(Disagreement {
                    prompt: query.prompt[..query.prompt.floor_char_boundary(200)].to_owned(),
                    active: decision.chosen().cloned(),
                    shadow: other.chosen().cloned(),
                    confidence: (decision.confidence, other.confidence),
                });
                while state.1.len() > self.keep {
                    state.1.pop_front();
                }
            }
            Ok(_) => {}
        }
        Ok(decision)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use orion_core::{ErrorKind, ModelSpec};

    /// Gives each model a fixed score.
    struct Fixed(&'static [(&'static str, f32)], f32, bool);

    impl Router for Fixed {
        fn route(&self, _: &Query<'_>, _: &[Candidate<'_>]) -> Result<Decision> {
            let ranked = self.0.iter().map(|&(id, score)| Ranked { model: id.into(), score }).collect();
            Ok(Decision::new(ranked, self.1, self.2, "fixed", "fixed"))
        }
    }

    struct Broken;

    impl Router for Broken {
        fn route(&self, _: &Query<'_>, _: &[Candidate<'_>]) -> Result<Decision> {
            Err(Error::new(ErrorKind::Internal, "broken"))
        }
    }

    const A: &[(&str, f32)] = &[("a", 0.9), ("b", 0.1)];
    const B: &[(&str, f32)] = &[("a", 0.2), ("b", 0.8)];

    fn route(router: &dyn Router, prompt: &str) -> Decision {
        let specs = [ModelSpec::new("a".into(), vec![]), ModelSpec::new("b".into(), vec![])];
        let candidates: Vec<_> = specs.iter().map(Candidate::new).collect();
        router.route(&Query::new(prompt), &candidates).unwrap()
    }

    fn chosen(decision: &Decision) -> Option<&str> {
        decision.chosen().map(ModelId::as_str)
    }

    #[test]
    fn a_cascade_stops_at_the_first_router_that_is_sure() {
        let step = |confidence, abstained| Arc::new(Fixed(A, confidence, abstained));
        let second = Arc::new(Fixed(B, 0.8, false));
        for (first, want) in [(step(0.9, false), "a"), (step(0.4, false), "b"), (step(0.9, true), "b")] {
            let cascade = Cascade::new().then(first, 0.5).then(second.clone(), 0.5);
            assert_eq!(chosen(&route(&cascade, "x y")), Some(want));
        }
        let unsure = Cascade::new().then(step(0.4, false), 0.5).default_model("b");
        let decision = route(&unsure, "x y");
        assert!(decision.abstained);
        assert_eq!(decision.ranked[0].model.as_str(), "b");
        assert!(route(&unsure, "").abstained);
        assert_eq!(route(&unsure, "").ranked[0].model.as_str(), "b");
    }

    #[test]
    fn an_ensemble_weighs_votes_and_skips_who_abstains() {
        let (a, b) = (Arc::new(Fixed(A, 0.9, false)), Arc::new(Fixed(B, 0.8, false)));
        let even = Ensemble::new(0.3).with(a.clone(), 1.0).with(b.clone(), 1.0);
        let decision = route(&even, "x y");
        assert_eq!(chosen(&decision), Some("a"));
        assert!((decision.confidence - (0.9 * 0.9 + 0.8 * 0.2) / 2.0).abs() < 1e-6);
        assert_eq!(chosen(&route(&Ensemble::new(0.3).with(a, 1.0).with(b.clone(), 3.0), "x y")), Some("b"));
        let mute = Arc::new(Fixed(A, 0.9, true));
        assert_eq!(
            chosen(&route(&Ensemble::new(0.3).with(mute.clone(), 9.0).with(b, 1.0), "x y")),
            Some("b")
        );
        assert!(route(&Ensemble::new(0.3).with(mute, 1.0), "x y").abstained);
    }

    #[test]
    fn a_shadow_never_changes_the_decision() {
        let active = Arc::new(Fixed(A, 0.9, false));
        let shadow = Shadow::new(active.clone(), Arc::new(Fixed(B, 0.8, false)), 2);
        for prompt in ["one", "two", "three"] {
            assert_eq!(chosen(&route(&shadow, prompt)), Some("a"));
        }
        let report = shadow.report();
        assert_eq!((report.decisions, report.differed, report.failed), (3, 3, 0));
        let prompts: Vec<_> = report.latest.iter().map(|entry| entry.prompt.as_str()).collect();
        assert_eq!(prompts, ["two", "three"]);
        let broken = Shadow::new(active, Arc::new(Broken), 2);
        assert_eq!(chosen(&route(&broken, "one")), Some("a"));
        assert_eq!(broken.report().failed, 1);
    }
}
