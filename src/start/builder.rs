//! `watch()`, and the `Builder` with all settings of a watch.
//!
//! *Runs on:* the user's threads.

use super::Guard;
use super::env::EnvText;
#[cfg(feature = "serve")]
use crate::engine::Liveness;
#[cfg(feature = "metrics")]
use crate::engine::Target;
#[cfg(feature = "serve")]
use crate::engine::recording::RecordStalls;
use crate::engine::{Settings, Stacks};
use crate::error::StartError;
#[cfg(feature = "tower")]
use crate::report::RequestReport;
use crate::report::{PoolWaitReport, StallReport, TraceContext};
use crate::reporter;
#[cfg(feature = "serve")]
use crate::serve::ServeToken;
use crate::slot::PollTiming;
#[cfg(feature = "serve")]
use std::net::SocketAddr;
#[cfg(feature = "serve")]
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tracing::Dispatch;
use tracing::span::Id;

/// Watches the runtime this is called in, with the defaults.
///
/// It is the same as `Builder::new().start()`. The runtime has the name given to tokio's
/// `Builder::name`, or else `"main"`; a second one is called by its number, as in `"runtime-7"`.
///
/// # Errors
///
/// See [`StartError`]. The usual one is a call outside of a runtime.
///
/// # Examples
///
/// ```
/// #[tokio::main]
/// async fn main() -> Result<(), tokio_stall::StartError> {
///     let _watch = tokio_stall::watch()?;
///     // The service runs here.
///     Ok(())
/// }
/// ```
pub fn watch() -> Result<Guard, StartError> {
    Builder::new().start()
}

/// The settings of a watch, and its start.
///
/// # Examples
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
    #[cfg(feature = "serve")]
    pub(super) serve: Option<SocketAddr>,
    /// A token, or why it cannot be one.
    #[cfg(feature = "serve")]
    pub(super) serve_token: Option<Result<ServeToken, &'static str>>,
    pub(super) settings: Settings,
    /// The text of the environment, until the start.
    pub(super) env: Option<EnvText>,
    /// Nothing is to be watched.
    pub(super) off: bool,
    /// The start is to print what can be seen.
    pub(super) doctor: bool,
}

impl Builder {
    /// The default of [`threshold`](Self::threshold): 10 ms. A healthy poll does not reach it, and
    /// it is short against the time that a request may take.
    pub const DEFAULT_THRESHOLD: Duration = Settings::THRESHOLD;
    /// The smallest [`threshold`](Self::threshold): 0.1 ms. Ordinary polls take as long as shorter
    /// ones, and the watchdog itself needs not much less to wake up.
    pub const MIN_THRESHOLD: Duration = Settings::MIN_THRESHOLD;
    /// The default of [`warn_after`](Self::warn_after): 100 ms. Users of a service begin to notice
    /// such a delay.
    pub const DEFAULT_WARN_AFTER: Duration = Settings::WARN_AFTER;
    /// The default of [`error_after`](Self::error_after): 1 s. Clients begin to time out.
    pub const DEFAULT_ERROR_AFTER: Duration = Settings::ERROR_AFTER;
    /// The default of [`startup_grace`](Self::startup_grace): 2 s. Programs read files and build
    /// tables when they start, and no request waits yet.
    pub const DEFAULT_STARTUP_GRACE: Duration = Settings::STARTUP_GRACE;
    /// The default of [`pool_threshold`](Self::pool_threshold): 100 ms. Short queues are normal for
    /// the blocking pool; requests feel one of this length.
    pub const DEFAULT_POOL_THRESHOLD: Duration = Settings::POOL_THRESHOLD;
    /// The default of [`recent`](Self::recent): 64 stalls, which take little memory.
    pub const DEFAULT_RECENT: usize = Settings::RECENT;
    /// The default number of pairs of span and site with labels of their own: 64. Each pair is a
    /// series in the metrics' store.
    pub const DEFAULT_SITE_LABELS: usize = Settings::SITE_LABELS;
    /// The default of [`poll_labels`](Self::poll_labels): as many names as a thread has places for.
    #[cfg(feature = "metrics")]
    pub const DEFAULT_POLL_LABELS: usize = Settings::POLL_LABELS;

