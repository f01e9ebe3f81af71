//! The JSON Schema of `models.json`, and the step that checks a document against it.
//!
//! The schema is generated from the Rust types; the checker interprets that very schema, so what editors accept and
//! what is loaded cannot drift apart. It knows the keywords the generator emits and refuses any other, and it
//! resolves `$ref` inside the document only: there is no code that could fetch one.

use std::collections::HashMap;
use std::fmt;
use std::sync::LazyLock;

use regex::Regex;
use schemars::transform::{Transform, transform_subschemas};
use serde_json::Value as Json;

use crate::decode::Broken;
use crate::document::Document;
use crate::json::{Node, Value, escape};

/// The JSON Schema (2020-12) of `models.json`, as indented JSON with a final newline.
#[must_use]
pub fn schema_json() -> String {
    serde_json::to_string_pretty(&sorted(generate())).expect("a schema is plain JSON") + "\n"
}

/// Keys in alphabetical order, whichever order serde_json was built to keep.
fn sorted(value: Json) -> Json {
    match value {
        Json::Object(members) => {
            let mut members: Vec<_> = members.into_iter().map(|(key, value)| (key, sorted(value))).collect();
            members.sort_by(|a, b| a.0.cmp(&b.0));
            Json::Object(members.into_iter().collect())
        }
        Json::Array(elements) => elements.into_iter().map(sorted).collect(),
        other => other,
    }
}

fn generate() -> Json {
    let settings = schemars::generate::SchemaSettings::draft2020_12().with_transform(Strict);
    settings.into_generator().into_root_schema_for::<Document>().into()
}

/// Leaves only what a reader of the file needs: optional means absent, not `null`, and empty defaults go unsaid.
#[derive(Clone)]
struct Strict;

impl Transform for Strict {
    fn transform(&mut self, schema: &mut schemars::Schema) {
        transform_subschemas(self, schema);
        let Some(object) = schema.as_object_mut() else { return };
        if let Some(Json::Array(types)) = object.get_mut("type") {
            types.retain(|ty| ty != "null");
            if let [only] = types.as_slice() {
                let only = only.clone();
                object.insert("type".to_owned(), only);
            }
        }
        if let Some(Json::Array(branches)) = object.get("anyOf") {
            let mut branches = branches.iter().filter(|branch| branch["type"] != "null");
            if let (Some(Json::Object(only)), None) = (branches.next().cloned(), branches.next()) {
                object.remove("anyOf");
                object.extend(only);
            }
        }
        let empty = |value: &Json| match value {
            Json::Null => true,
            Json::Array(elements) => elements.is_empty(),
            Json::Object(members) => members.values().all(|value| value.is_null() || value == ""),
            Json::String(text) => text.is_empty(),
            _ => false,
        };
        if object.get("default").is_some_and(empty) || object.get("default") == Some(&Json::from(0)) {
            object.remove("default");
        }
        object.remove("format");
    }
}

/// A schema made ready to check with.
#[derive(Debug, Default)]
struct Rule {
    kind: Option<Kind>,
    description: String,
    members: Vec<(String, usize)>,
    lookup: HashMap<String, usize>,
    required: Vec<String>,
    /// Any member, if set; otherwise members that are not listed are refused where `closed`.
    additional: Option<usize>,
    closed: bool,
    items: Option<usize>,
    minimum: Option<f64>,
    maximum: Option<f64>,
    min_length: Option<usize>,
    max_length: Option<usize>,
    min_items: Option<usize>,
    pattern: Option<Regex>,
    choices: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Object,
    Array,
    String,
    Integer,
    Number,
    Boolean,
}

/// The rules of a whole schema; `rules[0]` is the root's.
#[derive(Debug)]
pub(crate) struct Rules(Vec<Rule>);

/// The rules of `models.json`.
pub(crate) static RULES: LazyLock<Rules> = LazyLock::new(|| {
    Rules::compile(&generate()).expect("the schema comes from our own types, and a test compiles it")
});

/// A value that breaks the schema.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Finding {
    pub(crate) at: usize,
    pub(crate) pointer: String,
    pub(crate) code: &'static str,
    pub(crate) message: String,
    pub(crate) help: String,
}

struct Compiler<'s> {
    root: &'s Json,
    rules: Vec<Rule>,
    done: HashMap<String, usize>,
}

impl Rules {
    fn compile(root: &Json) -> Result<Self, String> {
        let mut compiler = Compiler { root, rules: Vec::new(), done: HashMap::new() };
        compiler.rule(root)?;
        Ok(Self(compiler.rules))
    }
}

