use clap::Args;
use orion::Result;
use serde_json::json;

use crate::output;
use crate::source::{FetchArgs, Location, resolve};

#[derive(Debug, Args)]
pub(crate) struct Pull {
    /// A URL, hf://org/name@revision/file, or a path, which is only checked
    #[arg(value_name = "MODEL")]
    model: String,
    #[command(flatten)]
    fetch: FetchArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Pull {
    pub(crate) fn run(&self) -> Result<()> {
        let files = match resolve(&self.model)? {
            Location::Remote(url) => self.fetch.loader()?.pull(url)?,
            Location::Local(path) => {
                self.fetch.open(&self.model)?;
                vec![path.to_owned()]
            }
        };
        if self.json {
            return output::print_json(&json!({ "files": files }));
        }
        files.iter().try_for_each(|file| output::print(&format!("{}\n", file.display())))
    }
}
