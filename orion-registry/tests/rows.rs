//! What is wrong with a registry file, row by row: every problem with its code, pointer, line and column.

#![allow(clippy::unwrap_used, reason = "in a test a panic is a failure")]

use orion_registry::{MissingFiles, Registry, Report, Severity, Sources, Stage};

const FILES: &str = r#""files": [{"path": "a.gguf"}]"#;

fn load(text: &str) -> Result<Registry, Report> {
    Registry::load(&Sources::text("models.json", text).missing_files(MissingFiles::Ignore))
}

/// The problems of a text as `code pointer line:column`.
fn problems(text: &str) -> Vec<String> {
    let report = load(text).expect_err(text);
    for problem in &report.problems {
        assert!(!problem.help.is_empty() && !problem.message.is_empty(), "{problem}");
    }
    let show = |p: &orion_registry::Problem| {
        format!("{} {} {}:{}", p.code, p.place.pointer, p.place.line, p.place.column)
    };
    report.problems.iter().map(show).collect()
}

/// The problems of a document with these models.
fn of_models(models: &str) -> Vec<String> {
    problems(&format!("{{\"version\": 1, \"models\": [\n{models}\n]}}"))
}

/// The problems of one model with these fields beside id and files.
fn of_field(field: &str) -> Vec<String> {
    of_models(&format!("{{\"id\": \"a\", {FILES},\n{field}}}"))
}

#[test]
fn syntax() {
    let whole = format!("{{\"version\": 1,\n \"models\": [{{\"id\": \"a\", {FILES}}}]}}");
    load(&whole).unwrap();
    for cut in (1..whole.len()).filter(|cut| whole.is_char_boundary(*cut)) {
        let found = problems(&whole[..cut]);
        assert!(found.len() == 1 && found[0].starts_with("syntax "), "{cut}: {found:?}");
    }
    assert_eq!(problems("{\"version\": 1,\n\"models\": [}"), ["syntax /models/0 2:12"]);
    assert_eq!(problems(&format!("\u{feff}{whole}")), ["byte-order-mark  1:1"]);
    assert_eq!(problems("{\"version\": 1,\n}"), ["trailing-comma  1:14"]);
    let deep = problems(&"[".repeat(100_000));
    assert_eq!(deep.len(), 1);
    assert!(deep[0].starts_with("too-deep ") && deep[0].ends_with(" 1:129"), "{deep:?}");
    assert_eq!(problems(""), ["syntax  1:1"]);
    assert_eq!(problems("{\"version\": 1} x"), ["syntax  1:16"]);
    assert_eq!(problems("{\"version\": 01}"), ["syntax /version 1:13"]);
    assert_eq!(problems("{\"version\": 1, 'a': 1}"), ["syntax  1:16"]);
    assert_eq!(problems("{\"version\": 1, \"notes\": \"\\x\"}"), ["syntax /notes 1:26"]);
    assert_eq!(problems("{\"version\": 1, \"notes\": \"\\ud800\"}"), ["syntax /notes 1:26"]);
    assert_eq!(problems("{\"version\": NaN}"), ["syntax /version 1:13"]);
}

#[test]
fn not_utf8_too_large_and_absent_files() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("models.json");
    let found = |path: &std::path::Path| {
        let report = Registry::load(&Sources::new(path)).unwrap_err();
        let first = &report.problems[0];
        (report.problems.len(), first.stage, first.code, first.place.line, first.place.column)
    };
    assert_eq!(found(&path), (1, Stage::Io, "not-found", 1, 1));
    std::fs::write(&path, b"{\n \"a\": \"\xff\"}").unwrap();
    assert_eq!(found(&path), (1, Stage::Io, "not-utf8", 2, 8));
    std::fs::write(&path, " ".repeat((64 << 20) + 1)).unwrap();
    assert_eq!(found(&path), (1, Stage::Syntax, "too-large", 1, 1));
    assert_eq!(found(dir.path()).2, "io");
}

#[test]
fn duplicate_keys_name_both_places() {
    let report = load("{\"version\": 1,\n \"version\": 1}").unwrap_err();
    let problem = &report.problems[0];
    assert_eq!((problem.code, problem.place.line, problem.place.column), ("duplicate-key", 2, 2));
    assert_eq!(problem.related.as_ref().map(|place| (place.line, place.column)), Some((1, 2)));
    // Beyond a few dozen members another way of looking is taken.
    let many: String = (0..100).map(|n| format!("\"k{n}\": \"a\",")).collect();
    let found = problems(&format!("{{\"version\": 1, \"aliases\": {{{many}\"k50\": \"a\"}}}}"));
    assert!(found[0].starts_with("duplicate-key /aliases/k50 "), "{found:?}");
}

