//! Embeddings that were computed before.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use orion_core::{Embedder, Result};

/// Texts longer than this are not kept: they would not come again, and the cache is bounded by entries.
const MAX_KEY_BYTES: usize = 4096;

#[derive(Debug, Default)]
struct Entries {
    vectors: HashMap<Arc<str>, (Vec<f32>, u64)>,
    order: BTreeMap<u64, Arc<str>>,
    clock: u64,
    hits: u64,
    misses: u64,
}

impl Entries {
    fn get(&mut self, text: &str) -> Option<Vec<f32>> {
        let Some((vector, used)) = self.vectors.get_mut(text) else {
            self.misses += 1;
            return None;
        };
        self.hits += 1;
        self.clock += 1;
        if let Some(key) = self.order.remove(used) {
            self.order.insert(self.clock, key);
        }
        *used = self.clock;
        Some(vector.clone())
    }

    fn put(&mut self, text: &str, vector: &[f32], capacity: usize) {
        if text.len() > MAX_KEY_BYTES || capacity == 0 || self.vectors.contains_key(text) {
            return;
        }
        self.clock += 1;
        let key: Arc<str> = text.into();
        self.vectors.insert(key.clone(), (vector.to_vec(), self.clock));
        self.order.insert(self.clock, key);
        while self.vectors.len() > capacity {
            if let Some((_, oldest)) = self.order.pop_first() {
                self.vectors.remove(&oldest);
            }
        }
    }
}

/// An embedder that remembers the vectors of the latest texts.
pub struct CachedEmbedder<E> {
    inner: E,
    capacity: usize,
    entries: Mutex<Entries>,
}

impl<E: Embedder> std::fmt::Debug for CachedEmbedder<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CachedEmbedder")
            .field("capacity", &self.capacity)
            .field("hits", &self.hits())
            .finish_non_exhaustive()
    }
}

impl<E: Embedder> CachedEmbedder<E> {
    /// Keeps the vectors of the `capacity` texts used last.
    pub fn new(inner: E, capacity: usize) -> Self {
        Self { inner, capacity, entries: Mutex::default() }
    }

    /// How many texts were found, and how many were not.
    #[must_use]
    pub fn hits(&self) -> (u64, u64) {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        (entries.hits, entries.misses)
    }
}

impl<E: Embedder> Embedder for CachedEmbedder<E> {
    fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>> {
        let mut found: Vec<Option<Vec<f32>>> = {
            let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
            texts.iter().map(|text| entries.get(text)).collect()
        };
        let missing: Vec<usize> = (0..texts.len()).filter(|&at| found[at].is_none()).collect();
        if !missing.is_empty() {
            // The lock is free while the encoder runs: two threads may compute the same text, none waits.
            let wanted: Vec<&str> = missing.iter().map(|&at| texts[at]).collect();
            let vectors = self.inner.embed(&wanted)?;
            let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
            for (at, vector) in missing.into_iter().zip(vectors) {
                entries.put(texts[at], &vector, self.capacity);
                found[at] = Some(vector);
            }
        }
        Ok(found.into_iter().flatten().collect())
    }

    fn dimension(&self) -> usize {
        self.inner.dimension()
    }

    fn fingerprint(&self) -> String {
        self.inner.fingerprint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[derive(Default)]
    struct Counting(AtomicUsize);

    impl Embedder for Counting {
        fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>> {
            self.0.fetch_add(texts.len(), Ordering::SeqCst);
            Ok(texts.iter().map(|text| vec![text.len() as f32]).collect())
        }
        fn dimension(&self) -> usize {
            1
        }
        fn fingerprint(&self) -> String {
            "counting".to_owned()
        }
    }

    #[test]
    fn the_texts_used_last_are_remembered() {
        let cache = CachedEmbedder::new(Counting::default(), 2);
        let embed = |texts: &[&str]| cache.embed(texts).unwrap();
        assert_eq!(embed(&["a", "bb"]), [[1.0], [2.0]]);
        assert_eq!(embed(&["ccc", "a"]), [[3.0], [1.0]]); // "bb" is now the oldest and goes
        assert_eq!(cache.inner.0.load(Ordering::SeqCst), 3);
        embed(&["a", "ccc"]);
        assert_eq!(cache.inner.0.load(Ordering::SeqCst), 3);
        embed(&["bb"]);
        assert_eq!(cache.inner.0.load(Ordering::SeqCst), 4);
        assert_eq!(cache.hits(), (3, 4));
        let long = "x".repeat(MAX_KEY_BYTES + 1);
        embed(&[&long]);
        embed(&[&long]);
        assert_eq!(cache.inner.0.load(Ordering::SeqCst), 6);
    }
}
