//! `orion-router` alone: keywords, then a default.

use orion_core::{Candidate, ModelSpec, Query, Router};
use orion_router::{KeywordRouter, KeywordRule};

fn main() -> orion_core::Result<()> {
    let rules = vec![KeywordRule::new("coder", ["rust"]), KeywordRule::new("poet", ["poem", "rhyme"])];
    let router = KeywordRouter::new(rules)?;
    let models = ["coder", "poet"].map(|id| ModelSpec::new(id.into(), Vec::new()));
    let candidates: Vec<_> = models.iter().map(Candidate::new).collect();
    let decision = router.route(&Query::new("Write a poem about autumn"), &candidates)?;
    assert_eq!(decision.chosen().map(|model| model.as_str()), Some("poet"));
    assert!(router.route(&Query::new("What time is it?"), &candidates)?.abstained);
    println!("router: {}", decision.reason);
    Ok(())
}
