//! What a program that depends on these crates relies on: how much comes with them, and that they say what they are.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Package, PackageId};

/// Packages that the facade's default build may bring, itself included, on all platforms together.
const MOST_PACKAGES: usize = 300;

/// The workspace and all that stands behind it.
fn metadata() -> Metadata {
    MetadataCommand::new()
        .manifest_path(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .exec()
        .expect("cargo metadata runs")
}

fn members(metadata: &Metadata) -> impl Iterator<Item = &Package> {
    metadata.packages.iter().filter(|package| metadata.workspace_members.contains(&package.id))
}

/// Everything that building `root` builds or would on another platform.
fn behind(metadata: &Metadata, root: &str) -> BTreeSet<PackageId> {
    let resolve = metadata.resolve.as_ref().expect("the graph is asked for");
    let nodes: BTreeMap<_, _> = resolve.nodes.iter().map(|node| (&node.id, node)).collect();
    let root = members(metadata).find(|package| package.name == root).expect("a member of that name");
    let (mut seen, mut open) = (BTreeSet::new(), vec![&root.id]);
    while let Some(id) = open.pop() {
        if !seen.insert(id.clone()) {
            continue;
        }
        let built = nodes[id].deps.iter().filter(|dependency| {
            dependency.dep_kinds.iter().any(|kind| kind.kind != DependencyKind::Development)
        });
        open.extend(built.map(|dependency| &dependency.pkg));
    }
    seen
}

#[test]
fn the_facade_brings_no_more_packages_than_it_may() {
    let count = behind(&metadata(), "orion-engine").len();
    assert!(count <= MOST_PACKAGES, "the facade's default build has {count} packages");
}

#[test]
fn small_crates_stay_small() {
    let metadata = metadata();
    // Each of them makes sense in a program that runs no model.
    for (name, most) in [("orion-core", 12), ("orion-formats", 50), ("orion-resilience", 100)] {
        let count = behind(&metadata, name).len();
        assert!(count <= most, "{name} brings {count} packages, at most {most} were meant");
    }
}

#[test]
fn every_crate_says_what_it_is() {
    let metadata = metadata();
    let mut missing = Vec::new();
    for package in members(&metadata) {
        let folder = package.manifest_path.parent().expect("a manifest lies in a folder");
        let mut require = |holds: bool, what: &str| {
            if !holds {
                missing.push(format!("{}: {what}", package.name));
            }
        };
        require(package.description.as_ref().is_some_and(|text| text.len() > 20), "description");
        require(package.license.as_deref() == Some("MIT OR Apache-2.0"), "license");
        require((1..=5).contains(&package.keywords.len()), "one to five keywords");
        require(package.keywords.iter().all(|keyword| keyword.len() <= 20), "keywords of 20 letters");
        require((1..=5).contains(&package.categories.len()), "one to five categories");
        require(package.rust_version.as_ref().is_some_and(|version| version.minor == 95), "rust-version");
        require(package.readme.as_ref().is_some_and(|name| folder.join(name).exists()), "readme");
        for file in ["LICENSE-MIT", "LICENSE-APACHE"] {
            require(folder.join(file).exists(), file);
        }
        let tests_only = package.name == "orion-testkit";
        require((package.publish == Some(Vec::new())) == tests_only, "only what is for tests is private");
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

#[test]
fn every_feature_is_explained() {
    let metadata = metadata();
    for package in members(&metadata) {
        let manifest = std::fs::read_to_string(&package.manifest_path).expect("a manifest");
        let readme = package.manifest_path.parent().expect("a folder").join("README.md");
        let readme = std::fs::read_to_string(readme).expect("a README");
        for feature in package.features.keys().filter(|feature| *feature != "default") {
            let commented = manifest
                .lines()
                .zip(manifest.lines().skip(1))
                .any(|(above, line)| above.starts_with('#') && line.starts_with(&format!("{feature} = ")));
            assert!(commented, "{}: no comment above the feature {feature}", package.name);
            let named = readme.contains(&format!("`{feature}`"));
            assert!(named, "{}: its README does not name the feature {feature}", package.name);
        }
    }
}

#[test]
fn the_least_rust_version_is_the_one_documents_name() {
    let least = env!("CARGO_PKG_RUST_VERSION");
    for (name, text) in [
        ("README.md", include_str!("../README.md")),
        ("README.fr.md", include_str!("../README.fr.md")),
        ("CONTRIBUTING.md", include_str!("../CONTRIBUTING.md")),
    ] {
        assert!(text.contains(&format!("Rust {least}")), "{name} does not name Rust {least}");
    }
    let outside = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/consumer/Cargo.toml");
    let manifest = std::fs::read_to_string(outside).expect("a manifest");
    assert!(manifest.contains(&format!("rust-version = \"{least}\"")), "the consumers name another version");
}
