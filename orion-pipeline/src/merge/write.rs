//! The output of a merge: tensors, configuration, tokenizer.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;

use orion_core::{
    Error, ErrorKind, MetaArray, MetaValue, ModelFormat, ModelHeader, Result, TensorInfo, TensorType,
    TileLayout,
};
use orion_formats::ShardIndex;
use orion_formats::gguf::{GgufWriter, TensorSpec, file_bytes};
use orion_formats::safetensors::SafetensorsWriter;
use serde_json::{Value, json};

use super::plan::{Models, PlannedTensor, SourceTensor};
use super::{MergeConfig, MergeOptions, merge_tensor, read_inputs};
use crate::output::{Output, OutputDirectory};
use crate::provenance;
use crate::shard::{INDEX, cut_as_hugging_face, file_metadata, spec};

pub(super) fn write(
    config: &MergeConfig,
    models: &Models,
    path: &Path,
    options: &MergeOptions,
) -> Result<()> {
    match models.donor().format {
        ModelFormat::Gguf => write_gguf(config, models, path, options),
        _ => write_safetensors(config, models, path, options),
    }
}

fn step(config: &MergeConfig, models: &Models, options: &MergeOptions) -> Value {
    // Names, not places.
    let name = |model: &String| {
        let parts =
            model.split('+').map(|part| Path::new(part).file_name().map(|name| name.to_string_lossy()));
        parts.map(Option::unwrap_or_default).collect::<Vec<_>>().join("+")
    };
    json!({
        "step": "merge",
        "method": config.method.name(),
        "models": models.names.iter().map(name).collect::<Vec<_>>(),
        "seed": options.seed,
    })
}

/// Stored bytes of inputs up to which they are read while the tensor before is merged.
const READ_AHEAD: u64 = 32 << 20;

/// Merges each of `tensors` and hands it over. Reading, merging and writing overlap.
fn each<'a>(
    config: &MergeConfig,
    models: &Models,
    options: &MergeOptions,
    tensors: impl Iterator<Item = &'a PlannedTensor> + Clone + Send,
    done: &mut u64,
    mut write: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let total: u64 = models.tensors.iter().map(PlannedTensor::bytes).sum();
    let stored = |tensor: &PlannedTensor| -> u64 {
        let bytes =
            |source: &SourceTensor| models.sources[source.model].header().tensors[source.tensor].bytes;
        tensor.sources.iter().map(bytes).sum()
    };
    // Nothing is kept in the channels: each stage is at most one tensor ahead of the next.
    let (read, inputs) = sync_channel(0);
    let (merged, outputs) = sync_channel(0);
    let (to_read, to_merge) = (tensors.clone(), tensors.clone());
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for tensor in to_read {
                let ahead = (stored(tensor) <= READ_AHEAD).then(|| read_inputs(models, tensor));
                if read.send(ahead).is_err() {
                    return;
                }
            }
        });
        scope.spawn(move || {
            for (tensor, ahead) in to_merge.zip(inputs) {
                let inputs = ahead.unwrap_or_else(|| read_inputs(models, tensor));
                let bytes = inputs.and_then(|inputs| merge_tensor(config, models, tensor, inputs, options));
                if merged.send(bytes).is_err() {
                    return;
                }
            }
        });
        // Dropped with this scope's end, whatever it is, which ends the others.
        let outputs = outputs;
        for tensor in tensors {
            options.control.step(&tensor.name, *done, total)?;
            let bytes =
                outputs.recv().unwrap_or_else(|_| Err(Error::new(ErrorKind::Internal, "merging panicked")));
            write(&bytes.map_err(|error| error.about(format!("tensor {}", tensor.name)))?)?;
            *done += tensor.bytes();
        }
        Ok::<_, Error>(())
    })?;
    if *done == total {
        options.control.step("", total, total)?;
    }
    Ok(())
}

