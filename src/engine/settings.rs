//! The settings of a watch: how it looks, and where its reports go.
//!
//! *Runs on:* the thread that starts a watch makes them. Every thread of the detector reads them.

#[cfg(feature = "serve")]
use super::Liveness;
#[cfg(feature = "metrics")]
use super::Target;
#[cfg(feature = "serve")]
use super::recording::RecordStalls;
use crate::clock::Nanos;
use crate::explain::OwnCode;
#[cfg(feature = "tower")]
use crate::report::RequestReport;
use crate::report::{Frame, PoolWaitReport, StallReport, TraceContext};
use crate::slot::PollTiming;
#[cfg(feature = "metrics")]
use crate::slot::polls;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tracing::Dispatch;
use tracing::span::Id;

/// A stall of this age is written to standard error, in case the logger is stuck.
pub(crate) const ENDLESS_AFTER: Duration = Duration::from_secs(10);
/// The longest tick at any threshold, and the tick once every worker has been parked for ten
/// seconds.
pub(crate) const LONGEST_TICK: Duration = Duration::from_millis(25);
/// The shortest tick that is chosen by default.
pub(crate) const SHORTEST_TICK: Duration = Duration::from_micros(500);

/// How the stacks of stalled threads are taken; for [`Builder::stacks`](crate::Builder::stacks).
///
/// The stack of a thread that sleeps in a system call is read from outside, and the thread notices
/// nothing. A directed signal makes a thread that computes copy its registers and stack, and go on.
/// The pause takes some ten microseconds. The first signal comes one tick before the threshold, so
/// a poll that ends just below the threshold may be signalled.
///
/// A thread that sleeps is signalled where that is the only way: [`guide::limits`] lists the cases.
/// The kernel restarts the call, except for the few that it never restarts, such as `poll`,
/// `nanosleep` or `select`: these return early with `EINTR`. Rust's standard library calls them
/// again; C libraries may not.
///
/// [`guide::limits`]: crate::guide::limits
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Stacks {
    /// By `SIGURG`, which does nothing where it is not handled, and which debuggers pass on. If it
    /// has a handler already, no stacks are taken, and [`Coverage`](crate::Coverage) shows it.
    #[default]
    Auto,
    /// Not at all: no signal is sent, and reports have no sites.
    Off,
    /// By this signal, such as `libc::SIGRTMIN() + 3`.
    Signal(i32),
}

/// The user's own advice, by function.
#[derive(Clone, Debug, Default)]
pub(crate) struct Advice(pub(crate) Vec<(String, String)>);

impl Advice {
    /// The first advice for a function on this stack.
    pub(crate) fn find(&self, frames: &[Frame]) -> Option<&str> {
        let is_on_stack = |function: &str| {
            let names = frames.iter().filter_map(|frame| frame.function.as_deref());
            names.into_iter().any(|name| name.contains(function))
        };
        self.0
            .iter()
            .find(|(function, _)| is_on_stack(function))
            .map(|(_, text)| text.as_str())
    }
}

type OnStall = Arc<dyn Fn(&StallReport) + Send + Sync>;
#[cfg(feature = "tower")]
type OnSlowRequest = Arc<dyn Fn(&RequestReport) + Send + Sync>;
type FindTrace = Arc<dyn Fn(&Id, &Dispatch) -> Option<TraceContext> + Send + Sync>;
type OnPoolWait = Arc<dyn Fn(&PoolWaitReport) + Send + Sync>;

