//! Lists threaded through the elements of a vector: constant time to put in, take out and remove from the middle, and
//! eight bytes per element.

/// No element.
pub(crate) const NONE: u32 = u32::MAX;

/// The neighbours of an element in one list.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Link {
    pub(crate) before: u32,
    pub(crate) after: u32,
}

impl Default for Link {
    fn default() -> Self {
        Self { before: NONE, after: NONE }
    }
}

/// Where the links of a list are kept.
pub(crate) trait Links {
    fn link(&mut self, at: u32) -> &mut Link;
}

/// The ends of a list.
#[derive(Debug, Clone, Copy)]
pub(crate) struct List {
    pub(crate) first: u32,
    last: u32,
}

impl Default for List {
    fn default() -> Self {
        Self { first: NONE, last: NONE }
    }
}

impl List {
    pub(crate) fn is_empty(&self) -> bool {
        self.first == NONE
    }

    pub(crate) fn push(&mut self, at: u32, links: &mut impl Links) {
        *links.link(at) = Link { before: self.last, after: NONE };
        match self.last {
            NONE => self.first = at,
            last => links.link(last).after = at,
        }
        self.last = at;
    }

    pub(crate) fn remove(&mut self, at: u32, links: &mut impl Links) {
        let Link { before, after } = std::mem::take(links.link(at));
        match before {
            NONE => self.first = after,
            before => links.link(before).after = after,
        }
        match after {
            NONE => self.last = before,
            after => links.link(after).before = before,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Plain(Vec<Link>);
    impl Links for Plain {
        fn link(&mut self, at: u32) -> &mut Link {
            &mut self.0[at as usize]
        }
    }

    fn walk(list: &List, links: &mut Plain) -> (Vec<u32>, Vec<u32>) {
        let (mut forth, mut back) = (vec![], vec![]);
        let mut at = list.first;
        while at != NONE {
            forth.push(at);
            at = links.link(at).after;
        }
        let mut at = list.last;
        while at != NONE {
            back.push(at);
            at = links.link(at).before;
        }
        back.reverse();
        (forth, back)
    }

    #[test]
    fn elements_leave_from_everywhere() {
        let mut links = Plain(vec![Link::default(); 4]);
        let mut list = List::default();
        assert!(list.is_empty());
        (0..4).for_each(|at| list.push(at, &mut links));
        assert_eq!(walk(&list, &mut links).0, [0, 1, 2, 3]);
        for (gone, left) in [(2, vec![0, 1, 3]), (0, vec![1, 3]), (3, vec![1]), (1, vec![])] {
            list.remove(gone, &mut links);
            assert_eq!(walk(&list, &mut links), (left.clone(), left));
        }
        assert!(list.is_empty());
        list.push(2, &mut links);
        assert_eq!(walk(&list, &mut links).1, [2]);
    }
}
