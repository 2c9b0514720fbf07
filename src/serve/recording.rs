//! The answer to `/debug/recording`: the last seconds of all workers, as a trace.
//!
//! *Runs on:* `stall-serve`.
//! *Must not:* render more often than the pages beside it: each length has a kept answer.

use super::routes::CachedAnswer;
use crate::clock;
use crate::engine::View;
use crate::engine::recording::{Window, record};
use hyper::body::Bytes;
use std::time::Duration;

/// The lengths that are rendered, in seconds. A length in between gets the next longer one.
const LENGTHS: [u64; 6] = [1, 5, 10, 30, 60, 300];
/// The length without a query.
const DEFAULT: u64 = 30;

/// The sentence for a query that is none of these.
pub(super) const USAGE: &str = "seconds=30 (the default), from 1 to 300\n";

/// The answers to `/debug/recording`, by length.
#[derive(Default)]
pub(super) struct RecordingAnswers([CachedAnswer; LENGTHS.len()]);

impl RecordingAnswers {
    /// The recording for a query; `None` if the query is wrong.
    pub(super) fn get(&self, view: &View, query: Option<&str>) -> Option<Bytes> {
        let index = length(query)?;
        Some(self.0[index].get(|| render(view, LENGTHS[index])))
    }
}

/// The index of the length for a query.
fn length(query: Option<&str>) -> Option<usize> {
    let seconds = match query {
        None => DEFAULT,
        Some(query) => query.strip_prefix("seconds=")?.parse().ok()?,
    };
    let is_enough = |length: &u64| *length >= seconds && seconds > 0;
    LENGTHS.iter().position(is_enough)
}

fn render(view: &View, seconds: u64) -> String {
    let to = clock::now();
    let from = to.minus(Duration::from_secs(seconds));
    // Plain data always serializes.
    serde_json::to_string(&record(view, Window { from, to }, None)).unwrap_or_default()
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_query_gets_the_next_longer_recording() {
        let seconds = |query| length(query).map(|index| LENGTHS[index]);
        assert_eq!(seconds(None), Some(30));
        assert_eq!(seconds(Some("seconds=1")), Some(1));
        assert_eq!(seconds(Some("seconds=2")), Some(5));
        assert_eq!(seconds(Some("seconds=30")), Some(30));
        assert_eq!(seconds(Some("seconds=300")), Some(300));
        for wrong in [
            "seconds=0",
            "seconds=301",
            "seconds=-1",
            "seconds=",
            "minutes=1",
            "",
        ] {
            assert_eq!(seconds(Some(wrong)), None, "{wrong}");
        }
    }
}