fn write_gguf(config: &MergeConfig, models: &Models, path: &Path, options: &MergeOptions) -> Result<()> {
    if config.chat_template.is_some() {
        return Err(Error::unsupported("a chat template is set in safetensors outputs only"));
    }
    let mut metadata = models.donor().metadata.clone();
    metadata.retain(|key, _| !key.starts_with("split.") && key != "general.quantization_version");
    let file_type =
        models.tensors.iter().filter(|tensor| tensor.shape.len() > 1).map(|tensor| match tensor.out {
            TensorType::F16 => 1,
            TensorType::BF16 => 32,
            _ => 0,
        });
    metadata.insert("general.file_type".to_owned(), MetaValue::U32(file_type.max().unwrap_or(0)));
    if let Some(architecture) =
        metadata.get("general.architecture").and_then(MetaValue::as_str).map(str::to_owned)
    {
        let key = format!("{architecture}.block_count");
        let before = metadata.get(&key).and_then(MetaValue::as_u64);
        let layers = u32::try_from(models.layers).map_err(|_| Error::invalid("too many layers"))?;
        if before.is_some_and(|before| before != models.layers) {
            metadata.insert(key, MetaValue::U32(layers));
            let per_layer = metadata.iter_mut().filter(|(key, _)| key.starts_with(&architecture));
            for (key, value) in per_layer {
                remap(value, before, &models.layer_map).map_err(|error| error.about(key.clone()))?;
            }
        }
    }
    provenance::record(&mut metadata, step(config, models, options));
    let specs: Vec<_> = models.tensors.iter().map(|t| TensorSpec::new(&*t.name, &*t.shape, t.out)).collect();
    let out = Output::create(path, options.overwrite, file_bytes(&metadata, &specs)?)?;
    let mut writer = GgufWriter::start(out, &metadata, &specs)?;
    each(config, models, options, models.tensors.iter(), &mut 0, |bytes| writer.tensor(bytes))?;
    writer.finish()?.publish()
}

/// A value per layer follows its layer.
fn remap(value: &mut MetaValue, layers: Option<u64>, map: &[u64]) -> Result<()> {
    let MetaValue::Array(array) = value else { return Ok(()) };
    if Some(array.len() as u64) != layers {
        return Ok(());
    }
    fn pick<T: Clone>(list: &mut Vec<T>, map: &[u64]) {
        *list = map.iter().filter_map(|&layer| list.get(layer as usize).cloned()).collect();
    }
    match array {
        MetaArray::I32(list) => pick(list, map),
        MetaArray::U32(list) => pick(list, map),
        MetaArray::F32(list) => pick(list, map),
        MetaArray::Bool(list) => pick(list, map),
        _ => return Err(Error::unsupported("a list per layer of a kind that is not cut")),
    }
    Ok(())
}

fn write_safetensors(
    config: &MergeConfig,
    models: &Models,
    path: &Path,
    options: &MergeOptions,
) -> Result<()> {
    let files = side_files(config, models)?;
    let sizes: Vec<u64> = models.tensors.iter().map(PlannedTensor::bytes).collect();
    let shards = cut_as_hugging_face(&sizes, options.max_shard_bytes.get());
    let total: u64 = sizes.iter().sum();
    let side: usize = files.values().map(|bytes| bytes.len()).sum();
    let out = OutputDirectory::create(path, options.overwrite, total + side as u64 + (16 << 20), None)?;
    for (name, bytes) in &files {
        out.write(name, bytes)?;
    }
    let mut plain = ModelHeader::new(ModelFormat::Safetensors, BTreeMap::new(), Vec::new());
    plain.metadata.clone_from(&models.donor().metadata);
    let metadata = file_metadata(&plain, Some(step(config, models, options)));
    let (mut done, mut weight_map) = (0, BTreeMap::new());
    for (number, shard) in shards.iter().enumerate() {
        let file = match shards.len() {
            1 => "model.safetensors".to_owned(),
            count => format!("model-{:05}-of-{count:05}.safetensors", number + 1),
        };
        let tensors = || shard.iter().map(|&index| &models.tensors[index]);
        let specs = tensors().map(|tensor| spec(&info(tensor))).collect::<Result<Vec<_>>>()?;
        let mut writer = SafetensorsWriter::start(out.plain_file(&file)?, &metadata, &specs)?;
        each(config, models, options, tensors(), &mut done, |bytes| writer.tensor(bytes))?;
        writer.finish()?.finish()?;
        weight_map.extend(tensors().map(|tensor| (tensor.name.clone(), file.clone())));
    }
    if shards.len() > 1 {
        out.write(INDEX, ShardIndex::new(Some(total), weight_map).to_json().as_bytes())?;
    }
    out.publish()
}

