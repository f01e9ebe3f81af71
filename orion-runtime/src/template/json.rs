//! JSON on its way into templates and out of them.

use minijinja::Value;
use minijinja::value::ValueKind;
use orion_core::{Error, Result};

/// Nesting that `tojson` follows; a template can build values that are nested without end.
const MAX_DEPTH: usize = 128;

/// Reads JSON; the order of keys is kept.
pub(super) fn parse(text: &str, what: &str) -> Result<Value> {
    serde_json::from_str(text)
        .map_err(|error| Error::invalid(format!("no valid JSON: {error}")).about(what).with_source(error))
}

/// The entries of an object; none of a missing one.
pub(super) fn entries(value: &Value, what: &str) -> Result<Vec<(String, Value)>> {
    match value.kind() {
        ValueKind::None => Ok(Vec::new()),
        ValueKind::Map => {
            let keys = value.try_iter().into_iter().flatten();
            Ok(keys.map(|key| (key.to_string(), value.get_item(&key).unwrap_or_default())).collect())
        }
        _ => Err(Error::invalid("no JSON object").about(what)),
    }
}

/// `chat_template` of `tokenizer_config.json`: one template, or a list of named ones. The default template and
/// the one for tools.
pub(super) fn templates_of(config: &str) -> Result<(Option<String>, Option<String>)> {
    let corrupt = |what: String| Error::corrupt(what).about("tokenizer_config.json");
    let config: serde_json::Value =
        serde_json::from_str(config).map_err(|error| corrupt(error.to_string()))?;
    match &config["chat_template"] {
        serde_json::Value::Null => Ok((None, None)),
        serde_json::Value::String(source) => Ok((Some(source.clone()), None)),
        serde_json::Value::Array(named) => {
            let find = |wanted: &str| {
                let entry = named.iter().find(|entry| entry["name"].as_str() == Some(wanted))?;
                entry["template"].as_str().map(str::to_owned)
            };
            Ok((find("default"), find("tool_use")))
        }
        _ => Err(corrupt("chat_template is neither a string nor a list".to_owned())),
    }
}

/// How `json.dumps` of Python writes: spaces after separators, or lines with an indent.
#[derive(Debug, Clone, Default)]
pub(super) struct Style {
    pub(super) indent: Option<usize>,
    pub(super) item_separator: Option<String>,
    pub(super) key_separator: Option<String>,
    pub(super) sort_keys: bool,
    pub(super) ascii: bool,
}

/// Writes `value` as `json.dumps` would. `None` for what JSON has no form for.
pub(super) fn write(value: &Value, style: &Style) -> Option<String> {
    let mut out = String::new();
    write_at(value, style, 0, &mut out)?;
    Some(out)
}

fn write_at(value: &Value, style: &Style, depth: usize, out: &mut String) -> Option<()> {
    if depth > MAX_DEPTH {
        return None;
    }
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number if value.is_integer() => out.push_str(&value.to_string()),
        ValueKind::Number => out.push_str(&float(f64::try_from(value.clone()).ok()?)),
        ValueKind::String => string(value.as_str()?, style, out)?,
        ValueKind::Seq | ValueKind::Iterable => {
            let items: Vec<Value> = value.try_iter().ok()?.collect();
            list(style, depth, ['[', ']'], &items, out, |item, out| write_at(item, style, depth + 1, out))?;
        }
        ValueKind::Map => {
            let mut keys: Vec<Value> = value.try_iter().ok()?.collect();
            if style.sort_keys {
                keys.sort();
            }
            list(style, depth, ['{', '}'], &keys, out, |key, out| {
                match key.as_str() {
                    Some(text) => string(text, style, out)?,
                    None => {
                        let mut text = String::new();
                        write_at(key, style, depth + 1, &mut text)?;
                        string(&text, style, out)?;
                    }
                }
                out.push_str(style.key_separator.as_deref().unwrap_or(": "));
                write_at(&value.get_item(key).ok()?, style, depth + 1, out)
            })?;
        }
        _ => return None,
    }
    Some(())
}

fn list(
    style: &Style,
    depth: usize,
    [open, close]: [char; 2],
    items: &[Value],
    out: &mut String,
    mut item: impl FnMut(&Value, &mut String) -> Option<()>,
) -> Option<()> {
    let new_line = |depth: usize, out: &mut String| {
        if let Some(indent) = style.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    };
    let separator = if style.indent.is_some() { "," } else { ", " };
    out.push(open);
    for (at, entry) in items.iter().enumerate() {
        if at > 0 {
            out.push_str(style.item_separator.as_deref().unwrap_or(separator));
        }
        new_line(depth + 1, out);
        item(entry, out)?;
    }
    if !items.is_empty() {
        new_line(depth, out);
    }
    out.push(close);
    Some(())
}

fn string(text: &str, style: &Style, out: &mut String) -> Option<()> {
    let quoted = serde_json::to_string(text).ok()?;
    if !style.ascii {
        out.push_str(&quoted);
        return Some(());
    }
    for letter in quoted.chars() {
        if letter.is_ascii() {
            out.push(letter);
        } else {
            letter.encode_utf16(&mut [0; 2]).iter().for_each(|unit| out.push_str(&format!("\\u{unit:04x}")));
        }
    }
    Some(())
}

/// A float as Python writes it: shortest digits, a point or an exponent always.
fn float(number: f64) -> String {
    if number.is_nan() {
        return "NaN".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 { "Infinity" } else { "-Infinity" }.to_owned();
    }
    let size = number.abs();
    if size != 0.0 && !(1e-4..1e16).contains(&size) {
        let text = format!("{number:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = match exponent.strip_prefix('-') {
            Some(exponent) => ('-', exponent),
            None => ('+', exponent),
        };
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    format!("{number:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected texts are Python's.
    #[test]
    fn floats_are_written_as_python_writes_them() {
        let cases = [
            (1.0, "1.0"),
            (0.1, "0.1"),
            (-0.0, "-0.0"),
            (1e-5, "1e-05"),
            (1.5e-7, "1.5e-07"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.25e300, "1.25e+300"),
            (f64::NAN, "NaN"),
        ];
        for (number, text) in cases {
            assert_eq!(float(number), text);
        }
    }
}
