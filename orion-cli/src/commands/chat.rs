use std::io::{self, BufRead, IsTerminal};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use clap::Args;
use orion::runtime::LocalModel;
use orion::{
    CancelToken, Completion, Error, ErrorKind, FinishReason, Generation, GenerationEvent, Message, ModelExt,
    Prompt, Result, Role, SamplingParams,
};

use super::model::{ModelArgs, SamplingArgs};
use crate::output;

#[derive(Debug, Args)]
pub(crate) struct Chat {
    #[command(flatten)]
    model: ModelArgs,
    /// Instructions for the whole conversation
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Longest answer in tokens
    #[arg(long, short = 'n', value_name = "N", default_value_t = 1024)]
    max_tokens: u32,
    #[command(flatten)]
    sampling: SamplingArgs,
}

/// The answer that Ctrl-C would stop, if one is running.
type Running = Arc<Mutex<Option<CancelToken>>>;

impl Chat {
    pub(crate) fn run(&self) -> Result<()> {
        let mut base = SamplingParams::default();
        base.repetition_penalty = 1.1;
        let named = self.model.find()?;
        let sampling = self.sampling.over(base, &named);
        sampling.validate()?;
        let model = self.model.open_named(&named)?;
        let stop = named.model().map(|model| model.spec.stop.clone()).unwrap_or_default();
        let running = Running::default();
        stop_on_interrupt(&running)?;
        show_loading(&model)?;
        eprintln!("Type a message; /reset begins anew, /quit or Ctrl-D ends. Ctrl-C stops an answer.");
        let own = named.model().and_then(|model| model.spec.system_prompt.as_ref());
        let system = self.system.as_ref().or(own);
        let system: Vec<Message> = system.into_iter().map(|text| Message::new(Role::System, text)).collect();
        let mut turns = system.clone();
        let mut input = io::stdin().lock();
        loop {
            if io::stdin().is_terminal() {
                eprint!("\n> ");
            }
            let mut line = String::new();
            if input.read_line(&mut line).map_err(|error| Error::io(error, "standard input"))? == 0 {
                return Ok(());
            }
            match line.trim() {
                "" => continue,
                "/quit" | "/exit" => return Ok(()),
                "/reset" => {
                    turns.clone_from(&system);
                    eprintln!("(a new conversation)");
                    continue;
                }
                text => turns.push(Message::new(Role::User, text)),
            }
            let mut generation = Generation::new(Prompt::Chat(turns.clone()))
                .sampling(sampling.clone())
                .max_tokens(self.max_tokens);
            generation.stop.clone_from(&stop);
            match answer(&model, generation, &running) {
                Ok(done) => {
                    if done.reason == FinishReason::Cancelled {
                        eprintln!("\n(stopped)");
                    }
                    turns.push(Message::new(Role::Assistant, done.text));
                }
                // The conversation is too long or the like: say so, drop the turn, and go on.
                Err(error) if error.kind().is_bad_input() => {
                    turns.pop();
                    eprintln!("orion: {error}");
                }
                Err(error) => return Err(error),
            }
        }
    }
}

fn answer(model: &LocalModel, generation: Generation, running: &Running) -> Result<Completion> {
    let set = |token| *running.lock().unwrap_or_else(PoisonError::into_inner) = token;
    let stream = model.stream(generation)?;
    set(Some(stream.cancel_token()));
    let mut result = Err(Error::new(ErrorKind::Internal, "no answer came"));
    for event in stream {
        match event {
            GenerationEvent::Token { text, .. } => output::print(&text)?,
            GenerationEvent::Done(done) => result = Ok(done),
            GenerationEvent::Failed(error) => result = Err(error),
            _ => {}
        }
    }
    set(None);
    output::print("\n")?;
    result
}

fn stop_on_interrupt(running: &Running) -> Result<()> {
    let running = running.clone();
    let handler = move || match &*running.lock().unwrap_or_else(PoisonError::into_inner) {
        Some(token) => token.cancel(),
        None => eprint!("\n(/quit or Ctrl-D ends)\n> "),
    };
    ctrlc::set_handler(handler)
        .map_err(|error| Error::new(ErrorKind::Internal, "cannot listen for Ctrl-C").with_source(error))
}

/// A bar while the weights arrive, where somebody watches.
fn show_loading(model: &LocalModel) -> Result<()> {
    const WIDTH: usize = 30;
    if io::stderr().is_terminal() {
        loop {
            let (done, total) = model.load_progress();
            let filled = WIDTH * done / total.max(1);
            eprint!(
                "\rloading [{}{}] {done} of {total} parts",
                "#".repeat(filled),
                " ".repeat(WIDTH - filled)
            );
            if done >= total {
                eprintln!();
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
            if model.load_progress() == (done, total) {
                // Nothing new: either slow or failed, and waiting tells which.
                model.wait_loaded()?;
            }
        }
    }
    model.wait_loaded()
}
