//! Turns: the counters of each worker's loop in tokio's memory, which identify the poll it is in.
//!
//! *Runs on:* `stall-watchdog`, once a tick for all workers; a thread `stall-turns` learns the
//! layout, once per process.
//! *Must not:* touch tokio's memory. The kernel reads it, so memory that is gone is an error and no
//! fault.
//!
//! Tokio's scheduler counts the turns of each worker's loop, keeps the number of the task it polls,
//! and hands the worker's core to the poll. All three are words in memory. None of them is public,
//! so this room has no fixed places for them: [`learn`] finds them by their behaviour, in runtimes
//! made for it, in the running program itself. From then on two looks that find the same words have
//! seen the same poll. The poll pays nothing for it.
//!
//! # Layout of the memory
//!
//! ```text
//! thread-local of tokio ── task id, ────────▶ context (on the stack of the worker's thread)
//!  (constant distance       pointer to it      │  call: from where the task is polled
//!   to this crate's)                           └▶ core (on the heap, goes with the worker):
//!                                                  turns, parks, resumed, "next" slot allowed
//! ```
//!
//! The context holds the core only while the thread polls a task, or parks. A thread that has left
//! its worker by `block_in_place` holds none, and neither does the thread of a `current_thread`
//! runtime that no thread drives. So these words also show which thread has the worker.
//!
//! # Identity of a poll
//!
//! One turn polls one task, and after it up to three from the "next" slot. Two polls of one turn
//! that follow each other are of different tasks. So the same turn and [`Stage`] is the same poll,
//! if the task is the same, too, where two polls have one stage:
//!
//! | poll of the turn | task | stage |
//! |---|---|---|
//! | from the queue | A | [`Stage::Queue`] |
//! | first and second from the "next" slot | B, C; never one twice in a row | [`Stage::Next`] |
//! | third | any but C | [`Stage::Last`] |
//!
//! The number of the task may change within a poll: a poll can drop the output of another task, and
//! a `LocalSet` runs tasks inside of one. So it counts for nothing where the stage is enough.
//!
//! On `current_thread` a turn polls one task, or the future of `block_on`. Its loop notes the time
//! when it is entered, and after each look for events, but never within a poll. So the same turn
//! and the same time is the same poll, also of two calls of `block_on` in one turn.

#[cfg(all(
    target_os = "linux",
    target_pointer_width = "64",
    target_has_atomic = "64",
    not(loom)
))]
mod layout;
#[cfg(all(
    target_os = "linux",
    target_pointer_width = "64",
    target_has_atomic = "64",
    not(loom)
))]
mod learn;
#[cfg(all(
    target_os = "linux",
    target_pointer_width = "64",
    target_has_atomic = "64",
    not(loom)
))]
mod track;
#[cfg(not(all(
    target_os = "linux",
    target_pointer_width = "64",
    target_has_atomic = "64",
    not(loom)
)))]
#[path = "unsupported.rs"]
mod track;

pub(crate) use track::{Inside, Looks, Track, learn_layout};

use crate::clock::Nanos;

/// The reason why no turns are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoTurns {
    /// This system is not supported.
    #[allow(dead_code)] // Only where they are not.
    Unsupported,
    /// A sandbox forbids the program to read its own memory.
    Forbidden,
    /// The scheduler of this tokio keeps its counters in an unknown way.
    NotFound,
    /// The words were found, and then failed a check.
    Disproved,
    /// Switched off by [`Builder::turns`](crate::Builder::turns).
    Off,
}

impl NoTurns {
    pub(crate) const ALL: [NoTurns; 5] = [
        NoTurns::Unsupported,
        NoTurns::Forbidden,
        NoTurns::NotFound,
        NoTurns::Disproved,
        NoTurns::Off,
    ];

    /// The reason in a few words.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            NoTurns::Unsupported => "not on this system",
            NoTurns::Forbidden => "a sandbox forbids to read own memory",
            NoTurns::NotFound => "not found in this version of tokio",
            NoTurns::Disproved => "disproved; looked for again",
            NoTurns::Off => "switched off by `Builder::turns`",
        }
    }
}

/// One look at a worker's words in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Turn {
    /// The poll, or the one that would be there: two looks with the same number, in both of which
    /// `has_core` is true, are in the same poll.
    pub(crate) id: PollId,
    /// The thread has its worker's core: it polls, or parks. A thread that has left its worker has
    /// none.
    pub(crate) has_core: bool,
    /// Tokio's number for the task; 0 for the future of `block_on`, and between polls. In a poll
    /// that runs or drops other tasks, it may be that of one of these.
    pub(crate) task: u64,
    /// The time at which the worker last began to work through its queue: it woke, or looked for
    /// events.
    pub(crate) resumed: Option<Nanos>,
    /// The time at which this poll began, if it is the first one since the worker woke.
    pub(crate) begun: Option<Nanos>,
}

/// The identity of one poll of one worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PollId {
    /// The turns of the worker's loop so far.
    pub(crate) turn: u32,
    /// The stage of the poll in its turn.
    pub(crate) stage: Stage,
    /// The part of the task's number by which polls of one stage differ (D242).
    pub(crate) task: u64,
    /// On `current_thread`, the time at which the loop was last entered or resumed, by tokio's
    /// clock (D53). Zero on a multi-thread runtime.
    pub(crate) resumed: (u64, u32),
}

/// The place of a poll among those of its turn.
#[allow(dead_code)] // Where no turns are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The task from the queue, or the only poll of the turn on a `current_thread` runtime.
    Queue,
    /// The first or second poll from the "next" slot.
    Next,
    /// The third poll from the "next" slot.
    Last,
    /// Any but the last: in this build the scheduler's calls cannot be distinguished. The same turn
    /// and task may then be two polls, from the queue and from the "next" slot, with another task's
    /// between them.
    Unclear,
}
