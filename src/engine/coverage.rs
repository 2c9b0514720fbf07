//! The things that the detector can see of one runtime.
//!
//! *Runs on:* the user's threads, and the threads of the detector that report it.
//!
//! It is a copy of facts that the detector's threads have found. Text, gaps and metrics are made of
//! the same copy.

use super::{Hearing, OtherRuntime, WatchedRuntime};
use crate::clock;
use crate::os::HiddenEvidence;
use crate::probe;
use crate::report::NoStack;
use crate::turns::NoTurns;
use std::fmt;
use std::sync::atomic::Ordering;
use tokio::runtime::RuntimeFlavor;

/// The things that the detector can see of one runtime.
///
/// A detector without reports is a sign of health only for these things. `Display` writes one line,
/// and [`gaps`](Coverage::gaps) has a sentence for each thing that is not seen.
///
/// The facts are found by trying: every two seconds a thread of the detector takes a stack of
/// itself by the signal, and looks at itself as at a worker. So they hold also if a handler is
/// replaced, or a right is dropped, after the start.
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
    /// Whether the watch is switched off, by `TOKIO_STALL=off` and
    /// [`Builder::from_env`](crate::Builder::from_env). Nothing is seen.
    pub off: bool,
    /// Whether a subscriber of this process has the [`layer()`](crate::layer()).
    pub spans: bool,
    /// Whether the system shows if a thread sleeps, computes, or waits for a CPU. Otherwise only
    /// the watchdog's own lateness distinguishes trouble of the host.
    pub thread_evidence: bool,
    /// The reason why the system shows none of that, or not the calls.
    pub no_thread_evidence: Option<&'static str>,
    /// Whether the system shows the call that a thread sleeps in. Otherwise only stacks show the
    /// thing that a thread waits for.
    pub calls: bool,
    /// Whether stacks of stalled threads are taken. Otherwise reports have no sites.
    pub stacks: bool,
    /// The reason why no stacks are taken, if none are.
    pub no_stacks: Option<NoStack>,
    /// Whether the program's file has debug information, so that sites have lines.
    pub lines: bool,
    /// The reason why sites have no lines, and the fix.
    pub no_lines: Option<&'static str>,
    /// Whether the future given to `block_on` is watched: on a `current_thread` runtime, whose
    /// worker polls it. On a multi-thread runtime it runs on a thread that is no worker, and so
    /// does the body of `#[tokio::main]`: only what it spawns is watched.
    pub block_on: bool,
    /// Whether the turns of the workers' loops are counted. They distinguish one long poll from
    /// many short ones without a mark.
    pub turns: bool,
    /// The reason why turns are not counted, if they are not.
    pub no_turns: Option<&'static str>,
    /// Whether the log is heard: a subscriber of the process takes warnings of the target
    /// `tokio_stall`. Otherwise stalls are on standard error, unless the filter is meant to hide
    /// them or a callback has them.
    pub log: bool,
    /// The reason why the log is not heard, and the fix.
    pub no_log: Option<&'static str>,
    /// The runtimes of this process that poll marked tasks, and that nobody watches. They are known
    /// by their marks, some seconds after these begin. A runtime without marks is not known.
    pub other_runtimes: Vec<OtherRuntime>,
}

/// A thing that the detector cannot see, from [`Coverage::gaps`]. `Display` writes both parts.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Gap {
    /// The thing, by the label that the metric `tokio_stall_coverage` has for it.
    pub sees: &'static str,
    /// The reason, and the fix if there is one.
    pub why: String,
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.sees, self.why)
    }
}

/// The reason in a fork.
const FORKED: &str = "this process is a fork of the one that was watched; call `watch()` here";

impl Coverage {
    /// Why a watch that is switched off sees nothing.
    pub(crate) const OFF: &'static str = "the watch is switched off by `TOKIO_STALL=off`; unset it";

