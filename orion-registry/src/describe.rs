//! Entries made of what model files say of themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use orion_core::{Error, MetaArray, MetaValue, ModelFormat, ModelHeader, Result, TensorInfo, TensorType};
use orion_formats::{MANIFEST, ShardSet, gguf, safetensors};
use sha2::Digest as _;

use crate::document::{FileRole, Format, ModelEntry, ModelFile, Quality, Speed};

/// Bytes of one key or value in the cache.
const KV_ELEMENT_BYTES: u64 = 2;
/// Context a machine should have room for.
const USUAL_CONTEXT: u64 = 4096;
/// Memory beyond weights, keys and values.
const OVERHEAD_BYTES: u64 = 128 << 20;
/// Most that is read of a side file.
const SIDE_FILE_BYTES: u64 = 16 << 20;
/// Deepest folder that a scan looks into.
const SCAN_DEPTH: usize = 8;
/// Files that stand beside safetensors, and what they hold.
const SIDE_FILES: &[(&str, FileRole)] = &[
    ("model.safetensors.index.json", FileRole::Index),
    ("config.json", FileRole::Config),
    ("tokenizer.json", FileRole::Tokenizer),
    ("tokenizer_config.json", FileRole::Other),
    ("special_tokens_map.json", FileRole::Other),
    ("vocab.txt", FileRole::Other),
    ("modules.json", FileRole::Other),
    ("sentence_bert_config.json", FileRole::Other),
    ("1_Pooling/config.json", FileRole::Other),
];
const ENCODERS: &[&str] =
    &["bert", "distilbert", "roberta", "xlm-roberta", "nomic-bert", "jina-bert-v2", "modernbert", "mpnet"];

/// A model found on disk: its weights in shard order.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ModelOnDisk {
    /// Kind of file.
    pub format: Format,
    /// The weights, the first shard first.
    pub weights: Vec<PathBuf>,
    /// The manifest, of a shard set.
    pub manifest: Option<PathBuf>,
}

impl ModelOnDisk {
    /// The model that a file belongs to: of one shard of a set, the whole set. A folder stands for the manifest in it.
    ///
    /// # Errors
    /// [`Unsupported`](orion_core::ErrorKind::Unsupported) if its name ends neither in `.gguf` nor in `.safetensors` and it
    /// is no manifest; [`NotFound`](orion_core::ErrorKind::NotFound) if it or a shard of its set is not there; what a
    /// manifest is refused for.
    pub fn of(path: &Path) -> Result<Self> {
        let about = || path.display().to_string();
        if let Some(manifest) = manifest_of(path) {
            let set = read_manifest(&manifest)?;
            let weights = set.shards.iter().map(|shard| manifest.with_file_name(&shard.entry.file));
            let weights = there(weights.collect())?;
            return Ok(Self { format: Format::OrionShards, weights, manifest: Some(manifest) });
        }
        let format = format_of(path)
            .ok_or_else(|| Error::unsupported("neither a .gguf nor a .safetensors file").about(about()))?;
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let weights = match shard(name) {
            None => vec![path.to_owned()],
            Some((stem, count, ending)) => (1..=count)
                .map(|number| path.with_file_name(format!("{stem}-{number:05}-of-{count:05}{ending}")))
                .collect(),
        };
        Ok(Self { format, weights: there(weights)?, manifest: None })
    }
}

/// The files, if none is missing.
fn there(files: Vec<PathBuf>) -> Result<Vec<PathBuf>> {
    match files.iter().find(|file| !file.is_file()) {
        None => Ok(files),
        Some(file) => {
            let missing = Error::new(orion_core::ErrorKind::NotFound, "there is no such file");
            Err(missing.about(file.display().to_string()))
        }
    }
}

/// The manifest of the shard set that a file of it, or its folder, belongs to.
fn manifest_of(path: &Path) -> Option<PathBuf> {
    let manifest = if path.is_dir() { path.join(MANIFEST) } else { path.with_file_name(MANIFEST) };
    (path.is_dir() || path == manifest || format_of(path).is_some()).then_some(())?;
    manifest.is_file().then_some(manifest)
}

