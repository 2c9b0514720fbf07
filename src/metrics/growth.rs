//! Tokio's own counters of one runtime, by their growth since the last export.
//!
//! *Runs on:* the threads `stall-metrics` and `stall-serve`.

use std::time::{Duration, Instant};
use tokio::runtime::RuntimeMetrics;

/// The counters at the last export.
pub(super) struct LastCounts {
    at: Instant,
    counts: Counts,
}

/// The growth of all workers' counters together.
pub(super) struct Growth {
    pub(super) elapsed: Duration,
    pub(super) busy: Duration,
    pub(super) parks: u64,
}

#[derive(Clone, Copy)]
struct Counts {
    busy: Duration,
    parks: u64,
}

impl Counts {
    fn read(runtime: &RuntimeMetrics) -> Counts {
        let workers = 0..runtime.num_workers();
        Counts {
            busy: workers
                .clone()
                .map(|worker| runtime.worker_total_busy_duration(worker))
                .sum(),
            parks: workers
                .map(|worker| runtime.worker_park_count(worker))
                .sum(),
        }
    }
}

impl LastCounts {
    /// Begins now: what was counted before is no growth.
    pub(super) fn begin(runtime: &RuntimeMetrics) -> LastCounts {
        LastCounts {
            at: Instant::now(),
            counts: Counts::read(runtime),
        }
    }

    pub(super) fn growth(&mut self, runtime: &RuntimeMetrics) -> Growth {
        let now = LastCounts::begin(runtime);
        let before = std::mem::replace(self, now);
        let (now, then) = (self.counts, before.counts);
        Growth {
            elapsed: self.at.saturating_duration_since(before.at),
            busy: now.busy.saturating_sub(then.busy),
            parks: now.parks.saturating_sub(then.parks),
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn only_the_growth_since_the_last_look_counts() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .build()
            .expect("a runtime");
        let metrics = runtime.metrics();
        let mut last = LastCounts::begin(&metrics);
        let before = Counts::read(&metrics);
        // A worker that has parked counts it, sooner or later.
        while Counts::read(&metrics).parks == before.parks {
            runtime.block_on(async { tokio::spawn(async {}).await.expect("no panic") });
        }
        let growth = last.growth(&metrics);
        assert!(growth.parks > 0 && !growth.elapsed.is_zero());
        assert!(growth.parks <= Counts::read(&metrics).parks - before.parks);
        drop(runtime);
        last.growth(&metrics);
        let growth = last.growth(&metrics);
        assert_eq!((growth.parks, growth.busy), (0, Duration::ZERO));
    }
}
