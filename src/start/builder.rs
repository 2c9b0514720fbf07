//! `watch()`, and the `Builder` with everything that can be chosen.
//!
//! *Runs on:* the user's threads.

use super::Guard;
#[cfg(feature = "serve")]
use crate::engine::Liveness;
#[cfg(feature = "metrics")]
use crate::engine::Target;
use crate::engine::{Settings, Stacks};
use crate::error::StartError;
use crate::explain::OwnCode;
use crate::report::{PoolWaitReport, StallReport};
use crate::slot::PollTiming;
#[cfg(feature = "serve")]
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;

/// Watches the runtime this is called in, with the defaults.
///
/// The same as `Builder::new().start()`. The runtime is named as tokio's `Builder::name` says, else
/// `"main"`, and a second one `"runtime-7"` after its number.
///
/// # Errors
///
/// See [`StartError`]; the usual one is to call this outside of a runtime.
///
/// # Examples
///
/// ```
/// #[tokio::main]
/// async fn main() -> Result<(), tokio_stall::StartError> {
///     let _watch = tokio_stall::watch()?;
///     // … the service …
///     Ok(())
/// }
/// ```
pub fn watch() -> Result<Guard, StartError> {
    Builder::new().start()
}

/// Everything about a watch that can be chosen.
///
/// ```
/// use std::time::Duration;
///
/// # #[tokio::main]
/// # async fn main() -> Result<(), tokio_stall::StartError> {
/// let watch = tokio_stall::Builder::new()
///     .runtime("api", tokio::runtime::Handle::current())
///     .threshold(Duration::from_millis(20))
///     .on_stall(|report| eprintln!("{report}"))
///     .start()?;
/// # drop(watch);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Default)]
#[must_use = "nothing is watched until `start`"]
pub struct Builder {
    pub(super) runtimes: Vec<(Option<String>, Handle)>,
    pub(super) tick: Option<Duration>,
    #[cfg(feature = "serve")]
    pub(super) serve: Option<SocketAddr>,
    pub(super) settings: Settings,
}

impl Builder {
    /// Ten milliseconds: long enough that a healthy poll does not reach it, short enough that the delay
    /// of one request's budget does.
    pub const DEFAULT_THRESHOLD: Duration = Settings::THRESHOLD;
    /// A tenth of a millisecond: below it, ordinary polls are "stalls", and the watchdog's own waking is
    /// not much shorter.
    pub const MIN_THRESHOLD: Duration = Settings::MIN_THRESHOLD;
    /// What a user of the service begins to notice.
    pub const DEFAULT_WARN_AFTER: Duration = Settings::WARN_AFTER;
    /// What clients begin to time out on.
    pub const DEFAULT_ERROR_AFTER: Duration = Settings::ERROR_AFTER;
    /// Programs read files and build tables when they start; nobody waits for them yet.
    pub const DEFAULT_STARTUP_GRACE: Duration = Settings::STARTUP_GRACE;
    /// The blocking pool is meant to have queues; a tenth of a second is one that requests feel.
    pub const DEFAULT_POOL_THRESHOLD: Duration = Settings::POOL_THRESHOLD;
    /// Enough to look back on, little enough to keep.
    pub const DEFAULT_RECENT: usize = Settings::RECENT;
    /// Enough for the sites that matter; each is a series in the metrics' store.
    pub const DEFAULT_SITE_LABELS: usize = Settings::SITE_LABELS;
    /// As many as a thread has places for.
    #[cfg(feature = "metrics")]
    pub const DEFAULT_POLL_LABELS: usize = Settings::POLL_LABELS;

    /// All defaults, for the runtime that `start` is called in.
    pub fn new() -> Builder {
        Builder::default()
    }

    /// Watches this runtime under this name. Can be called several times.
    ///
    /// By default, the runtime is the one that [`start`](Self::start) is called in.
    pub fn runtime(mut self, name: impl Into<String>, handle: Handle) -> Builder {
        self.runtimes.push((Some(name.into()), handle));
        self
    }

    /// How long one poll may hold its worker before it is a stall.
    ///
    /// By default, this is [`DEFAULT_THRESHOLD`](Self::DEFAULT_THRESHOLD), at least
    /// [`MIN_THRESHOLD`](Self::MIN_THRESHOLD).
    pub fn threshold(mut self, threshold: Duration) -> Builder {
        self.settings.threshold = threshold;
        self
    }

