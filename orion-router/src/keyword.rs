//! Routing by rules: words, patterns, languages, priorities.

use aho_corasick::{AhoCorasick, MatchKind};
use orion_core::{Candidate, Decision, Error, ModelId, ModelSpec, Query, Ranked, Result, Router};
use regex::RegexSet;

use crate::guard;
use crate::text::{fold, language_of_folded, start_of};

const NAME: &str = "keyword";

/// What points to a model.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct KeywordRule {
    /// The model.
    pub model: ModelId,
    /// Words and phrases, compared without case and accents, whole words only.
    pub words: Vec<String>,
    /// Regular expressions over the prompt as it was written. They run in linear time.
    pub patterns: Vec<String>,
    /// Languages of the prompt the rule applies to; empty for all.
    pub languages: Vec<String>,
    /// A matching rule of higher priority wins over any number of matches of a lower one.
    pub priority: i32,
}

impl KeywordRule {
    /// A rule of words.
    pub fn new<W: Into<String>>(model: impl Into<ModelId>, words: impl IntoIterator<Item = W>) -> Self {
        Self {
            model: model.into(),
            words: words.into_iter().map(Into::into).collect(),
            patterns: Vec::new(),
            languages: Vec::new(),
            priority: 0,
        }
    }

    /// Adds a regular expression.
    #[must_use]
    pub fn pattern(mut self, pattern: impl Into<String>) -> Self {
        self.patterns.push(pattern.into());
        self
    }

    /// Restricts the rule to prompts in a language (ISO 639-1).
    #[must_use]
    pub fn language(mut self, language: impl Into<String>) -> Self {
        self.languages.push(language.into());
        self
    }

    /// Sets the priority.
    #[must_use]
    pub fn priority(mut self, priority: i32) -> Self {
        self.priority = priority;
        self
    }
}

/// Routes by the rules of the registry. Deterministic, a few microseconds for a prompt of ordinary length; of a
/// long one the first 8 KiB count.
#[derive(Debug)]
pub struct KeywordRouter {
    rules: Vec<KeywordRule>,
    words: AhoCorasick,
    word_rule: Vec<usize>,
    patterns: RegexSet,
    pattern_rule: Vec<usize>,
}

impl KeywordRouter {
    /// A router of rules.
    ///
    /// # Errors
    /// [`InvalidInput`](orion_core::ErrorKind::InvalidInput) for a pattern that does not parse or is too large,
    /// and for an empty word.
    pub fn new(rules: Vec<KeywordRule>) -> Result<Self> {
        let (mut words, mut word_rule) = (Vec::new(), Vec::new());
        let (mut patterns, mut pattern_rule) = (Vec::new(), Vec::new());
        for (at, rule) in rules.iter().enumerate() {
            for word in &rule.words {
                let folded = fold(word.trim());
                if folded.is_empty() {
                    return Err(Error::invalid("a keyword is empty").about(format!("model {}", rule.model)));
                }
                words.push(folded);
                word_rule.push(at);
            }
            for pattern in &rule.patterns {
                regex::RegexBuilder::new(pattern).size_limit(1 << 20).build().map_err(|error| {
                    Error::invalid(error.to_string())
                        .about(format!("pattern {pattern:?}"))
                        .about(format!("model {}", rule.model))
                })?;
                patterns.push(pattern.as_str());
                pattern_rule.push(at);
            }
        }
        let words = AhoCorasick::builder()
            .match_kind(MatchKind::Standard)
            .build(&words)
            .map_err(|error| Error::invalid(error.to_string()).about("keywords").with_source(error))?;
        let patterns = RegexSet::new(&patterns)
            .map_err(|error| Error::invalid(error.to_string()).about("patterns").with_source(error))?;
        Ok(Self { rules, words, word_rule, patterns, pattern_rule })
    }

