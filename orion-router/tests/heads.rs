//! Heads and routers on an embedder without a model: what is learned, saved, refused.

#![allow(clippy::unwrap_used, clippy::useless_vec, reason = "a test: a panic is a failure")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use orion_core::{
    Candidate, Clock, Decision, Embedder, ErrorKind, ManualClock, ModelId, ModelSpec, Query, Ranked, Result,
    Router, SystemClock,
};
use orion_router::{
    AbstainAt, CachedEmbedder, DifficultyHead, DifficultyOptions, DifficultyRecord, DifficultyRouter,
    EmbeddingOptions, EmbeddingRouter, Example, FeedbackOptions, FeedbackRouter, Head, HeadOptions,
    OUT_OF_SCOPE, agent_examples, evaluate, evaluate_difficulty,
};

/// Sums of fixed random vectors, one per word: prompts that share words are similar.
struct Words(&'static str);

fn random(state: &mut u64) -> f32 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    (*state % 2001) as f32 / 1000.0 - 1.0
}

impl Embedder for Words {
    fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>> {
        let embed = |text: &&str| {
            let mut sum = vec![0.0_f32; 48];
            for word in text.split_whitespace().filter(|word| !["the", "of"].contains(word)) {
                let mut state = word.bytes().fold(14_695_981_039_346_656_037_u64, |hash, byte| {
                    (hash ^ u64::from(byte)).wrapping_mul(1_099_511_628_211)
                });
                sum.iter_mut().for_each(|value| *value += random(&mut state));
            }
            let length = sum.iter().map(|value| value * value).sum::<f32>().sqrt().max(1e-6);
            sum.iter().map(|value| value / length).collect()
        };
        Ok(texts.iter().map(embed).collect())
    }
    fn dimension(&self) -> usize {
        48
    }
    fn fingerprint(&self) -> String {
        self.0.to_owned()
    }
}

const TOPICS: [(&str, [&str; 6]); 3] = [
    ("code", ["rust", "python", "compile", "function", "bug", "loop"]),
    ("cook", ["soup", "bake", "oven", "salt", "recipe", "dough"]),
    ("sail", ["wind", "boat", "harbour", "rope", "anchor", "wave"]),
];

