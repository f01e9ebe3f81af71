//! The layer: collects, redacts, renders once per format, hands over.

use std::cell::Cell;
use std::sync::Arc;

use orion_core::Clock;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use crate::capture::Ring;
use crate::levels::component;
use crate::record::{Collector, Fields, Format, Line, write_json};
use crate::redact::Redactor;
use crate::time::write_rfc3339;
use crate::writer::NonBlocking;

/// Where lines go.
pub(crate) struct Output {
    pub(crate) format: Format,
    pub(crate) colours: bool,
    pub(crate) writer: NonBlocking,
}

/// What the layer and its handle share.
pub(crate) struct Shared {
    pub(crate) outputs: Vec<Output>,
    pub(crate) ring: Ring,
    pub(crate) redactor: Redactor,
    pub(crate) clock: Arc<dyn Clock>,
}

/// Writes events; a part of any `tracing` subscriber.
pub(crate) struct OrionLayer(pub(crate) Arc<Shared>);

/// A span as it will stand in every line below it.
struct Rendered {
    name: &'static str,
    fields: String,
    /// All of it, rendered when the span was made and not with every event in it.
    json: String,
}

impl Rendered {
    fn new(name: &'static str, fields: String) -> Self {
        let mut rendered = Self { name, fields, json: String::new() };
        rendered.render();
        rendered
    }

    fn render(&mut self) {
        self.json.clear();
        self.json.push_str("{\"name\":");
        write_json(&mut self.json, self.name);
        if !self.fields.is_empty() {
            self.json.push_str(",\"fields\":{");
            self.json.push_str(&self.fields);
            self.json.push('}');
        }
        self.json.push('}');
    }

    fn pretty(&self, out: &mut String) {
        if !out.is_empty() {
            out.push_str(" > ");
        }
        out.push_str(self.name);
        if !self.fields.is_empty() {
            out.push('{');
            out.push_str(&self.fields);
            out.push('}');
        }
    }
}

/// Room that is used again from event to event, one per thread.
#[derive(Default)]
struct Workspace {
    fields: Fields,
    scratch: String,
    time: String,
    spans: String,
    pretty_spans: String,
    line: String,
}

thread_local! {
    static WORKSPACE: Cell<Option<Box<Workspace>>> = const { Cell::new(None) };
}

/// Runs with this thread's workspace. A value that logs while it is formatted finds it taken and gets a new one.
fn with_workspace(run: impl FnOnce(&mut Workspace)) {
    let mut workspace = WORKSPACE.try_with(Cell::take).ok().flatten().unwrap_or_default();
    run(&mut workspace);
    // A giant event shall not keep its room for ever. Without thread-local storage, at the end of a thread, it goes.
    if workspace.line.capacity() < 1 << 16 {
        let _ended = WORKSPACE.try_with(|cell| cell.set(Some(workspace)));
    }
}

impl<S> Layer<S> for OrionLayer
where
    S: Subscriber + for<'s> LookupSpan<'s>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let (mut fields, mut scratch) = (Fields::default(), String::new());
        attributes.record(&mut Collector {
            redactor: &self.0.redactor,
            fields: &mut fields,
            scratch: &mut scratch,
        });
        span.extensions_mut().insert(Rendered::new(attributes.metadata().name(), fields.json));
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let (mut fields, mut scratch) = (Fields::default(), String::new());
        values.record(&mut Collector {
            redactor: &self.0.redactor,
            fields: &mut fields,
            scratch: &mut scratch,
        });
        if let Some(rendered) = span.extensions_mut().get_mut::<Rendered>()
            && !fields.json.is_empty()
        {
            if !rendered.fields.is_empty() {
                rendered.fields.push(',');
            }
            rendered.fields.push_str(&fields.json);
            rendered.render();
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let shared = &*self.0;
        let metadata = event.metadata();
        with_workspace(|space| {
            space.fields.clear();
            space.time.clear();
            space.spans.clear();
            space.pretty_spans.clear();
            let (fields, scratch) = (&mut space.fields, &mut space.scratch);
            event.record(&mut Collector { redactor: &shared.redactor, fields, scratch });
            let _ = write_rfc3339(&mut space.time, shared.clock.wall());
            let people = shared.outputs.iter().any(|output| output.format == Format::Pretty);
            for span in context.event_scope(event).into_iter().flat_map(|scope| scope.from_root()) {
                let extensions = span.extensions();
                let Some(rendered) = extensions.get::<Rendered>() else { continue };
                if !space.spans.is_empty() {
                    space.spans.push(',');
                }
                space.spans.push_str(&rendered.json);
                if people {
                    rendered.pretty(&mut space.pretty_spans);
                }
            }
            let mut line = Line {
                time: &space.time,
                level: *metadata.level(),
                component: component(metadata.target()),
                target: metadata.target(),
                fields: &space.fields,
                spans: &space.spans,
            };
            space.line.clear();
            line.json(&mut space.line);
            shared.ring.push(line.level, line.component, &space.line);
            for output in shared.outputs.iter().filter(|output| output.format == Format::Json) {
                output.writer.write(space.line.as_bytes().to_vec());
            }
            line.spans = &space.pretty_spans;
            for output in shared.outputs.iter().filter(|output| output.format == Format::Pretty) {
                space.line.clear();
                line.pretty(&mut space.line, output.colours);
                output.writer.write(space.line.as_bytes().to_vec());
            }
        });
    }
}
