//! Many prompts at once: the engine runs them together, which is faster than one after the other, and says the same.
//! `cargo run --release --example batch`

#![allow(clippy::print_stdout, reason = "an example talks to the person who runs it")]

use std::time::Instant;

use orion::{Engine, Request, SamplingParams};

fn main() -> orion::Result<()> {
    let model = orion_testkit::models::smollm2();
    let engine = Engine::builder().model("smollm2", model.to_string_lossy()).build()?;
    engine.preload("smollm2")?;
    let request = |animal: &str| {
        Request::new(format!("In one sentence: what is {animal}?"))
            .sampling(SamplingParams::greedy())
            .max_tokens(32)
    };
    let animals = ["a cat", "a whale", "an owl", "a bee", "a horse", "an eel", "a wolf", "a snail"];

    let start = Instant::now();
    let streams: Vec<_> = animals.iter().map(|animal| engine.stream(request(animal))).collect();
    let together = streams.into_iter().map(|stream| stream.answer()).collect::<orion::Result<Vec<_>>>()?;
    let at_once = start.elapsed();

    let start = Instant::now();
    let mut same = true;
    for (animal, answer) in animals.iter().zip(&together) {
        println!("{animal}: {}", answer.text.lines().next().unwrap_or_default());
        same &= engine.infer_with(request(animal))?.tokens == answer.tokens;
    }
    println!(
        "\ntogether {at_once:.2?}, one after the other {:.2?}; the same tokens: {same}",
        start.elapsed()
    );
    Ok(())
}
