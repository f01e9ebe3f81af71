//! Which weights are in memory: brought in once however many wait, evicted by what their absence would cost, never
//! while they are used.

use std::time::Duration;

use crossbeam_channel::Sender;
use orion_core::state::{Event, Phase, Residency, ResidencyEvent};
use orion_core::{Error, ErrorKind, ModelId, Operation, Reservation, Result, Timestamp};
use orion_logging::metric;
use orion_resilience::Priority;

use super::load::{Arrival, Load, Loaded};
use super::slot::{Key, Opened, Slot};
use super::{Message, Scheduler, copy};
use crate::answer::EngineEvent;

/// Whether there is room for weights.
enum Room {
    Here(Reservation),
    /// Something has to leave first.
    Later,
    Never(Error),
}

impl Scheduler {
    /// Starts bringing the weights in.
    pub(super) fn begin(&mut self, key: &Key) {
        let Some(slot) = self.slots.get_mut(key) else { return };
        let spec = slot.spec.clone();
        let permit = match self.settings.gate.acquire(&spec.id, Operation::Load) {
            Ok(permit) => permit,
            Err(refused) => {
                if slot.state == Residency::Degraded {
                    slot.step(ResidencyEvent::LoadFailed);
                }
                let error = Error::from(refused).about(format!("loading model {}", spec.id));
                return self.turn_away(key, &error);
            }
        };
        if slot.state != Residency::Degraded && !slot.step(ResidencyEvent::FetchStarted) {
            return;
        }
        slot.generation += 1;
        slot.loads += 1;
        let (clock, to) = (self.settings.clock.clone(), self.to.clone());
        let arrival = Arrival::new(key.clone(), slot.generation, permit, clock, to);
        slot.arrival = Some(arrival.clone());
        let load = Load {
            spec,
            arrival,
            sources: self.settings.sources.clone(),
            runtime: self.settings.runtime.clone(),
            retry: self.settings.retry.clone(),
            budget: self.retries.clone(),
        };
        if let Err(error) = load.spawn() {
            self.load_failed(key, &error);
            self.turn_away(key, &error);
        }
    }

    /// Everyone who waits for these weights is told that they cannot be had.
    fn turn_away(&mut self, key: &Key, error: &Error) {
        let Some(slot) = self.slots.get_mut(key) else { return };
        let mut all = std::mem::take(&mut slot.admitted);
        while let Some(work) = slot.queue.try_next() {
            let (id, receipt) = work.split();
            receipt.fail(copy(error));
            all.push(id);
        }
        for comer in slot.comers.drain(..) {
            comer.send(Err(copy(error))).ok();
        }
        all.into_iter().for_each(|id| self.hop(id, copy(error)));
    }

    fn current(&mut self, key: &Key, generation: u64) -> Option<&mut Slot> {
        self.slots.get_mut(key).filter(|slot| slot.generation == generation)
    }

    /// The header is read: the load waits for room.
    pub(super) fn opened(
        &mut self,
        key: &Key,
        generation: u64,
        bytes: u64,
        reply: Sender<Result<Reservation>>,
    ) {
        let since = self.now();
        if let Some(slot) = self.current(key, generation)
            && slot.state != Residency::Draining
        {
            slot.opened = Some(Opened { bytes, reply, since });
        } else {
            reply.send(Err(Error::new(ErrorKind::Cancelled, "the model is no longer wanted"))).ok();
        }
    }

    /// Gives room to the loads that wait for it, the most urgent first. Whoever does not fit is not overtaken: what
    /// becomes free is for it.
    pub(super) fn grant(&mut self) {
        let now = self.now();
        let mut wanting: Vec<(std::cmp::Reverse<Priority>, Timestamp, Key)> = self
            .slots
            .values()
            .filter_map(|slot| {
                let since = slot.opened.as_ref()?.since;
                let priority = self.urgency(slot, now.since(since));
                Some((std::cmp::Reverse(priority), since, slot.key.clone()))
            })
            .collect();
        wanting.sort();
        let mut waits = false;
        for (_, _, key) in wanting {
            let room = self.room(&key, now);
            let Some(opened) = self.slots.get_mut(&key).and_then(|slot| slot.opened.take()) else { continue };
            match room {
                Room::Here(reservation) => {
                    if let Some(slot) = self.slots.get_mut(&key)
                        && slot.state != Residency::Degraded
                    {
                        slot.step(ResidencyEvent::LoadStarted);
                    }
                    opened.reply.send(Ok(reservation)).ok();
                }
                Room::Never(error) => {
                    opened.reply.send(Err(error)).ok();
                }
                Room::Later => {
                    if let Some(slot) = self.slots.get_mut(&key) {
                        slot.opened = Some(opened);
                    }
                    waits = true;
                    break;
                }
            }
        }
        if !waits {
            self.slots.values_mut().for_each(|slot| slot.yielding = false);
        }
    }

