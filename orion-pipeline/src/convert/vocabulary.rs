//! Vocabularies: `tokenizer.json` and the keys `tokenizer.ggml.*`.

use std::collections::{BTreeMap, HashMap};

use orion_core::{Error, MetaArray, MetaValue, ModelHeader, Result, StringTable};
use serde_json::{Value, json};

use super::config::Config;

/// Kinds of tokens, as llama.cpp counts them.
mod kind {
    pub(super) const NORMAL: i32 = 1;
    pub(super) const UNKNOWN: i32 = 2;
    pub(super) const CONTROL: i32 = 3;
    pub(super) const USER_DEFINED: i32 = 4;
    pub(super) const UNUSED: i32 = 5;
    pub(super) const BYTE: i32 = 6;
}

const FILE: &str = "tokenizer.json";
const CONFIG: &str = "tokenizer_config.json";

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

fn bad(what: &str) -> Error {
    Error::corrupt(what.to_owned()).about(FILE)
}

fn side_json(header: &ModelHeader, name: &str) -> Result<Value> {
    let parsed = header.side_text(name)?.map(serde_json::from_str).transpose();
    Ok(parsed
        .map_err(|error| Error::corrupt(format!("is not JSON: {error}")).about(name.to_owned()))?
        .unwrap_or_default())
}

/// Parts of a tree of pre-tokenizers or normalizers, in order.
fn parts<'a>(node: &'a Value, key: &str) -> Vec<&'a Value> {
    match node["type"].as_str() {
        Some("Sequence") => {
            node[key].as_array().into_iter().flatten().flat_map(|inner| parts(inner, key)).collect()
        }
        Some(_) => vec![node],
        None => Vec::new(),
    }
}

/// The name that llama.cpp has for a pre-tokenizer.
fn pre_name(tokenizer: &Value) -> Option<&'static str> {
    let stages = parts(&tokenizer["pre_tokenizer"], "pretokenizers");
    let kinds: Vec<&str> = stages.iter().filter_map(|stage| stage["type"].as_str()).collect();
    let pattern = |stage: &Value| stage["pattern"]["Regex"].as_str().map(str::to_owned);
    match &kinds[..] {
        ["ByteLevel"] if stages[0]["use_regex"] != false => Some("gpt-2"),
        ["Digits", "ByteLevel"]
            if stages[0]["individual_digits"] == true && stages[1]["use_regex"] != false =>
        {
            Some("smollm")
        }
        ["Split", "ByteLevel"] => match pattern(stages[0])?.as_str() {
            LLAMA3 => Some("llama-bpe"),
            QWEN2 => Some("qwen2"),
            _ => None,
        },
        _ => None,
    }
}

/// The same the other way.
fn pre_tokenizer(name: &str) -> Option<Value> {
    let bytes = |regex: bool| json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex });
    let split = |pattern: &str| json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false });
    let sequence = |stages: Vec<Value>| json!({ "type": "Sequence", "pretokenizers": stages });
    Some(match name {
        "gpt-2" | "" | "default" => bytes(true),
        "smollm" | "starcoder" | "refact" | "command-r" => {
            sequence(vec![json!({ "type": "Digits", "individual_digits": true }), bytes(true)])
        }
        "llama-bpe" | "llama3" | "llama-v3" => sequence(vec![split(LLAMA3), bytes(false)]),
        "qwen2" => sequence(vec![split(QWEN2), bytes(false)]),
        _ => return None,
    })
}

