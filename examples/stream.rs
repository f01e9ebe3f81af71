//! Tokens as they come, then what they cost: `cargo run --release --example stream [MODEL]`.

#![allow(clippy::print_stdout, reason = "an example talks to the person who runs it")]

use std::io::Write;

use orion::{Generation, GenerationEvent, ModelExt};

fn main() -> orion::Result<()> {
    let model = std::env::args().nth(1).map_or_else(orion_testkit::models::smollm2, Into::into);
    let model = orion::open(model)?;
    for event in
        model.stream(Generation::user("Tell me a short story about a lighthouse.").max_tokens(120))?
    {
        match event {
            GenerationEvent::Started { prompt_tokens, .. } => eprintln!("[{prompt_tokens} prompt tokens]"),
            GenerationEvent::Token { text, .. } => {
                print!("{text}");
                std::io::stdout().flush().map_err(|error| orion::Error::io(error, "standard output"))?;
            }
            GenerationEvent::Done(done) => {
                let rate = f64::from(done.usage.completion_tokens) / done.timings.decode.as_secs_f64();
                println!(
                    "\n[{:?}, first token after {:.0?}, {rate:.1} tokens/s]",
                    done.reason, done.timings.ttft
                );
            }
            GenerationEvent::Failed(error) => return Err(error),
            _ => {}
        }
    }
    Ok(())
}
