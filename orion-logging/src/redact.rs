//! Redaction: what must not be written is replaced before anything is.
//!
//! Three things are looked for. Fields whose *name* says they hold a secret are replaced as a whole. Fields whose
//! name says they hold a prompt or an answer become length and hash, unless the program asks for the text. And every
//! text, messages and errors included, is searched for *patterns*: keys, bearer tokens, e-mail, card and phone numbers.

use std::borrow::Cow;
use std::fmt::Write as _;

use regex::{Captures, Regex};
use sha2::{Digest as _, Sha256};

/// Names, lower-case and without separators, whose text is a secret. A longer name that ends in one counts, too.
const SECRET_NAMES: &[&str] = &[
    "password",
    "passwd",
    "pwd",
    "passphrase",
    "secret",
    "apikey",
    "token",
    "accesskey",
    "privatekey",
    "secretkey",
    "authorization",
    "credential",
    "credentials",
    "cookie",
    "email",
    "phone",
    "phonenumber",
    "cardnumber",
    "creditcard",
    "iban",
];
/// Names whose text is a prompt or an answer. A longer name that ends in one counts, too.
const CONTENT_NAMES: &[&str] = &["prompt", "completion"];
/// The same, but only as a whole word: `input_text` counts, `context` does not.
const CONTENT_WORDS: &[&str] = &[
    "text",
    "content",
    "contents",
    "messages",
    "answer",
    "response",
    "question",
    "history",
    "conversation",
    "transcript",
    "input",
    "output",
];

/// Explicit ASCII classes throughout: the pattern needs no Unicode tables and stays in the fast engine.
const PATTERNS: &str = r#"(?x)
  (?P<block>-----BEGIN[\x20A-Z]*PRIVATE[\x20]KEY-----[\x00-\x7F]*?(?:-----END[\x20A-Z]*PRIVATE[\x20]KEY-----|\z))
