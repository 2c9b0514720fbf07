//! Finds the code that blocks a Tokio event loop, and reports it while it blocks.
//!
//! ```
//! # #[tokio::main]
//! # async fn main() -> Result<(), tokio_stall::StartError> {
//! let _watch = tokio_stall::watch()?;
//! # Ok(())
//! # }
//! ```
//!
//! From then on, a thread beside the runtime looks at each of its workers every few milliseconds. A
//! *stall* is one poll that holds its worker for 10 ms or more. Its report has the worker, the
//! span, the line of your code, the duration, the cause (it computes, it sleeps in a system call,
//! or it has no CPU), and what to write instead.
//!
//! ```text
//!  your threads            the detector's threads
//!
//!  probe ──▶ slot ◀──── stall-watchdog ──── stalls ────▶ stall-reporter ──▶ stall-sinks
//!  marks     one per    ticks, detects                   names, composes    callback, log
//!  polls     thread        │                              ▲        │
//!                          │ signal                       │        └▶ recent(), profile(),
//!                          ▼                              │           metrics, serve
//!            capture ──── stack ──▶ stall-explainer ──────┘
//!            copies registers       unwinds, names frames
//!            and stack
//! ```
//!
//! **You give it** a runtime. For names, add [`layer()`] to your subscriber, or
//! [`watched`](FutureExt::watched) to a future, or [`watch_polls`](RuntimeBuilderExt::watch_polls)
//! to your runtime's builder.
//!
//! **It gives you** a report of each stall while it lasts, again whenever its age has doubled, and
//! at its end. Reports of 100 ms and more are events of `tracing`. All go to a callback
//! ([`Builder::on_stall`]), to [`Guard::recent`] and [`Guard::stalled_now`], and into metrics for
//! any recorder of the `metrics` facade, with the age of a stall while it goes on.
//! [`Guard::profile`] has the stalls by site, and their stacks for a flame graph.
//! [`Guard::worker_stacks`] takes the stacks of all workers at this moment.
//!
//! **It does not** wrap your spawns, own your runtime or need `tokio_unstable`. Inside a poll it
//! does not allocate, lock or call anything, with two exceptions: a thread's first mark takes a
//! slot, which allocates, and the end of a timed poll beyond the threshold tries a lock and keeps a
//! record. It does not report time without a CPU, code in `block_in_place`, or a parked worker.
//!
//! # Three tiers
//!
//! The first tier finds stalls. The others add names and exact times.
//!
//! | set-up | adds |
//! |---|---|
//! | [`watch()`] | worker, thread, task, your line, stack, cause, system call |
//! | [`layer()`] on the subscriber, or [`watched`] on a future | span or name |
//! | [`watch_polls`] on the runtime builder, and `--cfg tokio_unstable` | the line of the spawn |
//!
//! Tier two *marks* some polls and times them exactly. Tier three does so for every poll of every
//! task.
//!
//! [`watched`]: FutureExt::watched
//! [`watch_polls`]: RuntimeBuilderExt::watch_polls
//!
//! # Features
//!
//! | feature | |
//! |---|---|
//! | `metrics` (default) | metrics through the `metrics` facade |
//! | `serde` (default) | `Serialize` for reports |
//! | `stacks` (default) | stacks of stalled threads |
//! | `testing` | [`testing`], for `[dev-dependencies]`: assertions that forbid blocking in tests |
//! | `pprof` | [`Profile::pprof`], for `go tool pprof`, Pyroscope, Parca and Grafana |
//! | `flamegraph` | [`Profile::flamegraph`], a picture of the time lost |
//! | `prometheus` | the Prometheus exporter, set up so that it answers during a stall |
//! | `tower` | [`tower::RequestLayer`]: times requests, and finds those that a stall held up |
//! | `axum` | requests are named by the routes of axum |
//! | `outside` | for the program `cargo-stall` alone; semantic versioning does not cover it |
//! | `serve` | `/metrics`, `/health/live` and `/stalls` from a thread of the detector's own |
//!
//! # Guides
//!
//! The module [`guide`] explains how the detector decides, how to read a report, how to use it in
//! production and in tests, what it costs, and where its limits are.
//!
//! # Limits
//!
//! * The detector distinguishes one long unmarked poll from many short ones by words in the memory
//!   of tokio's scheduler. It needs 64-bit Linux, and no sandbox that forbids to read this memory;
//!   [`Coverage::turns`] shows whether it can. Elsewhere a computing poll without a mark is
//!   reported after 61 × 4 thresholds, and a sleeping one once a stack shows that its thread drives
//!   the worker.
//! * If `opt-level = "z"` merges tokio's calls of tasks, a computing poll without a mark is
//!   reported once it has lasted for two thresholds and a tick.
//! * The future given to `block_on` of a multi-thread runtime does not run on a worker, so it holds
//!   none.
//! * Proof of sleep, and the distinction of host trouble from code, need Linux. Stacks need Linux
//!   on x86-64 or aarch64. [`Coverage`] shows the gaps.
//! * Lines need debug information. `debug = 1` in the release profile gives everything,
//!   `"line-tables-only"` gives lines but not all names, no debug information gives the names of
//!   functions that were not inlined, and a stripped program gives addresses with the build id.
//! * A stack is taken by a signal. A system call that it interrupts is restarted, except for those
//!   that the kernel never restarts; see [`Stacks`].

