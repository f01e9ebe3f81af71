//! The thread that owns a model's executor: it batches sequences, step by step.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TryRecvError};
use orion_core::{
    Completion, Error, ErrorKind, FinishReason, GenerationEvent, Result, Timings, TokenId, Usage,
};

use crate::config::DecoderConfig;
use crate::executor::{Chunk, Executor, Rows};
use crate::kv::{PAGE_TOKENS, PagePool};
use crate::kv_files::PageFiles;
use crate::sequence::{Prepared, Sequence};
use crate::text::TextCodec;

/// How long the worker rests when every sequence waits for its consumer.
const PAUSE_POLL: Duration = Duration::from_millis(1);

/// Logits an evaluation keeps at once, in elements: large vocabularies run in smaller chunks.
const EVALUATION_LOGITS: usize = 1 << 23;

/// Work for the worker.
pub(crate) enum Command {
    Generate(Box<Prepared>),
    Evaluate(Evaluate),
    ForgetPrefixes,
}

/// Runs given tokens from an empty context and sends logits back, position by position.
pub(crate) struct Evaluate {
    pub(crate) tokens: Vec<TokenId>,
    /// Only those of the last position.
    pub(crate) last_only: bool,
    pub(crate) reply: Sender<Result<(usize, Vec<f32>)>>,
}

/// Limits of a worker.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) max_batch: usize,
    pub(crate) prefill_chunk: usize,
    pub(crate) max_pages: usize,
}

pub(crate) struct Worker {
    config: Arc<DecoderConfig>,
    codec: Arc<TextCodec>,
    executor: Box<dyn Executor>,
    limits: Limits,
    pool: PagePool,
    /// Pages that take memory, for who counts it.
    pages: Arc<AtomicUsize>,
    /// Where pages outlive the model, if they do.
    files: Option<PageFiles>,
    waiting: VecDeque<Prepared>,
    active: Vec<Sequence>,
    logits: Vec<f32>,
}

/// What one sequence does in a step.
struct Plan {
    /// Index among the active sequences.
    sequence: usize,
    count: usize,
    rows: Rows,
}

impl Worker {
    pub(crate) fn new(
        config: Arc<DecoderConfig>,
        codec: Arc<TextCodec>,
        executor: Box<dyn Executor>,
        limits: Limits,
    ) -> Self {
        let pool = PagePool::new(limits.max_pages);
        let (waiting, active) = (VecDeque::new(), Vec::new());
        let pages = Arc::default();
        let files = None;
        Self { config, codec, executor, limits, pool, pages, files, waiting, active, logits: Vec::new() }
    }

    /// Pages outlive the model in these files, if the executor's pages can be read.
    pub(crate) fn keep_pages_in(&mut self, files: PageFiles) {
        self.files = Some(files).filter(|_| self.executor.page_bytes() > 0);
    }

    /// Pages of keys and values that take memory, as they come.
    pub(crate) fn page_count(&self) -> Arc<AtomicUsize> {
        self.pages.clone()
    }

    fn reserve_pages(&mut self) -> Result<()> {
        self.pages.store(self.pool.len(), Ordering::Release);
        self.executor.reserve_pages(self.pool.len())
    }

    /// Serves commands until their senders are gone; what is unfinished then is told so.
    pub(crate) fn run(mut self, commands: &Receiver<Command>) {
        while self.receive(commands) {
            self.admit();
            self.retire_cancelled();
            if !self.active.is_empty() && !self.step() {
                std::thread::sleep(PAUSE_POLL);
            }
        }
        let unloaded = || Error::new(ErrorKind::Rejected, "the model was unloaded");
        self.waiting.drain(..).for_each(|mut prepared| {
            prepared.job.sink.event(GenerationEvent::Failed(unloaded()));
        });
        self.active.drain(..).for_each(|sequence| sequence.fail(unloaded()));
    }

