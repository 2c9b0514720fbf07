//! Finds the code that blocks a Tokio event loop and reports it while it blocks: the worker, the
//! line of your code, the cause, and a fix.
//!
//! # Start
//!
//! ```no_run
//! #[tokio::main]
//! async fn main() -> Result<(), tokio_stall::StartError> {
//!     tracing_subscriber::fmt().init(); // stalls are events of `tracing`; else on stderr
//!     let _watch = tokio_stall::watch()?; // this line starts the detector
//!     // … your service …
//!     Ok(())
//! }
//! ```
//!
//! From then on, a thread beside the runtime looks at each of its workers every few milliseconds. A
//! *stall* is one poll that holds its worker for 10 ms or more. It is reported while it goes on,
//! again whenever its age has doubled, and at its end. Stalls of 100 ms and more are events of
//! `tracing`. [`Builder`] has all settings.
//!
//! This is a report of a service with [`tower::RequestLayer`], as `Display` writes it:
//!
//! ```text
//! stall #3   runtime "main", worker 0, 300 ms (± 1.25 ms), certain
//!   where     axum::cache::rebuild (src/bin/axum.rs:26)
//!   in        request > POST /rebuild
//!   why       blocked/sleep: asleep in clock_nanosleep 297 ms
//!   driver    was frozen for 300 ms: no socket and no timer of this runtime moved
//!   victims   held up 8 requests, 2.38 s together, 299 ms at most: GET /users/{id} (8)
//!   stack     std::thread::functions::sleep (std/src/thread/functions.rs:289)
//!             axum::cache::rebuild (src/bin/axum.rs:26)
//!             axum::rebuild (src/bin/axum.rs:52)
//!             … 109 frames of the system, std, dependencies, tokio-stall, tokio
//!             taken at +8.75 ms
//!   do        Sleep with `tokio::time::sleep(…).await`, which leaves the worker …
//!   seen      2 times here, 601 ms in all
//!   task      2016
//!   thread    tokio-rt-worker (5931)
//! ```
//!
//! [`guide::reading_a_report`] explains each line. Functions and lines need `debug = 1` in
//! `[profile.release]`, and a program that is not stripped. [`guide::five_minutes`] has the set-up
//! for axum, tonic, actix-web, commands, sqlx, tests, OpenTelemetry and other exporters. The guides
//! are part of the documentation with all features.
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
//! task. [`guide::how_it_decides`] explains how one long poll is distinguished from many short ones
//! without these marks.
//!
//! [`watched`]: FutureExt::watched
//! [`watch_polls`]: RuntimeBuilderExt::watch_polls
//!
//! # In production
//!
//! | to get | use |
//! |---|---|
//! | each report in a callback | [`Builder::on_stall`] |
//! | the last stalls, and those that go on | [`Guard::recent`], [`Guard::stalled_now`] |
//! | stalls by site, and a flame graph of them | [`Guard::profile`] |
//! | the stacks of all workers at this moment | [`Guard::worker_stacks`] |
//! | the things that the detector sees here | [`Guard::explain_coverage`], [`Guard::coverage`] |
//! | settings from the environment | [`Builder::from_env`] |
//! | metrics, for any recorder of the `metrics` facade | [`metrics`] |
//! | a page, metrics and health over HTTP, during a stall, too | [`Builder::serve`] |
//! | the requests that each stall has held up | [`tower::RequestLayer`] |
//!
//! [`guide::production`] has builds, log levels, health and Kubernetes.
//!
//! # In tests
//!
//! [`testing`] has assertions that forbid blocking. The kernel's record of the thread decides, and
//! no wall clock, so a busy CI machine fails nothing.
//!
//! # How it works
//!
//! ```text
//!  your workers                  the detector's threads
//!
//!  polls and spans ─── marks ────▶ stall-watchdog     finds a stall
//!       ▲                               │
//!       ├── signal, if they compute ────┤
//!       │                               ▼
//!       └────────── stack ───────▶ stall-explainer    names its line
//!                                       │
//!                                       ▼
//!                                  stall-reporter     makes the report
//!                                       │
//!                                       ▼
//!                                  stall-sinks        log and callback
//! ```
//!
//! It does not wrap your spawns, own your runtime or need `tokio_unstable`. Inside a poll it does
//! not allocate, lock or call anything, with two exceptions: a thread's first mark takes a slot,
//! which allocates, and the end of a timed poll beyond the threshold tries a lock and keeps a
//! record. It does not report time without a CPU, code in `block_in_place`, or a parked worker.
//! [`guide::cost`] has all figures.
//!
//! # Features
//!
//! | feature | adds |
//! |---|---|
//! | `metrics` (default) | [`metrics`]: stalls, lag, time by state, through the `metrics` facade |
//! | `serde` (default) | `Serialize` for reports and figures |
//! | `stacks` (default) | the stacks of stalled threads, and with them the lines |
//! | `testing` | [`testing`], for `[dev-dependencies]`: assertions that forbid blocking in tests |
//! | `serve` | [`Builder::serve`]; it includes `metrics`, `pprof`, `prometheus` and `serde` |
//! | `prometheus` | [`prometheus`]: an exporter set up so that it answers during a stall |
//! | `tower` | [`tower::RequestLayer`]: times requests, and finds those that a stall held up |
//! | `axum` | `tower`, with requests named by the routes of axum |
//! | `pprof` | [`Profile::pprof`], for `go tool pprof`, Pyroscope, Parca and Grafana |
//! | `flamegraph` | [`Profile::flamegraph`], a picture; its crate has the licence CDDL-1.0 |
//! | `outside` | for the program `cargo-stall` alone; `guide::semver` does not cover it |
//!
//! [`guide::semver`] says what a version promises, and which other crates occur in the API.
//!
//! # Limits
//!
//! * The detector distinguishes one long unmarked poll from many short ones by words in the memory
//!   of tokio's scheduler. It needs 64-bit Linux, and no sandbox that forbids to read this memory;
//!   [`Coverage::turns`] shows whether it can. Elsewhere a computing poll without a mark is
//!   reported after 61 × 4 thresholds, and a sleeping one once a stack shows that its thread
//!   drives the worker.
//! * The future given to `block_on` of a multi-thread runtime does not run on a worker, so it holds
//!   none.
//! * Proof of sleep, and the distinction of host trouble from code, need Linux. Stacks need Linux
//!   on x86-64 or aarch64. [`Coverage`] shows the gaps.
//! * Lines need debug information. `debug = 1` in the release profile gives everything,
//!   `"line-tables-only"` gives lines but not all names, no debug information gives the names of
//!   functions that were not inlined, and a stripped program gives addresses with the build id.
//! * The stack of a thread that computes is taken by a signal. A thread that sleeps is left alone,
//!   with few exceptions; see [`Stacks`].
//!
//! [`guide::limits`] lists them all, each with its effect and its fix.

