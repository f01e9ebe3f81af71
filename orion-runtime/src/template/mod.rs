//! Chat templates: a conversation becomes the text that its model was trained on.
//!
//! Templates come with model files and are programs, so they run bounded: in size, in the depth of their
//! expressions, in steps, in the bytes they may produce, and on a stack of their own.

mod functions;
mod guard;
mod json;
mod shield;

use std::sync::Arc;

use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, Value};
use orion_core::{Clock, Error, ErrorKind, Message, ModelFormat, ModelHeader, Result, SystemClock};

use crate::tokenizer::Tokenizer;
use shield::Shield;

const KEY: &str = "tokenizer.chat_template";
const CONFIG: &str = "tokenizer_config.json";
const FILE: &str = "chat_template.jinja";
const NAME: &str = "chat_template";

/// Steps of a rendering, a byte that is produced counting as a 64th of one. Tokenising takes about 35 bytes for each byte of
/// a prompt without blanks, so a template may not make many of its own.
const FUEL: u64 = 150_000;
/// More steps for each message.
const FUEL_PER_MESSAGE: u64 = 2_000;
/// More steps for each byte of text that the caller gave.
const FUEL_PER_BYTE: u64 = 1;

/// The chat template of a model, compiled.
pub struct ChatTemplate {
    plain: Compiled,
    /// The template for conversations with tools, where the model has one of its own.
    tools: Option<Compiled>,
    clock: Arc<dyn Clock>,
}

struct Compiled {
    environment: Environment<'static>,
    source: Arc<str>,
}

/// What a template is given besides the conversation.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RenderOptions {
    /// End with the words that begin an answer of the model. On by default.
    pub add_generation_prompt: bool,
    /// Tools the model may call: a JSON array, as chat clients send it.
    pub tools: Option<String>,
    /// Documents to answer from: a JSON array.
    pub documents: Option<String>,
    /// More variables, such as `enable_thinking`: a JSON object.
    pub variables: Option<String>,
}

impl Default for RenderOptions {
    fn default() -> Self {
        Self { add_generation_prompt: true, tools: None, documents: None, variables: None }
    }
}

/// A rendered conversation, with what in it is plain text although it spells a special token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RenderedPrompt {
    text: String,
    plain: Vec<usize>,
}

impl RenderedPrompt {
    /// The text.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Offsets of bytes that belong to no special token, ascending: one within each special-token string that
    /// came from a message.
    #[must_use]
    pub fn plain(&self) -> &[usize] {
        &self.plain
    }
}

impl ChatTemplate {
    /// Compiles a template.
    ///
    /// # Errors
    /// [`Template`](ErrorKind::Template) if it is larger than 64 KiB, nested or chained too deeply, or malformed.
    pub fn new(source: &str) -> Result<Self> {
        Ok(Self { plain: Compiled::new(source)?, tools: None, clock: Arc::new(SystemClock::new()) })
    }

    /// The template of a model: `tokenizer.chat_template` of a GGUF; else `chat_template.jinja`, else
    /// `chat_template` in `tokenizer_config.json`. `None` if the model brings none.
    ///
    /// # Errors
    /// As [`new`](Self::new); [`Corrupt`](ErrorKind::Corrupt) if the metadata or the file is malformed.
    pub fn from_header(header: &ModelHeader) -> Result<Option<Self>> {
        let (mut plain, mut tools) = (None, None);
        if header.format == ModelFormat::Gguf {
            let string = |key: &str| {
                let wrong = || Error::corrupt("is no string").about(key);
                header.metadata.get(key).map(|value| value.as_str().ok_or_else(wrong)).transpose()
            };
            plain = string(KEY)?.map(str::to_owned);
            tools = string("tokenizer.chat_template.tool_use")?.map(str::to_owned);
        }
        if plain.is_none() {
            plain = header.side_text(FILE)?.map(str::to_owned);
        }
        if plain.is_none()
            && let Some(config) = header.side_text(CONFIG)?
        {
            (plain, tools) = json::templates_of(config)?;
        }
        let Some(plain) = plain.or_else(|| tools.clone()) else { return Ok(None) };
        let mut template = Self::new(&plain)?;
        template.tools = tools.as_deref().map(Compiled::new).transpose()?;
        Ok(Some(template))
    }

    /// The error for a conversation with a model that has no template.
    #[must_use]
    pub fn missing() -> Error {
        let what = "the model has no chat template: give it one, or send the prompt as plain text without a template";
        Error::new(ErrorKind::Template, what)
    }

    /// Tells the template the time by this clock (UTC).
    #[must_use]
    pub fn with_clock(mut self, clock: impl Clock + 'static) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    /// The source of the template.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.plain.source
    }

