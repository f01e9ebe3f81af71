//! What people read: recommendations with their scores, the machine, reports, and errors made of them.

#![allow(clippy::unwrap_used, reason = "in a test a panic is a failure")]

use std::path::Path;

use orion_core::{Error, ErrorKind};
use orion_registry::{Hardware, MissingFiles, Need, Preference, Registry, Report, Sources, validate};

const MIB: u64 = 1 << 20;

fn load(models: &str, rest: &str) -> Result<Registry, Report> {
    let text = format!("{{\"version\": 1, \"models\": [{models}]{rest}}}");
    Registry::load(&Sources::text("models.json", text).missing_files(MissingFiles::Ignore))
}

fn detect(files: &[(&str, &str)]) -> Hardware {
    let root = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = root.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    Hardware::detect_under(root.path())
}

/// A machine of so many MiB, all of them free.
fn machine(mib: u64) -> Hardware {
    let kib = mib * 1024;
    detect(&[("proc/meminfo", &format!("MemTotal: {kib} kB\nMemAvailable: {kib} kB\n"))])
}

/// 64 MiB are added to every model.
const THREE: &str = r#"
    {"id": "small", "files": [{"path": "s"}], "context_length": 4096, "quality": "basic", "speed": "fast",
     "memory": {"weight_bytes": 104857600, "kv_bytes_per_token": 1024}, "capabilities": ["chat"], "languages": ["en"]},
    {"id": "large", "files": [{"path": "l"}], "context_length": 8192, "quality": "best", "priority": 10,
     "memory": {"weight_bytes": 1048576000, "kv_bytes_per_token": 0}, "capabilities": ["chat", "code"],
     "min_ram_bytes": 2147483648},
    {"id": "vectors", "files": [{"path": "v"}], "capabilities": ["embedding"]}"#;

#[test]
fn a_score_is_quality_and_speed_by_preference_and_a_little_priority() {
    let measured = r#", "measured": {"small": {"tokens_per_second": 30}}"#;
    for (rest, need, expected) in [
        // Quality 0.25, speed 0.8; quality 1, speed unknown, 10 of priority.
        ("", Need::any(), [("large", 0.5 + 0.25 + 0.001), ("small", 0.125 + 0.4)]),
        (
            "",
            Need::any().prefer(Preference::Speed),
            [("small", 0.0375 + 0.68), ("large", 0.15 + 0.425 + 0.001)],
        ),
        (
            "",
            Need::any().prefer(Preference::Quality),
            [("large", 0.85 + 0.075 + 0.001), ("small", 0.2125 + 0.12)],
        ),
        // 30 tokens a second where 10 count half.
        (measured, Need::any(), [("large", 0.751), ("small", 0.125 + 0.375)]),
        (measured, Need::any().prefer(Preference::Speed), [("small", 0.0375 + 0.6375), ("large", 0.576)]),
        // A ranked list outweighs both.
        (
            r#", "recommendations": {"mine": {"models": ["small", "large"]}}"#,
            Need::named("mine"),
            [("small", 0.8 + 0.2 * 0.525), ("large", 0.8 * 0.5 + 0.2 * 0.751)],
        ),
    ] {
        let advice = load(THREE, rest).unwrap().recommend(&machine(16 << 10), &need).unwrap();
        assert_eq!(advice.fitting.len(), 2);
        for (it, (model, score)) in advice.fitting.iter().zip(expected) {
            assert_eq!(it.model, model, "{need:?}");
            assert!((it.score - score).abs() < 1e-6, "{model}: {} instead of {score}", it.score);
        }
    }
}

