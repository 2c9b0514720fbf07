//! The requests of one runtime that a recorder already has, and the export of new ones.
//!
//! *Runs on:* the threads `stall-metrics` and `stall-serve`.

use super::list;
use super::writer::MetricWriter;
use crate::requests::{Board, Route};
use crate::tally::{OTHER, Seen};
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
    ///
    /// A route has both series from its first request on: the first loss is then an increase. The
    /// series of all other routes is there from the start.
    pub(super) fn export(&mut self, writer: &MetricWriter<'_>, name: &str, board: &Board) -> u64 {
        let [of_durations, of_lost] = [&list::REQUEST_DURATION, &list::REQUEST_LOST];
        for metric in [of_durations, of_lost] {
            writer.record(metric, &[name, OTHER], 0.0, 0);
        }
        let used = board.used();
        let durations = used.map_or(&[][..], |used| &used.durations);
        let lost = used.map_or(&[][..], |used| &used.lost);
        let routes = durations.iter().zip(lost).enumerate();
        for (place, (durations, lost)) in routes.filter(|(_, (it, _))| !it.is_empty()) {
            let labels = [name, Route::at(place).name()];
            let seen = self.durations.entry(place).or_default();
            writer.tally(of_durations, &labels, durations, seen);
            let seen = self.lost.entry(place).or_default();
            writer.tally(of_lost, &labels, lost, seen);
        }
        let dropped = board.dropped();
        dropped - std::mem::replace(&mut self.dropped, dropped)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use metrics_exporter_prometheus::PrometheusBuilder;
    use std::time::Duration;

    #[test]
    fn a_route_that_has_lost_nothing_yet_has_its_series() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let writer = MetricWriter::new(&recorder);
        let board = Board::for_tests(1);
        let used = board.used().expect("it is in use");
        let mut exported = ExportedRequests::default();
        let mut lost = || {
            exported.export(&writer, "api", &board);
            let text = recorder.handle().render();
            let series = r#"tokio_stall_request_lost_seconds_count{runtime="api",route="GET /metrics/test"} "#;
            let value = text.lines().find_map(|line| line.strip_prefix(series));
            value.map(str::to_owned)
        };
        let route = Route::of(&http::Method::GET, "/metrics/test");
        assert_eq!(lost(), None, "it has had no request");
        used.durations[route.place()].note(Duration::from_millis(5));
        assert_eq!(lost().as_deref(), Some("0"));
        used.lost[route.place()].note(Duration::from_millis(3));
        assert_eq!(lost().as_deref(), Some("1"));
    }
}
