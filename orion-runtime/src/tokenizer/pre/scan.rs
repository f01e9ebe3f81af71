//! A small matcher for the patterns of pre-tokenizers: alternatives of runs of character classes.
//!
//! A general regex engine with back-tracking gives up on, or takes quadratic time over, a megabyte of spaces.
//! These patterns need none: a run is measured once, and whitespace runs are remembered.

use super::super::chars::Char;

type Class = fn(Char) -> bool;

/// One piece of a pattern.
#[derive(Clone, Copy)]
pub(super) enum Item {
    /// `class{min,max}`, greedy, giving back what the rest of the pattern needs.
    Run { class: Class, min: usize, max: usize },
    /// An optional `'s`, `'t`, `'re`, `'ve`, `'m`, `'ll` or `'d` in either case; the last piece of its pattern.
    OptionalContraction,
}

/// One alternative of a pattern.
#[derive(Clone, Copy)]
pub(super) enum Alternative {
    /// Pieces one after the other.
    Sequence(&'static [Item]),
    /// `'s|'t|'re|'ve|'m|'ll|'d`
    Contraction(Case),
    /// `\s*[\r\n]+`
    SpaceToNewline,
    /// `\s{min,max}(?!\S)`
    SpaceNotBeforeText { min: usize, max: usize },
    /// `(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+` after an optional character that is no letter, number or newline.
    SpacedWords,
}

/// Whether contractions are found in capitals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Case {
    Lower,
    Any,
}

/// One pass over the words found so far; each word is cut further.
#[derive(Clone, Copy)]
pub(super) enum Stage {
    /// Every match is a word, and so is what lies between two matches. The first alternative that matches wins.
    Split(&'static [Alternative]),
    /// Digits in threes, counted from the right; what precedes the digits stays with the first group.
    Thousands,
    /// The same for ASCII digits, which are cut off from what precedes them.
    AsciiThousands,
    /// Whitespace at the end of a word is cut off.
    TrailingSpace,
}

pub(super) const fn one(class: Class) -> Item {
    Item::Run { class, min: 1, max: 1 }
}

pub(super) const fn optional(class: Class) -> Item {
    Item::Run { class, min: 0, max: 1 }
}

pub(super) const fn many(class: Class) -> Item {
    Item::Run { class, min: 1, max: usize::MAX }
}

pub(super) const fn any(class: Class) -> Item {
    Item::Run { class, min: 0, max: usize::MAX }
}

pub(super) const fn up_to(max: usize, class: Class) -> Item {
    Item::Run { class, min: 1, max }
}

/// The run of whitespace last looked at.
#[derive(Clone, Copy, Default)]
struct SpaceRun {
    start: usize,
    end: usize,
    after_last_newline: usize,
}

/// A word, and what is known of its whitespace.
struct Scanner<'a> {
    word: &'a [Char],
    space: SpaceRun,
}

/// Cuts each word (given by its end; the first begins at 0) by `stage`.
pub(super) fn run(stage: Stage, chars: &[Char], ends: &[usize]) -> Vec<usize> {
    let mut cut = Vec::with_capacity(ends.len());
    let mut start = 0;
    for &end in ends {
        let word = &chars[start..end];
        match stage {
            Stage::Split(alternatives) => split(word, alternatives, |at| cut.push(start + at)),
            Stage::Thousands => thousands(word, |at| cut.push(start + at)),
            Stage::AsciiThousands => ascii_thousands(word, |at| cut.push(start + at)),
            Stage::TrailingSpace => {
                let text = word.iter().rposition(|c| !c.is_space()).map_or(0, |last| last + 1);
                if text > 0 {
                    cut.push(start + text);
                }
            }
        }
        if cut.last() != Some(&end) {
            cut.push(end);
        }
        start = end;
    }
    cut
}

fn split(word: &[Char], alternatives: &[Alternative], mut cut: impl FnMut(usize)) {
    let mut scanner = Scanner { word, space: SpaceRun::default() };
    let (mut done, mut at) = (0, 0);
    while at < word.len() {
        let end = alternatives.iter().find_map(|&a| scanner.find(a, at).filter(|&end| end > at));
        let Some(end) = end else {
            at += 1;
            continue;
        };
        if at > done {
            cut(at);
        }
        cut(end);
        (done, at) = (end, end);
    }
}