impl Compiler<'_> {
    fn rule(&mut self, schema: &Json) -> Result<usize, String> {
        let object = schema.as_object().ok_or("a schema that is no object")?;
        if let Some(target) = object.get("$ref").and_then(Json::as_str) {
            if let Some(index) = self.done.get(target) {
                return Ok(*index);
            }
            let pointer =
                target.strip_prefix('#').ok_or_else(|| format!("$ref to {target}, outside the document"))?;
            let schema = self.root.pointer(pointer).ok_or_else(|| format!("$ref to nothing: {target}"))?;
            let index = self.rule(schema)?;
            self.done.insert(target.to_owned(), index);
            return Ok(index);
        }
        let index = self.rules.len();
        self.rules.push(Rule::default());
        let mut rule = Rule::default();
        let size = |value: &Json| value.as_u64().and_then(|size| usize::try_from(size).ok());
        for (keyword, value) in object {
            match keyword.as_str() {
                "$schema" | "$defs" | "title" | "default" => {}
                "description" => rule.description = value.as_str().unwrap_or_default().replace('\n', " "),
                "type" => rule.kind = Some(kind(value)?),
                "const" => rule.choices = vec![value.as_str().ok_or("const that is no string")?.to_owned()],
                "enum" => rule.choices = strings(value)?,
                "oneOf" => {
                    // An enum whose variants have descriptions.
                    rule.kind = Some(Kind::String);
                    for branch in value.as_array().ok_or("oneOf that is no list")? {
                        let one = branch["const"].as_str().map(|name| vec![name.to_owned()]);
                        rule.choices.extend(one.map_or_else(|| strings(&branch["enum"]), Ok)?);
                    }
                }
                "properties" => {
                    for (name, schema) in value.as_object().ok_or("properties that are no object")? {
                        let member = self.rule(schema)?;
                        rule.lookup.insert(name.clone(), rule.members.len());
                        rule.members.push((name.clone(), member));
                    }
                }
                "additionalProperties" if value == false => rule.closed = true,
                "additionalProperties" => rule.additional = Some(self.rule(value)?),
                "required" => rule.required = strings(value)?,
                "items" => rule.items = Some(self.rule(value)?),
                "minimum" => rule.minimum = value.as_f64(),
                "maximum" => rule.maximum = value.as_f64(),
                "minLength" => rule.min_length = size(value),
                "maxLength" => rule.max_length = size(value),
                "minItems" => rule.min_items = size(value),
                "pattern" => {
                    let pattern = value.as_str().ok_or("pattern that is no string")?;
                    rule.pattern = Some(Regex::new(pattern).map_err(|error| error.to_string())?);
                }
                other => return Err(format!("schema keyword {other} is not known to the checker")),
            }
        }
        self.rules[index] = rule;
        Ok(index)
    }
}

fn kind(value: &Json) -> Result<Kind, String> {
    Ok(match value.as_str() {
        Some("object") => Kind::Object,
        Some("array") => Kind::Array,
        Some("string") => Kind::String,
        Some("integer") => Kind::Integer,
        Some("number") => Kind::Number,
        Some("boolean") => Kind::Boolean,
        _ => return Err(format!("schema type {value} is not known to the checker")),
    })
}

fn strings(value: &Json) -> Result<Vec<String>, String> {
    let texts = value.as_array().ok_or("a list was expected in the schema")?.iter();
    texts
        .map(|text| text.as_str().map(str::to_owned).ok_or_else(|| "a string was expected".to_owned()))
        .collect()
}

/// Checks a document. Returns what breaks the schema, and which values cannot be decoded for it.
pub(crate) fn check(root: &Node<'_>, rules: &Rules) -> (Vec<Finding>, Broken) {
    let mut checker =
        Checker { rules: &rules.0, path: Vec::new(), findings: Vec::new(), broken: Broken::new() };
    if !checker.check(root, 0) {
        checker.broken.insert(root.start);
    }
    (checker.findings, checker.broken)
}

enum Step<'n> {
    Key(&'n str),
    Index(usize),
}

struct Checker<'r, 'n> {
    rules: &'r [Rule],
    path: Vec<Step<'n>>,
    findings: Vec<Finding>,
    broken: Broken,
}

