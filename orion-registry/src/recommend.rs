//! Which model to take, and why.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::document::{Group, Speed};
use crate::hardware::{Hardware, Profile};
use crate::registry::{RegisteredModel, Registry};

/// Tokens per second at which a measured speed counts as half of the best: about as fast as people read.
const READING_SPEED: f64 = 10.0;

/// What a recommendation weighs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Preference {
    /// Quality and speed alike.
    #[default]
    Balanced,
    /// Good answers first.
    Quality,
    /// Quick answers first.
    Speed,
}

/// What a model is needed for. Everything that is set must hold.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Need {
    /// Capabilities it must state.
    pub capabilities: Vec<String>,
    /// Languages it must state.
    pub languages: Vec<String>,
    /// Only models of this group.
    pub group: Option<String>,
    /// Only models of this named recommendation, its order counting.
    pub named: Option<String>,
    /// Tokens of context it must hold; 2048 if not set.
    pub context: Option<u32>,
    /// Memory it may take, in place of what is available.
    pub memory_bytes: Option<u64>,
    /// What to weigh.
    pub prefer: Preference,
}

impl Need {
    /// Any model that fits.
    #[must_use]
    pub fn any() -> Self {
        Self::default()
    }

    /// A model with a capability.
    pub fn capability(capability: impl Into<String>) -> Self {
        Self { capabilities: vec![capability.into()], ..Self::default() }
    }

    /// A model of a named recommendation.
    pub fn named(name: impl Into<String>) -> Self {
        Self { named: Some(name.into()), ..Self::default() }
    }

    /// Adds a language.
    #[must_use]
    pub fn language(mut self, language: impl Into<String>) -> Self {
        self.languages.push(language.into());
        self
    }

    /// Sets what to weigh.
    #[must_use]
    pub fn prefer(mut self, prefer: Preference) -> Self {
        self.prefer = prefer;
        self
    }

    /// Sets the tokens of context it must hold.
    #[must_use]
    pub fn context(mut self, tokens: u32) -> Self {
        self.context = Some(tokens);
        self
    }

    /// Sets the memory it may take.
    #[must_use]
    pub fn memory(mut self, bytes: u64) -> Self {
        self.memory_bytes = Some(bytes);
        self
    }

    /// Keeps to a group.
    #[must_use]
    pub fn group(mut self, group: impl Into<String>) -> Self {
        self.group = Some(group.into());
        self
    }
}

/// A model and why it is or is not recommended.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Recommendation {
    /// The model.
    pub model: String,
    /// Its score, 0 to 1 and a little more for priority; 0 if it is ruled out.
    pub score: f64,
    /// Memory it needs with the context asked for.
    pub memory_bytes: u64,
    /// Why, the weightiest first.
    pub reasons: Vec<String>,
}

/// The answer to a [`Need`].
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Advice {
    /// How large the machine is.
    pub profile: Profile,
    /// Memory that was reckoned with; `None` if it is not known, and then no model is ruled out by it.
    pub memory_bytes: Option<u64>,
    /// Models that fit, best first.
    pub fitting: Vec<Recommendation>,
    /// Models that do not, each with every reason.
    pub ruled_out: Vec<Recommendation>,
}

impl Advice {
    /// The best model.
    #[must_use]
    pub fn best(&self) -> Option<&str> {
        self.fitting.first().map(|first| first.model.as_str())
    }
}

impl Registry {
    /// Models for a need on a machine, best first, with the reasons.
    ///
    /// # Errors
    /// [`NotFound`](orion_core::ErrorKind::NotFound) if the need names a group or recommendation that is not there.
    pub fn recommend(&self, hardware: &Hardware, need: &Need) -> orion_core::Result<Advice> {
        let lists = Lists {
            group: self.listed(&need.group, self.groups(), "group")?,
            named: self.listed(&need.named, self.recommendations(), "recommendation")?,
        };
        let memory = need.memory_bytes.or(hardware.available_bytes);
        let mut advice =
            Advice { profile: hardware.profile, memory_bytes: memory, fitting: vec![], ruled_out: vec![] };
        for model in self.models() {
            match judge(model, hardware, need, memory, &lists) {
                Ok(fit) => advice.fitting.push(fit),
                Err(out) => advice.ruled_out.push(out),
            }
        }
        advice.fitting.sort_by(|a, b| b.score.total_cmp(&a.score).then_with(|| a.model.cmp(&b.model)));
        Ok(advice)
    }

    /// The ids of a named list, if one is asked for.
    fn listed(
        &self,
        name: &Option<String>,
        lists: &BTreeMap<String, Group>,
        what: &str,
    ) -> orion_core::Result<Option<NamedIds>> {
        let Some(name) = name else { return Ok(None) };
        let group = lists.get(name).ok_or_else(|| {
            let near = crate::schema::did_you_mean(name, lists.keys().map(String::as_str));
            let help = near.map_or_else(String::new, |near| format!("; did you mean {near:?}?"));
            let message = format!("no {what} of that name in the registry{help}");
            orion_core::Error::new(orion_core::ErrorKind::NotFound, message).about(name.clone())
        })?;
        let ids = group.models.iter().filter_map(|name| self.model(name)).map(|model| model.id().to_owned());
        Ok(Some((name.clone(), ids.collect())))
    }
}

/// The name of a list, and the models in it.
type NamedIds = (String, Vec<String>);

