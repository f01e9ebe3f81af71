//! Merge configurations, in mergekit's YAML.

use std::collections::BTreeMap;

use orion_core::{Error, Result, TensorType};
use serde_json::{Value, json};

use super::method::Method;
use super::setting::{Settings, parse_settings};

/// Longest configuration in bytes.
const LONGEST: usize = 1 << 20;

/// What to merge, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct MergeConfig {
    pub(crate) method: Method,
    /// Output slices from bottom to top. One without layer ranges stands for whole models.
    pub(crate) slices: Vec<Slice>,
    pub(crate) base_model: Option<String>,
    pub(crate) dtype: Option<TensorType>,
    pub(crate) out_dtype: Option<TensorType>,
    /// Parameters of the module, then of the whole.
    pub(crate) parameters: [Settings; 2],
    pub(crate) tokenizer: Option<Tokenizer>,
    pub(crate) chat_template: Option<String>,
    /// The configuration as it was written.
    pub(crate) text: String,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Slice {
    pub(crate) sources: Vec<Source>,
    pub(crate) base_model: Option<String>,
    pub(crate) parameters: Settings,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Source {
    pub(crate) model: String,
    /// From the first layer to before the second; all if not given.
    pub(crate) layers: Option<(u64, u64)>,
    pub(crate) parameters: Settings,
}

/// Which vocabulary the output has.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Tokenizer {
    pub(crate) source: TokenizerSource,
    pub(crate) tokens: BTreeMap<String, TokenRow>,
    pub(crate) pad_to_multiple_of: Option<u64>,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum TokenizerSource {
    Base,
    Union,
    Model(String),
}

/// Where a token's rows come from.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TokenRow {
    pub(crate) source: Option<RowSource>,
    /// In all models, those that have the token included.
    pub(crate) force: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum RowSource {
    Zero,
    /// The token's own row in that model.
    Model(String),
    /// Another token's row.
    Token(String, String),
    Id(String, u64),
}

impl MergeConfig {
    /// Parses a configuration. What mergekit 0.1.5 refuses of its form is refused; keys it does not know are passed
    /// over, as there.
    ///
    /// # Errors
    /// [`InvalidInput`](orion_core::ErrorKind::InvalidInput) with the place that is wrong.
    pub fn parse(yaml: &str) -> Result<Self> {
        if yaml.len() > LONGEST {
            return Err(Error::invalid(format!("a configuration of {} bytes", yaml.len())));
        }
        let value: Value = serde_yaml_ng::from_str(yaml)
            .map_err(|error| Error::invalid(format!("is not the YAML it must be: {error}")))?;
        Self::build(&value, yaml.to_owned())
    }

    /// A configuration of whole models with one weight each, for the simple cases. `weights` become the interpolation
    /// factor of methods that have one.
    ///
    /// # Errors
    /// [`InvalidInput`](orion_core::ErrorKind::InvalidInput) if the number of weights is not that of the models, or the method has no weights.
    pub fn simple(
        method: &str,
        models: &[String],
        weights: &[f64],
        base: Option<&str>,
        parameters: &[(String, Value)],
    ) -> Result<Self> {
        let known = Method::from_name(method)?;
        if !weights.is_empty() && weights.len() != models.len() {
            return Err(Error::invalid(format!("{} ratios for {} models", weights.len(), models.len())));
        }
        let mut tree = json!({ "merge_method": method });
        let mut shared: serde_json::Map<String, Value> = parameters.iter().cloned().collect();
        let mut each = Vec::new();
        match (known, weights) {
            (_, []) => each.extend(models.iter().map(|model| json!({ "model": model }))),
            (Method::Slerp, [first, second]) => {
                each.extend(models.iter().map(|model| json!({ "model": model })));
                shared.insert("t".to_owned(), json!(second / (first + second)));
            }
            (method, _) if method.has_weights() => {
                let weighted = models.iter().zip(weights);
                each.extend(
                    weighted
                        .map(|(model, weight)| json!({ "model": model, "parameters": { "weight": weight } })),
                );
            }
            _ => return Err(Error::invalid(format!("{method} takes no ratios"))),
        }
        // Methods that need a base start from the first model.
        let base =
            base.or_else(|| known.contract().base_required().then(|| models.first().map(String::as_str))?);
        if let Some(base) = base {
            tree["base_model"] = base.into();
        }
        tree["models"] = each.into();
        tree["parameters"] = Value::Object(shared);
        let text = serde_yaml_ng::to_string(&tree)
            .map_err(|error| Error::invalid(format!("cannot be written as YAML: {error}")))?;
        Self::build(&tree, text)
    }

    /// The models it names, each once: the base model first.
    #[must_use]
    pub fn models(&self) -> Vec<&str> {
        let mut models: Vec<&str> = Vec::new();
        let sources = self.slices.iter().flat_map(|slice| {
            slice.base_model.iter().chain(slice.sources.iter().map(|source| &source.model))
        });
        for model in self.base_model.iter().chain(sources) {
            if !models.contains(&model.as_str()) {
                models.push(model);
            }
        }
        models
    }

    fn build(value: &Value, text: String) -> Result<Self> {
        if !value.is_object() {
            return Err(Error::invalid("a merge configuration is a mapping"));
        }
        let method =
            string(value, "merge_method")?.ok_or_else(|| Error::invalid("merge_method is missing"))?;
        let method = Method::from_name(&method)?;
        let base_model = model_field(value, "base_model")?;
        let (module, module_parameters) = module(value)?;
        let slices = slices(module, base_model.as_deref())?;
        for (index, slice) in slices.iter().enumerate() {
            let ids: Vec<&str> = slice.sources.iter().map(|source| source.model.as_str()).collect();
            let base = slice.base_model.as_deref().or(base_model.as_deref());
            method.contract().check(&ids, base).map_err(|error| {
                error.about(format!("method {}", method.name())).about(format!("slice {index}"))
            })?;
        }
        Ok(Self {
            method,
            slices,
            base_model,
            dtype: dtype(value, "dtype")?,
            out_dtype: dtype(value, "out_dtype")?,
            parameters: [module_parameters, settings(value)?],
            tokenizer: tokenizer(value)?,
            chat_template: string(value, "chat_template")?,
            text,
        })
    }
}

fn settings(value: &Value) -> Result<Settings> {
    parse_settings(value.get("parameters").unwrap_or(&Value::Null), "parameters")
}

fn string(value: &Value, key: &str) -> Result<Option<String>> {
    match value.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(other) => Err(Error::invalid(format!("{other} is not a text")).about(key.to_owned())),
    }
}

