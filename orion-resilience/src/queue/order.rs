//! Who is next: classes of priority with ageing, and within a class the callers in turn.

use std::collections::HashMap;
use std::time::Duration;

use orion_core::Timestamp;

use super::Priority;
use super::list::{Link, Links, List, NONE};

/// Classes of priority; class 0 is served first.
const CLASSES: usize = 3;

/// What the order needs to know of an entry.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Meta {
    pub(crate) caller: u64,
    pub(crate) priority: Priority,
    pub(crate) tokens: u32,
    pub(crate) submitted: Timestamp,
    pub(crate) deadline: Option<Timestamp>,
}

/// Names an entry; of an entry that has left, the stamp no longer fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Key {
    at: u32,
    stamp: u32,
}

/// An entry that has left the order.
#[derive(Debug)]
pub(crate) struct Left<P> {
    pub(crate) payload: P,
    pub(crate) tokens: u32,
    pub(crate) submitted: Timestamp,
    pub(crate) deadline: Option<Timestamp>,
}

#[derive(Debug)]
struct Entry<P> {
    payload: P,
    submitted: Timestamp,
    deadline: Option<Timestamp>,
    tokens: u32,
    /// Index into `callers`.
    caller: u32,
    /// In the lane of its caller and class.
    in_lane: Link,
    /// Among the entries that will reach the next class in the same way.
    in_age: Link,
    /// The class it was submitted in.
    base: u8,
    /// The class it has reached.
    class: u8,
}

#[derive(Debug)]
struct Place<P> {
    stamp: u32,
    held: Held<P>,
}

#[derive(Debug)]
enum Held<P> {
    Entry(Entry<P>),
    /// The next free place.
    Free(u32),
}

/// The waiting entries of one caller in one class, oldest first.
#[derive(Debug, Clone, Copy, Default)]
struct Lane {
    entries: List,
    len: u32,
    /// In the ring of callers of the class, while there are entries.
    in_ring: Link,
}

#[derive(Debug, Clone)]
struct Caller {
    id: u64,
    len: u32,
    lanes: [Lane; CLASSES],
}

#[derive(Debug)]
pub(crate) struct Order<P> {
    places: Vec<Place<P>>,
    free_place: u32,
    callers: Vec<Caller>,
    free_callers: Vec<u32>,
    by_id: HashMap<u64, u32>,
    rings: [List; CLASSES],
    class_len: [usize; CLASSES],
    /// Entries by the class they came in and the class they have reached, oldest first.
    ages: [[List; CLASSES]; CLASSES],
    ageing: Duration,
    len: usize,
    tokens: u64,
    /// No deadline is earlier.
    earliest: Option<Timestamp>,
}

struct InLane<'a, P>(&'a mut Vec<Place<P>>);
impl<P> Links for InLane<'_, P> {
    fn link(&mut self, at: u32) -> &mut Link {
        &mut entry_mut(self.0, at).in_lane
    }
}

struct InAge<'a, P>(&'a mut Vec<Place<P>>);
impl<P> Links for InAge<'_, P> {
    fn link(&mut self, at: u32) -> &mut Link {
        &mut entry_mut(self.0, at).in_age
    }
}

struct InRing<'a>(&'a mut Vec<Caller>, usize);
impl Links for InRing<'_> {
    fn link(&mut self, at: u32) -> &mut Link {
        &mut self.0[at as usize].lanes[self.1].in_ring
    }
}

fn entry_mut<P>(places: &mut [Place<P>], at: u32) -> &mut Entry<P> {
    match &mut places[at as usize].held {
        Held::Entry(entry) => entry,
        Held::Free(_) => unreachable!("only entries are linked"),
    }
}

fn entry<P>(places: &[Place<P>], at: u32) -> &Entry<P> {
    match &places[at as usize].held {
        Held::Entry(entry) => entry,
        Held::Free(_) => unreachable!("only entries are linked"),
    }
}

