//! Asking the router, on a thread of its own: an encoder takes milliseconds, and a router may be anybody's code.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use orion_core::state::Residency;
use orion_core::{Candidate, Decision, Error, ErrorKind, Health, ModelSpec, Query, Result, Router};

use super::Message;
use super::load::text;
use crate::flight::Flight;
use crate::request::Request;

/// Makes a router for these models.
pub(crate) type MakeRouter = Box<dyn Fn(&[Arc<ModelSpec>]) -> Result<Arc<dyn Router>> + Send>;

/// A candidate as the scheduler saw it.
pub(crate) struct Seen {
    pub(crate) spec: Arc<ModelSpec>,
    pub(crate) residency: Residency,
    pub(crate) health: Health,
    pub(crate) switch_cost: Duration,
}

/// A question to the router.
pub(crate) enum Question {
    /// For a request.
    Flight(Arc<Flight>, Vec<Seen>),
    /// For someone who only wants to know.
    Dry(Box<Request>, Vec<Seen>, Sender<Result<Decision>>),
}

/// A router that follows its catalogue: made anew when the models change.
pub(crate) struct Following {
    make: MakeRouter,
    of: Vec<Arc<ModelSpec>>,
    router: Option<Arc<dyn Router>>,
}

impl Following {
    pub(crate) fn new(make: MakeRouter) -> Self {
        Self { make, of: Vec::new(), router: None }
    }

    fn decide(&mut self, request: &Request, seen: &[Seen]) -> Result<Decision> {
        let same = self.router.is_some()
            && self.of.len() == seen.len()
            && self.of.iter().zip(seen).all(|(old, new)| Arc::ptr_eq(old, &new.spec));
        if !same {
            self.of = seen.iter().map(|seen| seen.spec.clone()).collect();
            self.router = Some((self.make)(&self.of)?);
        }
        let candidates: Vec<Candidate<'_>> = seen
            .iter()
            .map(|seen| {
                let mut candidate = Candidate::new(&seen.spec);
                candidate.residency = seen.residency;
                candidate.health = seen.health;
                candidate.switch_cost = seen.switch_cost;
                candidate
            })
            .collect();
        let mut query = Query::new(request.last_user_turn());
        query.history = request.history();
        query.current = request.current.as_ref();
        let router = self.router.as_ref().expect("it has just been made");
        router.route(&query, &candidates)
    }

    /// Answers questions until nobody can ask.
    pub(crate) fn run(mut self, questions: &Receiver<Question>, to: &Sender<Message>) {
        for question in questions {
            let mut ask = |request: &Request, seen: &[Seen]| {
                catch_unwind(AssertUnwindSafe(|| self.decide(request, seen))).unwrap_or_else(|panic| {
                    let message = format!("the router panicked: {}", text(&*panic));
                    Err(Error::new(ErrorKind::Internal, message))
                })
            };
            match question {
                Question::Flight(flight, seen) => {
                    let result = ask(&flight.request, &seen);
                    to.send(Message::Routed { flight, result }).ok();
                }
                Question::Dry(request, seen, reply) => {
                    reply.send(ask(&request, &seen)).ok();
                }
            }
        }
    }
}