fn examples(seed: u64, count: usize) -> Vec<Example> {
    let mut state = seed;
    let mut pick = |words: &[&'static str]| words[(random(&mut state).abs() * 997.0) as usize % words.len()];
    (0..count)
        .map(|at| {
            let (label, words) = TOPICS[at % 3];
            Example::new(format!("the {} {} of {}", pick(&words), pick(&words), pick(&words)), label)
        })
        .collect()
}

fn foreign() -> Vec<Example> {
    let words = ["zebra", "opera", "tax", "moon", "glacier", "piano", "voter", "comet"];
    words.windows(2).map(|pair| Example::new(format!("{} {}", pair[0], pair[1]), OUT_OF_SCOPE)).collect()
}

fn head(abstain: AbstainAt) -> Head {
    let mut options = HeadOptions::default();
    options.abstain = abstain;
    let validation: Vec<Example> = examples(2, 60).into_iter().chain(foreign()).collect();
    Head::train(&Words("words"), &examples(1, 240), &validation, &options).unwrap()
}

#[test]
fn a_head_learns_topics_and_rejects_what_is_foreign() {
    let test: Vec<Example> = examples(3, 90).into_iter().chain(foreign()).collect();
    let report = evaluate(&head(AbstainAt::Best), &Words("words"), &test, &SystemClock::new()).unwrap();
    assert!(report.accuracy >= 0.95, "{}", report.accuracy);
    assert!(report.out_of_scope_recall.unwrap() >= 0.8, "{:?}", report.out_of_scope_recall);
    assert!((report.baselines.majority - 1.0 / 3.0).abs() < 1e-9);
    assert_eq!((report.in_scope, report.out_of_scope), (90, 7));
    let counted: usize = report.confusion.iter().map(|cell| cell.count).sum();
    assert_eq!(counted, 97);
    let never = evaluate(&head(AbstainAt::Never), &Words("words"), &test, &SystemClock::new()).unwrap();
    assert_eq!(never.out_of_scope_recall, Some(0.0));
}

#[test]
fn a_report_counts_what_a_head_answers() {
    // Some labels are wrong, one is unknown to the head, and half of what is in scope is not answered.
    let words = Words("words");
    let head = head(AbstainAt::Never);
    let head = head.calibrated(&words, &examples(3, 90), AbstainAt::InScopeAccuracy(0.6)).unwrap();
    let mut test: Vec<Example> = examples(4, 60).into_iter().chain(foreign()).collect();
    test[0].label = "sail".to_owned();
    test[1].label = "code".to_owned();
    test[2].label = "astronomy".to_owned();
    let report = evaluate(&head, &words, &test, &SystemClock::new()).unwrap();

    let texts: Vec<&str> = test.iter().map(|example| example.text.as_str()).collect();
    let verdicts = head.judge_all(&words, &texts).unwrap();
    let rows: Vec<(&str, &str, bool, f32)> = test
        .iter()
        .zip(&verdicts)
        .map(|(example, it)| {
            (
                example.label.as_str(),
                head.labels()[it.label].as_str(),
                it.abstained,
                it.probabilities[it.label],
            )
        })
        .collect();
    let count = |pick: &dyn Fn(&str, &str, bool) -> bool| {
        rows.iter().filter(|(label, answer, abstained, _)| pick(label, answer, *abstained)).count()
    };
    let known = |label: &str| label != OUT_OF_SCOPE;
    let (scope, foreign) = (count(&|label, _, _| known(label)), count(&|label, _, _| !known(label)));
    assert_eq!((report.examples, report.in_scope, report.out_of_scope), (67, scope, foreign));
    let share = |part: usize, of: usize| part as f64 / of as f64;
    let right = count(&|label, answer, abstained| label == answer && !abstained);
    let forced = count(&|label, answer, _| label == answer);
    let rejected = count(&|label, _, abstained| known(label) && abstained);
    let caught = count(&|label, _, abstained| !known(label) && abstained);
    assert!(right > 0 && right < forced && rejected > 0 && caught > 0 && forced < scope, "{right} {forced}");
    assert_eq!(report.accuracy, share(right, scope));
    assert_eq!(report.accuracy_without_abstaining, share(forced, scope));
    assert_eq!(report.abstained, share(rejected + caught, 67));
    assert_eq!(report.wrongly_rejected, share(rejected, scope));
    assert_eq!(report.out_of_scope_recall, Some(share(caught, foreign)));
    assert_eq!(report.wrongly_accepted, Some(share(foreign - caught, foreign)));
    assert_eq!(report.baselines.random, 1.0 / 3.0);
    assert_eq!(report.baselines.majority, share(20, scope), "20 of each topic, three of them moved around");

    assert_eq!(report.per_label.len(), 4);
    for (name, it) in &report.per_label {
        let own = count(&|label, _, _| label == name);
        let right = count(&|label, answer, abstained| label == name && answer == name && !abstained);
        let given = count(&|_, answer, abstained| answer == name && !abstained);
        let abstained = count(&|label, _, abstained| label == name && abstained);
        assert_eq!((it.examples, it.right, it.abstained), (own, right, abstained), "{name}");
        assert_eq!(it.wrongly_given, given - right, "{name}");
        assert_eq!(it.recall, share(right, own));
        assert_eq!(it.precision, if given == 0 { 0.0 } else { share(right, given) });
    }
    for cell in &report.confusion {
        let given = |answer: &str, abstained: bool| {
            if abstained { "abstained".to_owned() } else { answer.to_owned() }
        };
        let same =
            count(&|label, answer, abstained| label == cell.label && given(answer, abstained) == cell.answer);
        assert_eq!(cell.count, same, "{cell:?}");
    }
    let order: Vec<_> =
        report.confusion.iter().map(|cell| (cell.label == cell.answer, usize::MAX - cell.count)).collect();
    assert!(order.is_sorted(), "errors first, the frequent ones before the others: {:?}", report.confusion);
    let pairs: Vec<(f32, bool)> =
        rows.iter().filter(|row| known(row.0)).map(|row| (row.3, row.0 == row.1)).collect();
    assert_eq!(report.ece, orion_router::calibration_error(&pairs));
    let last = report.risk_coverage.last().unwrap();
    assert_eq!((last.coverage, last.risk), (1.0, share(67 - forced, 67)));
}

#[test]
fn training_is_deterministic_and_a_saved_head_is_the_same_head() {
    let first = head(AbstainAt::Best);
    assert_eq!(first, head(AbstainAt::Best));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("topics.safetensors");
    first.save(&path).unwrap();
    assert_eq!(Head::load(&path, &Words("words")).unwrap(), first);
}

#[test]
fn calibration_sets_the_threshold_and_leaves_the_weights() {
    let trained = head(AbstainAt::Never);
    assert_eq!(trained.threshold(), f32::NEG_INFINITY);
    let words = Words("words");
    let calibrate =
        |examples: &[Example]| trained.clone().calibrated(&words, examples, AbstainAt::InScopeAccuracy(0.5));
    let calibrated = calibrate(&examples(3, 90)).unwrap();
    let report = evaluate(&calibrated, &words, &examples(3, 90), &SystemClock::new()).unwrap();
    // 45 of 90 are still answered, and rightly; prompts that come twice may add a few.
    assert!((0.5..0.6).contains(&report.accuracy), "{}", report.accuracy);
    assert_eq!(calibrated.with_threshold(f32::NEG_INFINITY).labels(), trained.labels());
    let stranger = calibrate(&[Example::new("the tax of moon", "astronomy")]).unwrap_err();
    assert!(stranger.to_string().contains("astronomy"), "{stranger}");
    assert!(calibrate(&foreign()).unwrap_err().to_string().contains("no example in scope"));
}

#[test]
fn heads_of_another_encoder_or_with_changed_bytes_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("head");
    head(AbstainAt::Best).save(&path).unwrap();
    let error = Head::load(&path, &Words("other")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(error.to_string().contains("other") && error.to_string().contains("words"), "{error}");
    assert_eq!(DifficultyHead::load(&path, &Words("words")).unwrap_err().kind(), ErrorKind::Corrupt);

    let bytes = std::fs::read(&path).unwrap();
    let mut state = 9;
    for _ in 0..200 {
        let mut broken = bytes.clone();
        let at = (random(&mut state).abs() * 1e6) as usize % broken.len();
        broken[at] ^= 0x55;
        std::fs::write(&path, &broken).unwrap();
        // A flip may hit white space of the header; whatever loads must be the head that was saved.
        if let Ok(loaded) = Head::load(&path, &Words("words")) {
            assert_eq!(loaded.labels(), head(AbstainAt::Best).labels());
        }
        std::fs::write(&path, &bytes[..at]).unwrap();
        assert!(Head::load(&path, &Words("words")).is_err(), "cut at {at}");
    }
    assert_eq!(
        Head::load(&folder.path().join("none"), &Words("words")).unwrap_err().kind(),
        ErrorKind::NotFound
    );
}

/// A saved head with its description changed as text.
fn changed(path: &std::path::Path, from: &str, to: &str) {
    let bytes = std::fs::read(path).unwrap();
    let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header = std::str::from_utf8(&bytes[8..8 + len]).unwrap();
    assert!(header.contains(from), "{header}");
    let header = header.replacen(from, to, 1);
    let header = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &bytes[8 + len..]].concat();
    std::fs::write(path, header).unwrap();
}

