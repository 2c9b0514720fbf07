//! What a report would tell, and cannot: evidence that is missing says why.
//!
//! *Runs on:* made by the watchdog, the reporter, and whoever asks for stacks; the types are the user's.
//! *Here:* plain data and how it is written.

use std::fmt;

/// Something a report would tell, and cannot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "snake_case")
)]
#[non_exhaustive]
pub enum Missing {
    /// No probe marked the poll, so it has no name: add `layer()`, `watched` or `watch_polls`.
    Unmarked,
    /// The poll was over before its names were looked up.
    MovedOn,
    /// Marks were nested deeper than are kept; the innermost names are not shown.
    TooDeep,
    /// There is no stack, hence no site.
    Stack(NoStack),
    /// The stack was deeper than what is copied, 256 KiB, or than 512 calls; its outer part is not shown.
    Truncated,
    /// Unwinding came to a call that no unwind table explains, as in code made at run time; what lies
    /// further out is not shown.
    Lost,
    /// No frame of the stack is known to be the user's own code.
    NoOwnCode,
}

/// Why there is no stack of a stall.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "snake_case")
)]
#[non_exhaustive]
pub enum NoStack {
    /// Stacks are switched off, by [`Stacks::Off`](crate::Stacks::Off).
    Off,
    /// Not on this system, or not in a build without the feature `stacks`.
    Unsupported,
    /// Somebody else handles the signal.
    SignalTaken,
    /// The thread has blocked the signal.
    SignalBlocked,
    /// The thread has not come to take the signal: it sleeps where nothing wakes it, as for a disk, or has
    /// no CPU. The stack follows if it does in time.
    NotAnswered,
    /// It has been taken, and is still being looked at: the debug information of a place met for the first
    /// time takes some ten milliseconds to read.
    NotYet,
    /// The stall was over before the stack was taken.
    MovedOn,
    /// Nothing has told yet which thread drives the worker.
    ThreadUnknown,
    /// The thread has exited.
    ThreadGone,
    /// Too many stacks were taken of late.
    RateLimited,
    /// All buffers for stacks wait for the reporter, which is held up by a callback or a logger.
    Busy,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Missing::Unmarked => "no name: no span, `watched` or `watch_polls` marked this poll",
            Missing::MovedOn => "no name: the poll was over before its spans could be looked up",
            Missing::TooDeep => "spans were nested deeper than are kept",
            Missing::Stack(why) => return write!(f, "no stack: {why}"),
            Missing::Truncated => "the outer part of the stack: it is deeper than what is copied",
            Missing::Lost => "the outer part of the stack: no unwind table explains the last call",
            Missing::NoOwnCode => {
                "no site: no frame is known to be your own code; build with `debug = 1`, or name your \
                 crates to `Builder::own_crates`"
            }
        })
    }
}

impl NoStack {
    /// Whether no other stack of the same stall is to be expected.
    pub(crate) fn is_final(self) -> bool {
        let another_is_asked_for = matches!(
            self,
            NoStack::RateLimited | NoStack::Busy | NoStack::MovedOn
        );
        !another_is_asked_for
    }
}

impl fmt::Display for NoStack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NoStack::Off => "switched off by `Stacks::Off`",
            NoStack::Unsupported => "not on this system, or not in this build",
            NoStack::SignalTaken => {
                "the signal has another handler; choose a free one with `Stacks::Signal`"
            }
            NoStack::SignalBlocked => {
                "the thread has blocked the signal; choose another one with `Stacks::Signal`"
            }
            NoStack::NotAnswered => "the thread sleeps uninterruptibly, or has no CPU",
            NoStack::NotYet => "it is still being looked at",
            NoStack::MovedOn => "the poll was over before it was taken",
            NoStack::ThreadUnknown => "the worker's thread is not known yet",
            NoStack::ThreadGone => "the thread has exited",
            NoStack::RateLimited => "many were taken of late",
            NoStack::Busy => "all buffers wait for a slow callback or logger",
        })
    }
}
