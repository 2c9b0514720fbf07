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

/// A thread of a blocking pool, by its stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PoolThread {
    /// It is inside of a closure.
    Holds,
    /// It waits for a closure.
    Idle,
}

/// Whether a thread of a blocking pool holds the pool or is idle. `None` if the stack shows
/// neither, as between two closures, or if the thread drives a worker.
pub(crate) fn pool_thread(explained: &Explained) -> Option<PoolThread> {
    let frames = &explained.frames;
    let passes = |part: &str| tokio_names(frames).any(|name| name.contains(part));
    if passes("scheduler::multi_thread::worker::") {
        return None;
    }
    // A closure is called through the table of its task, which no build inlines.
    let tasks = ["blocking::task::", "runtime::task::"];
    let is_own = |frame: &Frame| frame.origin == Origin::Own;
    if tasks.into_iter().any(passes) || frames.iter().any(is_own) {
        return Some(PoolThread::Holds);
    }
    let loops = ["blocking::pool::", "blocking::sharded::"];
    let is_idle = explained.complete && loops.into_iter().any(passes) && waits_for_news(frames);
    is_idle.then_some(PoolThread::Idle)
}

/// Whether the thread waits on a condition variable. Without debug information, only the call
/// below it may have a name, which locks share.
fn waits_for_news(frames: &[Frame]) -> bool {
    let names = || frames.iter().filter_map(|frame| frame.function.as_deref());
    let any = |parts: &[&str]| names().any(|name| parts.iter().any(|part| name.contains(part)));
    any(&["Condvar"]) || any(&["futex_wait"]) && !any(&["Mutex", "lock_contended", "lock_slow"])
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

    /// The verdict of a complete stack of these functions on a thread of a blocking pool.
    fn pool_thread_of(functions: &[&str], complete: bool) -> Option<PoolThread> {
        pool_thread(&Explained {
            frames: functions
                .iter()
                .map(
                    |function| match crate::explain::own_code::crate_of(function) {
                        Some("std" | "parking_lot") | None => Frame::of(function, Origin::Std),
                        Some("dep") => Frame::of(function, Origin::Dependency),
                        _ => frame(function),
                    },
                )
                .collect(),
            certain: functions.len(),
            missing: Vec::new(),
            complete,
            truncated: false,
            lost: false,
        })
    }

    #[test]
    fn a_thread_of_the_pool_holds_it_or_is_idle() {
        let of = |functions: &[&str]| pool_thread_of(functions, true);
        const POOL: &str = "tokio::runtime::blocking::pool::Inner::run";
        const SHARDED: &str = "tokio::runtime::blocking::sharded::ShardedImpl::run_worker";
        const WAIT: &str = "std::sync::poison::condvar::Condvar::wait_timeout";
        const FUTEX: &str = "std::sys::pal::unix::futex::futex_wait";
        const TASK: &str = "tokio::runtime::task::raw::poll";
        let idle = [
            &["syscall", FUTEX, WAIT, SHARDED, POOL][..],
            &[
                "syscall",
                "parking_lot::condvar::Condvar::wait_until_internal",
                POOL,
            ],
            // Without inlined frames.
            &["syscall", FUTEX, POOL],
        ];
        for functions in idle {
            assert_eq!(of(functions), Some(PoolThread::Idle), "{functions:?}");
            assert_eq!(pool_thread_of(functions, false), None, "{functions:?}");
        }
        let holds = [
            &["syscall", FUTEX, WAIT, "app::query", TASK, POOL][..],
            &["syscall", FUTEX, WAIT, "dep::get", TASK, POOL],
            &["app::query"],
        ];
        for functions in holds {
            assert_eq!(of(functions), Some(PoolThread::Holds), "{functions:?}");
        }
        let neither = [
            // It drives a worker, or is between two closures.
            &["syscall", FUTEX, WAIT, PARKED, LOOP, TASK, POOL][..],
            &[
                "syscall",
                FUTEX,
                "std::sys::sync::mutex::futex::Mutex::lock_contended",
                POOL,
            ],
            &[
                "syscall",
                "parking_lot::raw_mutex::RawMutex::lock_slow",
                POOL,
            ],
            &[POOL],
            // Not the pool's.
            &["syscall", FUTEX, WAIT],
            &[],
        ];
        for functions in neither {
            assert_eq!(of(functions), None, "{functions:?}");
        }
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
