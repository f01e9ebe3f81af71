//! The documents are true: every command in them exists as it is written, and those of the guides run.

#![allow(clippy::unwrap_used, reason = "in a test a panic is a failure")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use orion_testkit::models::smollm2;

const ORION: &str = env!("CARGO_BIN_EXE_orion");

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Every document, by its path below the root.
fn documents() -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root(), root().join("docs"), root().join("examples")];
    let members = fs::read_dir(root()).unwrap().map(|entry| entry.unwrap().path());
    folders.extend(members.filter(|path| path.join("Cargo.toml").exists()));
    for folder in folders {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            // The changelog speaks of what was.
            if path.extension().is_some_and(|end| end == "md") && !path.ends_with("CHANGELOG.md") {
                let name = path.strip_prefix(root()).unwrap().display().to_string();
                found.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    assert!(found.len() > 15, "only {} documents", found.len());
    found
}

/// The fenced blocks of a document: language and lines.
fn blocks(text: &str) -> Vec<(&str, Vec<&str>)> {
    let mut blocks = Vec::new();
    let mut open: Option<(&str, Vec<&str>)> = None;
    for line in text.lines() {
        match (line.strip_prefix("```"), &mut open) {
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some(language), None) => open = Some((language, Vec::new())),
            (None, Some((_, lines))) => lines.push(line),
            (None, None) => {}
        }
    }
    blocks
}

/// Code in the running text.
fn spans(text: &str) -> Vec<&str> {
    let mut fenced = false;
    let prose = text.lines().filter(move |line| {
        let fence = line.starts_with("```");
        fenced ^= fence;
        !fence && !fenced
    });
    prose.flat_map(|line| line.split('`').skip(1).step_by(2)).collect()
}

