//! How accurate the heads are on data they have not seen. Needs all-MiniLM-L6-v2 (`scripts/models.py minilm`) and the
//! data sets (`make router-data FROM=DIR`), and takes minutes:
//!
//! ```text
//! [ORION_ROUTER_PRECISION=f32] cargo test --release -p orion-router --test reach -- --ignored --nocapture
//! ```

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that reports figures; a panic is a failure"
)]

#[path = "../../orion-runtime/tests/common/mod.rs"]
mod common;

mod boosted;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::time::Instant;

use orion_core::{Embedder, SystemClock};
use orion_router::{
    AbstainAt, CachedEmbedder, ClassReport, DifficultyHead, DifficultyOptions, DifficultyRecord, Example,
    GramOptions, Head, HeadOptions, OUT_OF_SCOPE, agent_examples, evaluate, evaluate_difficulty,
    rank_difficulty, read_difficulty,
};
use orion_runtime::{EncoderOptions, Precision, SentenceEncoder};

/// Where `make router-data` puts the data sets.
fn data(name: &str) -> PathBuf {
    let set = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let home = || set("HOME").expect("HOME or ORION_ROUTER_DATA is set").join(".cache");
    let folder = set("ORION_ROUTER_DATA")
        .unwrap_or_else(|| set("XDG_CACHE_HOME").unwrap_or_else(home).join("orion/router"));
    let path = folder.join(name);
    assert!(path.exists(), "{} is missing; run make router-data FROM=DIR", path.display());
    path
}

/// Layers of the encoder that the agents' head is trained on, as `make router-head` does.
const AGENTS_DEPTH: usize = 3;
/// All of them, for what is told apart by finer shades.
const WHOLE_DEPTH: usize = 6;

fn encoder(depth: usize) -> CachedEmbedder<SentenceEncoder> {
    let folder = common::Folder::open(&common::minilm());
    let precision = match std::env::var("ORION_ROUTER_PRECISION").as_deref() {
        Err(_) | Ok("int7") => Precision::Int7,
        Ok("int8") => Precision::Int8,
        Ok("f32") => Precision::F32,
        Ok(other) => panic!("ORION_ROUTER_PRECISION is {other}, expected int7, int8 or f32"),
    };
    let options = EncoderOptions::for_routing(depth).precision(precision);
    CachedEmbedder::new(SentenceEncoder::load(&folder, options).unwrap(), 100_000)
}

struct Clinc(HashMap<String, Vec<(String, String)>>);

impl Clinc {
    fn read() -> Self {
        Self(serde_json::from_slice(&std::fs::read(data("clinc150.json")).unwrap()).unwrap())
    }

    fn split(&self, names: &[&str]) -> Vec<Example> {
        names.iter().flat_map(|name| &self.0[*name]).map(|(text, label)| Example::new(text, label)).collect()
    }
}

fn print(title: &str, report: &ClassReport) {
    println!(
        "{title}: accuracy {:.4} (never abstaining {:.4}), out of scope caught {:?}, abstained {:.3}, ece {:.4}, \
         majority {:.3}, latency {:?}",
        report.accuracy,
        report.accuracy_without_abstaining,
        report.out_of_scope_recall,
        report.abstained,
        report.ece,
        report.baselines.majority,
        report.latency
    );
}

#[test]
#[ignore = "needs the data sets and minutes"]
fn clinc150() {
    let clinc = Clinc::read();
    let embedder = encoder(WHOLE_DEPTH);
    let clock = SystemClock::new();
    let start = Instant::now();
    let (train, validation) = (clinc.split(&["train"]), clinc.split(&["val", "oos_val"]));
    let texts: Vec<&str> = train.iter().map(|example| example.text.as_str()).collect();
    for chunk in texts.chunks(512) {
        embedder.embed(chunk).unwrap();
    }
    println!("embedding {} prompts: {:?}", texts.len(), start.elapsed());

    let with = |abstain| {
        let mut options = HeadOptions::default();
        options.abstain = abstain;
        options
    };
    let head = Head::train(&embedder, &train, &validation, &with(AbstainAt::Never)).unwrap();
    println!("embedding and training: {:?}", start.elapsed());
    let test = clinc.split(&["test"]);
    let plain = evaluate(&head, &embedder, &test, &clock).unwrap();
    print("150 intents", &plain);

    let rejecting =
        Head::train(&embedder, &train, &validation, &with(AbstainAt::InScopeAccuracy(0.925))).unwrap();
    let open = evaluate(&rejecting, &embedder, &clinc.split(&["test", "oos_test"]), &clock).unwrap();
    print("150 intents and out of scope, 0.925 in scope on validation", &open);
    let best = Head::train(&embedder, &train, &validation, &with(AbstainAt::Best)).unwrap();
    let default = evaluate(&best, &embedder, &clinc.split(&["test", "oos_test"]), &clock).unwrap();
    print("150 intents and out of scope, default threshold", &default);

    let domains: BTreeMap<String, Vec<String>> =
        serde_json::from_slice(&std::fs::read(data("clinc150-domains.json")).unwrap()).unwrap();
    let domain_of: HashMap<&str, &str> = domains
        .iter()
        .flat_map(|(domain, intents)| intents.iter().map(move |intent| (intent.as_str(), domain.as_str())))
        .collect();
    let to_domains = |examples: Vec<Example>| -> Vec<Example> {
        examples.into_iter().map(|e| Example::new(e.text, domain_of[e.label.as_str()])).collect()
    };
    let (train, validation) = (to_domains(train), to_domains(clinc.split(&["val"])));
    let head = Head::train(&embedder, &train, &validation, &with(AbstainAt::Never)).unwrap();
    let ten = evaluate(&head, &embedder, &to_domains(test), &clock).unwrap();
    print("10 domains", &ten);

    assert!(plain.accuracy >= 0.965);
    assert!(open.accuracy >= 0.91 && open.out_of_scope_recall.unwrap() >= 0.82);
    assert!(ten.accuracy >= 0.98);
}

