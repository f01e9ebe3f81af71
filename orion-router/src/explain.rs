//! A decision in words, with the time it took.

use std::fmt::Write as _;
use std::time::Duration;

use orion_core::{Candidate, Clock, Decision, Query, Result, Router};

/// A decision and how long it took.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct TimedDecision {
    /// The decision.
    pub decision: Decision,
    /// From prompt to decision, tokenising and encoding included.
    pub latency: Duration,
}

/// Routes and takes the time.
///
/// # Errors
/// As the router.
pub fn route_timed(
    router: &dyn Router,
    clock: &dyn Clock,
    query: &Query<'_>,
    candidates: &[Candidate<'_>],
) -> Result<TimedDecision> {
    let start = clock.now();
    let decision = router.route(query, candidates)?;
    Ok(TimedDecision { decision, latency: clock.now().since(start) })
}

impl TimedDecision {
    /// The decision for people: what was chosen, how sure, why, and what else there was.
    #[must_use]
    pub fn explain(&self) -> String {
        let decision = &self.decision;
        let mut text = match decision.chosen() {
            Some(model) => format!("{model} should answer ({:.0} % sure)", decision.confidence * 100.0),
            None => "no model is a clear choice; the default should answer".to_owned(),
        };
        let micros = self.latency.as_micros();
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "\nbecause: {}\ndecided by the {} router in {micros} µs",
            decision.reason, decision.router
        );
        if decision.ranked.len() > 1 {
            text.push_str("\nranking:");
            for ranked in decision.ranked.iter().take(8) {
                let _ = write!(text, "\n  {:>6.3}  {}", ranked.score, ranked.model);
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use orion_core::{ManualClock, ModelSpec, Ranked};

    struct Slow(ManualClock);

    impl Router for Slow {
        fn route(&self, _: &Query<'_>, candidates: &[Candidate<'_>]) -> Result<Decision> {
            self.0.advance(Duration::from_micros(1500));
            let ranked = candidates.iter().map(|c| Ranked { model: c.spec.id.clone(), score: 0.5 }).collect();
            Ok(Decision::new(ranked, 0.5, false, "the word \"rust\" points to a", "slow"))
        }
    }

    #[test]
    fn the_text_names_model_reason_router_and_time() {
        let clock = ManualClock::new();
        let specs = [ModelSpec::new("a".into(), vec![]), ModelSpec::new("b".into(), vec![])];
        let candidates: Vec<_> = specs.iter().map(Candidate::new).collect();
        let timed = route_timed(&Slow(clock.clone()), &clock, &Query::new("rust"), &candidates).unwrap();
        assert_eq!(
            timed.explain(),
            "a should answer (50 % sure)\nbecause: the word \"rust\" points to a\n\
             decided by the slow router in 1500 µs\nranking:\n   0.500  a\n   0.500  b"
        );
    }
}
