//! The same stream, awaited: any async runtime will do, here the smallest there is.
//! `cargo run --release --example async_stream`

#![allow(clippy::print_stdout, reason = "an example talks to the person who runs it")]

use std::future::{Future, poll_fn};
use std::io::Write;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;

use futures_core::Stream;
use orion::{AnswerStream, Engine, EngineEvent, Request};

/// An async runtime: polls, and sleeps until it is woken.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(value) => return value,
            Poll::Pending => std::thread::park(),
        }
    }
}

async fn next(stream: &mut AnswerStream) -> Option<EngineEvent> {
    poll_fn(|context| Pin::new(&mut *stream).poll_next(context)).await
}

async fn talk(engine: &Engine) -> orion::Result<()> {
    let mut stream = engine.stream(Request::new("What is a lighthouse for?").max_tokens(60));
    while let Some(event) = next(&mut stream).await {
        match event {
            EngineEvent::Token { text, .. } => {
                print!("{text}");
                std::io::stdout().flush().map_err(|error| orion::Error::io(error, "standard output"))?;
            }
            EngineEvent::Done(answer) => println!("\n[{}]", answer.report),
            EngineEvent::Failed { error, .. } => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn main() -> orion::Result<()> {
    let model = orion_testkit::models::smollm2();
    let engine = Engine::builder().model("smollm2", model.to_string_lossy()).build()?;
    block_on(talk(&engine))
}
