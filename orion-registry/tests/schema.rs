//! The schema that is committed is the one the types say, and the checker reads it as a full validator does.

#![allow(clippy::unwrap_used, reason = "in a test a panic is a failure")]

use orion_registry::{MissingFiles, Registry, Sources, Stage, schema_json};
use proptest::prelude::*;
use serde_json::{Value, json};

const COMMITTED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../models.schema.json");
const DEMO: &str = include_str!("../../models.json");

#[test]
fn the_committed_schema_is_generated_from_the_types() {
    let generated = schema_json();
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(COMMITTED, &generated).unwrap();
    }
    let committed = std::fs::read_to_string(COMMITTED).unwrap_or_default();
    assert!(committed == generated, "models.schema.json is stale: run this test with BLESS=1");
    let schema: Value = serde_json::from_str(&generated).unwrap();
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
    jsonschema::draft202012::meta::validate(&schema).unwrap();
}

fn oracle() -> jsonschema::Validator {
    jsonschema::draft202012::new(&serde_json::from_str(&schema_json()).unwrap()).unwrap()
}

/// Whether the schema step finds nothing.
fn passes(document: &Value) -> bool {
    let sources = Sources::text("models.json", document.to_string()).missing_files(MissingFiles::Ignore);
    match Registry::load(&sources) {
        Ok(_) => true,
        Err(report) => {
            assert!(report.problems.iter().all(|problem| problem.stage != Stage::Syntax), "{report}");
            report.problems.iter().all(|problem| problem.stage == Stage::Meaning)
        }
    }
}

fn pointers(value: &Value, at: &str, out: &mut Vec<String>) {
    out.push(at.to_owned());
    match value {
        Value::Object(members) => {
            for (key, value) in members {
                pointers(value, &format!("{at}/{}", key.replace('~', "~0").replace('/', "~1")), out);
            }
        }
        Value::Array(elements) => {
            for (index, value) in elements.iter().enumerate() {
                pointers(value, &format!("{at}/{index}"), out);
            }
        }
        _ => {}
    }
}

fn odd_values() -> Vec<Value> {
    let small = [
        json!(null),
        json!(true),
        json!(0),
        json!(-1),
        json!(1),
        json!(3.5),
        json!(2.0),
        json!(1e18),
        json!(-0.0),
        json!(16_777_216),
        json!(16_777_217),
        json!(1e300),
        json!(""),
        json!("gguf"),
        json!("chat"),
        json!("fr"),
        json!("A b"),
        json!("é".repeat(129)),
        json!("0".repeat(64)),
        json!("0".repeat(63)),
        json!("2026-01-31"),
        json!([]),
        json!([""]),
        json!(["x", 1]),
        json!({}),
        json!({"x": 1}),
        json!({"models": []}),
        json!({"models": ["a"]}),
    ];
    small.to_vec()
}

#[test]
fn every_odd_value_in_every_place_of_the_demo_is_judged_as_a_full_validator_does() {
    let (oracle, demo): (_, Value) = (oracle(), serde_json::from_str(DEMO).unwrap());
    assert!(oracle.is_valid(&demo) && passes(&demo));
    let mut places = Vec::new();
    pointers(&demo, "", &mut places);
    let (mut valid, mut invalid) = (0, 0);
    // The models repeat each other in form; a part of the places has every form.
    for place in places.iter().step_by(1 + places.len() / 150) {
        for odd in odd_values() {
            let mut mutant = demo.clone();
            *mutant.pointer_mut(place).unwrap() = odd.clone();
            let expected = oracle.is_valid(&mutant);
            assert_eq!(passes(&mutant), expected, "{odd} at {place}");
            *(if expected { &mut valid } else { &mut invalid }) += 1;
        }
    }
    assert!(valid > 100 && invalid > 1000, "{valid} valid, {invalid} invalid");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn fields_added_and_removed_are_judged_alike(place in any::<prop::sample::Index>(), key in "[a-z_]{1,12}", odd in prop::sample::select(odd_values()), remove: bool) {
        let mut demo: Value = serde_json::from_str(DEMO).unwrap();
        let mut places = Vec::new();
        pointers(&demo, "", &mut places);
        places.retain(|place| demo.pointer(place).unwrap().is_object());
        let object = demo.pointer_mut(&places[place.index(places.len())]).unwrap().as_object_mut().unwrap();
        if remove {
            if let Some(first) = object.keys().next().cloned() { object.remove(&first); }
        } else {
            object.insert(key, odd);
        }
        prop_assert_eq!(passes(&demo), oracle().is_valid(&demo));
    }
}