    /// Begins with all defaults, for the runtime that `start` is called in.
    pub fn new() -> Builder {
        Builder::default()
    }

    /// Begins as [`new`](Self::new) does, and takes settings from the environment variable
    /// `TOKIO_STALL`, which wins over all calls of the builder, before and after.
    ///
    /// So settings can be changed without a build, in the program that has them:
    ///
    /// ```sh
    /// TOKIO_STALL=threshold=20ms,warn=250ms,stacks=off,serve=127.0.0.1:9464 ./service
    /// TOKIO_STALL=off ./service       # nothing is watched; `serve` answers probes
    /// TOKIO_STALL=doctor ./service    # prints what is seen here, and what is not
    /// ```
    ///
    /// Keys are mostly methods of this builder; the guide to production has the table. Durations
    /// have a unit, as in `500us`, `20ms` and `1.5s`. The variable is read by this call, and
    /// understood by [`start`](Self::start). Unset or empty, it changes nothing.
    ///
    /// With `off`, [`Coverage::off`](crate::Coverage::off) and
    /// [`Status::off`](crate::Status::off) are set. No thread is started but that of `serve`, whose
    /// `/health/live` says 200: else a probe has the program restarted. If the address cannot be
    /// had, the program starts without it and a warning says so.
    ///
    /// # Errors
    ///
    /// [`start`](Self::start) returns [`StartError::EnvUnusable`] for a key that does not exist, a
    /// value that cannot be understood, and a setting whose feature is not built in; and
    /// [`StartError::EnvNotUnicode`].
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), tokio_stall::StartError> {
    /// let _watch = tokio_stall::Builder::from_env().start()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn from_env() -> Builder {
        Builder {
            env: EnvText::read(),
            ..Builder::default()
        }
    }

    /// Watches this runtime under this name. Several calls add several runtimes.
    ///
    /// By default, the runtime is the one that [`start`](Self::start) is called in.
    pub fn runtime(mut self, name: impl Into<String>, handle: Handle) -> Builder {
        self.runtimes.push((Some(name.into()), handle));
        self
    }

    /// Sets the time for which one poll may hold its worker before it is a stall.
    ///
    /// By default, this is [`DEFAULT_THRESHOLD`](Self::DEFAULT_THRESHOLD). The least is
    /// [`MIN_THRESHOLD`](Self::MIN_THRESHOLD).
    pub fn threshold(mut self, threshold: Duration) -> Builder {
        self.settings.threshold = threshold;
        self
    }

    /// Sets the time between two looks at an active worker.
    ///
    /// By default, this is a quarter of the threshold where [turns](crate::Coverage::turns) are
    /// counted, and half of it elsewhere; between 0.5 ms and 25 ms. A stall is reported within the
    /// threshold and two ticks.
    ///
    /// While every worker is parked, a tick takes half the threshold, and after a second the
    /// threshold, each between 5 ms and 25 ms. After ten seconds it takes 25 ms.
    pub fn tick(mut self, tick: Duration) -> Builder {
        self.settings.tick = Some(tick);
        self
    }

    /// Sets whether the turns of the workers' loops are counted. By default, they are.
    ///
    /// Turns distinguish one long poll from many short ones without marks. Tokio does not publish
    /// them: they are words of its scheduler's memory, found by their behaviour, and read through
    /// the kernel. Nothing is written. [`Coverage::turns`](crate::Coverage::turns) shows whether
    /// they were found.
    pub fn turns(mut self, counted: bool) -> Builder {
        self.settings.turns = counted;
        self
    }

    /// Sets the length from which on stalls are logged as `WARN`.
    ///
    /// By default, this is [`DEFAULT_WARN_AFTER`](Self::DEFAULT_WARN_AFTER). Shorter stalls are
    /// counted, kept and given to [`on_stall`](Self::on_stall) all the same.
    pub fn warn_after(mut self, length: Duration) -> Builder {
        self.settings.warn_after = length;
        self
    }

    /// Sets the length from which on stalls are logged as `ERROR`.
    ///
    /// By default, this is [`DEFAULT_ERROR_AFTER`](Self::DEFAULT_ERROR_AFTER).
    pub fn error_after(mut self, length: Duration) -> Builder {
        self.settings.error_after = length;
        self
    }

    /// Sets the time after the start in which no stall is logged.
    ///
    /// By default, this is [`DEFAULT_STARTUP_GRACE`](Self::DEFAULT_STARTUP_GRACE).
    pub fn startup_grace(mut self, grace: Duration) -> Builder {
        self.settings.grace = grace;
        self
    }

    /// Sets whether stalls are logged as `tracing` events with the target `tokio_stall`. By
    /// default, they are.
    ///
    /// Logs are limited: one stall per runtime, function, span and cause a minute, ten a minute in
    /// all. The next event has the number of those that were left out. If no subscriber hears them,
    /// their text goes to standard error, unless the filter is meant to hide them. The guide to the
    /// log's format has all events and fields.
    pub fn log(mut self, log: bool) -> Builder {
        self.settings.log = log;
        self
    }

    /// Sets the time for which a closure may wait for a thread of the blocking pool before that is
    /// reported.
    ///
    /// By default, this is [`DEFAULT_POOL_THRESHOLD`](Self::DEFAULT_POOL_THRESHOLD) on multi-thread
    /// runtimes. The pool of a `current_thread` runtime is asked only if this is called: to ask a
    /// pool that the program does not use would give it a thread, for which the runtime waits when
    /// it is dropped.
    ///
    /// The time in which a thread of the pool waits for a CPU does not count. Without stacks,
    /// nothing is reported before half a second. Less than a millisecond counts as one.
    pub fn pool_threshold(mut self, threshold: Duration) -> Builder {
        self.settings.pool_threshold = Some(threshold.max(Duration::from_millis(1)));
        self
    }

    /// Sets which polls have their begin and end measured. By default, this is
    /// [`PollTiming::Sampled`].
    ///
    /// The setting holds for the whole process; that of the last watch started counts.
    ///
    /// # Examples
    ///
    /// ```
    /// use tokio_stall::{Builder, PollTiming};
    ///
    /// let builder = Builder::new().poll_timing(PollTiming::Every);
    /// # drop(builder);
    /// ```
    pub fn poll_timing(mut self, timing: PollTiming) -> Builder {
        self.settings.poll_timing = timing;
        self
    }

    /// Sets the number of stalls that [`Guard::recent`] keeps.
    ///
    /// By default, this is [`DEFAULT_RECENT`](Self::DEFAULT_RECENT).
    pub fn recent(mut self, stalls: usize) -> Builder {
        self.settings.recent = stalls;
        self
    }

    /// Sets how the stacks of stalled threads are taken. By default, this is [`Stacks::Auto`].
    ///
    /// # Examples
    ///
    /// For a program with C code that cannot bear an interrupted call:
    ///
    /// ```
    /// use tokio_stall::{Builder, Stacks};
    ///
    /// let builder = Builder::new().stacks(Stacks::Off);
    /// # drop(builder);
    /// ```
    pub fn stacks(mut self, stacks: Stacks) -> Builder {
        self.settings.stacks = stacks;
        self
    }

    /// Adds crates to the user's own code. A stall's [`site`](StallReport::site) is the innermost
    /// frame of own code.
    ///
    /// By default, own code is all code that cargo has not fetched. In a program without debug
    /// information, it is only the crate that the program is named after.
    pub fn own_crates<I>(mut self, names: I) -> Builder
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        self.settings
            .own_code
            .add(names.into_iter().map(Into::into));
        self
    }

    /// Adds an advice for stalls with this function on their stack. It goes before the advice of
    /// this crate.
    ///
    /// `function` is a part of a function's path: of a crate, a module, a type or the function
    /// itself. Several calls add several; a report has the first that fits.
    pub fn advice(mut self, function: impl Into<String>, advice: impl Into<String>) -> Builder {
        self.settings
            .advice
            .0
            .push((function.into(), advice.into()));
        self
    }

    /// Sets the recorder for metrics, instead of the one installed for the whole program.
    ///
    /// See [`metrics`](crate::metrics) for the metrics, and for the times at which they are
    /// recorded.
    #[cfg(feature = "metrics")]
    pub fn recorder(mut self, recorder: Arc<dyn ::metrics::Recorder + Send + Sync>) -> Builder {
        self.settings.metrics = Target::Given(recorder);
        self
    }

    /// Serves a page that shows stalls as they happen, `/metrics`, `/health/live`, `/stalls` and
    /// more at this address.
    ///
    /// A browser gets the page at `/`, and other clients a list of all paths. The server has a
    /// thread and a runtime of its own, so it answers while every worker is blocked.
    ///
    /// Stacks and spans show the insides of the program: choose a loopback address, such as
    /// `([127, 0, 0, 1], 9464)`, or set a [token](Self::serve_token). A kubelet's probe comes to
    /// the pod's own address, so in a pod it has to be `([0, 0, 0, 0], 9464)`. A start at an
    /// address that others may reach, without a token, logs a warning. With port 0 the operating
    /// system chooses; [`Guard::served_at`] has the port.
    ///
    /// # Limits
    ///
    /// At most 64 connections are kept, and each carries one request. Its head may take 10 s and
    /// have 16 KiB, and its address 1 KiB. If all places are taken, a client that has not asked yet
    /// gives way; a request that has come is answered. Beside these, 16 pages can be open at a
    /// time. A page that does not read its news for eight seconds is cut off.
    ///
    /// A page of another site reads nothing: a browser that asks in its name is refused, except at
    /// `/metrics` and `/health/live`, and gives it no answer. On a loopback address the `Host` must
    /// be an address or `localhost`, so that such a page cannot ask under a name of its own.
    ///
    /// `/metrics` has this crate's metrics, and is independent of the program's recorder. For both
    /// in one place, see [`prometheus`](crate::prometheus).
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), tokio_stall::StartError> {
    /// let watch = tokio_stall::Builder::new()
    ///     .serve(([127, 0, 0, 1], 9464))
    ///     .start()?;
    /// # drop(watch);
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "serve")]
    pub fn serve(mut self, address: impl Into<SocketAddr>) -> Builder {
        self.serve = Some(address.into());
        self
    }

    /// Asks clients of the server for this token, on every path but `/health/live`.
    ///
    /// A client sends it as `Authorization: Bearer …`. A person opens `/?token=…` once in a
    /// browser: a cookie takes its place, and lasts until the browser is closed. The connection is
    /// not encrypted, so a proxy with TLS has to stand before a server in an open network.
    ///
    /// The token has 16 to 256 letters, digits and `-._~+/=`; a random one, as from
    /// `openssl rand -hex 16`, cannot be guessed. Without [`serve`](Self::serve) it has no effect.
    ///
    /// # Errors
    ///
    /// [`start`](Self::start) returns [`StartError::ServeTokenUnusable`] for any other token.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let watch = tokio_stall::Builder::new()
    ///     .serve(([0, 0, 0, 0], 9464))
    ///     .serve_token(std::env::var("STALL_TOKEN")?)
    ///     .start()?;
    /// # drop(watch);
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "serve")]
    pub fn serve_token(mut self, token: impl AsRef<str>) -> Builder {
        self.serve_token = Some(ServeToken::new(token.as_ref()));
        self
    }

    /// Writes a recording of each stall that lasts longer than `longer_than` into `directory`.
    ///
    /// A recording has the states of all workers of this watch from 10 s before the stall to 1 s
    /// after it, the stalls of that time with their stacks, and the scheduler lag. It is a trace
    /// that Perfetto and `chrome://tracing` open. The guide to production says how.
    ///
    /// The file is `stall-<id>-<utc>.json`, with the begin of the stall. It is written a second
    /// after the end, and once before, at the first report beyond `longer_than`, in case the
    /// process does not survive the stall. It appears whole: it is written under another name
    /// first. At most `keep` files stay in the directory, at least one; the oldest with such a name
    /// go first, also those of earlier processes. A file has at most some 10 MiB, mostly far less,
    /// and at most 60 are written in a minute. Errors are logged once per kind, and counted in
    /// [`Status`](crate::Status).
    ///
    /// The files show the insides of the program, as reports do. They can be read by the user of
    /// the process alone.
    ///
    /// # Cost
    ///
    /// 64 KiB of memory a worker for up to 256 workers, and some nanoseconds at each look of the
    /// watchdog. A file is written on a thread of its own, `stall-recorder`.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), tokio_stall::StartError> {
    /// # let directory = tempfile::tempdir().unwrap();
    /// # let directory = directory.path().join("stalls");
    /// let _watch = tokio_stall::Builder::new()
    ///     .record_stalls(directory, Duration::from_millis(250), 20)
    ///     .start()?;
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "serve")]
    pub fn record_stalls(
        mut self,
        directory: impl Into<PathBuf>,
        longer_than: Duration,
        keep: usize,
    ) -> Builder {
        self.settings.record_stalls = Some(RecordStalls {
            directory: directory.into(),
            longer_than,
            keep: keep.max(1),
        });
        self
    }

    /// Sets the ages of stalls from which on `/health/live` asks for a restart of the program.
    #[cfg(feature = "serve")]
    pub fn liveness(mut self, liveness: Liveness) -> Builder {
        self.settings.liveness = liveness;
        self
    }

    /// Sets the number of pairs of span path and site that have labels of their own in
    /// `tokio_stall_stalls_by_site_total`. All further pairs are counted as "other".
    ///
    /// By default, this is [`DEFAULT_SITE_LABELS`](Self::DEFAULT_SITE_LABELS).
    #[cfg(feature = "metrics")]
    pub fn site_labels(mut self, pairs: usize) -> Builder {
        self.settings.site_labels = pairs;
        self
    }

    /// Sets the number of names that have a label of their own in
    /// `tokio_stall_poll_duration_seconds`, sixteen at most. All further names are counted as
    /// "other".
    ///
    /// By default, this is [`DEFAULT_POLL_LABELS`](Self::DEFAULT_POLL_LABELS). The setting holds
    /// for the whole process; that of the last watch started counts.
    #[cfg(feature = "metrics")]
    pub fn poll_labels(mut self, names: usize) -> Builder {
        self.settings.poll_labels = names;
        self
    }

    /// Calls `f` with every report: when a stall has begun, when its age has doubled, when it is
    /// over.
    ///
    /// `f` runs on the thread `stall-sinks`, which also logs. While it runs, later reports wait;
    /// when 256 wait, further ones are dropped and counted. A panic of `f` is counted; with
    /// `panic = "abort"` it ends the program. Calls are not limited as logs are.
    ///
    /// # Examples
    ///
    /// ```
    /// use tokio_stall::{Builder, Phase};
    ///
    /// let builder = Builder::new().on_stall(|report| {
    ///     if report.phase == Phase::Ended && !report.cause.is_host() {
    ///         let site = report.site.as_ref().map(ToString::to_string);
    ///         eprintln!("{:?} lost at {}", report.duration, site.unwrap_or_default());
    ///     }
    /// });
    /// # drop(builder);
    /// ```
    pub fn on_stall(mut self, f: impl Fn(&StallReport) + Send + Sync + 'static) -> Builder {
        self.settings.on_stall = Some(Arc::new(f));
        self
    }

    /// Asks `find` for the trace of a stalled poll, by its innermost span and the subscriber of
    /// that span. Reports have the answer in [`StallReport::trace`], and log events in the fields
    /// `trace_id` and `span_id`.
    ///
    /// It needs [`layer()`](crate::layer), since a span marks the poll. For OpenTelemetry:
    ///
    /// ```
    /// use opentelemetry::trace::TraceContextExt as _;
    /// use tokio_stall::{Builder, TraceContext};
    ///
    /// let watch = Builder::new().traces(|span, subscriber| {
    ///     let context = tracing_opentelemetry::get_otel_context(span, subscriber)?;
    ///     let ids = context.span().span_context().clone();
    ///     Some(TraceContext::new(ids.trace_id().to_string(), ids.span_id().to_string()))
    /// });
    /// ```
    ///
    /// `find` runs on the thread `stall-sinks`, once for each report until it has found a trace. It
    /// may wait for the locks of a span: meanwhile later reports wait, as for
    /// [`on_stall`](Self::on_stall). A panic of it is counted; with `panic = "abort"` it ends the
    /// program.
    pub fn traces(
        mut self,
        find: impl Fn(&Id, &Dispatch) -> Option<TraceContext> + Send + Sync + 'static,
    ) -> Builder {
        self.settings.traces = Some(Arc::new(find));
        self
    }

    /// Calls `f` with every report of a closure that has waited too long for the blocking pool.
    ///
    /// Thread, waiting reports and panics are as for [`on_stall`](Self::on_stall).
    pub fn on_pool_wait(mut self, f: impl Fn(&PoolWaitReport) + Send + Sync + 'static) -> Builder {
        self.settings.on_pool_wait = Some(Arc::new(f));
        self
    }

    /// Calls `f` with a report of each request that took `length` or longer, once it is over.
    ///
    /// Requests are those of services with [`RequestLayer`](crate::tower::RequestLayer). The report
    /// has the parts of the time, and the stalls that held the request up. It comes once it is
    /// decided whether the polls of that time are stalls, mostly within a few ticks.
    ///
    /// Thread, waiting reports and panics are as for [`on_stall`](Self::on_stall).
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), tokio_stall::StartError> {
    /// let _watch = tokio_stall::Builder::new()
    ///     .on_slow_request(Duration::from_millis(250), |request| println!("{request}"))
    ///     .start()?;
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "tower")]
    pub fn on_slow_request(
        mut self,
        length: Duration,
        f: impl Fn(&RequestReport) + Send + Sync + 'static,
    ) -> Builder {
        self.settings.on_slow_request = Some((length, Arc::new(f)));
        self
    }

    /// Declares that this thread drives the runtime as long as the watch lasts, as in a test. Such
    /// a `current_thread` runtime needs no stack to show that it is driven.
    #[cfg(all(feature = "testing", not(loom)))]
    pub(crate) fn driven_here(mut self) -> Builder {
        self.settings.driven_here = true;
        self
    }

    /// Starts watching.
    ///
    /// The first watch of a process starts the detector's threads and calibrates the clock, which
    /// takes some ten milliseconds. Each worker is held once for at most two milliseconds, to find
    /// its thread, and the call waits for that.
    ///
    /// # Errors
    ///
    /// See [`StartError`]. After an error nothing has been started.
    pub fn start(self) -> Result<Guard, StartError> {
        // Somebody expects an effect of it.
        let is_unread = self.env.is_none() && self.settings.log && EnvText::read().is_some();
        let guard = self.plan(Handle::try_current().ok())?.launch()?;
        if is_unread {
            reporter::event::warn_of_use(
                "the environment variable TOKIO_STALL is set, and this watch does not read it; \
                 start it with `Builder::from_env()`",
            );
        }
        Ok(guard)
    }
}
