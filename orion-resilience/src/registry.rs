//! One breaker per model, or per operation of a model.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use orion_core::{Clock, Gate, Health, ModelId, Operation, Permit, Refused, Result};
use serde::Serialize;

use crate::breaker::{
    BreakerEvent, BreakerSettings, BreakerSnapshot, BreakerState, BreakerStatistics, CircuitBreaker,
};

/// What has a breaker of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Scope {
    /// A model: failing to load it and failing to generate with it count together.
    Model,
    /// Each operation of a model: a model that loads but does not generate can still be loaded.
    #[default]
    Operation,
}

type Key = (ModelId, Option<Operation>);
type Hook = Arc<dyn Fn(&BreakerEvent) + Send + Sync>;

/// Breakers by name, made when they are first asked for. The [`Gate`] of the engine.
///
/// ```
/// use std::sync::Arc;
/// use std::time::Duration;
/// use orion_core::{Gate, Health, ManualClock, Operation, Outcome};
/// use orion_resilience::{BreakerRegistry, BreakerSettings};
///
/// let registry = BreakerRegistry::new(BreakerSettings::new(), Arc::new(ManualClock::new()))?
///     .with_settings("flaky", BreakerSettings::new().consecutive_failures(1))?;
/// let permit = registry.acquire(&"flaky".into(), Operation::Generate).unwrap();
/// permit.settle(Outcome::Failure, Duration::from_millis(3));
/// assert!(registry.acquire(&"flaky".into(), Operation::Generate).is_err());
/// assert!(registry.acquire(&"flaky".into(), Operation::Load).is_ok());
/// assert_eq!(registry.health(&"flaky".into()), Health::Down);
/// # Ok::<(), orion_core::Error>(())
/// ```
pub struct BreakerRegistry {
    clock: Arc<dyn Clock>,
    scope: Scope,
    default: BreakerSettings,
    named: HashMap<ModelId, BreakerSettings>,
    hooks: Vec<Hook>,
    breakers: RwLock<HashMap<Key, Arc<CircuitBreaker>>>,
}

impl BreakerRegistry {
    /// A registry whose breakers have these settings unless a name has its own.
    ///
    /// # Errors
    /// [`InvalidInput`](orion_core::ErrorKind::InvalidInput) naming the setting that is out of range.
    pub fn new(default: BreakerSettings, clock: Arc<dyn Clock>) -> Result<Self> {
        default.validate()?;
        Ok(Self {
            clock,
            scope: Scope::default(),
            default,
            named: HashMap::new(),
            hooks: Vec::new(),
            breakers: RwLock::default(),
        })
    }

    /// What has a breaker of its own.
    #[must_use]
    pub fn with_scope(mut self, scope: Scope) -> Self {
        self.scope = scope;
        self
    }

    /// Settings of one model.
    ///
    /// # Errors
    /// [`InvalidInput`](orion_core::ErrorKind::InvalidInput) naming the setting that is out of range.
    pub fn with_settings(mut self, model: impl Into<ModelId>, settings: BreakerSettings) -> Result<Self> {
        let model = model.into();
        settings.validate().map_err(|error| error.about(format!("breaker {model}")))?;
        self.named.insert(model, settings);
        Ok(self)
    }

    /// Calls `hook` with the events of every breaker; see [`CircuitBreaker::on_event`].
    #[must_use]
    pub fn with_hook(mut self, hook: impl Fn(&BreakerEvent) + Send + Sync + 'static) -> Self {
        self.hooks.push(Arc::new(hook));
        self
    }

