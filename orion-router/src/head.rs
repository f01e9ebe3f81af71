//! What is trained on top of a frozen encoder: weights, labels, temperature, threshold, fingerprints.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::io::Write;
use std::path::Path;

use orion_core::{Digest, Embedder, Error, ErrorKind, Result};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::calibrate::{fit_temperature, probabilities};
use crate::cluster;
use crate::data::{Example, OUT_OF_SCOPE, split_by_text};
use crate::grams::GramOptions;
use crate::linear::{Features, Linear, TrainOptions, log_sum_exp};
use crate::nonsense::nonsense;

const FORMAT: &str = "orion-router-head-2";
const MAX_CLASSES: usize = 10_000;
/// Texts that go to the encoder at once.
const EMBED_BATCH: usize = 256;

/// How a classification head is made from examples.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct HeadOptions {
    /// Which n-grams stand beside the embedding.
    pub grams: GramOptions,
    /// The learner.
    pub train: TrainOptions,
    /// Where to abstain.
    pub abstain: AbstainAt,
    /// A label with more examples than this is learned as several clusters of about that size, whose probabilities
    /// are summed: what is broad is not on one side of a plane. Default 100.
    pub cluster_size: usize,
    /// Texts without meaning that are made up and learned as what to abstain from, where no example is labelled
    /// [`OUT_OF_SCOPE`]; 0 for none. Default 240.
    pub nonsense: usize,
}

impl Default for HeadOptions {
    fn default() -> Self {
        Self {
            grams: GramOptions::default(),
            train: TrainOptions::default(),
            abstain: AbstainAt::default(),
            cluster_size: 100,
            nonsense: 240,
        }
    }
}

impl HeadOptions {
    /// Replaces [`grams`](Self::grams).
    #[must_use]
    pub fn grams(mut self, grams: GramOptions) -> Self {
        self.grams = grams;
        self
    }

    /// Replaces [`train`](Self::train).
    #[must_use]
    pub fn train(mut self, train: TrainOptions) -> Self {
        self.train = train;
        self
    }

    /// Replaces [`nonsense`](Self::nonsense).
    #[must_use]
    pub fn nonsense(mut self, count: usize) -> Self {
        self.nonsense = count;
        self
    }

    /// Replaces [`abstain`](Self::abstain).
    #[must_use]
    pub fn abstain(mut self, abstain: AbstainAt) -> Self {
        self.abstain = abstain;
        self
    }
}

/// How the score below which a head abstains is chosen, always on held-out examples.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[non_exhaustive]
pub enum AbstainAt {
    /// Where accuracy in scope and rejections out of scope add up to the most, of the places that keep 96 % of the
    /// right answers, if there are examples labelled [`OUT_OF_SCOPE`]; else where 99.8 % of them are kept, or lower if
    /// made-up nonsense is still told apart there.
    #[default]
    Best,
    /// Where this share of prompts in scope is still answered, and rightly.
    InScopeAccuracy(f32),
    /// Never.
    Never,
}

/// What a head says of a prompt.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Verdict {
    /// Calibrated probability per label, in the head's order.
    pub probabilities: Vec<f32>,
    /// Index of the most probable label.
    pub label: usize,
    /// How much the prompt looks like the examples: log Σ exp of the labels' logits (the negative energy of Liu et al.
    /// 2020), less what speaks for nonsense, log(1 + Σ exp of its logits). Higher is more familiar.
    pub familiarity: f32,
    /// Whether the familiarity lies below the head's threshold.
    pub abstained: bool,
}

/// A trained classification head.
#[derive(Debug, Clone, PartialEq)]
pub struct Head {
    about: About,
    model: Linear,
}

/// Everything about a head but its weights, as it stands in the file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct About {
    format: String,
    encoder: String,
    labels: Vec<String>,
    /// Clusters per label; the classes of the model stand in that order.
    clusters: Vec<usize>,
    /// Classes of nonsense; they come last.
    nonsense: usize,
    grams: GramOptions,
    temperature: f32,
    threshold: f32,
    examples: usize,
    digest: Digest,
}

