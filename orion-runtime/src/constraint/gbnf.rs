//! llama.cpp's grammar notation (GBNF), written as the parser reads it.
//!
//! A rule of GBNF is about characters. The parser's terminals are cut greedily, so that terminals longer than one
//! character could swallow what a later rule asks for. Each terminal is therefore one character, but for runs of a class
//! that what follows them cannot continue: `[^"]* "\""` needs no decision, and is fast in one piece.

use std::collections::HashMap;
use std::fmt::Write as _;

use orion_core::{Error, Result};

/// Deepest nesting of groups.
const MAX_DEPTH: usize = 64;
/// Largest number of repetitions.
const MAX_REPEAT: u32 = 2000;

/// A set of characters as ascending, disjoint, inclusive ranges of code points.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Class(Vec<(u32, u32)>);

impl Class {
    const ALL: (u32, u32) = (0, 0x10_ffff);

    fn new(mut ranges: Vec<(u32, u32)>) -> Self {
        ranges.sort_unstable();
        let mut merged: Vec<(u32, u32)> = Vec::new();
        for (from, to) in ranges {
            match merged.last_mut() {
                Some(last) if from <= last.1.saturating_add(1) => last.1 = last.1.max(to),
                _ => merged.push((from, to)),
            }
        }
        Self(merged)
    }

    fn negated(&self) -> Self {
        let mut next = Self::ALL.0;
        let mut ranges = Vec::new();
        for &(from, to) in &self.0 {
            if from > next {
                ranges.push((next, from - 1));
            }
            next = to + 1;
        }
        if next <= Self::ALL.1 {
            ranges.push((next, Self::ALL.1));
        }
        Self(ranges)
    }

    fn meets(&self, other: &Self) -> bool {
        self.0.iter().any(|a| other.0.iter().any(|b| a.0 <= b.1 && b.0 <= a.1))
    }

    /// As a class of a regular expression. Surrogates are no characters and are left out.
    fn write(&self, out: &mut String) {
        out.push('[');
        for &(from, to) in &self.0 {
            for (from, to) in [(from, to.min(0xd7ff)), (from.max(0xe000), to)] {
                if from <= to {
                    let _ = write!(out, "\\u{{{from:x}}}-\\u{{{to:x}}}");
                }
            }
        }
        out.push(']');
    }

    fn is_empty(&self) -> bool {
        self.0.iter().all(|&(from, to)| from >= 0xd800 && to <= 0xdfff)
    }
}

#[derive(Debug)]
enum Symbol {
    Class(Class),
    Rule(String),
    Group(Vec<Vec<Item>>),
}

#[derive(Debug)]
struct Item {
    symbol: Symbol,
    least: u32,
    most: Option<u32>,
}

impl Item {
    fn once(symbol: Symbol) -> Self {
        Self { symbol, least: 1, most: Some(1) }
    }
}

/// The grammar in Lark's notation, with `start` for GBNF's `root`.
///
/// # Errors
/// [`InvalidInput`](orion_core::ErrorKind::InvalidInput) with the line of what is wrong.
pub(super) fn to_lark(text: &str) -> Result<String> {
    let rules = Parser { text, at: 0, depth: 0 }.rules()?;
    let numbers: HashMap<&str, usize> =
        rules.iter().enumerate().map(|(number, (name, _))| (name.as_str(), number)).collect();
    if numbers.len() < rules.len() {
        let twice = rules.iter().enumerate().find(|(number, (name, _))| numbers[name.as_str()] != *number);
        let name = twice.map_or("", |(_, (name, _))| name);
        return Err(Error::invalid(format!("the rule {name:?} is given twice")));
    }
    let Some(root) = numbers.get("root") else {
        return Err(Error::invalid("has no rule \"root\", where it begins"));
    };
    let mut out = format!("start: r{root}\n");
    for (number, (_, choices)) in rules.iter().enumerate() {
        let _ = write!(out, "r{number}: ");
        write_choices(choices, &numbers, &mut out)?;
        out.push('\n');
    }
    Ok(out)
}

