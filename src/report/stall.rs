//! The report of a stall: all evidence of it, explained.
//!
//! *Runs on:* every thread: plain data. `stall-reporter` makes it; a thread that calls
//! [`stalled_now`](crate::Guard::stalled_now) makes one without names.

use super::cause::Cause;
use super::certainty::Certainty;
use super::frame::{Site, StackSample};
use super::missing::Missing;
use super::profile::without_fields;
use super::split::TimeSplit;
use super::text::Headline;
use super::trace_context::TraceContext;
use super::victims::Victims;
use std::time::{Duration, SystemTime};

/// The phase of a stall at the time of its [report](StallReport).
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
    /// It is over. The duration is final.
    Ended,
}

impl Phase {
    /// The word that logs and JSON have for it: `"began"`, `"ongoing"` or `"ended"`.
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Began => "began",
            Phase::Ongoing => "ongoing",
            Phase::Ended => "ended",
        }
    }
}

/// One poll that held its worker for longer than the threshold.
///
/// A stall is reported when it crosses the threshold, again each time its age has doubled, and when
/// it is over. All reports of one stall carry the same [`id`](Self::id). A callback gets them
/// ([`Builder::on_stall`](crate::Builder::on_stall)), and [`Guard::recent`](crate::Guard::recent)
/// keeps them. With the feature `testing`, `StallReport::example` makes one for tests of callbacks.
///
/// `Display` writes several lines for people, with the frames of own code; `{report:#}` writes all
/// frames of the stack. With the feature `serde` durations are serialised as
/// seconds, and `started_at` as seconds since 1970.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct StallReport {
    /// The number of this stall, given at its first suspicion. Later stalls of a process have
    /// larger numbers. Some numbers are left out: suspected polls that are no stalls have them.
    pub id: u64,
    /// Whether it goes on.
    pub phase: Phase,
    /// Whether it is proven that it was one poll.
    pub certainty: Certainty,
    /// The name under which the runtime is watched.
    pub runtime: String,
    /// The index of the worker held, as in tokio's `RuntimeMetrics`.
    pub worker: usize,
    /// The name of the thread that drives the worker.
    pub thread: Option<String>,
    /// The kernel's number for that thread.
    pub tid: Option<u32>,
    /// The path of spans and watched names that the poll is in, outermost first: `request >
    /// get_user`.
    pub span: Option<String>,
    /// The trace and the span of the poll, where [`Builder::traces`](crate::Builder::traces) finds
    /// them.
    pub trace: Option<TraceContext>,
    /// Tokio's id for the task. `None` for the future given to `block_on`, and where neither turns
    /// nor `watch_polls` show it.
    pub task: Option<u64>,
    /// The place that spawned the task, as `file:line`, where `watch_polls` shows it.
    pub spawned_at: Option<String>,
    /// When the poll began, by the wall clock.
    #[cfg_attr(feature = "serde", serde(serialize_with = "super::unix_seconds"))]
    pub started_at: SystemTime,
    /// How long the stall has been going on, or took.
    #[cfg_attr(
        feature = "serde",
        serde(rename = "duration_seconds", serialize_with = "super::seconds")
    )]
    pub duration: Duration,
    /// The largest error of `duration`. Zero if the start and the end were measured.
    #[cfg_attr(
        feature = "serde",
        serde(rename = "duration_error_seconds", serialize_with = "super::seconds")
    )]
    pub duration_error: Duration,
    /// The time, by the way in which it was spent.
    pub time: TimeSplit,
    /// The reason why the worker was held.
    pub cause: Cause,
    /// The system call in which the thread was seen asleep longest. `None` if less than a tenth of
    /// the code's own time was asleep.
    pub asleep_in: Option<String>,
    /// The part of the time so far in which no worker waited in the runtime's driver: no socket and
    /// no timer of the whole runtime moved. `None` if the state of the driver is not visible.
    #[cfg_attr(
        feature = "serde",
        serde(
            rename = "driver_frozen_seconds",
            serialize_with = "super::seconds_if_known"
        )
    )]
    pub driver_frozen: Option<Duration>,
    /// The requests that it held up. `None` if no service of the runtime has a
    /// [`RequestLayer`](crate::tower::RequestLayer). A last report waits until those that were
    /// ready at the end have been polled, for at most a second.
    pub victims: Option<Victims>,
    /// The line of the user's own code that held the worker: the innermost on most of the stacks.
    pub site: Option<Site>,
    /// The outermost function of a dependency that the poll was in, as in the source. `None` if the
    /// site is known: then it is the better answer.
    pub dependency: Option<String>,
    /// The stacks of the thread, in the order in which they were found.
    pub stacks: Vec<StackSample>,
    /// The index in `stacks` of the stack that gives the site, the cause and the advice: the
    /// earliest at the site found most often.
    pub representative_stack: Option<usize>,
    /// One sentence that advises what to write instead.
    pub advice: Option<String>,
    /// The number of stalls at this site since the watch was started, this one included. Zero if
    /// the site is not known.
    pub seen_here: u64,
    /// The time lost to all stalls at this site together, with this one so far.
    #[cfg_attr(
        feature = "serde",
        serde(rename = "lost_here_seconds", serialize_with = "super::seconds")
    )]
    pub lost_here: Duration,
    /// The parts that this report lacks, with the reasons.
    pub missing: Vec<Missing>,
    /// The number of stalls not logged since the last one that was, because of the log's limit.
    pub suppressed: u64,
}

