//! An event as it is written: redacted, then as JSON or as a line for people.

use std::error::Error;
use std::fmt::{self, Write as _};

use tracing::Level;
use tracing::field::{Field, Visit};

use crate::redact::{Redactor, Treatment, fingerprint};

/// How events are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Format {
    /// One line for people.
    Pretty,
    /// One JSON object per line.
    Json,
}

impl Format {
    /// Reads `pretty` or `json`.
    pub(crate) fn parse(text: &str) -> orion_core::Result<Self> {
        match text.trim() {
            "pretty" => Ok(Self::Pretty),
            "json" => Ok(Self::Json),
            other => {
                Err(orion_core::Error::invalid(format!("{other:?} is no format; expected pretty or json")))
            }
        }
    }
}

/// Redacted fields, as the members of a JSON object without its braces, and the message.
#[derive(Debug, Default)]
pub(crate) struct Fields {
    pub(crate) message: String,
    pub(crate) json: String,
}

impl Fields {
    pub(crate) fn clear(&mut self) {
        self.message.clear();
        self.json.clear();
    }
}

/// Appends a text as a JSON string.
pub(crate) fn write_json(out: &mut String, text: &str) {
    out.push('"');
    let mut from = 0;
    for (at, byte) in text.bytes().enumerate() {
        let escaped = match byte {
            b'"' => "\\\"",
            b'\\' => "\\\\",
            b'\n' => "\\n",
            b'\r' => "\\r",
            b'\t' => "\\t",
            // DEL is no control character to JSON, but is one to a terminal.
            0..=0x1f | 0x7f => {
                out.push_str(&text[from..at]);
                let _ = write!(out, "\\u{byte:04x}");
                from = at + 1;
                continue;
            }
            _ => continue,
        };
        out.push_str(&text[from..at]);
        out.push_str(escaped);
        from = at + 1;
    }
    out.push_str(&text[from..]);
    out.push('"');
}

/// Redacts the values of an event or span while it collects them.
pub(crate) struct Collector<'a> {
    pub(crate) redactor: &'a Redactor,
    pub(crate) fields: &'a mut Fields,
    /// Room to format a value in before it is looked at.
    pub(crate) scratch: &'a mut String,
}

impl Collector<'_> {
    fn key(&mut self, name: &str) {
        if !self.fields.json.is_empty() {
            self.fields.json.push(',');
        }
        write_json(&mut self.fields.json, name.strip_prefix("r#").unwrap_or(name));
        self.fields.json.push(':');
    }

    fn text(&mut self, field: &Field, value: &str) {
        let name = field.name();
        if name == "message" {
            let safe = self.redactor.text(value);
            self.fields.message.push_str(&safe);
            return;
        }
        self.key(name);
        match self.redactor.treatment(name) {
            Treatment::Secret => self.fields.json.push_str("\"[redacted]\""),
            Treatment::Content => write_json(&mut self.fields.json, &fingerprint(value)),
            Treatment::Plain => write_json(&mut self.fields.json, &self.redactor.text(value)),
        }
    }

    fn number(&mut self, field: &Field, value: impl fmt::Display, magnitude: u128) {
        self.key(field.name());
        if self.redactor.is_card(magnitude) {
            self.fields.json.push_str("\"[redacted card]\"");
        } else {
            let _ = write!(self.fields.json, "{value}");
        }
    }

    fn formatted(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        let mut scratch = std::mem::take(self.scratch);
        scratch.clear();
        let _ = scratch.write_fmt(value);
        self.text(field, &scratch);
        *self.scratch = scratch;
    }
}

impl Visit for Collector<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.text(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.formatted(field, format_args!("{value:?}"));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        let mut text = value.to_string();
        let mut source = value.source();
        while let Some(cause) = source {
            let _ = write!(text, ": {cause}");
            source = cause.source();
        }
        self.text(field, &text);
    }

    fn record_bytes(&mut self, field: &Field, value: &[u8]) {
        self.text(field, &String::from_utf8_lossy(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.number(field, value, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.number(field, value, value.unsigned_abs().into());
    }

    fn record_u128(&mut self, field: &Field, value: u128) {
        self.number(field, value, value);
    }

    fn record_i128(&mut self, field: &Field, value: i128) {
        self.number(field, value, value.unsigned_abs());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        // A card number fits a double, too.
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "saturates, and is only looked at"
        )]
        let magnitude = value.abs() as u128;
        self.key(field.name());
        if self.redactor.is_card(magnitude) {
            self.fields.json.push_str("\"[redacted card]\"");
        } else if value.is_finite() {
            let _ = write!(self.fields.json, "{value}");
        } else {
            let _ = write!(self.fields.json, "\"{value}\"");
        }
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.key(field.name());
        self.fields.json.push_str(if value { "true" } else { "false" });
    }
}

