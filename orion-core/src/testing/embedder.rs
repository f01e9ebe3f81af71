//! What every embedder must do.

use super::at_once;
use crate::Embedder;

/// How far components may differ between one text alone and the same text among others: batches change the order of sums.
const BATCH_TOLERANCE: f32 = 1e-4;

/// Checks an embedder.
///
/// One vector per text, in order, each of the dimension and of length 1; a text has the same vector whatever stands beside
/// it; no text, an empty text and a very long one are all answered; the fingerprint stays.
///
/// # Panics
/// With the law that was broken.
pub fn embedder(embedder: &dyn Embedder) {
    let dimension = embedder.dimension();
    assert!(dimension > 0, "the dimension is 0");
    let fingerprint = embedder.fingerprint();
    assert!(!fingerprint.is_empty(), "the fingerprint is empty");
    let embed = |texts: &[&str]| {
        let vectors = embedder.embed(texts).unwrap_or_else(|error| panic!("{texts:.60?}: {error}"));
        assert_eq!(vectors.len(), texts.len(), "one vector per text");
        for vector in &vectors {
            assert_eq!(vector.len(), dimension, "a vector has another length than dimension() says");
            let length: f32 = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
            assert!((length - 1.0).abs() < 1e-3, "a vector has length {length}, expected 1");
        }
        vectors
    };
    assert!(embed(&[]).is_empty());
    let long = "many words ".repeat(2000);
    let texts = ["", "a cat sits on the mat", "le chat dort", "日本語 🦀 \u{0}", long.as_str()];
    let together = embed(&texts);
    for (text, among) in texts.iter().zip(&together) {
        let alone = embed(&[text]).swap_remove(0);
        let apart = alone.iter().zip(among).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(apart <= BATCH_TOLERANCE, "{text:.30?} is {apart} away from itself among other texts");
    }
    let near = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    assert!(
        near(&together[1], &together[1]) > near(&together[1], &together[2]),
        "another text is as near as the text itself"
    );
    at_once(|| {
        embed(&texts[..3]);
        assert_eq!(embedder.fingerprint(), fingerprint, "the fingerprint changed");
    });
}