| (?P<pair>(?P<name>(?i-u:api[_-]?key|secret|passw(?:or)?d|pwd|passphrase|authorization|cookie|
      (?:access|private|secret|client)[_-]?(?:key|secret)|token)\\?["']?[\x20\t]*(?:=>?|:)[\x20\t]*)
    (?P<value>(?:Some\()?\\"(?:[^"\\]|\\\\(?:\\.|[^\\"]))*(?:\\"|\z)|(?:Some\()?"(?:[^"\\]|\\.)*(?:"|\z)|'[^']*(?:'|\z)
      |(?i-u:bearer|basic|digest)[\x20]+[^\x20\t\r\n"',;}]+|[^\x20\t\r\n"',;}\])&]+))
| (?P<bearer>(?-u:\b)(?i-u:bearer)[\x20\t]+[A-Za-z0-9._~+/=-]{8,})
| (?P<jwt>(?-u:\b)eyJ[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]*)
| (?P<key>(?-u:\b)(?:(?:sk|pk|rk)[-_][A-Za-z0-9_-]{12,}|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_[A-Za-z0-9_]{16,}
      |hf_[A-Za-z0-9]{16,}|glpat-[A-Za-z0-9_-]{16,}|xox[a-z]-[A-Za-z0-9-]{10,}|(?:AKIA|ASIA)[0-9A-Z]{16}
      |AIza[A-Za-z0-9_-]{30,}|npm_[A-Za-z0-9]{30,}|pypi-[A-Za-z0-9_-]{30,}))
| (?P<url>://[^/\x20\t\r\n:@"']+:[^/\x20\t\r\n@"']+@)
| (?P<email>[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,})
| (?P<card>(?-u:\b)[2-6](?:[\x20-]?[0-9]){12,18}(?-u:\b))
| (?P<phone>\+[0-9](?:[\x20().-]{0,2}[0-9]){7,14}
      |(?-u:\b)0[1-9](?:[\x20.-]?[0-9]{2}){4}(?-u:\b)
      |\(?(?-u:\b)[2-9][0-9]{2}\)?[\x20.-][0-9]{3}[\x20.-][0-9]{4}(?-u:\b))
"#;
const PHONE_ONLY: &str = r"(?-u:\b)0[1-9](?:[ .-]?[0-9]{2}){4}(?-u:\b)|\(?(?-u:\b)[2-9][0-9]{2}\)?[ .-][0-9]{3}[ .-][0-9]{4}(?-u:\b)";

/// What a field's name says of its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Treatment {
    Plain,
    Secret,
    Content,
}

/// Decides what is written of a text.
#[derive(Debug, Clone)]
pub struct Redactor {
    patterns: Regex,
    phones: Regex,
    own_patterns: Vec<Regex>,
    own_names: Vec<String>,
    own_content: Vec<String>,
    content: bool,
}

impl Default for Redactor {
    fn default() -> Self {
        Self::new()
    }
}

impl Redactor {
    /// The names and patterns this crate knows; prompts and answers become length and hash.
    #[must_use]
    pub fn new() -> Self {
        let compile =
            |pattern| Regex::new(pattern).expect("the pattern is a constant, and every test compiles it");
        Self {
            patterns: compile(PATTERNS),
            phones: compile(PHONE_ONLY),
            own_patterns: Vec::new(),
            own_names: Vec::new(),
            own_content: Vec::new(),
            content: false,
        }
    }

    /// Also treats fields of that name, and of names that end in it, as secret. Case and `_`, `-`, `.` do not count.
    #[must_use]
    pub fn secret_name(mut self, name: &str) -> Self {
        self.own_names.push(plain_name(name));
        self
    }

    /// Also treats fields of that name as prompt or answer.
    #[must_use]
    pub fn content_name(mut self, name: &str) -> Self {
        self.own_content.push(plain_name(name));
        self
    }

    /// Also replaces what matches a regular expression.
    ///
    /// # Errors
    /// [`InvalidInput`](orion_core::ErrorKind::InvalidInput) if it is none.
    pub fn pattern(mut self, pattern: &str) -> orion_core::Result<Self> {
        let compiled = Regex::new(pattern).map_err(|error| {
            orion_core::Error::invalid("not a regular expression").about(pattern).with_source(error)
        })?;
        self.own_patterns.push(compiled);
        Ok(self)
    }

    /// Writes prompts and answers as they are; names and patterns still apply. Off unless asked for.
    #[must_use]
    pub fn content(mut self, write: bool) -> Self {
        self.content = write;
        self
    }

    pub(crate) fn treatment(&self, name: &str) -> Treatment {
        let mut buffer = [0; 48];
        let mut len = 0;
        for byte in name.bytes().rev().filter(|byte| !matches!(byte, b'_' | b'-' | b'.')) {
            // Names are compared from their end, so the start of a long one may go.
            if len == buffer.len() {
                break;
            }
            buffer[len] = byte.to_ascii_lowercase();
            len += 1;
        }
        let reversed = &buffer[..len];
        let ends_in =
            |known: &str| known.len() <= len && known.bytes().rev().zip(reversed).all(|(a, b)| a == *b);
        if SECRET_NAMES.iter().any(|known| ends_in(known))
            || self.own_names.iter().any(|known| ends_in(known))
        {
            Treatment::Secret
        } else if !self.content
            && (CONTENT_NAMES.iter().any(|known| ends_in(known))
                || self.own_content.iter().any(|known| ends_in(known))
                || CONTENT_WORDS.iter().any(|known| known.eq_ignore_ascii_case(last_word(name))))
        {
            Treatment::Content
        } else {
            Treatment::Plain
        }
    }

    /// What is written of a field.
    #[must_use]
    pub fn field<'t>(&self, name: &str, value: &'t str) -> Cow<'t, str> {
        match self.treatment(name) {
            Treatment::Plain => self.text(value),
            Treatment::Secret => Cow::Borrowed("[redacted]"),
            Treatment::Content => Cow::Owned(fingerprint(value)),
        }
    }

    /// What is written of a whole number: card numbers are numbers, too.
    pub(crate) fn is_card(&self, number: u128) -> bool {
        // 13 to 19 digits.
        if !(1_000_000_000_000..10_000_000_000_000_000_000).contains(&number) {
            return false;
        }
        is_card(&number.to_string())
    }

    /// A text with everything replaced that looks like a secret.
    #[must_use]
    pub fn text<'t>(&self, text: &'t str) -> Cow<'t, str> {
        let mut out = self.known(text);
        for pattern in &self.own_patterns {
            if let Cow::Owned(replaced) = pattern.replace_all(&out, "[redacted]") {
                out = Cow::Owned(replaced);
            }
        }
        out
    }

    fn known<'t>(&self, text: &'t str) -> Cow<'t, str> {
        if !suspicious(text) || !self.patterns.is_match(text) {
            return Cow::Borrowed(text);
        }
        self.patterns.replace_all(text, |found: &Captures<'_>| {
            let whole = &found[0];
            if let Some(name) = found.name("name") {
                if found.name("value").is_some_and(|value| value.as_str().starts_with("[redacted")) {
                    return whole.to_owned();
                }
                return format!("{}[redacted]", name.as_str());
            }
            if found.name("card").is_some() && !is_card(whole) {
                // Not a card, but a phone number may be in it.
                return self.phones.replace_all(whole, "[redacted phone]").into_owned();
            }
            if found.name("url").is_some() {
                return "://[redacted]@".to_owned();
            }
            let kinds = ["block", "bearer", "jwt", "key", "email", "card", "phone"];
            let kind = kinds.into_iter().find(|kind| found.name(kind).is_some()).unwrap_or_default();
            format!("[redacted {}]", if kind == "block" { "key" } else { kind })
        })
    }
}

