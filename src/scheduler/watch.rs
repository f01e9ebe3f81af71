//! What only time brings: flags that were set, deadlines, idleness, silence, and the end of the engine.

use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use orion_core::RequestId;
use orion_core::state::{Event, Phase, Residency};

use super::residency::ModelStats;
use super::slot::{Key, Slot};
use super::{Closing, Drained, Scheduler, shutting_down};
use crate::flight::End;

/// How long a model may take to hand over what it has when the engine shuts down.
const LAST_WORDS: Duration = Duration::from_secs(1);

impl Scheduler {
    /// Looks at everything that time may have changed.
    pub(super) fn look(&mut self) {
        let ids: Vec<RequestId> = self.active.keys().copied().collect();
        for id in ids {
            let Some(active) = self.active.get(&id) else { continue };
            if active.flight.context.deadline().is_over() {
                self.expire(id);
            } else if active.flight.is_cancelled() {
                self.cancel(id);
            }
        }
        let keys: Vec<Key> = self.slots.keys().cloned().collect();
        for key in keys {
            self.look_at(&key);
        }
        self.close_on_time();
    }

    fn look_at(&mut self, key: &Key) {
        let now = self.now();
        let clock = self.settings.clock.clone();
        let Some(slot) = self.slots.get(key) else { return };
        let idle = slot.is_idle() && slot.queue.statistics().queued == 0;
        let over = slot.arrival.as_ref().is_none_or(|arrival| arrival.is_over());
        let silent =
            slot.jobs.len() > slot.pulse.paused() && slot.pulse.silence(&*clock) >= self.settings.stall;
        if silent && over && slot.model.is_some() {
            return self.lost(key, "its worker stopped answering");
        }
        if slot.jobs.is_empty()
            && let Some(error) = slot.arrival.as_ref().and_then(|arrival| arrival.failure())
            && slot.model.is_some()
        {
            return self.broke(key, &error);
        }
        let replaced = idle && self.is_replaced(slot);
        let unused = self.settings.keep_alive.is_some_and(|most| now.since(slot.used_at) >= most);
        if replaced || (idle && unused) {
            return self.evict(key);
        }
        if slot.state == Residency::Absent
            && slot.queue.statistics().queued == 0
            && slot.admitted.is_empty()
            && slot.comers.is_empty()
            && self.is_replaced(slot)
        {
            self.slots.remove(key);
            return;
        }
        self.measure(key);
    }

    /// Whether its model has other files by now.
    fn is_replaced(&self, slot: &Slot) -> bool {
        self.keys.get(&slot.spec.id).is_some_and(|(_, key, _)| *key != slot.key)
    }

    /// Turns away who has no place yet, lets the others end, and cuts them off after `time`.
    pub(crate) fn close(&mut self, time: Duration, reply: Option<Sender<Drained>>) {
        let until = Instant::now() + time;
        self.door.closed.store(true, std::sync::atomic::Ordering::Release);
        match &mut self.closing {
            Some(closing) => {
                closing.until = closing.until.min(until);
                if closing.reply.is_none() {
                    closing.reply = reply;
                }
            }
            None => {
                let outcome = Drained::default();
                self.closing = Some(Closing { until, aborted: false, outcome, reply });
            }
        }
        let unplaced: Vec<RequestId> = self
            .active
            .values()
            .filter(|active| {
                matches!(active.flight.phase(), Phase::Validating | Phase::Routing | Phase::Admitting)
            })
            .map(|active| active.flight.id)
            .collect();
        for id in unplaced {
            self.finish(id, Event::Refused, End::Failed(shutting_down()));
        }
        self.close_on_time();
    }

    fn close_on_time(&mut self) {
        let Some(closing) = &mut self.closing else { return };
        let now = Instant::now();
        if !self.active.is_empty() && now >= closing.until {
            let force = closing.aborted && now >= closing.until + LAST_WORDS;
            closing.aborted = true;
            for id in self.active.keys().copied().collect::<Vec<_>>() {
                let Some(active) = self.active.get(&id) else { continue };
                active.flight.context.cancel().cancel();
                if force {
                    self.finish(id, Event::CancelRequested, End::Cancelled);
                } else {
                    self.cancel(id);
                }
            }
        }
        if self.active.is_empty()
            && let Some(closing) = self.closing.take()
        {
            for slot in std::mem::take(&mut self.slots).into_values() {
                slot.arrival.iter().for_each(|arrival| arrival.abandoned.cancel());
            }
            self.closed = true;
            self.stop_warming();
            self.keep_habits();
            if let Some(reply) = closing.reply {
                reply.send(closing.outcome).ok();
            }
        }
    }

    /// Every set of weights it knows, whether it is here or not.
    pub(crate) fn models(&self) -> Vec<ModelStats> {
        self.slots.values().map(Slot::stats).collect()
    }

    /// Models sent off so far, and bytes of the budget in use.
    pub(crate) fn memory(&self) -> (u64, u64, u64) {
        (self.evictions, self.settings.memory.used(), self.settings.memory.limit())
    }
}