    /// The highest priority among those who wait for a slot; a long wait counts as a high one.
    fn urgency(&self, slot: &Slot, waited: Duration) -> Priority {
        if waited >= 2 * self.settings.patience {
            return Priority::High;
        }
        let of = slot.admitted.iter().filter_map(|id| self.active.get(id));
        of.map(|active| active.flight.request.priority).max().unwrap_or(Priority::Low)
    }

    fn room(&mut self, key: &Key, now: Timestamp) -> Room {
        let Some(slot) = self.slots.get(key) else { return Room::Later };
        let Some(Opened { bytes, since, .. }) = slot.opened else { return Room::Later };
        let (name, limit) = (format!("model {}", slot.spec.id), self.settings.memory.limit());
        let others = || self.slots.values().filter(|slot| slot.key != *key);
        let pinned: u64 = others().filter(|slot| slot.pinned).map(Slot::bytes).sum();
        if bytes > limit.saturating_sub(pinned) {
            let pins = if pinned > 0 { format!(", of which {pinned} are pinned") } else { String::new() };
            let message = format!("its weights take {bytes} bytes, the memory budget is {limit} bytes{pins}");
            return Room::Never(Error::new(ErrorKind::OutOfMemory, message).about(name));
        }
        let refused = match self.settings.memory.reserve(bytes, &name) {
            Ok(reservation) => return Room::Here(reservation),
            Err(refused) => refused,
        };
        let leaving: u64 = others().filter(|slot| slot.state == Residency::Draining).map(Slot::bytes).sum();
        let mut free = limit.saturating_sub(self.settings.memory.used()).saturating_add(leaving);
        // What is leaving while its memory is let go of elsewhere has no bytes here any more, but comes back.
        let arrives = |slot: &Slot| slot.is_arriving() && slot.opened.is_none();
        let coming = others().any(|slot| slot.state == Residency::Draining || arrives(slot));
        let mut idle: Vec<(f64, u64, Key)> = others()
            .filter(|slot| slot.is_idle())
            .map(|slot| (self.worth(slot, now), slot.bytes(), slot.key.clone()))
            .collect();
        idle.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut going = false;
        for (_, bytes_of, victim) in idle {
            if free >= bytes {
                break;
            }
            free += bytes_of;
            going = true;
            self.evict(&victim);
        }
        if free >= bytes || going {
            return Room::Later;
        }
        let busy: Vec<Key> = self
            .slots
            .values()
            .filter(|slot| slot.key != *key && slot.state == Residency::Busy && !slot.pinned)
            .map(|slot| slot.key.clone())
            .collect();
        if busy.is_empty() && !coming {
            return Room::Never(refused);
        }
        if now.since(since) >= self.settings.patience {
            for key in busy {
                if let Some(slot) = self.slots.get_mut(&key) {
                    slot.yielding = true;
                }
            }
        }
        Room::Later
    }

    /// Sends a model off for the sake of another or of its idleness.
    pub(super) fn evict(&mut self, key: &Key) {
        let Some(slot) = self.slots.get_mut(key) else { return };
        if slot.step(ResidencyEvent::Evicted) {
            metric::model_evicted(&slot.spec.id);
            tracing::info!(target: "orion::engine", model = %slot.spec.id, bytes = slot.bytes(), "evicted");
            self.evictions += 1;
            self.rested(key);
        }
    }

    /// A model may have become idle.
    pub(super) fn rested(&mut self, key: &Key) {
        let now = self.now();
        let Some(slot) = self.slots.get_mut(key) else { return };
        if !slot.jobs.is_empty() {
            return;
        }
        match slot.state {
            Residency::Busy => {
                slot.step(ResidencyEvent::Idle);
                slot.used_at = now;
            }
            Residency::Draining if slot.model.is_some() => self.leave(key),
            _ => {}
        }
    }

