//! The files a catalogue is made of, and the report about them.

use std::cell::OnceCell;
use std::path::{Path, PathBuf};

use crate::decode::{Broken, decode};
use crate::document::{Document, ModelEntry};
use crate::json::{Lines, MAX_BYTES, Node, parse};
use crate::report::{Place, Problem, Report, Severity, Stage};
use crate::schema::{RULES, check};

/// What to say of a file of a model that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MissingFiles {
    /// Nothing.
    Ignore,
    /// A warning.
    #[default]
    Warn,
    /// An error.
    Error,
}

/// The files a catalogue is read from: a base, and what is layered on top of it.
///
/// A later layer wins: its models replace those of the same id as a whole, its aliases, groups, recommendations and
/// measured figures replace those of the same name, its router and each of its defaults replace what was set before.
#[derive(Debug, Clone)]
pub struct Sources {
    pub(crate) layers: Vec<LayerSource>,
    pub(crate) folders: Vec<PathBuf>,
    pub(crate) missing_files: MissingFiles,
}

#[derive(Debug, Clone)]
pub(crate) struct LayerSource {
    pub(crate) path: PathBuf,
    required: bool,
    /// In place of the file's content.
    text: Option<String>,
}

impl Sources {
    /// Only the base file. It must exist.
    pub fn new(base: impl Into<PathBuf>) -> Self {
        let base = LayerSource { path: base.into(), required: true, text: None };
        Self { layers: vec![base], folders: Vec::new(), missing_files: MissingFiles::default() }
    }

    /// A document in memory; `path` is where it would stand: its folder is the root of the models' files.
    pub fn text(path: impl Into<PathBuf>, text: impl Into<String>) -> Self {
        let base = LayerSource { path: path.into(), required: true, text: Some(text.into()) };
        Self { layers: vec![base], folders: Vec::new(), missing_files: MissingFiles::default() }
    }

    /// Layers a file on top: custom models, or the figures measured on this host. It may be absent.
    #[must_use]
    pub fn with_layer(mut self, path: impl Into<PathBuf>) -> Self {
        self.layers.push(LayerSource { path: path.into(), required: false, text: None });
        self
    }

    /// Also looks for model files in `folder`, where they are not beside the registry file: a cache of downloads.
    /// The same rules hold there, no path leads out of it.
    #[must_use]
    pub fn with_model_folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.folders.push(folder.into());
        self
    }

    /// Says what to make of missing model files.
    #[must_use]
    pub fn missing_files(mut self, missing: MissingFiles) -> Self {
        self.missing_files = missing;
        self
    }

    /// The registry files, lowest layer first.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.layers.iter().map(|layer| layer.path.as_path())
    }
}

/// The text of a layer and the folders its paths are relative to.
#[derive(Debug)]
pub(crate) struct Raw {
    pub(crate) name: String,
    pub(crate) text: String,
    /// The folder of the file, then the other folders models may be in.
    pub(crate) roots: Vec<PathBuf>,
}

impl LayerSource {
    /// `None` if the file may be absent and is.
    pub(crate) fn read(&self, folders: &[PathBuf]) -> Result<Option<Raw>, Box<Problem>> {
        let name = self.path.display().to_string();
        let problem = |code, message: String, help: &str, line, column| {
            Box::new(Problem {
                severity: Severity::Error,
                stage: Stage::Io,
                code,
                place: Place { file: name.clone(), pointer: String::new(), line, column },
                message,
                help: help.to_owned(),
                related: None,
            })
        };
        let folder = match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let folders = std::iter::once(folder).chain(folders.iter().map(PathBuf::as_path));
        let roots: Vec<_> =
            folders.map(|folder| folder.canonicalize().unwrap_or_else(|_| folder.to_owned())).collect();
        if roots.iter().any(|root| root.to_str().is_none()) {
            let message = "the path of a folder it uses is not UTF-8".to_owned();
            return Err(problem("io", message, "move it to a folder whose name is", 1, 1));
        }
        let text = match &self.text {
            Some(text) => text.clone(),
            None => {
                let bytes = match read_bounded(&self.path) {
                    Ok(bytes) => bytes,
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                        if !self.required {
                            return Ok(None);
                        }
                        let help = "create it, or name another file";
                        return Err(problem("not-found", "there is no such file".to_owned(), help, 1, 1));
                    }
                    Err(error) => {
                        return Err(problem("io", error.to_string(), "make it readable", 1, 1));
                    }
                };
                String::from_utf8(bytes).map_err(|error| {
                    let valid = error.utf8_error().valid_up_to();
                    let text = String::from_utf8_lossy(&error.as_bytes()[..valid]);
                    let (line, column) = Lines::new(&text).locate(text.len());
                    let message = "the text is not UTF-8 from here on".to_owned();
                    problem("not-utf8", message, "save it as UTF-8", line, column)
                })?
            }
        };
        Ok(Some(Raw { name: name.clone(), text, roots }))
    }
}

