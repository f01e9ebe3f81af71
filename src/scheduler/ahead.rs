//! Loading ahead: the models that likely come next are brought in while nothing else is to do.

use orion_core::state::Residency;
use orion_core::{FileSpec, ModelId, ModelSpec, Timestamp};

use super::Scheduler;
use super::slot::{Key, Slot};
use crate::predict::{Foresight, TIE};

/// How much the uses so far say beside the foretold likelihood.
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

    /// What a slot's absence would cost, by how likely its model is wanted: as foretold where that pays, by its uses
    /// elsewhere.
    pub(super) fn worth(&self, slot: &Slot, now: Timestamp) -> f64 {
        let Some(predictor) = self.settings.predictor.as_ref().filter(|predictor| predictor.pays()) else {
            return slot.worth(now);
        };
        let uses = slot.uses_at(now);
        slot.seconds_per_byte() * (predictor.likelihood(&slot.spec.id) + DOUBT * uses / (1.0 + uses))
    }

    /// Brings in the likeliest model that is not here and is likelier than all that has to leave for it together. When
    /// it is there, the next look may find another. Where foretelling does not pay it is only noted what would have
    /// been done, which shows when it pays again.
    pub(super) fn look_ahead(&mut self) {
        let Some(predictor) = &self.settings.predictor else { return };
        // One after the other: the room that one will take cannot be seen yet.
        let on_its_way = |slot: &Slot| slot.is_arriving() || (slot.model.is_some() && !slot.is_here());
        if self.slots.values().any(on_its_way) {
            return;
        }
        let pays = predictor.pays();
        // What has been here since it was read may have to be read again.
        if let Some((key, _)) = &self.warmed
            && self.slots.get(key).is_some_and(|slot| slot.state != Residency::Absent)
        {
            self.warmed = None;
        }
        let mut no_room = None;
        for (model, likely) in predictor.ranked(self.hour()) {
            let Some(spec) = self.settings.catalog.get(&model) else { continue };
            let key = self.key(&spec);
            if self.slots.get(&key).is_some_and(|slot| slot.state != Residency::Absent) {
                continue;
            }
            let Some(leaves) = self.leaves_for(&key, &spec, likely) else {
                if likely > TIE {
                    no_room.get_or_insert((key, spec));
                }
                continue;
            };
            if let Some(predictor) = &mut self.settings.predictor {
                predictor.swap(&model, &leaves);
            }
            if pays {
                tracing::debug!(target: "orion::engine", %model, likely, "loading ahead");
                let (queue, clock) = (self.settings.queue.clone(), self.settings.clock.clone());
                let fresh = || Slot::new(key.clone(), spec.clone(), queue, clock);
                let slot = self.slots.entry(key.clone()).or_insert_with(fresh);
                slot.spec = spec.clone();
                slot.foretold = true;
                self.begin(&key);
            }
            return;
        }
        if let Some((key, spec)) = no_room.filter(|_| pays) {
            self.warm(key, &spec);
        }
    }

    /// Has the files of a model read, unless they were the last to be.
    fn warm(&mut self, key: Key, spec: &ModelSpec) {
        let Some(prefetches) = &self.settings.prefetches else { return };
        let last = self.warmed.as_ref().is_some_and(|(last, _)| *last == key);
        if last || bytes_on_disk(spec) > self.settings.memory.limit() {
            return;
        }
        match prefetches(spec) {
            Ok(prefetch) => {
                tracing::debug!(target: "orion::engine", model = %spec.id, "reading ahead");
                self.stop_warming();
                self.warmed = Some((key, prefetch));
            }
            Err(error) => {
                tracing::debug!(target: "orion::engine", model = %spec.id, %error, "cannot read ahead");
            }
        }
    }

    pub(super) fn stop_warming(&mut self) {
        if let Some((_, prefetch)) = self.warmed.take() {
            prefetch.cancel();
        }
    }

    /// The models that would have to leave for one that is so likely, if its size is known, there is room for it and they are
    /// less likely.
    fn leaves_for(&self, key: &Key, spec: &ModelSpec, likely: f64) -> Option<Vec<ModelId>> {
        let (now, memory) = (self.now(), &self.settings.memory);
        let seen = self.slots.get(key).map_or(0, |slot| slot.last_bytes);
        let bytes = seen.max(spec.weight_bytes).max(bytes_on_disk(spec));
        if bytes == 0 {
            return None;
        }
        let mut free = memory.limit().saturating_sub(memory.used());
        let mut idle: Vec<&Slot> = self.slots.values().filter(|slot| slot.is_idle()).collect();
        idle.sort_by(|a, b| self.worth(a, now).total_cmp(&self.worth(b, now)));
        let (mut leaves, mut lost) = (Vec::new(), 0.0);
        for victim in idle {
            if free >= bytes {
                break;
            }
            let predictor = self.settings.predictor.as_ref()?;
            lost += predictor.likelihood(&victim.spec.id);
            if lost + TIE >= likely {
                return None;
            }
            leaves.push(victim.spec.id.clone());
            free += victim.bytes();
        }
        (free >= bytes).then_some(leaves)
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
