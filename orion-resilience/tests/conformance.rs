//! The conformance table, and its rows about permits again with 64 threads asking at once.
#![cfg(not(any(loom, shuttle)))]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[allow(dead_code, reason = "the example uses all of it")]
#[path = "../examples/breaker_replay/script.rs"]
mod script;

use std::sync::{Arc, Barrier};

use orion_resilience::{BreakerState, CircuitBreaker};
use script::{Replay, Row, Step};

const TABLE: &str = include_str!("data/breaker_rows.txt");
/// Rows we added: half-open, stale results and manual states in other combinations.
const MORE: &str = include_str!("data/more_rows.txt");

#[test]
fn every_row_of_the_table_passes() {
    let rows = script::parse(TABLE).unwrap();
    assert_eq!(rows.len(), 35);
    for row in rows {
        assert_eq!(script::replay(&row), Ok(()), "row {}", row.id);
    }
}

#[test]
fn every_row_of_ours_passes() {
    let rows = script::parse(MORE).unwrap();
    assert!(rows.len() >= 40, "{}", rows.len());
    for row in rows {
        assert_eq!(script::replay(&row), Ok(()), "row {}", row.id);
    }
}

/// Where `p`s and `r`s stand together, 64 threads ask at once: as many as there are `p`s must be permitted.
fn replay_contended(row: &Row) -> usize {
    let mut replay = Replay::new(row).unwrap();
    let steps: Vec<Step> = row.steps.iter().flat_map(|&(step, times)| vec![step; times as usize]).collect();
    let (mut at, mut contended) = (0, 0);
    while at < steps.len() {
        let asks = steps[at..].iter().take_while(|step| matches!(step, Step::Hold | Step::Refused)).count();
        let permits = steps[at..at + asks].iter().filter(|step| **step == Step::Hold).count();
        if asks == permits {
            replay.step(steps[at]).unwrap();
            at += 1;
            continue;
        }
        let barrier = Arc::new(Barrier::new(64));
        let threads: Vec<_> = (0..64)
            .map(|_| {
                let (breaker, barrier) = (Arc::clone(&replay.breaker), Arc::clone(&barrier));
                std::thread::spawn(move || {
                    barrier.wait();
                    CircuitBreaker::acquire_owned(&breaker).ok()
                })
            })
            .collect();
        let permitted: Vec<_> = threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect();
        assert_eq!(permitted.len(), permits, "row {} at step {}", row.id, at + 1);
        permitted.into_iter().for_each(|permit| replay.hold(permit));
        at += asks;
        contended += 1;
    }
    contended
}

#[test]
fn rows_about_permits_hold_with_64_threads() {
    let rows = [script::parse(TABLE).unwrap(), script::parse(MORE).unwrap()].concat();
    // A run of asks that begins in open and ends in half-open cannot be shuffled; rows have none such.
    let contended: usize = rows.iter().map(replay_contended).sum();
    assert!(contended >= 20, "{contended}");
}

#[test]
fn bad_lines_are_named() {
    let cases = [
        ("1|A|S", "found 3 of 4 fields"),
        ("|A|S|", "the id is empty"),
        ("1|D|S|", "config `D` is not one of"),
        ("1|A||", "the script is empty"),
        ("1|A|Q|", "step 1 `Q`: no such step"),
        ("1|A|S =X|", "step 2 `=X`: no such step"),
        ("1|A|!Q|", "no such step"),
        ("1|A|t|", "is not a number of seconds"),
        ("1|A|t-1|", "is not a number of seconds"),
        ("1|A|t1.|", "is not a number of seconds"),
        ("1|A|t1e3|", "is not a number of seconds"),
        ("1|A|t0.0000000001|", "is not a number of seconds"),
        ("1|A|t99999999999999999999|", "is not a number of seconds"),
        ("1|A|F*0|", "is not a count"),
        ("1|A|F*x|", "is not a count"),
        ("1|A|p s s|", "step 3: finishes a permit, but none is held"),
        ("", "no rows"),
    ];
    for (line, message) in cases {
        let errors = script::parse(line).unwrap_err();
        assert!(errors.len() == 1 && errors[0].contains(message), "{line}: {errors:?}");
    }
    let errors = script::parse("# fine\n\n1|A|S|ok\nnonsense\n2|Z|S|x\n").unwrap_err();
    assert!(errors[0].starts_with("line 4: ") && errors[1].starts_with("line 5: "), "{errors:?}");
}

#[test]
fn fractions_of_seconds_are_exact() {
    let rows = script::parse("1|A|t0.001 t5 t1.000000001 t0.5*3|").unwrap();
    let nanos: Vec<u128> = rows[0]
        .steps
        .iter()
        .map(|(step, _)| match step {
            Step::Advance(time) => time.as_nanos(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(nanos, [1_000_000, 5_000_000_000, 1_000_000_001, 500_000_000]);
    assert_eq!(rows[0].steps[3].1, 3);
}

#[test]
fn a_wrong_row_says_where_and_what() {
    let fails = |script: &str| {
        let rows = script::parse(&format!("7|A|{script}|")).unwrap();
        script::replay(&rows[0]).unwrap_err().to_string()
    };
    assert_eq!(fails("F*5 =C"), "FAIL at step 2: expected state closed, got state open");
    assert_eq!(fails("F*6"), "FAIL at step 1: expected a permit, got a refusal in state open");
    assert_eq!(fails("S p r"), "FAIL at step 3: expected a refusal, got a permit in state closed");
    let name = |state: BreakerState| state.to_string();
    assert_eq!(
        fails("!K =D"),
        format!("FAIL at step 2: expected state disabled, got state {}", name(BreakerState::ForcedOpen))
    );
}

#[test]
fn the_tool_answers_with_its_exit_status() {
    let all = script::report("rows", TABLE);
    assert_eq!((all.status, all.output.lines().last(), all.errors.as_str()), (0, Some("35 of 35 pass"), ""));
    assert_eq!(all.output.lines().next(), Some("1 pass"));
    let one = script::report("rows", "a|C|F*6 =C|\n\n# comment\nb|C|P|\n");
    assert_eq!(one.status, 1);
    assert_eq!(one.output, "a FAIL at step 2: expected state closed, got state open\nb pass\n1 of 2 pass\n");
    let bad = script::report("rows", "a|C|F|\nrubbish\n");
    assert_eq!((bad.status, bad.output.as_str()), (2, ""));
    assert_eq!(bad.errors, "rows: line 2: expected id|config|script|anchor, found 1 of 4 fields\n");
}