    /// The breaker of a model's operation; made if it is not there.
    pub fn breaker(&self, model: &ModelId, operation: Operation) -> Arc<CircuitBreaker> {
        let key = (model.clone(), (self.scope == Scope::Operation).then_some(operation));
        if let Some(breaker) = self.read().get(&key) {
            return Arc::clone(breaker);
        }
        let mut breakers = self.breakers.write().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(breakers.entry(key).or_insert_with_key(|(model, operation)| {
            let settings = self.named.get(model).unwrap_or(&self.default).clone();
            let name = operation.map_or_else(|| model.to_string(), |of| format!("{model}/{}", name(of)));
            let breaker = CircuitBreaker::new(name, settings, Arc::clone(&self.clock))
                .expect("settings are validated when the registry takes them");
            for hook in &self.hooks {
                let hook = Arc::clone(hook);
                breaker.on_event(move |event| hook(event));
            }
            Arc::new(breaker)
        }))
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, HashMap<Key, Arc<CircuitBreaker>>> {
        self.breakers.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn of(&self, model: &ModelId) -> Vec<Arc<CircuitBreaker>> {
        self.read()
            .iter()
            .filter(|((id, _), _)| id == model)
            .map(|(_, breaker)| Arc::clone(breaker))
            .collect()
    }

    /// The health of a model: the worst of its breakers, healthy if it has none.
    #[must_use]
    pub fn health(&self, model: &ModelId) -> Health {
        self.of(model).iter().map(|breaker| health(breaker)).fold(Health::Healthy, worse)
    }

    /// The health of everything that was ever called.
    #[must_use]
    pub fn summary(&self) -> HealthSummary {
        let breakers: Vec<(ModelId, Arc<CircuitBreaker>)> =
            self.read().iter().map(|((model, _), breaker)| (model.clone(), Arc::clone(breaker))).collect();
        let mut models = BTreeMap::new();
        for (model, breaker) in breakers {
            let seen = models.entry(model).or_insert(Health::Healthy);
            *seen = worse(*seen, health(&breaker));
        }
        let mut summary = HealthSummary::default();
        for (model, health) in models {
            match health {
                Health::Healthy => summary.healthy.push(model),
                Health::Down => summary.down.push(model),
                _ => summary.degraded.push(model),
            }
        }
        summary
    }

    /// Every breaker as it can be stored, by name.
    #[must_use]
    pub fn snapshots(&self) -> Vec<BreakerSnapshot> {
        let breakers: Vec<_> = self.read().values().map(Arc::clone).collect();
        let mut snapshots: Vec<_> = breakers.iter().map(|breaker| breaker.snapshot()).collect();
        snapshots.sort_by(|a, b| a.name.cmp(&b.name));
        snapshots
    }

    /// Resets the breakers of one model. Answers how many there were.
    pub fn reset(&self, model: &ModelId) -> usize {
        let breakers = self.of(model);
        breakers.iter().for_each(|breaker| breaker.reset());
        breakers.len()
    }

    /// Resets every breaker. Answers how many there were.
    pub fn reset_all(&self) -> usize {
        let breakers: Vec<_> = self.read().values().map(Arc::clone).collect();
        breakers.iter().for_each(|breaker| breaker.reset());
        breakers.len()
    }
}

impl Gate for BreakerRegistry {
    fn acquire(&self, model: &ModelId, operation: Operation) -> Result<Box<dyn Permit>, Refused> {
        let breaker = self.breaker(model, operation);
        Ok(Box::new(CircuitBreaker::acquire_owned(&breaker)?))
    }
}

impl fmt::Debug for BreakerRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.read().values().map(|breaker| breaker.name().to_owned()).collect();
        f.debug_struct("BreakerRegistry").field("breakers", &names).finish_non_exhaustive()
    }
}

/// Models by health, each list in order of name.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
pub struct HealthSummary {
    /// Calls are permitted, and the last one did not fail.
    pub healthy: Vec<ModelId>,
    /// Calls are permitted but the last one failed, or only probes are permitted.
    pub degraded: Vec<ModelId>,
    /// Calls are refused.
    pub down: Vec<ModelId>,
}

fn name(operation: Operation) -> &'static str {
    match operation {
        Operation::Load => "load",
        Operation::Generate => "generate",
        _ => "other",
    }
}

/// Down while calls are refused; degraded while only probes are permitted, or while the last call failed.
fn health(breaker: &CircuitBreaker) -> Health {
    let failing = |statistics: BreakerStatistics| statistics.consecutive_failures > 0;
    match breaker.state() {
        BreakerState::Open | BreakerState::ForcedOpen => Health::Down,
        BreakerState::HalfOpen => Health::Degraded,
        BreakerState::Closed | BreakerState::MetricsOnly if failing(breaker.statistics()) => Health::Degraded,
        BreakerState::Closed | BreakerState::MetricsOnly | BreakerState::Disabled => Health::Healthy,
    }
}

fn worse(a: Health, b: Health) -> Health {
    match (a, b) {
        (Health::Down, _) | (_, Health::Down) => Health::Down,
        (Health::Degraded, _) | (_, Health::Degraded) => Health::Degraded,
        _ => Health::Healthy,
    }
}
