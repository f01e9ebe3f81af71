//! An entry as the rest of ORION reads it.

use std::path::PathBuf;

use orion_core::{Digest, FileSpec, ModelId, ModelSpec, SamplingParams};

use crate::document::{FileRole, ModelEntry, ModelFile, PromptFormat, Sampling};

/// Where a file is: the first folder that has it, else where it can be had, else where it belongs.
fn location(file: &ModelFile, roots: &[PathBuf]) -> String {
    let Some(path) = &file.path else { return file.url.clone().unwrap_or_default() };
    let shown = |place: PathBuf| place.to_string_lossy().into_owned();
    let mut places = roots.iter().map(|root| root.join(path));
    if let ([root], None) = (roots, &file.url) {
        return shown(root.join(path)); // there or not, it can be nowhere else
    }
    match (places.clone().find(|place| place.is_file()), &file.url) {
        (Some(found), _) => shown(found),
        (None, Some(url)) => url.clone(),
        (None, None) => shown(places.next().unwrap_or_default()),
    }
}

/// Turns a validated entry into a spec. `resolve` follows aliases.
pub(crate) fn to_spec(
    entry: &ModelEntry,
    defaults: &Sampling,
    roots: &[PathBuf],
    resolve: impl Fn(&str) -> String,
) -> ModelSpec {
    let files = entry.files.iter().map(|file| {
        let mut spec = FileSpec::new(location(file, roots));
        spec.bytes = file.bytes;
        spec.digest = file.sha256.as_deref().and_then(Digest::parse);
        spec
    });
    let mut spec = ModelSpec::new(ModelId::new(entry.id.as_str()), files.collect());
    if let Some(name) = &entry.name {
        spec.name.clone_from(name);
    }
    spec.description = entry.routing.description.clone().unwrap_or_default();
    spec.context_length = entry.context_length.unwrap_or(0);
    spec.weight_bytes = weight_bytes(entry);
    spec.kv_bytes_per_token = entry.memory.kv_bytes_per_token.unwrap_or(0);
    spec.capabilities.clone_from(&entry.capabilities);
    spec.languages.clone_from(&entry.languages);
    spec.examples.clone_from(&entry.routing.examples);
    spec.keywords.clone_from(&entry.routing.keywords);
    spec.priority = entry.priority.unwrap_or(0);
    spec.quality = entry.quality.map_or(0.5, crate::document::Quality::score);
    spec.pinned = entry.pinned.unwrap_or(false);
    spec.chat_template = entry.prompt.chat_template();
    spec.system_prompt.clone_from(&entry.system_prompt);
    let mut sampling = entry.sampling.clone();
    crate::inherit::Inherit::inherit(&mut sampling, defaults);
    spec.sampling = sampling.params();
    spec.stop = entry.stop.iter().chain(&entry.prompt.end_tokens).cloned().collect();
    spec.stop.dedup();
    spec.fallback = entry.fallback.iter().map(|name| ModelId::new(resolve(name))).collect();
    spec.first_responder = entry.first_responder.as_deref().map(|name| ModelId::new(resolve(name)));
    spec
}

/// Bytes of the weights in memory: as stated, else as large as their files.
pub(crate) fn weight_bytes(entry: &ModelEntry) -> u64 {
    entry.memory.weight_bytes.unwrap_or_else(|| {
        let weights = entry.files.iter().filter(|file| file.role == FileRole::Weights);
        weights.filter_map(|file| file.bytes).fold(0, u64::saturating_add)
    })
}

impl Sampling {
    /// The parameters, with ORION's defaults for what is not set.
    #[must_use]
    pub fn params(&self) -> SamplingParams {
        self.over(SamplingParams::default())
    }

    /// `params`, but for what is set here.
    #[must_use]
    pub fn over(&self, mut params: SamplingParams) -> SamplingParams {
        macro_rules! take {
            ($($field:ident),*) => { $(if let Some(value) = self.$field { params.$field = value; })* };
        }
        take!(
            temperature,
            top_k,
            top_p,
            min_p,
            repetition_penalty,
            frequency_penalty,
            presence_penalty,
            penalty_last_n,
            seed
        );
        params
    }
}

impl PromptFormat {
    /// The Jinja chat template: the one given, or one made of the prefixes, or none.
    #[must_use]
    pub fn chat_template(&self) -> Option<String> {
        if self.template.is_some() || !self.has_prefixes() {
            return self.template.clone();
        }
        let quote = |part: &Option<String>| {
            serde_json::to_string(part.as_deref().unwrap_or_default()).expect("a string always serialises")
        };
        let [system, user, assistant, end] =
            [&self.system_prefix, &self.user_prefix, &self.assistant_prefix, &self.turn_end].map(quote);
        Some(format!(
            "{{%- for message in messages -%}}{{%- if message.role == \"system\" -%}}{{{{ {system} }}}}\
             {{%- elif message.role == \"assistant\" -%}}{{{{ {assistant} }}}}{{%- else -%}}{{{{ {user} }}}}{{%- endif -%}}\
             {{{{ message.content }}}}{{{{ {end} }}}}{{%- endfor -%}}\
             {{%- if add_generation_prompt -%}}{{{{ {assistant} }}}}{{%- endif -%}}"
        ))
    }
}