pub(crate) fn featurise(
    embedder: &dyn Embedder,
    grams: &GramOptions,
    texts: &[&str],
) -> Result<Vec<Features>> {
    let mut features = Vec::with_capacity(texts.len());
    for batch in texts.chunks(EMBED_BATCH) {
        let vectors = embedder.embed(batch)?;
        if vectors.len() != batch.len() || vectors.iter().any(|vector| vector.len() != embedder.dimension()) {
            return Err(Error::new(
                ErrorKind::Internal,
                "the embedder broke its contract: wrong number or length of vectors",
            ));
        }
        let of_one = |(dense, text): (Vec<f32>, &&str)| Features { dense, grams: grams.of(text) };
        features.extend(vectors.into_iter().zip(batch).map(of_one));
    }
    Ok(features)
}

impl Head {
    /// Trains on examples; temperature and threshold are set on `validation`, or, where that is empty, on the
    /// sixth of the examples that a first round leaves out. Examples labelled [`OUT_OF_SCOPE`] only set the
    /// threshold.
    ///
    /// # Errors
    /// [`InvalidInput`](ErrorKind::InvalidInput) for fewer than two labels; what the embedder answers.
    pub fn train(
        embedder: &dyn Embedder,
        examples: &[Example],
        validation: &[Example],
        options: &HeadOptions,
    ) -> Result<Self> {
        let all: Vec<&Example> = examples.iter().chain(validation).collect();
        // Real examples of what is out of scope say more, and nonsense beside them would blur what they set.
        let known = all.iter().any(|example| example.label == OUT_OF_SCOPE);
        let count = if known { 0 } else { options.nonsense };
        let texts: Vec<&str> = all.iter().map(|example| example.text.as_str()).collect();
        let features = featurise(embedder, &options.grams, &texts)?;
        let mut items: Vec<(&Example, Features)> = all.into_iter().zip(features).collect();
        let held_out = items.split_off(examples.len());
        let made_up = |count: usize, seed: u64| {
            let texts = nonsense(count, seed);
            featurise(embedder, &options.grams, &texts.iter().map(String::as_str).collect::<Vec<_>>())
        };
        let nonsense = Nonsense {
            learned: made_up(count, options.train.seed)?,
            // Other texts set the threshold than those that were learned.
            held_out: made_up(count / 4, !options.train.seed)?,
        };
        Self::train_on(embedder.fingerprint(), items, &held_out, &nonsense, options)
    }