fn last_word(name: &str) -> &str {
    name.rsplit(['_', '-', '.']).next().unwrap_or(name)
}

fn plain_name(name: &str) -> String {
    name.to_lowercase().replace(['_', '-', '.'], "")
}

/// Length and hash of a text: enough to see whether two are the same, too little to read one.
pub(crate) fn fingerprint(text: &str) -> String {
    let hash = Sha256::digest(text);
    let mut out = format!("[{} bytes, sha256:", text.len());
    hash[..8].iter().for_each(|byte| {
        let _ = write!(out, "{byte:02x}");
    });
    out + "]"
}

/// A quick look whether a text can hold a secret at all. Every pattern needs a mark, eight digits, or one of a few
/// letter sequences; most messages have none of these and never meet the regular expression.
fn suspicious(text: &str) -> bool {
    let mut digits = 0;
    let mut capitals = 0;
    let mut last = 0;
    for byte in text.bytes() {
        match byte {
            b'@' | b':' | b'=' | b'_' | b'-' => return true,
            b'0'..=b'9' => digits += 1,
            b'A'..=b'Z' => capitals += 1,
            // The end of "bearer ".
            b' ' | b'\t' if last == b'r' || last == b'R' => return true,
            _ => {}
        }
        last = byte;
    }
    digits >= 8 || (capitals >= 2 && text.len() >= 18)
}