mod clock;
mod error;
mod sync;
mod tally;

mod os;
mod report;

mod slot;

// Stacks need a known layout of registers, and an unwinder: `explain::stack` has the same
// condition.
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
#[cfg(feature = "tower")]
mod requests;

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

/// Requests of `tower` services, as in axum and tonic: who was late, and because of whom.
#[cfg(feature = "tower")]
pub mod tower {
    pub use crate::report::{LostTo, RequestReport};
    pub use crate::requests::{RequestLayer, RequestService, ResponseBody, ResponseFuture};
}

/// For the programs `cargo-stall` and `tokio-stall` alone: another process, seen from outside.
/// Semantic versioning does not cover it.
#[cfg(all(
    feature = "outside",
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64"),
    not(loom)
))]
#[doc(hidden)]
pub mod outside {
    pub use crate::explain::outside::{
        Doing, ObservedProcess, ObservedThread, SleepCall, StackCopy, StallEvidence, ThreadLook,
        ThreadPlace, ThreadRegisters, ThreadStack, written_name,
    };
    pub use crate::report::{Human, KnownStalls, add_to_profile, shown_lines};
}

mod start;
// Under loom there is no runtime to test on.
#[cfg(all(feature = "testing", not(loom)))]
pub mod testing;

#[cfg(feature = "serve")]
pub use engine::Liveness;
pub use engine::{Coverage, Gap, OtherRuntime, Stacks};
pub use error::StartError;
pub use probe::{AllowedBlocking, FutureExt, StallLayer, Watched, allow_blocking, layer};
#[cfg(not(loom))]
pub use probe::{RuntimeBuilderExt, RuntimeHooks};
pub use report::{
    Blocking, Cause, Certainty, FoldedBy, Frame, Headline, Missing, NoStack, Origin, Phase,
    PoolWaitReport, Profile, RouteVictims, Site, SiteTotals, StackSample, StallReport, TimeSplit,
    TraceContext, Victims, WorkerStack,
};
pub use slot::PollTiming;
#[cfg(feature = "serve")]
pub use start::RecordingStatus;
pub use start::{Builder, Guard, RuntimeStatus, Status, Waits, WorkerTime, watch};

/// The guides: decisions, reports, production, tests, cost and limits.
#[cfg(all(
    any(doc, doctest),
    feature = "axum",
    feature = "serve",
    feature = "testing"
))]
pub mod guide {
    #[doc = include_str!("../docs/how-it-decides.md")]
    pub mod how_it_decides {}

    #[doc = include_str!("../docs/reading-a-report.md")]
    pub mod reading_a_report {}

    #[doc = include_str!("../docs/production.md")]
    pub mod production {}

    #[doc = include_str!("../docs/requests.md")]
    pub mod requests {}

    #[doc = include_str!("../docs/http.md")]
    pub mod http {}

    #[doc = include_str!("../docs/testing.md")]
    pub mod testing {}

    #[doc = include_str!("../docs/cost.md")]
    pub mod cost {}

    #[doc = include_str!("../docs/limits.md")]
    pub mod limits {}

    #[doc = include_str!("../docs/platforms.md")]
    pub mod platforms {}
}

/// Compiles the code of the README.
#[cfg(all(doctest, feature = "testing"))]
#[doc = include_str!("../README.md")]
struct Readme;
