//! Loading ahead: the model that likely comes next is brought in while nothing else is to do.

use orion_core::state::Residency;
use orion_core::{FileSpec, ModelId, ModelSpec, Timestamp};

use super::Scheduler;
use super::slot::Slot;
use crate::predict::Foresight;

/// What any model is worth keeping for, however unlikely it is said to be.
const DOUBT: f64 = 0.05;

/// What its files take, about what its weights will.
fn bytes_on_disk(spec: &ModelSpec) -> u64 {
    let bytes = |file: &FileSpec| {
        file.bytes.or_else(|| std::fs::metadata(&file.location).ok().map(|metadata| metadata.len()))
    };
    spec.files.iter().filter_map(bytes).sum()
}

impl Scheduler {
    fn hour(&self) -> usize {
        let hours = self.settings.clock.wall().as_secs() / 3600;
        usize::try_from(hours % 24).unwrap_or(0)
    }

    /// A request is for `model`.
    pub(super) fn learn(&mut self, model: &ModelId) {
        let hour = self.hour();
        if let Some(predictor) = &mut self.settings.predictor {
            predictor.observe(model, hour);
        }
    }

    /// What a slot's absence would cost, by how likely its model is wanted.
    pub(super) fn worth(&self, slot: &Slot, now: Timestamp) -> f64 {
        slot.worth(now) * (DOUBT + self.likelihood(slot))
    }

    fn likelihood(&self, slot: &Slot) -> f64 {
        // Without foresight all are alike.
        self.settings.predictor.as_ref().map_or(1.0, |predictor| predictor.likelihood(&slot.spec.id))
    }

    /// Brings the likeliest next model in, if it is not here, foretelling has paid of late, and nothing that is as
    /// likely has to leave for it.
    pub(super) fn look_ahead(&mut self) {
        let (now, hour) = (self.now(), self.hour());
        let Some(predictor) = self.settings.predictor.as_ref().filter(|predictor| predictor.pays()) else {
            return;
        };
        let Some((model, likely)) = predictor.predict(hour) else { return };
        let Some(spec) = self.settings.catalog.get(&model) else { return };
        let key = self.key(&spec);
        let slot = self.slots.get(&key);
        if slot.is_some_and(|slot| slot.state != Residency::Absent) {
            return;
        }
        let bytes = slot.map_or(0, |slot| slot.last_bytes).max(spec.weight_bytes).max(bytes_on_disk(&spec));
        let mut free = self.settings.memory.limit().saturating_sub(self.settings.memory.used());
        let mut idle: Vec<&Slot> = self.slots.values().filter(|slot| slot.is_idle()).collect();
        idle.sort_by(|a, b| self.worth(a, now).total_cmp(&self.worth(b, now)));
        for victim in idle {
            if free >= bytes {
                break;
            }
            if self.likelihood(victim) >= likely {
                return;
            }
            free += victim.bytes();
        }
        if free < bytes {
            return;
        }
        tracing::debug!(target: "orion::engine", %model, likely, "loading ahead");
        let (queue, clock) = (self.settings.queue.clone(), self.settings.clock.clone());
        let fresh = || Slot::new(key.clone(), spec.clone(), queue, clock);
        let slot = self.slots.entry(key.clone()).or_insert_with(fresh);
        slot.spec = spec.clone();
        slot.foretold = true;
        self.begin(&key);
    }

    pub(crate) fn foresight(&self) -> Option<Foresight> {
        let predictor = self.settings.predictor.as_ref()?;
        Some(Foresight { wasted_bytes: self.wasted, ..predictor.foresight() })
    }

    /// Writes down what was learned.
    pub(super) fn keep_habits(&self) {
        if let (Some(predictor), Some(path)) = (&self.settings.predictor, &self.settings.habits)
            && let Err(error) = orion_registry::write_atomic(path, predictor.to_json().as_bytes())
        {
            tracing::warn!(target: "orion::engine", %error, "what was learned of the order of models is lost");
        }
    }
}