    fn train_on<'e>(
        encoder: String,
        items: Vec<(&'e Example, Features)>,
        held_out: &[(&'e Example, Features)],
        nonsense: &Nonsense,
        options: &HeadOptions,
    ) -> Result<Self> {
        let mut labels: Vec<String> = items
            .iter()
            .map(|(example, _)| example.label.clone())
            .filter(|label| label != OUT_OF_SCOPE)
            .collect();
        labels.sort();
        labels.dedup();
        if labels.len() < 2 || labels.len() > MAX_CLASSES {
            let message =
                format!("found {} labels besides {OUT_OF_SCOPE}, expected 2 to {MAX_CLASSES}", labels.len());
            return Err(Error::invalid(message));
        }
        let index: HashMap<&str, usize> =
            labels.iter().enumerate().map(|(at, label)| (label.as_str(), at)).collect();
        if let Some((example, _)) =
            held_out.iter().find(|(e, _)| e.label != OUT_OF_SCOPE && !index.contains_key(e.label.as_str()))
        {
            return Err(Error::invalid(format!(
                "the validation label {:?} has no training example",
                example.label
            )));
        }
        let (foreign, own): (Vec<_>, Vec<_>) =
            items.into_iter().partition(|(example, _)| example.label == OUT_OF_SCOPE);
        let clustered = Clustered::new(&own, &labels, options);
        let nonsense_classes = usize::from(!nonsense.learned.is_empty());
        let fit = |items: &[(&Example, Features)]| {
            let known: usize = clustered.clusters.iter().sum();
            let (targets, inputs): (Vec<usize>, Vec<Features>) = items
                .iter()
                .map(|(example, x)| (clustered.class(example), x.clone()))
                .chain(nonsense.learned.iter().map(|x| (known, x.clone())))
                .unzip();
            let classes = known + nonsense_classes;
            Linear::train(&inputs, &targets, classes, options.grams.buckets as usize, &options.train)
        };
        let score = |model: &Linear, items: &mut dyn Iterator<Item = &(&Example, Features)>| -> Scored {
            let of_one = |(example, x): &(&Example, Features)| {
                let target = index.get(example.label.as_str()).copied();
                Judged::new(&model.logits(x), &clustered.clusters, target)
            };
            items.map(of_one).collect()
        };
        let examples = own.len();
        let (calibrating, model) = if held_out.iter().any(|(example, _)| example.label != OUT_OF_SCOPE) {
            let model = fit(&own)?;
            let scored = score(&model, &mut held_out.iter().chain(&foreign));
            (scored, model)
        } else {
            let (kept, left) = split_by_text(own.clone(), 6, |(example, _)| &example.text);
            let scored = if kept.is_empty() || left.is_empty() {
                Vec::new()
            } else {
                score(&fit(&kept)?, &mut left.iter().chain(&foreign).chain(held_out))
            };
            (scored, fit(&own)?)
        };
        let (logits, targets): (Vec<Vec<f32>>, Vec<usize>) =
            calibrating.iter().filter_map(|judged| Some((judged.logits.clone(), judged.target?))).unzip();
        let temperature = fit_temperature(&logits, &targets);
        let made_up: Vec<f32> = nonsense
            .held_out
            .iter()
            .map(|x| Judged::new(&model.logits(x), &clustered.clusters, None).familiarity)
            .collect();
        let threshold = choose_threshold(&calibrating, &made_up, options.abstain);
        let digest = digest_of(&model.parts());
        let about = About {
            format: FORMAT.to_owned(),
            encoder,
            labels: labels.clone(),
            clusters: clustered.clusters.clone(),
            nonsense: nonsense_classes,
            grams: options.grams.clone(),
            temperature,
            threshold,
            examples,
            digest,
        };
        Ok(Self { about, model })
    }

    /// The labels, sorted.
    #[must_use]
    pub fn labels(&self) -> &[String] {
        &self.about.labels
    }

    /// Fingerprint of the encoder the head was trained on.
    #[must_use]
    pub fn encoder(&self) -> &str {
        &self.about.encoder
    }

    /// Names the labels: heads with the same fingerprint answer with the same names in the same order.
    #[must_use]
    pub fn label_fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        for label in &self.about.labels {
            hash.update((label.len() as u64).to_le_bytes());
            hash.update(label.as_bytes());
        }
        Digest(hash.finalize().into()).to_string()[..16].to_owned()
    }

    /// The familiarity below which the head abstains.
    #[must_use]
    pub fn threshold(&self) -> f32 {
        self.about.threshold
    }

    /// Replaces the threshold.
    #[must_use]
    pub fn with_threshold(mut self, threshold: f32) -> Self {
        self.about.threshold = threshold;
        self
    }

    /// The temperature its logits are divided by.
    #[must_use]
    pub fn temperature(&self) -> f32 {
        self.about.temperature
    }

    /// The same weights with temperature and threshold set on other examples.
    ///
    /// # Errors
    /// [`InvalidInput`](ErrorKind::InvalidInput) for a label the head does not know and for no example in scope;
    /// what [`judge_all`](Self::judge_all) answers.
    pub fn calibrated(
        mut self,
        embedder: &dyn Embedder,
        examples: &[Example],
        rule: AbstainAt,
    ) -> Result<Self> {
        self.check_encoder(embedder)?;
        let texts: Vec<&str> = examples.iter().map(|example| example.text.as_str()).collect();
        let features = featurise(embedder, &self.about.grams, &texts)?;
        let mut scored = Scored::with_capacity(examples.len());
        for (example, x) in examples.iter().zip(&features) {
            let target = self.about.labels.iter().position(|label| *label == example.label);
            if target.is_none() && example.label != OUT_OF_SCOPE {
                return Err(Error::invalid(format!("the head has no label {:?}", example.label)));
            }
            scored.push(Judged::new(&self.model.logits(x), &self.about.clusters, target));
        }
        let (logits, targets): (Vec<Vec<f32>>, Vec<usize>) =
            scored.iter().filter_map(|judged| Some((judged.logits.clone(), judged.target?))).unzip();
        if targets.is_empty() {
            return Err(Error::invalid("there is no example in scope to calibrate on"));
        }
        self.about.temperature = fit_temperature(&logits, &targets);
        self.about.threshold = choose_threshold(&scored, &[], rule);
        Ok(self)
    }

    /// Refuses an encoder the head was not trained on.
    ///
    /// # Errors
    /// [`InvalidInput`](ErrorKind::InvalidInput) naming both fingerprints.
    pub fn check_encoder(&self, embedder: &dyn Embedder) -> Result<()> {
        check_encoder(&self.about.encoder, embedder, self.model.dense.len() / self.model.classes)
    }

    pub(crate) fn grams(&self) -> &GramOptions {
        &self.about.grams
    }

    pub(crate) fn judge(&self, x: &Features) -> Verdict {
        let Judged { logits, familiarity, .. } =
            Judged::new(&self.model.logits(x), &self.about.clusters, None);
        let probabilities = probabilities(&logits, self.about.temperature);
        let label = best(&logits);
        let abstained = familiarity.is_nan() || familiarity < self.about.threshold;
        Verdict { probabilities, label, familiarity, abstained }
    }

    /// Judges prompts, in order.
    ///
    /// # Errors
    /// An encoder the head was not trained on; what the embedder answers.
    pub fn judge_all(&self, embedder: &dyn Embedder, prompts: &[&str]) -> Result<Vec<Verdict>> {
        self.check_encoder(embedder)?;
        let features = featurise(embedder, &self.about.grams, prompts)?;
        Ok(features.iter().map(|x| self.judge(x)).collect())
    }

    /// Writes the head: safetensors, with everything but the weights as JSON in its metadata. Atomic.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        save(path, &self.about, &self.model.parts())
    }

