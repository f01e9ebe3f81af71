#![allow(missing_docs)]
use orion_core::*;
#[derive(Debug)] pub struct Tokenizer;
#[derive(Debug)] pub struct Detokenizer;
#[derive(Debug, Clone, Copy)] pub enum SpecialTokens { Plain, Parse }
impl Tokenizer {
  pub fn from_header(_: &ModelHeader) -> Result<Option<Self>> { Ok(None) }
  #[must_use] pub fn vocab_size(&self) -> usize { 0 }
  pub fn encode_with_bos(&self, _: &str, _: SpecialTokens) -> Result<Vec<TokenId>> { Ok(vec![]) }
  pub fn encode_segments(&self, _: &[(String,bool)]) -> Result<Vec<TokenId>> { Ok(vec![]) }
  #[must_use] pub fn is_end_of_generation(&self, _: TokenId) -> bool { false }
  #[must_use] pub fn detokenizer(&self) -> Detokenizer { Detokenizer }
}
impl Detokenizer { pub fn push(&mut self, _: TokenId) -> Result<String> { Ok(String::new()) } pub fn finish(&mut self) -> String { String::new() } }
impl Tokenizer { #[must_use] pub fn bos(&self) -> Option<TokenId> { None } #[must_use] pub fn add_bos(&self) -> bool { false } }
