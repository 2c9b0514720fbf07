//! The requests of one runtime that a recorder already has, and the export of new ones.
//!
//! *Runs on:* the threads `stall-metrics` and `stall-serve`.

use super::list::{self, Metric};
use super::writer::MetricWriter;
use crate::requests::{Board, Route};
use crate::tally::{Seen, Tally};
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
        let durations = &mut self.durations;
        export_each(
            writer,
            &list::REQUEST_DURATION,
            name,
            board.durations(),
            durations,
        );
        export_each(
            writer,
            &list::REQUEST_LOST,
            name,
            &board.lost,
            &mut self.lost,
        );
        let dropped = board.dropped();
        dropped - std::mem::replace(&mut self.dropped, dropped)
    }
}

/// Exports the routes that have had requests. The last place is exported always, so that there is a
/// series from the start.
fn export_each(
    writer: &MetricWriter<'_>,
    metric: &Metric,
    name: &str,
    tallies: &[Tally],
    seen: &mut HashMap<usize, Seen>,
) {
    for (place, tally) in tallies.iter().enumerate() {
        let is_last = place + 1 == tallies.len();
        if is_last || !tally.is_empty() {
            let labels = [name, Route::at(place).name()];
            writer.tally(metric, &labels, tally, seen.entry(place).or_default());
        }
    }
}