/// Adds the keys of a vocabulary. A model without a tokenizer gets none, and says so.
pub(super) fn to_gguf(
    header: &ModelHeader,
    config: &Config,
    metadata: &mut BTreeMap<String, MetaValue>,
) -> Result<()> {
    let mut put = |key: &str, value: MetaValue| drop(metadata.insert(format!("tokenizer.{key}"), value));
    let tokenizer = side_json(header, FILE)?;
    if tokenizer.is_null() {
        put("ggml.model", MetaValue::Str("no_vocab".to_owned()));
        return Ok(());
    }
    let settings = side_json(header, CONFIG)?;
    let model = &tokenizer["model"];
    if model["type"] != "BPE" {
        return Err(Error::unsupported(format!("vocabularies of type {} are not converted", model["type"]))
            .about(FILE));
    }
    let vocab = model["vocab"].as_object().ok_or_else(|| bad("model.vocab is no mapping"))?;
    let rows = config.usize("vocab_size")?;
    let id_of = |value: &Value| {
        value
            .as_u64()
            .and_then(|id| usize::try_from(id).ok())
            .filter(|&id| id < 1 << 24)
            .ok_or_else(|| bad("an id is no small number"))
    };
    let mut tokens: Vec<Option<(String, i32)>> = vec![None; rows];
    let mut place = |id: usize, token: &str, kind: i32| {
        // Ids without rows are never produced.
        if let Some(slot) = tokens.get_mut(id) {
            *slot = Some((token.to_owned(), kind));
        }
    };
    let spm = model["byte_fallback"] == true;
    let unknown = model["unk_token"].as_str();
    for (token, id) in vocab {
        let is_byte = spm && token.len() == 6 && token.starts_with("<0x") && token.ends_with('>');
        let kind = match token.as_str() {
            _ if is_byte => kind::BYTE,
            token if Some(token) == unknown && spm => kind::UNKNOWN,
            _ => kind::NORMAL,
        };
        place(id_of(id)?, token, kind);
    }
    for added in tokenizer["added_tokens"].as_array().into_iter().flatten() {
        let content = added["content"].as_str().ok_or_else(|| bad("an added token has no content"))?;
        let kind = match added["special"] == true {
            true if Some(content) == unknown && spm => kind::UNKNOWN,
            true => kind::CONTROL,
            false => kind::USER_DEFINED,
        };
        place(id_of(&added["id"])?, content, kind);
    }
    let mut merges: Vec<(String, String)> = Vec::new();
    for merge in model["merges"].as_array().into_iter().flatten() {
        let pair = match merge {
            Value::String(text) => text.split_once(' '),
            pair => pair[0].as_str().zip(pair[1].as_str()),
        };
        let (left, right) = pair.ok_or_else(|| bad("a merge is no pair"))?;
        merges.push((left.to_owned(), right.to_owned()));
    }
    if spm {
        put("ggml.model", MetaValue::Str("llama".to_owned()));
        put("ggml.pre", MetaValue::Str("default".to_owned()));
        // What is merged first has the highest score.
        let mut ranks: HashMap<String, f32> = HashMap::new();
        for (rank, (left, right)) in merges.iter().enumerate() {
            ranks.entry(format!("{left}{right}")).or_insert(-(rank as f32) - 1.0);
        }
        let last = -(merges.len() as f32) - 1.0;
        let score = |slot: &Option<(String, i32)>| match slot {
            Some((token, kind::NORMAL)) => ranks.get(token).copied().unwrap_or(last),
            _ => 0.0,
        };
        put("ggml.scores", MetaValue::Array(MetaArray::F32(tokens.iter().map(score).collect())));
        let normalizers = parts(&tokenizer["normalizer"], "normalizers");
        let pre = parts(&tokenizer["pre_tokenizer"], "pretokenizers");
        let prefix = normalizers.iter().any(|stage| stage["type"] == "Prepend")
            || pre.iter().any(|stage| {
                stage["type"] == "Metaspace"
                    && stage["prepend_scheme"] != "never"
                    && stage["add_prefix_space"] != false
            });
        put("ggml.add_space_prefix", MetaValue::Bool(prefix));
    } else {
        let pre = pre_name(&tokenizer).ok_or_else(|| {
            Error::unsupported("its pre_tokenizer has no name in llama.cpp that is known here").about(FILE)
        })?;
        put("ggml.model", MetaValue::Str("gpt2".to_owned()));
        put("ggml.pre", MetaValue::Str(pre.to_owned()));
        let merges: StringTable = merges.iter().map(|(left, right)| format!("{left} {right}")).collect();
        put("ggml.merges", MetaValue::Array(MetaArray::Str(merges)));
    }
    let ids: HashMap<&str, u32> = tokens
        .iter()
        .zip(0u32..)
        .filter_map(|(slot, id)| slot.as_ref().map(|(token, _)| (token.as_str(), id)))
        .collect();
    let named = |key: &str| match &settings[key] {
        Value::String(token) => Some(token.as_str()),
        token => token["content"].as_str(),
    };
    for (theirs, ours) in [("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")] {
        let by_name = named(&format!("{theirs}_token")).and_then(|token| ids.get(token).copied());
        let listed = &config.json[format!("{theirs}_token_id")];
        let listed = listed.as_array().and_then(|list| list.first()).unwrap_or(listed);
        let by_id = listed.as_u64().and_then(|id| u32::try_from(id).ok());
        if let Some(id) = by_name.or(by_id) {
            put(&format!("ggml.{ours}_token_id"), MetaValue::U32(id));
        }
    }
    let frame = parts(&tokenizer["post_processor"], "processors");
    let frame =
        frame.iter().find(|stage| stage["type"] == "TemplateProcessing").map(|stage| &stage["single"]);
    let ends = |first: bool| {
        let list = frame?.as_array()?;
        let end = if first { list.first()? } else { list.last()? };
        Some(end.get("SpecialToken").is_some())
    };
    for (key, first) in [("add_bos_token", true), ("add_eos_token", false)] {
        let flag = settings[key].as_bool().or(ends(first)).unwrap_or(false);
        put(&format!("ggml.{key}"), MetaValue::Bool(flag));
    }
    let template = match header.side_text("chat_template.jinja")? {
        Some(text) => Some(text.to_owned()),
        None => settings["chat_template"].as_str().map(str::to_owned),
    };
    if let Some(template) = template {
        put("chat_template", MetaValue::Str(template));
    }
    let types = tokens.iter().map(|slot| slot.as_ref().map_or(kind::UNUSED, |(_, kind)| *kind)).collect();
    put("ggml.token_type", MetaValue::Array(MetaArray::I32(types)));
    let texts: StringTable = tokens
        .into_iter()
        .enumerate()
        .map(|(id, slot)| slot.map_or_else(|| format!("[PAD{id}]"), |(token, _)| token))
        .collect();
    put("ggml.tokens", MetaValue::Array(MetaArray::Str(texts)));
    Ok(())
}