// On docs.rs, items have their features beside them. The model checker's builds are none.
#![cfg_attr(docsrs, feature(doc_cfg), doc(auto_cfg(hide(loom))))]
// Where no stacks can be taken, `outside` has nothing to offer, and its parts have no use.
#![cfg_attr(
    all(
        feature = "outside",
        not(all(
            target_os = "linux",
            any(target_arch = "x86_64", target_arch = "aarch64")
        ))
    ),
    allow(dead_code, unreachable_pub, unused_imports)
)]

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
///
/// It begins with a [`RequestLayer`](tower::RequestLayer) on the service.
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
        DescribedCall, Doing, ObservedProcess, ObservedThread, SleepCall, StackCopy, StallEvidence,
        ThreadLook, ThreadPlace, ThreadRegisters, ThreadStack, written_name,
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
pub use start::{
    Builder, Diagnosis, Guard, Observation, RuntimeStatus, SettingInForce, SettingSource, Status,
    Waits, WorkerTime, watch,
};

/// The guides: decisions, reports, production, tests, cost and limits.
#[cfg(all(
    any(doc, doctest),
    feature = "axum",
    feature = "serve",
    feature = "testing"
))]
pub mod guide {
    #[doc = include_str!("../docs/five-minutes.md")]
    pub mod five_minutes {}

    #[doc = include_str!("../docs/how-it-decides.md")]
    pub mod how_it_decides {}

    #[doc = include_str!("../docs/reading-a-report.md")]
    pub mod reading_a_report {}

    #[doc = include_str!("../docs/log-format.md")]
    pub mod log_format {}

    #[doc = include_str!("../docs/production.md")]
    pub mod production {}

    #[doc = include_str!("../docs/kubernetes.md")]
    pub mod kubernetes {}

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

    #[doc = include_str!("../docs/semver.md")]
    pub mod semver {}

    #[doc = include_str!("../docs/platforms.md")]
    pub mod platforms {}
}

/// Compiles the code of the README.
#[cfg(all(doctest, feature = "testing"))]
#[doc = include_str!("../README.md")]
struct Readme;
