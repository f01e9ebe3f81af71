//! What fuzz targets share.

/// Lets libraries panic where ORION catches it and answers with an error; a panic of ORION's own code still ends the
/// run, caught or not, and so does one that leaves the target.
pub fn forgive_caught_panics_of_libraries() {
    let end_the_run = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if panic.location().is_none_or(|place| place.file().contains("orion-")) {
            end_the_run(panic);
        }
    }));
}
