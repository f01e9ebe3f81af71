//! `orion-registry` alone: a registry is checked, asked and found wanting.

use orion_registry::{Hardware, Need, Registry, Sources};

fn main() {
    let text = r#"{"version": 1, "models": [
        {"id": "small", "files": [{"path": "small.gguf", "bytes": 98362432}], "capabilities": ["chat"]},
        {"id": "poet", "base": "small", "capabilities": ["poetry"], "fallback": ["small"]}
    ], "aliases": {"default": "small"}}"#;
    let registry = Registry::load(&Sources::text("models.json", text)).expect("a valid registry");
    assert_eq!(registry.model("default").map(|model| model.id()), Some("small"));
    let advice = registry.recommend(&Hardware::detect(), &Need::capability("poetry")).expect("one can");
    assert_eq!(advice.best(), Some("poet"));

    let broken = text.replace(r#"["small"]"#, r#"["smal"]"#);
    let report = Registry::load(&Sources::text("models.json", broken)).expect_err("no such fallback");
    assert_eq!(report.errors, 1);
    println!("registry: {} error, {} problems in all", report.errors, report.problems.len());
}
