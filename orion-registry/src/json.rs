//! A JSON parser that keeps where everything stood.
//!
//! serde_json knows line and column only for what it refuses itself. Here every value keeps its byte range, so that
//! a problem found two steps later still points at its place. Mistakes with one obvious reading (a byte order mark,
//! a trailing comma, a key given twice) are recorded and parsing goes on, so that one report holds everything.

use std::borrow::Cow;
use std::collections::HashSet;

/// Deepest nesting that is read.
pub(crate) const MAX_DEPTH: usize = 128;
/// Largest file that is read, in bytes.
pub(crate) const MAX_BYTES: usize = 64 << 20;
/// From this many members on, duplicate keys are looked up in a set.
const LINEAR_MEMBERS: usize = 24;

/// A value and its byte range.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node<'t> {
    pub(crate) start: usize,
    pub(crate) end: usize,
    pub(crate) value: Value<'t>,
}

/// What stands there. Numbers keep their text.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value<'t> {
    Null,
    Bool(bool),
    Number(&'t str),
    String(Cow<'t, str>),
    Array(Vec<Node<'t>>),
    Object(Vec<Member<'t>>),
}

/// A key, where it stands, and its value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Member<'t> {
    pub(crate) key: Cow<'t, str>,
    pub(crate) key_start: usize,
    pub(crate) value: Node<'t>,
}

impl<'t> Node<'t> {
    pub(crate) fn get(&self, key: &str) -> Option<&Node<'t>> {
        self.members().iter().find(|member| member.key == key).map(|member| &member.value)
    }

    pub(crate) fn members(&self) -> &[Member<'t>] {
        match &self.value {
            Value::Object(members) => members,
            _ => &[],
        }
    }

    pub(crate) fn elements(&self) -> &[Node<'t>] {
        match &self.value {
            Value::Array(elements) => elements,
            _ => &[],
        }
    }

    /// The node a JSON pointer leads to, or the deepest one on its way that exists.
    pub(crate) fn nearest(&self, pointer: &str) -> &Node<'t> {
        let mut node = self;
        for part in pointer.split('/').skip(1) {
            let part = part.replace("~1", "/").replace("~0", "~");
            let next = match &node.value {
                Value::Array(elements) => part.parse().ok().and_then(|index: usize| elements.get(index)),
                _ => node.get(&part),
            };
            match next {
                Some(next) => node = next,
                None => return node,
            }
        }
        node
    }

    pub(crate) fn type_name(&self) -> &'static str {
        match self.value {
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::Number(_) => "number",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        }
    }
}

/// A syntax problem.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Fault {
    pub(crate) at: usize,
    /// The pointer of the value it is in.
    pub(crate) pointer: String,
    pub(crate) code: &'static str,
    pub(crate) message: String,
    pub(crate) help: &'static str,
    /// Another place it is about.
    pub(crate) related: Option<usize>,
}

/// Parses a whole text. `None` if it cannot be read to its end; then the last fault says why.
pub(crate) fn parse(text: &str) -> (Option<Node<'_>>, Vec<Fault>) {
    let mut parser = Parser {
        text,
        bytes: text.as_bytes(),
        at: 0,
        depth: 0,
        path: Vec::new(),
        elements: Vec::new(),
        members: Vec::new(),
        faults: Vec::new(),
    };
    let root = parser.document();
    (root, parser.faults)
}

enum Step<'t> {
    Key(Cow<'t, str>),
    Index(usize),
}

struct Parser<'t> {
    text: &'t str,
    bytes: &'t [u8],
    at: usize,
    depth: usize,
    path: Vec<Step<'t>>,
    /// What the open arrays and objects hold so far; each takes its own, at their final number, when it closes.
    elements: Vec<Node<'t>>,
    members: Vec<Member<'t>>,
    faults: Vec<Fault>,
}

/// Parsing ends here; the fault is recorded.
struct Stop;