    /// The rules the models of a registry carry: their keywords, with the model's priority. A keyword between
    /// slashes (`/\bfn \w+\(/`) is a pattern.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn from_specs<'a>(specs: impl IntoIterator<Item = &'a ModelSpec>) -> Result<Self> {
        let rule = |spec: &ModelSpec| {
            let is_pattern = |word: &&String| word.len() > 2 && word.starts_with('/') && word.ends_with('/');
            let words = spec.keywords.iter().filter(|word| !is_pattern(word)).cloned();
            let mut rule = KeywordRule::new(spec.id.clone(), words).priority(spec.priority);
            let patterns = spec.keywords.iter().filter(is_pattern);
            rule.patterns.extend(patterns.map(|word| word[1..word.len() - 1].to_owned()));
            rule
        };
        Self::new(specs.into_iter().map(rule).collect())
    }

    /// Per rule the matches in a prompt: how many distinct ones, and the first.
    fn matches(&self, prompt: &str) -> Vec<(u32, Option<String>)> {
        let prompt = start_of(prompt);
        let folded = fold(prompt);
        let bytes = folded.as_bytes();
        let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80;
        let mut seen = vec![false; self.word_rule.len()];
        let mut found = vec![(0, None); self.rules.len()];
        for hit in self.words.find_overlapping_iter(&folded) {
            let (start, end) = (hit.start(), hit.end());
            let inside_before = start > 0 && is_word(bytes[start - 1]) && is_word(bytes[start]);
            let inside_after = end < bytes.len() && is_word(bytes[end]) && is_word(bytes[end - 1]);
            let word = hit.pattern().as_usize();
            if inside_before || inside_after || std::mem::replace(&mut seen[word], true) {
                continue;
            }
            let entry = &mut found[self.word_rule[word]];
            entry.0 += 1;
            entry.1.get_or_insert_with(|| format!("the word {:?}", &folded[start..end]));
        }
        for pattern in self.patterns.matches(prompt) {
            let entry = &mut found[self.pattern_rule[pattern]];
            entry.0 += 1;
            entry.1.get_or_insert_with(|| format!("the pattern /{}/", self.patterns.patterns()[pattern]));
        }
        if self.rules.iter().any(|rule| !rule.languages.is_empty()) {
            let language = language_of_folded(&folded);
            for (rule, entry) in self.rules.iter().zip(&mut found) {
                let spoken = |known: &String| Some(known.as_str()) == language;
                if !rule.languages.is_empty() && !rule.languages.iter().any(spoken) {
                    *entry = (0, None);
                } else if !rule.languages.is_empty() && rule.words.is_empty() && rule.patterns.is_empty() {
                    *entry = (1, language.map(|code| format!("the language {code}")));
                }
            }
        }
        found
    }
}

