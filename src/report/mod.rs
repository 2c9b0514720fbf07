//! What a person gets to read: reports, and the places they go to.
//!
//! *Runs on:* the `stall-reporter` thread; the types are the user's.
//! *Here:* may allocate, log, and call the user's code. Holds nothing that the watchdog needs.

pub(crate) mod limiter;
pub(crate) mod log;
pub(crate) mod recent;
pub(crate) mod reporter;

use crate::engine::WatchedRuntime;
use crate::watchdog::detector::Stall;
use crate::watchdog::workers::wall_clock;
use std::fmt;
use std::time::{Duration, SystemTime};

pub use crate::watchdog::detector::{Certainty, TimeSplit};

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
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Missing::Unmarked => "no name: no span, `watched` or `watch_polls` marked this poll",
            Missing::MovedOn => "no name: the poll was over before its spans could be looked up",
            Missing::TooDeep => "spans were nested deeper than are kept",
        })
    }
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
    /// Counts the stalls of this process, from 1.
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
    /// Tokio's id for the task, where `watch_polls` shows it.
    pub task: Option<u64>,
    /// The place that spawned the task, as `file:line`, where `watch_polls` shows it.
    pub spawned_at: Option<String>,
    /// When the poll began, by the wall clock.
    #[cfg_attr(feature = "serde", serde(serialize_with = "unix_seconds"))]
    pub started_at: SystemTime,
    /// How long it has been going on, or took.
    #[cfg_attr(
        feature = "serde",
        serde(rename = "duration_seconds", serialize_with = "seconds")
    )]
    pub duration: Duration,
    /// `duration` is right to within this much; zero where the start and the end were measured.
    #[cfg_attr(
        feature = "serde",
        serde(rename = "duration_error_seconds", serialize_with = "seconds")
    )]
    pub duration_error: Duration,
    /// What the time was spent on.
    pub time: TimeSplit,
    /// The system call that the thread was last seen asleep in.
    pub asleep_in: Option<String>,
    /// What this report would tell, and cannot.
    pub missing: Vec<Missing>,
    /// Stalls that were not logged since the last one that was, to spare the log.
    pub suppressed: u64,
}

impl StallReport {
    /// A report without names.
    pub(crate) fn unnamed(
        id: u64,
        phase: Phase,
        runtime: &WatchedRuntime,
        worker: usize,
        stall: &Stall,
        duration: Duration,
    ) -> StallReport {
        StallReport {
            id,
            phase,
            certainty: stall.certainty,
            runtime: runtime.name.clone(),
            worker,
            thread: None,
            tid: None,
            span: None,
            task: None,
            spawned_at: None,
            started_at: wall_clock(stall.since),
            duration,
            duration_error: stall.error,
            time: stall.split,
            asleep_in: stall.call.map(crate::capture::call_name),
            missing: Vec::new(),
            suppressed: 0,
        }
    }

    /// The report in one line: what a log shows first.
    ///
    /// `worker 1 of "api" blocked for 127 ms so far: asleep in clock_nanosleep, in request > get_user`
    pub fn headline(&self) -> Headline<'_> {
        Headline(self)
    }
}

/// The first line of a report; made by [`StallReport::headline`].
#[derive(Clone, Copy, Debug)]
pub struct Headline<'a>(&'a StallReport);

