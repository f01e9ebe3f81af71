//! What every catalogue must do.

use std::collections::HashSet;

use super::at_once;
use crate::{Catalog, ModelId};

/// Checks a catalogue that holds at least one model and does not change meanwhile.
///
/// Ids are unique; what is listed is found by its id and what is not listed is not; the order stays; files are named; sampling
/// defaults and quality are in their ranges; all of it from several threads at once.
///
/// # Panics
/// With the law that was broken.
pub fn catalog(catalog: &dyn Catalog) {
    let all = catalog.all();
    assert!(!all.is_empty(), "the suite needs a catalogue with a model");
    let mut seen = HashSet::new();
    for spec in &all {
        let id = &spec.id;
        assert!(seen.insert(id.clone()), "{id} is listed twice");
        assert!(!id.as_str().is_empty(), "an id is empty");
        let found = catalog.get(id).unwrap_or_else(|| panic!("{id} is listed, but get() does not find it"));
        assert_eq!(found, *spec, "get() and all() say different things of {id}");
        assert!(spec.files.iter().all(|file| !file.location.is_empty()), "a file of {id} has no location");
        assert!((0.0..=1.0).contains(&spec.quality), "the quality of {id} is {}", spec.quality);
        if let Err(error) = spec.sampling.validate() {
            panic!("the sampling defaults of {id}: {error}");
        }
        assert!(!spec.fallback.contains(id), "{id} falls back to itself");
    }
    for absent in ["", "no such model \u{0}", "../models"] {
        assert!(catalog.get(&ModelId::new(absent)).is_none(), "get({absent:?}) finds what is not listed");
    }
    at_once(|| {
        assert_eq!(catalog.all(), all, "the order or the content changed from one call to the next");
        for spec in &all {
            assert_eq!(catalog.get(&spec.id).as_ref(), Some(spec), "get() changed its answer");
        }
    });
}