impl<'t> Parser<'t> {
    fn document(&mut self) -> Option<Node<'t>> {
        if self.bytes.len() > MAX_BYTES {
            let message = format!("the file has {} bytes, at most {MAX_BYTES} are read", self.bytes.len());
            self.fault("too-large", 0, message, "split it into a base and a custom file");
            return None;
        }
        if self.text.starts_with('\u{feff}') {
            let message = "the file starts with a byte order mark".to_owned();
            self.fault("byte-order-mark", 0, message, "save it as UTF-8 without BOM");
            self.at = '\u{feff}'.len_utf8();
        }
        self.blank();
        let root = self.value().ok()?;
        self.blank();
        if self.at < self.bytes.len() {
            let message = "text after the end of the document".to_owned();
            self.fault("syntax", self.at, message, "remove it; the document is one object");
            return None;
        }
        Some(root)
    }

    fn fault(&mut self, code: &'static str, at: usize, message: String, help: &'static str) {
        let pointer = self.path.iter().fold(String::new(), |pointer, step| match step {
            Step::Key(key) => pointer + "/" + &escape(key),
            Step::Index(index) => pointer + "/" + &index.to_string(),
        });
        self.faults.push(Fault { at, pointer, code, message, help, related: None });
    }

    fn stop<T>(&mut self, at: usize, message: impl Into<String>, help: &'static str) -> Result<T, Stop> {
        self.fault("syntax", at, message.into(), help);
        Err(Stop)
    }

    fn unexpected<T>(&mut self, expected: &str) -> Result<T, Stop> {
        let at = self.at;
        match self.text[at..].chars().next() {
            None => self.stop(
                at,
                format!("the file ends where {expected} should be"),
                "it was cut off: restore the rest",
            ),
            Some(found) => {
                self.stop(at, format!("{found:?} where {expected} should be"), "correct the syntax here")
            }
        }
    }

    fn blank(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.bytes.get(self.at) {
            self.at += 1;
        }
    }

    fn value(&mut self) -> Result<Node<'t>, Stop> {
        let start = self.at;
        let value = match self.bytes.get(self.at) {
            Some(b'{') => self.object()?,
            Some(b'[') => self.array()?,
            Some(b'"') => Value::String(self.string()?),
            Some(b'-' | b'0'..=b'9') => Value::Number(self.number()?),
            Some(b't') => self.word("true", Value::Bool(true))?,
            Some(b'f') => self.word("false", Value::Bool(false))?,
            Some(b'n') => self.word("null", Value::Null)?,
            _ => return self.unexpected("a value"),
        };
        Ok(Node { start, end: self.at, value })
    }

    fn word(&mut self, word: &str, value: Value<'t>) -> Result<Value<'t>, Stop> {
        if !self.text[self.at..].starts_with(word) {
            return self.unexpected("a value");
        }
        self.at += word.len();
        Ok(value)
    }

    fn descend(&mut self) -> Result<(), Stop> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            let message = format!("nested deeper than {MAX_DEPTH} levels");
            self.fault("too-deep", self.at, message, "no entry needs more than six");
            return Err(Stop);
        }
        self.at += 1;
        self.blank();
        Ok(())
    }

    /// After an element: a comma and more, or the end. Records a comma before the end.
    fn more(&mut self, close: u8, what: &str) -> Result<bool, Stop> {
        self.blank();
        match self.bytes.get(self.at) {
            Some(b',') => {
                let comma = self.at;
                self.at += 1;
                self.blank();
                if self.bytes.get(self.at) != Some(&close) {
                    return Ok(true);
                }
                self.fault(
                    "trailing-comma",
                    comma,
                    "a comma before the closing bracket".to_owned(),
                    "remove the comma",
                );
            }
            Some(byte) if *byte == close => {}
            _ => return self.unexpected(what),
        }
        self.at += 1;
        self.depth -= 1;
        Ok(false)
    }

    fn array(&mut self) -> Result<Value<'t>, Stop> {
        self.descend()?;
        let first = self.elements.len();
        if self.bytes.get(self.at) == Some(&b']') {
            self.at += 1;
            self.depth -= 1;
            return Ok(Value::Array(Vec::new()));
        }
        loop {
            self.path.push(Step::Index(self.elements.len() - first));
            let element = self.value()?;
            self.elements.push(element);
            self.path.pop();
            if !self.more(b']', "a comma or ]")? {
                return Ok(Value::Array(self.elements.drain(first..).collect()));
            }
        }
    }

    fn object(&mut self) -> Result<Value<'t>, Stop> {
        self.descend()?;
        let first = self.members.len();
        let mut seen: HashSet<String> = HashSet::new();
        if self.bytes.get(self.at) == Some(&b'}') {
            self.at += 1;
            self.depth -= 1;
            return Ok(Value::Object(Vec::new()));
        }
        loop {
            let key_start = self.at;
            if self.bytes.get(self.at) != Some(&b'"') {
                return self.unexpected("a key in double quotes");
            }
            let key = self.string()?;
            self.blank();
            if self.bytes.get(self.at) != Some(&b':') {
                return self.unexpected("a colon");
            }
            self.at += 1;
            self.blank();
            // A key without escapes is borrowed from the text, so the copy is free.
            self.path.push(Step::Key(key.clone()));
            let members = &self.members[first..];
            let twice = if members.len() < LINEAR_MEMBERS {
                members.iter().any(|member| member.key == key)
            } else {
                if seen.is_empty() {
                    seen.extend(members.iter().map(|member| member.key.clone().into_owned()));
                }
                !seen.insert(key.clone().into_owned())
            };
            if twice {
                let earlier = members.iter().find(|member| member.key == key).map(|member| member.key_start);
                self.fault(
                    "duplicate-key",
                    key_start,
                    format!("the key {key:?} is given twice"),
                    "keep one of them",
                );
                if let Some(fault) = self.faults.last_mut() {
                    fault.related = earlier;
                }
            }
            let value = self.value()?;
            self.path.pop();
            if !twice {
                self.members.push(Member { key, key_start, value });
            }
            if !self.more(b'}', "a comma or }")? {
                return Ok(Value::Object(self.members.drain(first..).collect()));
            }
        }
    }

    fn number(&mut self) -> Result<&'t str, Stop> {
        let start = self.at;
        let digits = |parser: &mut Self| {
            let from = parser.at;
            while parser.bytes.get(parser.at).is_some_and(u8::is_ascii_digit) {
                parser.at += 1;
            }
            parser.at > from
        };
        self.at += usize::from(self.bytes[start] == b'-');
        let first = self.at;
        let mut ok = digits(self) && (self.bytes[first] != b'0' || self.at == first + 1);
        if ok && self.bytes.get(self.at) == Some(&b'.') {
            self.at += 1;
            ok = digits(self);
        }
        if ok && matches!(self.bytes.get(self.at), Some(b'e' | b'E')) {
            self.at += 1;
            self.at += usize::from(matches!(self.bytes.get(self.at), Some(b'+' | b'-')));
            ok = digits(self);
        }
        if !ok {
            return self.stop(
                start,
                "malformed number",
                "write digits without leading zeros, as in -1, 0.7 or 1e-3",
            );
        }
        Ok(&self.text[start..self.at])
    }

    fn string(&mut self) -> Result<Cow<'t, str>, Stop> {
        let open = self.at;
        self.at += 1;
        let mut from = self.at;
        let mut owned: Option<String> = None;
        loop {
            match self.bytes.get(self.at) {
                Some(b'"') => {
                    let tail = &self.text[from..self.at];
                    self.at += 1;
                    return Ok(match owned {
                        None => Cow::Borrowed(tail),
                        Some(text) => Cow::Owned(text + tail),
                    });
                }
                Some(b'\\') => {
                    let text = owned.get_or_insert_with(String::new);
                    text.push_str(&self.text[from..self.at]);
                    let character = self.escape_sequence()?;
                    owned.get_or_insert_with(String::new).push(character);
                    from = self.at;
                }
                Some(0..=0x1f) => {
                    let at = self.at;
                    return self.stop(
                        at,
                        "a control character in a string",
                        "escape it, as in \\n or \\u0009",
                    );
                }
                Some(_) => self.at += 1,
                None => return self.stop(open, "a string that does not end", "close it with a double quote"),
            }
        }
    }

    fn escape_sequence(&mut self) -> Result<char, Stop> {
        let at = self.at;
        self.at += 2;
        Ok(match self.bytes.get(at + 1) {
            Some(b'"') => '"',
            Some(b'\\') => '\\',
            Some(b'/') => '/',
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => {
                let high = self.hex(at)?;
                let code = if (0xd800..0xdc00).contains(&high) && self.bytes[self.at..].starts_with(b"\\u") {
                    self.at += 2;
                    let low = self.hex(at)?;
                    if (0xdc00..0xe000).contains(&low) {
                        0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00)
                    } else {
                        high
                    }
                } else {
                    high
                };
                match char::from_u32(code) {
                    Some(character) => character,
                    None => return self.stop(at, "half of a surrogate pair", "write the character itself"),
                }
            }
            _ => return self.stop(at, "unknown escape in a string", "write \\\\ for a backslash"),
        })
    }

    fn hex(&mut self, at: usize) -> Result<u32, Stop> {
        let digits = self.bytes.get(self.at..self.at + 4);
        let digits = digits.filter(|digits| digits.iter().all(u8::is_ascii_hexdigit));
        let Some(digits) = digits else {
            return self.stop(at, "\\u without four hexadecimal digits", "write four digits, as in \\u00e9");
        };
        let digit = |byte: &u8| char::from(*byte).to_digit(16).expect("checked to be hexadecimal");
        self.at += 4;
        Ok(digits.iter().fold(0, |code, byte| code << 4 | digit(byte)))
    }
}

