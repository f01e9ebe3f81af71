//! A look at what goes into the matrix products of a decoder.

use std::fmt;

/// Sees the input of every product with a stored matrix, to measure which of its columns matter. Called by the thread that
/// computes, in the order of the forward pass.
pub trait InputObserver: Send + Sync + fmt::Debug {
    /// A product with the matrix stored as `tensor`. `inputs: [rows, columns]`, a row per token, `columns` those of the
    /// matrix. A matrix that several products share is reported once for them all.
    fn inputs(&self, tensor: &str, columns: usize, inputs: &[f32]);
}

// Object-safe.
const _: Option<&dyn InputObserver> = None;