    /// Takes the commands that are there, waiting for one if there is nothing to do. False once nobody can send more.
    fn receive(&mut self, commands: &Receiver<Command>) -> bool {
        if self.active.is_empty() && self.waiting.is_empty() {
            match commands.recv() {
                Ok(command) => self.handle(command),
                Err(_) => return false,
            }
        }
        while self.waiting.len() < self.limits.max_batch {
            match commands.try_recv() {
                Ok(command) => self.handle(command),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
        true
    }

    fn handle(&mut self, command: Command) {
        match command {
            Command::Generate(prepared) => self.waiting.push_back(*prepared),
            Command::Evaluate(evaluate) => self.evaluate(&evaluate),
            Command::ForgetPrefixes => self.pool.clear(),
        }
    }

    /// Starts waiting generations while there is room in the batch.
    fn admit(&mut self) {
        while self.active.len() < self.limits.max_batch
            && let Some(mut prepared) = self.waiting.pop_front()
        {
            if prepared.job.cancel.is_cancelled() {
                prepared.job.sink.event(GenerationEvent::Done(cancelled_unstarted(&prepared)));
                continue;
            }
            let context = self.config.context_length;
            let length = prepared.tokens.len();
            if length > context {
                let message = format!("the prompt has {length} tokens, the context holds {context}");
                prepared
                    .job
                    .sink
                    .event(GenerationEvent::Failed(Error::new(ErrorKind::ContextOverflow, message)));
                continue;
            }
            let most = prepared.job.generation.max_tokens.map_or(usize::MAX, |most| most as usize);
            let long = self.config.rope.is_long(length.saturating_add(most).min(context));
            let mut pages = self.pool.lookup(&prepared.tokens, long);
            self.keep(&prepared.tokens, &pages, long);
            self.recall(&prepared.tokens, &mut pages, long);
            let cached = pages.len() * PAGE_TOKENS;
            let none = prepared.job.generation.max_tokens == Some(0);
            let sequence = Sequence::start(prepared, pages, cached, long, context);
            self.active.push(sequence);
            if none {
                self.end(self.active.len() - 1, Ok(FinishReason::Length));
            }
        }
    }

    /// Has pages written that a second prompt begins with.
    fn keep(&mut self, tokens: &[TokenId], pages: &[u32], long: bool) {
        let Some(files) = self.files.as_ref().filter(|_| pages.iter().any(|page| !self.pool.is_kept(*page)))
        else {
            return;
        };
        let names = files.names(&tokens[..pages.len() * PAGE_TOKENS], PAGE_TOKENS, long);
        for (name, &page) in names.into_iter().zip(pages) {
            if !self.pool.is_kept(page) && files.offer(name, || self.executor.read_page(page)) {
                self.pool.keep(page);
            }
        }
    }

    /// Takes further pages of the prompt from the disk. At least one token is left to compute.
    fn recall(&mut self, tokens: &[TokenId], pages: &mut Vec<u32>, long: bool) {
        let whole = tokens.len().saturating_sub(1) / PAGE_TOKENS;
        let Some(files) = self.files.take() else { return };
        let first = pages.len();
        let names = if first < whole { files.names(tokens, PAGE_TOKENS, long) } else { Vec::new() };
        for name in names.iter().take(whole).skip(first) {
            let Some(content) = files.read(name, self.executor.page_bytes()) else { break };
            let Ok(page) = self.pool.take() else { break };
            if self.reserve_pages().is_err() {
                self.pool.release(&[page]);
                break;
            }
            self.executor.write_page(page, &content);
            pages.push(page);
        }
        if pages.len() > first {
            self.pool.remember(&tokens[..pages.len() * PAGE_TOKENS], pages, long);
            pages[first..].iter().for_each(|page| self.pool.keep(*page));
        }
        self.files = Some(files);
    }

    fn retire_cancelled(&mut self) {
        for index in (0..self.active.len()).rev() {
            if self.active[index].is_cancelled() {
                self.end(index, Ok(FinishReason::Cancelled));
            }
        }
    }

    /// Takes a sequence out of the batch, remembers its pages and reports its end.
    fn end(&mut self, index: usize, result: Result<FinishReason>) {
        let sequence = self.active.remove(index);
        self.pool.remember(&sequence.tokens[..sequence.computed], &sequence.pages, sequence.long);
        self.pool.release(&sequence.pages);
        match result {
            Ok(reason) => sequence.finish(reason),
            Err(error) => sequence.fail(error),
        }
    }

    /// Runs one step of every sequence that is ready. False if none is.
    fn step(&mut self) -> bool {
        let mut budget = self.limits.prefill_chunk;
        let mut plans = Vec::with_capacity(self.active.len());
        for (index, sequence) in self.active.iter_mut().enumerate() {
            if !sequence.is_ready() {
                continue;
            }
            let left = sequence.tokens.len() - sequence.computed;
            let count = if sequence.is_decoding() { 1 } else { left.min(budget) };
            if !sequence.is_decoding() {
                budget -= count;
            }
            if count > 0 {
                let rows = if count == left { Rows::Last } else { Rows::None };
                plans.push(Plan { sequence: index, count, rows });
            }
        }
        if plans.is_empty() {
            return false;
        }
        let mut failed: Vec<(usize, Error)> = Vec::new();
        plans.retain(|plan| match self.make_room(plan) {
            Ok(()) => true,
            Err(error) => {
                failed.push((plan.sequence, error));
                false
            }
        });
        let done = self.run_plans(&plans, &mut failed);
        self.accept(&done, &mut failed);
        // From the back, so that earlier indices stay right.
        failed.sort_by_key(|(index, _)| std::cmp::Reverse(*index));
        failed.into_iter().for_each(|(index, error)| self.end(index, Err(error)));
        true
    }

    /// Gives a sequence the pages its next positions need.
    fn make_room(&mut self, plan: &Plan) -> Result<()> {
        let sequence = &mut self.active[plan.sequence];
        let needed = (sequence.computed + plan.count).div_ceil(PAGE_TOKENS);
        while sequence.pages.len() < needed {
            sequence.pages.push(self.pool.take()?);
        }
        self.reserve_pages()
    }

    /// Runs the plans as one batch; if that fails, each alone, so that only the culprit is lost. Returns what succeeded,
    /// with its logits' place.
    fn run_plans(
        &mut self,
        plans: &[Plan],
        failed: &mut Vec<(usize, Error)>,
    ) -> Vec<(usize, usize, Option<usize>)> {
        self.logits.clear();
        let mut done = Vec::with_capacity(plans.len());
        let whole: Vec<&Plan> = plans.iter().collect();
        let batches = match self.forward(&whole) {
            Ok(()) => vec![whole],
            // Retired at the next turn of the loop; the others lose nothing but this step.
            Err(error)
                if error.kind() == ErrorKind::Cancelled && self.active.iter().any(Sequence::is_cancelled) =>
            {
                return done;
            }
            Err(error) if plans.len() == 1 => {
                failed.push((plans[0].sequence, error));
                return done;
            }
            Err(_) => {
                self.logits.clear();
                let mut alone = Vec::new();
                for plan in plans {
                    let kept = self.logits.len();
                    match self.forward(&[plan]) {
                        Ok(()) => alone.push(vec![plan]),
                        Err(error) => {
                            self.logits.truncate(kept);
                            failed.push((plan.sequence, error));
                        }
                    }
                }
                alone
            }
        };
        let mut row = 0;
        for plan in batches.into_iter().flatten() {
            let place = (plan.rows == Rows::Last).then_some(row);
            row += usize::from(place.is_some());
            done.push((plan.sequence, plan.count, place));
        }
        done
    }

    fn forward(&mut self, plans: &[&Plan]) -> Result<()> {
        let active = &self.active;
        let chunks: Vec<Chunk<'_>> = plans
            .iter()
            .map(|plan| {
                let sequence = &active[plan.sequence];
                let tokens = &sequence.tokens[sequence.computed..sequence.computed + plan.count];
                let (start, pages) = (sequence.computed, sequence.pages.as_slice());
                Chunk { tokens, start, pages, long: sequence.long, rows: plan.rows }
            })
            .collect();
        let stop = || plans.iter().any(|plan| active[plan.sequence].is_cancelled());
        guarded(&mut *self.executor, &chunks, &stop, &mut self.logits)
    }

    /// Chooses a token for every sequence whose last position was computed.
    fn accept(&mut self, done: &[(usize, usize, Option<usize>)], failed: &mut Vec<(usize, Error)>) {
        let vocab = self.config.vocab_size;
        let mut ended = Vec::new();
        for &(index, count, row) in done {
            let sequence = &mut self.active[index];
            sequence.advance(count);
            let Some(row) = row else { continue };
            match sequence.accept(&self.logits[row * vocab..(row + 1) * vocab], &self.codec) {
                Ok(Some(reason)) => ended.push((index, reason)),
                Ok(None) => {}
                Err(error) => failed.push((index, error)),
            }
        }
        for (index, reason) in ended.into_iter().rev() {
            self.end(index, Ok(reason));
            failed.iter_mut().filter(|(other, _)| *other > index).for_each(|(other, _)| *other -= 1);
        }
    }

    fn evaluate(&mut self, evaluate: &Evaluate) {
        let mut pages = Vec::new();
        if let Err(error) = self.evaluate_with(evaluate, &mut pages) {
            // Nobody listens any more if this fails: nothing is lost.
            evaluate.reply.send(Err(error)).ok();
        }
        self.pool.release(&pages);
    }

    fn evaluate_with(&mut self, evaluate: &Evaluate, pages: &mut Vec<u32>) -> Result<()> {
        let tokens = &evaluate.tokens;
        if tokens.len() > self.config.context_length {
            let (length, context) = (tokens.len(), self.config.context_length);
            let message = format!("{length} tokens were given, the context holds {context}");
            return Err(Error::new(ErrorKind::ContextOverflow, message));
        }
        let vocab = self.config.vocab_size;
        let most = match evaluate.last_only {
            true => self.limits.prefill_chunk,
            false => self.limits.prefill_chunk.min((EVALUATION_LOGITS / vocab).max(1)),
        };
        let long = self.config.rope.is_long(tokens.len());
        let mut start = 0;
        while start < tokens.len() {
            let count = most.min(tokens.len() - start);
            while pages.len() * PAGE_TOKENS < start + count {
                pages.push(self.pool.take()?);
            }
            self.reserve_pages()?;
            let rows = match (evaluate.last_only, start + count == tokens.len()) {
                (false, _) => Rows::All,
                (true, last) => {
                    if last {
                        Rows::Last
                    } else {
                        Rows::None
                    }
                }
            };
            let chunk = Chunk { tokens: &tokens[start..start + count], start, pages, long, rows };
            self.logits.clear();
            guarded(&mut *self.executor, &[chunk], &|| false, &mut self.logits)?;
            let first = start + count - chunk.wanted_rows();
            for (row, logits) in self.logits.chunks_exact(vocab).enumerate() {
                if evaluate.reply.send(Ok((first + row, logits.to_vec()))).is_err() {
                    return Ok(());
                }
            }
            start += count;
        }
        Ok(())
    }
}

/// Runs the executor; a panic becomes an error.
fn guarded(
    executor: &mut dyn Executor,
    chunks: &[Chunk<'_>],
    stop: &dyn Fn() -> bool,
    logits: &mut Vec<f32>,
) -> Result<()> {
    let run = AssertUnwindSafe(|| executor.forward(chunks, stop, logits));
    catch_unwind(run).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
        Err(Error::new(ErrorKind::Internal, format!("the executor panicked: {text}")))
    })
}

fn cancelled_unstarted(prepared: &Prepared) -> Completion {
    let usage =
        Usage { prompt_tokens: u32::try_from(prepared.tokens.len()).unwrap_or(u32::MAX), ..Usage::default() };
    let waited = Instant::now() - prepared.submitted;
    let timings = Timings { queue: waited, ..Timings::default() };
    Completion::new(FinishReason::Cancelled, String::new(), Vec::new(), usage, timings)
}

#[cfg(test)]
mod tests;