/// A key as a part of a JSON pointer (RFC 6901).
pub(crate) fn escape(key: &str) -> Cow<'_, str> {
    if key.contains(['~', '/']) {
        Cow::Owned(key.replace('~', "~0").replace('/', "~1"))
    } else {
        Cow::Borrowed(key)
    }
}

/// Turns byte offsets into lines and columns, both counted from 1; columns count characters.
#[derive(Debug)]
pub(crate) struct Lines<'t> {
    text: &'t str,
    starts: Vec<usize>,
}

impl<'t> Lines<'t> {
    pub(crate) fn new(text: &'t str) -> Self {
        let ends = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at + 1);
        Self { text, starts: std::iter::once(0).chain(ends).collect() }
    }

    pub(crate) fn locate(&self, at: usize) -> (usize, usize) {
        let line = self.starts.partition_point(|start| *start <= at) - 1;
        let before = self.text.get(self.starts[line]..at).unwrap_or_default();
        (line + 1, before.trim_start_matches('\u{feff}').chars().count() + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn plain(node: &Node<'_>) -> serde_json::Value {
        use serde_json::Value as J;
        match &node.value {
            Value::Null => J::Null,
            Value::Bool(v) => J::Bool(*v),
            Value::Number(text) => serde_json::from_str(text).unwrap(),
            Value::String(text) => J::String(text.clone().into_owned()),
            Value::Array(elements) => elements.iter().map(plain).collect(),
            Value::Object(members) => {
                J::Object(members.iter().map(|m| (m.key.clone().into_owned(), plain(&m.value))).collect())
            }
        }
    }

    fn json() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            (-1e300f64..1e300).prop_map(Into::into),
            any::<String>().prop_map(Into::into),
        ];
        leaf.prop_recursive(5, 64, 8, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..8).prop_map(Into::into),
                prop::collection::btree_map(any::<String>(), inner, 0..8)
                    .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn reads_what_serde_json_writes(value in json()) {
            for text in [value.to_string(), serde_json::to_string_pretty(&value).unwrap()] {
                let (node, faults) = parse(&text);
                prop_assert_eq!(faults, vec![]);
                prop_assert_eq!(plain(&node.unwrap()), value.clone());
            }
        }

        /// Whatever serde_json reads is read alike; whatever it refuses is refused. Three readings differ by
        /// intent: repeated keys, numbers beyond f64 (kept as text here) and trailing commas are faults of their own.
        #[test]
        fn agrees_with_serde_json_on_mutated_text(value in json(), at in any::<prop::sample::Index>(), with in "[\\[\\]{}\",:0-9eE.+\\-\\\\ntuf ]") {
            let mut text: Vec<char> = value.to_string().chars().collect();
            let at = at.index(text.len());
            text[at] = with.chars().next().unwrap();
            let text: String = text.into_iter().collect();
            let (node, faults) = parse(&text);
            match serde_json::from_str::<serde_json::Value>(&text) {
                Ok(value) => {
                    prop_assert!(faults.iter().all(|fault| fault.code == "duplicate-key"), "{text}: {faults:?}");
                    if faults.is_empty() { prop_assert_eq!(plain(&node.unwrap()), value) }
                }
                Err(error) => prop_assert!(!faults.is_empty() || error.to_string().contains("number out of range"), "{text}: {error}"),
            }
        }

        #[test]
        fn never_panics(text in any::<String>()) {
            let _ = parse(&text);
        }
    }

    #[test]
    fn a_fault_says_where() {
        let (node, faults) = parse("{\n  \"a\": [1, 2,],\n  \"é\": {\"b\": 1, \"b\": 2},\n}");
        assert!(node.is_some());
        let lines = Lines::new("{\n  \"a\": [1, 2,],\n  \"é\": {\"b\": 1, \"b\": 2},\n}");
        let found: Vec<_> = faults
            .iter()
            .map(|f| (f.code, f.pointer.as_str(), lines.locate(f.at), f.related.map(|at| lines.locate(at))))
            .collect();
        assert_eq!(
            found,
            [
                ("trailing-comma", "/a", (2, 13), None),
                ("duplicate-key", "/é/b", (3, 17), Some((3, 9))),
                ("trailing-comma", "", (3, 24), None),
            ]
        );
    }

    #[test]
    fn nesting_is_capped_in_arrays_and_objects() {
        for unit in ["[", "{\"a\":"] {
            let text = unit.repeat(100_000);
            let (node, faults) = parse(&text);
            assert!(node.is_none());
            assert_eq!((faults.len(), faults[0].code, faults[0].at), (1, "too-deep", MAX_DEPTH * unit.len()));
        }
    }
    #[test]
    fn what_is_closed_no_longer_counts_as_nesting() {
        for (open, unit, close) in
            [("[", "[]", "]"), ("[", "{}", "]"), ("[", "[1]", "]"), ("[", "{\"a\":1}", "]")]
        {
            let text = format!("{open}{}{close}", vec![unit; 3 * MAX_DEPTH].join(","));
            let (node, faults) = parse(&text);
            assert_eq!(faults, vec![]);
            assert_eq!(node.unwrap().elements().len(), 3 * MAX_DEPTH);
        }
    }

    #[test]
    fn pairs_of_surrogates_are_one_character() {
        for (text, character) in [
            (r"\ud800\udc00", "\u{10000}"),
            (r"\ud83d\ude00", "\u{1f600}"),
            (r"\uDBFF\uDFFF", "\u{10ffff}"),
            (r"\u00e9", "\u{e9}"),
        ] {
            let (text, faults) = (format!("\"{text}\""), vec![]);
            let parsed = parse(&text);
            assert_eq!(parsed.1, faults);
            assert_eq!(plain(&parsed.0.unwrap()), serde_json::Value::from(character));
        }
        for alone in [r"\ud83d", r"\ude00", r"\ud83d\u0041"] {
            assert!(!parse(&format!("\"{alone}\"")).1.is_empty(), "{alone}");
        }
    }
}
