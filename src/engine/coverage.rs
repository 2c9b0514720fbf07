//! The things that the detector can see of one runtime.
//!
//! *Runs on:* the user's threads, and the threads of the detector that report it.

use super::WatchedRuntime;
use crate::capture;
use crate::os::{self, ThreadFiles};
use crate::probe;
use crate::report::NoStack;
use crate::turns::NoTurns;
use std::fmt;
use std::sync::atomic::Ordering;
use tokio::runtime::RuntimeFlavor;

/// The things that the detector can see of one runtime.
///
/// A detector without reports is a sign of health only for these things. `Display` writes one line.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Coverage {
    /// The name under which the runtime is watched.
    pub runtime: String,
    /// The number of its workers. All of them are watched.
    pub workers: usize,
    /// The number of workers whose thread is known. Names and the proof of a sleep need it.
    pub known_threads: usize,
    /// Whether every poll of every task is marked: `watch_polls` with `tokio_unstable`. Otherwise
    /// polls are marked in spans and in `watched` futures.
    pub all_polls: bool,
    /// Whether this process is a fork of the one that was watched. The detector's threads are not
    /// here, so nothing is seen. A watch that is started here is one of its own.
    pub forked: bool,
    /// Whether a subscriber of this process has the [`layer()`](crate::layer()).
    pub spans: bool,
    /// Whether the system shows if a thread sleeps, computes, or waits for a CPU. Otherwise only
    /// the watchdog's own lateness distinguishes trouble of the host.
    pub thread_evidence: bool,
    /// Whether stacks of stalled threads are taken. Otherwise reports have no sites.
    pub stacks: bool,
    /// The reason why no stacks are taken, if none are. It is looked at anew each time.
    pub no_stacks: Option<NoStack>,
    /// Whether the future given to `block_on` is watched: on a `current_thread` runtime, whose
    /// worker polls it. On a multi-thread runtime it runs on a thread that is no worker, and so
    /// does the body of `#[tokio::main]`: only what it spawns is watched.
    pub block_on: bool,
    /// Whether the turns of the workers' loops are counted. They distinguish one long poll from
    /// many short ones without a mark.
    pub turns: bool,
    /// The reason why turns are not counted, if they are not.
    pub no_turns: Option<&'static str>,
}

impl Coverage {
    pub(crate) fn of(runtime: &WatchedRuntime) -> Coverage {
        if !runtime.watch.process.is_this() {
            return Coverage::in_a_fork(runtime);
        }
        let no_stacks = match runtime.watch.signal {
            Ok(signal) => capture::why_none(signal),
            Err(why) => Some(why),
        };
        Coverage {
            forked: false,
            block_on: runtime.handle.runtime_flavor() == RuntimeFlavor::CurrentThread,
            runtime: runtime.name.clone(),
            workers: runtime.metrics.num_workers(),
            known_threads: runtime.stats.enrolled.load(Ordering::Relaxed),
            all_polls: runtime.stats.all_polls.load(Ordering::Relaxed),
            spans: probe::is_layer_installed(),
            stacks: no_stacks.is_none(),
            no_stacks,
            turns: runtime.stats.no_turns().is_none(),
            no_turns: runtime.stats.no_turns().map(NoTurns::as_str),
            thread_evidence: shows_threads(),
        }
    }

    fn in_a_fork(runtime: &WatchedRuntime) -> Coverage {
        Coverage {
            forked: true,
            runtime: runtime.name.clone(),
            workers: runtime.metrics.num_workers(),
            known_threads: 0,
            all_polls: false,
            spans: false,
            stacks: false,
            no_stacks: None,
            block_on: false,
            turns: false,
            no_turns: Some("this process is a fork of the one that was watched"),
            thread_evidence: false,
        }
    }
}

/// Whether a thread can be looked at: this one is on a CPU.
fn shows_threads() -> bool {
    let files = ThreadFiles::open(os::current_tid());
    files.is_some_and(|mut files| files.look().is_some() && files.shows_states())
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let yes = |seen| if seen { "yes" } else { "no" };
        write!(
            f,
            "{:?}: {} workers; polls: {}; span names: {}; thread evidence: {}; stacks: {}",
            self.runtime,
            self.workers,
            if self.all_polls { "all" } else { "marked ones" },
            yes(self.spans),
            yes(self.thread_evidence),
            yes(self.stacks),
        )?;
        if let Some(why) = self.no_stacks {
            write!(f, " ({why})")?;
        }
        write!(f, "; turns: {}", yes(self.turns))?;
        if let Some(why) = self.no_turns {
            write!(f, " ({why})")?;
        }
        if !self.turns && !self.all_polls && !self.forked {
            f.write_str("; polls without a mark: late (mark what must be found early)")?;
        }
        match self.block_on {
            true => Ok(()),
            false => {
                f.write_str("; `block_on`, as in `#[tokio::main]`: no (spawn what must be seen)")
            }
        }
    }
}
