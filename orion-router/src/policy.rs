//! What may answer, and what it costs: constraints and costs around any router.

use std::collections::BTreeSet;
use std::time::Duration;

use orion_core::state::Residency;
use orion_core::{Candidate, Decision, Error, Health, ModelId, Query, Ranked, Result, Router};

use crate::grams::hash;
use crate::guard;
use crate::guard::abstain;

const NAME: &str = "policy";

/// A share of the traffic for one model, to compare it with what the router would choose.
#[derive(Debug, Clone, PartialEq)]
pub struct TrafficShare {
    /// The model under test.
    pub model: ModelId,
    /// Share of prompts it gets, 0 to 1. Which prompts depends on their text and `salt` alone.
    pub share: f32,
    /// Another salt picks other prompts.
    pub salt: u64,
}

/// Constraints and costs.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Policy {
    /// Capabilities a model must declare.
    pub capabilities: Vec<String>,
    /// Tokens the context must hold: prompt and answer. A model that declares no context length passes.
    pub context_tokens: u32,
    /// Most bytes a model that is not in memory may need for its weights.
    pub memory_bytes: Option<u64>,
    /// Models that may not answer.
    pub forbidden: BTreeSet<ModelId>,
    /// This model answers, whatever the router says, if it may.
    pub forced: Option<ModelId>,
    /// A share of the traffic goes to a model under test.
    pub traffic: Option<TrafficShare>,
    /// What a second of loading costs in score. Default 0.02: a load of ten seconds outweighs a lead of 0.2.
    pub cost_per_load_second: f32,
    /// The cost of a load is never more than this. Default 0.3, so that a sure decision stands.
    pub most_load_cost: f32,
    /// What a model counts that is in memory but whose calls fail at times. Default 0.1.
    pub degraded_cost: f32,
    /// How much the declared quality (0 to 1) counts. Default 0.05: it breaks ties.
    pub quality_weight: f32,
    /// What a call costs in score, per model; 0 for those not named.
    pub call_costs: std::collections::BTreeMap<ModelId, f32>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            capabilities: Vec::new(),
            context_tokens: 0,
            memory_bytes: None,
            forbidden: BTreeSet::new(),
            forced: None,
            traffic: None,
            cost_per_load_second: 0.02,
            most_load_cost: 0.3,
            degraded_cost: 0.1,
            quality_weight: 0.05,
            call_costs: std::collections::BTreeMap::new(),
        }
    }
}

impl Policy {
    /// Why a candidate may not answer, if so.
    #[must_use]
    pub fn objection(&self, candidate: &Candidate<'_>) -> Option<String> {
        let spec = candidate.spec;
        if self.forbidden.contains(&spec.id) {
            return Some("forbidden".to_owned());
        }
        if candidate.health == Health::Down {
            return Some("its breaker is open".to_owned());
        }
        if let Some(missing) = self.capabilities.iter().find(|wanted| !spec.capabilities.contains(wanted)) {
            return Some(format!("lacks the capability {missing}"));
        }
        if spec.context_length != 0 && spec.context_length < self.context_tokens {
            return Some(format!("its context of {} tokens is too short", spec.context_length));
        }
        if !resident(candidate.residency) && self.memory_bytes.is_some_and(|most| spec.weight_bytes > most) {
            return Some(format!("its {} bytes do not fit the memory", spec.weight_bytes));
        }
        None
    }

    fn cost(&self, candidate: &Candidate<'_>) -> f32 {
        let loading = if candidate.switch_cost > Duration::ZERO {
            (candidate.switch_cost.as_secs_f32() * self.cost_per_load_second).min(self.most_load_cost)
        } else {
            0.0
        };
        let degraded = if candidate.health == Health::Degraded { self.degraded_cost } else { 0.0 };
        let call = self.call_costs.get(&candidate.spec.id).copied().unwrap_or(0.0);
        loading + degraded + call - self.quality_weight * candidate.spec.quality
    }
}

fn resident(residency: Residency) -> bool {
    matches!(residency, Residency::Ready | Residency::Busy)
}

/// Applies a [`Policy`] around a router: candidates that may not answer are taken out before it decides, costs
/// are subtracted from its scores afterwards.
#[derive(Debug)]
pub struct PolicyRouter<R> {
    inner: R,
    policy: Policy,
}

impl<R: Router> PolicyRouter<R> {
    /// Wraps a router.
    pub fn new(inner: R, policy: Policy) -> Self {
        Self { inner, policy }
    }