    /// Reads a head and refuses it if it was trained on another encoder than `embedder`.
    ///
    /// # Errors
    /// [`Corrupt`](ErrorKind::Corrupt) for a file that is no head or was changed,
    /// [`InvalidInput`](ErrorKind::InvalidInput) for another encoder.
    pub fn load(path: &Path, embedder: &dyn Embedder) -> Result<Self> {
        Self::read(path, embedder).map_err(|error| error.about(path.display().to_string()))
    }

    fn read(path: &Path, embedder: &dyn Embedder) -> Result<Self> {
        let mut loaded = load(path, |about: &About| about.format == FORMAT)?;
        let counts = loaded.about.clusters.iter().chain([&loaded.about.nonsense]);
        let classes = counts.fold(0_usize, |sum, &count| sum.saturating_add(count));
        if loaded.about.clusters.len() != loaded.about.labels.len() || loaded.about.clusters.contains(&0) {
            return Err(Error::corrupt("labels and clusters differ in number"));
        }
        let dense = loaded.take("dense", classes, None)?;
        let grams = loaded.take("grams", classes, Some(loaded.about.grams.buckets as usize))?;
        let bias = loaded.take("bias", classes, Some(1))?;
        let (about, model) = (loaded.about, Linear { classes, dense, grams, bias });
        if digest_of(&model.parts()) != about.digest {
            return Err(Error::corrupt("the weights do not match their digest"));
        }
        let finite = about.temperature.is_finite() && about.temperature > 0.0 && !about.threshold.is_nan();
        let labelled = !about.labels.is_empty() && classes <= MAX_CLASSES + 1;
        let grams = &about.grams;
        if !finite || !labelled || grams.letters.1 > 16 || grams.words > 16 || !grams.weight.is_finite() {
            return Err(Error::corrupt("temperature, threshold, labels or n-grams out of range"));
        }
        let head = Self { about, model };
        head.check_encoder(embedder)?;
        Ok(head)
    }
}

pub(crate) fn check_encoder(trained_on: &str, embedder: &dyn Embedder, dimension: usize) -> Result<()> {
    let present = embedder.fingerprint();
    if trained_on != present || dimension != embedder.dimension() {
        let message =
            format!("the head was trained on encoder {trained_on}, but this is {present}; train it again");
        return Err(Error::invalid(message));
    }
    Ok(())
}

/// Index of the largest; the first of equals.
pub(crate) fn best(values: &[f32]) -> usize {
    (0..values.len()).fold(0, |best, at| if values[at] > values[best] { at } else { best })
}

/// Features of made-up texts: to learn from, and to set the threshold on.
struct Nonsense {
    learned: Vec<Features>,
    held_out: Vec<Features>,
}

/// What a model says of an example.
struct Judged {
    /// Per label.
    logits: Vec<f32>,
    familiarity: f32,
    /// The right label; none for prompts out of scope.
    target: Option<usize>,
}

impl Judged {
    /// From the logits of all classes: the clusters of each label, then nonsense.
    fn new(classes: &[f32], clusters: &[usize], target: Option<usize>) -> Self {
        let logits = per_label(classes, clusters);
        let foreign = &classes[clusters.iter().sum::<usize>()..];
        // log(1 + Σ exp): nothing where nothing speaks for nonsense.
        let against = log_sum_exp(&foreign.iter().copied().chain([0.0]).collect::<Vec<_>>());
        let familiarity = log_sum_exp(&logits) - against;
        Self { logits, familiarity, target }
    }

