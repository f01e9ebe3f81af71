//! Keeps special-token strings in messages plain text.
//!
//! Before rendering, a marker that occurs nowhere else is put after the first character of every special-token
//! string in what the caller gave. The template cannot tell them from other text; afterwards the markers are taken
//! out, and where they stood is remembered.

use minijinja::Value;
use minijinja::value::ValueKind;

use crate::tokenizer::Tokenizer;

pub(super) struct Shield {
    marker: char,
}

impl Shield {
    /// Chooses a marker (a Unicode noncharacter) that neither the values nor the template contain.
    pub(super) fn for_values<'v>(values: impl Iterator<Item = &'v Value>, source: &str) -> Self {
        let mut used = Vec::new();
        note_markers(source, &mut used);
        for value in values {
            visit(value, &mut |text| note_markers(text, &mut used));
        }
        let free = MARKERS.clone().find(|marker| !used.contains(marker));
        Self { marker: free.unwrap_or('\u{FDEF}') }
    }

    /// The value with every special-token string in it broken.
    pub(super) fn protect(&self, value: &Value, tokenizer: &Tokenizer) -> Value {
        match value.kind() {
            ValueKind::String => match value.as_str().and_then(|text| self.broken(text, tokenizer)) {
                Some(text) => Value::from(text),
                None => value.clone(),
            },
            ValueKind::Seq => {
                let items = value.try_iter().into_iter().flatten();
                items.map(|item| self.protect(&item, tokenizer)).collect()
            }
            ValueKind::Map => {
                let keys: Vec<Value> = value.try_iter().into_iter().flatten().collect();
                Value::from_pairs(keys.into_iter().map(|key| {
                    let item = value.get_item(&key).unwrap_or_default();
                    (key, self.protect(&item, tokenizer))
                }))
            }
            _ => value.clone(),
        }
    }

    fn broken(&self, text: &str, tokenizer: &Tokenizer) -> Option<String> {
        let starts = tokenizer.control_tokens_in(text);
        let stray = text.contains(self.marker);
        if starts.is_empty() && !stray {
            return None;
        }
        let mut broken = String::with_capacity(text.len() + 3 * starts.len());
        let starts = starts.into_iter().map(|(at, _)| at);
        let mut starts = starts.filter(|&at| text.is_char_boundary(at)).peekable();
        for (at, letter) in text.char_indices() {
            if letter != self.marker {
                broken.push(letter);
            }
            if starts.next_if_eq(&at).is_some() {
                broken.push(self.marker);
                while starts.next_if_eq(&at).is_some() {}
            }
        }
        Some(broken)
    }

    /// The text without markers, and the offset of the character before each of them.
    pub(super) fn lift(&self, rendered: &str) -> (String, Vec<usize>) {
        let mut text = String::with_capacity(rendered.len());
        let mut plain = Vec::new();
        let mut last = 0;
        for letter in rendered.chars() {
            if letter == self.marker {
                plain.push(last);
            } else {
                last = text.len();
                text.push(letter);
            }
        }
        plain.dedup();
        (text, plain)
    }
}

const MARKERS: std::ops::RangeInclusive<char> = '\u{FDD0}'..='\u{FDEF}';

fn note_markers(text: &str, used: &mut Vec<char>) {
    for letter in text.chars().filter(|letter| MARKERS.contains(letter)) {
        if !used.contains(&letter) {
            used.push(letter);
        }
    }
}

/// Shows every text in a value, keys included.
pub(super) fn visit(value: &Value, seen: &mut dyn FnMut(&str)) {
    match value.kind() {
        ValueKind::String => value.as_str().into_iter().for_each(seen),
        ValueKind::Seq => value.try_iter().into_iter().flatten().for_each(|item| visit(&item, seen)),
        ValueKind::Map => {
            for key in value.try_iter().into_iter().flatten() {
                visit(&key, seen);
                visit(&value.get_item(&key).unwrap_or_default(), seen);
            }
        }
        _ => {}
    }
}
