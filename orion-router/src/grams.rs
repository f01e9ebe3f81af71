//! Hashed n-grams: what a frozen encoder smooths over (names, code, rare words, other languages) as sparse features.

use serde::{Deserialize, Serialize};

use crate::text::{fold, start_of};

/// Which n-grams a head sees besides the embedding.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct GramOptions {
    /// Number of buckets; 0 for no n-grams.
    pub buckets: u32,
    /// Longest run of words.
    pub words: usize,
    /// Lengths of runs of letters inside words; `(0, 0)` for none.
    pub letters: (usize, usize),
    /// Length of the n-gram vector beside the embedding's, whose length is 1.
    pub weight: f32,
}

impl Default for GramOptions {
    fn default() -> Self {
        Self { buckets: 4096, words: 2, letters: (0, 0), weight: 0.4 }
    }
}

impl GramOptions {
    /// No n-grams at all.
    #[must_use]
    pub fn none() -> Self {
        Self { buckets: 0, ..Self::default() }
    }

    /// Words and letters: the better choice where the encoder does not know the language.
    #[must_use]
    pub fn with_letters() -> Self {
        Self { buckets: 8192, letters: (3, 5), weight: 0.8, ..Self::default() }
    }

    /// The features of a text: bucket and value, each bucket once, of length [`weight`](Self::weight).
    pub(crate) fn of(&self, text: &str) -> Vec<(u32, f32)> {
        if self.buckets == 0 {
            return Vec::new();
        }
        let folded = fold(start_of(text));
        let words: Vec<&str> =
            folded.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect();
        let mut found = Vec::new();
        let mut add = |hash: u64| {
            // The sign of a hash keeps colliding n-grams from adding up (Weinberger et al. 2009).
            let value = if hash >> 63 == 0 { 1.0 } else { -1.0 };
            found.push(((hash % u64::from(self.buckets)) as u32, value));
        };
        let mut run = String::new();
        for at in 0..words.len() {
            run.clear();
            for word in words[at..].iter().take(self.words) {
                run.push(' ');
                run.push_str(word);
                add(hash(run.as_bytes()));
            }
        }
        let (shortest, longest) = self.letters;
        if longest > 0 {
            for word in &words {
                let padded: Vec<char> = format!("<{word}>").chars().collect();
                for length in shortest.max(1)..=longest.min(padded.len()) {
                    for letters in padded.windows(length) {
                        run.clear();
                        run.extend(letters);
                        add(hash(run.as_bytes()));
                    }
                }
            }
        }
        found.sort_unstable_by_key(|&(bucket, _)| bucket);
        let mut merged: Vec<(u32, f32)> = Vec::with_capacity(found.len());
        for (bucket, value) in found {
            match merged.last_mut() {
                Some(last) if last.0 == bucket => last.1 += value,
                _ => merged.push((bucket, value)),
            }
        }
        let length = merged.iter().map(|(_, value)| value * value).sum::<f32>().sqrt();
        if length > 0.0 {
            merged.iter_mut().for_each(|(_, value)| *value *= self.weight / length);
        }
        merged
    }
}

/// FNV-1a with a final mix: stable across versions, since saved heads depend on it.
pub(crate) fn hash(bytes: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for &byte in bytes {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^ hash >> 33
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_never_changes() {
        // Saved heads depend on these values.
        assert_eq!(hash(b""), 0xecba_3df2_c338_3c52);
        assert_ne!(hash(b"a"), hash(b"b"));
    }

    #[test]
    fn grams_ignore_case_accents_and_punctuation() {
        let options = GramOptions::with_letters();
        assert_eq!(options.of("Écris, un POÈME !"), options.of("ecris un poeme"));
        assert_ne!(options.of("un poeme"), options.of("poeme un"));
        let length: f32 = options.of("a few words here").iter().map(|(_, value)| value * value).sum();
        assert!((length.sqrt() - options.weight).abs() < 1e-6);
        assert!(options.of("?!").is_empty() && options.of("").is_empty());
        assert!(GramOptions::none().of("words").is_empty());
        // Runs of no letters are none.
        let from =
            |shortest| GramOptions { letters: (shortest, 3), ..GramOptions::with_letters() }.of("words");
        assert_eq!(from(0), from(1));
    }
}