    /// How often an active worker is looked at.
    ///
    /// By default, this is a quarter of the threshold where [turns](crate::Coverage::turns) are counted, and half of
    /// it elsewhere; between 0.5 ms and 25 ms. A stall is reported within the threshold and two ticks. While
    /// every worker is parked the watchdog looks twice a threshold, after a second once, each at least every
    /// 25 ms and at most every 5 ms, and after ten seconds every 25 ms.
    pub fn tick(mut self, tick: Duration) -> Builder {
        self.tick = Some(tick);
        self
    }

    /// Whether the turns of the workers' loops are counted, which tells one long poll from many short ones where
    /// nothing marks them. By default, they are.
    ///
    /// Tokio does not publish them: they are words of its scheduler's memory, found by how they behave, and
    /// read through the kernel. Nothing is written. [`Coverage::turns`](crate::Coverage::turns) says whether they could be found.
    pub fn turns(mut self, counted: bool) -> Builder {
        self.settings.turns = counted;
        self
    }

    /// From which length on stalls are logged, as `WARN`.
    ///
    /// By default, this is [`DEFAULT_WARN_AFTER`](Self::DEFAULT_WARN_AFTER). Shorter ones are counted,
    /// kept and given to [`on_stall`](Self::on_stall) all the same.
    pub fn warn_after(mut self, length: Duration) -> Builder {
        self.settings.warn_after = length;
        self
    }

    /// From which length on stalls are logged as `ERROR`.
    ///
    /// By default, this is [`DEFAULT_ERROR_AFTER`](Self::DEFAULT_ERROR_AFTER).
    pub fn error_after(mut self, length: Duration) -> Builder {
        self.settings.error_after = length;
        self
    }

    /// For how long after the start nothing is logged.
    ///
    /// By default, this is [`DEFAULT_STARTUP_GRACE`](Self::DEFAULT_STARTUP_GRACE).
    pub fn startup_grace(mut self, grace: Duration) -> Builder {
        self.settings.grace = grace;
        self
    }

    /// Whether stalls are logged as `tracing` events with the target `tokio_stall`. By default, they are.
    ///
    /// Logs are limited: one stall per runtime and span a minute, ten a minute in all; the next one says
    /// how many were left out.
    pub fn log(mut self, log: bool) -> Builder {
        self.settings.log = log;
        self
    }

    /// How long a closure may wait for a thread of the blocking pool before that is reported.
    ///
    /// By default, this is [`DEFAULT_POOL_THRESHOLD`](Self::DEFAULT_POOL_THRESHOLD).
    pub fn pool_threshold(mut self, threshold: Duration) -> Builder {
        self.settings.pool_threshold = threshold;
        self
    }

    /// How many polls have their start and end measured. By default, this is [`PollTiming::Sampled`].
    ///
    /// Holds for the whole process; the last watch started decides.
    pub fn poll_timing(mut self, timing: PollTiming) -> Builder {
        self.settings.poll_timing = timing;
        self
    }

    /// How many stalls [`Guard::recent`] keeps. By default, this is [`DEFAULT_RECENT`](Self::DEFAULT_RECENT).
    pub fn recent(mut self, stalls: usize) -> Builder {
        self.settings.recent = stalls;
        self
    }

    /// How the stacks of stalled threads are taken. By default, this is [`Stacks::Auto`].
    pub fn stacks(mut self, stacks: Stacks) -> Builder {
        self.settings.stacks = stacks;
        self
    }

