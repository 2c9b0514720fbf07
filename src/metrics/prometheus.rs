//! The Prometheus exporter, set up to answer while every worker is blocked.
//!
//! *Runs on:* the calling thread, and for a moment `stall-prometheus`. The exporter has a thread of
//! its own.
//!
//! `PrometheusBuilder::install`, called inside a runtime, puts the exporter *on that runtime*: with
//! all workers blocked no scrape is answered, exactly during a stall. [`install`] gives it a thread
//! and a runtime of its own. For an exporter that is set up elsewhere, [`configure`] adds the
//! bounds of this crate's histograms.
//!
//! In a program without a recorder, [`Builder::serve`](crate::Builder::serve) needs none of this.

use super::METRICS;
use crate::os;
use metrics_exporter_prometheus::Matcher;

pub use metrics_exporter_prometheus::{BuildError, PrometheusBuilder};

/// Gives the exporter the bounds of this crate's histograms.
///
/// Without bounds they are rendered as summaries. Summaries cannot be added up over instances, and
/// the dashboard's queries find nothing.
///
/// # Errors
///
/// Those of the exporter's builder. The bounds of this crate cause none.
///
/// # Examples
///
/// ```
/// use tokio_stall::prometheus::{self, PrometheusBuilder};
///
/// let builder = prometheus::configure(PrometheusBuilder::new())?;
/// let recorder = builder.build_recorder();
/// # drop(recorder);
/// # Ok::<(), prometheus::BuildError>(())
/// ```
pub fn configure(builder: PrometheusBuilder) -> Result<PrometheusBuilder, BuildError> {
    let histograms = METRICS.iter().filter(|metric| !metric.buckets.is_empty());
    histograms.into_iter().try_fold(builder, |builder, metric| {
        builder.set_buckets_for_metric(Matcher::Full(metric.name.to_owned()), metric.buckets)
    })
}

/// Installs the exporter for the whole program, configured, on a thread and a runtime of its own.
///
/// Always name an address: the default is port 9000 on every interface, without authentication.
///
/// # Errors
///
/// The errors of `PrometheusBuilder::install`: the address is in use, or a recorder has been
/// installed already. Also if no thread can be started.
///
/// # Examples
///
/// ```no_run
/// use tokio_stall::prometheus::{self, PrometheusBuilder};
///
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// prometheus::install(PrometheusBuilder::new().with_http_listener(([127, 0, 0, 1], 9464)))?;
/// let _watch = tokio_stall::watch()?;
/// # Ok(())
/// # }
/// ```
pub fn install(builder: PrometheusBuilder) -> Result<(), BuildError> {
    let builder = configure(builder)?;
    // Called outside of every runtime, the exporter starts a thread and a runtime of its own.
    let outside = os::spawn("stall-prometheus", move || builder.install());
    let no_thread = |why: String| BuildError::FailedToCreateRuntime(why);
    let thread = outside.map_err(|error| no_thread(error.to_string()))?;
    thread
        .join()
        .unwrap_or_else(|_| Err(no_thread("the exporter panicked".to_owned())))
}
