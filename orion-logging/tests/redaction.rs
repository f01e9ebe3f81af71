//! Secrets planted everywhere, and none of them written anywhere.

#![allow(clippy::unwrap_used, reason = "in a test a panic is a failure")]

mod common;

use std::fmt;

use common::logged;
use orion_logging::{Logging, Redactor};
use proptest::prelude::*;

/// A secret and the part of it that must not be seen.
fn secret() -> impl Strategy<Value = (String, String)> {
    let same = |text: String| (text.clone(), text);
    prop_oneof![
        "sk-[A-Za-z0-9]{20,40}".prop_map(same),
        "gh[pousr]_[A-Za-z0-9]{36}".prop_map(same),
        "hf_[A-Za-z0-9]{20,34}".prop_map(same),
        "AKIA[0-9A-Z]{16}".prop_map(same),
        "eyJ[A-Za-z0-9_]{12,20}\\.[A-Za-z0-9_]{12,20}\\.[A-Za-z0-9_]{12,20}".prop_map(same),
        ("[Bb]earer ", "[A-Za-z0-9]{16,40}").prop_map(|(word, key)| (word + &key, key)),
        ("[a-z]{3,8}[0-9]{2}@[a-z]{3,10}\\.(org|com|example)").prop_map(same),
        ("(password|api_key|API-KEY|secret|access_token|Authorization)( ?[:=] ?)", "[A-Za-z0-9]{10,20}")
            .prop_map(|(name, value)| (name + &value, value)),
        ("\\{\"(password|apiKey|client_secret)\": \"", "[A-Za-z0-9 ]{9,20}x")
            .prop_map(|(name, value)| (format!("{name}{value}\"}}"), value)),
        ("https://[a-z]{3,8}:", "[A-Za-z0-9]{10,16}")
            .prop_map(|(url, word)| (format!("{url}{word}@host/x"), word)),
        "[1-9][0-9]{14}".prop_map(card).prop_map(same),
        "\\+33 [67] [0-9]{2} [0-9]{2} [0-9]{2} [0-9]{2}".prop_map(same),
        "0[1-7]([0-9]{2}){4}".prop_map(same),
        "[2-9][0-9]{2}-[0-9]{3}-[0-9]{4}".prop_map(same),
    ]
}

/// Sixteen digits that start as cards do and pass Luhn's check.
#[allow(clippy::needless_pass_by_value, reason = "prop_map hands it over")]
fn card(digits: String) -> String {
    let body = format!("4{}", &digits[1..]);
    (0..10).map(|check| format!("{body}{check}")).find(|card| luhn(card)).unwrap()
}

fn luhn(text: &str) -> bool {
    let double = |d: u32| if d > 4 { 2 * d - 9 } else { 2 * d };
    let digits = text.chars().rev().map(|c| c.to_digit(10).unwrap()).enumerate();
    digits.map(|(at, digit)| if at % 2 == 1 { double(digit) } else { digit }).sum::<u32>() % 10 == 0
}

#[derive(Debug)]
struct Failure(String, Option<Box<Failure>>);

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "failed with {}", self.0)
    }
}

impl std::error::Error for Failure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.1.as_ref().map(|source| &**source as _)
    }
}

#[derive(Debug)]
#[allow(dead_code, reason = "only its Debug output is of interest")]
struct Config {
    note: String,
    deeper: Option<Vec<String>>,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// In a message, a field, a debugged structure, an error and its source, span attributes at creation and later,
    /// fields named after secrets and after content; in JSON, in pretty lines and in the ring.
    #[test]
    fn no_planted_secret_is_written((whole, hidden) in secret(), before in "[a-zé ,.]{0,20}", after in "[a-zé ,.]{0,20}", word in "[A-Za-z0-9]{12,24}") {
        let text = format!("{before} {whole} {after}");
        let error = Failure("outer".into(), Some(Box::new(Failure(text.clone(), None))));
        let config = Config { note: text.clone(), deeper: Some(vec![text.clone()]) };
        let (handle, json, pretty) = logged(Logging::builder().ignore_environment(), |_| {
            let span = tracing::info_span!(target: "orion_loader", "span", attribute = text, later = tracing::field::Empty, password = word);
            span.record("later", text.as_str());
            let _entered = span.enter();
            tracing::info!(target: "orion_loader", "message with {text}");
            tracing::info!(target: "orion_loader", field = text, debug = ?config, display = %text, "fields");
            tracing::warn!(target: "orion_loader", error = &error as &dyn std::error::Error, shown = %error, "errors");
            tracing::info!(target: "orion_loader", api_key = word, user_token = ?word, prompt = word, completion = %word, http.authorization = word, "names");
        });
        let captured = handle.export_capture();
        for (place, out) in [("json", &json), ("pretty", &pretty), ("ring", &captured)] {
            prop_assert!(!out.contains(&hidden), "{hidden:?} of {whole:?} in {place}: {out}");
            prop_assert!(!out.contains(&word), "{word:?} in {place}: {out}");
        }
        prop_assert_eq!(common::values(&json).len(), 4);
        // What was around it is still there.
        prop_assert!(json.contains("message with"));
    }

    #[test]
    fn numbers_that_are_cards_are_not_written(digits in "[1-9][0-9]{14}") {
        let card: u64 = card(digits).parse().unwrap();
        let (_, json, _) = logged(Logging::builder().ignore_environment(), |_| {
            tracing::info!(target: "orion_loader", a = card, b = card as i64, c = u128::from(card), d = card as f64, e = ?card, "cards");
        });
        prop_assert!(!json.contains(&card.to_string()), "{json}");
    }

    #[test]
    fn redacting_twice_changes_nothing_more(text in "\\PC{0,80}") {
        let redactor = Redactor::new();
        let once = redactor.text(&text).into_owned();
        prop_assert_eq!(redactor.text(&once).into_owned(), once.clone());
    }
}

#[test]
fn content_is_written_only_if_the_program_asks() {
    let say = || tracing::info!(target: "orion_loader", prompt = "why is the sky blue", "asked");
    let (_, json, _) = logged(Logging::builder().ignore_environment(), |_| say());
    assert!(!json.contains("sky") && json.contains("\"prompt\":\"[19 bytes, sha256:"), "{json}");
    let open = Logging::builder().ignore_environment().redactor(Redactor::new().content(true));
    let (_, json, _) = logged(open, |_| say());
    assert!(json.contains("\"prompt\":\"why is the sky blue\""), "{json}");
}