impl<'r, 'n> Checker<'r, 'n> {
    fn find(&mut self, at: usize, code: &'static str, message: String, help: String) {
        let mut pointer = String::new();
        for step in &self.path {
            pointer.push('/');
            match step {
                Step::Key(key) => pointer.push_str(&escape(key)),
                Step::Index(index) => pointer.push_str(&index.to_string()),
            }
        }
        self.findings.push(Finding { at, pointer, code, message, help });
    }

    /// Whether the value has the right type all through, so that it can be decoded.
    fn check(&mut self, node: &'n Node<'_>, rule: usize) -> bool {
        let rule = &self.rules[rule];
        match (&node.value, rule.kind) {
            (Value::Object(_), Some(Kind::Object)) => {
                self.object(node, rule);
                true
            }
            (Value::Array(elements), Some(Kind::Array)) => self.array(node, elements, rule),
            (Value::String(text), Some(Kind::String)) => self.string(node, text, rule),
            (Value::Number(text), Some(kind @ (Kind::Number | Kind::Integer))) => {
                self.number(node, text, kind, rule)
            }
            (Value::Bool(_), Some(Kind::Boolean)) | (_, None) => true,
            (_, Some(kind)) => {
                let message = format!("{} where {} should be", article(node.type_name()), expected(kind));
                self.find(node.start, "wrong-type", message, describe(rule, "correct the value"));
                false
            }
        }
    }

    fn object(&mut self, node: &'n Node<'_>, rule: &'r Rule) {
        // Fields mostly come in the schema's order, so the search starts behind the one found last.
        let mut next = 0;
        for member in node.members() {
            let known = match rule.members.get(next).filter(|(name, _)| *name == member.key) {
                Some(_) => Some(next),
                None => rule.lookup.get(member.key.as_ref()).copied(),
            };
            self.path.push(Step::Key(&member.key));
            let inner = match known {
                Some(index) => {
                    next = index + 1;
                    Some(rule.members[index].1)
                }
                None => rule.additional,
            };
            let decodable = match inner {
                Some(inner) => self.check(&member.value, inner),
                None if rule.closed => {
                    let candidates = rule.members.iter().map(|(name, _)| name.as_str());
                    let help = match did_you_mean(&member.key, candidates) {
                        Some(name) => format!("did you mean {name:?}?"),
                        None => {
                            let names: Vec<_> = rule.members.iter().map(|(name, _)| name.as_str()).collect();
                            format!("remove it; known fields: {}", names.join(", "))
                        }
                    };
                    self.find(
                        member.key_start,
                        "unknown-field",
                        format!("unknown field {:?}", member.key),
                        help,
                    );
                    false
                }
                None => true,
            };
            if !decodable {
                self.broken.insert(member.value.start);
            }
            self.path.pop();
        }
        for name in &rule.required {
            if node.get(name).is_none() {
                let help = "add it".to_owned();
                self.find(node.start, "missing-field", format!("the field {name:?} is missing"), help);
            }
        }
    }

    fn array(&mut self, node: &'n Node<'_>, elements: &'n [Node<'_>], rule: &'r Rule) -> bool {
        if rule.min_items.is_some_and(|least| elements.len() < least) {
            self.find(
                node.start,
                "too-short",
                "the list is empty".to_owned(),
                describe(rule, "add an element"),
            );
        }
        let Some(items) = rule.items else { return true };
        // Models stand for themselves: one that cannot be decoded does not hide the others.
        let independent = matches!(self.path.as_slice(), [Step::Key("models")]);
        let mut decodable = true;
        for (index, element) in elements.iter().enumerate() {
            self.path.push(Step::Index(index));
            if !self.check(element, items) {
                self.broken.insert(element.start);
                decodable = independent;
            }
            self.path.pop();
        }
        decodable
    }

    fn string(&mut self, node: &Node<'_>, text: &str, rule: &'r Rule) -> bool {
        if !rule.choices.is_empty() && !rule.choices.iter().any(|choice| choice == text) {
            let help = match did_you_mean(text, rule.choices.iter().map(String::as_str)) {
                Some(name) => format!("did you mean {name:?}?"),
                None => format!("one of: {}", rule.choices.join(", ")),
            };
            self.find(node.start, "unknown-value", format!("{} is not known here", quoted(text)), help);
            return false;
        }
        let length =
            if rule.min_length.is_some() || rule.max_length.is_some() { text.chars().count() } else { 0 };
        if rule.min_length.is_some_and(|least| length < least) {
            self.find(
                node.start,
                "too-short",
                "the text is empty".to_owned(),
                describe(rule, "write something"),
            );
        } else if let Some(most) = rule.max_length.filter(|most| length > *most) {
            let message = format!("{length} characters, at most {most} are allowed");
            self.find(node.start, "too-long", message, describe(rule, "shorten it"));
        } else if let Some(pattern) = rule.pattern.as_ref().filter(|pattern| !pattern.is_match(text)) {
            let help = describe(rule, &format!("it must match {pattern}"));
            self.find(node.start, "malformed", format!("{} is malformed", quoted(text)), help);
        }
        true
    }

    fn number(&mut self, node: &Node<'_>, text: &str, kind: Kind, rule: &'r Rule) -> bool {
        let value: f64 = text.parse().unwrap_or(f64::NAN);
        let outside = !value.is_finite()
            || rule.minimum.is_some_and(|low| value < low)
            || rule.maximum.is_some_and(|high| value > high);
        let broken = kind == Kind::Integer && value.fract() != 0.0;
        if !outside && !broken {
            return true;
        }
        let range = match (rule.minimum, rule.maximum) {
            (Some(low), Some(high)) => format!("a number from {low} to {high}"),
            (Some(low), None) => format!("a number from {low}"),
            (None, Some(high)) => format!("a number up to {high}"),
            (None, None) => "a number".to_owned(),
        };
        let shown = quoted(text);
        let shown = shown.trim_matches('"');
        if outside {
            let help = describe(rule, &format!("write {range}"));
            self.find(node.start, "out-of-range", format!("{shown} is out of range"), help);
        } else {
            let help = describe(rule, &format!("write {range} without a fraction"));
            self.find(node.start, "not-an-integer", format!("{shown} is not a whole number"), help);
        }
        false
    }
}