fn list<'a>(value: &'a Value, key: &str) -> Result<Option<&'a [Value]>> {
    match value.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(list)) if list.is_empty() => Ok(None),
        Some(Value::Array(list)) => Ok(Some(list)),
        Some(_) => Err(Error::invalid("must be a list").about(key.to_owned())),
    }
}

/// What holds `models` or `slices`, and the parameters of the module it stands in.
fn module(value: &Value) -> Result<(&Value, Settings)> {
    let modules = match value.get("modules") {
        Some(Value::Object(modules)) if !modules.is_empty() => Some(modules),
        None | Some(Value::Null) => None,
        Some(_) => return Err(Error::invalid("must be a mapping").about("modules")),
    };
    let given = [modules.is_some(), list(value, "models")?.is_some(), list(value, "slices")?.is_some()];
    if given.iter().filter(|given| **given).count() != 1 {
        return Err(Error::invalid("exactly one of models, slices and modules must be given"));
    }
    let Some(modules) = modules else { return Ok((value, Settings::new())) };
    match modules.values().collect::<Vec<_>>()[..] {
        [module] => {
            if list(module, "models")?.is_some() == list(module, "slices")?.is_some() {
                return Err(Error::invalid("a module needs either models or slices").about("modules"));
            }
            Ok((module, settings(module)?))
        }
        _ => Err(Error::unsupported("models of several modules are not merged").about("modules")),
    }
}

fn slices(module: &Value, base: Option<&str>) -> Result<Vec<Slice>> {
    if let Some(models) = list(module, "models")? {
        let mut sources = models
            .iter()
            .map(|entry| {
                let parameters = settings(entry)?;
                Ok(Source { model: required_model(entry)?, layers: None, parameters })
            })
            .collect::<Result<Vec<_>>>()?;
        if let Some(base) = base
            && !sources.iter().any(|source| source.model == base)
        {
            sources.push(Source { model: base.to_owned(), layers: None, parameters: Settings::new() });
        }
        return Ok(vec![Slice { sources, base_model: None, parameters: Settings::new() }]);
    }
    let slices = list(module, "slices")?.unwrap_or_default();
    slices
        .iter()
        .map(|slice| {
            let sources = list(slice, "sources")?
                .ok_or_else(|| Error::invalid("a slice needs sources").about("slices"))?;
            let sources = sources
                .iter()
                .map(|source| {
                    Ok(Source {
                        model: required_model(source)?,
                        layers: Some(layer_range(source)?),
                        parameters: settings(source)?,
                    })
                })
                .collect::<Result<Vec<_>>>()?;
            let length = |source: &Source| source.layers.map(|(first, end)| end - first);
            if sources.iter().any(|source| length(source) != length(&sources[0])) {
                return Err(Error::invalid("all sources of a slice must have the same number of layers")
                    .about("slices"));
            }
            Ok(Slice { sources, base_model: model_field(slice, "base_model")?, parameters: settings(slice)? })
        })
        .collect()
}

fn layer_range(source: &Value) -> Result<(u64, u64)> {
    let range = source.get("layer_range").and_then(Value::as_array).map(Vec::as_slice);
    match range {
        Some([first, end]) => match (first.as_u64(), end.as_u64()) {
            (Some(first), Some(end)) if first <= end => Ok((first, end)),
            _ => Err(Error::invalid(format!("[{first}, {end}] is no range of layers")).about("layer_range")),
        },
        _ => Err(Error::invalid("a source of a slice needs [first, end]").about("layer_range")),
    }
}

