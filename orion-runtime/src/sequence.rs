//! One generation on its way through the worker.

use std::time::Instant;

use orion_core::{
    CancelToken, Completion, Error, FinishReason, Flow, Generation, GenerationEvent, Job, Result, Timings,
    TokenId, TokenSink, Usage,
};

use crate::constraint::Follow;
use crate::sampler::{self, Sampler};
use crate::stops::StopMatcher;
use crate::text::TextCodec;
use crate::tokenizer::Detokenizer;

/// A job whose prompt is tokens.
pub(crate) struct Prepared {
    pub(crate) tokens: Vec<TokenId>,
    pub(crate) job: Job,
    pub(crate) submitted: Instant,
    /// What the answer has to follow.
    pub(crate) follow: Option<Follow>,
}

/// A generation that holds pages of keys and values.
pub(crate) struct Sequence {
    generation: Generation,
    pub(crate) cancel: CancelToken,
    sink: Box<dyn TokenSink>,
    /// Prompt and generated tokens.
    pub(crate) tokens: Vec<TokenId>,
    pub(crate) prompt_len: usize,
    cached: usize,
    /// Positions whose keys and values are in `pages`.
    pub(crate) computed: usize,
    pub(crate) pages: Vec<u32>,
    pub(crate) long: bool,
    /// Length at which generation ends.
    limit: usize,
    sampler: Sampler,
    follow: Option<Follow>,
    detokenizer: Detokenizer,
    stops: StopMatcher,
    text: String,
    pub(crate) paused: bool,
    /// The consumer wants nothing more.
    stopped: bool,
    submitted: Instant,
    started: Instant,
    first_token: Option<Instant>,
}

impl Sequence {
    /// Starts a generation whose first `pages` are there already.
    pub(crate) fn start(
        prepared: Prepared,
        pages: Vec<u32>,
        cached: usize,
        long: bool,
        context: usize,
    ) -> Self {
        let Prepared { tokens, job, submitted, follow } = prepared;
        let prompt_len = tokens.len();
        let most = job.generation.max_tokens.map_or(usize::MAX, |most| most as usize);
        let mut sequence = Self {
            sampler: Sampler::new(job.generation.sampling.clone()),
            follow,
            stops: StopMatcher::new(job.generation.stop.clone()),
            detokenizer: Detokenizer::continuing(),
            limit: prompt_len.saturating_add(most).min(context + 1),
            generation: job.generation,
            cancel: job.cancel,
            sink: job.sink,
            tokens,
            prompt_len,
            cached,
            computed: cached,
            pages,
            long,
            text: String::new(),
            paused: false,
            stopped: false,
            submitted,
            started: Instant::now(),
            first_token: None,
        };
        let (prompt_tokens, cached_tokens) = (count(prompt_len), count(cached));
        sequence.tell(GenerationEvent::Started { prompt_tokens, cached_tokens });
        sequence
    }

    fn tell(&mut self, event: GenerationEvent) {
        match self.sink.event(event) {
            Flow::Continue => {}
            Flow::Pause => self.paused = true,
            Flow::Stop => self.stopped = true,
        }
    }

    /// Whether it may compute now.
    pub(crate) fn is_ready(&mut self) -> bool {
        if self.paused && self.sink.ready() {
            self.paused = false;
        }
        !self.paused
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.stopped || self.cancel.is_cancelled()
    }

    pub(crate) fn is_decoding(&self) -> bool {
        self.computed + 1 == self.tokens.len() && self.tokens.len() > self.prompt_len
    }

    /// Takes note of `count` more computed positions.
    pub(crate) fn advance(&mut self, count: usize) {
        self.computed += count;
        if self.computed <= self.prompt_len && self.tokens.len() == self.prompt_len {
            let (done, total) = (self::count(self.computed), self::count(self.prompt_len));
            self.tell(GenerationEvent::Prefill { done, total });
        }
    }

    /// The next token, of those that may come.
    fn choose(&mut self, logits: &[f32], codec: &TextCodec) -> Result<TokenId> {
        let Some(follow) = &mut self.follow else { return self.sampler.sample(logits, &self.tokens) };
        if self.sampler.is_greedy() {
            // The best of all is the best of those that may come, if it is one of them.
            let best = self.sampler.sample(logits, &self.tokens)?;
            if !codec.ends_turn(best) && follow.allows(best)? {
                return Ok(best);
            }
        }
        self.sampler.sample(follow.allow(logits)?, &self.tokens)
    }

    /// Chooses the next token from its logits. `Some` when the generation ends with it.
    pub(crate) fn accept(&mut self, logits: &[f32], codec: &TextCodec) -> Result<Option<FinishReason>> {
        if self.tokens.len() >= self.limit {
            return Ok(Some(FinishReason::Length));
        }
        let id = self.choose(logits, codec)?;
        self.first_token.get_or_insert_with(Instant::now);
        let stop = self.generation.stop_tokens.contains(&id);
        if stop || (!self.generation.ignore_eos && codec.ends_turn(id)) {
            return Ok(Some(FinishReason::Stop));
        }
        self.tokens.push(id);
        let whole = self.follow.as_mut().map_or(Ok(false), |follow| follow.took(id))?;
        let (text, hit) = self.stops.push(&codec.detokenize(&mut self.detokenizer, id));
        self.text += &text;
        let wanted = usize::from(self.generation.logprobs);
        let logprobs = (wanted > 0).then(|| sampler::logprobs(logits, id, wanted));
        self.tell(GenerationEvent::Token { id, text, logprobs });
        Ok(match (hit, whole, self.tokens.len() >= self.limit) {
            (true, ..) => Some(FinishReason::StopString),
            (false, true, _) => Some(FinishReason::Stop),
            (false, false, true) => Some(FinishReason::Length),
            (false, false, false) => None,
        })
    }

    /// Reports the end. Text that was held back for an unfinished character or stop string belongs to the result; it
    /// has had no token of its own to travel with.
    pub(crate) fn finish(mut self, reason: FinishReason) {
        if reason != FinishReason::StopString {
            let detokenizer = std::mem::replace(&mut self.detokenizer, Detokenizer::continuing());
            let (released, hit) = self.stops.push(&detokenizer.finish());
            self.text += &released;
            if !hit {
                self.text += &self.stops.finish();
            }
        }
        let completion = self.completion(reason);
        self.tell(GenerationEvent::Done(completion));
    }

    fn completion(&mut self, reason: FinishReason) -> Completion {
        let now = Instant::now();
        let first = self.first_token.unwrap_or(now);
        let usage = Usage {
            prompt_tokens: count(self.prompt_len),
            cached_tokens: count(self.cached),
            completion_tokens: count(self.tokens.len() - self.prompt_len),
        };
        let timings = Timings {
            queue: self.started - self.submitted,
            prefill: first - self.started,
            decode: now - first,
            ttft: first - self.submitted,
        };
        let tokens = self.tokens[self.prompt_len..].to_vec();
        Completion::new(reason, std::mem::take(&mut self.text), tokens, usage, timings)
    }

    /// Reports a failure.
    pub(crate) fn fail(mut self, error: Error) {
        self.tell(GenerationEvent::Failed(error));
    }
}

fn count(tokens: usize) -> u32 {
    u32::try_from(tokens).expect("contexts are below 2^28 tokens")
}
