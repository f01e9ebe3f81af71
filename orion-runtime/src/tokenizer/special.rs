//! Cuts special and user-defined tokens out of a text before the rest is tokenised.

use std::ops::Range;

use memchr::memmem::Finder;
use orion_core::TokenId;

use super::vocab::{Attr, Vocab};

/// A stretch of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fragment {
    Token(TokenId),
    Text(Range<usize>),
}

/// Which occurrences of special tokens count.
#[derive(Clone, Copy)]
pub(crate) enum Scope<'a> {
    /// None: only user-defined tokens are cut out.
    UserDefined,
    /// All, except those that cover one of these bytes.
    AllBut(&'a [usize]),
}

/// The tokens to look for, by their first byte and by length.
#[derive(Debug)]
pub(crate) struct SpecialIndex {
    /// Longest first. A token of broken UTF-8 is none of them: in a text it could only be a part of a character.
    tokens: Vec<u32>,
    /// Lengths of the tokens that begin with each byte, longest first.
    lengths: Vec<Vec<usize>>,
}

impl SpecialIndex {
    pub(crate) fn new(vocab: &Vocab) -> Self {
        let wanted = Attr::CONTROL.with(Attr::UNKNOWN).with(Attr::USER_DEFINED);
        let spelled = |&id: &u32| vocab.attr(id).any(wanted) && std::str::from_utf8(vocab.text(id)).is_ok();
        let mut tokens: Vec<u32> = (0..vocab.len() as u32).filter(spelled).collect();
        tokens.sort_by_key(|&id| std::cmp::Reverse(vocab.text(id).len()));
        let mut lengths = vec![Vec::new(); 256];
        for &id in &tokens {
            let text = vocab.text(id);
            let seen: &mut Vec<usize> = &mut lengths[usize::from(text[0])];
            if seen.last() != Some(&text.len()) {
                seen.push(text.len());
            }
        }
        Self { tokens, lengths }
    }

    /// Every place at which a special token is spelled, overlapping ones included.
    pub(crate) fn occurrences<'a>(
        &'a self,
        vocab: &'a Vocab,
        text: &'a str,
    ) -> impl Iterator<Item = (usize, u32)> + 'a {
        let bytes = text.as_bytes();
        bytes.iter().enumerate().flat_map(move |(at, &first)| {
            let lengths = &self.lengths[usize::from(first)];
            let slices = lengths.iter().filter_map(move |&len| bytes.get(at..at + len));
            slices
                .filter_map(|slice| vocab.id(slice))
                .filter(|id| self.holds(vocab, *id))
                .map(move |id| (at, id))
        })
    }

    fn holds(&self, vocab: &Vocab, id: u32) -> bool {
        vocab.attr(id).is_special() || vocab.attr(id).any(Attr::USER_DEFINED)
    }

    /// Cuts `text` at its special tokens: longer ones first, wherever they stand; of equal ones the leftmost.
    pub(crate) fn cut(&self, vocab: &Vocab, text: &str, scope: Scope<'_>) -> Vec<Fragment> {
        let wanted = |id: u32| matches!(scope, Scope::AllBut(_)) || !vocab.attr(id).is_special();
        let mut present = vec![false; vocab.len()];
        let mut any = false;
        for (_, id) in self.occurrences(vocab, text) {
            if wanted(id) {
                present[id as usize] = true;
                any = true;
            }
        }
        let mut fragments = Vec::new();
        if !text.is_empty() {
            fragments.push(Fragment::Text(0..text.len()));
        }
        if any {
            for &id in self.tokens.iter().filter(|&&id| present[id as usize]) {
                fragments = cut_one(vocab, text, id, scope, &fragments);
            }
        }
        fragments
    }
}

fn cut_one(vocab: &Vocab, text: &str, id: u32, scope: Scope<'_>, fragments: &[Fragment]) -> Vec<Fragment> {
    let (needle, attr) = (vocab.text(id), vocab.attr(id));
    let finder = Finder::new(needle);
    let protected = |range: &Range<usize>| match scope {
        Scope::AllBut(plain) if attr.is_special() => {
            let next = plain.partition_point(|&at| at < range.start);
            plain.get(next).is_some_and(|&at| at < range.end)
        }
        _ => false,
    };
    let mut cut = Vec::with_capacity(fragments.len() + 2);
    for fragment in fragments {
        let Fragment::Text(range) = fragment else {
            cut.push(fragment.clone());
            continue;
        };
        let mut rest = range.clone();
        let mut search = rest.start;
        while let Some(found) = finder.find(&text.as_bytes()[search..rest.end]) {
            let hit = search + found..search + found + needle.len();
            if protected(&hit) {
                search = hit.start + 1;
                continue;
            }
            let mut left = rest.start..hit.start;
            if attr.any(Attr::LSTRIP) {
                left.end = left.start + trim_end(&text.as_bytes()[left.clone()]).len();
            }
            if !left.is_empty() {
                cut.push(Fragment::Text(left));
            }
            cut.push(Fragment::Token(TokenId(id)));
            rest.start = hit.end;
            if attr.any(Attr::RSTRIP) {
                rest.start = rest.end - trim_start(&text.as_bytes()[rest.clone()]).len();
            }
            search = rest.start;
        }
        if !rest.is_empty() {
            cut.push(Fragment::Text(rest));
        }
    }
    cut
}

/// `isspace` of the C locale, unlike Rust's with the vertical tab.
fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t'..=b'\r')
}

fn trim_end(bytes: &[u8]) -> &[u8] {
    let kept = bytes.iter().rposition(|&byte| !is_space(byte)).map_or(0, |last| last + 1);
    &bytes[..kept]
}

fn trim_start(bytes: &[u8]) -> &[u8] {
    let skipped = bytes.iter().take_while(|&&byte| is_space(byte)).count();
    &bytes[skipped..]
}
