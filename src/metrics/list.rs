//! The one list of metrics: names, kinds, labels and meanings.
//!
//! *Runs on:* no thread: the list is constant. The exporter, the documentation and the tests read
//! it.
//!
//! Names are complete (`_seconds`, `_total`), so an exporter adds nothing to them.

/// A kind of [metric](METRICS), in the meaning of Prometheus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "snake_case")
)]
#[non_exhaustive]
pub enum MetricKind {
    /// A number that only grows.
    Counter,
    /// A number that goes up and down.
    Gauge,
    /// Values counted by size, and their sum.
    Histogram,
}

impl MetricKind {
    /// The same text as in `Serialize`: `counter`, `gauge` or `histogram`.
    pub fn as_str(self) -> &'static str {
        match self {
            MetricKind::Counter => "counter",
            MetricKind::Gauge => "gauge",
            MetricKind::Histogram => "histogram",
        }
    }
}

/// A metric of this crate; all of them are in [`METRICS`].
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Metric {
    /// The full name, with prefix and unit.
    pub name: &'static str,
    /// The kind of the metric.
    pub kind: MetricKind,
    /// The names of its labels.
    pub labels: &'static [&'static str],
    /// The meaning, in a sentence.
    pub help: &'static str,
    /// The upper bounds of a histogram's buckets, in seconds. Empty for other kinds.
    pub buckets: &'static [f64],
}

/// Bounds for durations from a millisecond to half a minute. An exporter that the program sets up
/// needs them for the histograms of [`METRICS`].
pub const BUCKETS: &[f64] = &crate::tally::BOUNDS;
/// The bounds of [`BUCKETS`] from the default threshold up: no stall is shorter.
const STALL_BUCKETS: &[f64] = BUCKETS.split_at(3).1;
/// One bound for histograms of which only the sum counts. It is a fraction, since Prometheus 2 and
/// 3 write whole numbers differently.
const LEDGER_BUCKETS: &[f64] = &[0.5];

const fn metric(
    name: &'static str,
    kind: MetricKind,
    labels: &'static [&'static str],
    help: &'static str,
) -> Metric {
    Metric {
        name,
        kind,
        labels,
        help,
        buckets: match kind {
            MetricKind::Histogram => BUCKETS,
            _ => &[],
        },
    }
}

const fn with_buckets(metric: Metric, buckets: &'static [f64]) -> Metric {
    Metric { buckets, ..metric }
}

macro_rules! metrics {
    ($($constant:ident = $metric:expr;)*) => {
        $(pub(crate) const $constant: Metric = $metric;)*

        /// All metrics of this crate, in the order of the documentation.
        ///
        /// # Examples
        ///
        /// ```
        /// use tokio_stall::metrics::{METRICS, MetricKind};
        ///
        /// for metric in METRICS.iter().filter(|metric| metric.kind == MetricKind::Histogram) {
        ///     println!("{} has {} buckets", metric.name, metric.buckets.len());
        /// }
        /// ```
        pub const METRICS: &[Metric] = &[$($constant),*];
    };
}

use MetricKind::{Counter, Gauge, Histogram};