impl StallReport {
    /// The path of spans without their fields: the set of paths does not grow with the requests.
    pub(crate) fn span_names(&self) -> Option<String> {
        self.span.as_deref().map(without_fields)
    }

    /// The report in one line, as a log shows it first.
    ///
    /// `worker 1 of "api" blocked for 127 ms so far: asleep in clock_nanosleep,
    /// app::handlers::get_user (src/handlers.rs:42), in request > get_user`
    ///
    /// # Examples
    ///
    /// ```
    /// let builder = tokio_stall::Builder::new().on_stall(|report| {
    ///     eprintln!("{}", report.headline());
    /// });
    /// # drop(builder);
    /// ```
    pub fn headline(&self) -> Headline<'_> {
        Headline::of(self)
    }
}

/// A report of a sleep in a handler, without its stack, for tests.
#[cfg(all(any(test, feature = "testing"), not(loom)))]
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
        trace: None,
        task: Some(318),
        spawned_at: Some("src/main.rs:20".to_owned()),
        started_at: SystemTime::UNIX_EPOCH,
        duration: Duration::from_micros(127_400),
        duration_error: Duration::ZERO,
        time: TimeSplit::default(),
        cause: Cause::Blocked(super::Blocking::Sleep),
        asleep_in: Some("clock_nanosleep".to_owned()),
        driver_frozen: None,
        victims: None,
        site: None,
        dependency: None,
        stacks: Vec::new(),
        representative_stack: None,
        advice: None,
        seen_here: 0,
        lost_here: Duration::ZERO,
        missing: Vec::new(),
        suppressed: 0,
    }
}

#[cfg(all(test, not(loom), feature = "serve"))]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// The fields in the table of the section with this title.
    fn documented(title: &str) -> BTreeSet<String> {
        let text = include_str!("../../docs/http.md");
        let (_, section) = text.split_once(title).expect("the section");
        let section = section.split("\n## ").next().unwrap_or_default();
        let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
        let names = rows.filter_map(|row| row.split_once('`'));
        names.map(|(name, _)| name.to_owned()).collect()
    }

    #[test]
    fn the_document_has_each_field_of_a_report() {
        let report = serde_json::to_value(example()).expect("plain data");
        let fields = report.as_object().expect("an object").keys();
        let fields: BTreeSet<String> = fields.cloned().collect();
        assert_eq!(documented("## `/stalls`"), fields);
        for part in report["time"].as_object().expect("an object").keys() {
            let text = include_str!("../../docs/http.md");
            assert!(text.contains(&format!("`{part}`")), "{part}");
        }
    }
}
