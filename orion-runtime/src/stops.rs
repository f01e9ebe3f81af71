//! Stop strings: what may still become one is held back.

/// Watches the text of one sequence.
#[derive(Debug, Default)]
pub(crate) struct StopMatcher {
    stops: Vec<String>,
    /// Text that is not released yet: it may be the beginning of a stop string.
    held: String,
}

impl StopMatcher {
    pub(crate) fn new(stops: Vec<String>) -> Self {
        Self { stops, held: String::new() }
    }

    /// Takes the next piece of text; returns what may be shown, and whether a stop string is complete. The text before
    /// the earliest one is shown, the rest is dropped.
    pub(crate) fn push(&mut self, text: &str) -> (String, bool) {
        if self.stops.is_empty() {
            return (text.to_owned(), false);
        }
        self.held.push_str(text);
        if let Some(at) = self.stops.iter().filter_map(|stop| self.held.find(stop)).min() {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let keep = self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let tail = self.held.split_off(self.held.len() - keep);
        (std::mem::replace(&mut self.held, tail), false)
    }

    /// No more text comes: what was held back is text after all.
    pub(crate) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Length of the longest end of `text` that `stop` begins with.
fn overlap(text: &str, stop: &str) -> usize {
    let longest = (stop.len() - 1).min(text.len());
    let ends = (1..=longest).rev().filter(|&len| text.is_char_boundary(text.len() - len));
    ends.into_iter().find(|&len| stop.starts_with(&text[text.len() - len..])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_stop_string_across_pieces_is_cut_and_never_shown() {
        let mut matcher = StopMatcher::new(vec!["END".into(), "\n\n".into()]);
        assert_eq!(matcher.push("abE"), ("ab".into(), false));
        assert_eq!(matcher.push("N"), (String::new(), false));
        assert_eq!(matcher.push("o EN"), ("ENo ".into(), false));
        assert_eq!(matcher.push("Dx"), (String::new(), true));
    }

    #[test]
    fn the_earliest_of_several_wins_and_held_text_is_released_at_the_end() {
        let mut matcher = StopMatcher::new(vec!["cd".into(), "b".into()]);
        assert_eq!(matcher.push("abcd"), ("a".into(), true));
        let mut matcher = StopMatcher::new(vec!["xyz".into()]);
        assert_eq!(matcher.push("axy"), ("a".into(), false));
        assert_eq!(matcher.finish(), "xy");
    }

    proptest! {
        /// However the text is cut into pieces, what is shown is the text before the first stop string.
        #[test]
        fn pieces_do_not_matter(pieces in prop::collection::vec("[aéb\n]{0,4}", 0..12), stop in "[aéb\n]{1,3}") {
            let text: String = pieces.concat();
            let mut matcher = StopMatcher::new(vec![stop.clone()]);
            let (mut shown, mut stopped) = (String::new(), false);
            for piece in &pieces {
                let (text, hit) = matcher.push(piece);
                shown += &text;
                if hit { stopped = true; break; }
            }
            if !stopped { shown += &matcher.finish(); }
            prop_assert_eq!(stopped, text.contains(&stop));
            prop_assert_eq!(shown.as_str(), text.split(&stop).next().unwrap());
        }
    }
}