fn info(tensor: &PlannedTensor) -> TensorInfo {
    TensorInfo {
        name: tensor.name.clone(),
        shape: tensor.shape.clone(),
        ty: tensor.out,
        layout: TileLayout::RowMajor,
        file: 0,
        offset: 0,
        bytes: tensor.bytes(),
    }
}

/// Everything but weights.
fn side_files(config: &MergeConfig, models: &Models) -> Result<BTreeMap<String, Arc<[u8]>>> {
    let donor = models.donor();
    let mut files = donor.side_files.clone();
    if let Some(vocabulary) = &models.vocabulary {
        files.extend(vocabulary.files.iter().map(|(name, bytes)| (name.clone(), bytes.clone())));
    }
    if let Some(text) = donor.side_text("config.json")? {
        let mut value: Value = serde_json::from_str(text)
            .map_err(|error| Error::corrupt(format!("is not JSON: {error}")).about("config.json"))?;
        update_config(&mut value, config, models);
        files.insert("config.json".to_owned(), format!("{value:#}\n").into_bytes().into());
    }
    if let Some(template) = &config.chat_template {
        set_template(&mut files, template, models)?;
    }
    files.insert("mergekit_config.yml".to_owned(), config.text.clone().into_bytes().into());
    Ok(files)
}

fn update_config(value: &mut Value, config: &MergeConfig, models: &Models) {
    if let Some(dtype) = config.out_dtype.or(config.dtype) {
        let name = match dtype {
            TensorType::F16 => "float16",
            TensorType::BF16 => "bfloat16",
            _ => "float32",
        };
        let key = if value.get("dtype").is_some() { "dtype" } else { "torch_dtype" };
        value[key] = name.into();
    }
    let before = value["num_hidden_layers"].as_u64();
    if before.is_some_and(|before| before != models.layers) {
        value["num_hidden_layers"] = models.layers.into();
    }
    for key in ["layer_types", "mlp_layer_types"] {
        if let Some(list) = value[key].as_array().filter(|list| Some(list.len() as u64) == before) {
            let picked = models.layer_map.iter().filter_map(|&layer| list.get(layer as usize).cloned());
            value[key] = picked.collect::<Vec<_>>().into();
        }
    }
    if let Some(vocabulary) = &models.vocabulary {
        value["vocab_size"] = vocabulary.rows.into();
    }
    if models.tensors.iter().any(|tensor| tensor.name == "lm_head.weight")
        && value["tie_word_embeddings"] == true
    {
        value["tie_word_embeddings"] = false.into();
    }
}

/// ChatML, the template that a name stands for.
const CHATML: &str = "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

fn set_template(files: &mut BTreeMap<String, Arc<[u8]>>, template: &str, models: &Models) -> Result<()> {
    let text = match template {
        "auto" => {
            let mut counts: BTreeMap<String, usize> = BTreeMap::new();
            for source in &models.sources {
                if let Some(found) = template_of(source.header())? {
                    *counts.entry(found.trim().to_owned()).or_default() += 1;
                }
            }
            match counts.into_iter().max_by_key(|(_, count)| *count) {
                Some((found, _)) => found,
                None => return Ok(()),
            }
        }
        "chatml" => CHATML.to_owned(),
        text if text.len() >= 20 && text.contains('{') => text.to_owned(),
        other => {
            return Err(Error::invalid(format!("{other:?} is neither auto, chatml nor a template"))
                .about("chat_template"));
        }
    };
    let config = files.get("tokenizer_config.json").map(|bytes| serde_json::from_slice::<Value>(bytes));
    let mut config = match config {
        Some(Ok(config)) => config,
        Some(Err(error)) => {
            return Err(Error::corrupt(format!("is not JSON: {error}")).about("tokenizer_config.json"));
        }
        None => json!({}),
    };
    config["chat_template"] = text.into();
    files.remove("chat_template.jinja");
    files.insert("tokenizer_config.json".to_owned(), format!("{config:#}\n").into_bytes().into());
    Ok(())
}

fn template_of(header: &ModelHeader) -> Result<Option<String>> {
    if let Some(text) = header.side_text("chat_template.jinja")? {
        return Ok(Some(text.to_owned()));
    }
    let config = header.side_text("tokenizer_config.json")?;
    let config: Value = config.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    Ok(config["chat_template"].as_str().map(str::to_owned))
}