    /// Renders a conversation for the model that `tokenizer` belongs to.
    ///
    /// # Errors
    /// [`Template`](ErrorKind::Template) with the template's own words if it refuses the conversation, or with
    /// the line at which it failed; [`InvalidInput`](ErrorKind::InvalidInput) for options that are no JSON.
    pub fn render(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        options: &RenderOptions,
    ) -> Result<RenderedPrompt> {
        let turn = |message: &Message| {
            let role = Value::from(message.role.as_str());
            Value::from_pairs([("role", role), ("content", Value::from(message.content.as_str()))])
        };
        self.render_values(tokenizer, messages.iter().map(turn).collect(), options)
    }

    /// Renders a conversation given as JSON, as chat clients send it: an array of objects with `role`, `content`
    /// and whatever else the template knows, such as `tool_calls`.
    ///
    /// # Errors
    /// As [`render`](Self::render).
    pub fn render_json(
        &self,
        tokenizer: &Tokenizer,
        messages: &str,
        options: &RenderOptions,
    ) -> Result<RenderedPrompt> {
        self.render_values(tokenizer, json::parse(messages, "messages")?, options)
    }

    fn render_values(
        &self,
        tokenizer: &Tokenizer,
        messages: Value,
        options: &RenderOptions,
    ) -> Result<RenderedPrompt> {
        let parse = |text: &Option<String>, what: &str| {
            text.as_deref().map_or(Ok(Value::from(())), |text| json::parse(text, what))
        };
        // What is no list, which only a caller's own JSON may be, has no messages.
        let mut fuel = FUEL + FUEL_PER_MESSAGE * messages.len().unwrap_or(0) as u64;
        let mut given = vec![
            ("messages".to_owned(), messages),
            ("tools".to_owned(), parse(&options.tools, "tools")?),
            ("documents".to_owned(), parse(&options.documents, "documents")?),
        ];
        let compiled = self.tools.as_ref().filter(|_| options.tools.is_some()).unwrap_or(&self.plain);
        given.extend(json::entries(&parse(&options.variables, "variables")?, "variables")?);
        for (_, value) in &given {
            shield::visit(value, &mut |text| fuel += FUEL_PER_BYTE * text.len() as u64);
        }
        let shield = Shield::for_values(given.iter().map(|(_, value)| value), &compiled.source);
        for (_, value) in &mut given {
            *value = shield.protect(value, tokenizer);
        }
        let text =
            |id: Option<_>| id.and_then(|id| tokenizer.token_text(id)).unwrap_or_default().into_owned();
        given.push(("add_generation_prompt".to_owned(), Value::from(options.add_generation_prompt)));
        given.push(("bos_token".to_owned(), Value::from(text(tokenizer.bos()))));
        given.push(("eos_token".to_owned(), Value::from(text(tokenizer.eos()))));
        given.push(("unk_token".to_owned(), Value::from(text(tokenizer.unknown()))));
        let now = self.clock.wall();
        given.push(("strftime_now".to_owned(), functions::strftime_now(now)));
        let rendered = compiled.run(Value::from_pairs(given), fuel)?;
        let (text, plain) = shield.lift(&rendered);
        Ok(RenderedPrompt { text, plain })
    }
}

impl Compiled {
    fn new(source: &str) -> Result<Self> {
        let checked = guard::check(source)?;
        let environment = guard::on_large_stack(|| {
            let mut environment = Environment::new();
            let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
            environment.set_syntax(syntax.map_err(failed)?);
            environment.set_auto_escape_callback(|_| AutoEscape::None);
            functions::register(&mut environment);
            environment.add_template_owned(NAME, checked).map_err(failed)?;
            Ok(environment)
        })?;
        Ok(Self { environment, source: source.into() })
    }

    fn run(&self, given: Value, fuel: u64) -> Result<String> {
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(fuel));
        guard::on_large_stack(move || {
            let template = environment.get_template(NAME).map_err(failed)?;
            template.render(given).map_err(failed)
        })
    }
}

/// Our error for an error of the template engine.
fn failed(error: minijinja::Error) -> Error {
    let mut message = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    if error.kind() == minijinja::ErrorKind::OutOfFuel {
        message = "the template takes too many steps or produces too much text".to_owned();
    }
    if let Some(line) = error.line().filter(|_| error.kind() != minijinja::ErrorKind::OutOfFuel) {
        message.push_str(&format!(" (line {line})"));
    }
    Error::new(ErrorKind::Template, message).about("chat template").with_source(error)
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate").field("bytes", &self.plain.source.len()).finish_non_exhaustive()
    }
}
