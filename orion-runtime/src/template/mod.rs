#![allow(missing_docs)]
use orion_core::*;
#[derive(Debug)] pub struct ChatTemplate;
#[derive(Debug)] pub struct RenderOptions;
impl RenderOptions { pub fn new(_: &crate::Tokenizer) -> Self { Self } }
impl ChatTemplate {
  pub fn from_header(_: &ModelHeader) -> Result<Option<Self>> { Ok(None) }
  pub fn render(&self, _: &[Message], _: &RenderOptions) -> Result<Vec<(String,bool)>> { Ok(vec![]) }
}
