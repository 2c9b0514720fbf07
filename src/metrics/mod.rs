//! Metrics, through the `metrics` facade: for whatever recorder the program has, whenever it gets it.
//!
//! *Runs on:* the thread `stall-metrics`; a scrape of our own server takes them on its thread.
//! *Here:* reads figures that the detector's threads keep, and tells a recorder what is new. The recorder is
//! the user's code: nobody waits for this thread.
//!
//! Every second, and ten times a second during a stall, all that has changed is written to the recorder
//! installed with `metrics::set_global_recorder`, or to the one given to
//! [`Builder::recorder`](crate::Builder::recorder). It may be installed before or after the watch is started:
//! what was counted in between is not lost, except for polls. Every fixed series is there from the start,
//! as 0, and is touched every second, so that exporters with an idle timeout keep it. When the watch ends, its
//! gauges are set to 0.
//!
//! Times that add up are histograms whose sum counts, since a counter of the facade is a whole number. Two of
//! the figures are made to be divided: this is the mean length of a turn of a worker's loop.
//!
//! ```promql
//! sum by (runtime) (rate(tokio_stall_worker_time_seconds_sum{state=~"cpu|blocked|contention"}[5m]))
//!   / sum by (runtime) (rate(tokio_stall_worker_turns_total[5m]))
//! ```
//!
//! The facade in use is `metrics` 0.24. A recorder made for another version is not seen by this crate, and hears
//! nothing, without an error.
//!
//! **Histograms need buckets.** `metrics-exporter-prometheus` makes summaries of those it was given none for.
//! [`METRICS`] has the bounds of each; the feature `prometheus` sets them. Values arrive as the mean of those that
//! lie between two bounds of [`BUCKETS`], so sums are exact, and so are counts by these bounds.

#![doc = ""]
#![doc = include_str!("../../monitoring/METRICS.md")]

mod export;
mod list;
mod out;
mod polls;
#[cfg(feature = "prometheus")]
pub mod prometheus;
mod runtime;

pub use list::METRICS;
pub use list::{BUCKETS, Metric, MetricKind};

#[cfg(feature = "serve")]
pub(crate) use export::Exporter;
pub(crate) use export::run;
