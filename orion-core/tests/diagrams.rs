//! The diagrams in the README are rendered from the tables and must not drift from them.

use orion_core::state::{request_diagram, residency_diagram};

#[test]
fn the_readme_shows_the_tables() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
    let readme = std::fs::read_to_string(path).unwrap();
    let mut want = readme.clone();
    for (name, diagram) in
        [("request-diagram", request_diagram()), ("residency-diagram", residency_diagram())]
    {
        let (open, close) = (format!("<!-- {name} -->\n"), format!("<!-- /{name} -->"));
        let start = want.find(&open).expect("the opening marker stands in the README") + open.len();
        let end = want.find(&close).expect("the closing marker stands in the README");
        want.replace_range(start..end, &format!("```mermaid\n{diagram}```\n"));
    }
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(path, &want).unwrap();
    }
    assert_eq!(std::fs::read_to_string(path).unwrap(), want, "run with BLESS=1 to rewrite the diagrams");
}
