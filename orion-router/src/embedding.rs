//! Routing by meaning: nearest examples out of the box, a trained head where there is one.

use std::collections::BTreeMap;
use std::sync::Arc;

use orion_core::{Candidate, Decision, Embedder, Error, ModelId, ModelSpec, Query, Ranked, Result, Router};

use crate::grams::GramOptions;
use crate::guard;
use crate::head::{Head, featurise};
use crate::linear::Features;
use crate::nonsense::nonsense;

const NAME: &str = "embedding";

/// Options of an [`EmbeddingRouter`].
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct EmbeddingOptions {
    /// Abstains below this confidence, besides the head's own threshold. Default 0.
    pub least_confidence: f32,
    /// Without a head: abstains if no example is at least this similar (cosine). Default 0.2, below which
    /// all-MiniLM-L6-v2 sees no relation.
    pub least_similarity: f32,
    /// Without a head: how many nearest examples vote. Default 7.
    pub neighbours: usize,
}

impl Default for EmbeddingOptions {
    fn default() -> Self {
        Self { least_confidence: 0.0, least_similarity: 0.2, neighbours: 7 }
    }
}

/// Similarities are divided by this before the softmax over models: a lead of 0.1 in cosine is worth 3 : 1.
const SIMILARITY_SCALE: f32 = 0.09;

/// Made-up texts that stand beside the examples.
const NONSENSE: usize = 96;

struct ExampleVector {
    text: String,
    model: ModelId,
    vector: Vec<f32>,
}

/// Routes by the prompt's embedding.
pub struct EmbeddingRouter {
    embedder: Arc<dyn Embedder>,
    head: Option<(Head, Vec<ModelId>)>,
    examples: Vec<ExampleVector>,
    /// Vectors of made-up texts: what lies nearer to one of them than to every example means nothing.
    nonsense: Vec<Vec<f32>>,
    centroids: BTreeMap<ModelId, Vec<f32>>,
    options: EmbeddingOptions,
}

impl std::fmt::Debug for EmbeddingRouter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EmbeddingRouter")
            .field("encoder", &self.embedder.fingerprint())
            .field("head", &self.head.is_some())
            .field("examples", &self.examples.len())
            .finish_non_exhaustive()
    }
}

