use std::time::Instant;

use clap::Args;
use orion::runtime::{LocalModel, Positions};
use orion::{Error, Generation, Model, ModelExt, Prompt, Result, SamplingParams, TokenId};
use serde_json::{Value, json};

use super::model::ModelArgs;
use crate::output;

#[derive(Debug, Args)]
pub(crate) struct Bench {
    #[command(flatten)]
    model: ModelArgs,
    /// Prompt tokens of a prefill; 0 leaves it out
    #[arg(short = 'p', long = "prompt-tokens", value_name = "N", default_value_t = 512)]
    prompt_tokens: usize,
    /// Tokens to decode from an empty context; 0 leaves it out
    #[arg(short = 'n', long = "decode-tokens", value_name = "N", default_value_t = 128)]
    decode_tokens: u32,
    /// Runs, after one that does not count
    #[arg(short = 'r', long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    runs: u16,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Bench {
    pub(crate) fn run(&self) -> Result<()> {
        let began = Instant::now();
        let model = self.model.open()?;
        model.wait_loaded()?;
        let load_s = began.elapsed().as_secs_f64();
        let tokens = random_tokens(self.prompt_tokens.max(1), model.config().vocab_size);
        let (mut prefill, mut decode) = (Vec::new(), Vec::new());
        for run in 0..=self.runs {
            if self.prompt_tokens > 0 {
                let began = Instant::now();
                model.evaluate(&tokens, Positions::Last, |_, _| {})?;
                let rate = self.prompt_tokens as f64 / began.elapsed().as_secs_f64();
                prefill.extend((run > 0).then_some(rate));
            }
            if self.decode_tokens > 0 {
                let seconds = decode_run(&model, tokens[0], self.decode_tokens)?;
                decode.extend((run > 0).then_some(f64::from(self.decode_tokens) / seconds));
            }
        }
        let report = json!({
            "prefill_tps": spread(&mut prefill),
            "decode_tps": spread(&mut decode),
            "load_s": load_s,
            "peak_rss_mb": output::peak_rss_mb(),
            "p": self.prompt_tokens,
            "n": self.decode_tokens,
            "runs": self.runs,
            "threads": self.model.threads(),
            "executor": model.info().executor,
        });
        if self.json {
            return output::print_json(&report);
        }
        output::print(&format!("{}, {} threads\n", model.info().executor, self.model.threads()))?;
        for (name, what) in [("prefill", "prefill_tps"), ("decode", "decode_tps")] {
            if let Value::Object(spread) = &report[what] {
                let [median, min, max] =
                    ["median", "min", "max"].map(|key| spread[key].as_f64().unwrap_or(f64::NAN));
                output::print(&format!("{name:<8} {median:>9.1} tokens/s  [{min:.1} - {max:.1}]\n"))?;
            }
        }
        output::print(&format!("load     {load_s:>9.2} s\n"))
    }
}

/// Seconds to decode `count` tokens greedily from an empty context.
fn decode_run(model: &LocalModel, first: TokenId, count: u32) -> Result<f64> {
    let prompt = Prompt::Tokens(vec![first]);
    let mut generation = Generation::new(prompt).sampling(SamplingParams::greedy()).max_tokens(count);
    generation.ignore_eos = true;
    let began = Instant::now();
    let done = model.generate(generation)?;
    if done.usage.completion_tokens != count {
        return Err(Error::invalid(format!(
            "the context ended after {} tokens",
            done.usage.completion_tokens
        )));
    }
    Ok(began.elapsed().as_secs_f64())
}

/// The same tokens on every machine: a linear congruential generator's upper bits.
fn random_tokens(count: usize, vocab: usize) -> Vec<TokenId> {
    let mut state = 7u64;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        TokenId(
            u32::try_from((state >> 33) % vocab as u64).expect("the remainder is below the vocabulary size"),
        )
    };
    std::iter::repeat_with(next).take(count).collect()
}

fn spread(values: &mut [f64]) -> Value {
    values.sort_by(f64::total_cmp);
    let (Some(min), Some(max)) = (values.first(), values.last()) else { return Value::Null };
    let middle = values.len() / 2;
    let median = match values.len() % 2 {
        1 => values[middle],
        _ => (values[middle - 1] + values[middle]) / 2.0,
    };
    json!({ "median": median, "min": min, "max": max })
}
