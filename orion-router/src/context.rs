//! A conversation has a thread: a follow-up stays with the model that answered before.

use orion_core::{Candidate, Decision, ModelId, Query, Ranked, Result, Role, Router};

use crate::text::{fold, start_of};

const NAME: &str = "context";

/// Options of a [`ContextRouter`].
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ContextOptions {
    /// How sure the inner router must be to take a follow-up away from its thread's model. Default 0.9.
    pub leave_follow_up: f32,
    /// The same for a prompt that stands on its own. Default 0.5.
    pub leave_other: f32,
    /// How many earlier user turns are read together with a follow-up. Default 2.
    pub turns: usize,
}

impl Default for ContextOptions {
    fn default() -> Self {
        Self { leave_follow_up: 0.9, leave_other: 0.5, turns: 2 }
    }
}

/// Reads a prompt together with the turns before it.
#[derive(Debug)]
pub struct ContextRouter<R> {
    inner: R,
    options: ContextOptions,
}

/// Folded openings of prompts that lean on what was said before.
const OPENINGS: &[&str] = &[
    "and ",
    "and,",
    "also ",
    "but ",
    "or ",
    "so ",
    "then ",
    "now ",
    "again",
    "what about",
    "how about",
    "why not",
    "why?",
    "same ",
    "make it",
    "make that",
    "can you make it",
    "in french",
    "in english",
    "in german",
    "in spanish",
    "in rust",
    "in python",
    "shorter",
    "longer",
    "simpler",
    "more ",
    "another",
    "one more",
    "explain that",
    "explain it",
    "what do you mean",
    "are you sure",
    "go on",
    "continue",
    "keep going",
    "thanks",
    "ok",
    "yes",
    "no,",
    "et ",
    "aussi ",
    "mais ",
    "ou bien",
    "alors ",
    "maintenant",
    "encore",
    "et en ",
    "en anglais",
    "en francais",
    "plus court",
    "plus long",
    "plus simple",
    "un autre",
    "une autre",
    "continue",
    "pourquoi ?",
    "pourquoi?",
    "oui",
    "non,",
    "merci",
    "pareil",
    "la meme chose",
    "explique-le",
    "c'est-a-dire",
];

/// Folded words that point back.
const POINTERS: &[&str] = &["it", "that", "this", "those", "these", "them", "ca", "cela", "celui"];

/// Whether a prompt leans on the turns before it.
#[must_use]
pub fn is_follow_up(prompt: &str) -> bool {
    let folded = fold(start_of(prompt));
    let text = folded.trim();
    let words: Vec<&str> =
        text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect();
    if words.len() > 12 {
        return false;
    }
    let opens = OPENINGS.iter().any(|opening| {
        text.strip_prefix(opening.trim_end())
            .is_some_and(|rest| !rest.starts_with(|c: char| c.is_alphanumeric()))
    });
    let points_back = words.len() <= 8 && words.iter().skip(1).any(|word| POINTERS.contains(word));
    opens || points_back || words.len() <= 2
}

impl<R: Router> ContextRouter<R> {
    /// Wraps a router that looks at prompts alone.
    pub fn new(inner: R, options: ContextOptions) -> Self {
        Self { inner, options }
    }

    fn stay(&self, mut decision: Decision, current: &ModelId, why: &str) -> Decision {
        let top = decision.ranked.first().map_or(0.0, |first| first.score);
        if let Some(at) = decision.ranked.iter().position(|ranked| ranked.model == *current) {
            let mut kept: Ranked = decision.ranked.remove(at);
            kept.score = kept.score.max(top);
            decision.confidence = kept.score.max(1.0 - decision.confidence);
            decision.ranked.insert(0, kept);
            decision.abstained = false;
            decision.reason = format!("{why}, stays with {current} ({})", decision.reason);
            NAME.clone_into(&mut decision.router);
        }
        decision
    }
}