    pub(crate) fn of(runtime: &WatchedRuntime) -> Coverage {
        if !runtime.watch.process.is_this() {
            return Coverage::in_a_fork(runtime);
        }
        let sight = runtime.watch.sight();
        let no_stacks = match &sight {
            Some(sight) => sight.no_stacks(clock::now()),
            None => Some(runtime.watch.signal.err().unwrap_or(NoStack::NotYet)),
        };
        let hidden = sight.as_ref().map(|sight| sight.hidden);
        let is_all = |hidden: Option<HiddenEvidence>| hidden.is_some_and(HiddenEvidence::is_all);
        let no_turns = runtime.stats.no_turns();
        let no_log = match runtime.watch.settings.log {
            true => Hearing::last().why_not(),
            false => Some(NO_LOG),
        };
        let no_lines = match &sight {
            Some(sight) => sight.no_lines,
            None => Some(NOT_YET),
        };
        Coverage {
            lines: no_lines.is_none(),
            no_lines,
            log: no_log.is_none(),
            no_log,
            forked: false,
            off: false,
            block_on: runtime.handle.runtime_flavor() == RuntimeFlavor::CurrentThread,
            runtime: runtime.name.clone(),
            workers: runtime.metrics.num_workers(),
            known_threads: runtime.stats.enrolled.load(Ordering::Relaxed),
            all_polls: runtime.stats.all_polls.load(Ordering::Relaxed),
            spans: probe::is_layer_installed(),
            stacks: no_stacks.is_none(),
            no_stacks,
            turns: no_turns.is_none(),
            no_turns: no_turns.map(NoTurns::as_str),
            thread_evidence: hidden.is_some_and(|hidden| !is_all(hidden)),
            calls: hidden.is_some_and(|hidden| hidden.is_none()),
            no_thread_evidence: match hidden {
                Some(hidden) => hidden.map(HiddenEvidence::as_str),
                None => Some(NOT_YET),
            },
            other_runtimes: sight.map(|sight| sight.others).unwrap_or_default(),
        }
    }

    fn in_a_fork(runtime: &WatchedRuntime) -> Coverage {
        Coverage {
            forked: true,
            ..Coverage::of_nothing(&runtime.name, runtime.metrics.num_workers(), FORKED)
        }
    }

    /// The coverage of a runtime whose watch is switched off.
    pub(crate) fn switched_off(runtime: &str, workers: usize) -> Coverage {
        Coverage {
            off: true,
            ..Coverage::of_nothing(runtime, workers, Coverage::OFF)
        }
    }

    fn of_nothing(runtime: &str, workers: usize, why: &'static str) -> Coverage {
        Coverage {
            forked: false,
            off: false,
            runtime: runtime.to_owned(),
            workers,
            known_threads: 0,
            all_polls: false,
            spans: false,
            stacks: false,
            no_stacks: None,
            block_on: false,
            turns: false,
            no_turns: Some(why),
            thread_evidence: false,
            no_thread_evidence: Some(why),
            calls: false,
            lines: false,
            no_lines: Some(why),
            log: false,
            no_log: Some(why),
            other_runtimes: Vec::new(),
        }
    }