/// Adds `tokenizer.json` and `tokenizer_config.json` to a header.
pub(super) fn to_hugging_face(from: &ModelHeader, to: &mut ModelHeader) -> Result<()> {
    let find = |key: &str| from.metadata.get(&format!("tokenizer.{key}"));
    let text = |key: &str| find(key).and_then(MetaValue::as_str);
    let model = text("ggml.model").unwrap_or("no_vocab");
    if model == "no_vocab" {
        return Ok(());
    }
    let unsupported = |what: String| Err(Error::unsupported(what).about("tokenizer.ggml.model"));
    let tokens = find("ggml.tokens")
        .and_then(MetaValue::as_strings)
        .ok_or_else(|| Error::corrupt("is missing").about("tokenizer.ggml.tokens"))?;
    let types = find("ggml.token_type").and_then(MetaValue::as_i32s).unwrap_or_default();
    let kind_of = |id: usize| types.get(id).copied().unwrap_or(kind::NORMAL);
    let token = |id: usize| String::from_utf8_lossy(tokens.get(id).unwrap_or_default()).into_owned();
    let mut vocab = serde_json::Map::new();
    let mut added = Vec::new();
    for id in 0..tokens.len() {
        let kind = kind_of(id);
        if kind == kind::UNUSED {
            continue;
        }
        vocab.insert(token(id), id.into());
        if matches!(kind, kind::CONTROL | kind::USER_DEFINED | kind::UNKNOWN) {
            let special = kind != kind::USER_DEFINED;
            added.push(json!({ "id": id, "content": token(id), "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": special }));
        }
    }
    let flag = |key: &str, usual: bool| find(key).and_then(MetaValue::as_bool).unwrap_or(usual);
    let prefix = flag("ggml.add_space_prefix", true);
    let mut tokenizer = json!({ "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "post_processor": null });
    let bpe = |merges: Vec<Value>, fallback: bool, unknown: Value| {
        json!({
            "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": fallback, "byte_fallback": fallback, "ignore_merges": false, "merges": merges,
        })
    };
    let id = |key: &str| find(&format!("ggml.{key}_token_id")).and_then(MetaValue::as_u64);
    match model {
        "gpt2" => {
            let pre = text("ggml.pre").unwrap_or_default();
            let Some(pre_tokenizer) = pre_tokenizer(pre) else {
                return unsupported(format!("the pre-tokenizer {pre:?} has no tokenizer.json here"));
            };
            let merges = find("ggml.merges")
                .and_then(MetaValue::as_strings)
                .ok_or_else(|| Error::corrupt("is missing").about("tokenizer.ggml.merges"))?;
            let merges =
                merges.iter().map(|merge| String::from_utf8_lossy(merge).into_owned().into()).collect();
            tokenizer["normalizer"] = Value::Null;
            tokenizer["pre_tokenizer"] = pre_tokenizer;
            tokenizer["decoder"] = json!({ "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true });
            tokenizer["model"] = bpe(merges, false, Value::Null);
        }
        "llama" => {
            let scores = find("ggml.scores").and_then(MetaValue::as_f32s).unwrap_or_default();
            let score = |id: usize| scores.get(id).copied().unwrap_or(0.0);
            let replace = json!({ "type": "Replace", "pattern": { "String": " " }, "content": "\u{2581}" });
            let prepend = json!({ "type": "Prepend", "prepend": "\u{2581}" });
            let normalizers = if prefix { vec![prepend, replace] } else { vec![replace] };
            tokenizer["normalizer"] = json!({ "type": "Sequence", "normalizers": normalizers });
            tokenizer["pre_tokenizer"] = Value::Null;
            let mut decoders = vec![
                json!({ "type": "Replace", "pattern": { "String": "\u{2581}" }, "content": " " }),
                json!({ "type": "ByteFallback" }),
                json!({ "type": "Fuse" }),
            ];
            if prefix {
                decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
            }
            tokenizer["decoder"] = json!({ "type": "Sequence", "decoders": decoders });
            let unknown = id("unknown").map_or(Value::Null, |id| token(id as usize).into());
            tokenizer["model"] = bpe(merges_of_scores(&vocab, kind_of, score), true, unknown);
        }
        other => return unsupported(format!("vocabularies of kind {other:?} are not converted")),
    }
    let mut settings =
        json!({ "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": false });
    for (ours, theirs) in [("bos", "bos"), ("eos", "eos"), ("unknown", "unk"), ("padding", "pad")] {
        if let Some(id) = id(ours) {
            settings[format!("{theirs}_token")] = token(id as usize).into();
        }
    }
    let bos = id("bos")
        .filter(|_| flag("ggml.add_bos_token", model == "llama" || text("ggml.pre") == Some("llama-bpe")));
    settings["add_bos_token"] = bos.is_some().into();
    if let Some(bos) = bos {
        let bos_text = token(bos as usize);
        let special = json!({ "SpecialToken": { "id": bos_text, "type_id": 0 } });
        let sequence = |id: &str, ty: u32| json!({ "Sequence": { "id": id, "type_id": ty } });
        let mut table = serde_json::Map::new();
        table.insert(bos_text.clone(), json!({ "id": bos_text, "ids": [bos], "tokens": [bos_text] }));
        tokenizer["post_processor"] = json!({
            "type": "TemplateProcessing",
            "single": [special, sequence("A", 0)],
            "pair": [special, sequence("A", 0), special, sequence("B", 1)],
            "special_tokens": table,
        });
    }
    if let Some(template) = text("chat_template") {
        settings["chat_template"] = template.into();
    }
    tokenizer["model"]["vocab"] = Value::Object(vocab);
    to.side_files.insert(FILE.to_owned(), tokenizer.to_string().into_bytes().into());
    to.side_files.insert(CONFIG.to_owned(), format!("{settings:#}\n").into_bytes().into());
    Ok(())
}

/// Merges that give what scores give: every way to make a token of two, the best token first.
fn merges_of_scores(
    vocab: &serde_json::Map<String, Value>,
    kind_of: impl Fn(usize) -> i32,
    score: impl Fn(usize) -> f32,
) -> Vec<Value> {
    let id_of = |token: &str| vocab.get(token).and_then(Value::as_u64).map(|id| id as usize);
    let mut merges: Vec<(f32, usize, usize, usize, &str)> = Vec::new();
    for (token, id) in vocab {
        let id = id.as_u64().unwrap_or(0) as usize;
        if kind_of(id) != kind::NORMAL {
            continue;
        }
        for (at, _) in token.char_indices().skip(1) {
            if let (Some(left), Some(right)) = (id_of(&token[..at]), id_of(&token[at..])) {
                merges.push((score(id), left, right, at, token));
            }
        }
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| (a.4, a.1, a.2).cmp(&(b.4, b.1, b.2))));
    merges.into_iter().map(|(_, _, _, at, token)| json!([&token[..at], &token[at..]])).collect()
}
