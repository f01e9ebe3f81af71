//! What every router must do.

use std::collections::HashSet;
use std::time::Duration;

use super::at_once;
use crate::state::Residency;
use crate::{Candidate, Decision, ErrorKind, Health, Message, ModelId, ModelSpec, Query, Role, Router};

/// Checks a router that may choose from `models`, of which there must be two at least.
///
/// Without candidates it refuses; otherwise it answers any prompt, also one without a word in it. It ranks candidates only, each
/// at most once, best first, by finite scores; its confidence is a probability; it says why, and who it is; where it does
/// not abstain it has chosen. With one candidate there is no other. Conversations, residency and health are taken as they
/// come, and so are several threads.
///
/// # Panics
/// With the law that was broken.
pub fn router(router: &dyn Router, models: &[ModelSpec]) {
    assert!(models.len() > 1, "the suite needs two models to choose from");
    let refused = router.route(&Query::new("hello"), &[]);
    let kind = refused.as_ref().err().map(crate::Error::kind);
    assert_eq!(kind, Some(ErrorKind::InvalidInput), "without a candidate: {refused:?}");

    let candidates: Vec<_> = models.iter().map(Candidate::new).collect();
    let long = "again and ".repeat(5000);
    let prompts = [
        "",
        " \t\r\n",
        "?",
        "Write a haiku about autumn",
        "Écris un poème sur l'automne",
        "为什么天空是蓝色的？",
        "\u{0}\u{1b}[31m\u{202e}",
        "🦀🦀🦀",
        long.as_str(),
    ];
    at_once(|| {
        for prompt in prompts {
            ask(router, &Query::new(prompt), &candidates);
            ask(router, &Query::new(prompt), &candidates[..1]);
        }
    });
    let history = [
        Message::new(Role::System, "Be brief."),
        Message::new(Role::User, "Write a poem"),
        Message::new(Role::Assistant, ""),
    ];
    let gone = ModelId::new("a model that is no longer there");
    for current in [None, Some(&models[0].id), Some(&gone)] {
        let mut query = Query::new("and another one");
        (query.history, query.current) = (&history, current);
        ask(router, &query, &candidates);
    }
    for health in [Health::Healthy, Health::Degraded, Health::Down] {
        for residency in [Residency::Absent, Residency::Loading, Residency::Busy, Residency::Failed] {
            let mut seen = candidates.clone();
            for candidate in &mut seen {
                (candidate.health, candidate.residency) = (health, residency);
                candidate.switch_cost = Duration::from_secs(3600);
            }
            ask(router, &Query::new("hello"), &seen);
        }
    }
}

fn ask(router: &dyn Router, query: &Query<'_>, candidates: &[Candidate<'_>]) -> Decision {
    let prompt: String = query.prompt.chars().take(40).collect();
    let decision =
        router.route(query, candidates).unwrap_or_else(|error| panic!("the prompt {prompt:?}: {error}"));
    let may: HashSet<_> = candidates.iter().map(|candidate| &candidate.spec.id).collect();
    let mut seen = HashSet::new();
    for ranked in &decision.ranked {
        assert!(may.contains(&ranked.model), "{prompt:?}: {} is no candidate", ranked.model);
        assert!(seen.insert(&ranked.model), "{prompt:?}: {} is ranked twice", ranked.model);
        assert!(ranked.score.is_finite(), "{prompt:?}: the score of {} is {}", ranked.model, ranked.score);
    }
    assert!(
        decision.ranked.is_sorted_by(|a, b| a.score >= b.score),
        "{prompt:?}: the ranking is not best first: {:?}",
        decision.ranked
    );
    assert!((0.0..=1.0).contains(&decision.confidence), "{prompt:?}: confidence {}", decision.confidence);
    assert!(!decision.reason.is_empty(), "{prompt:?}: no reason is given");
    assert!(!decision.router.is_empty(), "{prompt:?}: the router has no name");
    assert_eq!(
        decision.chosen().is_some(),
        !decision.abstained,
        "{prompt:?}: it neither chose nor abstained: {decision:?}"
    );
    decision
}
