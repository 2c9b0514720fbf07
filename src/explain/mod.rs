//! What the evidence means: which line it was, why it was held, and what to write instead.
//!
//! *Runs on:* the reporter thread. `stack` also on `stall-explainer`, a thread made for one stack that takes
//! long, and on whoever asks for [`worker_stacks`](crate::Guard::worker_stacks).
//! *Here:* no unsafe; raw evidence in, words out. Slow the first time, when it reads debug information.

#![forbid(unsafe_code)]

pub(crate) mod advice;
mod cause;
mod own_code;

// Where `capture::stack` takes none, there is none to explain: the same condition.
#[cfg_attr(
    not(all(
        feature = "stacks",
        target_os = "linux",
        any(target_arch = "x86_64", target_arch = "aarch64"),
        not(loom)
    )),
    path = "no_stack.rs"
)]
mod stack;
pub(crate) use cause::{SleptIn, cause};
pub(crate) use own_code::OwnCode;
pub(crate) use stack::Explainer;

use crate::detect::StackVerdict;
use crate::report::{Frame, Origin};

/// A stack, unwound and named.
#[derive(Debug)]
pub(crate) struct Explained {
    /// Innermost first.
    pub(crate) frames: Vec<Frame>,
    /// It was followed to the thread's root.
    pub(crate) complete: bool,
    /// It was deeper than what was copied.
    pub(crate) truncated: bool,
    /// It came to a call that nothing explains.
    pub(crate) lost: bool,
}

/// What the stack says of the worker that its thread is taken to drive. Nothing, if functions have no
/// names here.
pub(crate) fn shown(explained: &Explained) -> Option<StackVerdict> {
    let frames = &explained.frames;
    let passes = |part: &str| {
        let tokio = |name: &&str| name.starts_with("tokio::") || name.starts_with("<tokio::");
        let mut names = frames.iter().filter_map(|frame| frame.function.as_deref());
        names.any(|name| tokio(&name) && name.contains(part))
    };
    if passes("block_in_place") {
        return Some(StackVerdict::Detached);
    }
    if is_parked(frames) {
        return Some(StackVerdict::Parked);
    }
    // The scheduler's own functions: the user's call of `block_on` may be to another runtime.
    let loops = [
        "scheduler::current_thread::",
        "scheduler::multi_thread::worker::",
    ];
    if loops.into_iter().any(passes) {
        return Some(StackVerdict::Driving);
    }
    // That none is there says something only where inlined functions would be seen, or the pool is.
    let is_named = |frame: &Frame| frame.origin == Origin::Runtime && frame.file.is_some();
    let all_seen = frames.iter().any(is_named) || passes("blocking::pool::");
    (explained.complete && all_seen).then_some(StackVerdict::Detached)
}

/// Whether the thread waits in the runtime's own driver, or for its turn there: for something to do. A
/// worker that is busy is not the one it waits for.
fn is_parked(frames: &[Frame]) -> bool {
    let mut names = frames.iter().filter_map(|frame| frame.function.as_deref());
    let waits = [
        "driver::Driver::",
        "driver::IoStack::",
        "time::Driver::",
        "::park_internal",
        "::park_condvar",
        "::park_driver",
    ];
    // Locks and the like are under a name of tokio's own.
    names
        .find(|name| {
            let tokio = name.starts_with("tokio::") || name.starts_with("<tokio::");
            tokio && !name.contains("tokio::loom::")
        })
        .is_some_and(|name| waits.iter().any(|part| name.contains(part)))
}