/// One byte more than the limit is enough to see that a file is too large.
fn read_bounded(path: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::Read;
    let file = std::fs::File::open(path)?;
    let mut bytes = Vec::new();
    file.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A layer that was parsed and checked against the schema.
#[derive(Debug)]
pub(crate) struct Layer<'t> {
    pub(crate) raw: &'t Raw,
    pub(crate) node: Option<Node<'t>>,
    /// Everything but the models.
    pub(crate) document: Document,
    /// The models that could be decoded, each with its place in the list.
    pub(crate) models: Vec<(usize, ModelEntry)>,
    lines: OnceCell<Lines<'t>>,
}

impl<'t> Layer<'t> {
    pub(crate) fn place(&self, pointer: &str, at: usize) -> Place {
        let (line, column) = self.lines.get_or_init(|| Lines::new(&self.raw.text)).locate(at);
        Place { file: self.raw.name.clone(), pointer: pointer.to_owned(), line, column }
    }

    fn nearest(&self, pointer: &str) -> Place {
        let at = self.node.as_ref().map_or(0, |node| node.nearest(pointer).start);
        self.place(pointer, at)
    }

    /// Syntax and schema step.
    pub(crate) fn read(raw: &'t Raw, report: &mut Report) -> Self {
        let (node, faults) = parse(&raw.text);
        let document = Document::default();
        let mut layer = Self { raw, node: None, document, models: Vec::new(), lines: OnceCell::new() };
        for fault in faults {
            report.push(Problem {
                severity: Severity::Error,
                stage: Stage::Syntax,
                code: fault.code,
                place: layer.place(&fault.pointer, fault.at),
                message: fault.message,
                help: fault.help.to_owned(),
                related: fault.related.map(|at| layer.place(&fault.pointer, at)),
            });
        }
        let Some(node) = node else { return layer };
        let (findings, broken) = check(&node, &RULES);
        for finding in findings {
            report.push(Problem {
                severity: Severity::Error,
                stage: Stage::Schema,
                code: finding.code,
                place: layer.place(&finding.pointer, finding.at),
                message: finding.message,
                help: finding.help,
                related: None,
            });
        }
        layer.decode(&node, broken, report);
        layer.node = Some(node);
        layer
    }

    fn decode(&mut self, node: &Node<'_>, mut broken: Broken, report: &mut Report) {
        if broken.contains(&node.start) {
            return;
        }
        let mut undecodable =
            |layer: &Self, pointer: String, at: usize, error: crate::decode::DecodeError| {
                report.push(Problem {
                    severity: Severity::Error,
                    stage: Stage::Schema,
                    code: "undecodable",
                    place: layer.place(&pointer, at),
                    message: error.to_string(),
                    help: "correct the value".to_owned(),
                    related: None,
                });
            };
        if let Some(models) = node.get("models").filter(|models| !broken.contains(&models.start)) {
            for (index, element) in models.elements().iter().enumerate() {
                if broken.contains(&element.start) {
                    continue;
                }
                match decode::<ModelEntry>(element, &broken) {
                    Ok(entry) => self.models.push((index, entry)),
                    Err(error) => undecodable(self, format!("/models/{index}"), element.start, error),
                }
            }
            broken.insert(models.start);
        }
        match decode::<Document>(node, &broken) {
            Ok(document) => self.document = document,
            Err(error) => undecodable(self, String::new(), node.start, error),
        }
    }
}

/// A value in a layer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct At {
    pub(crate) layer: usize,
    pub(crate) pointer: String,
}

/// Collects what the meaning step finds.
pub(crate) struct Reporter<'a, 't> {
    pub(crate) layers: &'a [Layer<'t>],
    pub(crate) report: &'a mut Report,
}

impl Reporter<'_, '_> {
    pub(crate) fn say(
        &mut self,
        severity: Severity,
        at: &At,
        (code, message, help): (&'static str, String, &str),
        related: Option<&At>,
    ) {
        let place = self.layers[at.layer].nearest(&at.pointer);
        let related = related.map(|at| self.layers[at.layer].nearest(&at.pointer));
        let help = help.to_owned();
        self.report.push(Problem { severity, stage: Stage::Meaning, code, place, message, help, related });
    }

    pub(crate) fn error(&mut self, at: &At, what: (&'static str, String, &str)) {
        self.say(Severity::Error, at, what, None);
    }

    pub(crate) fn warn(&mut self, at: &At, what: (&'static str, String, &str)) {
        self.say(Severity::Warning, at, what, None);
    }
}
