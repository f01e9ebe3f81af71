#![no_main]
//! Any text as `models.json`: a catalogue that answers, or a report whose every problem has a place.

use libfuzzer_sys::fuzz_target;
use orion_registry::{MissingFiles, Registry, Sources};

fuzz_target!(|text: &str| {
    match Registry::load(&Sources::text("models.json", text).missing_files(MissingFiles::Ignore)) {
        Ok(registry) => assert!(registry.models().iter().all(|model| registry.model(model.id()).is_some())),
        Err(report) => {
            assert!(report.errors > 0);
            for problem in &report.problems {
                assert!(problem.place.line > 0 && problem.place.column > 0 && !problem.help.is_empty());
            }
        }
    }
});
