//! What an engine has to do with its whole process: the log, and signals.
#![allow(clippy::unwrap_used, reason = "in a test a panic is a failure")]
#![allow(clippy::print_stdout, reason = "the child tells its parent")]

#[allow(dead_code, reason = "each test uses a part")]
mod fakes;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use fakes::{LONG, Stage, builder, spec};
use orion::logging::{Logging, Rotation};
use orion::{EngineEvent, ErrorKind};
use rustix::process::{Pid, Signal, kill_process};

#[test]
fn an_engine_that_logs_to_a_file_has_written_everything_once_it_is_shut_down() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("orion.log");
    let logging = || Logging::builder().ignore_environment().quiet().file(path.clone(), Rotation::never());
    let stage = Stage::new();
    let engine = builder(&stage, [spec("m")]).logging(logging()).build().unwrap();
    for n in 0..20 {
        engine.infer(format!("{n}")).unwrap();
    }
    engine.log().unwrap().set_levels("off").unwrap();
    engine.infer("not heard").unwrap();
    engine.shutdown(LONG);
    let text = std::fs::read_to_string(&path).unwrap();
    let ends = text.lines().filter(|line| line.contains(r#""outcome":"done""#));
    assert_eq!(ends.count(), 20, "{text}");

    let stage = Stage::new();
    let broken = builder(&stage, [spec("m")]).logging(logging().levels("no such level!")).build();
    assert_eq!(broken.unwrap_err().kind(), ErrorKind::InvalidInput);
}

const GRACE: &str = "ORION_TEST_GRACE_MS";

/// A program that serves until it is told to end: eight requests run and fifty wait.
#[test]
#[ignore = "the program that the tests below start"]
fn serves_until_a_signal() {
    let grace = Duration::from_millis(std::env::var(GRACE).unwrap().parse().unwrap());
    let (to, told) = channel();
    let again = AtomicBool::new(false);
    ctrlc::set_handler(move || {
        if again.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
        to.send(()).unwrap();
    })
    .unwrap();
    let stage = Stage::new();
    stage.script("m", |turn| {
        turn.started();
        turn.say("begun");
        turn.until_cancelled();
        Ok(())
    });
    let engine = builder(&stage, [spec("m")]).parallel(8).build().unwrap();
    let mut running: Vec<_> = (0..8).map(|n| engine.stream(format!("running {n}"))).collect();
    for stream in &mut running {
        assert!(stream.by_ref().any(|event| matches!(event, EngineEvent::Token { .. })));
    }
    let queued: Vec<_> = (0..50).map(|n| engine.stream(format!("queued {n}"))).collect();
    println!("\nready");
    told.recv_timeout(LONG).unwrap();
    let closing = engine.clone();
    let closed = std::thread::spawn(move || closing.shutdown(grace));
    for stream in queued {
        assert_eq!(stream.answer().unwrap_err().kind(), ErrorKind::Rejected);
    }
    println!("fifty are turned away");
    for stream in running {
        assert_eq!(stream.answer().unwrap().text, "begun");
    }
    let drained = closed.join().unwrap();
    assert_eq!((drained.rejected, drained.finished, drained.aborted), (50, 0, 8));
    println!("everyone has an answer");
}

/// The program, once it serves, and what it says from then on.
fn serving(grace: Duration) -> (Child, impl FnMut(&str) -> bool) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "serves_until_a_signal", "--nocapture", "--test-threads=1"])
        .env(GRACE, grace.as_millis().to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut says = move |wanted: &str| lines.any(|line| line.unwrap() == wanted);
    assert!(says("ready"));
    (child, says)
}

fn terminate(child: &Child) {
    kill_process(Pid::from_child(child), Signal::TERM).unwrap();
}

#[test]
fn a_signal_drains_the_engine_and_the_program_ends_well() {
    let (mut child, mut says) = serving(Duration::from_millis(300));
    terminate(&child);
    assert!(says("fifty are turned away") && says("everyone has an answer"));
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_second_signal_ends_the_program_at_once() {
    let (mut child, mut says) = serving(LONG);
    terminate(&child);
    assert!(says("fifty are turned away"));
    let start = Instant::now();
    terminate(&child);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    println!("gone after {:?}", start.elapsed());
    assert!(!says("everyone has an answer"));
}
