//! From evidence to an explanation: the line of a stall, its cause, and an advice.
//!
//! *Runs on:* `stall-explainer` for stacks and owners of code; `stall-reporter` for cause and
//! advice; in tests also a thread that measures itself.
//! *Must not:* contain unsafe code.
//!
//! The first stack is slow: its debug information is read.

#![forbid(unsafe_code)]

pub(crate) mod advice;
mod cause;
mod inner_lock;
// Looks from outside need the same.
#[cfg(all(
    feature = "outside",
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64"),
    not(loom)
))]
pub(crate) mod outside;
mod own_code;

// The condition under which `capture` takes stacks.
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
#[cfg(feature = "testing")]
pub(crate) use inner_lock::{InnerLock, any_names, called, inner_lock, is_plumbing, names};
pub(crate) use own_code::OwnCode;
pub(crate) use stack::{Explainer, why_no_lines};

use crate::detect::StackVerdict;
use crate::report::{Frame, Missing, Origin};

/// A stack, unwound and named.
#[derive(Debug)]
pub(crate) struct Explained {
    /// The calls, innermost first.
    pub(crate) frames: Vec<Frame>,
    /// The number of innermost frames that unwind tables have led to. The frames after them are
    /// guessed.
    pub(crate) certain: usize,
    /// The reasons why some of them have no name or no line.
    pub(crate) missing: Vec<Missing>,
    /// Whether it was followed to the thread's root, with none of its frames guessed.
    pub(crate) complete: bool,
    /// Whether it was deeper than the part that was copied.
    pub(crate) truncated: bool,
    /// Whether it came to a call that no unwind table explains.
    pub(crate) lost: bool,
}

/// The verdict of the stack on the worker that its thread seems to drive. `None` if functions have
/// no names here.
///
/// Frames that are guessed can raise a doubt, and no more.
pub(crate) fn shown(explained: &Explained) -> Option<StackVerdict> {
    let certain = &explained.frames[..explained.certain];
    let is_guessed = explained.certain < explained.frames.len();
    verdict(certain, explained.complete).or_else(|| {
        let guess = verdict(&explained.frames, explained.complete)?;
        (is_guessed && guess != StackVerdict::Driving).then_some(StackVerdict::Doubtful)
    })
}

fn verdict(frames: &[Frame], complete: bool) -> Option<StackVerdict> {
    let passes = |part: &str| tokio_names(frames).any(|name| name.contains(part));
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
    // Missing scheduler frames show that it is detached only if inlined frames are visible, or if
    // frames of the pool are present.
    let is_named = |frame: &Frame| frame.origin == Origin::Runtime && frame.file.is_some();
    let all_seen = frames.iter().any(is_named) || passes("blocking::pool::");
    (complete && all_seen).then_some(StackVerdict::Detached)
}

/// Whether a thread of a blocking pool is inside of a closure. It may also wait for one, or drive a
/// worker in the place of a thread that is in `block_in_place`.
pub(crate) fn holds_pool(explained: &Explained) -> bool {
    let frames = &explained.frames;
    let passes = |part: &str| tokio_names(frames).any(|name| name.contains(part));
    let is_in_one =
        passes("blocking::task::") || frames.iter().any(|frame| frame.origin == Origin::Own);
    is_in_one && !passes("scheduler::multi_thread::worker::")
}

/// Whether the thread waits in the runtime's driver, or to get into it. Such a thread does not
/// drive a worker that is busy.
fn is_parked(frames: &[Frame]) -> bool {
    let waits = [
        "driver::Driver::",
        "driver::IoStack::",
        "time::Driver::",
        "::park_internal",
        "::park_condvar",
        "::park_driver",
    ];
    // Tokio has its own wrappers of locks and the like in `tokio::loom`.
    tokio_names(frames)
        .find(|name| !name.contains("tokio::loom::"))
        .is_some_and(|name| waits.iter().any(|part| name.contains(part)))
}

/// The names of tokio's functions on a stack, innermost first.
fn tokio_names(frames: &[Frame]) -> impl Iterator<Item = &str> {
    let names = frames.iter().filter_map(|frame| frame.function.as_deref());
    names.filter(|name| name.starts_with("tokio::") || name.starts_with("<tokio::"))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn frame(function: &str) -> Frame {
        let origin = if function.starts_with("tokio::") {
            Origin::Runtime
        } else {
            Origin::Own
        };
        Frame {
            file: Some("lib.rs".to_owned()),
            line: Some(1),
            ..Frame::of(function, origin)
        }
    }

    /// The verdict of a stack of these functions, of which the first so many are certain.
    fn shown_by(functions: &[&str], certain: usize) -> Option<StackVerdict> {
        shown(&Explained {
            frames: functions.iter().map(|function| frame(function)).collect(),
            certain,
            missing: Vec::new(),
            complete: certain == functions.len(),
            truncated: false,
            lost: false,
        })
    }

    const LOOP: &str = "tokio::runtime::scheduler::multi_thread::worker::Context::run";
    const PARKED: &str = "tokio::runtime::driver::Driver::park_timeout";
    const LEFT: &str = "tokio::task::block_in_place";

    #[test]
    fn a_stack_without_guesses_decides() {
        let by = |functions: &[&str]| shown_by(functions, functions.len());
        assert_eq!(by(&["app::run", LOOP]), Some(StackVerdict::Driving));
        assert_eq!(
            by(&["epoll_wait", PARKED, LOOP]),
            Some(StackVerdict::Parked)
        );
        assert_eq!(by(&["app::run", LEFT, LOOP]), Some(StackVerdict::Detached));
        assert_eq!(
            by(&["app::run", "tokio::task::poll"]),
            Some(StackVerdict::Detached)
        );
        assert_eq!(by(&["app::run"]), None);
    }

    #[test]
    fn guesses_raise_a_doubt_and_no_more() {
        assert_eq!(shown_by(&["app::run", LOOP], 1), None);
        for doubt in [LEFT, PARKED] {
            let shown = shown_by(&["app::run", doubt, LOOP], 1);
            assert_eq!(shown, Some(StackVerdict::Doubtful), "{doubt}");
        }
        // Beyond the part that decides, guesses change nothing.
        let shown = shown_by(&["app::run", LEFT, "query", LOOP], 2);
        assert_eq!(shown, Some(StackVerdict::Detached));
        assert_eq!(
            shown_by(&["app::run", LOOP, PARKED], 2),
            Some(StackVerdict::Driving)
        );
    }
}
