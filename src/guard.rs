//! What is refused before it costs anything, and what may watch an answer.

use orion_core::{Error, Prompt, Result};

use crate::request::Request;

/// A program's own rules for what goes in and comes out. Both are called on the request's way and must be quick.
///
/// ```
/// use orion::{Error, Guardrail, Request, Result};
/// struct NoSecrets;
/// impl Guardrail for NoSecrets {
///     fn input(&self, request: &Request) -> Result<()> {
///         match request.last_user_turn().contains("launch code") {
///             true => Err(Error::invalid("not about launch codes")),
///             false => Ok(()),
///         }
///     }
/// }
/// ```
pub trait Guardrail: Send + Sync {
    /// Looks at a request before anything is done for it.
    ///
    /// # Errors
    /// Why it is refused; the request ends as rejected with it.
    fn input(&self, request: &Request) -> Result<()> {
        let _ = request;
        Ok(())
    }

    /// Looks at an answer as it grows: `text` is all of it, its last `piece` has not reached the caller yet.
    ///
    /// # Errors
    /// Why it ends here; the piece is withheld and the request fails with it.
    fn output(&self, text: &str, piece: &str) -> Result<()> {
        let _ = (text, piece);
        Ok(())
    }
}

/// Bounds on what is taken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct InputLimits {
    /// Most bytes of a prompt, all turns together. Default 4 MiB.
    pub prompt_bytes: usize,
    /// Most turns of a conversation. Default 4096.
    pub messages: usize,
    /// Whether control characters other than tab, line feed and carriage return may stand in a prompt. Default no.
    pub control_characters: bool,
}

impl Default for InputLimits {
    fn default() -> Self {
        Self { prompt_bytes: 4 << 20, messages: 4096, control_characters: false }
    }
}

impl InputLimits {
    /// Checks a request against the bounds and against what no model could do.
    ///
    /// # Errors
    /// [`InvalidInput`](orion_core::ErrorKind::InvalidInput) with what was given and what is allowed.
    pub(crate) fn check(&self, request: &Request) -> Result<()> {
        let bytes = request.bytes();
        if bytes > self.prompt_bytes {
            let most = self.prompt_bytes;
            return Err(Error::invalid(format!("the prompt has {bytes} bytes, at most {most} are taken")));
        }
        if let Some(sampling) = &request.sampling {
            sampling.validate()?;
        }
        let mut probe = orion_core::Generation::new(Prompt::Text("x".into()));
        probe.stop.clone_from(&request.stop);
        probe.logprobs = request.logprobs;
        probe.validate()?;
        match &request.prompt {
            Prompt::Chat(messages) => {
                if messages.len() > self.messages {
                    let (given, most) = (messages.len(), self.messages);
                    return Err(Error::invalid(format!(
                        "{given} turns were given, at most {most} are taken"
                    )));
                }
                if messages.iter().all(|message| message.content.trim().is_empty()) {
                    return Err(Error::invalid("the prompt is empty"));
                }
                messages.iter().enumerate().try_for_each(|(turn, message)| {
                    self.characters(&message.content).map_err(|error| error.about(format!("turn {turn}")))
                })
            }
            Prompt::Text(text) if text.is_empty() => Err(Error::invalid("the prompt is empty")),
            Prompt::Text(text) => self.characters(text),
            Prompt::Tokens(tokens) if tokens.is_empty() => Err(Error::invalid("the prompt is empty")),
            _ => Ok(()),
        }
    }

    fn characters(&self, text: &str) -> Result<()> {
        let control = |c: char| c.is_control() && !matches!(c, '\t' | '\n' | '\r');
        match text.char_indices().find(|(_, c)| control(*c)) {
            Some((at, c)) if !self.control_characters => {
                Err(Error::invalid(format!("control character U+{:04X} at byte {at}", u32::from(c))))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use orion_core::{Message, Role, SamplingParams};

    #[test]
    fn each_bound_is_named_with_its_figures() {
        let limits = InputLimits { prompt_bytes: 10, messages: 2, ..InputLimits::default() };
        let turns = |n| Request::chat(vec![Message::new(Role::User, "x"); n]);
        let cases = [
            (Request::new("12345678901"), "the prompt has 11 bytes, at most 10 are taken"),
            (turns(3), "3 turns were given, at most 2 are taken"),
            (Request::new(" \n"), "the prompt is empty"),
            (Request::completion(""), "the prompt is empty"),
            (Request::of(Prompt::Tokens(Vec::new())), "the prompt is empty"),
            (Request::new("a\u{0}b"), "turn 0: control character U+0000 at byte 1"),
            (Request::completion("é\u{1b}"), "control character U+001B at byte 2"),
            (Request::new("x").stop(""), "a stop string is empty"),
            (Request::new("x").logprobs(21), "logprobs is 21, expected at most 20"),
        ];
        for (request, message) in cases {
            assert_eq!(limits.check(&request).unwrap_err().to_string(), message);
        }
        let mut hot = SamplingParams::default();
        hot.temperature = -1.0;
        assert!(limits.check(&Request::new("x").sampling(hot)).is_err());
        assert!(limits.check(&Request::new("tab\tnl\r\n")).is_ok() && limits.check(&turns(2)).is_ok());
        let open = InputLimits { control_characters: true, ..limits };
        assert!(open.check(&Request::new("a\u{0}b")).is_ok());
    }
}