struct Lists {
    group: Option<NamedIds>,
    named: Option<NamedIds>,
}

fn judge(
    model: &RegisteredModel,
    hardware: &Hardware,
    need: &Need,
    memory: Option<u64>,
    lists: &Lists,
) -> Result<Recommendation, Recommendation> {
    let entry = &model.entry;
    let context = need.context.unwrap_or(2048);
    let needed = model.memory_bytes(context);
    let mut against = Vec::new();
    let lacking = |stated: &[String], asked: &[String]| -> Vec<String> {
        asked.iter().filter(|it| !stated.contains(it)).cloned().collect()
    };
    let lacks = lacking(&entry.capabilities, &need.capabilities);
    if !lacks.is_empty() {
        against.push(format!("does not state the capability {}", lacks.join(", ")));
    }
    let lacks = lacking(&entry.languages, &need.languages);
    if !lacks.is_empty() {
        against.push(format!("does not state the language {}", lacks.join(", ")));
    }
    for (what, list) in [("group", &lists.group), ("recommendation", &lists.named)] {
        if let Some((name, ids)) = list
            && !ids.contains(&entry.id)
        {
            against.push(format!("is not in the {what} {name}"));
        }
    }
    // An encoder answers nobody; it is recommended to those who ask for it.
    if need.capabilities.is_empty() && need.named.is_none() && need.group.is_none() && !answers(model) {
        against.push("turns texts into vectors and answers no prompts".to_owned());
    }
    if need.context.is_some_and(|context| context > model.spec.context_length) {
        against.push(format!("holds {} tokens, {context} are needed", model.spec.context_length));
    }
    if let Some(memory) = memory.filter(|memory| needed > *memory) {
        against.push(format!("needs {} with {context} tokens, {} are available", mib(needed), mib(memory)));
    }
    if let (Some(least), Some(has)) = (entry.min_ram_bytes, need.memory_bytes.or(hardware.memory_bytes()))
        && has < least
    {
        against.push(format!("wants a machine with {}, this one has {}", mib(least), mib(has)));
    }
    let verdict =
        |score, reasons| Recommendation { model: entry.id.clone(), score, memory_bytes: needed, reasons };
    if !against.is_empty() {
        return Err(verdict(0.0, against));
    }
    let (score, reasons) = score(model, need, needed, memory, lists);
    Ok(verdict(score, reasons))
}

fn answers(model: &RegisteredModel) -> bool {
    !(model.can("embedding") && model.entry.capabilities.len() == 1)
}

fn score(
    model: &RegisteredModel,
    need: &Need,
    needed: u64,
    memory: Option<u64>,
    lists: &Lists,
) -> (f64, Vec<String>) {
    let entry = &model.entry;
    let mut reasons = Vec::new();
    let (quality_weight, speed_weight) = match need.prefer {
        Preference::Balanced => (0.5, 0.5),
        Preference::Quality => (0.85, 0.15),
        Preference::Speed => (0.15, 0.85),
    };
    let place = lists.named.as_ref().and_then(|(name, ids)| {
        let place = ids.iter().position(|id| *id == entry.id)?;
        reasons.push(format!("number {} of {} for {name}", place + 1, ids.len()));
        #[allow(clippy::cast_precision_loss, reason = "a place in a list")]
        Some(1.0 - place as f64 / ids.len() as f64)
    });
    let quality = f64::from(model.spec.quality);
    reasons.push(match entry.quality {
        Some(class) => format!("quality {}", format!("{class:?}").to_lowercase()),
        None => "quality not stated".to_owned(),
    });
    let measured = model.measured.as_ref().and_then(|figures| figures.tokens_per_second);
    let speed = match (measured, entry.speed) {
        (Some(rate), _) => {
            reasons.push(format!("{rate:.1} tokens/s measured here"));
            rate / (rate + READING_SPEED)
        }
        (None, Some(class)) => {
            reasons.push(format!("speed {}", format!("{class:?}").to_lowercase()));
            match class {
                Speed::Slow => 0.2,
                Speed::Medium => 0.5,
                Speed::Fast => 0.8,
            }
        }
        (None, None) => {
            reasons.push("speed not stated".to_owned());
            0.5
        }
    };
    reasons.push(match memory {
        Some(memory) => format!("takes {} of {} available", mib(needed), mib(memory)),
        None => format!("takes {}; available memory is not known", mib(needed)),
    });
    if !need.capabilities.is_empty() {
        reasons.push(format!("states {}", need.capabilities.join(", ")));
    }
    let own = quality_weight * quality + speed_weight * speed + f64::from(model.spec.priority) * 1e-4;
    // A person who ranked a list knows more than two classes do.
    (place.map_or(own, |place| 0.8 * place + 0.2 * own), reasons)
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let profile = format!("{:?}", self.profile).to_lowercase();
        match self.memory_bytes {
            Some(bytes) => writeln!(f, "{profile} machine, {} available", mib(bytes))?,
            None => writeln!(f, "{profile} machine, available memory unknown")?,
        }
        if self.fitting.is_empty() {
            writeln!(f, "no model fits")?;
        }
        for (place, it) in self.fitting.iter().enumerate() {
            writeln!(f, "{:>2}. {} ({:.2}): {}", place + 1, it.model, it.score, it.reasons.join("; "))?;
        }
        for it in &self.ruled_out {
            writeln!(f, " -  {}: {}", it.model, it.reasons.join("; "))?;
        }
        Ok(())
    }
}
