use std::path::PathBuf;

use clap::Args;
use orion::Result;
use orion::pipeline::{Target, as_gguf, plan_quantize, quantize};

use super::recipe::{RecipeArgs, report_json, report_text};
use super::verify::VerifyArgs;
use super::work::{WorkArgs, refuse_same};
use crate::output;

#[derive(Debug, Args)]
pub(crate) struct Quantize {
    /// The model: a GGUF file, a safetensors file or index, or a directory
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// The GGUF file to write
    #[arg(value_name = "OUT")]
    output: PathBuf,
    #[command(flatten)]
    recipe: RecipeArgs,
    #[command(flatten)]
    verify: VerifyArgs,
    #[command(flatten)]
    work: WorkArgs,
}

impl Quantize {
    pub(crate) fn run(&self) -> Result<()> {
        let source = as_gguf(orion::loader::open(&self.input)?)?;
        refuse_same(&self.input, &self.output)?;
        self.work.refuse_existing(&self.output)?;
        let options = self.recipe.options(&*source, &self.work, Target::Bytes)?;
        let (report, verdict) = if self.work.dry_run {
            (plan_quantize(&*source, &options)?, None)
        } else {
            let report = quantize(&*source, &self.output, &options)?;
            (report, self.verify.compare(&self.input, &self.output)?)
        };
        if self.work.json {
            let mut value = report_json(&report);
            value["output"] = self.output.display().to_string().into();
            value["dry_run"] = self.work.dry_run.into();
            if let Some(verdict) = &verdict {
                value["verify"] = verdict.json();
            }
            return output::print_json(&value);
        }
        output::print(&report_text(&report, self.work.dry_run))?;
        verdict.map_or(Ok(()), |verdict| output::print(&format!("{verdict}\n")))
    }
}
