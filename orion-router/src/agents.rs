//! The registry's own agents: prompts each of them should answer, in English and French.

use crate::data::{Example, parse_examples};

const ENGLISH: &str = include_str!("../data/agents.en.csv");
const FRENCH: &str = include_str!("../data/agents.fr.csv");

/// Training prompts of the six agents: `conversation`, `code`, `reasoning`, `creative`, `translation`, `summary`.
#[must_use]
pub fn agent_examples() -> Vec<Example> {
    let parse = |text| parse_examples(text).expect("the files are part of the crate and tested");
    let mut examples = parse(ENGLISH);
    examples.extend(parse(FRENCH));
    examples
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{BTreeMap, BTreeSet};

    #[test]
    fn every_agent_has_sixty_distinct_prompts_in_each_language() {
        for (name, text) in [("en", ENGLISH), ("fr", FRENCH)] {
            let mut prompts: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
            for example in parse_examples(text).unwrap() {
                let fresh =
                    prompts.entry(example.label).or_default().insert(crate::text::fold(&example.text));
                assert!(fresh, "twice in {name}: {}", example.text);
            }
            let agents: Vec<&str> = prompts.keys().map(String::as_str).collect();
            assert_eq!(agents, ["code", "conversation", "creative", "reasoning", "summary", "translation"]);
            for (agent, prompts) in &prompts {
                assert!(prompts.len() >= 60, "{agent} has {} prompts in {name}", prompts.len());
            }
        }
        assert!(agent_examples().len() >= 720);
    }
}
