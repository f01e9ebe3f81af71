use std::collections::BTreeSet;

use clap::{Args, ValueEnum};
use orion::Result;
use orion::registry::{Hardware, ModelRow, Need, Preference, RegisteredModel};
use serde_json::json;

use crate::output::{self, table};
use crate::registry::RegistryArgs;

/// Context for which memory is stated.
const USUAL_CONTEXT: u32 = 2048;

#[derive(Debug, Args)]
pub(crate) struct List {
    #[command(flatten)]
    registry: RegistryArgs,
    /// Only models with this capability; may be given several times
    #[arg(long, value_name = "NAME")]
    capability: Vec<String>,
    /// Only models that speak this language (ISO 639-1); may be given several times
    #[arg(long, value_name = "CODE")]
    language: Vec<String>,
    /// Only models of this group
    #[arg(long, value_name = "NAME")]
    group: Option<String>,
    /// Only models that take at most this much memory with 2048 tokens of context
    #[arg(long, value_name = "MIB")]
    memory: Option<u64>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl List {
    pub(crate) fn run(&self) -> Result<()> {
        let registry = self.registry.load()?;
        let mut need = Need::any();
        need.group.clone_from(&self.group);
        // Of the advice only the error for an unknown group is wanted.
        registry.recommend(&Hardware::detect(), &need)?;
        let group: Option<BTreeSet<&str>> = self
            .group
            .as_deref()
            .and_then(|group| Some(registry.in_group(group)?.into_iter().map(RegisteredModel::id).collect()));
        let wanted = |model: &RegisteredModel| {
            self.capability.iter().all(|capability| model.can(capability))
                && self.language.iter().all(|language| model.speaks(language))
                && group.as_ref().is_none_or(|group| group.contains(model.id()))
                && self
                    .memory
                    .is_none_or(|mib| model.memory_bytes(USUAL_CONTEXT) <= mib.saturating_mul(1 << 20))
        };
        let rows: Vec<ModelRow> = registry
            .models()
            .iter()
            .zip(registry.rows())
            .filter(|(model, _)| wanted(model))
            .map(|(_, row)| row)
            .collect();
        if self.json {
            return output::print_json(&json!({ "models": rows }));
        }
        let mut lines = vec![
            ["id", "architecture", "type", "parameters", "context", "memory", "local", "can"]
                .map(str::to_owned),
        ];
        let stated = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        lines.extend(rows.iter().map(|row| {
            let local = if row.local { "yes" } else { "no" };
            [
                row.id.clone(),
                stated(&row.architecture),
                stated(&row.quantization),
                row.parameters.map_or_else(|| "-".to_owned(), |count| format!("{} M", count / 1_000_000)),
                row.context_length.to_string(),
                format!("{} MiB", row.weight_bytes >> 20),
                local.to_owned(),
                row.capabilities.join(", "),
            ]
        }));
        output::print(&table(&lines))
    }
}

#[derive(Debug, Args)]
pub(crate) struct Show {
    #[command(flatten)]
    registry: RegistryArgs,
    /// Id or alias
    #[arg(value_name = "ID")]
    id: String,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Show {
    pub(crate) fn run(&self) -> Result<()> {
        let registry = self.registry.load()?;
        let model = registry.expect_model(&self.id)?;
        let row = registry.rows().into_iter().find(|row| row.id == model.id());
        let local = row.as_ref().is_some_and(|row| row.local);
        let groups: Vec<&String> = registry
            .groups()
            .iter()
            .filter(|(name, _)| {
                let members = registry.in_group(name).unwrap_or_default();
                members.into_iter().any(|member| member.id() == model.id())
            })
            .map(|(name, _)| name)
            .collect();
        let aliases = row.map(|row| row.aliases).unwrap_or_default();
        let places: Vec<&str> = model.spec.files.iter().map(|file| file.location.as_str()).collect();
        if self.json {
            return output::print_json(&json!({
                "id": model.id(),
                "model": model.entry,
                "aliases": aliases,
                "groups": groups,
                "local": local,
                "locations": places,
                "memory_bytes": model.memory_bytes(USUAL_CONTEXT),
                "measured": model.measured,
            }));
        }
        let mut text = format!("{}: {}\n", model.id(), model.spec.name);
        let mut line = |name: &str, value: String| {
            if !value.is_empty() {
                text += &format!("{name:<13} {value}\n");
            }
        };
        let entry = &model.entry;
        line("about", model.spec.description.clone());
        line("aliases", aliases.join(", "));
        line("groups", groups.into_iter().cloned().collect::<Vec<_>>().join(", "));
        line("base", entry.base.clone().unwrap_or_default());
        line("architecture", entry.architecture.clone().unwrap_or_default());
        line("type", entry.quantization.clone().unwrap_or_default());
        line("parameters", entry.parameters.map(|count| count.to_string()).unwrap_or_default());
        line("context", format!("{} tokens", model.spec.context_length));
        line(
            "memory",
            format!("{} MiB with {USUAL_CONTEXT} tokens", model.memory_bytes(USUAL_CONTEXT) >> 20),
        );
        line("can", model.spec.capabilities.join(", "));
        line("languages", model.spec.languages.join(", "));
        line("licence", entry.licence.clone().unwrap_or_default());
        line("source", entry.source.clone().unwrap_or_default());
        line("system prompt", model.spec.system_prompt.clone().unwrap_or_default());
        line(
            "falls back to",
            model.spec.fallback.iter().map(|id| id.to_string()).collect::<Vec<_>>().join(", "),
        );
        for file in &model.spec.files {
            let there =
                if std::path::Path::new(&file.location).exists() { "" } else { "  (not on this machine)" };
            let bytes = file.bytes.map(|bytes| format!("  {bytes} bytes")).unwrap_or_default();
            line("file", format!("{}{bytes}{there}", file.location));
        }
        if let Some(measured) = &model.measured {
            let rate = |rate: Option<f64>| rate.map_or_else(|| "?".to_owned(), |rate| format!("{rate:.1}"));
            line(
                "measured",
                format!(
                    "{} tokens/s, prompt {} tokens/s{}{}",
                    rate(measured.tokens_per_second),
                    rate(measured.prefill_tokens_per_second),
                    measured.host.as_ref().map(|host| format!(", on {host}")).unwrap_or_default(),
                    measured.date.as_ref().map(|date| format!(", {date}")).unwrap_or_default(),
                ),
            );
        }
        output::print(&text)
    }
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum Prefer {
    #[default]
    Balanced,
    Quality,
    Speed,
}

#[derive(Debug, Args)]
pub(crate) struct Recommend {
    #[command(flatten)]
    registry: RegistryArgs,
    /// A recommendation of the registry (low-memory, coding, …), or a capability
    #[arg(value_name = "NEED")]
    need: Option<String>,
    /// A capability the model must state; may be given several times
    #[arg(long, value_name = "NAME")]
    capability: Vec<String>,
    /// A language it must speak (ISO 639-1); may be given several times
    #[arg(long, value_name = "CODE")]
    language: Vec<String>,
    /// Only models of this group
    #[arg(long, value_name = "NAME")]
    group: Option<String>,
    /// Tokens of context it must hold
    #[arg(long, value_name = "N")]
    context: Option<u32>,
    /// Memory it may take [default: what is available]
    #[arg(long, value_name = "MIB")]
    memory: Option<u64>,
    /// What to weigh
    #[arg(long, value_enum, value_name = "WHAT", default_value_t)]
    prefer: Prefer,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Recommend {
    pub(crate) fn run(&self) -> Result<()> {
        let registry = self.registry.load()?;
        let mut need = Need::any().prefer(match self.prefer {
            Prefer::Balanced => Preference::Balanced,
            Prefer::Quality => Preference::Quality,
            Prefer::Speed => Preference::Speed,
        });
        need.capabilities.clone_from(&self.capability);
        need.languages.clone_from(&self.language);
        need.group.clone_from(&self.group);
        need.context = self.context;
        need.memory_bytes = self.memory.map(|mib| mib.saturating_mul(1 << 20));
        if let Some(name) = &self.need {
            let capability = registry.with_capability(name).next().is_some();
            if capability && !registry.recommendations().contains_key(name) {
                need.capabilities.push(name.clone());
            } else {
                need.named = Some(name.clone());
            }
        }
        let hardware = Hardware::detect();
        let advice = registry.recommend(&hardware, &need)?;
        if self.json {
            return output::print_json(&json!({
                "best": advice.best(),
                "hardware": hardware,
                "profile": advice.profile,
                "memory_bytes": advice.memory_bytes,
                "fitting": advice.fitting,
                "ruled_out": advice.ruled_out,
            }));
        }
        output::print(&advice.to_string())
    }
}