impl Router for KeywordRouter {
    fn route(&self, query: &Query<'_>, candidates: &[Candidate<'_>]) -> Result<Decision> {
        if let Some(abstained) = guard(query, candidates, NAME)? {
            return Ok(abstained);
        }
        let found = self.matches(query.prompt);
        let best_of = |candidate: &Candidate<'_>| {
            let rules = self
                .rules
                .iter()
                .zip(&found)
                .filter(|(rule, (hits, _))| rule.model == candidate.spec.id && *hits > 0);
            rules.fold((i32::MIN, 0, None), |best: (i32, u32, Option<&String>), (rule, (hits, why))| {
                match rule.priority.cmp(&best.0) {
                    std::cmp::Ordering::Greater => (rule.priority, *hits, why.as_ref()),
                    std::cmp::Ordering::Equal => (best.0, best.1 + hits, best.2.or(why.as_ref())),
                    std::cmp::Ordering::Less => best,
                }
            })
        };
        let matched: Vec<_> = candidates.iter().map(best_of).collect();
        let top = matched.iter().map(|found| found.0).max().unwrap_or(i32::MIN);
        let evidence = |found: &(i32, u32, Option<&String>)| if found.0 == top { found.1 } else { 0 };
        let total: u32 = matched.iter().map(evidence).sum();
        if total == 0 {
            let ranked = candidates.iter().map(|c| Ranked { model: c.spec.id.clone(), score: 0.0 }).collect();
            return Ok(Decision::new(ranked, 0.0, true, "no keyword rule matched", NAME));
        }
        // The share of the evidence, held back while there is little of it: one match alone is worth 0.75.
        let score = |found: &(i32, u32, Option<&String>)| {
            let hits = evidence(found);
            hits as f32 / total as f32 * (1.0 - 0.25_f32.powi(i32::try_from(hits).unwrap_or(i32::MAX)))
        };
        let ranked: Vec<Ranked> = candidates
            .iter()
            .zip(&matched)
            .map(|(c, found)| Ranked { model: c.spec.id.clone(), score: score(found) })
            .collect();
        let mut decision = Decision::new(ranked, 0.0, false, "", NAME);
        let first = decision.ranked[0].model.clone();
        let at = candidates.iter().position(|c| c.spec.id == first).unwrap_or(0);
        let why = matched[at].2.map_or("a rule", String::as_str);
        decision.confidence = decision.ranked[0].score;
        let tied = decision.ranked.get(1).is_some_and(|next| next.score >= decision.confidence);
        decision.abstained = tied;
        decision.reason = if tied {
            format!("{why} and rules of {} match equally", decision.ranked[1].model)
        } else {
            format!("{why} points to {first}")
        };
        Ok(decision)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use orion_core::ErrorKind;

    fn specs() -> Vec<ModelSpec> {
        let spec = |id: &str, words: &[&str]| {
            let mut spec = ModelSpec::new(id.into(), Vec::new());
            spec.keywords = words.iter().map(|&word| word.to_owned()).collect();
            spec
        };
        vec![
            spec("code", &["rust", "python", "c++", "code review", "/\\bfn \\w+\\(/"]),
            spec("translate", &["traduis", "translate", "en français"]),
            spec("chat", &["hello"]),
        ]
    }

    fn route(router: &KeywordRouter, prompt: &str) -> Decision {
        let specs = specs();
        let candidates: Vec<_> = specs.iter().map(Candidate::new).collect();
        router.route(&Query::new(prompt), &candidates).unwrap()
    }

    #[test]
    fn whole_words_match_without_case_and_accents() {
        let router = KeywordRouter::from_specs(&specs()).unwrap();
        for (prompt, want) in [
            ("Is Rust faster?", Some("code")),
            ("I trust you", None),
            ("rusty", None),
            ("C++ or not", Some("code")),
            ("Dis bonjour EN FRANCAIS", Some("translate")),
            ("a code review, please", Some("code")),
            ("fn main() {}", Some("code")),
            ("nothing here", None),
            ("rust or translate", None),
            ("rust, python or translate", Some("code")),
            ("", None),
            ("rrrrrrrrr", None),
        ] {
            assert_eq!(route(&router, prompt).chosen().map(ModelId::as_str), want, "{prompt}");
        }
        let decision = route(&router, "Is Rust faster?");
        assert_eq!(decision.reason, "the word \"rust\" points to code");
        assert_eq!((decision.confidence, decision.ranked.len()), (0.75, 3));
    }

    #[test]
    fn priority_beats_the_number_of_matches() {
        let rules = vec![
            KeywordRule::new("code", ["rust", "python"]),
            KeywordRule::new("chat", ["hello"]).priority(5),
        ];
        let router = KeywordRouter::new(rules).unwrap();
        assert_eq!(route(&router, "hello rust python").chosen().unwrap().as_str(), "chat");
    }

    #[test]
    fn a_rule_can_speak_for_a_language() {
        let rules = vec![
            KeywordRule::new("translate", Vec::<String>::new()).language("fr"),
            KeywordRule::new("code", ["rust"]).language("en"),
        ];
        let router = KeywordRouter::new(rules).unwrap();
        assert_eq!(route(&router, "quel temps fait-il dans le sud").chosen().unwrap().as_str(), "translate");
        assert_eq!(route(&router, "what is rust").chosen().unwrap().as_str(), "code");
        assert_eq!(route(&router, "was ist rust und das").chosen(), None);
    }

    #[test]
    fn bad_rules_and_no_candidates_are_refused() {
        for rule in [
            KeywordRule::new("m", [" "]),
            KeywordRule::new("m", Vec::<String>::new()).pattern("("),
            KeywordRule::new("m", Vec::<String>::new()).pattern("(a{1000}){1000}"),
        ] {
            assert_eq!(KeywordRouter::new(vec![rule]).unwrap_err().kind(), ErrorKind::InvalidInput);
        }
        let router = KeywordRouter::from_specs(&specs()).unwrap();
        let error = router.route(&Query::new("rust"), &[]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
}
