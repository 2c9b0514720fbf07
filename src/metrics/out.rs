//! A recorder, as this crate talks to it: by the entries of its list.
//!
//! *Runs on:* the thread `stall-metrics`, and the server's.
//! *Here:* handles are asked for anew each time. One made before the recorder was installed, or kept past its
//! idle timeout, would be dead.

use super::list::{METRICS, Metric, MetricKind};
use crate::tally::{Seen, Tally};
use metrics::{Key, Label, Level, Metadata, Recorder, SharedString, Unit};

const METADATA: Metadata<'static> = Metadata::new("tokio_stall", Level::INFO, Some(module_path!()));

pub(super) struct Out<'a>(pub(super) &'a dyn Recorder);

impl Out<'_> {
    /// Says what all metrics mean.
    pub(super) fn describe(&self) {
        for metric in METRICS {
            let unit = metric.name.ends_with("_seconds").then_some(Unit::Seconds);
            let (name, help) = (metric.name.into(), SharedString::const_str(metric.help));
            match metric.kind {
                MetricKind::Counter => self.0.describe_counter(name, unit, help),
                MetricKind::Gauge => self.0.describe_gauge(name, unit, help),
                MetricKind::Histogram => self.0.describe_histogram(name, unit, help),
            }
        }
    }

    /// Also with nothing to add: a counter that begins above zero has no increase.
    pub(super) fn add(&self, metric: &Metric, labels: &[&str], more: u64) {
        let key = key(metric, labels);
        self.0.register_counter(&key, &METADATA).increment(more);
    }

    /// Adds what a counter has grown by since it was told last.
    pub(super) fn grow(&self, metric: &Metric, labels: &[&str], total: u64, told: &mut u64) {
        self.add(metric, labels, total.saturating_sub(*told));
        *told = total;
    }

    pub(super) fn set(&self, metric: &Metric, labels: &[&str], value: f64) {
        let key = key(metric, labels);
        self.0.register_gauge(&key, &METADATA).set(value);
    }

    /// Also with nothing to record, so that the histogram is there, empty.
    pub(super) fn record(&self, metric: &Metric, labels: &[&str], value: f64, count: u32) {
        let histogram = self.0.register_histogram(&key(metric, labels), &METADATA);
        if count > 0 {
            histogram.record_many(value, count as usize);
        }
    }

    /// Records what is new in a tally.
    pub(super) fn tally(&self, metric: &Metric, labels: &[&str], tally: &Tally, told: &mut Seen) {
        let histogram = self.0.register_histogram(&key(metric, labels), &METADATA);
        for batch in tally.news(told) {
            histogram.record_many(batch.mean.as_secs_f64(), batch.count as usize);
        }
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
