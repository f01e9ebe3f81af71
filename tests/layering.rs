//! The floors of the house: which crate may use which. `ARCHITECTURE.md` says why.

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::{DependencyKind, MetadataCommand, Package};

/// Crate, its floor, and the crates it may name as a normal dependency.
const TABLE: &[(&str, u8, &[&str])] = &[
    ("orion-core", 0, &[]),
    ("orion-testkit", 0, &[]),
    ("orion-formats", 1, &["orion-core"]),
    ("orion-kernels", 1, &["orion-core"]),
    ("orion-registry", 2, &["orion-core", "orion-formats"]),
    ("orion-router", 2, &["orion-core"]),
    ("orion-resilience", 2, &["orion-core"]),
    ("orion-loader", 2, &["orion-core", "orion-formats"]),
    ("orion-runtime", 2, &["orion-core", "orion-kernels"]),
    ("orion-pipeline", 2, &["orion-core", "orion-formats", "orion-kernels"]),
    ("orion-logging", 2, &["orion-core"]),
    (
        "orion-engine",
        3,
        &[
            "orion-core",
            "orion-formats",
            "orion-kernels",
            "orion-registry",
            "orion-router",
            "orion-resilience",
            "orion-loader",
            "orion-runtime",
            "orion-pipeline",
            "orion-logging",
        ],
    ),
    ("orion-cli", 4, &["orion-engine"]),
];

/// Helps tests and nothing else, so nothing may ship with it.
const DEVELOPMENT_ONLY: &str = "orion-testkit";

fn members() -> Vec<Package> {
    let metadata = MetadataCommand::new()
        .manifest_path(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .no_deps()
        .exec()
        .expect("cargo metadata runs");
    metadata.packages
}

/// Arrows from `package` to crates of this workspace, of the kinds that `wanted` accepts.
fn arrows(package: &Package, wanted: impl Fn(DependencyKind) -> bool) -> BTreeSet<String> {
    package
        .dependencies
        .iter()
        .filter(|dependency| dependency.path.is_some() && wanted(dependency.kind))
        .map(|dependency| dependency.name.clone())
        .collect()
}

#[test]
fn normal_dependencies_follow_the_table() {
    let table: BTreeMap<_, _> = TABLE.iter().map(|(name, _, may)| (*name, *may)).collect();
    let mut wrong = Vec::new();
    for package in members() {
        let name = package.name.as_str();
        let Some(may) = table.get(name) else {
            wrong.push(format!("{name} has no row: give it a floor in TABLE and in ARCHITECTURE.md"));
            continue;
        };
        for used in arrows(&package, |kind| kind != DependencyKind::Development) {
            if !may.contains(&used.as_str()) {
                wrong.push(format!("{name} must not depend on {used}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn development_dependencies_never_go_up() {
    let floors: BTreeMap<_, _> = TABLE.iter().map(|(name, floor, _)| (*name, *floor)).collect();
    let mut wrong = Vec::new();
    for package in members() {
        let name = package.name.as_str();
        for used in arrows(&package, |kind| kind == DependencyKind::Development) {
            if floors.get(used.as_str()) > floors.get(name) {
                wrong.push(format!(
                    "{name} must not depend on {used}, not even in its tests: it is on a higher floor"
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_table_is_layered() {
    let floors: BTreeMap<_, _> = TABLE.iter().map(|(name, floor, _)| (*name, *floor)).collect();
    for (name, floor, may) in TABLE {
        for used in *may {
            assert!(floors[used] < *floor, "{name} on floor {floor} must only use lower floors, not {used}");
            assert_ne!(*used, DEVELOPMENT_ONLY, "{name} would ship {DEVELOPMENT_ONLY}");
        }
    }
}

#[test]
fn the_crate_map_is_the_workspace() {
    let map = include_str!("../ARCHITECTURE.md");
    let table: BTreeMap<_, _> = TABLE.iter().map(|(name, floor, _)| (*name, *floor)).collect();
    let members = members();
    for package in &members {
        let name = package.name.as_str();
        let row = format!("| {} | `{name}`", table.get(name).map_or_else(|| "?".into(), u8::to_string));
        assert!(map.contains(&row), "ARCHITECTURE.md has no row that starts with {row:?}");
    }
    for (name, floor) in table {
        let listed = map.contains(&format!("| {floor} | `{name}`"));
        let exists = members.iter().any(|package| package.name == name);
        assert!(exists || !listed, "ARCHITECTURE.md has a row for {name}, which is no member");
    }
}