#[test]
fn values_that_break_the_schema() {
    for (field, expected) in [
        (r#""contxt_length": 5"#, "unknown-field /models/0/contxt_length 3:1"),
        (r#""context_length": "8k""#, "wrong-type /models/0/context_length 3:19"),
        (r#""context_length": null"#, "wrong-type /models/0/context_length 3:19"),
        (r#""context_length": 0"#, "out-of-range /models/0/context_length 3:19"),
        (r#""context_length": -1"#, "out-of-range /models/0/context_length 3:19"),
        (r#""context_length": 3.5"#, "not-an-integer /models/0/context_length 3:19"),
        (r#""context_length": 1e18"#, "out-of-range /models/0/context_length 3:19"),
        (r#""context_length": 99999999999999999999999"#, "out-of-range /models/0/context_length 3:19"),
        (r#""sampling": {"temperature": 1e999}"#, "out-of-range /models/0/sampling/temperature 3:29"),
        (r#""sampling": {"temperature": -1}"#, "out-of-range /models/0/sampling/temperature 3:29"),
        (r#""sampling": {"top_p": 0}"#, "out-of-range /models/0/sampling/top_p 3:23"),
        (r#""sampling": {"temprature": 1}"#, "unknown-field /models/0/sampling/temprature 3:14"),
        (r#""format": "ggml""#, "unknown-value /models/0/format 3:11"),
        (r#""capabilities": "chat""#, "wrong-type /models/0/capabilities 3:17"),
        (r#""capabilities": ["Chat"]"#, "malformed /models/0/capabilities/0 3:18"),
        (r#""languages": ["english"]"#, "malformed /models/0/languages/0 3:15"),
        (r#""stop": [""]"#, "too-short /models/0/stop/0 3:10"),
        (r#""pinned": 1"#, "wrong-type /models/0/pinned 3:11"),
        (r#""memory": []"#, "wrong-type /models/0/memory 3:11"),
    ] {
        assert_eq!(of_field(field), [expected], "{field}");
    }
    let digest = "0".repeat(64);
    for bad in [
        &digest[1..],
        &digest.replace('0', "A"),
        "",
        "sha256:../../x",
        &format!("sha256:{digest}"),
        &"0".repeat(40),
    ] {
        let found =
            of_models(&format!(r#"{{"id": "a", "files": [{{"path": "a.gguf", "sha256": "{bad}"}}]}}"#));
        assert_eq!(found, ["malformed /models/0/files/0/sha256 2:52"], "{bad}");
    }
    assert_eq!(problems("{}"), ["missing-field  1:1"]);
    assert_eq!(problems("{\"version\": 2}"), ["out-of-range /version 1:13"]);
    assert_eq!(problems("[]"), ["wrong-type  1:1"]);
    assert_eq!(of_models("{}"), ["missing-field /models/0 2:1"]);
    assert_eq!(of_models("7"), ["wrong-type /models/0 2:1"]);
    assert_eq!(of_models(&format!("{{\"id\": \"A b\", {FILES}}}")), ["malformed /models/0/id 2:8"]);
}

#[test]
fn whole_numbers_may_be_written_as_floats() {
    let registry = load(&format!(
        "{{\"version\": 1.0, \"models\": [{{\"id\": \"a\", {FILES}, \"context_length\": 8e3}}]}}"
    ))
    .unwrap();
    assert_eq!(registry.model("a").unwrap().spec.context_length, 8000);
}

#[test]
fn paths_and_urls() {
    for (bad, code) in [
        ("../x", "path-escapes"),
        ("/x", "path-escapes"),
        (r"C:\\x", "path-escapes"),
        ("%2e%2e/x", "path-escapes"),
        ("a/../../x", "path-escapes"),
        ("a//b", "malformed-path"),
    ] {
        let found = of_models(&format!(r#"{{"id": "a", "files": [{{"path": "{bad}"}}]}}"#));
        assert_eq!(found, [format!("{code} /models/0/files/0/path 2:32")], "{bad}");
    }
    for bad in ["file:///etc/passwd", "https://user:secret@host/x"] {
        let found = of_models(&format!(r#"{{"id": "a", "files": [{{"url": "{bad}"}}]}}"#));
        assert_eq!(found, ["malformed-url /models/0/files/0/url 2:31"], "{bad}");
    }
    assert_eq!(of_models(r#"{"id": "a", "files": [{}]}"#), ["no-location /models/0/files/0 2:23"]);
    assert_eq!(of_models(r#"{"id": "a"}"#), ["no-files /models/0 2:1"]);
    assert_eq!(of_models(r#"{"id": "a", "files": []}"#), ["no-files /models/0/files 2:22"]);
    assert_eq!(
        of_models(r#"{"id": "a", "files": [{"path": "a", "role": "config"}]}"#),
        ["no-weights /models/0/files 2:22"]
    );
    assert_eq!(
        of_models(r#"{"id": "a", "files": [{"path": "a"}, {"path": "a"}]}"#),
        ["duplicate-file /models/0/files/1 2:38"]
    );
}

#[test]
#[cfg(unix)]
fn a_link_out_of_the_folder_is_refused_and_one_inside_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let (root, outside) = (dir.path().join("root"), dir.path().join("outside.gguf"));
    std::fs::create_dir(&root).unwrap();
    std::fs::write(&outside, "x").unwrap();
    std::fs::write(root.join("inside.gguf"), "x").unwrap();
    std::os::unix::fs::symlink(&outside, root.join("out.gguf")).unwrap();
    std::os::unix::fs::symlink("inside.gguf", root.join("in.gguf")).unwrap();
    std::os::unix::fs::symlink(dir.path(), root.join("up")).unwrap();
    let load = |path: &str| {
        let text = format!(r#"{{"version": 1, "models": [{{"id": "a", "files": [{{"path": "{path}"}}]}}]}}"#);
        Registry::load(&Sources::text(root.join("models.json"), text))
    };
    assert!(load("in.gguf").unwrap().warnings().problems.is_empty());
    for path in ["out.gguf", "up/outside.gguf"] {
        let report = load(path).unwrap_err();
        assert_eq!((report.problems.len(), report.problems[0].code), (1, "path-escapes"), "{path}");
    }
}

#[test]
fn missing_files_are_nothing_a_warning_or_an_error_by_choice() {
    let dir = tempfile::tempdir().unwrap();
    let text = format!("{{\"version\": 1, \"models\": [{{\"id\": \"a\", {FILES}}}]}}");
    let sources =
        |missing| Sources::text(dir.path().join("models.json"), text.clone()).missing_files(missing);
    assert!(Registry::load(&sources(MissingFiles::Ignore)).unwrap().warnings().problems.is_empty());
    let warned = Registry::load(&sources(MissingFiles::Warn)).unwrap();
    let problem = &warned.warnings().problems[0];
    assert_eq!((problem.severity, problem.code), (Severity::Warning, "file-missing"));
    let report = Registry::load(&sources(MissingFiles::Error)).unwrap_err();
    assert_eq!((report.errors, report.exit_code(), report.problems[0].code), (1, 2, "file-missing"));
    // Beside the file or in a folder of models: either will do.
    let models = tempfile::tempdir().unwrap();
    std::fs::write(models.path().join("a.gguf"), "weights").unwrap();
    let found = Registry::load(&sources(MissingFiles::Error).with_model_folder(models.path())).unwrap();
    let location = &found.model("a").unwrap().spec.files[0].location;
    assert_eq!(std::fs::read_to_string(location).unwrap(), "weights");
}

#[test]
fn sizes_that_contradict() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.gguf"), "weights").unwrap();
    let codes = |fields: &str| {
        let text = format!(r#"{{"version": 1, "models": [{{"id": "a", {fields}}}]}}"#);
        let report = Registry::load(&Sources::text(dir.path().join("models.json"), text)).unwrap_err();
        report.problems.iter().map(|p| format!("{} {}", p.code, p.place.pointer)).collect::<Vec<_>>()
    };
    let digest = "0".repeat(64);
    for (fields, pointer) in [
        (r#""files": [{"path": "a.gguf", "bytes": 8}]"#.to_owned(), "/models/0/files/0/bytes"),
        (r#""files": [{"path": "a.gguf", "bytes": 7}], "disk_bytes": 8"#.to_owned(), "/models/0/disk_bytes"),
        (
            r#""files": [{"path": "a.gguf", "bytes": 7}], "parameters": 1000"#.to_owned(),
            "/models/0/parameters",
        ),
        (
            r#""files": [{"path": "a.gguf"}], "memory": {"weight_bytes": 9}, "min_ram_bytes": 8"#.to_owned(),
            "/models/0/min_ram_bytes",
        ),
        (
            format!(
                r#""files": [{{"url": "https://h/a", "bytes": 7, "sha256": "{digest}"}}, {{"url": "https://h/b", "bytes": 8, "sha256": "{digest}"}}]"#
            ),
            "/models/0/files/1/bytes",
        ),
    ] {
        assert_eq!(codes(&fields), [format!("size-contradicts {pointer}")], "{fields}");
    }
}

/// Code, pointer and the pointer of the other entry.
fn pair(text: &str) -> (String, String, String) {
    let report = load(text).unwrap_err();
    assert_eq!(report.problems.len(), 1, "{report}");
    let problem = &report.problems[0];
    let related = problem.related.as_ref().expect("names both");
    (problem.code.to_owned(), problem.place.pointer.clone(), related.pointer.clone())
}

fn triple(code: &str, at: &str, related: &str) -> (String, String, String) {
    (code.to_owned(), at.to_owned(), related.to_owned())
}

#[test]
fn ids_aliases_bases_and_fallbacks_name_both_entries() {
    let document = |models: &str, rest: &str| format!(r#"{{"version": 1, "models": [{models}]{rest}}}"#);
    let model = |id: &str, rest: &str| format!(r#"{{"id": "{id}", {FILES}{rest}}}"#);
    let (a, b) = (model("a", ""), model("b", ""));
    let twice = document(&format!("{a}, {b}, {a}"), "");
    assert_eq!(pair(&twice), triple("duplicate-id", "/models/2/id", "/models/0/id"));
    let clash = document(&format!("{a}, {b}"), r#", "aliases": {"b": "a"}"#);
    assert_eq!(pair(&clash), triple("alias-clash", "/aliases/b", "/models/1/id"));
    let cycle = document(&a, r#", "aliases": {"x": "y", "y": "z", "z": "x"}"#);
    assert_eq!(pair(&cycle), triple("alias-cycle", "/aliases/x", "/aliases/z"));
    let own = document(&a, r#", "aliases": {"x": "x"}"#);
    assert_eq!(pair(&own), triple("alias-cycle", "/aliases/x", "/aliases/x"));
    let chain = [("a", "b"), ("b", "c"), ("c", "a")]
        .map(|(id, next)| model(id, &format!(r#", "fallback": ["{next}"]"#)));
    let cycle = document(&chain.join(","), "");
    assert_eq!(pair(&cycle), triple("fallback-cycle", "/models/0/fallback", "/models/2/fallback"));
    let bases = [("a", "b"), ("b", "a")].map(|(id, base)| format!(r#"{{"id": "{id}", "base": "{base}"}}"#));
    assert_eq!(
        pair(&document(&bases.join(","), "")),
        triple("base-cycle", "/models/0/base", "/models/1/base")
    );

    assert_eq!(
        problems(&document(&a, r#", "aliases": {"x": "nothing"}"#))[0].split(' ').next(),
        Some("unknown-model")
    );
    assert_eq!(of_field(r#""fallback": ["a"]"#), ["self-fallback /models/0/fallback/0 3:14"]);
    assert_eq!(of_field(r#""fallback": ["z"]"#), ["unknown-model /models/0/fallback/0 3:14"]);
    assert_eq!(of_field(r#""first_responder": "a""#), ["self-fallback /models/0/first_responder 3:20"]);
    // A cycle through an alias is one, too.
    let through = document(&model("a", r#", "fallback": ["x"]"#), r#", "aliases": {"x": "a"}"#);
    assert_eq!(load(&through).unwrap_err().problems[0].code, "self-fallback");
}

#[test]
fn a_chain_as_long_as_the_catalogue_is_walked_without_recursion() {
    let count = 50_000;
    let models: Vec<_> = (0..count)
        .map(|n| format!(r#"{{"id": "m{n}", {FILES}, "fallback": ["m{}"]}}"#, (n + 1) % count))
        .collect();
    let report = load(&format!(r#"{{"version": 1, "models": [{}]}}"#, models.join(","))).unwrap_err();
    assert_eq!((report.errors, report.problems[0].code), (1, "fallback-cycle"));
}

#[test]
fn names_that_lead_nowhere_are_found_everywhere_and_suggestions_made() {
    let text = format!(
        r#"{{"version": 1, "models": [{{"id": "small", {FILES}}}],
"defaults": {{"model": "smal", "embedder": "small"}},
"groups": {{"g": {{"models": ["smalls"]}}}},
"recommendations": {{"r/x": {{"models": ["other"]}}}},
"router": {{"encoder": "nothing", "fallback": "tiny"}},
"measured": {{"gone": {{}}}}}}"#
    );
    let report = load(&text).unwrap_err();
    let found: Vec<_> =
        report.problems.iter().map(|p| (p.code, p.place.pointer.as_str(), p.severity)).collect();
    assert_eq!(
        found,
        [
            ("unknown-model", "/groups/g/models/0", Severity::Error),
            ("unknown-model", "/recommendations/r~1x/models/0", Severity::Error),
            ("unknown-model", "/defaults/model", Severity::Error),
            ("wrong-capability", "/defaults/embedder", Severity::Warning),
            ("unknown-model", "/router/encoder", Severity::Error),
            ("unknown-model", "/router/fallback", Severity::Error),
            ("unknown-model", "/measured/gone", Severity::Warning),
        ]
    );
    assert_eq!(report.problems[0].help, "did you mean \"small\"?");
    assert_eq!((report.errors, report.warnings), (5, 2));
}

#[test]
fn prompt_formats_that_say_two_things_or_half_of_one() {
    assert_eq!(
        of_field(r#""prompt": {"template": "x", "user_prefix": "y"}"#),
        ["contradiction /models/0/prompt 3:11"]
    );
    assert_eq!(of_field(r#""prompt": {"user_prefix": "y"}"#), ["incomplete /models/0/prompt 3:11"]);
}

#[test]
fn all_steps_speak_in_one_report() {
    let text = "{\"version\": 1,\n\"models\": [\n{\"id\": \"a\", \"id\": \"b\", \"contxt_length\": 1, \"files\": [{\"path\": \"../x\"}]},\n{\"id\": \"c\", \"files\": [{\"path\": \"y\", \"sha256\": \"z\"}], \"fallback\": [\"d\"],}\n]}";
    let report = load(text).unwrap_err();
    let found: Vec<_> = report.problems.iter().map(|p| (p.stage, p.code, p.place.line)).collect();
    assert_eq!(
        found,
        [
            (Stage::Syntax, "duplicate-key", 3),
            (Stage::Syntax, "trailing-comma", 4),
            (Stage::Schema, "unknown-field", 3),
            (Stage::Schema, "malformed", 4),
            (Stage::Meaning, "path-escapes", 3),
            (Stage::Meaning, "unknown-model", 4),
        ]
    );
    let json: serde_json::Value = serde_json::from_str(&report.to_json()).unwrap();
    assert_eq!(json["errors"], 6);
    assert_eq!(json["problems"][2]["pointer"], "/models/0/contxt_length");
    assert_eq!(json["problems"][2]["help"], "did you mean \"context_length\"?");
    assert_eq!(json["problems"][0]["related"]["column"], 2);
    let shown = report.to_string();
    assert!(shown.contains("models.json:3:24: error[unknown-field]: unknown field \"contxt_length\"\n  at /models/0/contxt_length\n  help: did you mean"), "{shown}");
    assert!(shown.ends_with("6 errors, 0 warnings"), "{shown}");
    let error = orion_core::Error::from(report);
    assert_eq!(error.kind(), orion_core::ErrorKind::Corrupt);
    assert!(error.to_string().contains("models.json:3:13"), "{error}");
}

#[test]
fn a_flood_of_problems_is_counted_and_cut() {
    let models: Vec<_> =
        (0..3000).map(|n| format!(r#"{{"id": "m{n}", {FILES}, "fallback": ["x{n}"]}}"#)).collect();
    let report = load(&format!(r#"{{"version": 1, "models": [{}]}}"#, models.join(","))).unwrap_err();
    assert_eq!((report.errors, report.problems.len()), (3000, 1000));
    assert!(report.to_string().contains("and 2000 more"));
}
