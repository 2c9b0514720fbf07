//! What the evidence means: which line it was, why it was held, and what to write instead.
//!
//! *Runs on:* the reporter thread.
//! *Here:* no unsafe; raw evidence in, words out. Slow the first time, when it reads debug information.

#![forbid(unsafe_code)]

pub(crate) mod advice;
pub(crate) mod cause;
pub(crate) mod site;

#[cfg_attr(
    all(
        feature = "stacks",
        target_os = "linux",
        any(target_arch = "x86_64", target_arch = "aarch64"),
        not(loom)
    ),
    path = "stack/mod.rs"
)]
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
pub(crate) use stack::Explainer;

use crate::report::{Frame, Origin};
use crate::watchdog::detector::Shown;

/// A stack, unwound and named.
#[derive(Debug)]
pub(crate) struct Explained {
    /// Innermost first.
    pub(crate) frames: Vec<Frame>,
    /// It was followed to the thread's root.
    pub(crate) complete: bool,
    /// It was deeper than what was copied.
    pub(crate) truncated: bool,
}

/// How much may be done to explain a stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effort {
    /// Only what takes less than a millisecond: places whose names are known.
    Little,
    /// Whatever it takes: debug information may have to be read.
    Any,
}

/// What the stack says of the worker that its thread is taken to drive. Nothing, if functions have no
/// names here.
pub(crate) fn shown(frames: &[Frame]) -> Option<Shown> {
    let passes = |part: &str| {
        let tokio = |name: &&str| name.starts_with("tokio::") || name.starts_with("<tokio::");
        let mut names = frames.iter().filter_map(|frame| frame.function.as_deref());
        names.any(|name| tokio(&name) && name.contains(part))
    };
    if passes("block_in_place") {
        return Some(Shown::MovedAway);
    }
    // The scheduler's own functions: the user's call of `block_on` may be to another runtime.
    let loops = [
        "scheduler::current_thread::",
        "scheduler::multi_thread::worker::",
    ];
    loops.into_iter().any(passes).then_some(Shown::Driving)
}

/// The frames from the innermost to the outermost of own code: what happened in the poll. All of them,
/// if none is own code.
pub(crate) fn of_the_poll(frames: &[Frame]) -> &[Frame] {
    let outermost = frames
        .iter()
        .rposition(|frame| frame.origin == Origin::Own)
        .map_or(frames.len(), |at| at + 1);
    &frames[..outermost]
}