impl<P> Order<P> {
    pub(crate) fn new(ageing: Duration) -> Self {
        Self {
            places: Vec::new(),
            free_place: NONE,
            callers: Vec::new(),
            free_callers: Vec::new(),
            by_id: HashMap::new(),
            rings: Default::default(),
            class_len: [0; CLASSES],
            ages: Default::default(),
            ageing,
            len: 0,
            tokens: 0,
            earliest: None,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Puts an entry behind those of its caller in its class.
    pub(crate) fn insert(&mut self, meta: Meta, payload: P) -> Key {
        let caller = self.caller(meta.caller);
        let class = meta.priority.class();
        let entry = Entry {
            payload,
            submitted: meta.submitted,
            deadline: meta.deadline,
            tokens: meta.tokens,
            caller,
            in_lane: Link::default(),
            in_age: Link::default(),
            base: class,
            class,
        };
        let at = self.place(entry);
        self.len += 1;
        self.tokens += u64::from(meta.tokens);
        self.callers[caller as usize].len += 1;
        self.earliest = match (self.earliest, meta.deadline) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        self.join(at);
        Key { at, stamp: self.places[at as usize].stamp }
    }

    /// The entry that is served next, taken out.
    pub(crate) fn pop(&mut self, now: Timestamp) -> Option<Left<P>> {
        self.promote(now);
        let class = self.rings.iter().position(|ring| !ring.is_empty())?;
        let caller = self.rings[class].first;
        let first = self.callers[caller as usize].lanes[class].entries.first;
        // The caller's turn is over, whatever it has left.
        self.rings[class].remove(caller, &mut InRing(&mut self.callers, class));
        self.rings[class].push(caller, &mut InRing(&mut self.callers, class));
        Some(self.take(first))
    }

    /// Takes an entry out, if it is still there.
    pub(crate) fn remove(&mut self, key: Key) -> Option<Left<P>> {
        self.holds(key).then(|| self.take(key.at))
    }

    /// Takes out everything whose deadline has passed.
    pub(crate) fn expire(&mut self, now: Timestamp) -> Vec<Left<P>> {
        if self.earliest.is_none_or(|earliest| now < earliest) {
            return Vec::new();
        }
        let (mut expired, mut earliest) = (Vec::new(), None::<Timestamp>);
        for at in 0..self.places.len() {
            let Held::Entry(Entry { deadline: Some(deadline), .. }) = self.places[at].held else { continue };
            if deadline <= now {
                expired.push(self.take(at as u32));
            } else {
                earliest = Some(earliest.map_or(deadline, |earliest| earliest.min(deadline)));
            }
        }
        self.earliest = earliest;
        expired
    }

    /// How many are served before this one if nothing comes, leaves or ages meanwhile. Walks the callers of its class
    /// and the entries of its own.
    pub(crate) fn position(&self, key: Key) -> Option<usize> {
        if !self.holds(key) {
            return None;
        }
        let own = entry(&self.places, key.at);
        let class = usize::from(own.class);
        let mut place = 0;
        let mut at = self.callers[own.caller as usize].lanes[class].entries.first;
        while at != key.at {
            place += 1;
            at = entry(&self.places, at).in_lane.after;
        }
        let mut before: usize = self.class_len[..class].iter().sum::<usize>() + place as usize;
        // It is served in round `place`; callers ahead in the ring have had their turn of that round, too.
        let (mut rounds, mut caller) = (place + 1, self.rings[class].first);
        while caller != NONE {
            let lane = &self.callers[caller as usize].lanes[class];
            if caller == own.caller {
                rounds = place;
            } else {
                before += lane.len.min(rounds) as usize;
            }
            caller = lane.in_ring.after;
        }
        Some(before)
    }

    fn holds(&self, key: Key) -> bool {
        let place = self.places.get(key.at as usize);
        place.is_some_and(|place| place.stamp == key.stamp && matches!(place.held, Held::Entry(_)))
    }

    /// Entries that have waited long enough move up a class, behind those of their caller there.
    fn promote(&mut self, now: Timestamp) {
        for base in 1..CLASSES {
            for class in (1..=base).rev() {
                let wait = self.ageing.saturating_mul((base - class + 1) as u32);
                while let first = self.ages[base][class].first
                    && first != NONE
                    && now.since(entry(&self.places, first).submitted) >= wait
                {
                    self.leave(first);
                    entry_mut(&mut self.places, first).class -= 1;
                    self.join(first);
                }
            }
        }
    }

    /// Links an entry into its lane, its caller into the ring, and both into the list of its age.
    fn join(&mut self, at: u32) {
        let Entry { caller, base, class, .. } = *entry(&self.places, at);
        let class = usize::from(class);
        let lane = &mut self.callers[caller as usize].lanes[class];
        let was_empty = lane.len == 0;
        lane.len += 1;
        lane.entries.push(at, &mut InLane(&mut self.places));
        if was_empty {
            self.rings[class].push(caller, &mut InRing(&mut self.callers, class));
        }
        self.class_len[class] += 1;
        if class > 0 {
            self.ages[usize::from(base)][class].push(at, &mut InAge(&mut self.places));
        }
    }

    fn leave(&mut self, at: u32) {
        let Entry { caller, base, class, .. } = *entry(&self.places, at);
        let class = usize::from(class);
        let lane = &mut self.callers[caller as usize].lanes[class];
        lane.len -= 1;
        lane.entries.remove(at, &mut InLane(&mut self.places));
        if lane.len == 0 {
            self.rings[class].remove(caller, &mut InRing(&mut self.callers, class));
        }
        self.class_len[class] -= 1;
        if class > 0 {
            self.ages[usize::from(base)][class].remove(at, &mut InAge(&mut self.places));
        }
    }

    fn take(&mut self, at: u32) -> Left<P> {
        self.leave(at);
        let place = &mut self.places[at as usize];
        place.stamp = place.stamp.wrapping_add(1);
        let Held::Entry(entry) = std::mem::replace(&mut place.held, Held::Free(self.free_place)) else {
            unreachable!("it has just been unlinked")
        };
        self.free_place = at;
        self.len -= 1;
        self.tokens -= u64::from(entry.tokens);
        let caller = &mut self.callers[entry.caller as usize];
        caller.len -= 1;
        if caller.len == 0 {
            self.by_id.remove(&caller.id);
            self.free_callers.push(entry.caller);
        }
        Left {
            payload: entry.payload,
            tokens: entry.tokens,
            submitted: entry.submitted,
            deadline: entry.deadline,
        }
    }

    fn place(&mut self, entry: Entry<P>) -> u32 {
        let held = Held::Entry(entry);
        if self.free_place == NONE {
            let at = u32::try_from(self.places.len()).expect("the queue's limit is below this");
            self.places.push(Place { stamp: 0, held });
            return at;
        }
        let at = self.free_place;
        let place = &mut self.places[at as usize];
        if let Held::Free(next) = std::mem::replace(&mut place.held, held) {
            self.free_place = next;
        }
        at
    }

    fn caller(&mut self, id: u64) -> u32 {
        if let Some(&at) = self.by_id.get(&id) {
            return at;
        }
        let caller = Caller { id, len: 0, lanes: [Lane::default(); CLASSES] };
        let at = match self.free_callers.pop() {
            Some(at) => {
                self.callers[at as usize] = caller;
                at
            }
            None => {
                self.callers.push(caller);
                (self.callers.len() - 1) as u32
            }
        };
        self.by_id.insert(id, at);
        at
    }
}

impl Priority {
    fn class(self) -> u8 {
        match self {
            Self::High => 0,
            Self::Normal => 1,
            Self::Low => 2,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Priority::{High, Low, Normal};

    const AGEING: Duration = Duration::from_secs(5);

    fn at(seconds: u64) -> Timestamp {
        Timestamp(Duration::from_secs(seconds))
    }

    fn put(order: &mut Order<u32>, caller: u64, priority: Priority, seconds: u64, payload: u32) -> Key {
        let meta = Meta { caller, priority, tokens: payload, submitted: at(seconds), deadline: None };
        order.insert(meta, payload)
    }

    fn rest(order: &mut Order<u32>, seconds: u64) -> Vec<u32> {
        std::iter::from_fn(|| order.pop(at(seconds)).map(|left| left.payload)).collect()
    }

    #[test]
    fn higher_classes_first_and_callers_in_turn() {
        let mut order = Order::new(AGEING);
        for n in 0..4 {
            put(&mut order, 1, Normal, 0, n);
        }
        put(&mut order, 2, Normal, 0, 10);
        put(&mut order, 2, Normal, 0, 11);
        put(&mut order, 3, Low, 0, 20);
        put(&mut order, 1, High, 0, 30);
        assert_eq!((order.len(), order.tokens()), (8, 6 + 21 + 20 + 30));
        assert_eq!(rest(&mut order, 0), [30, 0, 10, 1, 11, 2, 3, 20]);
        assert_eq!((order.len(), order.tokens()), (0, 0));
        assert!(order.by_id.is_empty());
    }

    #[test]
    fn waiting_moves_up_a_class_at_a_time() {
        let mut order = Order::new(AGEING);
        put(&mut order, 1, Low, 0, 1);
        put(&mut order, 2, Normal, 1, 2);
        put(&mut order, 3, High, 2, 3);
        order.promote(at(4));
        assert_eq!(order.class_len, [1, 1, 1]);
        order.promote(at(5));
        assert_eq!(order.class_len, [1, 2, 0]);
        order.promote(at(6));
        assert_eq!(order.class_len, [2, 1, 0]);
        order.promote(at(9));
        assert_eq!(order.class_len, [2, 1, 0]);
        order.promote(at(10));
        assert_eq!(order.class_len, [3, 0, 0]);
        assert_eq!(rest(&mut order, 10), [3, 2, 1]);
        put(&mut order, 1, Low, 20, 1);
        order.promote(at(31));
        assert_eq!(order.class_len, [1, 0, 0], "two classes at once");
    }

    #[test]
    fn an_entry_is_removed_once_and_its_place_used_again() {
        let mut order = Order::new(AGEING);
        let first = put(&mut order, 1, Normal, 0, 1);
        let second = put(&mut order, 1, Normal, 0, 2);
        assert_eq!(order.remove(first).map(|left| left.payload), Some(1));
        assert!(order.remove(first).is_none());
        let third = put(&mut order, 2, Normal, 0, 3);
        assert_eq!(third.at, first.at);
        assert!(order.remove(first).is_none() && order.position(first).is_none());
        assert_eq!((order.position(second), order.position(third)), (Some(0), Some(1)));
        assert_eq!(rest(&mut order, 0), [2, 3]);
        put(&mut order, 7, Normal, 0, 4);
        assert_eq!((order.places.len(), order.callers.len()), (2, 2), "nothing grew");
    }

    #[test]
    fn what_has_expired_is_taken_out_and_nothing_else() {
        let mut order = Order::new(AGEING);
        for (payload, deadline) in [(1, Some(3)), (2, None), (3, Some(2)), (4, Some(9))] {
            let deadline = deadline.map(at);
            let meta = Meta { caller: 1, priority: Low, tokens: 1, submitted: at(0), deadline };
            order.insert(meta, payload);
        }
        let mut expire =
            |seconds| order.expire(at(seconds)).iter().map(|left| left.payload).collect::<Vec<_>>();
        assert!(expire(1).is_empty());
        assert_eq!(expire(3), [1, 3]);
        assert!(expire(8).is_empty());
        assert_eq!(expire(9), [4]);
        assert_eq!(order.earliest, None);
        assert_eq!(rest(&mut order, 0), [2]);
    }

    #[cfg(not(any(loom, shuttle)))]
    mod laws {
        use super::*;
        use proptest::prelude::*;

        proptest! {
            /// Position k means: exactly k are served before, if nothing changes.
            #[test]
            fn position_is_what_happens(
                entries in prop::collection::vec((0..4u64, 0..3u8, 0..12u64), 1..60),
                gone in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
                served in 0..10usize,
            ) {
                let mut order = Order::new(AGEING);
                let mut keys = Vec::new();
                let mut sorted = entries.clone();
                sorted.sort_by_key(|entry| entry.2);
                for (n, (caller, class, seconds)) in sorted.into_iter().enumerate() {
                    let priority = [High, Normal, Low][usize::from(class)];
                    keys.push(put(&mut order, caller, priority, seconds, n as u32));
                }
                for index in gone {
                    order.remove(keys[index.index(keys.len())]);
                }
                for _ in 0..served {
                    order.pop(at(12));
                }
                order.promote(at(12));
                let expected: Vec<Option<usize>> = keys.iter().map(|&key| order.position(key)).collect();
                let happened = rest(&mut order, 12);
                for (n, position) in expected.into_iter().enumerate() {
                    prop_assert_eq!(happened.iter().position(|&payload| payload == n as u32), position);
                }
                prop_assert!(order.len() == 0 && order.tokens() == 0 && order.by_id.is_empty());
                prop_assert!(order.rings.iter().all(List::is_empty));
                prop_assert!(order.ages.iter().flatten().all(List::is_empty));
            }
        }
    }
}
