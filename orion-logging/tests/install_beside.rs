//! Installing where the program has a subscriber of its own.

use orion_logging::{Installed, Logging};

#[test]
fn the_programs_own_subscriber_stays() {
    tracing::subscriber::set_global_default(tracing_subscriber::registry()).unwrap();
    for _ in 0..2 {
        let handle = Logging::builder().ignore_environment().quiet().install().unwrap();
        assert_eq!(handle.installed(), Installed::Foreign);
        tracing::error!("goes to the program's own");
        assert!(handle.captured().is_empty());
    }
}
