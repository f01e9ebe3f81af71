//! The next model, when one is down.

use std::fmt;
use std::time::Duration;

use orion_core::{Error, ErrorKind, ModelId, Result};

use crate::service::{BoxService, Context, Service};

/// How far a chain goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FallbackLimits {
    /// At most this many models are tried, the first included.
    pub depth: usize,
    /// At most this long for all of them; the call's own deadline holds besides.
    pub time: Duration,
}

impl Default for FallbackLimits {
    /// Three models, two minutes.
    fn default() -> Self {
        Self { depth: 3, time: Duration::from_secs(120) }
    }
}

/// One model that was tried, and why that was not it.
#[derive(Debug, thiserror::Error)]
#[error("{model}: {error}")]
#[non_exhaustive]
pub struct Hop {
    /// The model.
    pub model: ModelId,
    /// What it answered.
    #[source]
    pub error: Error,
}

/// Every hop of a chain that came to nothing: the source of the error a [`Fallback`] ends with.
#[derive(Debug)]
#[non_exhaustive]
pub struct FallbackFailed {
    /// The models tried, in order.
    pub hops: Vec<Hop>,
    /// Why the chain ended where it did.
    pub reason: ChainEnd,
}

/// Why a chain went no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChainEnd {
    /// Every model was tried.
    #[error("no model is left")]
    Exhausted,
    /// The limit of models was reached.
    #[error("the limit of models is reached")]
    Depth,
    /// The time for the chain, or the call's deadline, was up.
    #[error("the time is up")]
    Time,
    /// Another model could not do better: the caller's own mistake, or cancellation.
    #[error("another model would not help")]
    Final,
    /// Output had reached the caller.
    #[error("output had already begun")]
    Started,
}

impl fmt::Display for FallbackFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} tried, {}", self.hops.len(), self.reason)?;
        self.hops.iter().try_for_each(|hop| write!(f, "; {hop}"))
    }
}

impl std::error::Error for FallbackFailed {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.hops.last().map(|hop| &hop.error as _)
    }
}

/// A chain of models as it is walked: for those who run the calls themselves.
///
/// ```
/// use std::sync::Arc;
/// use orion_core::{Error, ErrorKind, ManualClock};
/// use orion_resilience::{Context, Deadline, FallbackLimits, FallbackWalk};
///
/// let context = Context::new(Deadline::never(Arc::new(ManualClock::new())));
/// let mut walk = FallbackWalk::new(["big".into(), "small".into()], FallbackLimits::default(), &context)?;
/// assert_eq!(walk.model().as_str(), "big");
/// let down = || Error::new(ErrorKind::Internal, "worker lost");
/// assert!(walk.failed(down()).is_ok());
/// assert_eq!(walk.model().as_str(), "small");
/// let error = walk.failed(down()).unwrap_err();
/// assert_eq!(error.to_string(), "2 tried, no model is left; big: worker lost; small: worker lost");
/// # Ok::<(), Error>(())
/// ```
#[derive(Debug)]
pub struct FallbackWalk {
    models: Vec<ModelId>,
    at: usize,
    depth: usize,
    context: Context,
    hops: Vec<Hop>,
}

impl FallbackWalk {
    /// A walk that begins at the first of `models` now.
    ///
    /// # Errors
    /// [`InvalidInput`](ErrorKind::InvalidInput) if there is no model, or one stands there twice.
    pub fn new(
        models: impl IntoIterator<Item = ModelId>,
        limits: FallbackLimits,
        context: &Context,
    ) -> Result<Self> {
        let models: Vec<ModelId> = models.into_iter().collect();
        check_chain(&models)?;
        let context = context.within(limits.time);
        Ok(Self { models, at: 0, depth: limits.depth.max(1), context, hops: Vec::new() })
    }

    /// The model to try now.
    #[must_use]
    pub fn model(&self) -> &ModelId {
        &self.models[self.at]
    }

    /// The context of its call: the chain's time bounds it.
    #[must_use]
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// The model failed: goes on to the next.
    ///
    /// # Errors
    /// One error that lists every hop, with [`FallbackFailed`] as its source, if there is none. Its kind is that of the
    /// last hop; a last hop that said when to come back says so through it, too.
    pub fn failed(&mut self, error: Error) -> Result<()> {
        let kind = error.kind();
        self.hops.push(Hop { model: self.model().clone(), error });
        let end = if self.context.has_started() {
            ChainEnd::Started
        } else if matches!(kind, ErrorKind::InvalidInput | ErrorKind::Cancelled)
            || self.context.cancel().is_cancelled()
        {
            ChainEnd::Final
        } else if self.context.deadline().is_over() {
            ChainEnd::Time
        } else if self.at + 1 == self.models.len() {
            ChainEnd::Exhausted
        } else if self.at + 1 == self.depth {
            ChainEnd::Depth
        } else {
            self.at += 1;
            return Ok(());
        };
        Err(self.end(end, kind))
    }

    fn end(&mut self, reason: ChainEnd, kind: ErrorKind) -> Error {
        let hops = std::mem::take(&mut self.hops);
        let kind = match reason {
            ChainEnd::Time => ErrorKind::DeadlineExceeded,
            _ => kind,
        };
        let failed = FallbackFailed { hops, reason };
        Error::new(kind, failed.to_string()).with_source(failed)
    }
}

/// A model that stands in a chain twice would be a cycle.
fn check_chain(models: &[ModelId]) -> Result<()> {
    if models.is_empty() {
        return Err(Error::invalid("a fallback chain needs at least one model"));
    }
    for (at, model) in models.iter().enumerate() {
        if models[..at].contains(model) {
            return Err(Error::invalid("the model stands in the fallback chain twice").about(model.as_str()));
        }
    }
    Ok(())
}

/// Layer: tries one service after the other.
pub struct Fallback<Q: ?Sized, A> {
    hops: Vec<(ModelId, BoxService<Q, A>)>,
    limits: FallbackLimits,
}

impl<Q: ?Sized, A> Fallback<Q, A> {
    /// A chain, the first service first.
    ///
    /// # Errors
    /// [`InvalidInput`](ErrorKind::InvalidInput) if there is no service, or one name stands there twice.
    pub fn new(hops: Vec<(ModelId, BoxService<Q, A>)>, limits: FallbackLimits) -> Result<Self> {
        let models: Vec<ModelId> = hops.iter().map(|(model, _)| model.clone()).collect();
        check_chain(&models)?;
        Ok(Self { hops, limits })
    }
}

impl<Q: ?Sized, A> Service<Q, A> for Fallback<Q, A> {
    fn call(&self, request: &Q, context: &Context) -> Result<A> {
        let models = self.hops.iter().map(|(model, _)| model.clone());
        let mut walk = FallbackWalk::new(models, self.limits, context)?;
        loop {
            let (model, service) = &self.hops[walk.at];
            match service.call(request, walk.context()) {
                Ok(answer) => return Ok(answer),
                Err(error) => {
                    tracing::debug!(%model, %error, "falling back");
                    walk.failed(error)?;
                }
            }
        }
    }
}

impl<Q: ?Sized, A> fmt::Debug for Fallback<Q, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let models: Vec<_> = self.hops.iter().map(|(model, _)| model).collect();
        f.debug_struct("Fallback").field("models", &models).field("limits", &self.limits).finish()
    }
}
