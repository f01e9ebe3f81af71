//! One vocabulary for models that have different ones: which tokens it has, and which rows they get in each model.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use orion_core::{Error, ModelHeader, Result, TensorType};
use orion_kernels::{dequantize, quantize as encode};
use serde_json::{Value, json};

use super::config::{RowSource, TokenRow, Tokenizer, TokenizerSource};
use super::group::Input;

const FILE: &str = "tokenizer.json";

/// The output's vocabulary.
#[derive(Debug)]
pub(super) struct Vocabulary {
    /// Tokens by id; ids that no token has are empty.
    tokens: Vec<Option<String>>,
    /// Rows, padding included.
    pub(super) rows: u64,
    /// Per model: the old id of each new one.
    old: Vec<Vec<Option<u32>>>,
    /// Per model: its own vocabulary.
    own: Vec<HashMap<String, u32>>,
    configured: BTreeMap<String, TokenRow>,
    /// The side files that change.
    pub(super) files: BTreeMap<String, Arc<[u8]>>,
}

/// A model's tokenizer file, its tokens, and the rows of its tables.
struct Known {
    json: Value,
    vocabulary: HashMap<String, u32>,
    rows: u64,
}

fn known(model: &str, header: &ModelHeader) -> Result<Known> {
    let text = header.side_text(FILE)?.ok_or_else(|| {
        Error::invalid("a vocabulary is merged from tokenizer.json, which is not there")
            .about(model.to_owned())
    })?;
    let json: Value = serde_json::from_str(text).map_err(|error| {
        Error::corrupt(format!("is not JSON: {error}")).about(FILE).about(model.to_owned())
    })?;
    let bad = || Error::corrupt("vocabulary is not of a known form").about(FILE).about(model.to_owned());
    let mut vocabulary = HashMap::new();
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(bad);
    match &json["model"]["vocab"] {
        Value::Object(map) => {
            for (token, value) in map {
                vocabulary.insert(token.clone(), id(value)?);
            }
        }
        Value::Array(list) => {
            for (index, entry) in (0u32..).zip(list) {
                vocabulary.insert(entry[0].as_str().ok_or_else(bad)?.to_owned(), index);
            }
        }
        _ => return Err(bad()),
    }
    for added in json["added_tokens"].as_array().into_iter().flatten() {
        vocabulary.insert(added["content"].as_str().ok_or_else(bad)?.to_owned(), id(&added["id"])?);
    }
    let config: Value =
        header.side_text("config.json")?.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let rows = config["vocab_size"].as_u64().unwrap_or(vocabulary.len() as u64);
    Ok(Known { json, vocabulary, rows })
}

/// Drops the tokens that have no row.
fn strip(known: &mut Known, model: &str) -> Result<()> {
    let unused: Vec<String> = known
        .vocabulary
        .iter()
        .filter(|(_, id)| u64::from(**id) >= known.rows)
        .map(|(token, _)| token.clone())
        .collect();
    if unused.is_empty() {
        return Ok(());
    }
    if known.json["model"]["type"] != "BPE" {
        return Err(Error::unsupported("tokens without rows are taken out of BPE vocabularies only")
            .about(FILE)
            .about(model.to_owned()));
    }
    for token in &unused {
        known.vocabulary.remove(token);
        if let Some(map) = known.json["model"]["vocab"].as_object_mut() {
            map.remove(token);
        }
    }
    let is_unused = |token: &str| unused.iter().any(|other| other == token);
    if let Some(added) = known.json["added_tokens"].as_array_mut() {
        added.retain(|entry| entry["content"].as_str().is_none_or(|token| !is_unused(token)));
    }
    if let Some(merges) = known.json["model"]["merges"].as_array_mut() {
        merges.retain(|merge| match merge {
            Value::String(pair) => !pair.split(' ').any(is_unused),
            Value::Array(pair) => !pair.iter().filter_map(Value::as_str).any(is_unused),
            _ => true,
        });
    }
    Ok(())
}

/// Appends a token that the vocabulary has not; `entry` is how another tokenizer has it, if special or added there.
fn add(known: &mut Known, token: &str, entry: Option<&Value>) {
    if known.vocabulary.contains_key(token) {
        return;
    }
    let id = known.vocabulary.values().max().map_or(0, |id| id + 1);
    known.vocabulary.insert(token.to_owned(), id);
    let mut added = entry.cloned().unwrap_or_else(|| {
        json!({ "content": token, "single_word": false, "lstrip": false, "rstrip": false, "normalized": true, "special": false })
    });
    added["id"] = id.into();
    match known.json["added_tokens"].as_array_mut() {
        Some(list) => list.push(added),
        None => known.json["added_tokens"] = json!([added]),
    }
}

