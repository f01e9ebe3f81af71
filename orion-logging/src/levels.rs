//! Which component may say how much.

use orion_core::{Error, Result};
use tracing_subscriber::filter::{LevelFilter, Targets};

/// Said of everything, and of ORION's own crates.
pub(crate) const DEFAULT: &str = "warn,orion=info";
/// The same while the verbose switch is on.
pub(crate) const VERBOSE: &str = "info,orion=debug";

/// Reads `info,router=debug,hyper=off`: a level for everything, and levels of components. A component is a crate of
/// ORION without its prefix (`router`), or the start of a target (`orion_router::keyword`, `hyper`).
pub(crate) fn parse(text: &str) -> Result<Targets> {
    let mut targets = Targets::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (component, level) = match part.split_once('=') {
            Some((component, level)) => (Some(component.trim()), level.trim()),
            None => (None, part),
        };
        let level: LevelFilter = level.parse().map_err(|_| {
            let message = format!("{level:?} is no level; expected off, error, warn, info, debug or trace");
            Error::invalid(message).about(part.to_owned())
        })?;
        targets = match component {
            None => targets.with_default(level),
            Some("") => return Err(Error::invalid("a component without name").about(part.to_owned())),
            Some(name) if name.starts_with("orion") || name.contains("::") => {
                targets.with_target(name, level)
            }
            Some(name) => targets.with_target(format!("orion_{name}"), level).with_target(name, level),
        };
    }
    Ok(targets)
}

/// The component a target belongs to: `orion_router::keyword` is `router`.
pub(crate) fn component(target: &str) -> &str {
    let first = target.split("::").next().unwrap_or(target);
    match first.strip_prefix("orion") {
        Some("") => "engine",
        Some(rest) => rest.trim_start_matches('_'),
        None => first,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing::Level;

    #[test]
    fn the_longest_name_wins_and_components_need_no_prefix() {
        let levels = parse("warn, orion=info, router=debug,orion_loader::http=trace,hyper=off").unwrap();
        assert!(levels.would_enable("orion_router::keyword", &Level::DEBUG));
        assert!(!levels.would_enable("orion_loader", &Level::DEBUG));
        assert!(levels.would_enable("orion_loader::http", &Level::TRACE));
        assert!(levels.would_enable("other", &Level::WARN) && !levels.would_enable("other", &Level::INFO));
        assert!(!levels.would_enable("hyper", &Level::ERROR));
    }

    #[test]
    fn nonsense_is_refused_with_its_place() {
        for bad in ["loud", "router=loud", "=info"] {
            assert!(parse(bad).unwrap_err().to_string().starts_with(bad), "{bad}");
        }
    }

    #[test]
    fn components_are_crates() {
        for (target, expected) in [
            ("orion_router::keyword", "router"),
            ("orion", "engine"),
            ("orion::perf", "engine"),
            ("hyper::client", "hyper"),
        ] {
            assert_eq!(component(target), expected);
        }
    }
}
