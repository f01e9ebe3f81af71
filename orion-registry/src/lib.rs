#![doc = include_str!("../README.md")]
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod decode;
mod describe;
mod document;
mod edit;
mod enrol;
mod hardware;
mod inherit;
mod json;
mod layers;
mod live;
mod meaning;
mod paths;
mod recommend;
mod registry;
mod report;
mod schema;
mod spec;

pub use describe::{
    ModelOnDisk, entry_from_files, entry_from_header, entry_from_path, find_models, read_header,
};
pub use document::{
    Defaults, Document, FileRole, Format, Group, Measured, Memory, ModelEntry, ModelFile, PromptFormat,
    Quality, RouterConfig, Routing, Sampling, Speed, Strategy,
};
pub use edit::{Edited, put_measured, put_model, save_measured, save_model, write_atomic};
pub use enrol::enrol;
pub use hardware::{Hardware, Profile};
pub use layers::{MissingFiles, Sources};
pub use live::{Changes, LiveRegistry, Reload, Watch};
pub use recommend::{Advice, Need, Preference, Recommendation};
pub use registry::{ModelRow, RegisteredModel, Registry, validate};
pub use report::{Place, Problem, Report, Severity, Stage};
pub use schema::schema_json;
