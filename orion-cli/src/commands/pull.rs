use clap::Args;
use orion::Result;
use serde_json::json;

use crate::output;
use crate::source::{FetchArgs, Location, resolve};

#[derive(Debug, Args)]
pub(crate) struct Pull {
    /// A URL, hf://org/name@revision/file, an id of the registry, or a path, which is only checked
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
        let named = self.fetch.find(&self.model)?;
        let files = match resolve(&named.location)? {
            Location::Remote(url) => self.fetch.loader()?.pull(url)?,
            Location::Local(path) => {
                self.fetch.open_named(&named)?;
                vec![path.to_owned()]
            }
        };
        if self.json {
            return output::print_json(&json!({ "files": files }));
        }
        files.iter().try_for_each(|file| output::print(&format!("{}\n", file.display())))
    }
}
