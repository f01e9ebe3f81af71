//! A catalogue from code: agents that a program makes while it runs, all on one set of weights.
//! `cargo run --release --example custom_catalog`

#![allow(clippy::print_stdout, reason = "an example talks to the person who runs it")]

use std::sync::{Arc, PoisonError, RwLock};

use orion::{Catalog, Engine, FileSpec, ModelId, ModelSpec, Request, Result};

/// Agents in the order in which they were hired.
#[derive(Default)]
pub(crate) struct Staff(RwLock<Vec<Arc<ModelSpec>>>);

impl Staff {
    /// From the next request on there is one more.
    pub(crate) fn hire(&self, agent: ModelSpec) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).push(Arc::new(agent));
    }
}

impl Catalog for Staff {
    fn get(&self, id: &ModelId) -> Option<Arc<ModelSpec>> {
        self.all().into_iter().find(|agent| agent.id == *id)
    }

    fn all(&self) -> Vec<Arc<ModelSpec>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// An agent is weights and how to use them: these words lead to it, and these are its orders.
pub(crate) fn agent(id: &str, keywords: &[&str], orders: &str) -> ModelSpec {
    let weights = FileSpec::new(orion_testkit::models::smollm2().to_string_lossy());
    let mut agent = ModelSpec::new(id.into(), vec![weights]);
    agent.keywords = keywords.iter().map(|word| (*word).to_owned()).collect();
    agent.system_prompt = Some(orders.to_owned());
    agent
}

fn main() -> Result<()> {
    let staff = Arc::new(Staff::default());
    staff.hire(agent("clerk", &[], "Answer in one short sentence."));
    let engine = Engine::builder().catalog(staff.clone()).default_model("clerk").build()?;

    let prompt = "Write a poem about rain.";
    let ask = || -> Result<()> {
        let answer = engine.infer_with(Request::new(prompt).max_tokens(40))?;
        println!("[{}] {}\n", answer.model, answer.text);
        Ok(())
    };
    println!("> {prompt}");
    ask()?;
    println!("a poet is hired; the engine goes on\n> {prompt}");
    staff.hire(agent("poet", &["poem", "rhyme"], "You are a poet. Answer in verse."));
    ask()?;
    let stats = engine.stats()?;
    println!("{} agents, weights loaded {} time(s)", staff.all().len(), stats.models[0].loads);
    Ok(())
}