    fn is_right(&self) -> bool {
        Some(best(&self.logits)) == self.target
    }
}

type Scored = Vec<Judged>;

/// The cluster of each training text within its label.
struct Clustered<'a> {
    of_text: HashMap<(&'a str, &'a str), usize>,
    first: HashMap<&'a str, usize>,
    clusters: Vec<usize>,
}

impl<'a> Clustered<'a> {
    fn new(items: &'a [(&'a Example, Features)], labels: &'a [String], options: &HeadOptions) -> Self {
        let mut of_label: HashMap<&str, Vec<&(&Example, Features)>> = HashMap::new();
        for item in items {
            of_label.entry(&item.0.label).or_default().push(item);
        }
        let mut made = Self { of_text: HashMap::new(), first: HashMap::new(), clusters: Vec::new() };
        let mut classes = 0;
        for label in labels {
            let own = &of_label[label.as_str()];
            let vectors: Vec<&[f32]> = own.iter().map(|item| item.1.dense.as_slice()).collect();
            let size = options.cluster_size.max(1);
            let count = ((own.len() + size / 2) / size).clamp(1, MAX_CLASSES / labels.len());
            for (item, cluster) in own.iter().zip(cluster::assign(&vectors, count, options.train.seed)) {
                made.of_text.insert((item.0.label.as_str(), item.0.text.as_str()), cluster);
            }
            made.first.insert(label, classes);
            made.clusters.push(count);
            classes += count;
        }
        made
    }

    fn class(&self, example: &Example) -> usize {
        let (label, text) = (example.label.as_str(), example.text.as_str());
        self.first[label] + self.of_text[&(label, text)]
    }
}

/// Logits of labels from those of their clusters: probabilities are summed.
fn per_label(logits: &[f32], clusters: &[usize]) -> Vec<f32> {
    let mut rest = logits;
    clusters
        .iter()
        .map(|&count| {
            let (own, after) = rest.split_at(count);
            rest = after;
            if let [single] = own { *single } else { log_sum_exp(own) }
        })
        .collect()
}

/// `made_up` stands for what is out of scope where nobody gave an example of that.
fn choose_threshold(scored: &Scored, made_up: &[f32], rule: AbstainAt) -> f32 {
    let descending = |mut values: Vec<f32>| {
        values.sort_by(|a, b| b.total_cmp(a));
        values
    };
    let kept = descending(
        scored.iter().filter(|judged| judged.is_right()).map(|judged| judged.familiarity).collect(),
    );
    let in_scope = scored.iter().filter(|judged| judged.target.is_some()).count();
    let foreign: Vec<f32> =
        scored.iter().filter(|judged| judged.target.is_none()).map(|judged| judged.familiarity).collect();
    if kept.is_empty() {
        return f32::NEG_INFINITY;
    }
    let least = |share: f32, of: usize| ((share * of as f32).ceil() as usize).clamp(1, kept.len()) - 1;
    match rule {
        AbstainAt::Never => f32::NEG_INFINITY,
        AbstainAt::InScopeAccuracy(share) => kept[least(share, in_scope)],
        AbstainAt::Best if foreign.is_empty() => {
            // Half way between what is answered rightly and what means nothing, where there is room between them.
            let lowest = kept[least(0.998, kept.len())];
            let made_up = descending(made_up.to_vec());
            let highest = made_up.get(made_up.len() / 32).copied().unwrap_or(lowest);
            if highest < lowest { f32::midpoint(highest, lowest) } else { lowest }
        }
        AbstainAt::Best => {
            let foreign = descending(foreign);
            // Each right answer's score is a possible threshold; of equals the lowest, which rejects least.
            let sum = |at: usize| {
                let accepted = foreign.partition_point(|&score| score >= kept[at]);
                (at + 1) as f64 / in_scope as f64 - accepted as f64 / foreign.len() as f64
            };
            let first = least(0.96, kept.len());
            let at = (first..kept.len()).fold(first, |best, at| if sum(at) >= sum(best) { at } else { best });
            kept[at]
        }
    }
}

fn bytes_of(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// A matrix of a head, by name: rows of `width` numbers.
pub(crate) struct Part<'a> {
    pub(crate) name: &'static str,
    pub(crate) values: &'a [f32],
    pub(crate) width: usize,
}