metrics! {
    BUILD_INFO = metric(
        "tokio_stall_build_info", Gauge, &["version"],
        "1 while the detector runs, with its version.",
    );
    COVERAGE = metric(
        "tokio_stall_coverage", Gauge, &["runtime", "sees"],
        "Whether the detector sees this: the threads of all workers, every poll, span names, causes, calls asleep in, stacks, lines, turns, all runtimes, the future of `block_on`, and whether the log is heard.",
    );
    WORKERS = metric(
        "tokio_stall_workers", Gauge, &["runtime"],
        "Workers of the runtime.",
    );
    STALLS = metric(
        "tokio_stall_stalls_total", Counter, &["runtime", "cause", "kind", "certainty"],
        "Stalls, when detected. One that is likely first and certain later is counted under both.",
    );
    STALL_DURATION = with_buckets(metric(
        "tokio_stall_stall_duration_seconds", Histogram, &["runtime", "cause"],
        "How long certain stalls took, when they are over; the sum is the time that workers lost.",
    ), STALL_BUCKETS);
    STALLS_BY_SITE = metric(
        "tokio_stall_stalls_by_site_total", Counter, &["runtime", "span", "site"],
        "Stalls by spans and by function, when they are over, likely ones too. Beyond a limit both labels are \"other\".",
    );
    WORKER_STALLED = metric(
        "tokio_stall_worker_stalled_seconds", Gauge, &["runtime", "worker"],
        "The age of the certain stall going on, of one that is known by counting the share of one poll; 0 for none.",
    );
    LONGEST_RECENT = metric(
        "tokio_stall_longest_recent_seconds", Gauge, &["runtime"],
        "The longest certain stall of the last minute, over or not.",
    );
    WORKER_TIME = with_buckets(metric(
        "tokio_stall_worker_time_seconds", Histogram, &["runtime", "state"],
        "What the time of workers goes into, added about once a second: the sums of all states add up to wall time.",
    ), LEDGER_BUCKETS);
    WORKER_TURNS = metric(
        "tokio_stall_worker_turns_total", Counter, &["runtime", "worker"],
        "Turns of the worker's loop, where they are counted. A turn polls one task, and up to three more. Workers beyond a limit are \"other\".",
    );
    DRIVER_FROZEN = with_buckets(metric(
        "tokio_stall_driver_frozen_seconds", Histogram, &["runtime"],
        "Time in which no socket and no timer of the runtime moved, because stalls left nobody to wait for them. Added about once a second; only the sum counts.",
    ), LEDGER_BUCKETS);
    SCHEDULER_LAG = metric(
        "tokio_stall_scheduler_lag_seconds", Histogram, &["runtime"],
        "How long a task that is ready waits for a worker.",
    );
    SCHEDULER_LAG_ONGOING = metric(
        "tokio_stall_scheduler_lag_ongoing_seconds", Gauge, &["runtime"],
        "How long the task sent last to measure scheduler lag has been waiting; 0 once it has run.",
    );
    POLL_DURATION = metric(
        "tokio_stall_poll_duration_seconds", Histogram, &["runtime", "span"],
        "How long polls took that were marked and timed, a sample of all; the outermost span or name.",
    );
    POLLS = metric(
        "tokio_stall_polls_total", Counter, &["runtime"],
        "Polls that were marked: in a span, a watched future, or by the runtime's hooks.",
    );
    QUEUE_WAIT = metric(
        "tokio_stall_blocking_queue_wait_seconds", Histogram, &["runtime"],
        "How long a `spawn_blocking` closure waits for a thread.",
    );
    QUEUE_WAIT_ONGOING = metric(
        "tokio_stall_blocking_queue_wait_ongoing_seconds", Gauge, &["runtime"],
        "How long the closure sent last to measure that has been waiting; 0 once it has run.",
    );
    REQUEST_DURATION = metric(
        "tokio_stall_request_seconds", Histogram, &["runtime", "route"],
        "How long requests took, to the end of the response's body. Routes beyond a limit are \"other\".",
    );
    REQUEST_LOST = metric(
        "tokio_stall_request_lost_seconds", Histogram, &["runtime", "route"],
        "The time that requests were ready and not polled while the runtime was stalled, of those that lost any.",
    );
    REQUEST_LOST_BY_SITE = with_buckets(metric(
        "tokio_stall_request_lost_by_site_seconds", Histogram, &["runtime", "span", "site"],
        "The time that requests lost to stalls, by the stalls' spans and functions, added when they are over; only the sum counts.",
    ), LEDGER_BUCKETS);
    BUSY_RATIO = metric(
        "tokio_stall_runtime_busy_ratio", Gauge, &["runtime"],
        "The share of time in which workers were not parked, stalls going on included.",
    );
    ALIVE_TASKS = metric(
        "tokio_stall_runtime_alive_tasks", Gauge, &["runtime"],
        "Tasks of the runtime that are not finished.",
    );
    GLOBAL_QUEUE = metric(
        "tokio_stall_runtime_global_queue_depth", Gauge, &["runtime"],
        "Tasks that wait in the runtime's global queue.",
    );
    PARKS = metric(
        "tokio_stall_runtime_parks_total", Counter, &["runtime"],
        "How often workers have parked.",
    );
    WATCHDOG_LAG = metric(
        "tokio_stall_watchdog_lag_seconds", Histogram, &[],
        "How late the watchdog itself woke: the host's trouble, not the code's.",
    );
    LAST_TICK = metric(
        "tokio_stall_watchdog_last_tick_timestamp_seconds", Gauge, &[],
        "When the watchdog last looked, in seconds since 1970; 0 after it was stopped.",
    );
    DROPPED = metric(
        "tokio_stall_dropped_total", Counter, &["what"],
        "What the detector lost: reports held up, callbacks that panicked, labels beyond the limit, timed polls, news of requests.",
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_follow_the_rules_of_prometheus() {
        let mut names = HashSet::new();
        for metric in METRICS {
            let Metric { name, kind, .. } = *metric;
            assert!(names.insert(name), "{name} stands twice");
            assert!(name.starts_with("tokio_stall_"), "{name}");
            assert_eq!(name.ends_with("_total"), kind == Counter, "{name}");
            assert!(kind != Histogram || name.ends_with("_seconds"), "{name}");
            assert!(metric.help.ends_with('.'), "{name}");
            assert_eq!(metric.buckets.is_empty(), kind != Histogram, "{name}");
            assert!(metric.buckets.is_sorted(), "{name}");
        }
    }

    #[test]
    fn stalls_have_the_bounds_from_the_default_threshold_on() {
        let threshold = crate::engine::Settings::THRESHOLD.as_secs_f64();
        assert_eq!(STALL_DURATION.buckets.first(), Some(&threshold));
    }
}