fn describe(rule: &Rule, what: &str) -> String {
    match rule.description.split(". ").next() {
        Some("") | None => what.to_owned(),
        Some(first) => format!("{what} ({})", first.trim_end_matches('.')),
    }
}

fn article(name: &str) -> String {
    match name {
        "null" => "null".to_owned(),
        "array" | "object" => format!("an {name}"),
        _ => format!("a {name}"),
    }
}

fn expected(kind: Kind) -> &'static str {
    match kind {
        Kind::Object => "an object",
        Kind::Array => "an array",
        Kind::String => "a string",
        Kind::Integer => "a whole number",
        Kind::Number => "a number",
        Kind::Boolean => "true or false",
    }
}

/// A text in quotes, cut after 80 characters; written only when something is wrong with it.
#[derive(Clone, Copy)]
pub(crate) struct Quoted<'t>(pub(crate) &'t str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.char_indices().nth(80) {
            Some((cut, _)) => write!(f, "{:?}…", &self.0[..cut]),
            None => write!(f, "{:?}", self.0),
        }
    }
}

pub(crate) fn quoted(text: &str) -> String {
    Quoted(text).to_string()
}

/// The nearest of `names`, if one is near: at most a third of the characters differ.
pub(crate) fn did_you_mean<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    if name.len() > 256 {
        return None;
    }
    let lower = name.to_lowercase();
    let nearest = names.map(|known| (strsim::osa_distance(&lower, known), known)).min()?;
    (nearest.0 <= (lower.chars().count().max(3) / 3)).then_some(nearest.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_asked_about_a_name_without_end() {
        let long = "a".repeat(256);
        assert_eq!(did_you_mean(&long, [long.as_str()].into_iter()), Some(long.as_str()));
        let longer = "a".repeat(257);
        assert_eq!(did_you_mean(&longer, [longer.as_str()].into_iter()), None);
    }

    #[test]
    fn the_generated_schema_compiles_and_a_foreign_ref_or_keyword_is_refused() {
        Rules::compile(&generate()).unwrap();
        for foreign in ["http://localhost/x", "file:///etc/passwd", "other.json"] {
            let schema = serde_json::json!({"type": "object", "properties": {"a": {"$ref": foreign}}});
            assert!(Rules::compile(&schema).unwrap_err().contains("outside the document"));
        }
        assert!(Rules::compile(&serde_json::json!({"dependentSchemas": {}})).is_err());
    }

    #[test]
    fn near_names_are_suggested_and_far_ones_are_not() {
        let names = || ["context_length", "quantization", "files"].into_iter();
        assert_eq!(did_you_mean("contxt_length", names()), Some("context_length"));
        assert_eq!(did_you_mean("quantisation", names()), Some("quantization"));
        assert_eq!(did_you_mean("flies", names()), Some("files"));
        assert_eq!(did_you_mean("temperature", names()), None);
    }
}