#[test]
fn a_head_that_describes_itself_wrongly_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("head");
    let saved = head(AbstainAt::Best);
    for (from, to) in [
        (r#"\"labels\":[\"code\",\"cook\",\"sail\"]"#, r#"\"labels\":[]"#),
        (r#"\"labels\":[\"code\","#, r#"\"labels\":["#),
        (r#"\"words\":2"#, r#"\"words\":17"#),
        (r#"\"letters\":[0,0]"#, r#"\"letters\":[0,17]"#),
        (r#"\"weight\":0.4"#, r#"\"weight\":1e39"#),
        (r#"\"buckets\":4096"#, r#"\"buckets\":4095"#),
        (r#"\"temperature\":"#, r#"\"temperature\":-"#),
    ] {
        saved.save(&path).unwrap();
        changed(&path, from, to);
        let error = Head::load(&path, &Words("words")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{from}: {error}");
    }
    // No label at all, and all of its classes nonsense.
    saved.save(&path).unwrap();
    let text = std::fs::read(&path).unwrap();
    let text = String::from_utf8_lossy(&text).into_owned();
    let number = |key: &str| {
        let from = text.find(key).unwrap() + key.len();
        text[from..].split(',').next().unwrap().parse::<usize>().unwrap()
    };
    let clusters = text.split(r#"\"clusters\":["#).nth(1).unwrap().split(']').next().unwrap().to_owned();
    let sum: usize = clusters.split(',').map(|count| count.parse::<usize>().unwrap()).sum();
    let nonsense = number(r#"\"nonsense\":"#);
    changed(&path, r#"\"labels\":[\"code\",\"cook\",\"sail\"]"#, r#"\"labels\":[]"#);
    changed(&path, &format!(r#"\"clusters\":[{clusters}]"#), r#"\"clusters\":[]"#);
    changed(&path, &format!(r#"\"nonsense\":{nonsense},"#), &format!(r#"\"nonsense\":{},"#, nonsense + sum));
    assert_eq!(Head::load(&path, &Words("words")).unwrap_err().kind(), ErrorKind::Corrupt);
    // Lengths from nothing are no reason to fall over.
    saved.save(&path).unwrap();
    changed(&path, r#"\"letters\":[0,0]"#, r#"\"letters\":[0,3]"#);
    Head::load(&path, &Words("words")).unwrap().judge_all(&Words("words"), &["the wind of rope"]).unwrap();

    saved.save(&path).unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    let last = bytes.len() - 4;
    bytes[last..].copy_from_slice(&f32::INFINITY.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    let error = Head::load(&path, &Words("words")).unwrap_err();
    assert!(error.to_string().contains("not finite"), "{error}");
}

#[test]
fn too_few_labels_are_refused() {
    let one = vec![Example::new("a", "x"), Example::new("b", "x"), Example::new("c", OUT_OF_SCOPE)];
    let error = Head::train(&Words("w"), &one, &[], &HeadOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    let strange = [Example::new("a", "never seen")];
    assert!(Head::train(&Words("w"), &examples(1, 30), &strange, &HeadOptions::default()).is_err());
    assert!(Head::train(&Words("w"), &[], &[], &HeadOptions::default()).is_err());
}

fn specs() -> Vec<ModelSpec> {
    TOPICS
        .iter()
        .map(|(id, _)| {
            let mut spec = ModelSpec::new((*id).into(), vec![]);
            spec.examples = examples(4, 60).into_iter().filter(|e| e.label == *id).map(|e| e.text).collect();
            spec
        })
        .collect()
}

fn routers() -> Vec<EmbeddingRouter> {
    let embedder: Arc<dyn Embedder> = Arc::new(CachedEmbedder::new(Words("words"), 64));
    vec![
        EmbeddingRouter::from_specs(embedder.clone(), &specs(), EmbeddingOptions::default()).unwrap(),
        EmbeddingRouter::with_head(
            embedder,
            head(AbstainAt::Best),
            &BTreeMap::new(),
            EmbeddingOptions::default(),
        )
        .unwrap(),
    ]
}

#[test]
fn embedding_routers_choose_by_topic_and_only_among_the_candidates() {
    let specs = specs();
    let candidates: Vec<_> = specs.iter().map(Candidate::new).collect();
    for router in routers() {
        let decision = router.route(&Query::new("the bake oven of dough"), &candidates).unwrap();
        assert_eq!(decision.chosen().unwrap().as_str(), "cook", "{}", decision.reason);
        let total: f32 = decision.ranked.iter().map(|ranked| ranked.score).sum();
        assert!((total - 1.0).abs() < 1e-4);
        let decision = router.route(&Query::new("the bake oven of dough"), &candidates[..1]).unwrap();
        assert!(decision.ranked.len() == 1 && decision.ranked[0].model.as_str() == "code");
        let prompts = ["wind boat", "", "rust loop", "aaaaaaaa"];
        let queries: Vec<_> = prompts.iter().map(|prompt| Query::new(prompt)).collect();
        let batch = router.route_batch(&queries, &candidates).unwrap();
        for (query, decision) in queries.iter().zip(&batch) {
            assert_eq!(router.route(query, &candidates).unwrap(), *decision);
        }
        assert!(batch[1].abstained && batch[3].abstained);
    }
}

#[test]
fn bad_input_is_an_abstention_or_a_typed_error() {
    let specs = specs();
    let candidates: Vec<_> = specs.iter().map(Candidate::new).collect();
    let megabyte = "x".repeat(1 << 20);
    let broken = String::from_utf8_lossy(&[0xff; 300]).into_owned();
    for router in routers() {
        for prompt in ["", "   ", &megabyte, &broken, "!!!!", "\0\0\0\0"] {
            assert!(router.route(&Query::new(prompt), &candidates).unwrap().abstained);
        }
        let words = "boat wind anchor ".repeat(60_000);
        assert_eq!(router.route(&Query::new(&words), &candidates).unwrap().ranked[0].model.as_str(), "sail");
        assert_eq!(router.route(&Query::new("boat"), &[]).unwrap_err().kind(), ErrorKind::InvalidInput);
    }
    let embedder: Arc<dyn Embedder> = Arc::new(Words("words"));
    assert!(EmbeddingRouter::from_examples(embedder.clone(), vec![], EmbeddingOptions::default()).is_err());
    let other: Arc<dyn Embedder> = Arc::new(Words("other"));
    let head = head(AbstainAt::Best);
    assert!(EmbeddingRouter::with_head(other, head, &BTreeMap::new(), EmbeddingOptions::default()).is_err());
}

fn records(seed: u64, count: usize) -> Vec<DifficultyRecord> {
    let mut state = seed;
    let sailing = examples(seed, count);
    sailing
        .into_iter()
        .map(|example| {
            let luck = random(&mut state).abs();
            // The weak model cooks well, but sails and codes badly.
            let weak_right = luck < if example.label == "cook" { 0.9 } else { 0.3 };
            DifficultyRecord {
                prompt: example.text,
                weak_right,
                strong_right: random(&mut state).abs() < 0.9,
            }
        })
        .collect()
}

#[test]
fn difficulty_is_learned_calibrated_and_kept() {
    let embedder = Words("words");
    let head = DifficultyHead::train(&embedder, &records(5, 900), &DifficultyOptions::default()).unwrap();
    let test = records(6, 600);
    let report = evaluate_difficulty(&head, &embedder, &test, &SystemClock::new()).unwrap();
    // All gain lies in two thirds of the prompts, evenly: at best 80 % of it come at 53 % of the calls.
    assert!(report.apgr.unwrap() > 0.6, "{:?}", report.apgr);
    assert!(report.strong_share_at_80.unwrap() < 0.65, "{:?}", report.strong_share_at_80);
    let strong = |share: f32| {
        let threshold = head.threshold_for_share(share);
        let prompts: Vec<&str> = test.iter().map(|record| record.prompt.as_str()).collect();
        let judged = head.judge_all(&embedder, &prompts).unwrap();
        judged.iter().filter(|difficulty| difficulty.gain > threshold).count() as f32 / test.len() as f32
    };
    for share in [0.0, 0.2, 0.5, 0.8, 1.0] {
        // Within a kind of prompt all are about as hard, so a threshold that falls among them is a coarse cut.
        assert!((strong(share) - share).abs() < 0.15, "asked for {share}, got {}", strong(share));
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("difficulty");
    head.save(&path).unwrap();
    assert_eq!(DifficultyHead::load(&path, &embedder).unwrap(), head);
    assert_eq!(DifficultyHead::load(&path, &Words("other")).unwrap_err().kind(), ErrorKind::InvalidInput);
    assert_eq!(Head::load(&path, &embedder).unwrap_err().kind(), ErrorKind::Corrupt);

    let specs = ["weak", "strong", "other"].map(|id| ModelSpec::new(id.into(), vec![]));
    let candidates: Vec<_> = specs.iter().map(Candidate::new).collect();
    let models = || ("weak".into(), "strong".into());
    let router = DifficultyRouter::new(Arc::new(Words("words")), head.clone(), models(), 0.66).unwrap();
    let chosen =
        |prompt| router.route(&Query::new(prompt), &candidates).unwrap().chosen().unwrap().to_string();
    assert_eq!(chosen("the bake oven of dough"), "weak");
    assert_eq!(chosen("the wind boat of rope"), "strong");
    assert!(router.route(&Query::new("wind"), &candidates[2..]).unwrap().abstained);
    assert!(DifficultyRouter::new(Arc::new(Words("words")), head, models(), f32::NAN).is_err());
    let same = vec![DifficultyRecord { prompt: "p".into(), weak_right: true, strong_right: true }; 50];
    assert!(DifficultyHead::train(&embedder, &same, &DifficultyOptions::default()).is_err());
}

/// Always prefers one model a little.
struct Prefers(&'static str);

impl Router for Prefers {
    fn route(&self, _: &Query<'_>, candidates: &[Candidate<'_>]) -> Result<Decision> {
        let score = |id: &ModelId| if id.as_str() == self.0 { 0.55 } else { 0.45 };
        let ranked = candidates
            .iter()
            .map(|c| Ranked { model: c.spec.id.clone(), score: score(&c.spec.id) })
            .collect();
        Ok(Decision::new(ranked, 0.55, false, "prefers", "prefers"))
    }
}

fn feedback(clock: &ManualClock) -> FeedbackRouter<Prefers> {
    let mut options = FeedbackOptions::default();
    options.similarity = 0.3;
    options.regions = 16;
    FeedbackRouter::new(Prefers("a"), Arc::new(Words("words")), Arc::new(clock.clone()), options)
}

#[test]
fn feedback_helps_where_it_is_clear_and_never_hurts() {
    let specs = ["a", "b"].map(|id| ModelSpec::new(id.into(), vec![]));
    let candidates: Vec<_> = specs.iter().map(Candidate::new).collect();
    // Success of a and b per topic: b is better at cooking, a at sailing, they are equal at coding.
    let rate = |label: &str, model: &str| match (label, model) {
        ("cook", "a") => 0.3,
        ("cook", _) | ("sail", "a") => 0.9,
        ("sail", _) => 0.3,
        _ => 0.6,
    };
    for seed in 1..=20 {
        let clock = ManualClock::new();
        let router = feedback(&clock);
        let value = |router: &dyn Router| -> f32 {
            let held_out = examples(1000 + seed, 90);
            let chosen = |example: &Example| {
                router.route(&Query::new(&example.text), &candidates).unwrap().chosen().unwrap().to_string()
            };
            held_out.iter().map(|example| rate(&example.label, &chosen(example))).sum::<f32>() / 90.0
        };
        let before = value(&Prefers("a"));
        let mut state = seed + 77;
        let mut last = before;
        for round in 0..8 {
            for example in examples(seed * 100 + round, 60) {
                let model = if random(&mut state) > 0.0 { "a" } else { "b" };
                let success = random(&mut state).abs() < rate(&example.label, model);
                router.feedback(&example.text, &model.into(), success).unwrap();
                clock.advance(Duration::from_secs(60));
            }
            last = value(&router);
            assert!(last >= before - 1e-6, "seed {seed}, round {round}: {before} fell to {last}");
        }
        assert!(last > before + 0.1, "seed {seed}: {before} only rose to {last}");
        assert!(router.regions() <= 16);
    }
}

#[test]
fn feedback_decays_persists_and_stays_bounded() {
    let specs = ["a", "b"].map(|id| ModelSpec::new(id.into(), vec![]));
    let candidates: Vec<_> = specs.iter().map(Candidate::new).collect();
    let clock = ManualClock::new();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("feedback.json");
    let router = feedback(&clock).persisted_at(&path).unwrap();
    for _ in 0..30 {
        router.feedback("the bake oven of dough", &"b".into(), true).unwrap();
        router.feedback("the bake oven of dough", &"a".into(), false).unwrap();
    }
    router.save().unwrap();
    let again = feedback(&clock).persisted_at(&path).unwrap();
    let chosen = |router: &dyn Router| {
        router
            .route(&Query::new("the bake oven of dough"), &candidates)
            .unwrap()
            .chosen()
            .unwrap()
            .to_string()
    };
    assert_eq!((chosen(&router).as_str(), chosen(&again).as_str()), ("b", "b"));
    clock.advance(Duration::from_secs(3 * 30 * 24 * 3600));
    assert_eq!(chosen(&again), "a", "after three half-lives too little is left to act on");
    clock.set_wall(Duration::ZERO);
    assert!(clock.wall().is_zero());
    again.feedback("the bake oven of dough", &"b".into(), true).unwrap();
    for at in 0..200 {
        again.feedback(&format!("w{at} x{at} y{at}"), &"a".into(), true).unwrap();
    }
    assert!(again.regions() <= 16);
    again.feedback("", &"a".into(), true).unwrap();

    std::fs::write(&path, b"{\"format\":\"x\"").unwrap();
    assert_eq!(feedback(&clock).persisted_at(&path).unwrap_err().kind(), ErrorKind::Corrupt);
    std::fs::write(&path, b"{\"format\":\"orion-router-feedback-1\",\"encoder\":\"other\",\"regions\":[]}")
        .unwrap();
    assert_eq!(feedback(&clock).persisted_at(&path).unwrap_err().kind(), ErrorKind::InvalidInput);
}

#[test]
fn the_agents_of_the_registry_are_learnable_from_their_words_alone() {
    // Without a sentence encoder this is three times what chance would do; with one see the reach tests.
    let examples = agent_examples();
    let (train, test): (Vec<_>, Vec<_>) = examples.into_iter().enumerate().partition(|(at, _)| at % 5 != 0);
    let strip = |items: Vec<(usize, Example)>| items.into_iter().map(|item| item.1).collect::<Vec<_>>();
    let mut options = HeadOptions::default();
    options.abstain = AbstainAt::Never;
    let head = Head::train(&Words("words"), &strip(train), &[], &options).unwrap();
    let report = evaluate(&head, &Words("words"), &strip(test), &SystemClock::new()).unwrap();
    assert!(report.accuracy > 0.5, "{}", report.accuracy);
}