    fn pick(&self, model: &ModelId, allowed: &[Candidate<'_>], reason: String) -> Option<Decision> {
        let present = allowed.iter().any(|candidate| candidate.spec.id == *model);
        let score = |candidate: &Candidate<'_>| Ranked {
            model: candidate.spec.id.clone(),
            score: if candidate.spec.id == *model { 1.0 } else { 0.0 },
        };
        present.then(|| Decision::new(allowed.iter().map(score).collect(), 1.0, false, reason, NAME))
    }
}

impl<R: Router> Router for PolicyRouter<R> {
    fn route(&self, query: &Query<'_>, candidates: &[Candidate<'_>]) -> Result<Decision> {
        guard(query, candidates, NAME)?;
        let mut objections = Vec::new();
        let mut allowed = Vec::new();
        for candidate in candidates {
            match self.policy.objection(candidate) {
                None => allowed.push(*candidate),
                Some(objection) => objections.push(format!("{}: {objection}", candidate.spec.id)),
            }
        }
        if allowed.is_empty() {
            let reason = format!("no candidate may answer ({})", objections.join("; "));
            return Ok(abstain(candidates, reason, NAME));
        }
        if let Some(forced) = &self.policy.forced {
            let decision = self.pick(forced, &allowed, format!("{forced} is forced"));
            return decision.ok_or_else(|| {
                let why = objections.iter().find(|text| text.starts_with(&format!("{forced}: ")));
                Error::invalid(format!(
                    "the forced model may not answer ({})",
                    why.map_or_else(|| "it is no candidate".to_owned(), Clone::clone)
                ))
                .about(format!("model {forced}"))
            });
        }
        if let Some(traffic) = &self.policy.traffic {
            let place = hash(&[query.prompt.as_bytes(), &traffic.salt.to_le_bytes()].concat()) >> 40;
            if (place as f32) < traffic.share * (1_u32 << 24) as f32 {
                let reason = format!("{:.0} % of the traffic go to {}", traffic.share * 100.0, traffic.model);
                if let Some(decision) = self.pick(&traffic.model, &allowed, reason) {
                    return Ok(decision);
                }
            }
        }
        let inner = self.inner.route(query, &allowed)?;
        if inner.abstained {
            return Ok(inner);
        }
        let cost = |model: &ModelId| {
            allowed.iter().find(|c| c.spec.id == *model).map_or(0.0, |candidate| self.policy.cost(candidate))
        };
        let before = inner.ranked.first().map(|first| first.model.clone());
        let ranked: Vec<Ranked> = inner
            .ranked
            .iter()
            .map(|ranked| Ranked { model: ranked.model.clone(), score: ranked.score - cost(&ranked.model) })
            .collect();
        let mut decision = Decision::new(ranked, inner.confidence, false, inner.reason, inner.router);
        let after = decision.ranked.first().map(|first| first.model.clone());
        if let (Some(before), Some(after)) = (before, after)
            && before != after
        {
            let score = |model: &ModelId| {
                inner.ranked.iter().find(|ranked| ranked.model == *model).map_or(0.0, |ranked| ranked.score)
            };
            decision.confidence = score(&after);
            decision.reason = format!(
                "{}; {after} instead of {before}, whose costs ({:.2} against {:.2}) outweigh its lead of {:.2}",
                decision.reason,
                cost(&before),
                cost(&after),
                score(&before) - score(&after)
            );
        }
        if !objections.is_empty() {
            decision.reason = format!("{}; out: {}", decision.reason, objections.join("; "));
        }
        Ok(decision)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use orion_core::{ErrorKind, ModelSpec};

    /// Scores 0.6 for the first candidate, 0.4 for the second, 0 for others.
    struct InOrder;

    impl Router for InOrder {
        fn route(&self, _: &Query<'_>, candidates: &[Candidate<'_>]) -> Result<Decision> {
            let scores = [0.6, 0.4].into_iter().chain(std::iter::repeat(0.0));
            let ranked = candidates
                .iter()
                .zip(scores)
                .map(|(c, score)| Ranked { model: c.spec.id.clone(), score })
                .collect();
            Ok(Decision::new(ranked, 0.6, false, "in order", "in-order"))
        }
    }

    fn specs() -> [ModelSpec; 2] {
        let mut big = ModelSpec::new("big".into(), vec![]);
        big.capabilities = vec!["chat".to_owned(), "code".to_owned()];
        big.context_length = 8192;
        big.weight_bytes = 1000;
        let mut small = ModelSpec::new("small".into(), vec![]);
        small.capabilities = vec!["chat".to_owned()];
        small.context_length = 1024;
        small.weight_bytes = 100;
        [big, small]
    }

    fn route(policy: Policy, adjust: impl Fn(&mut Vec<Candidate<'_>>)) -> Result<Decision> {
        let specs = specs();
        let mut candidates: Vec<_> = specs.iter().map(Candidate::new).collect();
        adjust(&mut candidates);
        PolicyRouter::new(InOrder, policy).route(&Query::new("a prompt"), &candidates)
    }

    fn chosen(policy: Policy, adjust: impl Fn(&mut Vec<Candidate<'_>>)) -> Option<String> {
        route(policy, adjust).unwrap().chosen().map(ToString::to_string)
    }

    #[test]
    fn constraints_take_candidates_out() {
        let none = |_: &mut Vec<Candidate<'_>>| {};
        assert_eq!(chosen(Policy::default(), none).as_deref(), Some("big"));
        let forbidden = Policy { forbidden: ["big".into()].into(), ..Policy::default() };
        assert_eq!(chosen(forbidden, none).as_deref(), Some("small"));
        assert_eq!(chosen(Policy::default(), |c| c[0].health = Health::Down).as_deref(), Some("small"));
        let tight = Policy { memory_bytes: Some(500), ..Policy::default() };
        assert_eq!(chosen(tight.clone(), none).as_deref(), Some("big"), "what is resident needs no memory");
        assert_eq!(chosen(tight, |c| c[0].residency = Residency::Absent).as_deref(), Some("small"));
        let reversed = |c: &mut Vec<Candidate<'_>>| c.reverse();
        let code = Policy { capabilities: vec!["code".to_owned()], ..Policy::default() };
        assert_eq!(chosen(code, reversed).as_deref(), Some("big"));
        let long = Policy { context_tokens: 4096, ..Policy::default() };
        assert_eq!(chosen(long, reversed).as_deref(), Some("big"));
    }

    #[test]
    fn all_forbidden_abstains_and_says_why() {
        let policy = Policy { forbidden: ["big".into(), "small".into()].into(), ..Policy::default() };
        let decision = route(policy, |_| {}).unwrap();
        assert!(decision.abstained && decision.reason.contains("big: forbidden"), "{}", decision.reason);
        assert_eq!(route(Policy::default(), |c| c.clear()).unwrap_err().kind(), ErrorKind::InvalidInput);
    }

    #[test]
    fn a_lead_is_weighed_against_the_cost_of_loading() {
        let far = |seconds| {
            move |c: &mut Vec<Candidate<'_>>| {
                c[0].residency = Residency::Absent;
                c[0].switch_cost = Duration::from_secs(seconds);
            }
        };
        assert_eq!(chosen(Policy::default(), far(5)).as_deref(), Some("big"));
        let decision = route(Policy::default(), far(11)).unwrap();
        assert_eq!(decision.chosen().unwrap().as_str(), "small");
        assert!((decision.confidence - 0.4).abs() < 1e-6);
        assert!(decision.reason.contains("small instead of big"), "{}", decision.reason);
        let dear = Policy { call_costs: [("big".into(), 0.25)].into(), ..Policy::default() };
        assert_eq!(chosen(dear, |_| {}).as_deref(), Some("small"));
    }

    #[test]
    fn forced_models_and_traffic_shares() {
        let forced = |id: &str| Policy { forced: Some(id.into()), ..Policy::default() };
        assert_eq!(chosen(forced("small"), |_| {}).as_deref(), Some("small"));
        assert!(route(forced("none"), |_| {}).unwrap_err().to_string().contains("no candidate"));
        assert!(
            route(forced("small"), |c| c[1].health = Health::Down)
                .unwrap_err()
                .to_string()
                .contains("breaker")
        );
        let specs = specs();
        let candidates: Vec<_> = specs.iter().map(Candidate::new).collect();
        let traffic = TrafficShare { model: "small".into(), share: 0.3, salt: 1 };
        let router = PolicyRouter::new(InOrder, Policy { traffic: Some(traffic), ..Policy::default() });
        let to_small = (0..2000).filter(|at| {
            let decision = router.route(&Query::new(&format!("prompt {at}")), &candidates).unwrap();
            decision.chosen().unwrap().as_str() == "small"
        });
        // 600 expected; four standard deviations are 82.
        let count = to_small.count();
        assert!((518..=682).contains(&count), "{count}");
    }
}