impl fmt::Display for Headline<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let StallReport {
            worker, runtime, ..
        } = self.0;
        write!(f, "worker {worker} of {runtime:?} ")?;
        f.write_str(match (self.0.certainty, self.0.phase) {
            (Certainty::Certain, Phase::Ended) => "was blocked for ",
            (Certainty::Certain, _) => "blocked for ",
            (Certainty::Likely, Phase::Ended) => "was probably blocked for ",
            (Certainty::Likely, _) => "probably blocked for ",
        })?;
        write!(f, "{}", Human(self.0.duration))?;
        if self.0.phase != Phase::Ended {
            f.write_str(" so far")?;
        }
        let parts = Why(self.0).parts();
        if let Some((longest, what)) = parts.first() {
            // Half of the time and more: below that, no part speaks for the whole.
            if *longest * 2 >= self.0.time.total() {
                write!(f, ": {what}")?;
            }
        }
        match &self.0.span {
            Some(span) => write!(f, ", in {span}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for StallReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            id,
            runtime,
            worker,
            ..
        } = self;
        write!(
            f,
            "stall #{id}   runtime {runtime:?}, worker {worker}, {}",
            Human(self.duration)
        )?;
        if self.phase != Phase::Ended {
            f.write_str(" so far")?;
        }
        if self.duration_error >= Duration::from_micros(100) {
            write!(f, " (± {})", Human(self.duration_error))?;
        }
        f.write_str(match self.certainty {
            Certainty::Certain => ", certain",
            Certainty::Likely => ", likely: one long poll, or many short ones in a row",
        })?;
        if let Some(span) = &self.span {
            write!(f, "\n  in        {span}")?;
        }
        let why = Why(self).to_string();
        if !why.is_empty() {
            write!(f, "\n  why       {why}")?;
        }
        match (self.task, &self.spawned_at) {
            (Some(task), Some(place)) => write!(f, "\n  task      {task}, spawned at {place}")?,
            (Some(task), None) => write!(f, "\n  task      {task}")?,
            (None, _) => {}
        }
        if let Some(thread) = &self.thread {
            write!(f, "\n  thread    {thread}")?;
            if let Some(tid) = self.tid {
                write!(f, " ({tid})")?;
            }
        }
        for missing in &self.missing {
            write!(f, "\n  missing   {missing}")?;
        }
        if self.suppressed > 0 {
            write!(
                f,
                "\n  unlogged  {} stalls since the last one shown",
                self.suppressed
            )?;
        }
        Ok(())
    }
}

/// The known parts of the time that are worth a word, the longest first.
struct Why<'a>(&'a StallReport);

/// Parts below this share of the whole are left out.
const WORTH_A_WORD: f64 = 0.01;

impl Why<'_> {
    fn parts(&self) -> Vec<(Duration, String)> {
        let StallReport {
            time, asleep_in, ..
        } = self.0;
        let asleep = match asleep_in {
            Some(call) => format!("asleep in {call}"),
            None => "asleep".to_owned(),
        };
        let mut parts = vec![
            (time.cpu, "computing".to_owned()),
            (time.asleep, asleep),
            (time.run_queue, "without a CPU".to_owned()),
            (time.stopped, "with the whole process stopped".to_owned()),
        ];
        parts.retain(|(part, _)| *part >= self.least());
        parts.sort_by_key(|(part, _)| std::cmp::Reverse(*part));
        parts
    }

    fn least(&self) -> Duration {
        let share = self.0.time.total().mul_f64(WORTH_A_WORD);
        share.max(Duration::from_micros(50))
    }
}

impl fmt::Display for Why<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = self.parts();
        let unknown = self.0.time.unknown;
        if unknown >= self.least() {
            parts.push((unknown, "unknown".to_owned()));
        }
        for (index, (part, what)) in parts.iter().enumerate() {
            let comma = if index > 0 { ", " } else { "" };
            write!(f, "{comma}{what} {}", Human(*part))?;
        }
        Ok(())
    }
}

/// A closure that waits, or waited, too long for a thread of the blocking pool.
///
/// The detector sends a closure of its own through `spawn_blocking` now and then, one at a time. If it
/// waits beyond [`Builder::pool_threshold`](crate::Builder::pool_threshold), so do all others: the pool
/// is exhausted. No worker is held by that.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct PoolWaitReport {
    /// Counts together with the stalls.
    pub id: u64,
    /// Whether it still waits.
    pub phase: Phase,
    /// The name under which the runtime is watched.
    pub runtime: String,
    /// When the closure was handed to the pool, by the wall clock.
    #[cfg_attr(feature = "serde", serde(serialize_with = "unix_seconds"))]
    pub started_at: SystemTime,
    /// How long it has been waiting, or waited.
    #[cfg_attr(
        feature = "serde",
        serde(rename = "waited_seconds", serialize_with = "seconds")
    )]
    pub waited: Duration,
}