fn required_model(value: &Value) -> Result<String> {
    model_field(value, "model")?.ok_or_else(|| Error::invalid("names no model").about("models"))
}

/// A model: a path, `path+adapter`, or the same as a mapping.
fn model_field(value: &Value, key: &str) -> Result<Option<String>> {
    let path = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Object(_) => value.get("path").and_then(Value::as_str).map(str::to_owned),
        _ => None,
    };
    match value.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(reference) => {
            let model = reference.get("model").and_then(path).or_else(|| path(reference));
            let model = model.ok_or_else(|| Error::invalid("is not a model").about(key.to_owned()))?;
            match reference.get("lora") {
                None | Some(Value::Null) => Ok(Some(model)),
                Some(lora) => {
                    let lora = path(lora).ok_or_else(|| Error::invalid("is not an adapter").about("lora"))?;
                    Ok(Some(format!("{model}+{lora}")))
                }
            }
        }
    }
}

fn dtype(value: &Value, key: &str) -> Result<Option<TensorType>> {
    let Some(name) = string(value, key)? else { return Ok(None) };
    match name.trim_start_matches("torch.") {
        "float32" | "float" => Ok(Some(TensorType::F32)),
        "float16" | "half" => Ok(Some(TensorType::F16)),
        "bfloat16" => Ok(Some(TensorType::BF16)),
        other => {
            Err(Error::invalid(format!("{other:?} is none of float32, float16, bfloat16"))
                .about(key.to_owned()))
        }
    }
}

fn tokenizer(value: &Value) -> Result<Option<Tokenizer>> {
    let source_of = |value: &Value, key: &str| -> Result<Option<TokenizerSource>> {
        Ok(model_field(value, key)?.map(|name| match name.as_str() {
            "base" => TokenizerSource::Base,
            "union" => TokenizerSource::Union,
            _ => TokenizerSource::Model(name),
        }))
    };
    let plain = source_of(value, "tokenizer_source")?;
    let full = match value.get("tokenizer") {
        None | Some(Value::Null) => None,
        Some(full @ Value::Object(_)) => Some(full),
        Some(_) => return Err(Error::invalid("must be a mapping").about("tokenizer")),
    };
    match (plain, full) {
        (Some(_), Some(_)) => Err(Error::invalid("tokenizer_source and tokenizer cannot both be given")),
        (None, None) => Ok(None),
        (Some(source), None) => {
            Ok(Some(Tokenizer { source, tokens: BTreeMap::new(), pad_to_multiple_of: None }))
        }
        (None, Some(full)) => {
            let tokens = match full.get("tokens") {
                None | Some(Value::Null) => BTreeMap::new(),
                Some(Value::Object(map)) => map
                    .iter()
                    .map(|(token, row)| {
                        Ok((token.clone(), token_row(row).map_err(|e| e.about(format!("token {token:?}")))?))
                    })
                    .collect::<Result<_>>()?,
                Some(_) => return Err(Error::invalid("must be a mapping").about("tokens")),
            };
            let pad_to_multiple_of = match full.get("pad_to_multiple_of") {
                None | Some(Value::Null) => None,
                Some(value) => Some(value.as_u64().filter(|&n| 0 < n && n <= 1 << 20).ok_or_else(|| {
                    Error::invalid(format!("{value} is no number of rows")).about("pad_to_multiple_of")
                })?),
            };
            let source = source_of(full, "source")?.unwrap_or(TokenizerSource::Union);
            Ok(Some(Tokenizer { source, tokens, pad_to_multiple_of }))
        }
    }
}

fn token_row(row: &Value) -> Result<TokenRow> {
    let force = match row.get("force") {
        None => false,
        Some(value) => {
            value.as_bool().ok_or_else(|| Error::invalid("is neither true nor false").about("force"))?
        }
    };
    let source = match row.get("source") {
        None | Some(Value::Null) => None,
        Some(source) => Some(match source.get("kind").and_then(Value::as_str) {
            Some("zero") => RowSource::Zero,
            Some("model_token") => {
                let model = required_model(source)?;
                match (
                    source.get("token").and_then(Value::as_str),
                    source.get("token_id").and_then(Value::as_u64),
                ) {
                    (Some(token), None) => RowSource::Token(model, token.to_owned()),
                    (None, Some(id)) => RowSource::Id(model, id),
                    _ => return Err(Error::invalid("needs either token or token_id").about("source")),
                }
            }
            Some(other) => {
                return Err(
                    Error::invalid(format!("{other:?} is neither zero nor model_token")).about("kind")
                );
            }
            None => {
                RowSource::Model(model_field(row, "source")?.ok_or_else(|| Error::invalid("names no model"))?)
            }
        }),
    };
    Ok(TokenRow { source, force })
}
