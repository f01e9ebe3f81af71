//! So many calls of a model at once, and no more.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use orion_core::{Error, ErrorKind, ModelId, Result};

use crate::service::{Context, Service};
use crate::sync::{Mutex, lock};

/// Keeps one model from taking all there is: each has so many permits.
///
/// A call without a permit is refused at once. The place to wait is the [`RequestQueue`](crate::RequestQueue), which
/// knows order, deadlines and cancellation.
pub struct Bulkhead {
    default: usize,
    limits: HashMap<ModelId, usize>,
    used: Mutex<HashMap<ModelId, usize>>,
}

impl Bulkhead {
    /// `limit` calls at once per model.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { default: limit, limits: HashMap::new(), used: Mutex::new(HashMap::new()) }
    }

    /// Another limit for one model.
    #[must_use]
    pub fn with_limit(mut self, model: impl Into<ModelId>, limit: usize) -> Self {
        self.limits.insert(model.into(), limit);
        self
    }

    /// A permit to call `model`; dropping it gives it back.
    ///
    /// # Errors
    /// [`Rejected`](ErrorKind::Rejected) if all are taken.
    pub fn acquire(this: &Arc<Self>, model: &ModelId) -> Result<BulkheadPermit> {
        let limit = this.limits.get(model).copied().unwrap_or(this.default);
        let mut used = lock(&this.used);
        let taken = used.entry(model.clone()).or_insert(0);
        if *taken >= limit {
            let message = format!("all {limit} places are taken, try again later");
            return Err(Error::new(ErrorKind::Rejected, message).about(format!("model {model}")));
        }
        *taken += 1;
        Ok(BulkheadPermit { bulkhead: Arc::clone(this), model: model.clone() })
    }

    /// Calls of `model` that run now.
    #[must_use]
    pub fn used(&self, model: &ModelId) -> usize {
        lock(&self.used).get(model).copied().unwrap_or(0)
    }
}

impl fmt::Debug for Bulkhead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bulkhead").field("default", &self.default).field("limits", &self.limits).finish()
    }
}

/// A place in a [`Bulkhead`].
#[must_use = "a permit that is dropped at once permits nothing"]
pub struct BulkheadPermit {
    bulkhead: Arc<Bulkhead>,
    model: ModelId,
}

impl Drop for BulkheadPermit {
    fn drop(&mut self) {
        let mut used = lock(&self.bulkhead.used);
        if let Some(taken) = used.get_mut(&self.model) {
            *taken -= 1;
            // A model that is not called takes no memory.
            if *taken == 0 {
                used.remove(&self.model);
            }
        }
    }
}

impl fmt::Debug for BulkheadPermit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BulkheadPermit").field("model", &self.model).finish_non_exhaustive()
    }
}

/// Layer: a call needs a place in the [`Bulkhead`].
#[derive(Debug)]
pub struct Limited<S> {
    inner: S,
    bulkhead: Arc<Bulkhead>,
    model: ModelId,
}

impl<S> Limited<S> {
    /// Limits `inner`, which calls `model`.
    pub fn new(inner: S, bulkhead: Arc<Bulkhead>, model: impl Into<ModelId>) -> Self {
        Self { inner, bulkhead, model: model.into() }
    }
}

impl<Q: ?Sized, A, S: Service<Q, A>> Service<Q, A> for Limited<S> {
    fn call(&self, request: &Q, context: &Context) -> Result<A> {
        let _permit = Bulkhead::acquire(&self.bulkhead, &self.model)?;
        self.inner.call(request, context)
    }
}