fn read_manifest(path: &Path) -> Result<ShardSet> {
    let about = || path.display().to_string();
    ShardSet::parse(&read_small(path)?).map_err(|error| error.about(about()))
}

/// A file beside the weights, or as much of it as is read.
fn read_small(path: &Path) -> Result<Vec<u8>> {
    let about = |error| Error::io(error, path.display().to_string());
    let mut bytes = Vec::new();
    File::open(path).map_err(about)?.take(SIDE_FILE_BYTES).read_to_end(&mut bytes).map_err(about)?;
    Ok(bytes)
}

fn format_of(path: &Path) -> Option<Format> {
    let ending = path.extension()?.to_str()?;
    if ending.eq_ignore_ascii_case("gguf") {
        Some(Format::Gguf)
    } else if ending.eq_ignore_ascii_case("safetensors") {
        Some(Format::Safetensors)
    } else {
        None
    }
}

/// `stem-00002-of-00005.gguf` → stem, 5, `.gguf`.
fn shard(name: &str) -> Option<(&str, usize, &str)> {
    let (rest, count) = name.rsplit_once("-of-")?;
    let (count, ending) = count.split_at_checked(5)?;
    let (stem, number) = rest.rsplit_once('-')?;
    let digits = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    let count = count.parse().ok().filter(|_| digits(count) && digits(number))?;
    (1..=9999).contains(&count).then_some((stem, count, ending))
}

