//! The conformance suite of `Catalog` on the demo registry, read once and live.

#![allow(clippy::unwrap_used, reason = "in a test a panic is a failure")]

use orion_core::testing;
use orion_registry::{LiveRegistry, MissingFiles, Registry, Sources};

fn demo() -> Sources {
    Sources::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../models.json")).missing_files(MissingFiles::Ignore)
}

#[test]
fn a_registry_conforms() {
    testing::catalog(&Registry::load(&demo()).unwrap());
}

#[test]
fn a_live_registry_conforms() {
    testing::catalog(&*LiveRegistry::open(demo()).unwrap());
}
