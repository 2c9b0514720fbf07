//! The requests of one runtime that a recorder already has, and the export of new ones.
//!
//! *Runs on:* the threads `stall-metrics` and `stall-serve`.

use super::list::{self, Metric};
use super::writer::MetricWriter;
use crate::requests::{Board, Route};
use crate::tally::{OTHER, Seen, Tally};
use std::collections::HashMap;

/// The requests that a recorder already has, by the place of their route.
#[derive(Default)]
pub(super) struct ExportedRequests {
    durations: HashMap<usize, Seen>,
    lost: HashMap<usize, Seen>,
    dropped: u64,
}

impl ExportedRequests {
    /// Exports the new requests. Returns how much news of requests was lost since the last time.
    pub(super) fn export(&mut self, writer: &MetricWriter<'_>, name: &str, board: &Board) -> u64 {
        let used = board.used();
        let durations = used.map_or(&[][..], |used| &used.durations);
        let lost = used.map_or(&[][..], |used| &used.lost);
        let [of_durations, of_lost] = [&list::REQUEST_DURATION, &list::REQUEST_LOST];
        export_each(writer, of_durations, name, durations, &mut self.durations);
        export_each(writer, of_lost, name, lost, &mut self.lost);
        let dropped = board.dropped();
        dropped - std::mem::replace(&mut self.dropped, dropped)
    }
}

/// Exports the routes that have had requests. The series of all others is there from the start.
fn export_each(
    writer: &MetricWriter<'_>,
    metric: &Metric,
    name: &str,
    tallies: &[Tally],
    seen: &mut HashMap<usize, Seen>,
) {
    writer.record(metric, &[name, OTHER], 0.0, 0);
    let with_requests = tallies.iter().enumerate();
    for (place, tally) in with_requests.filter(|(_, tally)| !tally.is_empty()) {
        let labels = [name, Route::at(place).name()];
        writer.tally(metric, &labels, tally, seen.entry(place).or_default());
    }
}