/// What one line is made of.
pub(crate) struct Line<'a> {
    pub(crate) time: &'a str,
    pub(crate) level: Level,
    pub(crate) component: &'a str,
    pub(crate) target: &'a str,
    pub(crate) fields: &'a Fields,
    /// Spans around it, outermost first: name and fields.
    pub(crate) spans: &'a str,
}

impl Line<'_> {
    pub(crate) fn json(&self, out: &mut String) {
        let _ = write!(out, "{{\"ts\":\"{}\",\"level\":\"{}\",\"component\":", self.time, self.level);
        write_json(out, self.component);
        out.push_str(",\"target\":");
        write_json(out, self.target);
        out.push_str(",\"message\":");
        write_json(out, &self.fields.message);
        if !self.fields.json.is_empty() {
            out.push_str(",\"fields\":{");
            out.push_str(&self.fields.json);
            out.push('}');
        }
        if !self.spans.is_empty() {
            out.push_str(",\"spans\":[");
            out.push_str(self.spans);
            out.push(']');
        }
        out.push_str("}\n");
    }

    /// Values stay JSON: a line break or an escape sequence in one cannot forge a line or drive a terminal.
    pub(crate) fn pretty(&self, out: &mut String, colours: bool) {
        let (colour, reset) = match (colours, self.level) {
            (false, _) => ("", ""),
            (true, Level::ERROR) => ("\x1b[31m", "\x1b[0m"),
            (true, Level::WARN) => ("\x1b[33m", "\x1b[0m"),
            (true, Level::INFO) => ("\x1b[32m", "\x1b[0m"),
            (true, _) => ("\x1b[2m", "\x1b[0m"),
        };
        let _ = write!(out, "{} {colour}{:>5}{reset} {}: ", self.time, self.level, self.component);
        let message = &self.fields.message;
        if message.bytes().any(|byte| byte < 0x20 || byte == 0x7f) {
            let from = out.len();
            write_json(out, message);
            out.remove(from);
            out.pop();
        } else {
            out.push_str(message);
        }
        if !self.fields.json.is_empty() {
            out.push(' ');
            members(out, &self.fields.json);
        }
        if !self.spans.is_empty() {
            out.push_str(" in ");
            out.push_str(self.spans);
        }
        out.push('\n');
    }
}

/// `"a":1,"b":"x y"` as `a=1 b="x y"`.
fn members(out: &mut String, json: &str) {
    let (mut in_string, mut escaped, mut in_key) = (false, false, true);
    for c in json.chars() {
        match c {
            '"' if !escaped => {
                in_string = !in_string;
                if !in_key {
                    out.push(c);
                }
            }
            ':' if !in_string && in_key => {
                in_key = false;
                out.push('=');
            }
            ',' if !in_string => {
                in_key = true;
                out.push(' ');
            }
            _ => out.push(c),
        }
        escaped = c == '\\' && !escaped;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn strings_are_json(text in any::<String>()) {
            let mut out = String::new();
            write_json(&mut out, &text);
            prop_assert_eq!(serde_json::from_str::<String>(&out).unwrap(), text);
        }
    }

    #[test]
    fn a_pretty_line_cannot_be_forged() {
        let mut fields = Fields { message: "one\ntwo\u{1b}[2J".into(), json: String::new() };
        write_json(&mut fields.json, "k");
        fields.json.push(':');
        write_json(&mut fields.json, "a, \"b\":\nc");
        let line = Line {
            time: "T",
            level: Level::INFO,
            component: "router",
            target: "orion_router",
            fields: &fields,
            spans: "",
        };
        let mut out = String::new();
        line.pretty(&mut out, false);
        assert_eq!(out, "T  INFO router: one\\ntwo\\u001b[2J k=\"a, \\\"b\\\":\\nc\"\n");
    }
}
