//! Fetches a model into a cache: `cargo run -p orion-loader --example pull -- LOCATION CACHE_DIRECTORY`.
#![allow(clippy::print_stdout, reason = "printing is what it does")]

use orion_loader::{Loader, LoaderOptions};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(location), Some(directory)) = (arguments.next(), arguments.next()) else {
        return Err("usage: pull LOCATION CACHE_DIRECTORY".into());
    };
    let options = LoaderOptions::new().cache_directory(directory).on_progress(|progress| {
        println!("{:?} {} {} of {:?}", progress.phase, progress.url, progress.bytes, progress.total);
    });
    for path in Loader::new(options)?.pull(&location)? {
        println!("{}", path.display());
    }
    Ok(())
}
