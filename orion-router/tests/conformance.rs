//! The conformance suites of `Router` and `Embedder` on every router of this crate.

#![allow(clippy::unwrap_used, reason = "in a test a panic is a failure")]

use std::collections::BTreeMap;
use std::sync::Arc;

use orion_core::{Embedder, ManualClock, ModelSpec, Result, Router, testing};
use orion_router::{
    CachedEmbedder, Cascade, ContextOptions, ContextRouter, DifficultyHead, DifficultyOptions,
    DifficultyRecord, DifficultyRouter, EmbeddingOptions, EmbeddingRouter, Ensemble, FeedbackOptions,
    FeedbackRouter, Head, HeadOptions, KeywordRouter, Policy, PolicyRouter, Shadow, agent_examples,
};

/// Bytes counted by their value, and one for the constant: similar texts have similar counts.
struct Letters;

impl Embedder for Letters {
    fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>> {
        let embed = |text: &&str| {
            let mut counts = vec![0.0_f32; 64];
            counts[0] = 1.0;
            text.bytes().for_each(|byte| counts[1 + usize::from(byte) % 63] += 1.0);
            let length = counts.iter().map(|count| count * count).sum::<f32>().sqrt();
            counts.iter().map(|count| count / length).collect()
        };
        Ok(texts.iter().map(embed).collect())
    }
    fn dimension(&self) -> usize {
        64
    }
    fn fingerprint(&self) -> String {
        "letters".into()
    }
}

fn models() -> Vec<ModelSpec> {
    let model = |id: &str, keywords: &[&str], examples: &[&str]| {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        let mut spec = ModelSpec::new(id.into(), Vec::new());
        (spec.keywords, spec.examples) = (owned(keywords), owned(examples));
        spec
    };
    vec![
        model("coder", &["rust", "function"], &["Write a function in Rust", "Fix this bug"]),
        model("creative", &["poem", "haiku", "poème"], &["Write a poem", "Tell me a story"]),
        model("general", &[], &["What is the capital of France?", "Hello"]),
    ]
}

fn letters() -> Arc<dyn Embedder> {
    Arc::new(Letters)
}

fn keywords() -> Arc<dyn Router> {
    Arc::new(KeywordRouter::from_specs(&models()).unwrap())
}

fn by_meaning() -> EmbeddingRouter {
    EmbeddingRouter::from_specs(letters(), &models(), EmbeddingOptions::default()).unwrap()
}

#[test]
fn embedders() {
    testing::embedder(&Letters);
    testing::embedder(&CachedEmbedder::new(Letters, 16));
}

#[test]
fn by_keywords_and_by_meaning() {
    testing::router(&*keywords(), &models());
    testing::router(&by_meaning(), &models());
}

#[test]
fn by_heads() {
    let examples = agent_examples();
    let head = Head::train(&Letters, &examples, &examples, &HeadOptions::default()).unwrap();
    let agents = ["code", "conversation", "creative", "reasoning", "unheard of"];
    let agents = agents.map(|id| ModelSpec::new(id.into(), Vec::new()));
    let options = EmbeddingOptions::default();
    let router = EmbeddingRouter::with_head(letters(), head, &BTreeMap::new(), options).unwrap();
    testing::router(&router, &agents);

    let record = |n: usize| {
        let easy = n.is_multiple_of(2);
        let prompt = format!("{} {n}", if easy { "add" } else { "prove zzz" });
        DifficultyRecord { prompt, weak_right: easy, strong_right: !n.is_multiple_of(5) }
    };
    let records: Vec<_> = (0..200).map(record).collect();
    let head = DifficultyHead::train(&Letters, &records, &DifficultyOptions::default()).unwrap();
    let pair = ("general".into(), "coder".into());
    testing::router(&DifficultyRouter::new(letters(), head, pair, 0.6).unwrap(), &models());
}

#[test]
fn around_other_routers() {
    let meaning = || Arc::new(by_meaning()) as Arc<dyn Router>;
    testing::router(&Cascade::new().then(keywords(), 0.5).then(meaning(), 0.0), &models());
    testing::router(&Ensemble::new(0.2).with(keywords(), 1.0).with(meaning(), 2.0), &models());
    testing::router(&Shadow::new(keywords(), meaning(), 8), &models());
    testing::router(&PolicyRouter::new(by_meaning(), Policy::default()), &models());
    testing::router(&ContextRouter::new(by_meaning(), ContextOptions::default()), &models());
    let clock = Arc::new(ManualClock::new());
    let feedback = FeedbackRouter::new(by_meaning(), letters(), clock, FeedbackOptions::default());
    testing::router(&feedback, &models());
}
