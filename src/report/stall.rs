//! The report of a stall: everything that is known of it.
//!
//! *Runs on:* made by the reporter thread, and without names by whoever asks what is stalled now; the types
//! are the user's.
//! *Here:* plain data.

use super::cause::Cause;
use super::certainty::Certainty;
use super::frame::{Site, StackSample};
use super::missing::Missing;
use super::profile::without_fields;
use super::split::TimeSplit;
use super::text::Headline;
use std::time::{Duration, SystemTime};

/// Where in its life a stall is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "snake_case")
)]
#[non_exhaustive]
pub enum Phase {
    /// It has just crossed the threshold, and goes on.
    Began,
    /// It goes on, and has doubled its age since the last report.
    Ongoing,
    /// It is over; the duration is final.
    Ended,
}

/// One poll that held its worker for longer than the threshold.
///
/// A stall is reported when it crosses the threshold, again each time its age has doubled, and when it
/// is over. All reports of one stall carry the same [`id`](Self::id).
///
/// `Display` writes several lines for people. With the feature `serde` durations are serialised as
/// seconds, and `started_at` as seconds since 1970.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct StallReport {
    /// The number of this stall. Later stalls of a process have larger numbers; some numbers are left out, as
    /// each suspected poll takes one.
    pub id: u64,
    /// Whether it goes on.
    pub phase: Phase,
    /// Whether it is certain that it was one poll.
    pub certainty: Certainty,
    /// The name under which the runtime is watched.
    pub runtime: String,
    /// The index of the worker held, as in tokio's `RuntimeMetrics`.
    pub worker: usize,
    /// The name of the thread that drives the worker.
    pub thread: Option<String>,
    /// The kernel's number for that thread.
    pub tid: Option<u32>,
    /// The path of spans and watched names that the poll is in, outermost first: `request > get_user`.
    pub span: Option<String>,
    /// Tokio's id for the task. `None` for the future given to `block_on`, and where neither turns nor
    /// `watch_polls` show it.
    pub task: Option<u64>,
    /// The place that spawned the task, as `file:line`, where `watch_polls` shows it.
    pub spawned_at: Option<String>,
    /// When the poll began, by the wall clock.
    #[cfg_attr(feature = "serde", serde(serialize_with = "super::unix_seconds"))]
    pub started_at: SystemTime,
    /// How long it has been going on, or took.
    #[cfg_attr(
        feature = "serde",
        serde(rename = "duration_seconds", serialize_with = "super::seconds")
    )]
    pub duration: Duration,
    /// `duration` is right to within this much; zero where the start and the end were measured.
    #[cfg_attr(
        feature = "serde",
        serde(rename = "duration_error_seconds", serialize_with = "super::seconds")
    )]
    pub duration_error: Duration,
    /// What the time was spent on.
    pub time: TimeSplit,
    /// Why, by what most of the time was spent on.
    pub cause: Cause,
    /// The system call that the thread slept in longest, as far as was seen.
    pub asleep_in: Option<String>,
    /// For how long, of the time so far, nobody waited in the runtime's driver: no socket and no timer of the
    /// whole runtime moved. `None` where that cannot be told.
    #[cfg_attr(
        feature = "serde",
        serde(
            rename = "driver_frozen_seconds",
            serialize_with = "super::seconds_if_known"
        )
    )]
    pub driver_frozen: Option<Duration>,
    /// The line of the user's own code that held the worker: the innermost on most of the stacks.
    pub site: Option<Site>,
    /// What was on the thread's stack, in the order in which it was found.
    pub stacks: Vec<StackSample>,
    /// Which of `stacks` the site, the cause and the advice are from: the earliest at the site found most often.
    pub representative_stack: Option<usize>,
    /// What to write instead.
    pub advice: Option<String>,
    /// Stalls at this site since the watch was started, this one included; 0 if the site is not known.
    pub seen_here: u64,
    /// How long they were together, this one so far.
    #[cfg_attr(
        feature = "serde",
        serde(rename = "lost_here_seconds", serialize_with = "super::seconds")
    )]
    pub lost_here: Duration,
    /// What this report would tell, and cannot.
    pub missing: Vec<Missing>,
    /// Stalls that were not logged since the last one that was, to spare the log.
    pub suppressed: u64,
}

impl StallReport {
    /// The path of spans without their fields: a set that does not grow with what is served.
    pub(crate) fn span_names(&self) -> Option<String> {
        self.span.as_deref().map(without_fields)
    }

    /// The report in one line: what a log shows first.
    ///
    /// `worker 1 of "api" blocked for 127 ms so far: asleep in clock_nanosleep,
    /// app::handlers::get_user (src/handlers.rs:42), in request > get_user`
    pub fn headline(&self) -> Headline<'_> {
        Headline::of(self)
    }
}

/// A report for tests: of a sleep in a handler.
#[cfg(all(test, not(loom)))]
pub(crate) fn example() -> StallReport {
    StallReport {
        id: 17,
        phase: Phase::Ongoing,
        certainty: Certainty::Certain,
        runtime: "api".to_owned(),
        worker: 1,
        thread: Some("tokio-rt-worker".to_owned()),
        tid: Some(4711),
        span: Some("request > get_user".to_owned()),
        task: Some(318),
        spawned_at: Some("src/main.rs:20".to_owned()),
        started_at: SystemTime::UNIX_EPOCH,
        duration: Duration::from_micros(127_400),
        duration_error: Duration::ZERO,
        time: TimeSplit::default(),
        cause: Cause::Blocked(super::Blocking::Sleep),
        asleep_in: Some("clock_nanosleep".to_owned()),
        driver_frozen: None,
        site: None,
        stacks: Vec::new(),
        representative_stack: None,
        advice: None,
        seen_here: 0,
        lost_here: Duration::ZERO,
        missing: Vec::new(),
        suppressed: 0,
    }
}