/// The settings of one watch.
#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) threshold: Duration,
    /// As asked for; `None` for the default.
    pub(crate) tick: Option<Duration>,
    pub(crate) warn_after: Duration,
    pub(crate) error_after: Duration,
    pub(crate) grace: Duration,
    pub(crate) log: bool,
    /// As asked for; `None` for the default.
    pub(crate) pool_threshold: Option<Duration>,
    pub(crate) poll_timing: PollTiming,
    pub(crate) recent: usize,
    /// The most pairs of span and site with labels of their own in metrics.
    pub(crate) site_labels: usize,
    #[cfg(feature = "serve")]
    pub(crate) liveness: Liveness,
    /// Whether the states of workers are kept: something shows them.
    #[cfg(feature = "serve")]
    pub(crate) records: bool,
    #[cfg(feature = "serve")]
    pub(crate) record_stalls: Option<RecordStalls>,
    /// The most names of polls with a label of their own in metrics.
    #[cfg(feature = "metrics")]
    pub(crate) poll_labels: usize,
    /// The recorder for metrics.
    #[cfg(feature = "metrics")]
    pub(crate) metrics: Target,
    /// The thread that drives the runtime starts the watch, and drives it as long as the watch
    /// lasts.
    pub(crate) driven_here: bool,
    /// Whether turns are to be counted.
    pub(crate) turns: bool,
    pub(crate) stacks: Stacks,
    pub(crate) own_code: OwnCode,
    pub(crate) advice: Advice,
    pub(crate) on_stall: Option<OnStall>,
    pub(crate) traces: Option<FindTrace>,
    pub(crate) on_pool_wait: Option<OnPoolWait>,
    /// The function for requests that take so long.
    #[cfg(feature = "tower")]
    pub(crate) on_slow_request: Option<(Duration, OnSlowRequest)>,
    /// The settings that the environment has given, by key.
    pub(crate) from_env: Vec<&'static str>,
}

impl Settings {
    // The defaults. The reasons stand at the constants of `Builder`.
    pub(crate) const THRESHOLD: Duration = Duration::from_millis(10);
    pub(crate) const MIN_THRESHOLD: Duration = Duration::from_micros(100);
    pub(crate) const WARN_AFTER: Duration = Duration::from_millis(100);
    pub(crate) const ERROR_AFTER: Duration = Duration::from_secs(1);
    pub(crate) const STARTUP_GRACE: Duration = Duration::from_secs(2);
    pub(crate) const POOL_THRESHOLD: Duration = Duration::from_millis(100);
    pub(crate) const RECENT: usize = 64;
    pub(crate) const SITE_LABELS: usize = 64;
    #[cfg(feature = "metrics")]
    pub(crate) const POLL_LABELS: usize = polls::NAMES;

    /// The length from which on requests are told of at their end.
    #[cfg(feature = "tower")]
    pub(crate) fn slow_requests_from(&self) -> Option<Duration> {
        self.on_slow_request.as_ref().map(|(length, _)| *length)
    }

    /// Whether the log is still silent after the start. Only the log waits for the grace to end.
    pub(crate) fn is_in_grace(&self, started_at: Nanos, now: Nanos) -> bool {
        now.since(started_at) < self.grace
    }
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            threshold: Settings::THRESHOLD,
            tick: None,
            warn_after: Settings::WARN_AFTER,
            error_after: Settings::ERROR_AFTER,
            grace: Settings::STARTUP_GRACE,
            log: true,
            pool_threshold: None,
            poll_timing: PollTiming::default(),
            recent: Settings::RECENT,
            site_labels: Settings::SITE_LABELS,
            #[cfg(feature = "serve")]
            liveness: Liveness::default(),
            #[cfg(feature = "serve")]
            records: false,
            #[cfg(feature = "serve")]
            record_stalls: None,
            #[cfg(feature = "metrics")]
            poll_labels: Settings::POLL_LABELS,
            #[cfg(feature = "metrics")]
            metrics: Target::default(),
            driven_here: false,
            turns: true,
            stacks: Stacks::Auto,
            own_code: OwnCode::default(),
            advice: Advice::default(),
            on_stall: None,
            traces: None,
            on_pool_wait: None,
            #[cfg(feature = "tower")]
            on_slow_request: None,
            from_env: Vec::new(),
        }
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("threshold", &self.threshold)
            .field("warn_after", &self.warn_after)
            .field("error_after", &self.error_after)
            .field("on_stall", &self.on_stall.is_some())
            .field("traces", &self.traces.is_some())
            .field("on_pool_wait", &self.on_pool_wait.is_some())
            .finish_non_exhaustive()
    }
}
