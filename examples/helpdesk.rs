//! A help desk of four agents: a ticket is translated if it is French, answered by whom the router chooses, checked, tried
//! once more if the check says no, noted down, and translated back. Without arguments three English ones.
//! `cargo run --release --example helpdesk`; with a number after `--`, only who was asked in so many requests, one a line.

#![allow(clippy::print_stdout, reason = "an example talks to the person who runs it")]

use orion::{Engine, Request, Result, SamplingParams};

/// Prompts that the router was not trained on, with their language.
const TICKETS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/orion-router/data/agents.test.csv");
const TOKENS: u32 = 48;

struct Desk {
    engine: Engine,
    /// Who was asked, in order.
    asked: Vec<String>,
    quiet: bool,
}

impl Desk {
    fn ask(&mut self, agent: &str, request: Request) -> Result<String> {
        let answer = self.engine.infer_with(request.model(agent).sampling(SamplingParams::greedy()))?;
        self.asked.push(agent.to_owned());
        let text = answer.text.trim().to_owned();
        if !self.quiet {
            println!("  {agent:12} {}", text.lines().next().unwrap_or_default());
        }
        Ok(text)
    }

    fn say(&mut self, agent: &str, prompt: String) -> Result<String> {
        self.ask(agent, Request::new(prompt).max_tokens(TOKENS))
    }

    /// False if the ticket is for another desk.
    fn work_on(&mut self, ticket: &str, french: bool) -> Result<bool> {
        let decision = self.engine.route(ticket)?;
        let agent = match decision.chosen().map(orion::ModelId::as_str) {
            Some(agent @ ("code" | "reasoning")) => agent,
            _ => return Ok(false),
        };
        if !self.quiet {
            println!("\n> {ticket}");
        }
        let question = match french {
            true => self.say("translation", format!("Translate into English: {ticket}"))?,
            false => ticket.to_owned(),
        };
        let mut answer = self.say(agent, question.clone())?;
        let check = format!("Question: {question}\nAnswer: {answer}\nIs the answer right? Say yes or no.");
        let regex = orion::Constraint::Regex("yes|no".to_owned());
        if self.ask("reasoning", Request::new(check).constraint(regex).max_tokens(4))? == "no" {
            answer =
                self.say(agent, format!("{question}\nThis answer is wrong: {answer}\nGive a better one."))?;
        }
        let note = self.say("summarising", format!("Summarise in one sentence: {question} {answer}"))?;
        if french {
            self.say("translation", format!("Translate into French: {note}"))?;
        }
        Ok(true)
    }
}

fn main() -> Result<()> {
    let _ = orion_testkit::models::smollm2();
    let requests: Option<usize> = std::env::args().nth(1).and_then(|number| number.parse().ok());
    let engine = Engine::open(concat!(env!("CARGO_MANIFEST_DIR"), "/models.json"))?;
    let mut desk = Desk { engine, asked: Vec::new(), quiet: requests.is_some() };
    let broken = |error: csv::Error| orion::Error::corrupt(error.to_string()).about(TICKETS);
    let mut rows = csv::Reader::from_path(TICKETS).map_err(broken)?;
    let mut tickets = rows.records().collect::<std::result::Result<Vec<_>, _>>().map_err(broken)?;
    // They come as they please.
    fastrand::Rng::with_seed(1).shuffle(&mut tickets);
    // Its French is nothing to look at.
    tickets.retain(|ticket| desk.quiet || &ticket[2] == "en");
    let mut done = 0;
    for ticket in tickets {
        let over = requests.map_or(done >= 3, |requests| desk.asked.len() >= requests);
        if over {
            break;
        }
        done += usize::from(desk.work_on(&ticket[0], &ticket[2] == "fr")?);
    }
    if let Some(requests) = requests {
        desk.asked.truncate(requests);
        println!("{}", desk.asked.join("\n"));
    }
    Ok(())
}