#[test]
fn advice_reads_as_it_is_meant() {
    let rest = r#", "measured": {"small": {"tokens_per_second": 30}},
        "groups": {"little": {"models": ["small"]}}"#;
    let registry = load(THREE, rest).unwrap();
    let advice = registry.recommend(&machine(16 << 10), &Need::any()).unwrap();
    assert_eq!(
        advice.to_string(),
        "full machine, 16384 MiB available\n \
         1. large (0.75): quality best; speed not stated; takes 1064 MiB of 16384 MiB available\n \
         2. small (0.50): quality basic; 30.0 tokens/s measured here; takes 166 MiB of 16384 MiB available\n \
         -  vectors: turns texts into vectors and answers no prompts\n"
    );
    let need = Need::capability("chat").language("en").group("little").context(4096);
    let advice = registry.recommend(&machine(1024), &need).unwrap();
    assert_eq!(
        advice.to_string(),
        "micro machine, 1024 MiB available\n \
         1. small (0.50): quality basic; 30.0 tokens/s measured here; takes 168 MiB of 1024 MiB available; \
         states chat\n \
         -  large: does not state the language en; is not in the group little; needs 1064 MiB with 4096 tokens, \
         1024 MiB are available; wants a machine with 2048 MiB, this one has 1024 MiB\n \
         -  vectors: does not state the capability chat; does not state the language en; is not in the group little; \
         holds 0 tokens, 4096 are needed\n"
    );
    assert_eq!(advice.fitting[0].memory_bytes, 168 * MIB);
    let advice = registry.recommend(&machine(16 << 10), &Need::any().context(8193)).unwrap();
    assert_eq!((advice.best(), advice.ruled_out.len()), (None, 3));
    assert!(advice.to_string().starts_with("full machine, 16384 MiB available\nno model fits\n"), "{advice}");
    let unknown = registry.recommend(&detect(&[]), &Need::any()).unwrap().to_string();
    assert!(unknown.contains("takes 166 MiB; available memory is not known"), "{unknown}");
}

#[test]
fn what_fits_to_the_byte_fits() {
    let registry = load(THREE, "").unwrap();
    let fits = |need: Need| {
        let advice = registry.recommend(&machine(16 << 10), &need).unwrap();
        advice.fitting.iter().any(|it| it.model == "small")
    };
    assert!(fits(Need::any().memory(166 * MIB)) && !fits(Need::any().memory(166 * MIB - 1)));
    assert!(fits(Need::any().context(4096)) && !fits(Need::any().context(4097)));
    let large = |mib| {
        let advice = registry.recommend(&machine(mib), &Need::any()).unwrap();
        advice.fitting.iter().any(|it| it.model == "large")
    };
    assert!(large(2048) && !large(2047));
    // An encoder among other things answers; one that is asked for by any name is given.
    let text = r#"{"id": "both", "files": [{"path": "v"}], "capabilities": ["embedding", "chat"]},
        {"id": "vectors", "files": [{"path": "w"}], "capabilities": ["embedding"]}"#;
    let lists =
        r#", "groups": {"g": {"models": ["vectors"]}}, "recommendations": {"r": {"models": ["vectors"]}}"#;
    let registry = load(text, lists).unwrap();
    let best = |need: Need| registry.recommend(&machine(1024), &need).unwrap().best().map(str::to_owned);
    assert_eq!(best(Need::any()).as_deref(), Some("both"));
    assert_eq!(best(Need::any().group("g")).as_deref(), Some("vectors"));
    assert_eq!(best(Need::named("r")).as_deref(), Some("vectors"));
    assert_eq!(registry.recommend(&machine(1024), &Need::capability("embedding")).unwrap().fitting.len(), 2);
}

#[test]
fn a_machine_reads_as_it_is_meant() {
    let hardware = detect(&[
        ("proc/meminfo", "MemTotal: 16777216 kB\nMemAvailable: 8388608 kB\n"),
        ("proc/self/cgroup", "0::/a\n"),
        ("sys/fs/cgroup/a/memory.max", "6442450944\n"),
        ("sys/fs/cgroup/a/cpu.max", "150000 100000\n"),
    ]);
    let (cores, isa) = (hardware.cores, hardware.isa.join(" "));
    let arch = std::env::consts::ARCH;
    assert_eq!(
        hardware.to_string(),
        format!(
            "profile    lite\ncores      {cores} (control group grants 1.5)\nisa        {arch} {isa}\n\
             memory     16.0 GiB (control group grants 6.0 GiB)\navailable  6.0 GiB"
        )
    );
    assert_eq!(hardware.memory_bytes(), Some(6 << 30));
    #[cfg(target_arch = "x86_64")]
    assert_eq!(hardware.isa.contains(&"avx2"), std::arch::is_x86_feature_detected!("avx2"));
}

#[test]
fn limits_that_limit_nothing_are_none() {
    let with = |max: &str, quota: &str| {
        detect(&[
            ("proc/meminfo", "MemTotal: 1048576 kB\nMemAvailable: 1048576 kB\n"),
            ("proc/self/cgroup", "0::/../a\n"),
            ("sys/fs/cgroup/memory.max", max),
            ("sys/fs/cgroup/cpu.max", "400000 100000"),
            ("sys/fs/cgroup/a/cpu.max", quota),
        ])
    };
    assert_eq!(with("1073741824", "max 100000").limit_bytes, None, "as much as there is");
    assert_eq!(with("1073741823", "max 100000").limit_bytes, Some(1_073_741_823));
    for (quota, expected) in [
        ("max 100000", 4.0),
        ("0 100000", 4.0),
        ("100000 0", 4.0),
        ("500000 100000", 4.0),
        ("50000 100000", 0.5),
    ] {
        assert_eq!(with("max", quota).cpu_quota, Some(expected), "{quota}");
    }
}

