//! Output that follows a JSON Schema, a regular expression or a grammar.
//!
//! Before each token the grammar says which tokens may come next; the others are never chosen. The parser is
//! llguidance's (Earley over a lexer of regular-expression derivatives, walked along a trie of the vocabulary).

mod gbnf;

use std::fmt;
use std::sync::Arc;

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory, earley::SlicedBiasComputer};
use orion_core::{Constraint, Error, ErrorKind, Result, TokenId};
use serde_json::{Value, json};

use crate::tokenizer::Tokenizer;

/// Whitespace between the parts of a JSON text: enough for any usual layout, too little to go on for ever.
const JSON_SPACE: &str = r" |\n[ ]{0,20}|\n[\t]{0,10}";
/// Longest schema, expression or grammar.
const MAX_TEXT: usize = 1 << 20;

/// What a model's vocabulary needs for constraints, made once.
pub(crate) struct Constraints {
    factory: ParserFactory,
}

impl fmt::Debug for Constraints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Constraints")
    }
}

impl Constraints {
    /// `rows` are the logits of a position.
    pub(crate) fn new(tokenizer: &Tokenizer, rows: usize) -> Result<Self> {
        let ends: Vec<u32> = tokenizer.end_of_generation().iter().map(|token| token.0).collect();
        let Some(&end) = ends.first() else {
            return Err(Error::unsupported(
                "a constraint, for the vocabulary has no token that ends an answer",
            ));
        };
        let count = u32::try_from(rows).map_err(|_| Error::corrupt("the vocabulary is too large"))?;
        let words: Vec<Vec<u8>> = (0..count).map(|id| word(tokenizer, TokenId(id))).collect();
        let trie = TokTrie::from(&TokRxInfo::new(count, end), &words).with_eos_tokens(&ends);
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let slices = SlicedBiasComputer::general_slices();
        let mut factory = ParserFactory::new(&environment, InferenceCapabilities::default(), &slices)
            .map_err(|error| Error::new(ErrorKind::Internal, error.to_string()))?;
        factory.quiet();
        factory.limits_mut().verbose_errors = false;
        Ok(Self { factory })
    }

    /// Begins an answer.
    pub(crate) fn start(&self, constraint: &Constraint) -> Result<Follow> {
        let (name, text) = match constraint {
            Constraint::JsonSchema(text) => ("JSON schema", text),
            Constraint::Regex(text) => ("regular expression", text),
            Constraint::Grammar(text) => ("grammar", text),
            other => return Err(Error::unsupported(format!("constraint {other:?}"))),
        };
        let bad = |message: String| Error::invalid(message).about(name);
        if text.len() > MAX_TEXT {
            return Err(bad(format!("has {} bytes, at most {MAX_TEXT} are read", text.len())));
        }
        let grammar = match constraint {
            Constraint::JsonSchema(text) => {
                let schema =
                    serde_json::from_str(text).map_err(|error| bad(format!("is not JSON: {error}")))?;
                TopLevelGrammar::from_json_schema(with_space(schema))
            }
            Constraint::Regex(text) => TopLevelGrammar::from_regex(text),
            _ => TopLevelGrammar::from_lark(gbnf::to_lark(text).map_err(|error| error.about(name))?),
        };
        let parser =
            self.factory.create_parser(grammar).map_err(|error| bad(first_line(&error.to_string())))?;
        let mut matcher = Matcher::new(Ok(parser));
        // What can never be followed is said now, not at the first token.
        matcher.compute_mask().map_err(|error| bad(first_line(&error.to_string())))?;
        Ok(Follow { matcher, masked: Vec::new() })
    }
}

/// The bytes a token writes; those that steer the model are marked, so that no text can ask for them.
fn word(tokenizer: &Tokenizer, token: TokenId) -> Vec<u8> {
    let Some(bytes) = tokenizer.token_bytes(token) else { return Vec::new() };
    match tokenizer.is_control(token) || tokenizer.is_end_of_generation(token) {
        true => [&[TokTrie::SPECIAL_TOKEN_MARKER], &*bytes].concat(),
        false => bytes.into_owned(),
    }
}

/// A schema that says how its texts are laid out, unless it does already.
fn with_space(mut schema: Value) -> Value {
    if schema == Value::Bool(true) {
        schema = json!({});
    }
    if let Some(schema) = schema.as_object_mut() {
        schema.entry("x-guidance").or_insert_with(|| json!({ "whitespace_pattern": JSON_SPACE }));
    }
    schema
}

fn first_line(message: &str) -> String {
    message.lines().next().unwrap_or_default().chars().take(300).collect()
}

/// One answer on its way through its grammar.
pub(crate) struct Follow {
    matcher: Matcher,
    masked: Vec<f32>,
}

impl Follow {
    /// The logits of the tokens that may come next; of all others negative infinity.
    pub(crate) fn allow(&mut self, logits: &[f32]) -> Result<&[f32]> {
        let mask = self.matcher.compute_mask_or_eos().map_err(lost)?;
        self.masked.clear();
        self.masked.resize(logits.len(), f32::NEG_INFINITY);
        mask.iter_set_entries(|token| {
            if let (Some(masked), Some(logit)) = (self.masked.get_mut(token), logits.get(token)) {
                *masked = *logit;
            }
        });
        Ok(&self.masked)
    }

    /// Whether this token may come next, without asking for all that may.
    pub(crate) fn allows(&mut self, token: TokenId) -> Result<bool> {
        let vocabulary = self.matcher.tok_env().map_err(lost)?;
        // A token without bytes (padding) would fit anywhere and say nothing.
        let says_something = !vocabulary.tok_trie().token(token.0).is_empty();
        Ok(says_something && self.matcher.validate_tokens(&[token.0]).map_err(lost)? == 1)
    }

    /// A token was chosen. Whether nothing may follow it.
    pub(crate) fn took(&mut self, token: TokenId) -> Result<bool> {
        self.matcher.consume_token(token.0).map_err(lost)?;
        Ok(self.matcher.is_stopped())
    }
}

fn lost(error: impl fmt::Display) -> Error {
    Error::new(
        ErrorKind::Internal,
        format!("the grammar cannot be followed: {}", first_line(&error.to_string())),
    )
}