impl EmbeddingRouter {
    /// A router from the examples of a registry's models: centroid and nearest neighbours vote, nothing is
    /// trained. Costs one embedding per example.
    ///
    /// # Errors
    /// [`InvalidInput`](orion_core::ErrorKind::InvalidInput) if no model has an example; what the embedder answers.
    pub fn from_specs<'a>(
        embedder: Arc<dyn Embedder>,
        specs: impl IntoIterator<Item = &'a ModelSpec>,
        options: EmbeddingOptions,
    ) -> Result<Self> {
        let examples = specs
            .into_iter()
            .flat_map(|spec| spec.examples.iter().map(|example| (example.clone(), spec.id.clone())))
            .collect();
        Self::from_examples(embedder, examples, options)
    }

    /// The same from pairs of prompt and model.
    ///
    /// # Errors
    /// As [`from_specs`](Self::from_specs).
    pub fn from_examples(
        embedder: Arc<dyn Embedder>,
        examples: Vec<(String, ModelId)>,
        options: EmbeddingOptions,
    ) -> Result<Self> {
        if examples.is_empty() {
            return Err(Error::invalid("no model has example prompts to route by"));
        }
        let texts: Vec<&str> = examples.iter().map(|example| example.0.as_str()).collect();
        let vectors = featurise(&*embedder, &GramOptions::none(), &texts)?;
        let mut centroids: BTreeMap<ModelId, Vec<f32>> = BTreeMap::new();
        let mut kept = Vec::with_capacity(vectors.len());
        for ((text, model), features) in examples.into_iter().zip(vectors) {
            let sum = centroids.entry(model.clone()).or_insert_with(|| vec![0.0; features.dense.len()]);
            sum.iter_mut().zip(&features.dense).for_each(|(a, b)| *a += b);
            kept.push(ExampleVector { text, model, vector: features.dense });
        }
        for centroid in centroids.values_mut() {
            let length = dot(centroid, centroid).sqrt().max(f32::MIN_POSITIVE);
            centroid.iter_mut().for_each(|value| *value /= length);
        }
        let made_up = nonsense(NONSENSE, 1);
        let made_up: Vec<&str> = made_up.iter().map(String::as_str).collect();
        let made_up = featurise(&*embedder, &GramOptions::none(), &made_up)?;
        let nonsense = made_up.into_iter().map(|features| features.dense).collect();
        Ok(Self { embedder, head: None, examples: kept, nonsense, centroids, options })
    }

    /// A router with a trained head. `models` maps labels to models; a label it does not name is the model of
    /// that id.
    ///
    /// # Errors
    /// A head of another encoder.
    pub fn with_head(
        embedder: Arc<dyn Embedder>,
        head: Head,
        models: &BTreeMap<String, ModelId>,
        options: EmbeddingOptions,
    ) -> Result<Self> {
        head.check_encoder(&*embedder)?;
        let of_label =
            |label: &String| models.get(label).cloned().unwrap_or_else(|| ModelId::new(label.as_str()));
        let models = head.labels().iter().map(of_label).collect();
        Ok(Self {
            embedder,
            head: Some((head, models)),
            examples: Vec::new(),
            nonsense: Vec::new(),
            centroids: BTreeMap::new(),
            options,
        })
    }

    /// Routes several prompts with one call of the encoder; the answers stand in the order of the queries.
    ///
    /// # Errors
    /// As [`Router::route`].
    pub fn route_batch(&self, queries: &[Query<'_>], candidates: &[Candidate<'_>]) -> Result<Vec<Decision>> {
        let mut decisions = Vec::with_capacity(queries.len());
        for query in queries {
            decisions.push(guard(query, candidates, NAME)?);
        }
        let open: Vec<usize> = (0..queries.len()).filter(|&at| decisions[at].is_none()).collect();
        let texts: Vec<&str> = open.iter().map(|&at| queries[at].prompt).collect();
        let none = GramOptions::none();
        let grams = self.head.as_ref().map_or(&none, |(head, _)| head.grams());
        for (at, features) in open.into_iter().zip(featurise(&*self.embedder, grams, &texts)?) {
            decisions[at] = Some(self.decide(&features, candidates));
        }
        Ok(decisions
            .into_iter()
            .map(|decision| decision.expect("every query was guarded or decided"))
            .collect())
    }

    fn decide(&self, x: &Features, candidates: &[Candidate<'_>]) -> Decision {
        match &self.head {
            Some((head, models)) => self.decide_by_head(head, models, x, candidates),
            None => self.decide_by_examples(x, candidates),
        }
    }

    fn decide_by_head(
        &self,
        head: &Head,
        models: &[ModelId],
        x: &Features,
        candidates: &[Candidate<'_>],
    ) -> Decision {
        let verdict = head.judge(x);
        let score = |candidate: &Candidate<'_>| {
            let own =
                models.iter().zip(&verdict.probabilities).filter(|(model, _)| **model == candidate.spec.id);
            Ranked { model: candidate.spec.id.clone(), score: own.map(|(_, p)| p).sum() }
        };
        let label = &head.labels()[verdict.label];
        let reason = format!(
            "label {label:?} with probability {:.2}, familiarity {:.1} (threshold {:.1})",
            verdict.probabilities[verdict.label],
            verdict.familiarity,
            head.threshold()
        );
        self.finish(candidates.iter().map(score).collect(), verdict.abstained, reason)
    }

    fn decide_by_examples(&self, x: &Features, candidates: &[Candidate<'_>]) -> Decision {
        let allowed = |model: &ModelId| candidates.iter().any(|candidate| candidate.spec.id == *model);
        let mut near: Vec<(f32, &ExampleVector)> = self
            .examples
            .iter()
            .filter(|example| allowed(&example.model))
            .map(|example| (dot(&x.dense, &example.vector), example))
            .collect();
        near.sort_by(|a, b| b.0.total_cmp(&a.0));
        near.truncate(self.options.neighbours.max(1));
        // Half the evidence is the class as a whole, half its best neighbours: centroids are steady, neighbours
        // know the exceptions.
        let evidence = |model: &ModelId| {
            let centroid = self.centroids.get(model).map(|centroid| dot(&x.dense, centroid))?;
            let own: Vec<f32> =
                near.iter().filter(|(_, example)| example.model == *model).map(|near| near.0).collect();
            let floor = near.last().map_or(0.0, |last| last.0);
            let best = own.iter().take(3).sum::<f32>() + floor * 3_usize.saturating_sub(own.len()) as f32;
            Some((0.5 * centroid + 0.5 * best / 3.0) / SIMILARITY_SCALE)
        };
        let evidence: Vec<Option<f32>> =
            candidates.iter().map(|candidate| evidence(&candidate.spec.id)).collect();
        let most = evidence.iter().flatten().copied().fold(f32::NEG_INFINITY, f32::max);
        let total: f32 = evidence.iter().flatten().map(|value| (value - most).exp()).sum();
        let score = |value: &Option<f32>| value.map_or(0.0, |value| (value - most).exp() / total);
        let ranked = candidates
            .iter()
            .zip(&evidence)
            .map(|(candidate, value)| Ranked { model: candidate.spec.id.clone(), score: score(value) })
            .collect();
        let Some(nearest) = near.first() else {
            return self.finish(ranked, true, "no candidate has example prompts".to_owned());
        };
        let made_up = self.nonsense.iter().any(|vector| dot(&x.dense, vector) > nearest.0);
        let foreign = nearest.0.is_nan() || nearest.0 < self.options.least_similarity || made_up;
        let shown: Vec<String> = near
            .iter()
            .take(3)
            .map(|(similarity, example)| {
                let end = example.text.floor_char_boundary(60);
                format!("{:?} ({}, {similarity:.2})", &example.text[..end], example.model)
            })
            .collect();
        self.finish(ranked, foreign, format!("nearest examples: {}", shown.join(", ")))
    }

    fn finish(&self, ranked: Vec<Ranked>, foreign: bool, reason: String) -> Decision {
        let mut decision = Decision::new(ranked, 0.0, foreign, reason, NAME);
        decision.confidence = decision.ranked.first().map_or(0.0, |first| first.score);
        if foreign {
            decision.reason.push_str("; too far from everything known");
        } else if decision.confidence < self.options.least_confidence || decision.confidence <= 0.0 {
            decision.abstained = true;
            decision.reason.push_str("; not sure enough");
        }
        decision
    }
}

impl Router for EmbeddingRouter {
    fn route(&self, query: &Query<'_>, candidates: &[Candidate<'_>]) -> Result<Decision> {
        let mut decisions = self.route_batch(std::slice::from_ref(query), candidates)?;
        Ok(decisions.pop().expect("one query, one decision"))
    }
}

pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    // Eight sums, so that the compiler may use vectors without changing the order it was told.
    let mut sums = [0.0_f32; 8];
    let (a8, a_rest) = a.as_chunks::<8>();
    let (b8, b_rest) = b.as_chunks::<8>();
    for (a, b) in a8.iter().zip(b8) {
        for lane in 0..8 {
            sums[lane] += a[lane] * b[lane];
        }
    }
    sums.iter().sum::<f32>() + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f32>()
}