impl<R: Router> Router for ContextRouter<R> {
    fn route(&self, query: &Query<'_>, candidates: &[Candidate<'_>]) -> Result<Decision> {
        let alone = self.inner.route(query, candidates)?;
        let present = |id: &&ModelId| candidates.iter().any(|candidate| candidate.spec.id == **id);
        let current = query.current.filter(present);
        let follow_up = is_follow_up(query.prompt);
        let Some(current) = current else {
            if !follow_up || query.history.is_empty() {
                return Ok(alone);
            }
            // No model to stay with: the earlier turns say what the follow-up is about.
            let mut earlier: Vec<&str> = query
                .history
                .iter()
                .rev()
                .filter(|turn| turn.role == Role::User)
                .take(self.options.turns)
                .map(|turn| start_of(&turn.content))
                .collect();
            earlier.reverse();
            earlier.push(start_of(query.prompt));
            let joined = earlier.join("\n");
            let mut whole = *query;
            whole.prompt = &joined;
            return self.inner.route(&whole, candidates);
        };
        if alone.chosen() == Some(current) {
            return Ok(alone);
        }
        let least = if follow_up { self.options.leave_follow_up } else { self.options.leave_other };
        if !alone.abstained && alone.confidence >= least {
            return Ok(alone);
        }
        let nothing_said = crate::text::unroutable(query.prompt).is_some();
        if nothing_said || (alone.abstained && !follow_up) {
            return Ok(alone);
        }
        let why = if follow_up { "a follow-up" } else { "nothing surer" };
        Ok(self.stay(alone, current, why))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use orion_core::{Message, ModelSpec};

    /// Routes prompts that mention code to `code`, all else to `chat`, with a confidence written in the prompt.
    struct ByWord;

    impl Router for ByWord {
        fn route(&self, query: &Query<'_>, _: &[Candidate<'_>]) -> Result<Decision> {
            let code = if query.prompt.contains("code") { 0.9 } else { 0.2 };
            let ranked = [("code", code), ("chat", 1.0 - code)];
            let ranked = ranked.map(|(id, score)| Ranked { model: id.into(), score }).to_vec();
            let confidence = if query.prompt.contains("surely") { 0.95 } else { 0.6 };
            Ok(Decision::new(ranked, confidence, query.prompt.contains("???"), "by word", "by-word"))
        }
    }

    fn route(prompt: &str, current: Option<&str>, history: &[&str]) -> Option<String> {
        let specs = [ModelSpec::new("code".into(), vec![]), ModelSpec::new("chat".into(), vec![])];
        let candidates: Vec<_> = specs.iter().map(Candidate::new).collect();
        let history: Vec<Message> = history.iter().map(|turn| Message::new(Role::User, *turn)).collect();
        let current = current.map(ModelId::from);
        let mut query = Query::new(prompt);
        query.current = current.as_ref();
        query.history = &history;
        let decision =
            ContextRouter::new(ByWord, ContextOptions::default()).route(&query, &candidates).unwrap();
        decision.chosen().map(ToString::to_string)
    }

    #[test]
    fn follow_ups_are_recognised() {
        for prompt in [
            "and in French?",
            "Et en français ?",
            "Make it shorter",
            "why?",
            "What about the second one?",
            "thanks",
            "Can you translate it?",
            "continue",
            "Plus court s'il te plaît",
            "now with tests",
            "OK",
        ] {
            assert!(is_follow_up(prompt), "{prompt}");
        }
        for prompt in [
            "Write a function that reverses a linked list in Rust",
            "What is the capital of Australia?",
            "Quelle est la capitale de la Norvège aujourd'hui ?",
            "Android or iPhone, which one should a photographer buy this year and why exactly?",
        ] {
            assert!(!is_follow_up(prompt), "{prompt}");
        }
    }

    #[test]
    fn a_follow_up_stays_unless_it_is_surely_something_else() {
        let chosen = |prompt: &str| route(prompt, Some("code"), &["write code"]);
        assert_eq!(chosen("and in French?").as_deref(), Some("code"));
        assert_eq!(chosen("and surely in French?").as_deref(), Some("chat"));
        assert_eq!(chosen("What is the capital of Australia?").as_deref(), Some("chat"));
        assert_eq!(chosen("and ???").as_deref(), Some("code"));
        assert_eq!(chosen("Name the ??? of the river Rhine").as_deref(), None);
        assert_eq!(chosen(""), route("", None, &[]));
    }

    #[test]
    fn without_a_model_to_stay_with_the_earlier_turns_are_read() {
        assert_eq!(route("and shorter?", None, &["write code"]).as_deref(), Some("code"));
        assert_eq!(route("and shorter?", Some("gone"), &["write code"]).as_deref(), Some("code"));
        assert_eq!(route("and shorter?", None, &[]).as_deref(), Some("chat"));
    }
}
