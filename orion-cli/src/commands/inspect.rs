use std::collections::BTreeMap;

use clap::Args;
use orion::runtime::Described;
use orion::{Error, ErrorKind, MetaValue, ModelFormat, ModelHeader, Result, TensorInfo};
use serde_json::{Map, Value, json};

use crate::output;
use crate::source::FetchArgs;

/// Characters of a metadata string that are shown to people.
const SHOWN: usize = 80;

#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// An id of the registry, a GGUF file, a safetensors file or index, a folder, or a URL of one of these
    #[arg(value_name = "MODEL")]
    model: String,
    #[command(flatten)]
    fetch: FetchArgs,
    /// Print one JSON object, metadata and tensors included
    #[arg(long)]
    json: bool,
}

impl Inspect {
    pub(crate) fn run(&self) -> Result<()> {
        let source = self.fetch.open(&self.model)?;
        let header = source.header();
        let described = match header.format {
            ModelFormat::Gguf => header.metadata.contains_key("general.architecture"),
            _ => header.side_files.contains_key("config.json"),
        };
        let described = described.then(|| orion::runtime::check(&*source)).transpose()?;
        let types = types(&header.tensors);
        let parameters: u64 = header.tensors.iter().map(TensorInfo::elements).sum();
        let bytes: u64 = header.tensors.iter().map(|tensor| tensor.bytes).sum();
        let model = described.map_or_else(|| Ok(Value::from("not described")), model_json)?;
        if self.json {
            return output::print_json(&json!({
                "format": format!("{:?}", header.format).to_lowercase(),
                "model": model,
                "parameters": parameters,
                "tensor_bytes": bytes,
                "types": types,
                "metadata": metadata_json(header),
                "side_files": header.side_files.keys().collect::<Vec<_>>(),
                "tensors": header.tensors.iter().map(tensor_json).collect::<Vec<_>>(),
            }));
        }
        let mut text = format!(
            "{:?}, {} tensors, {parameters} parameters, {bytes} bytes\n",
            header.format,
            header.tensors.len()
        );
        text += "model: ";
        match &model {
            Value::Object(fields) => {
                let fields = fields.iter().map(|(key, value)| match value {
                    Value::String(value) => format!("{key} {value}"),
                    value => format!("{key} {value}"),
                });
                text += &fields.collect::<Vec<_>>().join(", ");
            }
            _ => text += "not described",
        }
        text += "\ntypes:";
        for (ty, (count, bytes)) in &types {
            text += &format!(" {ty} {count} ({bytes} bytes)");
        }
        text += "\n";
        for (key, value) in &header.metadata {
            text += &format!("{key} = {}\n", shown(value));
        }
        for tensor in &header.tensors {
            text += &format!("{:<6} {:>18}  {}\n", tensor.ty, format!("{:?}", tensor.shape), tensor.name);
        }
        output::print(&text)
    }
}

fn model_json(described: Described) -> Result<Value> {
    match described {
        Described::Decoder(config) => Ok(json!({
            "architecture": config.architecture.name(),
            "layers": config.layers.len(),
            "hidden": config.hidden,
            "heads": config.heads,
            "kv_heads": config.kv_heads,
            "head_dim": config.head_dim,
            "ffn": config.ffn,
            "vocab_size": config.vocab_size,
            "context_length": config.context_length,
        })),
        Described::Encoder(config) => Ok(json!({
            "architecture": "bert",
            "layers": config.layers,
            "hidden": config.hidden,
            "heads": config.heads,
            "ffn": config.ffn,
            "vocab_size": config.vocab_size,
            "context_length": config.context_length,
        })),
        other => Err(Error::new(ErrorKind::Internal, format!("{other:?} is no model this command knows"))),
    }
}

/// Tensors and bytes of each type.
fn types(tensors: &[TensorInfo]) -> BTreeMap<String, (usize, u64)> {
    let mut types = BTreeMap::new();
    for tensor in tensors {
        let (count, bytes): &mut (usize, u64) = types.entry(tensor.ty.to_string()).or_default();
        *count += 1;
        *bytes += tensor.bytes;
    }
    types
}

fn tensor_json(tensor: &TensorInfo) -> Value {
    json!({
        "name": tensor.name,
        "type": tensor.ty.name(),
        "shape": tensor.shape,
        "file": tensor.file,
        "offset": tensor.offset,
        "bytes": tensor.bytes,
    })
}

fn metadata_json(header: &ModelHeader) -> Map<String, Value> {
    let value = |value: &MetaValue| match value {
        MetaValue::Str(text) => Value::from(text.as_str()),
        MetaValue::Bool(value) => Value::from(*value),
        MetaValue::Array(list) => json!({ "array": list.len() }),
        number => match (number.as_u64(), number.as_f32()) {
            (Some(value), _) => Value::from(value),
            (None, Some(value)) => Value::from(value),
            (None, None) => Value::from(format!("{number:?}")),
        },
    };
    header.metadata.iter().map(|(key, entry)| (key.clone(), value(entry))).collect()
}

fn shown(value: &MetaValue) -> String {
    let text = match value {
        MetaValue::Str(text) => format!("{text:?}"),
        MetaValue::Array(list) => format!("[{} values]", list.len()),
        MetaValue::Bool(value) => value.to_string(),
        number => match (number.as_u64(), number.as_f32()) {
            (Some(value), _) => value.to_string(),
            (None, Some(value)) => value.to_string(),
            (None, None) => format!("{number:?}"),
        },
    };
    match text.char_indices().nth(SHOWN) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}
