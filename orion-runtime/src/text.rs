//! Between text and tokens: what a model's vocabulary and chat template do to a prompt.

use std::sync::{Mutex, PoisonError};

use orion_core::{Constraint, Error, ErrorKind, Generation, Message, ModelHeader, Prompt, Result, TokenId};

use crate::constraint::{Constraints, Follow};
use crate::template::{ChatTemplate, RenderOptions};
use crate::tokenizer::{Detokenizer, SpecialTokens, Tokenizer};

/// A model's vocabulary and chat template; either may be missing.
#[derive(Debug)]
pub struct TextCodec {
    tokenizer: Option<Tokenizer>,
    template: Option<ChatTemplate>,
    vocab_size: usize,
    /// Made when the first constraint comes: it takes a copy of the vocabulary.
    constraints: Mutex<Option<Constraints>>,
}

impl TextCodec {
    /// Reads both from a model's header.
    ///
    /// # Errors
    /// [`Corrupt`](ErrorKind::Corrupt) or [`Unsupported`](ErrorKind::Unsupported) for a vocabulary that is there but
    /// cannot be used.
    pub fn from_header(header: &ModelHeader, vocab_size: usize) -> Result<Self> {
        let tokenizer = match Tokenizer::from_header(header) {
            Ok(tokenizer) => Some(tokenizer),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        if let Some(tokenizer) = &tokenizer
            && tokenizer.vocab_size() > vocab_size
        {
            let size = tokenizer.vocab_size();
            return Err(Error::corrupt(format!("{size} tokens, but the embedding has {vocab_size} rows"))
                .about("vocabulary"));
        }
        let template = ChatTemplate::from_header(header)?;
        Ok(Self { tokenizer, template, vocab_size, constraints: Mutex::default() })
    }

    /// The vocabulary.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) if the model's files hold none.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        let missing =
            || Error::new(ErrorKind::NotFound, "the model's files hold no tokenizer; give token ids");
        self.tokenizer.as_ref().ok_or_else(missing)
    }

    /// The chat template.
    #[must_use]
    pub fn template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref()
    }

    /// The tokens of a prompt.
    ///
    /// # Errors
    /// [`InvalidInput`](ErrorKind::InvalidInput) for an id outside the vocabulary or a chat without a template,
    /// [`Template`](ErrorKind::Template) for a template that fails.
    pub fn encode(&self, generation: &Generation) -> Result<Vec<TokenId>> {
        let tokens = match &generation.prompt {
            Prompt::Tokens(tokens) => tokens.clone(),
            Prompt::Text(text) => self.tokenizer()?.encode_framed(text, SpecialTokens::Plain)?,
            Prompt::Chat(messages) => self.encode_chat(messages)?,
            other => return Err(Error::unsupported(format!("prompt {other:?}"))),
        };
        if tokens.is_empty() {
            return Err(Error::invalid("the prompt has no tokens"));
        }
        self.check(&tokens)?;
        Ok(tokens)
    }

    /// Begins an answer that follows `constraint`.
    pub(crate) fn follow(&self, constraint: &Constraint) -> Result<Follow> {
        let tokenizer = self.tokenizer()?;
        // A panic elsewhere leaves them made or not made.
        let mut constraints = self.constraints.lock().unwrap_or_else(PoisonError::into_inner);
        let made = match constraints.take() {
            Some(made) => made,
            None => Constraints::new(tokenizer, self.vocab_size)?,
        };
        constraints.insert(made).start(constraint)
    }

    /// Refuses ids outside the vocabulary.
    pub(crate) fn check(&self, tokens: &[TokenId]) -> Result<()> {
        match tokens.iter().find(|token| token.index() >= self.vocab_size) {
            Some(token) => {
                Err(Error::invalid(format!("token {token} is outside the vocabulary of {}", self.vocab_size)))
            }
            None => Ok(()),
        }
    }

    fn encode_chat(&self, messages: &[Message]) -> Result<Vec<TokenId>> {
        let tokenizer = self.tokenizer()?;
        let template = self.template.as_ref().ok_or_else(ChatTemplate::missing)?;
        tokenizer.encode_prompt(&template.render(tokenizer, messages, &RenderOptions::default())?)
    }

    /// Whether the model ends its turn with `token`.
    pub(crate) fn ends_turn(&self, token: TokenId) -> bool {
        self.tokenizer.as_ref().is_some_and(|tokenizer| tokenizer.is_end_of_generation(token))
    }

    /// The text that `token` completes; without a vocabulary there is none.
    pub(crate) fn detokenize(&self, detokenizer: &mut Detokenizer, token: TokenId) -> String {
        self.tokenizer.as_ref().map(|tokenizer| detokenizer.push(tokenizer, token)).unwrap_or_default()
    }
}
