//! Conformance suites: what every implementation of a seam must do, beyond what its signatures say.
//!
//! One function per seam. It takes an implementation, tries it, and panics with the law that was broken; call it from a
//! test of your own crate. Feature `testing`, meant for `[dev-dependencies]`.
//!
//! ```
//! use std::sync::Arc;
//! use orion_core::{Catalog, ModelId, ModelSpec, testing};
//!
//! struct Two([Arc<ModelSpec>; 2]);
//!
//! impl Catalog for Two {
//!     fn get(&self, id: &ModelId) -> Option<Arc<ModelSpec>> {
//!         self.0.iter().find(|spec| spec.id == *id).cloned()
//!     }
//!     fn all(&self) -> Vec<Arc<ModelSpec>> {
//!         self.0.to_vec()
//!     }
//! }
//!
//! let model = |id: &str| Arc::new(ModelSpec::new(id.into(), Vec::new()));
//! testing::catalog(&Two([model("small"), model("large")]));
//! ```
//!
//! | seam | suite | what it needs |
//! |---|---|---|
//! | [`Catalog`](crate::Catalog) | [`catalog`] | one with at least one model |
//! | [`Router`](crate::Router) | [`router`] | the models it may choose from |
//! | [`Embedder`](crate::Embedder) | [`embedder`] | nothing |
//! | [`WeightSource`](crate::WeightSource) | [`weight_source`] | small ones: every byte is read several times |
//! | [`Runtime`](crate::Runtime), [`Model`](crate::Model) | [`runtime`], [`model`] | weights it can load, a prompt that is answered with some tokens |
//! | [`Gate`](crate::Gate) | [`gate`], [`breaking_gate`] | a fresh one; how many failures close it, and how to let time pass |
//! | [`Observer`](crate::Observer) | [`observer`] | nothing |
//! | whoever drives requests | [`Protocol`] | to be told, as an observer |

mod catalog;
mod embedder;
mod gate;
mod observer;
mod router;
mod runtime;
mod weight_source;

pub use catalog::catalog;
pub use embedder::embedder;
pub use gate::{breaking_gate, gate};
pub use observer::{Protocol, observer};
pub use router::router;
pub use runtime::{model, runtime};
pub use weight_source::weight_source;

/// Runs `work` on several threads at once; a panic of theirs is the caller's.
fn at_once(work: impl Fn() + Sync) {
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(&work);
        }
    });
}
