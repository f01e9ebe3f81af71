//! A router of one's own in the place of ORION's: long prompts go to the patient agent.
//! `cargo run --release --example custom_router`

#![allow(clippy::print_stdout, reason = "an example talks to the person who runs it")]

use std::sync::Arc;

use orion::{
    Candidate, Decision, Engine, Error, FileSpec, ModelSpec, Query, Ranked, Request, Result, Router,
};

/// Decides by the number of words.
pub(crate) struct ByLength;

impl Router for ByLength {
    fn route(&self, query: &Query<'_>, candidates: &[Candidate<'_>]) -> Result<Decision> {
        if candidates.is_empty() {
            return Err(Error::invalid("there is no candidate"));
        }
        let words = query.prompt.split_whitespace().count();
        let wanted = if words > 8 { "patient" } else { "brief" };
        let score = |candidate: &Candidate<'_>| f32::from(u8::from(candidate.spec.id.as_str() == wanted));
        let ranked = candidates
            .iter()
            .map(|candidate| Ranked { model: candidate.spec.id.clone(), score: score(candidate) })
            .collect();
        Ok(Decision::new(ranked, 0.9, false, format!("the prompt has {words} words"), "by length"))
    }
}

fn main() -> Result<()> {
    let file = FileSpec::new(orion_testkit::models::smollm2().to_string_lossy());
    let agent = |id: &str, instructions: &str| {
        let mut spec = ModelSpec::new(id.into(), vec![file.clone()]);
        spec.system_prompt = Some(instructions.to_owned());
        spec
    };
    let engine = Engine::builder()
        .spec(agent("brief", "Answer in one short sentence."))
        .spec(agent("patient", "Explain step by step."))
        .router(Arc::new(ByLength))
        .build()?;
    for prompt in ["What is rain?", "Please tell me in some detail how a cloud turns into rain over the sea"]
    {
        let answer = engine.infer_with(Request::new(prompt).max_tokens(60))?;
        let reason = answer.report.decision.as_ref().map_or("", |decision| decision.reason.as_str());
        println!("> {prompt}\n[{}: {reason}]\n{}\n", answer.model, answer.text);
    }
    Ok(())
}
