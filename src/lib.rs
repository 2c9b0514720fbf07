//! Finds the code that blocks a Tokio event loop, while it is blocking.
//!
//! ```
//! # #[tokio::main]
//! # async fn main() -> Result<(), tokio_stall::StartError> {
//! let _watch = tokio_stall::watch()?;
//! # Ok(())
//! # }
//! ```
//!
//! From then on a thread of its own looks at every worker of the runtime, and tells you when one poll
//! holds its worker for longer than 10 ms: which worker, in which span, which line of your code, for how
//! long, why (it computes, it sleeps and in which system call, or it only has no CPU), and what to write
//! instead.
//!
//! ```text
//!  probe ──▶ slot ◀── watchdog ──▶ capture ══(channel)══▶ explain ──▶ report ──▶ log, callback,
//!  marks     per      own thread,   thread states,  own   unwind,     names,     recent(), profile(),
//!  polls     thread   ticks,        registers      thread symbols,    text,      metrics,
//!                     decides       and stack             site, cause, figures    serve: /metrics …
//!                                                         advice
//! ```
//!
//! **You give it** a runtime. Names, if you want them: add [`layer()`] to your subscriber, or
//! [`watched`](FutureExt::watched) to a future, or [`watch_polls`](RuntimeBuilderExt::watch_polls) to
//! your runtime's builder.
//!
//! **It gives you** a report for each stall while it lasts, again whenever its age has doubled, and at
//! its end: as an event of `tracing` from 100 ms on, to a callback, from [`Guard::recent`] and
//! [`Guard::stalled_now`], and as metrics for any recorder of the `metrics` facade, with the age of a stall while it
//! goes on. Over time, [`Guard::profile`] has the stalls by site, and their stacks for a
//! flame graph. [`Guard::worker_stacks`] says what all workers are doing now.
//!
//! **It does not** wrap your spawns, own your runtime, need `tokio_unstable`, or allocate, lock or call
//! anything inside a poll. It never blames code for time in which it had no CPU, `block_in_place` for
//! what it is made for, or a worker that is parked.
//!
//! # Three tiers
//!
//! | set-up | sees | names |
//! |---|---|---|
//! | [`watch()`] | every poll that holds its worker, computing or asleep, for certain | the runtime, worker, thread and task |
//! | + [`layer()`] or [`watched`](FutureExt::watched) | the same, exactly timed where there is a mark | span path, future |
//! | + [`watch_polls`](RuntimeBuilderExt::watch_polls) and `--cfg tokio_unstable` | every poll of every task, exactly timed | place of spawn |
//!
//! # Features
//!
//! | feature | |
//! |---|---|
//! | `metrics` (default) | metrics through the `metrics` facade |
//! | `serde` (default) | `Serialize` for reports |
//! | `stacks` (default) | stacks of stalled threads |
//! | `testing` | [`testing`], for `[dev-dependencies]`: assertions that forbid blocking in a test suite, and do not flake |
//! | `prometheus` | the Prometheus exporter, set up so that it answers during a stall |
//! | `serve` | `/metrics`, `/health/live` and `/stalls` from a thread of the detector's own |
//!
//! # Limits
//!
//! * Without marks, one long poll is told from many short ones by what the process's own memory shows of
//!   tokio's scheduler: on Linux with 64 bits, unless a sandbox forbids to read it. [`Coverage::turns`] says
//!   whether it is so. Elsewhere a computing poll without a mark is reported once it has outlasted 61 × 4
//!   thresholds, and a sleeping one once a stack has shown whose its worker is.
//! * Where a build leaves tokio's calls of tasks indistinguishable (`opt-level = "z"`), a computing poll without a
//!   mark is reported once it has lasted for two thresholds and a tick.
//! * The future given to `block_on` of a multi-thread runtime does not run on a worker, so it holds none.
//! * Proof of sleep, and telling host trouble from code, need Linux; stacks, Linux on x86-64 or aarch64.
//!   Elsewhere [`Coverage`] says so.
//! * Lines need debug information. With `debug = 1` in the release profile all is there; with
//!   `"line-tables-only"` lines but not all names; without, the names of functions that were not inlined;
//!   stripped, addresses with the build id.
//! * A stack is taken by a signal. What it interrupts is restarted, except for calls that the kernel never
//!   restarts; see [`Stacks`].

mod clock;
mod error;
mod sync;
mod tally;

mod os;
mod report;

mod slot;

// Stacks need a known layout of registers, and an unwinder: `explain::stack` has the same condition.
#[cfg_attr(
    not(all(
        feature = "stacks",
        target_os = "linux",
        any(target_arch = "x86_64", target_arch = "aarch64"),
        not(loom)
    )),
    path = "capture/unsupported.rs"
)]
mod capture;
mod probe;
mod turns;

mod detect;

mod explain;

mod engine;

mod reporter;
mod watchdog;

#[cfg(feature = "metrics")]
pub mod metrics;
#[cfg(feature = "prometheus")]
pub use metrics::prometheus;
#[cfg(feature = "serve")]
mod serve;

mod start;
// Under loom there is no runtime to test on.
#[cfg(all(feature = "testing", not(loom)))]
pub mod testing;

#[cfg(feature = "serve")]
pub use engine::Liveness;
pub use engine::{Coverage, Stacks};
pub use error::StartError;
pub use probe::{AllowedBlocking, FutureExt, StallLayer, Watched, allow_blocking, layer};
#[cfg(not(loom))]
pub use probe::{RuntimeBuilderExt, RuntimeHooks};
pub use report::{
    Blocking, Cause, Certainty, FoldedBy, Frame, Headline, Missing, NoStack, Origin, Phase,
    PoolWaitReport, Profile, Site, SiteTotals, StackSample, StallReport, TimeSplit, WorkerStack,
};
pub use slot::PollTiming;
pub use start::{Builder, Guard, RuntimeStatus, Status, Waits, WorkerTime, watch};

/// The guides: how it decides, what it costs, its limits, and how to use it in production and in tests.
#[cfg(all(any(doc, doctest), feature = "serve", feature = "testing"))]
pub mod guide {
    #[doc = include_str!("../docs/how-it-decides.md")]
    pub mod how_it_decides {}

    #[doc = include_str!("../docs/reading-a-report.md")]
    pub mod reading_a_report {}

    #[doc = include_str!("../docs/production.md")]
    pub mod production {}

    #[doc = include_str!("../docs/testing.md")]
    pub mod testing {}

    #[doc = include_str!("../docs/cost.md")]
    pub mod cost {}

    #[doc = include_str!("../docs/limits.md")]
    pub mod limits {}
}

/// Compiles the code of the README.
#[cfg(all(doctest, feature = "testing"))]
#[doc = include_str!("../README.md")]
struct Readme;