    /// Lets go of a model, on a thread of its own: dropping it may take time.
    fn leave(&mut self, key: &Key) {
        let to = self.to.clone();
        let Some(slot) = self.slots.get_mut(key) else { return };
        slot.generation += 1;
        if let Some(arrival) = slot.arrival.take() {
            arrival.abandoned.cancel();
        }
        slot.yielding = false;
        if std::mem::take(&mut slot.foretold) {
            self.wasted += slot.bytes();
        }
        let (model, memory) = (slot.model.take(), (slot.weights.take(), slot.kv.take()));
        metric::model_resident(&slot.spec.id, 0);
        let key = key.clone();
        let go = move || {
            drop(model);
            drop(memory);
            to.send(Message::Unloaded { key }).ok();
        };
        if let Err(error) = std::thread::Builder::new().name("orion-unload".into()).spawn(go) {
            tracing::error!(target: "orion::engine", %error, "a model was let go of without a thread");
        }
    }

    pub(super) fn unloaded(&mut self, key: &Key) {
        let Some(slot) = self.slots.get_mut(key) else { return };
        if slot.state == Residency::Draining {
            slot.step(ResidencyEvent::Unloaded);
        }
        tell_all(&mut slot.leavers);
        self.come_back(key);
    }

    /// Someone asked for a model while it was leaving.
    fn come_back(&mut self, key: &Key) {
        let awaited = |slot: &&Slot| slot.state == Residency::Absent && !slot.comers.is_empty();
        if self.slots.get(key).filter(awaited).is_some() {
            self.begin(key);
        }
    }

    pub(super) fn loaded(&mut self, key: &Key, generation: u64, result: Result<Loaded>) {
        let Some(slot) = self.current(key, generation) else { return };
        let Loaded { model, reservation } = match result {
            Ok(loaded) => loaded,
            Err(error) => return self.load_failed(key, &error),
        };
        slot.model = Some(model);
        slot.last_bytes = reservation.bytes();
        slot.weights = Some(reservation);
        slot.opened = None;
        match slot.state {
            Residency::Draining => return self.leave(key),
            Residency::Degraded => slot.step(ResidencyEvent::WorkerReplaced),
            _ => slot.step(ResidencyEvent::Loaded),
        };
        let (admitted, foretold) = (std::mem::take(&mut slot.admitted), slot.foretold);
        self.rested |= foretold;
        self.measure(key);
        for id in admitted {
            match self.permit(id) {
                Ok(()) => self.give(id, key),
                Err(error) => self.hop(id, error),
            }
        }
        self.welcome(key);
    }

    /// All weights are there.
    pub(super) fn arrived(&mut self, key: &Key, generation: u64, took: Duration) {
        let Some(slot) = self.current(key, generation) else { return };
        slot.took = Some(took);
        metric::model_loaded(&slot.spec.id, took, true);
        let foretold = slot.foretold;
        self.rested |= foretold;
        self.welcome(key);
    }

    /// Tells those who wait for a model that it is there, once it wholly is.
    fn welcome(&mut self, key: &Key) {
        let Some(slot) = self.slots.get_mut(key) else { return };
        if slot.model.is_some() && slot.arrival.as_ref().is_some_and(|arrival| arrival.is_over()) {
            for comer in slot.comers.drain(..) {
                comer.send(Ok(())).ok();
            }
        }
    }

    /// More weights are there: whoever waits for them sees it.
    pub(super) fn progress(&mut self, key: &Key, generation: u64) {
        let Some(slot) = self.slots.get(key).filter(|slot| slot.generation == generation) else { return };
        let Some(arrival) = &slot.arrival else { return };
        let (done, total) = arrival.progress();
        let waiting = slot.admitted.iter().copied().chain(slot.jobs.iter().map(|(id, _)| *id));
        for active in waiting.filter_map(|id| self.active.get(&id)) {
            if let Some(spec) = &active.spec
                && active.flight.phase() != Phase::Decoding
            {
                active.flight.tell(EngineEvent::Loading { model: spec.id.clone(), done, total });
            }
        }
    }

