//! What the evidence means: which line it was, why it was held, and what to write instead.
//!
//! *Runs on:* the reporter thread. `stack` also on `stall-explainer`, a thread made for one stack that takes
//! long, and on whoever asks for [`worker_stacks`](crate::Guard::worker_stacks).
//! *Here:* no unsafe; raw evidence in, words out. Slow the first time, when it reads debug information.

#![forbid(unsafe_code)]

pub(crate) mod advice;
pub(crate) mod cause;
pub(crate) mod site;

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
    /// It came to a call that nothing explains.
    pub(crate) lost: bool,
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
pub(crate) fn shown(explained: &Explained) -> Option<Shown> {
    let frames = &explained.frames;
    let passes = |part: &str| {
        let tokio = |name: &&str| name.starts_with("tokio::") || name.starts_with("<tokio::");
        let mut names = frames.iter().filter_map(|frame| frame.function.as_deref());
        names.any(|name| tokio(&name) && name.contains(part))
    };
    if passes("block_in_place") {
        return Some(Shown::MovedAway);
    }
    if is_parked(frames) {
        return Some(Shown::Parked);
    }
    // The scheduler's own functions: the user's call of `block_on` may be to another runtime.
    let loops = [
        "scheduler::current_thread::",
        "scheduler::multi_thread::worker::",
    ];
    if loops.into_iter().any(passes) {
        return Some(Shown::Driving);
    }
    // That none is there says something only where inlined functions would be seen, or the pool is.
    let is_named = |frame: &Frame| frame.origin == Origin::Runtime && frame.file.is_some();
    let all_seen = frames.iter().any(is_named) || passes("blocking::pool::");
    (explained.complete && all_seen).then_some(Shown::MovedAway)
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

/// The frames of the poll that held the worker, as far out as the user's own code goes.
///
/// The outermost of tokio's frames is its scheduler's, or that of `block_on`, below which the caller of
/// `block_on` is not the poll's. From there inwards come tokio and the standard library, and then the poll.
pub(crate) fn of_the_poll(frames: &[Frame]) -> &[Frame] {
    let scheduler = frames
        .iter()
        .rposition(|frame| frame.origin == Origin::Runtime)
        .unwrap_or(frames.len());
    let is_below = |frame: &Frame| matches!(frame.origin, Origin::Runtime | Origin::Std);
    let end = frames[..scheduler]
        .iter()
        .rposition(|frame| !is_below(frame))
        .map_or(0, |outermost| outermost + 1);
    let poll = &frames[..end];
    let own = poll.iter().rposition(|frame| frame.origin == Origin::Own);
    &poll[..own.map_or(end, |outermost| outermost + 1)]
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_poll_ends_where_the_scheduler_begins() {
        let kept = |origins: &str| {
            let frames: Vec<Frame> = origins
                .chars()
                .map(|origin| Frame {
                    function: Some("f".to_owned()),
                    file: None,
                    line: None,
                    module: None,
                    offset: 0,
                    build_id: None,
                    origin: match origin {
                        'o' => Origin::Own,
                        'd' => Origin::Dependency,
                        's' => Origin::Std,
                        'r' => Origin::Runtime,
                        _ => Origin::System,
                    },
                    inlined: false,
                })
                .collect();
            origins[..of_the_poll(&frames).len()].to_owned()
        };
        assert_eq!(kept("lssodoodrsrrssl"), "lssodoo", "on a worker");
        assert_eq!(kept("lssodrsrrosl"), "lsso", "below `block_on` in `main`");
        assert_eq!(kept("lsrrsosrrsrr"), "lsrrso", "a runtime inside the poll");
        assert_eq!(kept("lsddrr"), "lsdd", "nothing of their own");
        assert_eq!(kept("lssodl"), "lsso", "a scheduler without names");
        assert_eq!(kept("lrrl"), "l", "between two polls");
    }
}
