//! What every router refuses before it looks at anything.

use orion_core::{Candidate, Decision, Error, Query, Ranked, Result};

use crate::text::unroutable;

/// An abstention if the prompt holds nothing to judge.
///
/// # Errors
/// [`InvalidInput`](orion_core::ErrorKind::InvalidInput) if there is no candidate.
pub(crate) fn guard(
    query: &Query<'_>,
    candidates: &[Candidate<'_>],
    router: &str,
) -> Result<Option<Decision>> {
    if candidates.is_empty() {
        return Err(Error::invalid("there is no candidate to route to").about(format!("router {router}")));
    }
    Ok(unroutable(query.prompt).map(|reason| abstain(candidates, reason, router)))
}

/// A decision for nobody.
pub(crate) fn abstain(candidates: &[Candidate<'_>], reason: impl Into<String>, router: &str) -> Decision {
    let even = 1.0 / candidates.len() as f32;
    let ranked = candidates.iter().map(|c| Ranked { model: c.spec.id.clone(), score: even }).collect();
    Decision::new(ranked, 0.0, true, reason, router)
}
