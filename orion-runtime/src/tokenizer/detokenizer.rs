//! Token ids back to text, one at a time.

use orion_core::TokenId;

use super::Tokenizer;

/// Turns a stream of tokens into text. Holds back the bytes of a character that is not complete yet, so every
/// piece is valid UTF-8, and all pieces together are the lossy decoding of all bytes.
///
/// Control tokens yield nothing.
#[derive(Debug, Clone, Default)]
pub struct Detokenizer {
    pending: Vec<u8>,
    trim_space: bool,
}

impl Detokenizer {
    /// For tokens that begin a text: the space that the vocabulary puts before every text is taken off.
    #[must_use]
    pub fn new(tokenizer: &Tokenizer) -> Self {
        Self { pending: Vec::new(), trim_space: tokenizer.puts_space_first() }
    }

    /// For tokens that continue a text.
    #[must_use]
    pub fn continuing() -> Self {
        Self::default()
    }

    /// The text that `token` completes; often empty. A token that the vocabulary does not have yields nothing.
    pub fn push(&mut self, tokenizer: &Tokenizer, token: TokenId) -> String {
        if tokenizer.is_control(token) {
            return String::new();
        }
        let bytes = tokenizer.token_bytes(token).unwrap_or_default();
        let bytes = match bytes.strip_prefix(b" ") {
            Some(rest) if self.trim_space => rest,
            _ => &bytes,
        };
        self.trim_space = false;
        self.pending.extend_from_slice(bytes);
        self.take_complete()
    }

    /// Ends the stream: U+FFFD if it stopped inside a character, else nothing.
    #[must_use]
    pub fn finish(self) -> String {
        String::from_utf8_lossy(&self.pending).into_owned()
    }

    fn take_complete(&mut self) -> String {
        let mut text = String::new();
        let mut rest = self.pending.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                    break;
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(valid));
                    rest = after;
                    let Some(invalid) = error.error_len() else { break };
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = &rest[invalid..];
                }
            }
        }
        let kept = self.pending.len() - rest.len();
        self.pending.drain(..kept);
        text
    }
}