#[test]
#[ignore = "needs the data sets and minutes"]
fn mmlu_difficulty() {
    let records = read_difficulty(&data("mmlu-routing/mmlu.csv")).unwrap();
    let embedder = encoder(WHOLE_DEPTH);
    let clock = SystemClock::new();
    // The unit of the split is the prompt, so that a question asked twice stands on one side.
    let mut prompts: Vec<&str> = records.iter().map(|record| record.prompt.as_str()).collect();
    prompts.sort_unstable();
    prompts.dedup();
    assert_eq!((records.len(), prompts.len()), (14_042, 13_937));
    let (mut apgr, mut at_80, mut boosted_apgr) = (Vec::new(), Vec::new(), Vec::new());
    let mut curves = vec![[0.0_f64; 3]; 11];
    for seed in 1..=5_u64 {
        let mut state = seed;
        let side: HashMap<&str, bool> = prompts
            .iter()
            .map(|&prompt| {
                // SplitMix64.
                state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let z = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
                (prompt, (z ^ z >> 31) & 1 == 0)
            })
            .collect();
        let (train, test): (Vec<_>, Vec<_>) =
            records.iter().cloned().partition(|record| side[record.prompt.as_str()]);
        let start = Instant::now();
        let head = DifficultyHead::train(&embedder, &train, &DifficultyOptions::default()).unwrap();
        let trained = start.elapsed();
        let report = evaluate_difficulty(&head, &embedder, &test, &clock).unwrap();
        println!(
            "half {seed}: apgr {:.4}, 50 % of the gap at {:.3} strong calls, 80 % at {:.3}, ece {:.4}, waste {:.3}, \
             risk {:.3}, trained in {trained:?}",
            report.apgr.unwrap(),
            report.strong_share_at_50.unwrap(),
            report.strong_share_at_80.unwrap(),
            report.ece,
            report.waste,
            report.quality_risk
        );
        apgr.push(report.apgr.unwrap());
        at_80.push(report.strong_share_at_80.unwrap());

        // Beside it, on the same vectors and halves: boosted trees on what a strong call gains.
        let vectors = |records: &[DifficultyRecord]| -> Vec<Vec<f32>> {
            let prompts: Vec<&str> = records.iter().map(|record| record.prompt.as_str()).collect();
            embedder.embed(&prompts).unwrap()
        };
        let inputs = vectors(&train);
        let inputs: Vec<&[f32]> = inputs.iter().map(Vec::as_slice).collect();
        let gain = |record: &DifficultyRecord| {
            f32::from(u8::from(record.strong_right)) - f32::from(u8::from(record.weak_right))
        };
        let trees = boosted::Boosted::fit(&inputs, &train.iter().map(gain).collect::<Vec<_>>());
        let gains: Vec<f32> = vectors(&test).iter().map(|vector| trees.predict(vector)).collect();
        let other = rank_difficulty(&gains, &test);
        println!(
            "    boosted trees: apgr {:.4}, 80 % of the gap at {:.3}",
            other.apgr.unwrap(),
            other.strong_share_at_80.unwrap()
        );
        boosted_apgr.push(other.apgr.unwrap());
        for (at, sum) in curves.iter_mut().enumerate() {
            let (own, other) = (report.curve[at * 10], other.curve[at * 10]);
            for (sum, value) in sum.iter_mut().zip([own.accuracy, other.accuracy, own.random]) {
                *sum += value / 5.0;
            }
        }
    }
    println!("strong calls   head   boosted  random");
    for (at, [own, other, random]) in curves.iter().enumerate() {
        println!("{:>9} %   {own:.4}  {other:.4}  {random:.4}", at * 10);
    }
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    println!(
        "mean apgr {:.4} (boosted trees {:.4}, random 0.5), 80 % of the gap at {:.4}",
        mean(&apgr),
        mean(&boosted_apgr),
        mean(&at_80)
    );
    assert!(mean(&apgr) >= 0.67 && mean(&at_80) <= 0.60);
}