impl Vocabulary {
    /// The vocabulary that a configuration asks for. `models` are names and headers, the base model first.
    pub(super) fn build(config: &Tokenizer, models: &[(&str, &ModelHeader)]) -> Result<Self> {
        let mut all = models.iter().map(|(name, header)| known(name, header)).collect::<Result<Vec<_>>>()?;
        let own: Vec<HashMap<String, u32>> = all.iter().map(|known| known.vocabulary.clone()).collect();
        let rows: Vec<u64> = all.iter().map(|known| known.rows).collect();
        let at = |name: &str| {
            models.iter().position(|(other, _)| *other == name).ok_or_else(|| {
                Error::invalid("a token's or the tokenizer's source is none of the models merged")
                    .about(name.to_owned())
            })
        };
        let (donor, mut out) = match &config.source {
            TokenizerSource::Model(name) => {
                let donor = at(name)?;
                (donor, all.swap_remove(donor))
            }
            source => {
                strip(&mut all[0], models[0].0)?;
                if *source == TokenizerSource::Union {
                    let (base, others) = all.split_first_mut().expect("a merge has a model");
                    for other in others.iter() {
                        let mut tokens: Vec<(&String, u32)> =
                            other.vocabulary.iter().map(|(t, id)| (t, *id)).collect();
                        tokens.sort_by_key(|(_, id)| *id);
                        let is_added = |token: &str| {
                            other.json["added_tokens"]
                                .as_array()
                                .into_iter()
                                .flatten()
                                .find(|entry| entry["content"] == token)
                        };
                        for (token, id) in tokens {
                            if u64::from(id) < other.rows {
                                add(base, token, is_added(token));
                            }
                        }
                    }
                }
                (0, all.swap_remove(0))
            }
        };
        config.tokens.keys().for_each(|token| add(&mut out, token, None));
        let size = out.vocabulary.values().max().map_or(0, |id| *id as usize + 1);
        let mut tokens = vec![None; size];
        for (token, id) in &out.vocabulary {
            tokens[*id as usize] = Some(token.clone());
        }
        let old = own.iter().zip(&rows).map(|(own, rows)| {
            let id = |token: &Option<String>| {
                own.get(token.as_ref()?).copied().filter(|id| u64::from(*id) < *rows)
            };
            tokens.iter().map(id).collect()
        });
        let old = old.collect();
        let rows = match config.pad_to_multiple_of {
            Some(multiple) => (size as u64).next_multiple_of(multiple),
            None => size as u64,
        };
        let mut files = BTreeMap::new();
        files.insert(FILE.to_owned(), pretty(&out.json).into());
        let header = models[donor].1;
        for (name, bytes) in &header.side_files {
            if matches!(
                name.as_str(),
                "tokenizer_config.json" | "special_tokens_map.json" | "chat_template.jinja"
            ) {
                files.insert(name.clone(), bytes.clone());
            }
        }
        if let Some(text) = header.side_text("tokenizer_config.json")?
            && let Ok(mut value) = serde_json::from_str::<Value>(text)
            && value["added_tokens_decoder"].is_object()
        {
            let added: serde_json::Map<String, Value> = out.json["added_tokens"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|entry| {
                    let (mut entry, id) = (entry.clone(), entry["id"].to_string());
                    entry.as_object_mut().map(|entry| entry.remove("id"));
                    (id, entry)
                })
                .collect();
            value["added_tokens_decoder"] = Value::Object(added);
            files.insert("tokenizer_config.json".to_owned(), pretty(&value).into());
        }
        for row in config.tokens.values() {
            if let Some(RowSource::Model(model) | RowSource::Token(model, _) | RowSource::Id(model, _)) =
                &row.source
            {
                at(model)?;
            }
        }
        Ok(Self { tokens, rows, old, own, configured: config.tokens.clone(), files })
    }

    /// Brings the tables of the models `which` (as positions in the list the vocabulary was built from) to its rows.
    /// `names` are all models' names; `base` is the position in `which` of the base model.
    pub(super) fn align(
        &self,
        inputs: &mut [Input],
        which: &[usize],
        names: &[&str],
        base: Option<usize>,
        columns: usize,
    ) -> Result<()> {
        let ty = inputs[0].ty;
        if ty.is_quantised() || inputs.iter().any(|input| input.ty != ty) {
            for input in inputs.iter_mut() {
                let elements = input.bytes.len() / input.ty.block_bytes() * input.ty.block_len();
                let mut floats = vec![0.0; elements];
                dequantize(input.ty, &input.bytes, &mut floats)?;
                input.bytes = floats.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>().into();
                input.ty = TensorType::F32;
            }
        }
        let ty = inputs[0].ty;
        let width = columns * ty.block_bytes();
        let defaults = self.defaults(inputs, which, names, base, columns)?;
        let mut aligned = Vec::new();
        for (input, &model) in inputs.iter().zip(which) {
            let mut out = vec![0; self.rows as usize * width];
            for (id, to) in out.chunks_mut(width).take(self.tokens.len()).enumerate() {
                let force = self.tokens[id]
                    .as_ref()
                    .and_then(|t| self.configured.get(t))
                    .is_some_and(|row| row.force);
                match self.old[model][id].filter(|_| !force) {
                    Some(old) => to.copy_from_slice(row(input, old.into(), width)?),
                    None => {
                        if let Some(default) = defaults.get(&id) {
                            to.copy_from_slice(default);
                        }
                    }
                }
            }
            let (known, padding) = out.split_at_mut(self.tokens.len() * width);
            if !padding.is_empty() {
                let mean = mean(ty, known.chunks(width).map(Ok), columns)?;
                padding.chunks_mut(width).for_each(|to| to.copy_from_slice(&mean));
            }
            aligned.push(out);
        }
        inputs.iter_mut().zip(aligned).for_each(|(input, out)| input.bytes = out.into());
        Ok(())
    }