impl fmt::Display for PoolWaitReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { runtime, .. } = self;
        let waited = Human(self.waited);
        match self.phase {
            Phase::Ended => write!(
                f,
                "the blocking pool of {runtime:?} let a closure wait for {waited}"
            ),
            _ => write!(
                f,
                "the blocking pool of {runtime:?} is exhausted: a closure has waited for {waited} so far"
            ),
        }
    }
}

/// A duration as people write it: three figures, and the unit that fits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Human(pub(crate) Duration);

impl fmt::Display for Human {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs_f64();
        let (value, unit) = match seconds {
            s if s >= 0.9995 => (s, "s"),
            s if s >= 0.000_999_5 => (s * 1e3, "ms"),
            s => (s * 1e6, "µs"),
        };
        match value {
            v if v >= 99.95 => write!(f, "{v:.0} {unit}"),
            v if v >= 9.995 => write!(f, "{v:.1} {unit}"),
            v => write!(f, "{v:.2} {unit}"),
        }
    }
}

#[cfg(feature = "serde")]
pub(crate) fn seconds<S: serde::Serializer>(
    duration: &Duration,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64())
}

#[cfg(feature = "serde")]
fn unix_seconds<S: serde::Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    let since = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    serializer.serialize_f64(since.as_secs_f64())
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn report() -> StallReport {
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
            asleep_in: Some("clock_nanosleep".to_owned()),
            missing: Vec::new(),
            suppressed: 0,
        }
    }

    #[test]
    fn a_report_reads_as_documented() {
        let mut report = report();
        report.time.asleep = Duration::from_micros(120_000);
        report.time.cpu = Duration::from_micros(300);
        report.time.run_queue = Duration::from_micros(7_100);
        let report = || report.clone();
        assert_eq!(
            report().headline().to_string(),
            "worker 1 of \"api\" blocked for 127 ms so far: asleep in clock_nanosleep, in request > get_user"
        );
        assert_eq!(
            report().to_string(),
            "stall #17   runtime \"api\", worker 1, 127 ms so far, certain\n  \
             in        request > get_user\n  \
             why       asleep in clock_nanosleep 120 ms, without a CPU 7.10 ms\n  \
             task      318, spawned at src/main.rs:20\n  \
             thread    tokio-rt-worker (4711)"
        );
    }

    #[test]
    fn a_report_says_what_it_does_not_know() {
        let unsure = StallReport {
            phase: Phase::Ended,
            certainty: Certainty::Likely,
            span: None,
            task: None,
            spawned_at: None,
            thread: None,
            duration_error: Duration::from_micros(2_500),
            missing: vec![Missing::Unmarked],
            suppressed: 4,
            ..report()
        };
        assert_eq!(
            unsure.headline().to_string(),
            "worker 1 of \"api\" was probably blocked for 127 ms"
        );
        assert_eq!(
            unsure.to_string(),
            "stall #17   runtime \"api\", worker 1, 127 ms (± 2.50 ms), likely: one long poll, or many short ones in a row\n  \
             missing   no name: no span, `watched` or `watch_polls` marked this poll\n  \
             unlogged  4 stalls since the last one shown"
        );
    }

    #[test]
    fn durations_have_three_figures_and_a_unit_that_fits() {
        let shown = |micros| Human(Duration::from_micros(micros)).to_string();
        assert_eq!(shown(0), "0.00 µs");
        assert_eq!(shown(420), "420 µs");
        assert_eq!(shown(9_994), "9.99 ms");
        assert_eq!(shown(9_999), "10.0 ms");
        assert_eq!(shown(126_800), "127 ms");
        assert_eq!(shown(999_900), "1.00 s");
        assert_eq!(shown(61_000_000), "61.0 s");
    }

    #[cfg(feature = "serde")]
    #[test]
    fn json_has_seconds_and_no_line_breaks() {
        let json = serde_json::to_string(&report()).unwrap();
        assert!(!json.contains('\n'));
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(value["duration_seconds"], 0.1274);
        assert_eq!(value["span"], "request > get_user");
        assert_eq!(value["phase"], "ongoing");
        assert_eq!(value["certainty"], "certain");
    }
}
