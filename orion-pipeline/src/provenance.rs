//! What was done to a model, kept inside it.

use std::collections::BTreeMap;

use orion_core::MetaValue;
use serde_json::Value;

/// The metadata key. Its value is a JSON list with one object per step, the oldest first.
pub const PROVENANCE: &str = "orion.provenance";

/// The steps that the metadata records; none if there is no such key or its value is no list.
#[must_use]
pub fn steps(metadata: &BTreeMap<String, MetaValue>) -> Vec<Value> {
    let text = metadata.get(PROVENANCE).and_then(MetaValue::as_str);
    text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
}

/// Appends a step. Nothing in it may depend on time or place: the same work gives the same bytes.
pub(crate) fn record(metadata: &mut BTreeMap<String, MetaValue>, mut step: Value) {
    step["orion"] = env!("CARGO_PKG_VERSION").into();
    let mut steps = steps(metadata);
    steps.push(step);
    set(metadata, &steps);
}

/// Takes back the last step if it is of that name, so that undoing it gives what was there before.
pub(crate) fn take_back(metadata: &mut BTreeMap<String, MetaValue>, name: &str) {
    let mut steps = steps(metadata);
    if steps.last().is_some_and(|step| step["step"] == name) {
        steps.pop();
        set(metadata, &steps);
    }
}

fn set(metadata: &mut BTreeMap<String, MetaValue>, steps: &[Value]) {
    if steps.is_empty() {
        metadata.remove(PROVENANCE);
    } else {
        let text = Value::from(steps.to_vec()).to_string();
        metadata.insert(PROVENANCE.to_owned(), MetaValue::Str(text));
    }
}
