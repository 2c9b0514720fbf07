//! Metrics through the `metrics` facade, for any recorder, installed at any time.
//!
//! *Runs on:* the thread `stall-metrics`; for `/metrics`, the thread `stall-serve`.
//! *Must not:* be waited for. It calls the recorder, which is the user's code and may block.
//!
//! Every second, and ten times a second during a stall, all changes are written to the recorder
//! installed with `metrics::set_global_recorder`, or to the one given to
//! [`Builder::recorder`](crate::Builder::recorder). It may be installed before or after the watch
//! is started: counts from the time in between are not lost, except for polls. Every fixed series
//! exists from the start, as 0, and is written every second, so that exporters with an idle timeout
//! keep it. When the watch ends, its gauges are set to 0.
//!
//! Times that add up are histograms, and their sum counts, since a counter of the facade is a whole
//! number. Two figures are made to be divided. Their quotient is the mean length of a turn of a
//! worker's loop:
//!
//! ```promql
//! sum by (runtime) (
//!   rate(tokio_stall_worker_time_seconds_sum{state=~"cpu|blocked|contention"}[5m])
//! )
//!   / sum by (runtime) (rate(tokio_stall_worker_turns_total[5m]))
//! ```
//!
//! The facade in use is `metrics` 0.24. A recorder made for another version of it receives nothing,
//! and there is no error.
//!
//! **Histograms need buckets.** `metrics-exporter-prometheus` renders a histogram without bounds as
//! a summary. [`METRICS`] has the bounds of each; the feature `prometheus` sets them. Values arrive
//! as the mean of all values between two bounds of [`BUCKETS`], so sums are exact, and so are
//! counts by these bounds.

#![doc = ""]
#![doc = include_str!("../../monitoring/METRICS.md")]

mod export;
mod list;
mod polls;
#[cfg(feature = "prometheus")]
pub mod prometheus;
#[cfg(feature = "tower")]
mod requests;
mod runtime;
mod writer;

pub use list::METRICS;
pub use list::{BUCKETS, Metric, MetricKind};

#[cfg(feature = "serve")]
pub(crate) use export::Exporter;
pub(crate) use export::run;
#[cfg(feature = "serve")]
pub(crate) use list::LAST_TICK;
