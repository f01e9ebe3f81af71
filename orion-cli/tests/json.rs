//! `docs/json.md` lists the keys of every `--json` output: no more, no less, and of the types it says.

#![allow(clippy::unwrap_used, reason = "in a test a panic is a failure")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use orion_testkit::models::{minilm, smollm2};
use serde_json::Value;

/// A row of a table.
struct Row {
    types: BTreeSet<String>,
    always: bool,
}

/// What the document says of one command.
#[derive(Default)]
struct Section {
    title: String,
    commands: Vec<String>,
    /// By path: `a.b`, `list[].a`, `map.*`.
    rows: BTreeMap<String, Row>,
}

fn sections(text: &str) -> Vec<Section> {
    let mut sections: Vec<Section> = Vec::new();
    let mut in_commands = false;
    for line in text.lines() {
        if let Some(title) = line.strip_prefix("## ") {
            sections.push(Section { title: title.to_owned(), ..Section::default() });
        }
        let Some(section) = sections.last_mut() else { continue };
        if line.starts_with("```") {
            in_commands = line == "```sh";
        } else if in_commands {
            section.commands.push(line.to_owned());
        } else if let Some(row) = line.strip_prefix("| `") {
            let (path, rest) = row.split_once("` | ").unwrap();
            let (types, rest) = rest.split_once(" | ").unwrap();
            let types = types.split(" or ").map(str::to_owned).collect();
            let always = rest.starts_with("always");
            let before = section.rows.insert(path.to_owned(), Row { types, always });
            assert!(before.is_none(), "{}: {path} is listed twice", section.title);
        }
    }
    sections
}

/// The type of a value, as the document writes it.
fn kind(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(_) => "boolean".into(),
        Value::Number(number) if number.is_f64() => "number".into(),
        Value::Number(_) => "integer".into(),
        Value::String(_) => "string".into(),
        Value::Object(_) => "object".into(),
        Value::Array(list) => {
            let mut kinds: BTreeSet<String> = list.iter().map(kind).collect();
            if kinds.contains("number") {
                kinds.remove("integer");
            }
            format!("array of {}", Vec::from_iter(kinds).join(" and "))
        }
    }
}

/// Whether a value of type `found` may stand where the document says `said`: a whole number is a number, an empty list any list.
fn fits(found: &str, said: &str) -> bool {
    let numbers = |kind: &str| kind.replace("integer", "number");
    found == said
        || said == "entry" && found == "object"
        || found == "array of " && said.starts_with("array of ")
        || said.contains("number") && numbers(found) == said
}

/// Paths of a value and the types found there; objects and lists of objects are walked into, entries of the registry are not.
fn walk(value: &Value, path: &str, known: &Section, found: &mut BTreeMap<String, BTreeSet<String>>) {
    if !path.is_empty() && !path.ends_with("[]") {
        found.entry(path.to_owned()).or_default().insert(kind(value));
    }
    if known.rows.get(path).is_some_and(|row| row.types.contains("entry")) {
        return;
    }
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let any = format!("{path}.*");
                let named = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                let path = if known.rows.contains_key(&any) { any } else { named };
                walk(value, &path, known, found);
            }
        }
        Value::Array(list) => {
            for value in list.iter().filter(|value| value.is_object()) {
                walk(value, &format!("{path}[]"), known, found);
            }
        }
        _ => {}
    }
}

/// Runs a line in a shell that knows `orion`.
fn run(line: &str, folder: &Path) -> Output {
    let shell = format!("orion() {{ \"$ORION\" \"$@\"; }}\n{line}");
    Command::new("sh")
        .args(["-c", &shell])
        .env("ORION", env!("CARGO_BIN_EXE_orion"))
        .env("ORION_CACHE", folder.join("cache"))
        .env_remove("ORION_REGISTRY")
        .current_dir(folder)
        .output()
        .expect("sh runs")
}

fn parsed(line: &str, output: &Output) -> Value {
    let text = str::from_utf8(&output.stdout).expect("UTF-8");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(text.lines().count(), 1, "{line}: one object on one line, not {text}{said}");
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{line}: {error}"))
}