/// Models in a folder and those below it, by path. Links to folders are not followed, hidden folders are left out. A
/// set that lacks a shard is an error of its own and keeps nobody from finding the others.
///
/// # Errors
/// When a folder cannot be read.
pub fn find_models(folder: &Path) -> Result<Vec<Result<ModelOnDisk>>> {
    let mut found: Vec<(PathBuf, Result<ModelOnDisk>)> = Vec::new();
    let mut broken: BTreeSet<PathBuf> = BTreeSet::new();
    let mut open = vec![(folder.to_owned(), 0)];
    while let Some((folder, depth)) = open.pop() {
        let about = |error| Error::io(error, folder.display().to_string());
        for entry in std::fs::read_dir(&folder).map_err(about)? {
            let entry = entry.map_err(about)?;
            let (path, kind) = (entry.path(), entry.file_type().map_err(about)?);
            let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
            if kind.is_dir() && !hidden && depth < SCAN_DEPTH {
                open.push((path, depth + 1));
            } else if !kind.is_dir() && !hidden && is_model(&path) && path.is_file() {
                match ModelOnDisk::of(&path) {
                    Ok(model) if model.manifest.as_ref().or(model.weights.first()) != Some(&path) => {}
                    Ok(model) => found.push((path, Ok(model))),
                    Err(error) => {
                        // Every shard of a set lacks the same one.
                        if broken.insert(set_of(&path)) {
                            found.push((path, Err(error)));
                        }
                    }
                }
            }
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(found.into_iter().map(|(_, model)| model).collect())
}

/// Whether a file is the weights of a model, or the manifest of one.
fn is_model(path: &Path) -> bool {
    path.ends_with(MANIFEST) || format_of(path).is_some()
}

/// One path for all shards of a set.
fn set_of(path: &Path) -> PathBuf {
    if let Some(manifest) = manifest_of(path) {
        return manifest;
    }
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    shard(name).map_or_else(
        || path.to_owned(),
        |(stem, count, ending)| path.with_file_name(format!("{stem}-of-{count}{ending}")),
    )
}

/// Reads the headers of a model's files as one, with the side files an entry is made of.
///
/// # Errors
/// What the formats refuse, with the file; failures to read.
pub fn read_header(model: &ModelOnDisk) -> Result<ModelHeader> {
    let open = |path: &PathBuf| -> Result<(BufReader<File>, u64)> {
        let about = |error| Error::io(error, path.display().to_string());
        let file = File::open(path).map_err(about)?;
        let bytes = file.metadata().map_err(about)?.len();
        Ok((BufReader::new(file), bytes))
    };
    let in_file = |path: &PathBuf| {
        let about = path.display().to_string();
        |error: Error| error.about(about)
    };
    if let Some(manifest) = &model.manifest {
        let set = read_manifest(manifest)?;
        let mut metadata = BTreeMap::new();
        if let Some(entry) = &set.metadata {
            let path = manifest.with_file_name(&entry.file);
            let (reader, bytes) = open(&path)?;
            metadata = gguf::read_header(reader, bytes).map_err(in_file(&path))?.model.metadata;
        }
        let mut whole = set.model(metadata);
        for entry in &set.side_files {
            let bytes = read_small(&manifest.with_file_name(&entry.file))?;
            whole.side_files.insert(entry.file.clone(), bytes.into());
        }
        return Ok(whole);
    }
    if model.format == Format::Gguf {
        let headers = model.weights.iter().map(|path| {
            let (reader, bytes) = open(path)?;
            gguf::read_header(reader, bytes).map_err(in_file(path))
        });
        return gguf::join(headers.collect::<Result<_>>()?).map_err(|error| match model.weights.first() {
            Some(path) => in_file(path)(error),
            None => error,
        });
    }
    let mut whole = ModelHeader::new(ModelFormat::Safetensors, BTreeMap::new(), Vec::new());
    for (number, path) in model.weights.iter().enumerate() {
        let (reader, bytes) = open(path)?;
        let shard = safetensors::read_header(reader, bytes)
            .and_then(|header| header.model())
            .map_err(in_file(path))?;
        whole.metadata.extend(shard.metadata);
        whole.tensors.extend(shard.tensors.into_iter().map(|tensor| TensorInfo { file: number, ..tensor }));
    }
    let folder = model.weights.first().and_then(|path| path.parent()).unwrap_or(Path::new(""));
    for name in ["config.json", "tokenizer_config.json", "chat_template.jinja"] {
        let path = folder.join(name);
        if path.is_file() {
            whole.side_files.insert(name.to_owned(), read_small(&path)?.into());
        }
    }
    Ok(whole)
}

/// A complete entry for the model a file belongs to: header, sizes and digests.
///
/// # Errors
/// As [`ModelOnDisk::of`], [`read_header`] and [`entry_from_files`].
pub fn entry_from_path(root: &Path, path: &Path) -> Result<ModelEntry> {
    let model = ModelOnDisk::of(path)?;
    entry_from_files(root, &model, &read_header(&model)?)
}

/// A complete entry for a model below `root`, the folder of the registry file or a folder of models: what its header
/// says, and every file with size and digest. Reads all files once to compute the digests.
///
/// # Errors
/// [`InvalidInput`](orion_core::ErrorKind::InvalidInput) if a file lies outside `root`; failures to read.
pub fn entry_from_files(root: &Path, model: &ModelOnDisk, header: &ModelHeader) -> Result<ModelEntry> {
    let root = root.canonicalize().map_err(|error| Error::io(error, root.display().to_string()))?;
    let mut files: Vec<(PathBuf, FileRole)> = Vec::new();
    if let Some(manifest) = &model.manifest {
        let set = read_manifest(manifest)?;
        files.push((manifest.clone(), FileRole::Index));
        let beside = set.metadata.iter().chain(&set.side_files);
        files.extend(beside.map(|entry| (manifest.with_file_name(&entry.file), FileRole::Other)));
    }
    files.extend(model.weights.iter().map(|path| (path.clone(), FileRole::Weights)));
    if let (Format::Safetensors, Some(folder)) =
        (model.format, model.weights.first().and_then(|it| it.parent()))
    {
        let beside = SIDE_FILES.iter().map(|(name, role)| (folder.join(name), *role));
        files.extend(beside.filter(|(path, _)| path.is_file()));
    }
    let mut described = Vec::with_capacity(files.len());
    for (path, role) in files {
        let about = || path.display().to_string();
        let real = path.canonicalize().map_err(|error| Error::io(error, about()))?;
        let inside = real.strip_prefix(&root).ok().and_then(Path::to_str).ok_or_else(|| {
            let message = format!("the file is not below {}, the folder of the registry", root.display());
            Error::invalid(message).about(about())
        })?;
        let (bytes, sha256) = digest(&real).map_err(|error| Error::io(error, about()))?;
        let path = Some(inside.replace(std::path::MAIN_SEPARATOR, "/"));
        described.push(ModelFile { path, url: None, bytes: Some(bytes), sha256: Some(sha256), role });
    }
    let first = described.first().and_then(|file| file.path.clone()).unwrap_or_default();
    let mut entry = entry_from_header(&first, 0, header);
    entry.format = Some(model.format);
    entry.disk_bytes = Some(described.iter().filter_map(|file| file.bytes).sum());
    entry.files = described;
    Ok(entry)
}

fn digest(path: &Path) -> std::io::Result<(u64, String)> {
    let mut file = File::open(path)?;
    let (mut hash, mut bytes, mut buffer) = (sha2::Sha256::new(), 0, vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            read => {
                hash.update(&buffer[..read]);
                bytes += read as u64;
            }
        }
    }
    Ok((bytes, orion_core::Digest(hash.finalize().into()).to_string()))
}

/// An entry of what a header says, for a model in the single file `path` of `bytes` bytes.
///
/// Quality and speed class are guesses by size, the memory for keys and values assumes 16 bits each.
#[must_use]
pub fn entry_from_header(path: &str, bytes: u64, header: &ModelHeader) -> ModelEntry {
    let facts = Facts::read(header);
    let mut entry = ModelEntry::new(slug(path));
    entry.name = Some(facts.name.clone().unwrap_or_else(|| stem(path).to_owned()));
    entry.architecture.clone_from(&facts.architecture);
    entry.format = Some(match header.format {
        ModelFormat::Safetensors => Format::Safetensors,
        _ => Format::Gguf,
    });
    entry.files = vec![ModelFile {
        path: Some(path.to_owned()),
        url: None,
        bytes: (bytes > 0).then_some(bytes),
        sha256: header.digest.map(|digest| digest.to_string()),
        role: FileRole::Weights,
    }];
    entry.disk_bytes = (bytes > 0).then_some(bytes);
    entry.quantization = quantization(header);
    entry.context_length = facts.context;
    entry.parameters =
        Some(header.tensors.iter().map(|it| it.elements()).fold(0, u64::saturating_add)).filter(|n| *n > 0);
    let weights = header.tensors.iter().map(|tensor| tensor.bytes).fold(0, u64::saturating_add);
    entry.memory.weight_bytes = (weights > 0).then_some(weights);
    entry.memory.kv_bytes_per_token = facts.kv_bytes_per_token;
    let context = facts.context.map_or(USUAL_CONTEXT, |context| USUAL_CONTEXT.min(context.into()));
    let need = weights
        .saturating_add(facts.kv_bytes_per_token.unwrap_or(0).saturating_mul(context))
        .saturating_add(OVERHEAD_BYTES);
    entry.min_ram_bytes = Some(need.div_ceil(64 << 20).saturating_mul(64 << 20));
    entry.capabilities = facts.capabilities(path);
    entry.languages.clone_from(&facts.languages);
    entry.quality = entry.parameters.map(|count| match count {
        0..1_000_000_000 => Quality::Basic,
        1_000_000_000..6_000_000_000 => Quality::Fair,
        6_000_000_000..30_000_000_000 => Quality::Good,
        _ => Quality::Best,
    });
    entry.speed = Some(match weights {
        0..500_000_000 => Speed::Fast,
        500_000_000..6_000_000_000 => Speed::Medium,
        _ => Speed::Slow,
    });
    entry.licence.clone_from(&facts.licence);
    let mut words = vec![entry.name.clone().unwrap_or_default()];
    words.extend(facts.architecture.clone());
    words.extend(entry.parameters.map(millions));
    words.extend(entry.quantization.clone());
    entry.routing.description = Some(words.join(", "));
    entry
}

#[allow(clippy::cast_precision_loss, reason = "shown with one decimal")]
fn millions(count: u64) -> String {
    if count < 1_000_000_000 {
        format!("{:.1} M parameters", count as f64 / 1e6)
    } else {
        format!("{:.1} B parameters", count as f64 / 1e9)
    }
}

/// The part of the path that names the model: of generic file names the folder's.
fn stem(path: &str) -> &str {
    let (folder, file) = path.rsplit_once('/').unwrap_or(("", path));
    let file = shard(file).map_or(file, |(stem, ..)| stem);
    let stem = file.strip_suffix(".gguf").or_else(|| file.strip_suffix(".safetensors")).unwrap_or(file);
    match (stem, folder.rsplit('/').next()) {
        ("model" | "pytorch_model" | "weights" | "consolidated" | MANIFEST, Some(folder))
            if !folder.is_empty() =>
        {
            folder
        }
        _ => stem,
    }
}

fn slug(path: &str) -> String {
    let mut slug = String::new();
    for c in stem(path).chars() {
        let c = c.to_ascii_lowercase();
        if c.is_ascii_alphanumeric() || (matches!(c, '.' | '_') && !slug.is_empty()) {
            slug.push(c);
        } else if !slug.is_empty() && !slug.ends_with('-') {
            slug.push('-');
        }
    }
    slug.truncate(128);
    let slug = slug.trim_end_matches('-');
    if slug.is_empty() { "model".to_owned() } else { slug.to_owned() }
}

/// What headers of either format say, by one name each.
#[derive(Debug, Default)]
struct Facts {
    architecture: Option<String>,
    name: Option<String>,
    context: Option<u32>,
    kv_bytes_per_token: Option<u64>,
    languages: Vec<String>,
    licence: Option<String>,
    template: bool,
    encoder: bool,
}

impl Facts {
    fn read(header: &ModelHeader) -> Self {
        match header.format {
            ModelFormat::Safetensors => Self::from_config(header),
            _ => Self::from_gguf(header),
        }
    }

    fn from_gguf(header: &ModelHeader) -> Self {
        let text = |key: &str| {
            let text = header.metadata.get(key).and_then(MetaValue::as_str);
            text.map(str::trim).filter(|text| !text.is_empty()).map(str::to_owned)
        };
        let architecture = text("general.architecture");
        let prefix = architecture.clone().unwrap_or_default();
        let value = |key: &str| header.metadata.get(&format!("{prefix}.{key}"));
        let number = |key: &str| value(key).and_then(MetaValue::as_u64);
        let languages = header.metadata.get("general.languages").and_then(MetaValue::as_strings);
        let languages = languages.into_iter().flat_map(|table| table.iter());
        let encoder = ENCODERS.contains(&prefix.as_str()) || value("pooling_type").is_some();
        Self {
            name: text("general.name").map(cut),
            context: number("context_length").and_then(context),
            kv_bytes_per_token: if encoder { Some(0) } else { gguf_kv(&value) },
            languages: languages
                .filter_map(|code| std::str::from_utf8(code).ok().and_then(language))
                .collect(),
            licence: text("general.license").map(cut),
            template: header.metadata.contains_key("tokenizer.chat_template"),
            encoder,
            architecture: architecture.map(cut),
        }
    }

    fn from_config(header: &ModelHeader) -> Self {
        let json = |name: &str| -> serde_json::Value {
            let bytes = header.side_files.get(name);
            bytes.and_then(|bytes| serde_json::from_slice(bytes).ok()).unwrap_or_default()
        };
        let config = json("config.json");
        let number = |key: &str| config[key].as_u64();
        let architecture = config["model_type"].as_str().map(str::to_owned);
        let encoder = architecture.as_deref().is_some_and(|it| ENCODERS.contains(&it));
        let kv = || {
            let heads = number("num_attention_heads")?;
            let head = number("head_dim").or_else(|| number("hidden_size")?.checked_div(heads))?;
            let kv_heads = number("num_key_value_heads").unwrap_or(heads);
            product(&[number("num_hidden_layers")?, kv_heads, head, 2, KV_ELEMENT_BYTES])
        };
        Self {
            kv_bytes_per_token: if encoder { Some(0) } else { kv() },
            context: number("max_position_embeddings").and_then(context),
            template: json("tokenizer_config.json").get("chat_template").is_some()
                || header.side_files.contains_key("chat_template.jinja"),
            encoder,
            architecture: architecture.map(cut),
            ..Self::default()
        }
    }

    fn capabilities(&self, path: &str) -> Vec<String> {
        if self.encoder {
            return vec!["embedding".to_owned()];
        }
        let mut found = vec![if self.template { "chat" } else { "completion" }.to_owned()];
        let name = format!("{} {}", self.name.as_deref().unwrap_or_default(), stem(path)).to_lowercase();
        if name.contains("code") {
            found.push("code".to_owned());
        }
        if self.languages.len() > 1 {
            found.push("multilingual".to_owned());
        }
        found
    }
}

/// What the schema allows of a text out of a file.
fn cut(text: String) -> String {
    match text.char_indices().nth(64) {
        Some((end, _)) => text[..end].to_owned(),
        None => text,
    }
}

fn context(tokens: u64) -> Option<u32> {
    u32::try_from(tokens).ok().filter(|tokens| (1..=16_777_216).contains(tokens))
}

fn language(code: &str) -> Option<String> {
    let ok = matches!(code.len(), 2 | 3) && code.bytes().all(|byte| byte.is_ascii_lowercase());
    ok.then(|| code.to_owned())
}

fn product(factors: &[u64]) -> Option<u64> {
    factors
        .iter()
        .try_fold(1u64, |product, factor| product.checked_mul(*factor))
        .filter(|bytes| *bytes <= 1_000_000_000)
}

fn gguf_kv<'h>(value: &impl Fn(&str) -> Option<&'h MetaValue>) -> Option<u64> {
    let number = |key: &str| value(key).and_then(MetaValue::as_u64);
    let layers = number("block_count")?;
    let heads = number("attention.head_count");
    let head = || number("embedding_length")?.checked_div(heads?);
    let key = number("attention.key_length").or_else(head)?;
    let values = number("attention.value_length").or_else(head)?;
    // One number for all layers, or one per layer.
    let kv_heads = match value("attention.head_count_kv") {
        None => heads?.checked_mul(layers)?,
        Some(MetaValue::Array(MetaArray::I32(each))) => {
            each.iter().filter_map(|it| u64::try_from(*it).ok()).sum()
        }
        Some(MetaValue::Array(MetaArray::U32(each))) => each.iter().map(|it| u64::from(*it)).sum(),
        Some(one) => one.as_u64()?.checked_mul(layers)?,
    };
    product(&[kv_heads, key.checked_add(values)?, KV_ELEMENT_BYTES])
}

