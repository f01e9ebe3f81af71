//! A set of weights: where it is, who waits for it, who uses it, what it costs.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use crossbeam_channel::Sender;
use orion_core::state::{Residency, ResidencyEvent};
use orion_core::{Clock, FileSpec, Model, ModelSpec, RequestId, Reservation, Result, Timestamp};
use orion_resilience::{QueueSettings, RequestQueue};

use super::load::Arrival;
use super::sink::Pulse;

/// Names a set of weights: models that share files, and read them alike, share it.
pub(crate) type Key = Arc<str>;

/// Half-life of the count of uses.
const USES_HALF_LIFE: f64 = 600.0;

/// A load whose header is read and that waits for room.
pub(crate) struct Opened {
    pub(crate) bytes: u64,
    pub(crate) reply: Sender<Result<Reservation>>,
    pub(crate) since: Timestamp,
}

pub(crate) struct Slot {
    pub(crate) key: Key,
    /// The latest model that asked for it.
    pub(crate) spec: Arc<ModelSpec>,
    pub(crate) state: Residency,
    /// Counts the workers it had; what comes from an earlier one is late.
    pub(crate) generation: u64,
    pub(crate) model: Option<Arc<dyn Model>>,
    pub(crate) arrival: Option<Arc<Arrival>>,
    pub(crate) opened: Option<Opened>,
    pub(crate) weights: Option<Reservation>,
    pub(crate) kv: Option<Reservation>,
    pub(crate) queue: RequestQueue<RequestId>,
    /// Requests that have their place and wait for the model.
    pub(crate) admitted: Vec<RequestId>,
    /// Requests the model has, with the attempt.
    pub(crate) jobs: HashSet<(RequestId, u32)>,
    pub(crate) pulse: Arc<Pulse>,
    /// Takes no new work, so that another can have its place.
    pub(crate) yielding: bool,
    /// How long its weights took to arrive the last time.
    pub(crate) took: Option<Duration>,
    pub(crate) loads: u64,
    /// Bytes of its weights the last time they were here.
    pub(crate) last_bytes: u64,
    uses: f64,
    pub(crate) used_at: Timestamp,
    pub(crate) pinned: bool,
    /// Brought in because it was foretold, and not asked for since.
    pub(crate) foretold: bool,
    /// Who waits for it to be resident.
    pub(crate) comers: Vec<Sender<Result<()>>>,
    /// Who waits for it to be gone.
    pub(crate) leavers: Vec<Sender<()>>,
}

impl Slot {
    pub(crate) fn new(key: Key, spec: Arc<ModelSpec>, queue: QueueSettings, clock: Arc<dyn Clock>) -> Self {
        let used_at = clock.now();
        Self {
            key,
            pinned: spec.pinned,
            spec,
            state: Residency::Absent,
            generation: 0,
            model: None,
            arrival: None,
            opened: None,
            weights: None,
            kv: None,
            queue: RequestQueue::new(queue, clock),
            admitted: Vec::new(),
            jobs: HashSet::new(),
            pulse: Arc::default(),
            yielding: false,
            took: None,
            loads: 0,
            last_bytes: 0,
            uses: 0.0,
            used_at,
            foretold: false,
            comers: Vec::new(),
            leavers: Vec::new(),
        }
    }

    /// Steps the machine. False, and one log line, if it does not allow that.
    pub(crate) fn step(&mut self, event: ResidencyEvent) -> bool {
        match self.state.step(event) {
            Ok(next) => {
                tracing::debug!(target: "orion::engine", model = %self.spec.id, from = ?self.state, to = ?next, "residency");
                self.state = next;
                true
            }
            Err(illegal) => {
                tracing::error!(target: "orion::engine", model = %self.spec.id, %illegal, "a step was refused");
                false
            }
        }
    }

    /// Bytes it holds of the budget.
    pub(crate) fn bytes(&self) -> u64 {
        let held = |part: &Option<Reservation>| part.as_ref().map_or(0, Reservation::bytes);
        held(&self.weights) + held(&self.kv)
    }

    pub(crate) fn is_arriving(&self) -> bool {
        matches!(self.state, Residency::Fetching | Residency::Loading)
    }