    /// Crates that are the user's own code, besides those of the workspace: a stall's
    /// [`site`](StallReport::site) is the innermost frame of own code.
    ///
    /// By default, own is what cargo has not fetched; in a program without debug information, only the
    /// crate that the program is named after.
    pub fn own_crates<I>(mut self, names: I) -> Builder
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        self.settings.own_code = OwnCode::new(names.into_iter().map(Into::into));
        self
    }

    /// What reports say to do about stalls with this function on their stack, before the advice that comes
    /// with the crate. Can be called several times; the first that fits is given.
    ///
    /// `function` is a part of a function's path: of a crate, a module, a type or the function itself.
    pub fn advice(mut self, function: impl Into<String>, advice: impl Into<String>) -> Builder {
        self.settings
            .advice
            .0
            .push((function.into(), advice.into()));
        self
    }

    /// Where metrics go, instead of to the recorder installed for the whole program.
    ///
    /// See [`metrics`](crate::metrics) for what is recorded, and when.
    #[cfg(feature = "metrics")]
    pub fn recorder(mut self, recorder: Arc<dyn ::metrics::Recorder + Send + Sync>) -> Builder {
        self.settings.metrics = Target::Given(recorder);
        self
    }

    /// Serves `/metrics`, `/health/live`, `/stalls` and `/stalls/folded` at this address, from a thread and a
    /// runtime of the detector's own: they answer while every worker is blocked.
    ///
    /// There is no authentication, and stacks and spans tell about the program: choose a loopback address,
    /// such as `([127, 0, 0, 1], 9464)`, or one that only the scraper reaches. A kubelet's probe comes to the
    /// pod's own address, so there it has to be `([0, 0, 0, 0], 9464)`. With port 0 the operating system
    /// chooses; [`Guard::served_at`] has the port. At most 64 connections are kept; a request's head may take
    /// 10 s and have 16 KiB; a connection lives for a minute.
    ///
    /// `/metrics` has this crate's metrics, and is independent of any recorder the program has. For both in
    /// one place, see [`prometheus`](crate::prometheus).
    #[cfg(feature = "serve")]
    pub fn serve(mut self, address: impl Into<SocketAddr>) -> Builder {
        self.serve = Some(address.into());
        self
    }

    /// When `/health/live` says that the program should be restarted.
    #[cfg(feature = "serve")]
    pub fn liveness(mut self, liveness: Liveness) -> Builder {
        self.settings.liveness = liveness;
        self
    }

    /// How many pairs of span path and site `tokio_stall_stalls_by_site_total` tells apart; the others are
    /// counted as "other". By default, this is [`DEFAULT_SITE_LABELS`](Self::DEFAULT_SITE_LABELS).
    #[cfg(feature = "metrics")]
    pub fn site_labels(mut self, pairs: usize) -> Builder {
        self.settings.site_labels = pairs;
        self
    }

    /// How many names `tokio_stall_poll_duration_seconds` tells apart, sixteen at most; the others are counted
    /// as "other". By default, this is [`DEFAULT_POLL_LABELS`](Self::DEFAULT_POLL_LABELS).
    ///
    /// Holds for the whole process; the last watch started decides.
    #[cfg(feature = "metrics")]
    pub fn poll_labels(mut self, names: usize) -> Builder {
        self.settings.poll_labels = names;
        self
    }

    /// Calls `f` with every report: when a stall has begun, when its age has doubled, when it is over.
    ///
    /// `f` runs on the detector's own thread. While it runs, later reports wait; beyond 256 of them they
    /// are dropped and counted. If it panics, that is counted. Never limited.
    pub fn on_stall(mut self, f: impl Fn(&StallReport) + Send + Sync + 'static) -> Builder {
        self.settings.on_stall = Some(Arc::new(f));
        self
    }

    /// Calls `f` when a closure has waited too long for the blocking pool; otherwise as
    /// [`on_stall`](Self::on_stall).
    pub fn on_pool_wait(mut self, f: impl Fn(&PoolWaitReport) + Send + Sync + 'static) -> Builder {
        self.settings.on_pool_wait = Some(Arc::new(f));
        self
    }

    /// The watch lives only while this thread drives the runtime that it is started in, as in a test: such a
    /// `current_thread` runtime needs no stack to show that it is driven.
    #[cfg(all(feature = "testing", not(loom)))]
    pub(crate) fn driven_here(mut self) -> Builder {
        self.settings.driven_here = true;
        self
    }

    /// Starts watching.
    ///
    /// The first watch of a process starts its threads and, once, calibrates the clock, which takes some
    /// ten milliseconds. Each worker is held once for at most two milliseconds, to learn which thread it
    /// is, and the call waits for that.
    ///
    /// # Errors
    ///
    /// See [`StartError`]. Nothing has been started then.
    pub fn start(self) -> Result<Guard, StartError> {
        self.plan(Handle::try_current().ok())?.launch()
    }
}