/// The name of the mixture, or of the type most bytes are in.
fn quantization(header: &ModelHeader) -> Option<String> {
    let stated = header.metadata.get("general.file_type").and_then(MetaValue::as_u64);
    let mixture = stated.and_then(|number| {
        Some(match number {
            0 => "F32",
            1 => "F16",
            2 => "Q4_0",
            3 => "Q4_1",
            7 => "Q8_0",
            8 => "Q5_0",
            9 => "Q5_1",
            10 => "Q2_K",
            11 => "Q3_K_S",
            12 => "Q3_K_M",
            13 => "Q3_K_L",
            14 => "Q4_K_S",
            15 => "Q4_K_M",
            16 => "Q5_K_S",
            17 => "Q5_K_M",
            18 => "Q6_K",
            25 => "IQ4_NL",
            30 => "IQ4_XS",
            32 => "BF16",
            _ => return None,
        })
    });
    let mut bytes: Vec<(u64, TensorType)> = Vec::new();
    for tensor in &header.tensors {
        match bytes.iter_mut().find(|(_, ty)| *ty == tensor.ty) {
            Some((sum, _)) => *sum = sum.saturating_add(tensor.bytes),
            None => bytes.push((tensor.bytes, tensor.ty)),
        }
    }
    mixture.or_else(|| bytes.iter().max().map(|(_, ty)| ty.name())).map(str::to_owned)
}