pub(crate) fn digest_of(parts: &[Part<'_>]) -> Digest {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.name.as_bytes());
        hash.update((part.width as u64).to_le_bytes());
        hash.update(bytes_of(part.values));
    }
    Digest(hash.finalize().into())
}

impl Linear {
    fn parts(&self) -> [Part<'_>; 3] {
        let part = |name, values| Part { name, values, width: self.classes };
        [part("dense", &self.dense), part("grams", &self.grams), part("bias", &self.bias)]
    }
}

pub(crate) fn save(path: &Path, about: &impl Serialize, parts: &[Part<'_>]) -> Result<()> {
    let internal = |error: &dyn std::error::Error| Error::new(ErrorKind::Internal, error.to_string());
    let bytes: Vec<Vec<u8>> = parts.iter().map(|part| bytes_of(part.values)).collect();
    let mut views = BTreeMap::new();
    for (part, bytes) in parts.iter().zip(&bytes) {
        let shape = vec![part.values.len() / part.width, part.width];
        let view = TensorView::new(Dtype::F32, shape, bytes).map_err(|error| internal(&error))?;
        views.insert(part.name, view);
    }
    let about = serde_json::to_string(about).map_err(|error| internal(&error))?;
    let metadata = HashMap::from([("head".to_owned(), about)]);
    let bytes = safetensors::serialize(&views, Some(metadata)).map_err(|error| internal(&error))?;
    write_atomically(path, &bytes)
}

/// Writes beside the target, flushes to the disk, renames: a crash leaves the old file or the new one.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let about = |error| Error::io(error, path.display().to_string());
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    // A new file gets what the system's mask leaves of this, not the owner-only mode of temporary files.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file = builder.tempfile_in(folder).map_err(about)?;
    file.write_all(bytes).and_then(|()| file.as_file().sync_all()).map_err(about)?;
    file.persist(path).map_err(|error| about(error.error))?;
    Ok(())
}

/// What [`save`] wrote: the description, and matrices as rows, width and numbers.
pub(crate) struct Loaded<A> {
    pub(crate) about: A,
    parts: HashMap<String, (usize, Vec<f32>)>,
}

impl<A> Loaded<A> {
    /// Takes the matrix of that name and width, and of `rows` rows if that is known.
    pub(crate) fn take(&mut self, name: &str, width: usize, rows: Option<usize>) -> Result<Vec<f32>> {
        let fits = |(have, values): &(usize, Vec<f32>)| {
            *have == width
                && width > 0
                && rows.is_none_or(|rows| rows.checked_mul(width) == Some(values.len()))
        };
        let part = self.parts.remove(name).filter(fits);
        part.map(|part| part.1)
            .ok_or_else(|| Error::corrupt(format!("tensor {name} is missing or has another shape")))
    }
}

/// Reads a head of format `format` and checks its weights against the digest it names.
pub(crate) fn load<A: serde::de::DeserializeOwned>(
    path: &Path,
    format: impl Fn(&A) -> bool,
) -> Result<Loaded<A>> {
    let corrupt = |error: &dyn std::fmt::Display| Error::corrupt(format!("no router head: {error}"));
    let bytes = std::fs::read(path).map_err(|error| Error::io(error, "reading"))?;
    let (_, metadata) = SafeTensors::read_metadata(&bytes).map_err(|error| corrupt(&error))?;
    let text = metadata.metadata().as_ref().and_then(|map| map.get("head"));
    let text = text.ok_or_else(|| corrupt(&"its metadata has no entry \"head\""))?;
    let about: A = serde_json::from_str(text).map_err(|error| corrupt(&error))?;
    if !format(&about) {
        return Err(corrupt(&"of another kind or version"));
    }
    let tensors = SafeTensors::deserialize(&bytes).map_err(|error| corrupt(&error))?;
    let mut parts = HashMap::new();
    for (name, view) in tensors.tensors() {
        let (Dtype::F32, [_, width]) = (view.dtype(), view.shape()) else {
            return Err(corrupt(&format_args!("tensor {name} is no matrix of f32")));
        };
        let chunks = view.data().as_chunks::<4>().0;
        let values: Vec<f32> = chunks.iter().map(|&chunk| f32::from_le_bytes(chunk)).collect();
        if values.iter().any(|value| !value.is_finite()) {
            return Err(corrupt(&format_args!("tensor {name} holds numbers that are not finite")));
        }
        parts.insert(name, (*width, values));
    }
    Ok(Loaded { about, parts })
}