#[test]
fn a_report_counts_shows_and_becomes_an_error() {
    let report = load("{\"id\": \"a\"}", "").unwrap_err();
    assert_eq!((report.errors, report.warnings, report.is_ok(), report.exit_code()), (1, 0, false, 2));
    let shown = report.to_string();
    assert!(shown.starts_with("models.json:1:27: error[no-files]: "), "{shown}");
    assert!(
        shown.contains("\n  at /models/0\n  help: ") && shown.ends_with("\n1 error, 0 warnings"),
        "{shown}"
    );
    let json: serde_json::Value = serde_json::from_str(&report.to_json()).unwrap();
    assert_eq!((&json["errors"], &json["problems"][0]["code"]), (&1.into(), &"no-files".into()));
    let message = report.problems[0].message.clone();
    let error = Error::from(report);
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert_eq!(error.to_string(), format!("registry: models.json:1:27: {message}"));

    let many: Vec<String> = (0..1001).map(|n| format!("{{\"id\": \"m{n}\"}}")).collect();
    let report = load(&many.join(","), "").unwrap_err();
    assert_eq!((report.errors, report.problems.len()), (1001, 1000));
    let shown = report.to_string();
    assert!(shown.ends_with("\nand 1 more\n1001 errors, 0 warnings"), "{}", &shown[shown.len() - 200..]);
    assert!(Error::from(report).to_string().ends_with(" (and 1000 more errors)"));
    let report = load(&many[..1000].join(","), "").unwrap_err();
    assert!(!report.to_string().contains(" more\n"));

    let absent = Registry::load(&Sources::new("/nothing/here/models.json")).unwrap_err();
    assert_eq!(Error::from(absent).kind(), ErrorKind::NotFound);
    let folder = Registry::load(&Sources::new(Path::new("/"))).unwrap_err();
    assert_eq!(Error::from(folder).kind(), ErrorKind::Io);
}

#[test]
fn warnings_are_shown_and_keep_nothing_from_being_used() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("models.json");
    std::fs::write(&path, r#"{"version": 1, "models": [{"id": "a", "files": [{"path": "a.gguf"}]}]}"#)
        .unwrap();
    let report = validate(&Sources::new(&path));
    assert_eq!((report.errors, report.warnings, report.is_ok(), report.exit_code()), (0, 1, true, 0));
    let shown = report.to_string();
    assert!(shown.contains(": warning[") && shown.ends_with("\n0 errors, 1 warning"), "{shown}");
    assert_eq!(Registry::load(&Sources::new(&path)).unwrap().warnings(), &report);
}

#[test]
fn what_a_registry_holds_can_be_asked_for() {
    let rest = r#", "aliases": {"s": "small"}, "groups": {"g": {"models": ["small"]}},
        "recommendations": {"r": {"models": ["large"]}}, "defaults": {"model": "large", "embedder": "vectors"}"#;
    let registry = load(THREE, rest).unwrap();
    assert_eq!(registry.models().len(), 3);
    assert_eq!(registry.aliases().iter().collect::<Vec<_>>(), [(&"s".to_owned(), &"small".to_owned())]);
    assert_eq!(registry.groups()["g"].models, ["small"]);
    assert_eq!(registry.recommendations()["r"].models, ["large"]);
    assert_eq!(registry.defaults().model.as_deref(), Some("large"));
    assert_eq!(registry.router_head(), None);
    let small = registry.model("s").unwrap();
    assert_eq!((small.id(), small.can("chat"), small.can("code")), ("small", true, false));
    assert!(small.speaks("en") && !small.speaks("fr"));
    assert!(small.location().unwrap().ends_with('s'));
    assert_eq!(
        registry.rows().iter().map(|row| row.id.as_str()).collect::<Vec<_>>(),
        ["small", "large", "vectors"]
    );
    // Without a length of context all that is asked for is counted.
    let vectors = registry.model("vectors").unwrap();
    assert_eq!(vectors.memory_bytes(1000), 64 * MIB);
    let fitting: Vec<_> = registry.fitting(166 * MIB, 2048).map(|model| model.id()).collect();
    assert_eq!(fitting, ["small", "vectors"]);
}
