//! A recorder, written to by the entries of the list of metrics.
//!
//! *Runs on:* the threads `stall-metrics` and `stall-serve`.
//! *Must not:* keep a handle. One made before the recorder was installed, or kept past the
//! recorder's idle timeout, is dead: each write registers anew.

use super::list::{METRICS, Metric, MetricKind};
use crate::tally::{Seen, Tally};
use metrics::{Key, Label, Level, Metadata, Recorder, SharedString, Unit};
use std::cell::Cell;

/// The most values of one series in one export, but for a few. A recorder keeps each value until it
/// is rendered, and one that is installed late gets all values since the start.
const MOST: u32 = 16_384;

const METADATA: Metadata<'static> = Metadata::new("tokio_stall", Level::INFO, Some(module_path!()));

/// Writes metrics to a recorder.
pub(super) struct MetricWriter<'a> {
    recorder: &'a dyn Recorder,
    is_behind: Cell<bool>,
}

impl MetricWriter<'_> {
    pub(super) fn new(recorder: &dyn Recorder) -> MetricWriter<'_> {
        MetricWriter {
            recorder,
            is_behind: Cell::new(false),
        }
    }

    /// Whether some series had more new values than one export takes.
    pub(super) fn is_behind(&self) -> bool {
        self.is_behind.get()
    }

    /// Describes all metrics to the recorder.
    pub(super) fn describe(&self) {
        for metric in METRICS {
            let unit = metric.name.ends_with("_seconds").then_some(Unit::Seconds);
            let (name, help) = (metric.name.into(), SharedString::const_str(metric.help));
            match metric.kind {
                MetricKind::Counter => self.recorder.describe_counter(name, unit, help),
                MetricKind::Gauge => self.recorder.describe_gauge(name, unit, help),
                MetricKind::Histogram => self.recorder.describe_histogram(name, unit, help),
            }
        }
    }

    /// Adds to a counter. Adding 0 creates the series: a counter that begins above zero shows no
    /// increase.
    pub(super) fn add(&self, metric: &Metric, labels: &[&str], more: u64) {
        let key = key(metric, labels);
        self.recorder
            .register_counter(&key, &METADATA)
            .increment(more);
    }

    /// Adds the growth of a counter since the last export.
    pub(super) fn grow(&self, metric: &Metric, labels: &[&str], total: u64, exported: &mut u64) {
        self.add(metric, labels, total.saturating_sub(*exported));
        *exported = total;
    }

    /// Sets a gauge.
    pub(super) fn set(&self, metric: &Metric, labels: &[&str], value: f64) {
        let key = key(metric, labels);
        self.recorder.register_gauge(&key, &METADATA).set(value);
    }

    /// Records one value `count` times. A count of 0 creates the empty histogram.
    pub(super) fn record(&self, metric: &Metric, labels: &[&str], value: f64, count: u32) {
        let histogram = self
            .recorder
            .register_histogram(&key(metric, labels), &METADATA);
        if count > 0 {
            histogram.record_many(value, count as usize);
        }
    }

    /// Records the new durations of a tally, some [`MOST`] at most. The rest follows with the next
    /// export.
    pub(super) fn tally(&self, metric: &Metric, labels: &[&str], tally: &Tally, seen: &mut Seen) {
        let histogram = self
            .recorder
            .register_histogram(&key(metric, labels), &METADATA);
        let mut count = 0;
        for batch in tally.news_up_to(MOST, seen) {
            histogram.record_many(batch.mean.as_secs_f64(), batch.count as usize);
            count += batch.count;
        }
        self.is_behind.set(self.is_behind() || count >= MOST);
    }
}

fn key(metric: &Metric, values: &[&str]) -> Key {
    debug_assert_eq!(metric.labels.len(), values.len(), "{}", metric.name);
    let labels: Vec<Label> = metric
        .labels
        .iter()
        .zip(values)
        .map(|(name, value)| Label::new(*name, (*value).to_owned()))
        .collect();
    Key::from_parts(metric.name, labels)
}
