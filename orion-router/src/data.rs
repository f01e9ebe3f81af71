//! Labelled examples: CSV and JSON lines.

use std::path::Path;

use orion_core::{Error, Result};
use serde::Deserialize;

/// The label of prompts no model is meant for: abstaining is the right answer to them.
pub const OUT_OF_SCOPE: &str = "oos";

/// A prompt and the label it should get.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Example {
    /// The prompt.
    pub text: String,
    /// Its label; [`OUT_OF_SCOPE`] for prompts that belong to none.
    pub label: String,
}

impl Example {
    /// An example of its parts.
    pub fn new(text: impl Into<String>, label: impl Into<String>) -> Self {
        Self { text: text.into(), label: label.into() }
    }
}

/// A prompt and which of two models answered it rightly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DifficultyRecord {
    /// The prompt.
    pub prompt: String,
    /// Whether the weak model was right.
    pub weak_right: bool,
    /// Whether the strong model was right.
    pub strong_right: bool,
}

#[derive(Deserialize)]
struct DifficultyRow {
    prompt: String,
    weak_right: Flag,
    strong_right: Flag,
}

/// Truth as people write it in tables.
struct Flag(bool);

impl<'de> Deserialize<'de> for Flag {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Bool(bool),
            Number(f64),
            Text(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Bool(value) => Ok(Self(value)),
            Written::Number(0.0) => Ok(Self(false)),
            Written::Number(1.0) => Ok(Self(true)),
            Written::Text(text) if matches!(text.to_ascii_lowercase().as_str(), "1" | "true" | "1.0") => {
                Ok(Self(true))
            }
            Written::Text(text) if matches!(text.to_ascii_lowercase().as_str(), "0" | "false" | "0.0") => {
                Ok(Self(false))
            }
            _ => Err(serde::de::Error::custom("expected 0 or 1")),
        }
    }
}

fn read<T: serde::de::DeserializeOwned>(text: &str) -> Result<Vec<T>> {
    let text = text.trim_start_matches('\u{feff}');
    if text.trim_start().starts_with('{') {
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        return lines
            .map(|(at, line)| {
                serde_json::from_str(line).map_err(|error| {
                    Error::invalid(error.to_string()).about(format!("line {}", at + 1)).with_source(error)
                })
            })
            .collect();
    }
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    reader
        .deserialize()
        .map(|row| row.map_err(|error| Error::invalid(error.to_string()).with_source(error)))
        .collect()
}

/// Parses examples: CSV with the header `text,label`, or JSON lines with these keys.
///
/// # Errors
/// [`InvalidInput`](orion_core::ErrorKind::InvalidInput) naming the line that does not fit, and for no example
/// at all.
pub fn parse_examples(text: &str) -> Result<Vec<Example>> {
    let examples: Vec<Example> = read(text)?;
    if let Some(at) = examples.iter().position(|example| example.label.trim().is_empty()) {
        return Err(Error::invalid("the label is empty").about(format!("example {}", at + 1)));
    }
    if examples.is_empty() {
        return Err(Error::invalid("holds no example; expected the header text,label and rows"));
    }
    Ok(examples)
}

/// Parses difficulty records: CSV with the header `prompt,weak_right,strong_right` (further columns are ignored),
/// or JSON lines with these keys.
///
/// # Errors
/// As [`parse_examples`].
pub fn parse_difficulty(text: &str) -> Result<Vec<DifficultyRecord>> {
    let rows: Vec<DifficultyRow> = read(text)?;
    if rows.is_empty() {
        return Err(Error::invalid(
            "holds no record; expected the header prompt,weak_right,strong_right and rows",
        ));
    }
    Ok(rows
        .into_iter()
        .map(|row| DifficultyRecord {
            prompt: row.prompt,
            weak_right: row.weak_right.0,
            strong_right: row.strong_right.0,
        })
        .collect())
}

fn file(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(|error| Error::io(error, path.display().to_string()))?;
    String::from_utf8(bytes)
        .map_err(|error| Error::invalid("not UTF-8").about(path.display().to_string()).with_source(error))
}

/// Reads a file of examples.
///
/// # Errors
/// As [`parse_examples`], and when the file cannot be read.
pub fn read_examples(path: &Path) -> Result<Vec<Example>> {
    parse_examples(&file(path)?).map_err(|error| error.about(path.display().to_string()))
}

/// Reads a file of difficulty records.
///
/// # Errors
/// As [`parse_difficulty`], and when the file cannot be read.
pub fn read_difficulty(path: &Path) -> Result<Vec<DifficultyRecord>> {
    parse_difficulty(&file(path)?).map_err(|error| error.about(path.display().to_string()))
}

/// Splits by the text's hash, so that equal texts never stand on both sides: about one in `parts` goes right.
pub(crate) fn split_by_text<T>(items: Vec<T>, parts: u64, text: impl Fn(&T) -> &str) -> (Vec<T>, Vec<T>) {
    items.into_iter().partition(|item| !crate::grams::hash(text(item).as_bytes()).is_multiple_of(parts))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn csv_and_json_lines_say_the_same() {
        let csv = "text,label\n\"a, \"\"b\"\"\nc\",x\nd,oos\n";
        let json = "{\"text\":\"a, \\\"b\\\"\\nc\",\"label\":\"x\"}\n\n{\"text\":\"d\",\"label\":\"oos\"}\n";
        let want = vec![Example::new("a, \"b\"\nc", "x"), Example::new("d", OUT_OF_SCOPE)];
        assert_eq!(parse_examples(csv).unwrap(), want);
        assert_eq!(parse_examples(json).unwrap(), want);
        assert_eq!(parse_examples(&format!("\u{feff}{csv}")).unwrap(), want);
    }

    #[test]
    fn difficulty_flags_are_strict() {
        let record =
            |weak_right, strong_right| DifficultyRecord { prompt: "p".into(), weak_right, strong_right };
        let csv = "subject,prompt,weak_right,strong_right\ns,p,1,0\ns,p,true,1.0\n";
        assert_eq!(parse_difficulty(csv).unwrap(), [record(true, false), record(true, true)]);
        let json = "{\"prompt\":\"p\",\"weak_right\":0,\"strong_right\":true}";
        assert_eq!(parse_difficulty(json).unwrap(), [record(false, true)]);
        for bad in ["2", "yes", "", "NaN"] {
            assert!(
                parse_difficulty(&format!("prompt,weak_right,strong_right\np,{bad},1\n")).is_err(),
                "{bad}"
            );
        }
    }

    #[test]
    fn files_that_do_not_fit_are_refused() {
        for (text, word) in [
            ("", "no example"),
            ("text,label\n", "no example"),
            ("prompt,label\na,b\n", "text"),
            ("text,label\na\n", "line"),
            ("text,label\na,\n", "label is empty"),
            ("{\"text\":\"a\"}", "label"),
            ("{broken", "line 1"),
        ] {
            let error = parse_examples(text).unwrap_err();
            assert!(error.to_string().contains(word), "{text:?}: {error}");
        }
        assert!(
            read_examples(Path::new("no/such/file.csv"))
                .unwrap_err()
                .to_string()
                .contains("no/such/file.csv")
        );
    }

    #[test]
    fn equal_texts_stay_on_one_side() {
        let items: Vec<String> = (0..1000).map(|at| format!("text {}", at % 100)).collect();
        let (left, right) = split_by_text(items, 4, |item| item);
        assert!(!right.is_empty() && right.iter().all(|text| !left.contains(text)));
    }
}
