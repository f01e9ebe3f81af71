//! `model.safetensors.index.json`: which file of a sharded model holds which tensor.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

use orion_core::{ModelFormat, ModelHeader, Result};
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use crate::name::{check_file_name, check_tensor_name, shown};
use crate::reason::Reason;
use crate::safetensors::{LONGEST_NAME, SafetensorsHeader};

/// Most tensors of a sharded model.
const MOST_TENSORS: usize = 1 << 18;

/// The index of a sharded safetensors model.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ShardIndex {
    /// Bytes of all tensors, if it says so.
    pub total_bytes: Option<u64>,
    /// Tensor name to the plain name of the file that holds it.
    pub weight_map: BTreeMap<String, String>,
}

impl ShardIndex {
    /// An index of its parts.
    #[must_use]
    pub fn new(total_bytes: Option<u64>, weight_map: BTreeMap<String, String>) -> Self {
        Self { total_bytes, weight_map }
    }

    /// Parses an index. File names are plain names that end in `.safetensors`.
    ///
    /// # Errors
    /// [`Reason::BadIndex`], [`Reason::DuplicateTensor`], [`Reason::BadName`], [`Reason::PathEscape`].
    pub fn parse(json: &[u8]) -> Result<Self> {
        let raw: RawIndex = serde_json::from_slice(json).map_err(|error| {
            Reason::BadIndex.error(format!("the index is not the JSON it must be: {error}"))
        })?;
        let map = raw.weight_map;
        if map.too_many {
            return Err(Reason::CountTooLarge.error(format!("more than {MOST_TENSORS} tensors")));
        }
        if let Some(name) = map.twice {
            return Err(Reason::DuplicateTensor
                .error("appears twice in the index")
                .about(format!("tensor {}", shown(&name))));
        }
        if map.pairs.is_empty() {
            return Err(Reason::BadIndex.error("weight_map is empty"));
        }
        let index = Self { total_bytes: raw.metadata.total_size(), weight_map: map.pairs };
        for (name, file) in &index.weight_map {
            check_tensor_name(name, LONGEST_NAME)?;
            check_file_name(file).map_err(|error| error.about(format!("tensor {}", shown(name))))?;
            if !file.ends_with(".safetensors") {
                return Err(Reason::BadIndex
                    .error(format!("{} is not a safetensors file name", shown(file)))
                    .about(format!("tensor {}", shown(name))));
            }
        }
        Ok(index)
    }

    /// The index as `transformers` writes it: sorted, indented by two, with a final line feed.
    #[must_use]
    pub fn to_json(&self) -> String {
        let mut value = serde_json::json!({ "metadata": {}, "weight_map": self.weight_map });
        if let Some(total) = self.total_bytes {
            value["metadata"]["total_size"] = total.into();
        }
        format!("{value:#}\n")
    }

    /// The names of the shards, sorted.
    #[must_use]
    pub fn files(&self) -> Vec<&str> {
        self.weight_map.values().map(String::as_str).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Makes one model of the headers of all [`files`](Self::files), in that order. Where shards carry different
    /// metadata under one key, the first shard's stays.
    ///
    /// # Errors
    /// [`Reason::IndexMismatch`] if a tensor is not where the index says, or is in two shards, or is not listed;
    /// [`Reason::UnsupportedDtype`].
    pub fn join(&self, shards: &[SafetensorsHeader]) -> Result<ModelHeader> {
        let files = self.files();
        if files.len() != shards.len() {
            return Err(Reason::IndexMismatch.error(format!(
                "{} shards for {} files",
                shards.len(),
                files.len()
            )));
        }
        let mismatch = |name: &str, message: String| {
            Err(Reason::IndexMismatch.error(message).about(format!("tensor {}", shown(name))))
        };
        let mut model = ModelHeader::new(ModelFormat::Safetensors, BTreeMap::new(), Vec::new());
        let mut seen: HashMap<&str, usize> = HashMap::new();
        for (number, (file, shard)) in files.iter().zip(shards).enumerate() {
            for entry in &shard.tensors {
                if let Some(before) = seen.insert(&entry.name, number) {
                    return mismatch(&entry.name, format!("stands in {} and in {file}", files[before]));
                }
                match self.weight_map.get(&entry.name) {
                    Some(listed) if listed == file => {}
                    Some(listed) => {
                        return mismatch(&entry.name, format!("stands in {file}, the index says {listed}"));
                    }
                    None => return mismatch(&entry.name, format!("stands in {file} and not in the index")),
                }
                if let Some(mut info) = entry.info().map_err(|error| error.about(format!("file {file}")))? {
                    info.file = number;
                    model.tensors.push(info);
                }
            }
            for (key, value) in shard.model_metadata() {
                model.metadata.entry(key).or_insert(value);
            }
        }
        match self.weight_map.iter().find(|(name, _)| !seen.contains_key(name.as_str())) {
            Some((name, file)) => mismatch(name, format!("is listed in {file} and not there")),
            None => Ok(model),
        }
    }
}

#[derive(Deserialize)]
struct RawIndex {
    #[serde(default)]
    metadata: RawMetadata,
    weight_map: RawMap,
}

/// Only the total is looked at; some writers make it a float.
#[derive(Deserialize, Default)]
struct RawMetadata {
    #[serde(default)]
    total_size: Option<serde_json::Number>,
}

impl RawMetadata {
    fn total_size(&self) -> Option<u64> {
        self.total_size.as_ref().and_then(serde_json::Number::as_u64)
    }
}

#[derive(Default)]
struct RawMap {
    pairs: BTreeMap<String, String>,
    twice: Option<String>,
    too_many: bool,
}

impl<'de> Deserialize<'de> for RawMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = RawMap;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map from tensor names to file names")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawMap, A::Error> {
                let mut raw = RawMap::default();
                while let Some(key) = map.next_key::<String>()? {
                    if raw.pairs.len() == MOST_TENSORS {
                        raw.too_many = true;
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        let file = map.next_value()?;
                        match raw.pairs.entry(key) {
                            Entry::Vacant(free) => _ = free.insert(file),
                            Entry::Occupied(taken) => {
                                _ = raw.twice.get_or_insert_with(|| taken.key().clone())
                            }
                        }
                    }
                }
                Ok(raw)
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}
