use std::path::PathBuf;

use clap::{Args, ValueEnum};
use orion::registry::Strategy;
use orion::router::route_timed;
use orion::{Message, ModelId, Query, Result, Role, RoutingOptions, SystemClock, answering, open_router};
use serde_json::json;

use super::router::PrecisionArg;
use crate::output;
use crate::registry::RegistryArgs;

#[derive(Debug, Clone, Copy, ValueEnum)]
enum By {
    Keyword,
    Embedding,
    Learning,
    Cascade,
}

#[derive(Debug, Args)]
pub(crate) struct Route {
    /// The prompt
    #[arg(value_name = "PROMPT", allow_hyphen_values = true)]
    prompt: String,
    #[command(flatten)]
    registry: RegistryArgs,
    /// What decides [default: as the registry says]
    #[arg(long, value_enum, value_name = "HOW")]
    by: Option<By>,
    /// A trained head, in place of the registry's
    #[arg(long, value_name = "FILE")]
    head: Option<PathBuf>,
    /// Arithmetic of the encoder [default: what the head was trained on, int8 without one]
    #[arg(long, value_enum, value_name = "NAME")]
    precision: Option<PrecisionArg>,
    /// A turn of the person before this one; may be given several times, oldest first
    #[arg(long, value_name = "TEXT")]
    after: Vec<String>,
    /// The model that answered the turn before
    #[arg(long, value_name = "ID")]
    current: Option<String>,
    /// Say why, with the ranking
    #[arg(long)]
    explain: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Route {
    pub(crate) fn run(&self) -> Result<()> {
        let registry = self.registry.load()?;
        let mut options = RoutingOptions::default();
        options.precision = self.precision.map(Into::into);
        options.head.clone_from(&self.head);
        options.strategy = self.by.map(|by| match by {
            By::Keyword => Strategy::Keyword,
            By::Embedding => Strategy::Embedding,
            By::Learning => Strategy::Learning,
            By::Cascade => Strategy::Cascade,
        });
        let router = open_router(&registry, &options)?;
        let current = self
            .current
            .as_deref()
            .map(|name| registry.expect_model(name).map(|model| ModelId::new(model.id())))
            .transpose()?;
        let history: Vec<Message> = self.after.iter().map(|text| Message::new(Role::User, text)).collect();
        let mut query = Query::new(&self.prompt);
        query.history = &history;
        query.current = current.as_ref();
        let timed = route_timed(&*router, &SystemClock::new(), &query, &answering(&registry))?;
        let decision = &timed.decision;
        let default = registry.router().fallback.as_deref().or(registry.defaults().model.as_deref());
        let default = default.and_then(|name| registry.model(name)).map(orion::registry::RegisteredModel::id);
        if self.json {
            let ranked = decision.ranked.iter();
            let ranked =
                ranked.map(|ranked| json!({ "model": ranked.model.as_str(), "score": ranked.score }));
            let mut value = json!({
                "model": decision.chosen().map(ModelId::as_str),
                "abstained": decision.abstained,
                "default": default,
                "confidence": decision.confidence,
                "reason": decision.reason,
                "router": decision.router,
                "ranked": ranked.collect::<Vec<_>>(),
                "latency_us": timed.latency.as_secs_f64() * 1e6,
            });
            if self.explain {
                value["explain"] = timed.explain().into();
            }
            return output::print_json(&value);
        }
        if self.explain {
            return output::print(&format!("{}\n", timed.explain()));
        }
        output::print(&match (decision.chosen(), default) {
            (Some(model), _) => format!("{model}\n"),
            (None, Some(default)) => format!("{default} (the default: {})\n", decision.reason),
            (None, None) => format!("no model: {}\n", decision.reason),
        })
    }
}