/// The options of the committed head, `models.head.safetensors`: letters help in French, which the encoder does not know.
fn agent_options() -> HeadOptions {
    HeadOptions::default().grams(GramOptions::with_letters())
}

#[test]
#[ignore = "needs the encoder and a minute"]
fn agents_of_the_registry_on_prompts_somebody_else_wrote() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("data/agents.test.csv");
    let bytes = std::fs::read(&path).unwrap();
    let digest = orion_core::Digest::parse(
        std::fs::read_to_string(path.with_extension("sha256")).unwrap().split_whitespace().next().unwrap(),
    );
    let seen = <sha2::Sha256 as sha2::Digest>::digest(&bytes);
    assert_eq!(digest, Some(orion_core::Digest(seen.into())), "the digest was committed before training");
    let mut rows = csv::Reader::from_reader(bytes.as_slice());
    let mut by_language: BTreeMap<String, Vec<Example>> = BTreeMap::new();
    for row in rows.records() {
        let row = row.unwrap();
        let label = if &row[1] == "none" { OUT_OF_SCOPE } else { &row[1] };
        by_language.entry(row[2].to_owned()).or_default().push(Example::new(&row[0], label));
    }
    let embedder = encoder(AGENTS_DEPTH);
    let clock = SystemClock::new();
    let head = Head::train(&embedder, &agent_examples(), &[], &agent_options()).unwrap();
    let mut reached = BTreeMap::new();
    for (language, examples) in by_language {
        let (foreign, own): (Vec<Example>, Vec<Example>) =
            examples.into_iter().partition(|example| example.label == OUT_OF_SCOPE);
        if !own.is_empty() {
            let report = evaluate(&head, &embedder, &own, &clock).unwrap();
            print(&format!("agents, {language}, {} prompts", own.len()), &report);
            for (label, of) in &report.per_label {
                println!("    {label}: recall {:.3}, precision {:.3}", of.recall, of.precision);
            }
            reached.insert(language.clone(), report.accuracy);
        }
        if !foreign.is_empty() {
            // What holds no word never reaches the head.
            let caught = foreign.iter().filter(|example| {
                orion_router::unroutable(&example.text).is_some()
                    || head.judge_all(&embedder, &[&example.text]).unwrap()[0].abstained
            });
            println!("nonsense: {} of {} abstained", caught.count(), foreign.len());
        }
    }
    assert!(reached["en"] >= 0.95 && reached["fr"] >= 0.90, "{reached:?}");
}

#[test]
#[ignore = "needs the encoder and a minute"]
fn agents_of_the_registry_across_folds() {
    // The separate test set is not in this crate; five folds of the training prompts say what to expect of it.
    let embedder = encoder(AGENTS_DEPTH);
    let examples = orion_router::agent_examples();
    let french = examples.len() / 2;
    let clock = SystemClock::new();
    for (name, grams) in
        [("words", GramOptions::default()), ("words and letters", GramOptions::with_letters())]
    {
        let (mut right, mut abstained, mut of) = ([0.0; 2], [0.0; 2], [0.0; 2]);
        let mut options = HeadOptions::default();
        options.grams = grams;
        for fold in 0..5 {
            let side = |held: bool| {
                let items = examples.iter().enumerate().filter(move |(at, _)| (at % 5 == fold) == held);
                items.map(|(at, example)| (usize::from(at >= french), example.clone())).collect::<Vec<_>>()
            };
            let train: Vec<Example> = side(false).into_iter().map(|item| item.1).collect();
            let head = Head::train(&embedder, &train, &[], &options).unwrap();
            for language in 0..2 {
                let test: Vec<Example> =
                    side(true).into_iter().filter(|item| item.0 == language).map(|item| item.1).collect();
                let report = evaluate(&head, &embedder, &test, &clock).unwrap();
                right[language] += report.accuracy * test.len() as f64;
                abstained[language] += report.abstained * test.len() as f64;
                of[language] += test.len() as f64;
            }
        }
        println!(
            "agents, {name}: English {:.3} (abstained {:.3}), French {:.3} (abstained {:.3})",
            right[0] / of[0],
            abstained[0] / of[0],
            right[1] / of[1],
            abstained[1] / of[1]
        );
        assert!(right[0] / of[0] >= 0.85 && right[1] / of[1] >= 0.8);
    }
    let head = Head::train(&embedder, &examples, &[], &HeadOptions::default()).unwrap();
    for nonsense in
        ["asdf qwer zxcv uiop", "blorf gnarp wibble zug", "xkcd jjjq wwrt plmk", "lkj poi mnb 93 hgf"]
    {
        let verdict = head.judge_all(&embedder, &[nonsense]).unwrap().remove(0);
        println!(
            "{nonsense:?}: {} {:.2}, familiarity {:.2} of {:.2}, abstained {}",
            head.labels()[verdict.label],
            verdict.probabilities[verdict.label],
            verdict.familiarity,
            head.threshold(),
            verdict.abstained
        );
    }
}
