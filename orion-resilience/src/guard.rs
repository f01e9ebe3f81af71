//! Layer: a call passes the breaker of its model.

use std::sync::Arc;

use orion_core::{Clock, Error, Gate, ModelId, Operation, Outcome, Result};

use crate::breaker::classify;
use crate::service::{Context, Service};

/// Lets a call pass only with a permit of the [`Gate`], and reports how it went. A panic is a failure and goes on.
pub struct Guard<S> {
    inner: S,
    gate: Arc<dyn Gate>,
    clock: Arc<dyn Clock>,
    model: ModelId,
    operation: Operation,
    classify: fn(&Error) -> Outcome,
}

impl<S> Guard<S> {
    /// Guards `inner`, which calls `model` for `operation`.
    pub fn new(
        inner: S,
        gate: Arc<dyn Gate>,
        clock: Arc<dyn Clock>,
        model: impl Into<ModelId>,
        operation: Operation,
    ) -> Self {
        Self { inner, gate, clock, model: model.into(), operation, classify }
    }

    /// Replaces [`classify`]: what an error says about the model.
    #[must_use]
    pub fn classify_with(mut self, classify: fn(&Error) -> Outcome) -> Self {
        self.classify = classify;
        self
    }
}

impl<Q: ?Sized, A, S: Service<Q, A>> Service<Q, A> for Guard<S> {
    fn call(&self, request: &Q, context: &Context) -> Result<A> {
        let permit = self
            .gate
            .acquire(&self.model, self.operation)
            .map_err(|refused| Error::from(refused).about(format!("model {}", self.model)))?;
        let start = self.clock.now();
        let result = self.inner.call(request, context);
        let outcome = result.as_ref().map_or_else(self.classify, |_| Outcome::Success);
        permit.settle(outcome, self.clock.now().since(start));
        result
    }
}

impl<S> std::fmt::Debug for Guard<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guard")
            .field("model", &self.model)
            .field("operation", &self.operation)
            .finish_non_exhaustive()
    }
}