/// Compares; answers what is wrong.
fn check(section: &Section, folder: &Path) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut all: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let title = &section.title;
    for line in &section.commands {
        let output = run(line, folder);
        if !line.ends_with("--json") {
            assert!(output.status.success(), "{line}");
            continue;
        }
        let value = parsed(line, &output);
        let mut found = BTreeMap::new();
        walk(&value, "", section, &mut found);
        for (path, row) in section.rows.iter().filter(|(_, row)| row.always) {
            // A key of what is not there, or of an empty list, is not missing.
            let (parent, _) = path.rsplit_once('.').unwrap_or_default();
            let parent_found = parent.is_empty() || found.contains_key(parent) && !parent.ends_with("[]");
            if !found.contains_key(path) && parent_found {
                wrong.push(format!("{title}: {path} ({:?}) is not in the output of {line}", row.types));
            }
        }
        for (path, types) in found {
            all.entry(path).or_default().extend(types);
        }
    }
    for (path, types) in &all {
        match section.rows.get(path) {
            None => wrong.push(format!("{title}: {path}, {types:?}, is not in the document")),
            Some(row) => {
                let said = |kind: &&String| !row.types.iter().any(|said| fits(kind, said));
                let strange: Vec<_> = types.iter().filter(said).collect();
                if !strange.is_empty() {
                    wrong.push(format!("{title}: {path} is {strange:?}, the document says {:?}", row.types));
                }
            }
        }
    }
    for path in section.rows.keys().filter(|path| !all.contains_key(*path)) {
        wrong.push(format!("{title}: no command of the document shows {path}"));
    }
    wrong
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let to = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_folder(&path, &to);
        } else {
            fs::copy(&path, &to).unwrap();
        }
    }
}

#[test]
fn every_json_output_has_the_keys_the_document_lists() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    // Not a link: a registry does not follow those out of its folder.
    fs::copy(smollm2(), at("SmolLM2-135M-Instruct.Q4_1.gguf")).unwrap();
    copy_folder(&minilm(), &at("all-MiniLM-L6-v2"));
    let licences = fs::read_to_string(root.join("benches/data/licences.txt")).unwrap();
    fs::write(at("text.txt"), licences.chars().take(4000).collect::<String>()).unwrap();
    for name in ["models.json", "models.head.safetensors"] {
        fs::copy(root.join(name), at(name)).unwrap();
    }
    // Sixty of the prompts, of every label.
    let prompts = fs::read_to_string(root.join("orion-router/data/agents.en.csv")).unwrap();
    let (head, rows) = prompts.split_once('\n').unwrap();
    let some: Vec<_> = std::iter::once(head).chain(rows.lines().step_by(rows.lines().count() / 60)).collect();
    fs::write(at("agents.csv"), some.join("\n")).unwrap();

    let sections = sections(&fs::read_to_string(root.join("docs/json.md")).unwrap());
    let wrong: Vec<String> = sections.iter().flat_map(|section| check(section, folder.path())).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(sections.iter().map(|section| section.rows.len()).sum::<usize>() > 100);
}

#[test]
fn every_command_that_takes_json_is_in_the_document() {
    let document = include_str!("../../docs/json.md");
    let help = |arguments: &[&str]| {
        let output =
            Command::new(env!("CARGO_BIN_EXE_orion")).args(arguments).arg("--help").output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    // Commands stand below "Commands:", indented by two.
    let commands = |help: &str| -> Vec<String> {
        let below = help.split("Commands:\n").nth(1).unwrap_or("");
        let names = below.lines().take_while(|line| line.starts_with("  "));
        let names = names.filter(|line| !line.starts_with("   "));
        names
            .filter_map(|line| line.split_whitespace().next())
            .filter(|name| *name != "help")
            .map(str::to_owned)
            .collect()
    };
    let mut missing = Vec::new();
    let mut seen = 0;
    let mut open: Vec<Vec<String>> = commands(&help(&[])).into_iter().map(|name| vec![name]).collect();
    while let Some(path) = open.pop() {
        let text = help(&path.iter().map(String::as_str).collect::<Vec<_>>());
        open.extend(commands(&text).into_iter().map(|name| [path.clone(), vec![name]].concat()));
        if text.contains("--json") {
            seen += 1;
            if !document.contains(&format!("\norion {} ", path.join(" "))) {
                missing.push(path.join(" "));
            }
        }
    }
    assert!(seen > 20, "only {seen} commands take --json");
    assert!(missing.is_empty(), "docs/json.md shows no output of: {}", missing.join(", "));
}
