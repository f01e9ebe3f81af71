use std::time::Instant;

use clap::Args;
use orion::{
    Completion, Constraint, Error, Generation, GenerationEvent, Message, ModelExt, Prompt, Result, Role,
    SamplingParams, TokenLogprob,
};
use serde_json::{Value, json};

use super::model::{ModelArgs, SamplingArgs};
use crate::output;
use crate::source::Named;

#[derive(Debug, Args)]
pub(crate) struct Generate {
    #[command(flatten)]
    model: ModelArgs,
    /// What to answer, or with --raw what to continue
    #[arg(long, value_name = "TEXT")]
    prompt: String,
    /// Instructions for the whole conversation
    #[arg(long, value_name = "TEXT", conflicts_with = "raw")]
    system: Option<String>,
    /// Stop after N tokens
    #[arg(long, short = 'n', value_name = "N", default_value_t = 256)]
    max_tokens: u32,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// End before this text; may be given several times
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Answer with JSON that this JSON Schema admits: a file, or the schema itself
    #[arg(long, value_name = "SCHEMA", conflicts_with_all = ["grammar", "regex"])]
    json_schema: Option<String>,
    /// Answer with a text of this grammar (GBNF): a file, or the grammar itself
    #[arg(long, value_name = "GRAMMAR", conflicts_with = "regex")]
    grammar: Option<String>,
    /// Answer with a text that this regular expression matches as a whole
    #[arg(long, value_name = "REGEX")]
    regex: Option<String>,
    /// Report the N likeliest candidates of each token (with --json)
    #[arg(long, value_name = "N", default_value_t = 0)]
    logprobs: u8,
    /// Continue the text as it stands, without the model's chat template
    #[arg(long)]
    raw: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Generate {
    pub(crate) fn run(&self) -> Result<()> {
        let named = self.model.find()?;
        let generation = self.generation(&named)?;
        generation.validate()?;
        let began = Instant::now();
        let model = self.model.open_named(&named)?;
        let mut logprobs = Vec::new();
        let mut done = None;
        for event in model.stream(generation)? {
            match event {
                GenerationEvent::Token { id, text, logprobs: list } => {
                    if !self.json {
                        output::print(&text)?;
                    }
                    logprobs
                        .extend(list.map(|(own, top)| logprob_json(TokenLogprob { id, logprob: own }, &top)));
                }
                GenerationEvent::Done(completion) => done = Some(completion),
                GenerationEvent::Failed(error) => return Err(error),
                _ => {}
            }
        }
        let ttft_process = began.elapsed();
        let done = done.ok_or_else(|| orion::Error::new(orion::ErrorKind::Internal, "no answer came"))?;
        if self.json {
            model.wait_loaded()?;
            let load_s = model.load_time().map(|time| time.as_secs_f64());
            return output::print_json(&self.report(&done, load_s, &logprobs));
        }
        output::print("\n")?;
        let rate = |tokens: u32, seconds: f64| f64::from(tokens) / seconds.max(1e-9);
        eprintln!(
            "\n{} prompt tokens, {} generated; first token after {:.2} s, {:.1} tokens/s; {:.1} s in all",
            done.usage.prompt_tokens,
            done.usage.completion_tokens,
            done.timings.ttft.as_secs_f64(),
            rate(done.usage.completion_tokens.saturating_sub(1), done.timings.decode.as_secs_f64()),
            ttft_process.as_secs_f64(),
        );
        Ok(())
    }

    fn generation(&self, named: &Named) -> Result<Generation> {
        let prompt = if self.raw {
            Prompt::Text(self.prompt.clone())
        } else {
            let own = named.model().and_then(|model| model.spec.system_prompt.as_ref());
            let system =
                self.system.as_ref().or(own).into_iter().map(|text| Message::new(Role::System, text));
            Prompt::Chat(system.chain([Message::new(Role::User, &self.prompt)]).collect())
        };
        let mut base = SamplingParams::greedy();
        if !self.raw {
            // Small chat models repeat themselves without it.
            base.repetition_penalty = 1.1;
        }
        let mut generation =
            Generation::new(prompt).sampling(self.sampling.over(base, named)).max_tokens(self.max_tokens);
        generation.stop.clone_from(&self.stop);
        if let Some(model) = named.model().filter(|_| !self.raw) {
            generation.stop.extend(model.spec.stop.iter().cloned());
        }
        generation.logprobs = self.logprobs;
        generation.constraint = self.constraint()?;
        Ok(generation)
    }

    fn constraint(&self) -> Result<Option<Constraint>> {
        // What begins like a schema or a rule is one; everything else names a file.
        let text = |given: &str, itself: bool| match itself {
            true => Ok(given.to_owned()),
            false => std::fs::read_to_string(given).map_err(|error| Error::io(error, given)),
        };
        Ok(match (&self.json_schema, &self.grammar, &self.regex) {
            (Some(schema), ..) => {
                Some(Constraint::JsonSchema(text(schema, schema.trim_start().starts_with('{'))?))
            }
            (_, Some(grammar), _) => Some(Constraint::Grammar(text(grammar, grammar.contains("::="))?)),
            (.., Some(regex)) => Some(Constraint::Regex(regex.clone())),
            _ => None,
        })
    }

    fn report(&self, done: &Completion, load_s: Option<f64>, logprobs: &[Value]) -> Value {
        let (usage, timings) = (done.usage, done.timings);
        let rate = |tokens: u32, seconds: f64| (seconds > 0.0).then(|| f64::from(tokens) / seconds);
        let computed = usage.prompt_tokens - usage.cached_tokens;
        let mut report = json!({
            "text": done.text,
            "token_ids": done.tokens,
            "finish_reason": done.reason,
            "usage": usage,
            "timings": {
                "load_s": load_s,
                "queue_s": timings.queue.as_secs_f64(),
                "ttft_s": timings.ttft.as_secs_f64(),
                "prefill_s": timings.prefill.as_secs_f64(),
                "decode_s": timings.decode.as_secs_f64(),
                "prefill_tps": rate(computed, timings.prefill.as_secs_f64()),
                "decode_tps": rate(usage.completion_tokens.saturating_sub(1), timings.decode.as_secs_f64()),
            },
            "peak_rss_mb": output::peak_rss_mb(),
        });
        if self.logprobs > 0 {
            report["logprobs"] = logprobs.into();
        }
        report
    }
}

fn logprob_json(own: TokenLogprob, top: &[TokenLogprob]) -> Value {
    json!({ "id": own.id, "logprob": own.logprob, "top": top })
}