    /// The reason why nothing at all is seen, if that is so.
    fn nothing(&self) -> Option<&'static str> {
        match (self.forked, self.off) {
            (true, _) => Some(FORKED),
            (_, true) => Some(Coverage::OFF),
            _ => None,
        }
    }

    /// The things that are not seen, each with the reason and the fix.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), tokio_stall::StartError> {
    /// let watch = tokio_stall::watch()?;
    /// for coverage in watch.coverage() {
    ///     for gap in coverage.gaps() {
    ///         println!("{:?} does not see {gap}", coverage.runtime);
    ///     }
    ///     // Such as "spans: no subscriber has the layer; add `tokio_stall::layer()`".
    ///     assert!(coverage.gaps().iter().any(|gap| gap.sees == "spans"));
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn gaps(&self) -> Vec<Gap> {
        let gap = |(sees, why): (_, Option<String>)| why.map(|why| Gap { sees, why });
        self.parts().into_iter().filter_map(gap).collect()
    }

    /// All that can be seen, by label. For a thing that is not seen, the reason and the fix.
    pub(crate) fn parts(&self) -> [(&'static str, Option<String>); 11] {
        let unless = |seen: bool, why: &str| (!seen).then(|| why.to_owned());
        let parts = [
            ("workers", self.of_workers()),
            ("polls", unless(self.all_polls, ALL_POLLS)),
            ("spans", unless(self.spans, SPANS)),
            ("causes", self.of_evidence(self.thread_evidence)),
            ("calls", self.of_evidence(self.calls)),
            ("stacks", self.no_stacks.map(|why| why.to_string())),
            ("lines", self.no_lines.map(str::to_owned)),
            ("turns", self.no_turns.map(|why| format!("{why}; {MARKS}"))),
            ("runtimes", self.of_other_runtimes()),
            ("block_on", unless(self.block_on, BLOCK_ON)),
            ("log", self.no_log.map(str::to_owned)),
        ];
        match self.nothing() {
            Some(why) => parts.map(|(sees, _)| (sees, Some(why.to_owned()))),
            None => parts,
        }
    }

    fn of_workers(&self) -> Option<String> {
        let unknown = self.workers.saturating_sub(self.known_threads);
        // The worker of a `current_thread` runtime is the thread that drives it.
        let is_driven = match self.block_on {
            true => "nobody drives the runtime, or these",
            false => "these",
        };
        (unknown > 0).then(|| {
            format!(
                "the threads of {unknown} of {} workers are not known yet, since {is_driven} have \
                 been blocked or had no CPU",
                self.workers
            )
        })
    }

    fn of_evidence(&self, seen: bool) -> Option<String> {
        let why = self.no_thread_evidence.filter(|_| !seen);
        why.map(str::to_owned)
    }

    /// The sentence about the runtimes that nobody watches.
    pub(crate) fn of_other_runtimes(&self) -> Option<String> {
        let others: Vec<String> = self
            .other_runtimes
            .iter()
            .map(|of| of.to_string())
            .collect();
        let are = match others.len() {
            0 => return None,
            1 => "other runtime is",
            _ => "other runtimes are",
        };
        let (count, names) = (others.len(), others.join(", "));
        Some(format!(
            "{count} {are} not watched: {names}; give each to `Builder::runtime`, or call \
             `Guard::watch_here` in it"
        ))
    }
}

const NOT_YET: &str = "it has not been looked for yet";
const ALL_POLLS: &str = "polls are marked in spans and `watched` futures; `watch_polls` and \
                         `--cfg tokio_unstable` mark all";
const SPANS: &str = "no subscriber has the layer; add `tokio_stall::layer()`";
const NO_LOG: &str = "it is switched off, by `Builder::log`";
const MARKS: &str = "polls with a mark need none: add `tokio_stall::layer()`, or `watched`";
const BLOCK_ON: &str = "the future given to `block_on`, as the body of `#[tokio::main]`, runs on no \
                        worker; spawn what must be seen";

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(why) = self.nothing() {
            return write!(f, "{:?}: nothing is seen: {why}", self.runtime);
        }
        let workers = if self.workers == 1 {
            "worker"
        } else {
            "workers"
        };
        write!(
            f,
            "{:?}: {} {workers}; polls: {}; span names: {}; thread evidence: {}",
            self.runtime,
            self.workers,
            match (self.all_polls, self.turns) {
                (true, _) => "all",
                (false, true) => "marked and unmarked ones",
                (false, false) => "marked ones",
            },
            if self.spans { "yes" } else { "no" },
            match (self.thread_evidence, self.calls) {
                (true, true) => "yes",
                (true, false) => "without calls",
                (false, _) => "no",
            },
        )?;
        in_brackets(f, self.no_thread_evidence)?;
        write_seen(f, "stacks", self.no_stacks)?;
        write_seen(f, "lines", self.no_lines)?;
        write_seen(f, "turns", self.no_turns)?;
        write_seen(f, "log heard", self.no_log)?;
        if !self.turns && !self.all_polls {
            f.write_str("; polls without a mark: late (mark what must be found early)")?;
        }
        if !self.block_on {
            f.write_str("; the future of `block_on` or `#[tokio::main]`: no (spawn its work)")?;
        }
        match self.of_other_runtimes() {
            Some(others) => write!(f, "; {others}"),
            None => Ok(()),
        }
    }
}

/// Writes whether a thing is seen, with the reason if it is not.
fn write_seen(
    f: &mut fmt::Formatter<'_>,
    sees: &str,
    why_not: Option<impl fmt::Display>,
) -> fmt::Result {
    let seen = if why_not.is_none() { "yes" } else { "no" };
    write!(f, "; {sees}: {seen}")?;
    in_brackets(f, why_not)
}

fn in_brackets(f: &mut fmt::Formatter<'_>, why: Option<impl fmt::Display>) -> fmt::Result {
    match why {
        Some(why) => write!(f, " ({why})"),
        None => Ok(()),
    }
}
