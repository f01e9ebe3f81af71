//! The shortest way to an answer: `cargo run --release --example quickstart [MODEL]`.

#![allow(clippy::print_stdout, reason = "an example talks to the person who runs it")]

use orion::{Generation, ModelExt};

fn main() -> orion::Result<()> {
    let model = std::env::args().nth(1).map_or_else(orion_testkit::models::smollm2, Into::into);
    let model = orion::open(model)?;
    let question = Generation::user("Explain in one sentence why the sky is blue.").max_tokens(64);
    println!("{}", model.generate(question)?.text);
    Ok(())
}