    /// Whether all its weights are here.
    pub(crate) fn is_here(&self) -> bool {
        let arrived = self.arrival.as_ref().is_none_or(|arrival| arrival.is_over());
        self.model.is_some() && self.state.accepts_work() && arrived
    }

    /// Whether it may be evicted now without anybody noticing.
    pub(crate) fn is_idle(&self) -> bool {
        self.state == Residency::Ready && self.jobs.is_empty() && !self.pinned
    }

    pub(crate) fn used(&mut self, now: Timestamp) {
        self.uses = self.uses_at(now) + 1.0;
        self.used_at = now;
    }

    /// How often it was used, of late more than long ago.
    pub(crate) fn uses_at(&self, now: Timestamp) -> f64 {
        self.uses * 0.5_f64.powf(now.since(self.used_at).as_secs_f64() / USES_HALF_LIFE)
    }

    /// What bringing it back would take, per byte its absence frees.
    pub(crate) fn seconds_per_byte(&self) -> f64 {
        let bytes = self.bytes().max(1);
        super::load::expected(self.took, bytes).as_secs_f64() / bytes as f64
    }

    /// What its absence would cost per byte it frees: seconds to bring it back times how likely it is wanted.
    pub(crate) fn worth(&self, now: Timestamp) -> f64 {
        self.seconds_per_byte() * self.uses_at(now)
    }
}

/// The key of a model's weights. Files with a digest are known by it; others by where they are and, on this machine,
/// by length and time of change, so that a file that is replaced becomes another set.
pub(crate) fn key_of(spec: &ModelSpec) -> Key {
    let file = |file: &FileSpec| {
        let stamp = std::fs::metadata(&file.location).ok().map(|metadata| {
            let changed = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
            (metadata.len(), changed.unwrap_or_default())
        });
        match (file.digest, stamp) {
            (digest, Some((len, changed))) => {
                let digest = digest.map(|digest| digest.to_string()).unwrap_or_default();
                format!("{} {digest} {len} {}", file.location, changed.as_nanos())
            }
            (Some(digest), None) => digest.to_string(),
            (None, None) => file.location.clone(),
        }
    };
    let mut key = spec.files.iter().map(file).collect::<Vec<_>>().join("\n");
    if let Some(template) = &spec.chat_template {
        key += "\ntemplate ";
        key += template;
    }
    key.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use orion_core::{Digest, ManualClock};

    fn spec(location: &str) -> ModelSpec {
        ModelSpec::new("m".into(), vec![FileSpec::new(location)])
    }

    #[test]
    fn agents_share_weights_unless_files_or_template_differ() {
        let (mut a, mut b) = (spec("hf://x/y"), spec("hf://x/y"));
        b.system_prompt = Some("another agent".into());
        assert_eq!(key_of(&a), key_of(&b));
        b.chat_template = Some("{{ x }}".into());
        assert_ne!(key_of(&a), key_of(&b));
        a.files[0].digest = Some(Digest([7; 32]));
        let mut mirrored = spec("https://mirror/y");
        mirrored.files[0].digest = Some(Digest([7; 32]));
        assert_eq!(key_of(&a), key_of(&mirrored));
    }

    #[test]
    fn a_replaced_file_is_another_set() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let spec = spec(file.path().to_str().unwrap());
        let before = key_of(&spec);
        assert_eq!(before, key_of(&spec));
        std::fs::write(file.path(), b"longer").unwrap();
        assert_ne!(before, key_of(&spec));
    }

    #[test]
    fn what_is_used_often_and_slow_to_load_is_worth_more() {
        let clock = ManualClock::new();
        let slot = |uses: u32, seconds: u64| {
            let shared: Arc<dyn Clock> = Arc::new(clock.clone());
            let mut slot = Slot::new("k".into(), Arc::new(spec("x")), QueueSettings::new(), shared);
            slot.took = Some(Duration::from_secs(seconds));
            (0..uses).for_each(|_| slot.used(clock.now()));
            slot
        };
        let (rare, often, slow) = (slot(1, 1), slot(3, 1), slot(1, 5));
        let now = clock.now();
        assert!(rare.worth(now) < often.worth(now) && rare.worth(now) < slow.worth(now));
        clock.advance(Duration::from_secs(600));
        assert!((often.worth(clock.now()) / often.worth(now) - 0.5).abs() < 1e-9);
    }
}