/// Luhn's check, and the first digit of a card.
fn is_card(text: &str) -> bool {
    let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(10)).collect();
    let sum: u32 = digits
        .iter()
        .rev()
        .enumerate()
        .map(|(place, digit)| match (place % 2, digit * 2) {
            (0, _) => *digit,
            (_, double) if double > 9 => double - 9,
            (_, double) => double,
        })
        .sum();
    (13..=19).contains(&digits.len()) && (2..=6).contains(&digits[0]) && sum.is_multiple_of(10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_secret_is_replaced_and_what_is_around_it_stays() {
        let redactor = Redactor::new();
        for (text, expected) in [
            ("key sk-abcdefghijklmnop123 used", "key [redacted key] used"),
            ("ghp_0123456789abcdefABCDEF", "[redacted key]"),
            ("hf_abcdefghijklmnopqrst", "[redacted key]"),
            ("AKIAIOSFODNN7EXAMPLE", "[redacted key]"),
            ("sent Bearer abcdef123456.x", "sent [redacted bearer]"),
            ("authorization: Bearer abc", "authorization: [redacted]"),
            ("Authorization=Basic dXNlcjpwYXNz, next", "Authorization=[redacted], next"),
            ("password=hunter2 next=1", "password=[redacted] next=1"),
            (r#"{"password": "a \" b", "x": 1}"#, r#"{"password": [redacted], "x": 1}"#),
            (r#"{\"api_key\": \"abc d\", \"x\": 1}"#, r#"{\"api_key\": [redacted], \"x\": 1}"#),
            (r#"{\"password\": \"a\\\"b\\nc\"} x"#, r#"{\"password\": [redacted]} x"#),
            (r#"Config { token: Some("abc def"), n: 1 }"#, "Config { token: [redacted]), n: 1 }"),
            ("secret='two words' x", "secret=[redacted] x"),
            ("https://user:pass@host/x?token=abc&y=1", "https://[redacted]@host/x?token=[redacted]&y=1"),
            ("mail ann.o-b+c@mail.example.org now", "mail [redacted email] now"),
            ("card 4111 1111 1111 1111.", "card [redacted card]."),
            ("card 378282246310005", "card [redacted card]"),
            ("card 5500-0000-0000-0004", "card [redacted card]"),
            ("call +33 6 12 34 56 78 now", "call [redacted phone] now"),
            ("call 06.12.34.56.78", "call [redacted phone]"),
            ("call (415) 555-2671", "call [redacted phone]"),
            ("eyJhbGciOiJI.eyJzdWIiOiIx.SflKxwRJ", "[redacted jwt]"),
            ("-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY----- x", "[redacted key] x"),
            ("-----BEGIN PRIVATE KEY-----\nabc cut", "[redacted key]"),
        ] {
            assert_eq!(redactor.text(text), expected, "{text}");
        }
    }

    #[test]
    fn ordinary_text_is_not_touched_or_copied() {
        let redactor = Redactor::new();
        for text in [
            "loaded smollm2-135m-instruct in 213 ms, 96576768 bytes",
            "512 tokens at 38.2 tokens/s",
            "tokens: 5, max_tokens=128",
            "a digest b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            "2026-11-22T17:14:46.123Z",
            "queue depth 12 of 64; basic information",
            "ü €  日本語 100%",
        ] {
            assert!(
                matches!(redactor.text(text), Cow::Borrowed(same) if same == text),
                "{}",
                redactor.text(text)
            );
        }
    }

    #[test]
    fn a_number_that_fails_the_check_of_cards_stays() {
        let text = "number 4111111111111112";
        assert_eq!(Redactor::new().text(text), text);
    }

    #[test]
    fn names_decide_whatever_the_value() {
        let redactor = Redactor::new().secret_name("badge_number").content_name("remark");
        for name in [
            "password",
            "API_KEY",
            "http.authorization",
            "user-password",
            "hf_token",
            "Badge-Number",
            "dbpassword",
        ] {
            assert_eq!(redactor.field(name, "x"), "[redacted]", "{name}");
        }
        let hash = "[2 bytes, sha256:8f434346648f6b96]";
        for name in ["prompt", "system_prompt", "completion", "remark"] {
            assert_eq!(redactor.field(name, "hi"), hash, "{name}");
        }
        for name in ["model", "prompt_tokens", "tokens", "path", "context"] {
            assert_eq!(redactor.field(name, "hi"), "hi", "{name}");
        }
        let open = Redactor::new().content(true);
        assert_eq!(open.field("prompt", "mail me: a@b.org"), "mail me: [redacted email]");
    }

    #[test]
    fn own_patterns_apply_everywhere_and_must_compile() {
        let redactor = Redactor::new().pattern("EMP[0-9]{4}").unwrap();
        assert_eq!(redactor.text("staff EMP1234 and a@b.org"), "staff [redacted] and [redacted email]");
        assert!(Redactor::new().pattern("(").is_err());
    }

    #[test]
    fn numbers_can_be_cards() {
        let redactor = Redactor::new();
        assert!(redactor.is_card(4_111_111_111_111_111));
        assert!(!redactor.is_card(4_111_111_111_111_112));
        assert!(!redactor.is_card(98_362_432));
        assert!(!redactor.is_card(u128::MAX));
    }
}
