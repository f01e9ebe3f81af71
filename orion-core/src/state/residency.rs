//! The residency of a model's weights.

use super::Illegal;

/// Where a set of weights is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Residency {
    /// Not in memory, not on its way.
    Absent,
    /// Bytes are on their way to this machine.
    Fetching,
    /// Bytes are read, verified and packed.
    Loading,
    /// In memory and idle.
    Ready,
    /// In memory and in use.
    Busy,
    /// In use, and leaving as soon as it is idle; takes no new work.
    Draining,
    /// In memory, its worker is being replaced; takes no new work.
    Degraded,
    /// The last attempt failed.
    Failed,
}

/// What happens to a set of weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ResidencyEvent {
    /// Its bytes are asked for.
    FetchStarted,
    /// Its bytes are on this machine; loading begins.
    LoadStarted,
    /// It can be used.
    Loaded,
    /// Fetching or loading failed.
    LoadFailed,
    /// A request uses it, the first one.
    Leased,
    /// The last request gave it back.
    Idle,
    /// It must leave.
    Evicted,
    /// Its memory is back with the system.
    Unloaded,
    /// Its worker panicked or hung.
    WorkerLost,
    /// A new worker stands.
    WorkerReplaced,
}

impl Residency {
    /// Every state.
    pub const ALL: [Self; 8] = [
        Self::Absent,
        Self::Fetching,
        Self::Loading,
        Self::Ready,
        Self::Busy,
        Self::Draining,
        Self::Degraded,
        Self::Failed,
    ];

    /// The state after `event`.
    ///
    /// # Errors
    /// [`Illegal`] if the table has no such transition.
    pub fn step(self, event: ResidencyEvent) -> Result<Self, Illegal<Self, ResidencyEvent>> {
        let row = RESIDENCY_TRANSITIONS.iter().find(|(from, on, _)| (*from, *on) == (self, event));
        row.map(|(_, _, to)| *to).ok_or(Illegal { state: self, event })
    }

    /// Whether a request may be given to it now.
    #[must_use]
    pub fn accepts_work(self) -> bool {
        matches!(self, Self::Ready | Self::Busy)
    }

    /// Whether its weights take memory.
    #[must_use]
    pub fn holds_memory(self) -> bool {
        matches!(self, Self::Loading | Self::Ready | Self::Busy | Self::Draining | Self::Degraded)
    }
}

impl ResidencyEvent {
    /// Every event.
    pub const ALL: [Self; 10] = [
        Self::FetchStarted,
        Self::LoadStarted,
        Self::Loaded,
        Self::LoadFailed,
        Self::Leased,
        Self::Idle,
        Self::Evicted,
        Self::Unloaded,
        Self::WorkerLost,
        Self::WorkerReplaced,
    ];
}

/// The whole machine; what is not listed is illegal.
pub static RESIDENCY_TRANSITIONS: &[(Residency, ResidencyEvent, Residency)] = {
    use Residency as R;
    use ResidencyEvent as E;
    &[
        (R::Absent, E::FetchStarted, R::Fetching),
        (R::Absent, E::LoadStarted, R::Loading),
        (R::Fetching, E::LoadStarted, R::Loading),
        (R::Fetching, E::LoadFailed, R::Failed),
        (R::Fetching, E::Evicted, R::Absent),
        (R::Loading, E::Loaded, R::Ready),
        (R::Loading, E::LoadFailed, R::Failed),
        (R::Loading, E::Evicted, R::Draining),
        (R::Ready, E::Leased, R::Busy),
        (R::Ready, E::Evicted, R::Draining),
        (R::Ready, E::WorkerLost, R::Degraded),
        (R::Busy, E::Idle, R::Ready),
        (R::Busy, E::Evicted, R::Draining),
        (R::Busy, E::WorkerLost, R::Degraded),
        (R::Draining, E::Unloaded, R::Absent),
        (R::Draining, E::LoadFailed, R::Absent),
        (R::Draining, E::WorkerLost, R::Draining),
        (R::Degraded, E::WorkerReplaced, R::Ready),
        (R::Degraded, E::LoadFailed, R::Failed),
        (R::Degraded, E::Evicted, R::Draining),
        (R::Failed, E::FetchStarted, R::Fetching),
        (R::Failed, E::LoadStarted, R::Loading),
        (R::Failed, E::Evicted, R::Absent),
    ]
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_of_state_and_event_is_one_row_or_illegal() {
        for state in Residency::ALL {
            for event in ResidencyEvent::ALL {
                let rows: Vec<_> =
                    RESIDENCY_TRANSITIONS.iter().filter(|(f, e, _)| (*f, *e) == (state, event)).collect();
                assert!(rows.len() <= 1);
                match (rows.first(), state.step(event)) {
                    (Some((_, _, to)), Ok(next)) => assert_eq!(*to, next),
                    (None, Err(illegal)) => assert_eq!(illegal, Illegal { state, event }),
                    (row, got) => panic!("{state:?} and {event:?}: table {row:?}, step {got:?}"),
                }
            }
        }
    }

    #[test]
    fn every_state_can_come_back_to_absent() {
        let mut reach = vec![Residency::Absent];
        while let Some((from, ..)) =
            RESIDENCY_TRANSITIONS.iter().find(|(from, _, to)| reach.contains(to) && !reach.contains(from))
        {
            reach.push(*from);
        }
        assert_eq!(reach.len(), Residency::ALL.len(), "{reach:?}");
    }
}