    pub(super) fn load_failed(&mut self, key: &Key, error: &Error) {
        let Some(slot) = self.slots.get_mut(key) else { return };
        slot.opened = None;
        slot.arrival = None;
        let leaving = slot.state == Residency::Draining;
        slot.step(ResidencyEvent::LoadFailed);
        let error = copy(error).about(format!("model {}", slot.spec.id));
        if leaving {
            // It was to leave before it had come: those who came after that may have it loaded again.
            tell_all(&mut slot.leavers);
            return self.come_back(key);
        }
        tracing::warn!(target: "orion::engine", model = %slot.spec.id, %error, "loading failed");
        metric::model_loaded(&slot.spec.id, Duration::ZERO, false);
        for comer in slot.comers.drain(..) {
            comer.send(Err(copy(&error))).ok();
        }
        let admitted = std::mem::take(&mut slot.admitted);
        admitted.into_iter().for_each(|id| self.hop(id, copy(&error)));
    }

    /// Weights failed to arrive while the model was already in use.
    pub(super) fn broke(&mut self, key: &Key, error: &Error) {
        let Some(slot) = self.slots.get_mut(key) else { return };
        if !slot.state.accepts_work() || !slot.jobs.is_empty() {
            return;
        }
        slot.step(ResidencyEvent::WorkerLost);
        self.drop_model(key);
        self.load_failed(key, error);
    }

    /// The model's worker is no more, or does not answer: those it had are told, and it is replaced.
    pub(super) fn lost(&mut self, key: &Key, why: &str) {
        let Some(slot) = self.slots.get_mut(key) else { return };
        if slot.model.is_none() || slot.state == Residency::Degraded {
            return;
        }
        tracing::error!(target: "orion::engine", model = %slot.spec.id, why, "the worker is replaced");
        let leaving = slot.state == Residency::Draining;
        slot.step(ResidencyEvent::WorkerLost);
        let jobs = std::mem::take(&mut slot.jobs);
        let name = format!("model {}", slot.spec.id);
        if leaving {
            self.leave(key);
        } else {
            self.drop_model(key);
        }
        for (id, attempt) in jobs {
            if self.active.get(&id).is_some_and(|active| active.attempt == attempt) {
                self.settle(id, orion_core::Outcome::Failure);
                let error = Error::new(ErrorKind::Internal, why).about(name.clone());
                match self.active.get(&id).map(|active| active.flight.phase()) {
                    Some(Phase::Decoding) => {
                        self.finish(id, Event::GenerateFailed, crate::flight::End::Failed(error));
                    }
                    _ => self.hop(id, error),
                }
            }
        }
        if !leaving {
            self.begin(key);
        }
    }

    /// Lets go of a model that is not to be used any more, without leaving its state.
    fn drop_model(&mut self, key: &Key) {
        let Some(slot) = self.slots.get_mut(key) else { return };
        slot.generation += 1;
        let (model, memory) = (slot.model.take(), (slot.weights.take(), slot.kv.take()));
        if let Some(arrival) = slot.arrival.take() {
            arrival.abandoned.cancel();
        }
        let go = move || {
            drop(model);
            drop(memory);
        };
        if let Err(error) = std::thread::Builder::new().name("orion-unload".into()).spawn(go) {
            tracing::error!(target: "orion::engine", %error, "a model was let go of without a thread");
        }
    }

    /// Takes what a model holds now, measured, from the budget.
    pub(super) fn measure(&mut self, key: &Key) {
        let memory = self.settings.memory.clone();
        let Some(slot) = self.slots.get_mut(key) else { return };
        let (Some(model), Some(weights)) = (&slot.model, &slot.weights) else { return };
        let kv = model.memory_bytes().saturating_sub(weights.bytes());
        let held = slot.kv.as_ref().map_or(0, Reservation::bytes);
        let mut over = false;
        if kv != held {
            slot.kv = None;
            slot.kv = memory.reserve(kv, "keys and values").ok();
            over = slot.kv.is_none();
        }
        metric::model_resident(&slot.spec.id, slot.bytes());
        if over {
            // Beyond the budget: whoever is idle and worth least makes room; the next look counts again.
            let now = self.now();
            let idle = self.slots.values().filter(|slot| slot.is_idle() && slot.key != *key);
            let least =
                idle.min_by(|a, b| a.worth(now).total_cmp(&b.worth(now))).map(|slot| slot.key.clone());
            match least {
                Some(victim) => self.evict(&victim),
                None => {
                    tracing::debug!(target: "orion::engine", kv, "keys and values exceed the memory budget")
                }
            }
        }
    }

