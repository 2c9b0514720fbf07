//! The parts that a report lacks, each with its reason.
//!
//! *Runs on:* every thread. `stall-watchdog`, `stall-reporter` and a thread that calls
//! [`worker_stacks`](crate::Guard::worker_stacks) make them.

use std::fmt;

/// A part that a [`StallReport`](crate::StallReport) lacks, and the reason.
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
    /// Marks were nested deeper than are kept. The innermost names are not shown.
    TooDeep,
    /// There is no stack, hence no site.
    Stack(NoStack),
    /// The stack was deeper than the 256 KiB that are copied, or than 512 calls. Its outer part is
    /// not shown.
    Truncated,
    /// Unwinding came to a call that no unwind table explains, and no return address was found
    /// beyond it. The calls further out are not shown.
    Lost,
    /// The stack passes code without unwind tables, and the calls beyond it are guesses. The site
    /// is none of them.
    GuessedCalls,
    /// The stack passes code without unwind tables, and the site is a guess: it lies beyond that
    /// code.
    GuessedSite,
    /// No frame of the stack is known to be the user's own code.
    NoOwnCode,
    /// No frame of the stack has a line: the program was built without debug information.
    NoDebugInfo,
    /// The file of a module on the stack is not the one that was loaded: it was replaced on disk,
    /// or written to. Its functions have no names.
    ModuleReplaced,
    /// The file of a module on the stack cannot be read. Its functions have no names.
    ModuleUnreadable,
    /// The split debug information of a module on the stack is missing, or of another build.
    SplitDebugInfo,
    /// The debug information of a module on the stack is larger than what is read of one file, or
    /// compressed in another way than with zlib.
    LargeDebugInfo,
    /// From outside of the process, several polls may look like one: the kernel offers no hardware
    /// breakpoint that would show the end of a poll.
    OnePoll,
}

/// The reason why a [`StallReport`](crate::StallReport) has no stack, or
/// [`Guard::worker_stacks`](crate::Guard::worker_stacks) has none.
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
    /// Stacks cannot be taken on this system, or in a build without the feature `stacks`.
    Unsupported,
    /// The signal has another handler, or none any more.
    SignalTaken,
    /// The thread has blocked the signal.
    SignalBlocked,
    /// The thread has not taken the signal yet: it sleeps uninterruptibly, as for a disk, or has no
    /// CPU. If it takes the signal in time, the stack follows.
    NotAnswered,
    /// The thread sleeps in a call on a socket with a timeout, which a signal would make fail. Its
    /// stack cannot be read without one.
    WouldInterrupt,
    /// The stack has been taken, and is not explained yet: the debug information of a place that is
    /// new takes about ten milliseconds to read.
    NotYet,
    /// The stall was over before the stack was taken.
    MovedOn,
    /// The thread that drives the worker is not known yet.
    ThreadUnknown,
    /// The thread has exited.
    ThreadGone,
    /// Too many stacks were taken recently.
    RateLimited,
    /// A sandbox forbids to read the memory of the program, and with it the unwind tables.
    Forbidden,
    /// A sandbox forbids to send a signal to a thread of the program.
    SignalForbidden,
    /// The list of the program's files in memory cannot be read, so no function has a name.
    NoMaps,
    /// The thread that explains stacks has failed, or gives no answer.
    NoExplainer,
    /// All buffers hold stacks that wait for debug information to be read.
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
            Missing::GuessedCalls => {
                "certainty of the outer calls: the stack passes code without unwind tables"
            }
            Missing::GuessedSite => {
                "certainty of the site: the stack passes code without unwind tables, and the calls \
                 beyond it are guesses"
            }
            Missing::NoOwnCode => {
                "no site: no frame is known to be your own code; name your crates to \
                 `Builder::own_crates`"
            }
            Missing::NoDebugInfo => {
                "no site: the program has no debug information; build with `debug = 1`"
            }
            Missing::ModuleReplaced => {
                "names of a module: its file on disk is not the one that was loaded"
            }
            Missing::ModuleUnreadable => "names of a module: its file cannot be read",
            Missing::SplitDebugInfo => {
                "lines: split debug information is missing; put the `.dwp` beside the program"
            }
            Missing::LargeDebugInfo => {
                "lines: debug information is too large, or not compressed with zlib"
            }
            Missing::OnePoll => {
                "proof that it was one poll: no hardware breakpoint shows its end; allow \
                 `perf_event_open`"
            }
        })
    }
}

