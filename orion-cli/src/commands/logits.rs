use clap::Args;
use orion::Result;
use orion::runtime::{Positions, top_logits};
use serde_json::{Value, json};

use super::model::{ModelArgs, parse_tokens};
use crate::output;

/// Candidates printed for each position.
const TOP: usize = 20;

#[derive(Debug, Args)]
pub(crate) struct Logits {
    #[command(flatten)]
    model: ModelArgs,
    /// The token ids, as 1,2,3; nothing is added to them
    #[arg(long, value_name = "IDS")]
    tokens: String,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Logits {
    pub(crate) fn run(&self) -> Result<()> {
        let tokens = parse_tokens(&self.tokens)?;
        let model = self.model.open()?;
        let mut positions = Vec::with_capacity(tokens.len());
        model.evaluate(&tokens, Positions::All, |position, logits| {
            positions.push((position, top_logits(logits, TOP)));
        })?;
        if self.json {
            let positions: Vec<Value> = positions
                .iter()
                .map(|(position, top)| {
                    let top: Vec<Value> =
                        top.iter().map(|(id, logit)| json!({ "id": id, "logit": logit })).collect();
                    json!({ "position": position, "top": top })
                })
                .collect();
            return output::print_json(&json!({ "positions": positions }));
        }
        for (position, top) in positions {
            let top: Vec<String> =
                top.iter().take(5).map(|(id, logit)| format!("{id}: {logit:.4}")).collect();
            output::print(&format!("{position:>5}  {}\n", top.join("  ")))?;
        }
        Ok(())
    }
}
