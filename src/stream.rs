//! Generations as iterators.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam_channel::{Receiver, Sender, unbounded};
use orion_core::{
    CancelToken, Completion, Error, ErrorKind, Flow, Generation, GenerationEvent, Job, Model, Result,
    TokenSink,
};

/// Events a consumer may leave unread before its generation pauses.
const UNREAD: usize = 256;

/// The events of one generation, in order; the last is [`GenerationEvent::Done`] or [`GenerationEvent::Failed`].
///
/// Dropping the stream cancels the generation. A stream that is not read pauses its generation after a while, and only
/// its own.
#[derive(Debug)]
pub struct TokenStream {
    events: Receiver<GenerationEvent>,
    unread: Arc<AtomicUsize>,
    cancel: CancelToken,
    ended: bool,
}

impl TokenStream {
    /// Ends the generation; what was generated until then comes in the final event.
    pub fn cancel(&self) {
        self.cancel.cancel();
    }

    /// The flag that [`cancel`](Self::cancel) sets, to be set from elsewhere.
    #[must_use]
    pub fn cancel_token(&self) -> CancelToken {
        self.cancel.clone()
    }

    /// Reads to the end.
    ///
    /// # Errors
    /// What the generation failed with.
    pub fn completion(mut self) -> Result<Completion> {
        for event in &mut self {
            match event {
                GenerationEvent::Done(completion) => return Ok(completion),
                GenerationEvent::Failed(error) => return Err(error),
                _ => {}
            }
        }
        Err(worker_ended())
    }
}

fn worker_ended() -> Error {
    Error::new(ErrorKind::Internal, "the model's worker ended without an answer")
}

impl Iterator for TokenStream {
    type Item = GenerationEvent;

    fn next(&mut self) -> Option<GenerationEvent> {
        if self.ended {
            return None;
        }
        let event = self.events.recv().unwrap_or_else(|_| GenerationEvent::Failed(worker_ended()));
        self.unread.fetch_sub(1, Ordering::AcqRel);
        self.ended = matches!(event, GenerationEvent::Done(_) | GenerationEvent::Failed(_));
        Some(event)
    }
}

impl Drop for TokenStream {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// The model's end of a stream.
struct StreamSink {
    events: Sender<GenerationEvent>,
    unread: Arc<AtomicUsize>,
}

impl TokenSink for StreamSink {
    fn event(&mut self, event: GenerationEvent) -> Flow {
        let unread = self.unread.fetch_add(1, Ordering::AcqRel) + 1;
        match self.events.send(event) {
            Err(_) => Flow::Stop,
            Ok(()) if unread >= UNREAD => Flow::Pause,
            Ok(()) => Flow::Continue,
        }
    }

    fn ready(&mut self) -> bool {
        self.unread.load(Ordering::Acquire) < UNREAD / 2
    }
}

/// What a caller does with a [`Model`].
pub trait ModelExt: Model {
    /// Starts a generation and returns its events as they come. Does not block.
    ///
    /// # Errors
    /// [`Rejected`](ErrorKind::Rejected) if the model takes no more work; all else comes as an event.
    fn stream(&self, generation: Generation) -> Result<TokenStream> {
        let (sender, events) = unbounded();
        let (unread, cancel) = (Arc::new(AtomicUsize::new(0)), CancelToken::new());
        let sink = StreamSink { events: sender, unread: unread.clone() };
        self.submit(Job::new(generation, sink).cancelled_by(cancel.clone()))?;
        Ok(TokenStream { events, unread, cancel, ended: false })
    }

    /// Generates and waits for the whole answer.
    ///
    /// # Errors
    /// What the generation failed with.
    fn generate(&self, generation: Generation) -> Result<Completion> {
        self.stream(generation)?.completion()
    }
}

impl<M: Model + ?Sized> ModelExt for M {}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (StreamSink, TokenStream) {
        let (sender, events) = unbounded();
        let (unread, cancel) = (Arc::new(AtomicUsize::new(0)), CancelToken::new());
        let sink = StreamSink { events: sender, unread: unread.clone() };
        (sink, TokenStream { events, unread, cancel, ended: false })
    }

    fn progress() -> GenerationEvent {
        GenerationEvent::Prefill { done: 1, total: 2 }
    }

    #[test]
    fn an_unread_stream_pauses_and_goes_on_when_read() {
        let (mut sink, mut stream) = pair();
        assert!((1..UNREAD).all(|_| sink.event(progress()) == Flow::Continue));
        assert_eq!(sink.event(progress()), Flow::Pause);
        assert!(!sink.ready());
        assert_eq!(stream.by_ref().take(UNREAD / 2 + 1).count(), UNREAD / 2 + 1);
        assert!(sink.ready());
    }

    #[test]
    fn dropping_the_stream_cancels_and_stops_the_model() {
        let (mut sink, stream) = pair();
        let cancel = stream.cancel_token();
        drop(stream);
        assert!(cancel.is_cancelled());
        assert_eq!(sink.event(progress()), Flow::Stop);
    }

    #[test]
    fn a_worker_that_vanishes_is_an_error_and_the_end() {
        let (sink, mut stream) = pair();
        drop(sink);
        assert!(matches!(stream.next(), Some(GenerationEvent::Failed(_))));
        assert!(stream.next().is_none());
    }
}