    /// Brings a model in without a request; `done` is told when it is there.
    pub(crate) fn preload(&mut self, model: &ModelId, done: Sender<Result<()>>) {
        let Some(spec) = self.settings.catalog.get(model) else {
            let error = Error::new(ErrorKind::NotFound, "no model of that name in the catalogue");
            done.send(Err(error.about(format!("model {model}")))).ok();
            return;
        };
        let key = self.key(&spec);
        let (queue, clock) = (self.settings.queue.clone(), self.settings.clock.clone());
        let slot = self
            .slots
            .entry(key.clone())
            .or_insert_with(|| Slot::new(key.clone(), spec.clone(), queue, clock));
        slot.pinned |= spec.pinned;
        slot.comers.push(done);
        if matches!(slot.state, Residency::Absent | Residency::Failed) {
            slot.spec = spec;
            self.begin(&key);
        } else {
            self.welcome(&key);
        }
    }

    /// Sends a model off as soon as it is idle; `done` is told when its memory is back.
    pub(crate) fn unload(&mut self, model: &ModelId, done: Sender<()>) -> Result<()> {
        let known = self.settings.catalog.get(model);
        let spec = known.ok_or_else(|| {
            let error = Error::new(ErrorKind::NotFound, "no model of that name in the catalogue");
            error.about(format!("model {model}"))
        })?;
        let key = self.key(&spec);
        let Some(slot) = self.slots.get_mut(&key) else {
            done.send(()).ok();
            return Ok(());
        };
        match slot.state {
            Residency::Absent | Residency::Failed => {
                done.send(()).ok();
            }
            Residency::Draining => slot.leavers.push(done),
            Residency::Fetching => {
                slot.leavers.push(done);
                if let Some(arrival) = slot.arrival.take() {
                    arrival.abandoned.cancel();
                }
                slot.generation += 1;
                slot.opened = None;
                slot.step(ResidencyEvent::Evicted);
                let error = Error::new(ErrorKind::Rejected, "the model was unloaded");
                let admitted = std::mem::take(&mut slot.admitted);
                tell_all(&mut slot.leavers);
                admitted.into_iter().for_each(|id| self.hop(id, copy(&error)));
            }
            _ => {
                slot.leavers.push(done);
                if let Some(arrival) = slot.arrival.as_ref().filter(|arrival| !arrival.is_over()) {
                    arrival.abandoned.cancel();
                }
                let admitted = std::mem::take(&mut slot.admitted);
                self.evict(&key);
                let error = Error::new(ErrorKind::Rejected, "the model was unloaded");
                admitted.into_iter().for_each(|id| self.hop(id, copy(&error)));
            }
        }
        Ok(())
    }
}

/// Tells everyone who waits; who has gone does not matter.
fn tell_all(waiting: &mut Vec<Sender<()>>) {
    for waiter in waiting.drain(..) {
        waiter.send(()).ok();
    }
}

/// What the engine knows of one set of weights.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ModelStats {
    /// The model that used it last.
    pub model: ModelId,
    /// Where its weights are.
    pub residency: Residency,
    /// Bytes it holds of the budget: weights, keys and values, measured.
    pub bytes: u64,
    /// Requests it works on.
    pub running: usize,
    /// Requests that wait for a place with it.
    pub queued: usize,
    /// How often its weights were brought in.
    pub loads: u64,
    /// How long that took the last time.
    pub load_time: Option<Duration>,
    /// Never evicted.
    pub pinned: bool,
}

impl Slot {
    pub(super) fn stats(&self) -> ModelStats {
        ModelStats {
            model: self.spec.id.clone(),
            residency: self.state,
            bytes: self.bytes(),
            running: self.jobs.len(),
            queued: self.queue.statistics().queued + self.admitted.len(),
            loads: self.loads,
            load_time: self.took,
            pinned: self.pinned,
        }
    }
}