fn write_choices(choices: &[Vec<Item>], numbers: &HashMap<&str, usize>, out: &mut String) -> Result<()> {
    for (at, sequence) in choices.iter().enumerate() {
        if at > 0 {
            out.push_str(" | ");
        }
        if sequence.is_empty() {
            out.push_str("\"\"");
        }
        for (place, item) in sequence.iter().enumerate() {
            if place > 0 {
                out.push(' ');
            }
            match &item.symbol {
                Symbol::Class(class) => {
                    if class.is_empty() {
                        return Err(Error::invalid("a class holds no character"));
                    }
                    let next = sequence.get(place + 1);
                    let ends = matches!(next, Some(Item { symbol: Symbol::Class(next), least: 1.., .. }) if !next.meets(class));
                    let whole = ends && (item.least, item.most) != (1, Some(1));
                    out.push('/');
                    class.write(out);
                    if whole {
                        // A terminal is never empty.
                        repeat(item.least.max(1), item.most, out);
                    }
                    out.push('/');
                    match whole {
                        true if item.least == 0 => out.push('?'),
                        true => {}
                        false => repeat(item.least, item.most, out),
                    }
                }
                Symbol::Rule(name) => {
                    let number = numbers.get(name.as_str());
                    let number =
                        number.ok_or_else(|| Error::invalid(format!("there is no rule {name:?}")))?;
                    let _ = write!(out, "r{number}");
                    repeat(item.least, item.most, out);
                }
                Symbol::Group(choices) => {
                    out.push('(');
                    write_choices(choices, numbers, out)?;
                    out.push(')');
                    repeat(item.least, item.most, out);
                }
            }
        }
    }
    Ok(())
}

fn repeat(least: u32, most: Option<u32>, out: &mut String) {
    match (least, most) {
        (1, Some(1)) => {}
        (0, Some(1)) => out.push('?'),
        (0, None) => out.push('*'),
        (1, None) => out.push('+'),
        (least, None) => drop(write!(out, "{{{least},}}")),
        (least, Some(most)) => drop(write!(out, "{{{least},{most}}}")),
    }
}

struct Parser<'t> {
    text: &'t str,
    at: usize,
    depth: usize,
}