/// Words as a shell splits them, up to a comment.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for c in line.chars() {
        match (quote, c) {
            (None, '#') if word.is_none() => break,
            (None, '"' | '\'') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (Some(open), _) if open == c => quote = None,
            (None, _) if c.is_whitespace() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

/// What a document tells its reader to type.
fn commands(text: &str) -> Vec<Vec<String>> {
    let mut lines: Vec<&str> = spans(text);
    for (language, block) in blocks(text) {
        match language {
            "sh" => lines.extend(block),
            "text" => lines.extend(block.into_iter().filter_map(|line| line.strip_prefix("$ "))),
            _ => {}
        }
    }
    let mut all: Vec<_> = lines.into_iter().map(words).collect();
    all.retain(|words| words.len() > 1 || words.first().is_some_and(|word| word == "make"));
    // `RUSTFLAGS="…" cargo …`
    for words in &mut all {
        let variables = words.iter().take_while(|word| word.contains('=') && !word.starts_with('-')).count();
        words.drain(..variables);
    }
    all.retain(|words| !words.is_empty());
    all
}

fn orion(arguments: &[String], folder: &Path) -> Output {
    let mut command = Command::new(ORION);
    command.args(arguments).current_dir(folder).env("ORION_CACHE", folder.join("cache"));
    command.env_remove("ORION_REGISTRY").output().expect("the binary runs")
}

#[test]
fn every_orion_command_is_one_the_program_takes() {
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for (name, text) in documents() {
        for words in commands(&text).into_iter().filter(|words| words[0] == "orion") {
            seen += 1;
            // Flags and values are looked at before help is given; what is left out is not asked for.
            let mut arguments = [&words[1..], &["--help".to_owned()]].concat();
            // Where a number belongs, tables write N.
            arguments.iter_mut().filter(|word| *word == "N").for_each(|word| *word = "1".to_owned());
            let output = orion(&arguments, &root());
            if !output.status.success() {
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                wrong.push(format!("{name}: {}\n  {}", words.join(" "), said.lines().next().unwrap_or("")));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen > 60, "only {seen} commands");
}

#[test]
fn every_make_target_and_variable_is_in_the_makefile() {
    let makefile = fs::read_to_string(root().join("Makefile")).unwrap();
    let targets: BTreeSet<&str> = makefile.lines().filter_map(|line| Some(line.split_once(':')?.0)).collect();
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for (name, text) in documents() {
        for words in commands(&text).into_iter().filter(|words| words[0] == "make") {
            for word in &words[1..] {
                seen += 1;
                let known = match word.split_once('=') {
                    Some((variable, _)) => makefile.contains(&format!("$({variable})")),
                    None => targets.contains(word.as_str()),
                };
                if !known {
                    wrong.push(format!("{name}: {}: there is no {word}", words.join(" ")));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen > 20, "only {seen} targets");
}

#[test]
fn every_cargo_command_names_what_is_there() {
    let (mut wrong, mut seen) = (Vec::new(), 0);
    let packages: Vec<PathBuf> = fs::read_dir(root())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("Cargo.toml").exists())
        .chain([root()])
        .collect();
    let target = |folder: &str, name: &str| {
        packages.iter().any(|package| {
            let folder = package.join(folder);
            folder.join(format!("{name}.rs")).exists() || folder.join(name).join("main.rs").exists()
        })
    };
    for (name, text) in documents() {
        for words in commands(&text).into_iter().filter(|words| words[0] == "cargo") {
            for pair in words.windows(2) {
                let value = pair[1].as_str();
                if value.chars().all(|c| c.is_ascii_uppercase()) {
                    continue; // a placeholder
                }
                let known = match pair[0].as_str() {
                    "--example" => target("examples", value),
                    "--bench" => target("benches", value),
                    "--test" => target("tests", value),
                    "-p" | "--package" => value == "orion-engine" || root().join(value).exists(),
                    "--path" | "--manifest-path" => root().join(value).exists(),
                    _ => continue,
                };
                seen += 1;
                if !known {
                    wrong.push(format!("{name}: {}: there is no {value}", words.join(" ")));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen > 10, "only {seen} names");
}

#[test]
fn every_file_that_is_linked_is_there() {
    let mut wrong = Vec::new();
    for (name, text) in documents() {
        let folder = root().join(&name).parent().unwrap().to_owned();
        for rest in text.split("](").skip(1) {
            let link = rest.split([')', '#']).next().unwrap();
            let elsewhere = link.is_empty() || link.contains("://") || link.contains("::");
            if !elsewhere && !folder.join(link).exists() {
                wrong.push(format!("{name}: {link}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_test_a_document_names_is_there() {
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for (name, text) in documents() {
        for span in spans(&text) {
            let Some((file, test)) = span.split_once(".rs::") else { continue };
            seen += 1;
            let source = fs::read_to_string(root().join(format!("{file}.rs"))).unwrap_or_default();
            let lines: Vec<&str> = source.lines().map(str::trim).collect();
            let function = format!("fn {test}() {{");
            if !lines.windows(2).any(|pair| pair == ["#[test]", function.as_str()]) {
                wrong.push(format!("{name}: {span}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen > 50, "only {seen} tests");
}

/// Runs the `sh` blocks of a guide from top to bottom, in a folder with the model and the files the guide shows.
fn run_guide(name: &str) {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    // Not a link: a registry does not follow those out of its folder.
    fs::copy(smollm2(), at("SmolLM2-135M-Instruct.Q4_1.gguf")).unwrap();
    let licences = fs::read_to_string(root().join("benches/data/licences.txt")).unwrap();
    fs::write(at("text.txt"), licences.chars().take(1500).collect::<String>()).unwrap();
    let text = fs::read_to_string(root().join(name)).unwrap();
    let mut ran = 0;
    for (language, lines) in blocks(&text) {
        if language == "json" {
            fs::write(at("models.json"), lines.join("\n")).unwrap();
        }
        for words in lines.iter().map(|line| words(line)).filter(|_| language == "sh") {
            assert_eq!(words[0], "orion", "{name}: {}", words.join(" "));
            let output = orion(&words[1..], folder.path());
            let said = [&output.stdout[..], &output.stderr].concat();
            let line = words.join(" ");
            assert!(output.status.success(), "{name}: {line}\n{}", String::from_utf8_lossy(&said));
            ran += 1;
        }
    }
    assert!(ran >= 8, "{name}: only {ran} commands ran");
}

#[test]
fn the_guide_runs_from_top_to_bottom() {
    run_guide("docs/guide.md");
}

#[test]
fn the_pipeline_runs_from_top_to_bottom() {
    run_guide("docs/pipeline.md");
}

#[test]
fn both_readmes_show_the_same_code_and_commands() {
    let code = |name: &str| -> Vec<(String, Vec<String>)> {
        let text = fs::read_to_string(root().join(name)).unwrap();
        let spoken =
            |line: &str| line.split(" # ").next().unwrap().split(" // ").next().unwrap().trim().to_owned();
        let shown = blocks(&text)
            .into_iter()
            .map(|(language, lines)| (language.to_owned(), lines.into_iter().map(spoken).collect()));
        shown.collect()
    };
    assert_eq!(code("README.md"), code("README.fr.md"));
}
