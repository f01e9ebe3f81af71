use std::time::{Duration, Instant, SystemTime};

use clap::Args;
use orion::registry::{Hardware, Measured, save_measured};
use orion::runtime::{LocalModel, Positions};
use orion::{Error, Generation, Model, ModelExt, Prompt, Result, SamplingParams, TokenId};
use serde_json::{Value, json};

use super::model::ModelArgs;
use crate::output;
use crate::registry::local_layer;

#[derive(Debug, Args)]
pub(crate) struct Bench {
    #[command(flatten)]
    model: ModelArgs,
    /// Prompt tokens of a prefill; 0 leaves it out
    #[arg(short = 'p', long = "prompt-tokens", value_name = "N", default_value_t = 512)]
    prompt_tokens: usize,
    /// Tokens to decode; 0 leaves it out
    #[arg(short = 'n', long = "decode-tokens", value_name = "N", default_value_t = 128)]
    decode_tokens: u32,
    /// Tokens that are in the context before those
    #[arg(short = 'd', long, value_name = "N", default_value_t = 0)]
    depth: usize,
    /// Sequences that decode at once; the rate is that of all together
    #[arg(short = 's', long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=8))]
    streams: u16,
    /// Runs, after one that does not count
    #[arg(short = 'r', long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    runs: u16,
    /// Write the figures into NAME.local.json beside the registry; the model must be an id of it
    #[arg(long)]
    save: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Bench {
    pub(crate) fn run(&self) -> Result<()> {
        let named = self.model.find()?;
        let id = named.model().map(|model| model.id().to_owned());
        if self.save && id.is_none() {
            let message = "--save needs an id of the registry as --model; `orion registry add` makes one";
            return Err(Error::invalid(message).about(self.model.model.clone()));
        }
        if self.depth > 0 && self.decode_tokens == 1 {
            let message = "the first token comes with the context: --decode-tokens must be 0 or at least 2";
            return Err(Error::invalid(message).about("--depth"));
        }
        let began = Instant::now();
        let model = self.model.open_named(&named)?;
        model.wait_loaded()?;
        let load_s = began.elapsed().as_secs_f64();
        let tokens = random_tokens(self.prompt_tokens.max(self.depth).max(1), model.config().vocab_size);
        let (prompt, before) = (&tokens[..self.prompt_tokens], &tokens[..self.depth.max(1)]);
        let (mut prefill, mut decode) = (Vec::new(), Vec::new());
        for run in 0..=self.runs {
            if self.prompt_tokens > 0 {
                let began = Instant::now();
                model.evaluate(prompt, Positions::Last, |_, _| {})?;
                let rate = self.prompt_tokens as f64 / began.elapsed().as_secs_f64();
                prefill.extend((run > 0).then_some(rate));
            }
            if self.decode_tokens > 0 {
                let rate = decode_run(&model, before, self.decode_tokens, self.streams)?;
                decode.extend((run > 0).then_some(rate));
            }
        }
        let ttft_ms = match self.save && self.prompt_tokens > 0 {
            true => Some(ttft(&model, self.prompt_tokens)?.as_secs_f64() * 1e3),
            false => None,
        };
        let mut report = json!({
            "prefill_tps": spread(&mut prefill),
            "decode_tps": spread(&mut decode),
            "load_s": load_s,
            "peak_rss_mb": output::peak_rss_mb(),
            "p": self.prompt_tokens,
            "n": self.decode_tokens,
            "depth": self.depth,
            "streams": self.streams,
            "runs": self.runs,
            "threads": self.model.threads(),
            "executor": model.info().executor,
        });
        let mut saved = None;
        if let (true, Some(id)) = (self.save, &id) {
            let median = |figure: &str| report[figure]["median"].as_f64();
            let mut figures = Measured::default();
            figures.tokens_per_second = median("decode_tps");
            figures.prefill_tokens_per_second = median("prefill_tps");
            figures.ttft_ms = ttft_ms;
            #[allow(clippy::cast_sign_loss, reason = "a size is not negative")]
            let bytes = |mib: f64| (mib * 1_048_576.0) as u64;
            figures.peak_rss_bytes = output::peak_rss_mb().map(bytes);
            figures.host = Some(host(self.model.threads()));
            figures.date = Some(today());
            let file = local_layer(&self.model.fetch.registry.path());
            save_measured(&file, id, &figures)?;
            report["ttft_ms"] = json!(ttft_ms);
            report["saved"] = json!({ "model": id, "file": file });
            saved = Some(file);
        }
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
        output::print(&format!("load     {load_s:>9.2} s\n"))?;
        match saved {
            Some(file) => output::print(&format!("saved in {}\n", file.display())),
            None => Ok(()),
        }
    }
}

/// Time to the first token of a prompt that no run before has left in the cache.
fn ttft(model: &LocalModel, prompt_tokens: usize) -> Result<Duration> {
    let mut tokens = random_tokens(prompt_tokens + 1, model.config().vocab_size);
    tokens.remove(0);
    let generation = Generation::new(Prompt::Tokens(tokens)).sampling(SamplingParams::greedy()).max_tokens(1);
    Ok(model.generate(generation)?.timings.ttft)
}

/// What the figures hold for.
fn host(threads: usize) -> String {
    let hardware = Hardware::detect();
    let isa = hardware.isa.iter().map(|isa| format!(" {isa}")).collect::<String>();
    format!("{}{isa}, {threads} threads", hardware.arch)
}

/// The date in UTC, as `2026-01-31`.
fn today() -> String {
    let seconds = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_secs());
    date(seconds / 86_400)
}

/// The date `days` after 1970-01-01, in the Gregorian calendar.
fn date(mut days: u64) -> String {
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut year = 1970;
    loop {
        let length = if leap(year) { 366 } else { 365 };
        if days < length {
            break;
        }
        days -= length;
        year += 1;
    }
    let february = if leap(year) { 29 } else { 28 };
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    format!("{year}-{month:02}-{:02}", days + 1)
}

/// Tokens per second of `streams` sequences that decode `count` tokens each, greedily, after `before`.
fn decode_run(model: &LocalModel, before: &[TokenId], count: u32, streams: u16) -> Result<f64> {
    let mut generation =
        Generation::new(Prompt::Tokens(before.to_vec())).sampling(SamplingParams::greedy()).max_tokens(count);
    generation.ignore_eos = true;
    let began = Instant::now();
    let running = (0..streams).map(|_| model.stream(generation.clone())).collect::<Result<Vec<_>>>()?;
    let mut prefilled = Duration::ZERO;
    for stream in running {
        let done = stream.completion()?;
        if done.usage.completion_tokens != count {
            return Err(Error::invalid(format!(
                "the context ended after {} tokens",
                done.usage.completion_tokens
            )));
        }
        prefilled = prefilled.max(done.timings.ttft);
    }
    let seconds = began.elapsed().as_secs_f64();
    let tokens = f64::from(streams) * f64::from(count);
    Ok(match before.len() {
        1 => tokens / seconds,
        // The context takes its own time, and yields the first token of each.
        _ => (tokens - f64::from(streams)) / (seconds - prefilled.as_secs_f64()),
    })
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

#[cfg(test)]
mod tests {
    use super::date;

    #[test]
    fn days_become_dates() {
        for (days, want) in [
            (0, "1970-01-01"),
            (58, "1970-02-28"),
            (11_016, "2000-02-29"),
            (19_782, "2024-02-29"),
            (20_088, "2024-12-31"),
            (20_089, "2025-01-01"),
        ] {
            assert_eq!(date(days), want);
        }
    }
}