impl Parser<'_> {
    fn wrong<T>(&self, message: impl std::fmt::Display) -> Result<T> {
        let line = self.text[..self.at].matches('\n').count() + 1;
        Err(Error::invalid(format!("line {line}: {message}")))
    }

    fn peek(&self) -> Option<char> {
        self.text[self.at..].chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let next = self.peek()?;
        self.at += next.len_utf8();
        Some(next)
    }

    fn take(&mut self, text: &str) -> bool {
        let found = self.text[self.at..].starts_with(text);
        self.at += if found { text.len() } else { 0 };
        found
    }

    /// Skips blanks and comments; line ends only where the rule goes on.
    fn blank(&mut self, lines: bool) {
        while let Some(next) = self.peek() {
            match next {
                ' ' | '\t' => {}
                '\r' | '\n' if lines => {}
                '#' => {
                    while self.peek().is_some_and(|next| next != '\n') {
                        self.next();
                    }
                    continue;
                }
                _ => return,
            }
            self.next();
        }
    }

    fn name(&mut self) -> Option<String> {
        let rest = &self.text[self.at..];
        let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '-' || c == '_'));
        let name = &rest[..end.unwrap_or(rest.len())];
        self.at += name.len();
        (!name.is_empty()).then(|| name.to_owned())
    }

    fn rules(mut self) -> Result<Vec<(String, Vec<Vec<Item>>)>> {
        let mut rules = Vec::new();
        loop {
            self.blank(true);
            if self.peek().is_none() {
                return Ok(rules);
            }
            let Some(name) = self.name() else { return self.wrong("the name of a rule was expected") };
            self.blank(false);
            if !self.take("::=") {
                return self.wrong(format_args!("\"::=\" was expected after {name:?}"));
            }
            self.blank(true);
            let choices = self.choices(false)?;
            match self.peek() {
                None | Some('\n' | '\r') => rules.push((name, choices)),
                Some(other) => return self.wrong(format_args!("{other:?} was not expected here")),
            }
        }
    }

    fn choices(&mut self, nested: bool) -> Result<Vec<Vec<Item>>> {
        let mut choices = vec![self.sequence(nested)?];
        while self.take("|") {
            self.blank(true);
            choices.push(self.sequence(nested)?);
        }
        Ok(choices)
    }

    fn sequence(&mut self, nested: bool) -> Result<Vec<Item>> {
        let mut items: Vec<Item> = Vec::new();
        loop {
            let from = items.len();
            match self.peek() {
                Some('"') => {
                    self.next();
                    for code in self.literal()? {
                        items.push(Item::once(Symbol::Class(Class(vec![(code, code)]))));
                    }
                    // Repetition is about the whole of it.
                    if items.len() != from + 1 && self.repeats() {
                        let all = items.drain(from..).collect();
                        items.push(Item::once(Symbol::Group(vec![all])));
                    }
                }
                Some('[') => {
                    self.next();
                    items.push(Item::once(Symbol::Class(self.class()?)));
                }
                Some('.') => {
                    self.next();
                    items.push(Item::once(Symbol::Class(Class(vec![Class::ALL]))));
                }
                Some('(') => {
                    self.next();
                    self.depth += 1;
                    if self.depth > MAX_DEPTH {
                        return self.wrong(format_args!("groups are nested deeper than {MAX_DEPTH}"));
                    }
                    self.blank(true);
                    let choices = self.choices(true)?;
                    if !self.take(")") {
                        return self.wrong("a group is not closed");
                    }
                    self.depth -= 1;
                    items.push(Item::once(Symbol::Group(choices)));
                }
                Some('<') => return self.wrong("tokens by name (<…>) are not supported; write their text"),
                Some(c) if c.is_ascii_alphanumeric() || c == '_' || c == '-' => {
                    // A name before "::=" begins the next rule.
                    let name = self.name().unwrap_or_default();
                    items.push(Item::once(Symbol::Rule(name)));
                }
                _ => return Ok(items),
            }
            self.repetition(&mut items, from)?;
            self.blank(nested);
        }
    }

    fn repeats(&self) -> bool {
        let rest = self.text[self.at..].trim_start_matches([' ', '\t']);
        rest.starts_with(['*', '+', '?', '{'])
    }

    fn repetition(&mut self, items: &mut [Item], from: usize) -> Result<()> {
        if !self.repeats() {
            return Ok(());
        }
        self.blank(false);
        let (least, most) = match self.next() {
            Some('*') => (0, None),
            Some('+') => (1, None),
            Some('?') => (0, Some(1)),
            _ => self.bounds()?,
        };
        let Some(item) = items.get_mut(from) else { return Ok(()) }; // nothing is repeated
        (item.least, item.most) = (least, most);
        match self.repeats() {
            true => self.wrong("a repetition is repeated; put it into a group"),
            false => Ok(()),
        }
    }

    /// `n}`, `n,}`, `,m}` or `n,m}`.
    fn bounds(&mut self) -> Result<(u32, Option<u32>)> {
        let Some(end) = self.text[self.at..].find('}') else { return self.wrong("\"{\" is not closed") };
        let inside = self.text[self.at..self.at + end].replace([' ', '\t'], "");
        let number = |text: &str| text.parse::<u32>().ok().filter(|&count| count <= MAX_REPEAT);
        let bounds = match inside.split_once(',') {
            None => number(&inside).map(|count| (count, Some(count))),
            Some(("", most)) => number(most).map(|most| (0, Some(most))),
            Some((least, "")) => number(least).map(|least| (least, None)),
            Some((least, most)) => number(least).zip(number(most)).map(|(least, most)| (least, Some(most))),
        };
        match bounds.filter(|(least, most)| most.is_none_or(|most| *least <= most && most > 0)) {
            Some(bounds) => {
                self.at += end + 1;
                Ok(bounds)
            }
            None => self.wrong(format_args!("{{{inside}}} is no repetition of up to {MAX_REPEAT}")),
        }
    }

    fn literal(&mut self) -> Result<Vec<u32>> {
        let mut codes = Vec::new();
        loop {
            match self.next() {
                Some('"') => return Ok(codes),
                None | Some('\n') => return self.wrong("a text is not closed"),
                Some(c) => codes.push(self.character(c)?),
            }
        }
    }

    fn class(&mut self) -> Result<Class> {
        let negated = self.take("^");
        let mut ranges = Vec::new();
        loop {
            match self.next() {
                Some(']') => break,
                None | Some('\n') => return self.wrong("a class is not closed"),
                Some(c) => {
                    let from = self.character(c)?;
                    let rest = &self.text[self.at..];
                    let to = if rest.starts_with('-') && !rest.starts_with("-]") {
                        self.next();
                        match self.next() {
                            None | Some('\n') => return self.wrong("a class is not closed"),
                            Some(c) => self.character(c)?,
                        }
                    } else {
                        from
                    };
                    if to < from {
                        return self.wrong("a range runs backwards");
                    }
                    ranges.push((from, to));
                }
            }
        }
        let class = Class::new(ranges);
        Ok(if negated { class.negated() } else { class })
    }

    /// The character that begins with `c`, which may be an escape.
    fn character(&mut self, c: char) -> Result<u32> {
        if c != '\\' {
            return Ok(c.into());
        }
        let digits = match self.next() {
            Some('n') => return Ok('\n'.into()),
            Some('r') => return Ok('\r'.into()),
            Some('t') => return Ok('\t'.into()),
            Some(c @ ('\\' | '"' | '[' | ']' | '-' | '^' | '/' | '\'')) => return Ok(c.into()),
            Some('x') => 2,
            Some('u') => 4,
            Some('U') => 8,
            _ => {
                return self.wrong(
                    "unknown escape; known are \\n \\r \\t \\\\ \\\" \\[ \\] \\xHH \\uHHHH \\UHHHHHHHH",
                );
            }
        };
        let code = self.text.get(self.at..self.at + digits).and_then(|hex| u32::from_str_radix(hex, 16).ok());
        match code.filter(|code| char::from_u32(*code).is_some()) {
            Some(code) => {
                self.at += digits;
                Ok(code)
            }
            None => self.wrong(format_args!("{digits} hexadecimal digits of a character were expected")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lark(text: &str) -> String {
        to_lark(text).unwrap()
    }

    #[test]
    fn every_construct_is_written_down() {
        assert_eq!(lark("root ::= \"a\""), "start: r0\nr0: /[\\u{61}-\\u{61}]/\n");
        assert_eq!(
            lark(
                "# first\nroot ::= item{2,3} | (\n  x-y?\n  | \"\"\n)+ # last\nx-y ::= [b-dA]\nitem ::= x-y \"b\"\n"
            ),
            "start: r0\nr0: r2{2,3} | (r1? | \"\")+\nr1: /[\\u{41}-\\u{41}\\u{62}-\\u{64}]/\nr2: r1 /[\\u{62}-\\u{62}]/\n"
        );
        // A repeated text repeats as a whole.
        assert_eq!(lark("root ::= \"ab\"*"), "start: r0\nr0: (/[\\u{61}-\\u{61}]/ /[\\u{62}-\\u{62}]/)*\n");
    }

    #[test]
    fn runs_become_one_terminal_only_where_what_follows_cannot_continue_them() {
        let run = |text: &str| lark(text).contains("]+/") || lark(text).contains("]*/");
        assert!(run("root ::= [^\"]* \"\\\"\""));
        assert!(!run("root ::= [a-z]* \"b\""));
        assert!(!run("root ::= [a-z]* root"));
        assert!(!run("root ::= [a-z]*"));
        assert!(!run("root ::= [a-z]* [0-9]?"));
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        for (text, expected) in [
            ("", "no rule \"root\""),
            ("item ::= \"a\"", "no rule \"root\""),
            ("root ::= other", "no rule \"other\""),
            ("root ::= \"a", "line 1: a text is not closed"),
            ("\nroot ::= [a", "line 2: a class is not closed"),
            ("root ::= [z-a]", "backwards"),
            ("root ::= (\"a\"", "a group is not closed"),
            ("root ::= \"a\"{3,2}", "{3,2}"),
            ("root ::= \"a\"{9999}", "{9999}"),
            ("root ::= \"a\"{2", "not closed"),
            ("root ::= \"a\"**", "repeated"),
            ("root ::= \"\\q\"", "unknown escape"),
            ("root ::= \"\\ud800\"", "hexadecimal"),
            ("root = \"a\"", "\"::=\""),
            ("root ::= \"a\" )", "')'"),
            ("root ::= \"a\"\nroot ::= \"b\"", "given twice"),
            ("root ::= <think>", "not supported"),
            ("root ::= []", "no character"),
        ] {
            let error = to_lark(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text:?}: {error}");
        }
        let deep = format!("root ::= {}\"a\"{}", "(".repeat(100_000), ")".repeat(100_000));
        assert!(to_lark(&deep).unwrap_err().to_string().contains("deeper"));
    }

    #[test]
    fn classes_are_sets() {
        let class = |text: &str| {
            let mut parser = Parser { text, at: 1, depth: 0 };
            parser.class().unwrap()
        };
        assert_eq!(class("[a-cb-de]"), Class(vec![(0x61, 0x65)]));
        assert_eq!(class("[a-c]").negated().negated(), class("[a-c]"));
        assert_eq!(class("[^\\n]"), Class(vec![(0, 9), (11, 0x10_ffff)]));
        assert_eq!(class("[-a]"), Class(vec![(0x2d, 0x2d), (0x61, 0x61)]));
        assert!(class("[a-m]").meets(&class("[m-z]")) && !class("[a-l]").meets(&class("[m-z]")));
    }
}