    /// The rows of tokens that a model lacks, or that are forced on all.
    fn defaults(
        &self,
        inputs: &[Input],
        which: &[usize],
        names: &[&str],
        base: Option<usize>,
        columns: usize,
    ) -> Result<HashMap<usize, Vec<u8>>> {
        let ty = inputs[0].ty;
        let width = columns * ty.block_bytes();
        let mut defaults = HashMap::new();
        for (id, token) in self.tokens.iter().enumerate() {
            let Some(token) = token else { continue };
            let configured = self.configured.get(token);
            let owners: Vec<usize> =
                (0..which.len()).filter(|&at| self.old[which[at]][id].is_some()).collect();
            if owners.len() == which.len() && configured.is_none_or(|row| !row.force) {
                continue;
            }
            let about = |error: Error| error.about(format!("token {token:?}"));
            let own = |at: usize| {
                let old = self.old[which[at]][id].ok_or_else(|| {
                    about(Error::invalid("its source has no such token").about(names[which[at]].to_owned()))
                })?;
                row(&inputs[at], old.into(), width)
            };
            let position = |name: &str| {
                which.iter().position(|&model| names[model] == name).ok_or_else(|| {
                    about(Error::invalid("its source is not merged into this tensor").about(name.to_owned()))
                })
            };
            let bytes = match configured {
                Some(row_config) => match row_config.source.as_ref() {
                    None => return Err(about(Error::invalid("needs a source for its rows"))),
                    Some(RowSource::Zero) => vec![0; width],
                    Some(RowSource::Model(model)) => own(position(model)?)?.to_vec(),
                    Some(RowSource::Id(model, other)) => {
                        row(&inputs[position(model)?], *other, width).map_err(about)?.to_vec()
                    }
                    Some(RowSource::Token(model, other)) => {
                        let at = position(model)?;
                        let other = self.own[which[at]].get(other).ok_or_else(|| {
                            about(
                                Error::invalid(format!("its source has no token {other:?}"))
                                    .about(model.clone()),
                            )
                        })?;
                        row(&inputs[at], (*other).into(), width).map_err(about)?.to_vec()
                    }
                },
                None => match (&owners[..], base.filter(|base| owners.contains(base))) {
                    ([], _) => vec![0; width],
                    ([only], _) => own(*only)?.to_vec(),
                    (_, Some(base)) => own(base)?.to_vec(),
                    _ => mean(ty, owners.iter().map(|&at| own(at)), columns)?,
                },
            };
            defaults.insert(id, bytes);
        }
        Ok(defaults)
    }
}

fn pretty(value: &Value) -> Vec<u8> {
    format!("{value:#}\n").into_bytes()
}

fn row(input: &Input, id: u64, width: usize) -> Result<&[u8]> {
    let start = usize::try_from(id).ok().and_then(|id| id.checked_mul(width));
    let bytes = start.and_then(|start| input.bytes.get(start..start + width));
    bytes.ok_or_else(|| Error::invalid(format!("there is no row {id}")).about(input.model.clone()))
}

/// The mean of rows, as their type.
fn mean<'a>(ty: TensorType, rows: impl Iterator<Item = Result<&'a [u8]>>, columns: usize) -> Result<Vec<u8>> {
    let (mut sum, mut x, mut count) = (vec![0.0f64; columns], vec![0.0f32; columns], 0u32);
    for row in rows {
        dequantize(ty, row?, &mut x)?;
        sum.iter_mut().zip(&x).for_each(|(sum, x)| *sum += f64::from(*x));
        count += 1;
    }
    let mean: Vec<f32> = sum.iter().map(|sum| (sum / f64::from(count.max(1))) as f32).collect();
    let mut out = Vec::new();
    encode(ty, &mean, columns.max(1), None, &mut out)?;
    Ok(out)
}