impl Scanner<'_> {
    /// Where `alternative` ends if it matches at `at`.
    fn find(&mut self, alternative: Alternative, at: usize) -> Option<usize> {
        match alternative {
            Alternative::Sequence(items) => sequence(self.word, items, at),
            Alternative::Contraction(case) => contraction(self.word, at, case),
            Alternative::SpaceToNewline => {
                let run = self.space_run(at)?;
                (run.after_last_newline > at).then_some(run.after_last_newline)
            }
            Alternative::SpaceNotBeforeText { min, max } => {
                let run = self.space_run(at)?;
                let mut length = (run.end - at).min(max);
                if at + length == run.end && run.end < self.word.len() {
                    length -= 1;
                }
                (length >= min).then_some(at + length)
            }
            Alternative::SpacedWords => spaced_words(self.word, at),
        }
    }

    /// The whitespace around `at`, measured once however often it is asked for.
    fn space_run(&mut self, at: usize) -> Option<SpaceRun> {
        if !self.word[at].is_space() {
            return None;
        }
        if !(self.space.start..self.space.end).contains(&at) {
            let length = self.word[at..].iter().take_while(|c| c.is_space()).count();
            let run = &self.word[at..at + length];
            let after_last_newline = run.iter().rposition(|c| c.is_newline()).map_or(0, |last| at + last + 1);
            self.space = SpaceRun { start: at, end: at + length, after_last_newline };
        }
        Some(self.space)
    }
}

fn sequence(word: &[Char], items: &[Item], at: usize) -> Option<usize> {
    let Some((&first, rest)) = items.split_first() else {
        return Some(at);
    };
    match first {
        Item::OptionalContraction => Some(contraction(word, at, Case::Any).unwrap_or(at)),
        Item::Run { class, min, max } => {
            let longest = word[at..].iter().take(max).take_while(|&&c| class(c)).count();
            if rest.is_empty() {
                return (longest >= min).then_some(at + longest);
            }
            (min..=longest).rev().find_map(|length| sequence(word, rest, at + length))
        }
    }
}

fn contraction(word: &[Char], at: usize, case: Case) -> Option<usize> {
    let letter = |offset: usize| {
        let letter = word.get(at + offset)?.char();
        Some(if case == Case::Any { letter.to_ascii_lowercase() } else { letter })
    };
    if letter(0) != Some('\'') {
        return None;
    }
    match (letter(1)?, letter(2)) {
        ('s' | 't' | 'm' | 'd', _) => Some(at + 2),
        ('r' | 'v', Some('e')) | ('l', Some('l')) => Some(at + 3),
        _ => None,
    }
}

fn spaced_words(word: &[Char], at: usize) -> Option<usize> {
    let letter = |at: usize| word.get(at).is_some_and(|c| c.is_letter());
    let first = word[at];
    let lead = !(first.is_newline() || first.is_letter() || first.is_number());
    let mut end = at + usize::from(lead);
    if !letter(end) {
        return None;
    }
    loop {
        if letter(end) {
            end += 1;
        } else if word.get(end).is_some_and(|c| c.is(' ')) && letter(end + 1) {
            end += 2;
        } else {
            return Some(end);
        }
        end += word[end..].iter().take_while(|c| c.is_mark()).count();
    }
}

fn thousands(word: &[Char], mut cut: impl FnMut(usize)) {
    let mut at = 0;
    while at < word.len() {
        let digits = word[at..].iter().take_while(|c| c.is_number()).count();
        if digits == 0 {
            at += 1;
            continue;
        }
        for left in (0..digits).rev().filter(|left| left % 3 == 0) {
            cut(at + digits - left);
        }
        at += digits;
    }
}

fn ascii_thousands(word: &[Char], mut cut: impl FnMut(usize)) {
    let digit = |c: &&Char| c.char().is_ascii_digit();
    let mut at = 0;
    while at < word.len() {
        let digits = word[at..].iter().take_while(digit).count();
        for left in (1..=digits).rev().filter(|left| left % 3 == 0) {
            let here = at + digits - left;
            if here > 0 {
                cut(here);
            }
        }
        at += digits.max(1);
    }
}