impl NoStack {
    /// Whether no other stack of the same stall can follow.
    pub(crate) fn is_final(self) -> bool {
        let another_is_asked_for = matches!(
            self,
            NoStack::RateLimited
                | NoStack::Busy
                | NoStack::MovedOn
                | NoStack::NotAnswered
                | NoStack::ThreadUnknown
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
                "the signal has another handler, or none any more; choose a free one with \
                 `Stacks::Signal`"
            }
            NoStack::SignalBlocked => {
                "the thread has blocked the signal; choose another one with `Stacks::Signal`"
            }
            NoStack::NotAnswered => "the thread sleeps uninterruptibly, or has no CPU",
            NoStack::WouldInterrupt => {
                "the thread sleeps in a call on a socket with a timeout, which the signal that \
                 shows it would fail; search the task for `set_read_timeout` and \
                 `set_write_timeout`"
            }
            NoStack::NotYet => "it is still being looked at",
            NoStack::MovedOn => "the poll was over before it was taken",
            NoStack::ThreadUnknown => "the worker's thread is not known yet",
            NoStack::ThreadGone => "the thread has exited",
            NoStack::RateLimited => "many were taken of late",
            NoStack::Forbidden => {
                "a sandbox forbids to read memory; allow `process_vm_readv` on the own process"
            }
            NoStack::SignalForbidden => {
                "a sandbox forbids to signal threads; allow `tgkill` on the own process"
            }
            NoStack::NoMaps => "`/proc/self/maps` cannot be read; mount `/proc`",
            NoStack::NoExplainer => {
                "the thread `stall-explainer` gives no answer: it does not run, or debug information \
                 on a slow file system holds it up"
            }
            NoStack::Busy => "all buffers wait for debug information to be read",
        })
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// All reasons. A new one is added here, and to the page.
    fn all() -> Vec<Missing> {
        let no_stack = [
            NoStack::Off,
            NoStack::Unsupported,
            NoStack::SignalTaken,
            NoStack::SignalBlocked,
            NoStack::NotAnswered,
            NoStack::WouldInterrupt,
            NoStack::NotYet,
            NoStack::MovedOn,
            NoStack::ThreadUnknown,
            NoStack::ThreadGone,
            NoStack::RateLimited,
            NoStack::Forbidden,
            NoStack::SignalForbidden,
            NoStack::NoMaps,
            NoStack::NoExplainer,
            NoStack::Busy,
        ];
        let others = [
            Missing::Unmarked,
            Missing::MovedOn,
            Missing::TooDeep,
            Missing::Truncated,
            Missing::Lost,
            Missing::GuessedCalls,
            Missing::GuessedSite,
            Missing::NoOwnCode,
            Missing::NoDebugInfo,
            Missing::ModuleReplaced,
            Missing::ModuleUnreadable,
            Missing::SplitDebugInfo,
            Missing::LargeDebugInfo,
            Missing::OnePoll,
        ];
        let no_stack = no_stack.into_iter().map(Missing::Stack);
        no_stack.chain(others).collect()
    }

    #[test]
    fn each_reason_is_explained_in_the_documentation() {
        let page = include_str!("../../docs/reading-a-report.md");
        let cells = page
            .lines()
            .filter_map(|line| line.strip_prefix("| ")?.split(" |").next());
        let cells: Vec<_> = cells.collect();
        for missing in all() {
            let text = missing.to_string();
            let is_there = |cell: &&str| cell.len() > 20 && text.starts_with(*cell);
            assert_eq!(
                cells.iter().filter(|cell| is_there(cell)).count(),
                1,
                "{text}"
            );
        }
    }
}
