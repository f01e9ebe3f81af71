//! What every gate must do.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Duration;

use super::at_once;
use crate::{Gate, ModelId, Operation, Outcome, Permit};

const SHORT: Duration = Duration::from_millis(1);
const BOTH: [Operation; 2] = [Operation::Load, Operation::Generate];

/// Checks a fresh gate.
///
/// A model that never failed may be called, however often it succeeded, was cancelled or had its permit dropped, and by several
/// threads; a permit can be settled by another thread, and after its gate has permitted others.
///
/// # Panics
/// With the law that was broken.
pub fn gate(gate: &dyn Gate) {
    let calm = ModelId::new("calm");
    at_once(|| {
        for round in 0..200 {
            for operation in BOTH {
                let permit = permitted(gate, &calm, operation, "never failed");
                match round % 3 {
                    0 => permit.settle(Outcome::Success, SHORT),
                    1 => permit.settle(Outcome::Ignored, SHORT),
                    _ => drop(permit),
                }
            }
        }
    });
    let early = permitted(gate, &calm, Operation::Generate, "never failed");
    permitted(gate, &calm, Operation::Generate, "never failed").settle(Outcome::Success, SHORT);
    std::thread::scope(|scope| {
        scope.spawn(move || early.settle(Outcome::Success, SHORT));
    });
    drop(permitted(gate, &ModelId::new(""), Operation::Load, "never failed"));
}

/// Checks a fresh gate that closes after failures: `failures` in a row at most, and opens again some time after. `wait` lets
/// that time pass, be it by sleeping or by moving a clock on.
///
/// The failures of one model or operation close no other; a permit dropped while its thread panics is a failure; who
/// is refused is told a time that is not zero, and once it has passed a success opens the gate for good.
///
/// # Panics
/// With the law that was broken.
pub fn breaking_gate(gate: &dyn Gate, failures: u32, wait: impl Fn(Duration)) {
    let [weak, panics, calm] = ["weak", "panics", "calm"].map(ModelId::new);
    let fail = |model: &ModelId, how: &dyn Fn(Box<dyn Permit>)| {
        for _ in 0..failures {
            match gate.acquire(model, Operation::Generate) {
                Ok(permit) => how(permit),
                Err(_) => return,
            }
        }
    };
    fail(&weak, &|permit| permit.settle(Outcome::Failure, SHORT));
    // Unwinds as a panic does, without its message.
    fail(&panics, &|permit| {
        let unwound = catch_unwind(AssertUnwindSafe(move || {
            let _held = permit;
            resume_unwind(Box::new("a worker's own defect"));
        }));
        assert!(unwound.is_err());
    });
    for model in [&weak, &panics] {
        let Err(refused) = gate.acquire(model, Operation::Generate) else {
            panic!("{model} failed {failures} times and may still be called");
        };
        assert_ne!(refused.retry_after, Some(Duration::ZERO), "refused, and told to try again at once");
        drop(permitted(gate, model, Operation::Load, "loads well; it is generating that fails"));
    }
    for operation in BOTH {
        drop(permitted(gate, &calm, operation, "never failed; others did"));
    }
    let wanted = gate.acquire(&weak, Operation::Generate).err().and_then(|refused| refused.retry_after);
    wait(wanted.expect("an automatic gate says when to try again"));
    permitted(gate, &weak, Operation::Generate, "has waited as long as it was told")
        .settle(Outcome::Success, SHORT);
    // One success, or a few probes.
    for _ in 0..20 {
        if let Ok(permit) = gate.acquire(&weak, Operation::Generate) {
            permit.settle(Outcome::Success, SHORT);
        }
    }
    drop(permitted(gate, &weak, Operation::Generate, "has recovered"));
}

fn permitted(gate: &dyn Gate, model: &ModelId, operation: Operation, why: &str) -> Box<dyn Permit> {
    gate.acquire(model, operation)
        .unwrap_or_else(|refused| panic!("{model:?}, {operation:?}: {why}; {refused}"))
}
