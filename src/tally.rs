//! Durations counted by size, for histograms.
//!
//! *Runs on:* one writer for each tally: a worker's thread at the end of a timed poll,
//! `stall-watchdog`, `stall-pulse` or `stall-reporter`. Exporters read.
//! *Must not:* lock or allocate: some writers are inside a poll. A duration takes two loads and two
//! stores.
//!
//! Counts only grow. Each reader remembers the counts that it has seen, so there may be any number
//! of readers.

// Without the feature `metrics`, much of this is written and never read.
#![cfg_attr(not(feature = "metrics"), allow(dead_code))]

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// The label of things without a name.
pub(crate) const UNNAMED: &str = "unnamed";
/// The label of things beyond the limit of labels.
pub(crate) const OTHER: &str = "other";

/// Upper bounds of the buckets, in seconds. One more bucket takes longer durations.
pub(crate) const BOUNDS: [f64; 14] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
];

const BOUND_NANOS: [u64; 14] = [
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
    30_000_000_000,
];

const BUCKETS: usize = BOUNDS.len() + 1;

/// Durations by size. Each bucket has its sum, so that its mean is exact.
#[derive(Debug)]
pub(crate) struct Tally {
    counts: [AtomicU32; BUCKETS],
    nanos: [AtomicU64; BUCKETS],
}

/// The counts of a tally that one reader has seen.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    counts: [u32; BUCKETS],
    nanos: [u64; BUCKETS],
}

/// Some durations between the same two bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Batch {
    pub(crate) count: u32,
    pub(crate) mean: Duration,
}

/// The bucket of a duration.
#[inline]
fn bucket_of(nanos: u64) -> usize {
    // Most durations are short and need no search.
    if nanos <= BOUND_NANOS[0] {
        0
    } else {
        BOUND_NANOS.partition_point(|bound| *bound < nanos)
    }
}

impl Default for Tally {
    fn default() -> Tally {
        Tally::new()
    }
}

impl Tally {
    pub(crate) const fn new() -> Tally {
        Tally {
            counts: [const { AtomicU32::new(0) }; BUCKETS],
            nanos: [const { AtomicU64::new(0) }; BUCKETS],
        }
    }

    /// Counts one duration. Only one thread at a time may.
    pub(crate) fn note(&self, duration: Duration) {
        self.note_nanos(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Counts one duration. Any number of threads may at a time.
    #[cfg(feature = "tower")]
    pub(crate) fn note_shared(&self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let bucket = bucket_of(nanos);
        // Relaxed: as in `note_nanos`.
        self.nanos[bucket].fetch_add(nanos, Ordering::Relaxed);
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts one duration, given in nanoseconds. Only one thread at a time may.
    #[inline]
    pub(crate) fn note_nanos(&self, nanos: u64) {
        let bucket = bucket_of(nanos);
        // Relaxed: there is one writer, and a reader that sees one of the two stores sees the other
        // at its next look.
        let sum = self.nanos[bucket].load(Ordering::Relaxed);
        self.nanos[bucket].store(sum.wrapping_add(nanos), Ordering::Relaxed);
        let count = self.counts[bucket].load(Ordering::Relaxed);
        self.counts[bucket].store(count.wrapping_add(1), Ordering::Relaxed);
    }

    /// Whether nothing has been counted yet.
    pub(crate) fn is_empty(&self) -> bool {
        self.counts
            .iter()
            .all(|count| count.load(Ordering::Relaxed) == 0)
    }

    /// The durations that have been counted since the reader's last look, bucket by bucket.
    pub(crate) fn news<'a>(&'a self, seen: &'a mut Seen) -> impl Iterator<Item = Batch> + 'a {
        self.news_up_to(u32::MAX, seen)
    }

    /// The same, of all buckets the same share if there are more than so many durations. The rest
    /// is new at the next look.
    pub(crate) fn news_up_to<'a>(
        &'a self,
        most: u32,
        seen: &'a mut Seen,
    ) -> impl Iterator<Item = Batch> + 'a {
        let counts = std::array::from_fn::<u32, BUCKETS, _>(|bucket| {
            let count = self.counts[bucket].load(Ordering::Relaxed);
            count.wrapping_sub(seen.counts[bucket])
        });
        let total: u64 = counts.iter().map(|count| u64::from(*count)).sum();
        (0..BUCKETS).filter_map(move |bucket| {
            let all = counts[bucket];
            let share = (u64::from(all) * u64::from(most)).div_ceil(total.max(1));
            let new = all.min(u32::try_from(share).unwrap_or(u32::MAX));
            if new == 0 {
                return None;
            }
            let nanos = self.nanos[bucket].load(Ordering::Relaxed);
            let sum = nanos.wrapping_sub(seen.nanos[bucket]);
            let share = (u128::from(sum) * u128::from(new) / u128::from(all)) as u64;
            seen.counts[bucket] = seen.counts[bucket].wrapping_add(new);
            seen.nanos[bucket] = seen.nanos[bucket].wrapping_add(share);
            Some(Batch::new(bucket, new, share))
        })
    }
}

impl Batch {
    fn new(bucket: usize, count: u32, sum: u64) -> Batch {
        let shortest = match bucket {
            0 => 0,
            _ => BOUND_NANOS[bucket - 1] + 1,
        };
        let longest = BOUND_NANOS.get(bucket).copied().unwrap_or(u64::MAX);
        // The writer may be between its two stores, and then the mean could leave its bucket.
        let mean = (sum / u64::from(count)).clamp(shortest, longest);
        Batch {
            count,
            mean: Duration::from_nanos(mean),
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn news(tally: &Tally, seen: &mut Seen) -> Vec<(u32, Duration)> {
        tally
            .news(seen)
            .map(|batch| (batch.count, batch.mean))
            .collect()
    }

    #[test]
    fn the_bounds_are_the_same_in_both_units() {
        for (seconds, nanos) in BOUNDS.iter().zip(BOUND_NANOS) {
            assert_eq!(
                Duration::from_secs_f64(*seconds),
                Duration::from_nanos(nanos)
            );
        }
    }

    #[test]
    fn a_bound_belongs_to_the_bucket_below_it() {
        let tally = Tally::new();
        tally.note(Duration::from_millis(1));
        tally.note(Duration::from_nanos(1_000_001));
        tally.note(Duration::from_secs(31));
        let seen = news(&tally, &mut Seen::default());
        let counts: Vec<_> = seen.iter().map(|(count, _)| *count).collect();
        assert_eq!(counts, [1, 1, 1]);
        assert_eq!(seen[2].1, Duration::from_secs(31));
    }

    #[test]
    fn each_reader_sees_everything_once_with_its_exact_sum() {
        let tally = Tally::new();
        let (mut first, mut second) = (Seen::default(), Seen::default());
        tally.note(Duration::from_micros(100));
        tally.note(Duration::from_micros(300));
        assert_eq!(news(&tally, &mut first), [(2, Duration::from_micros(200))]);
        assert_eq!(news(&tally, &mut first), []);
        tally.note(Duration::from_micros(600));
        assert_eq!(news(&tally, &mut first), [(1, Duration::from_micros(600))]);
        let mean = Duration::from_nanos(333_333);
        assert_eq!(news(&tally, &mut second), [(3, mean)]);
    }

    #[test]
    fn a_backlog_is_taken_in_parts_with_its_exact_sum() {
        let tally = Tally::new();
        for millis in [1, 1, 1, 1, 3, 4] {
            tally.note(Duration::from_millis(millis));
        }
        let mut seen = Seen::default();
        let mut part = || tally.news_up_to(3, &mut seen).collect::<Vec<_>>();
        let batch = |count, micros| Batch {
            count,
            mean: Duration::from_micros(micros),
        };
        // Slow ones do not wait until all fast ones are taken.
        assert_eq!(part(), [batch(2, 1_000), batch(1, 3_500)]);
        assert_eq!(part(), [batch(2, 1_000), batch(1, 3_500)]);
        assert_eq!(part(), []);
    }

    #[test]
    fn a_sum_seen_halfway_stays_in_its_bucket() {
        let tally = Tally::new();
        tally.counts[3].store(1, Ordering::Relaxed);
        let seen = news(&tally, &mut Seen::default());
        assert_eq!(seen, [(1, Duration::from_nanos(5_000_001))]);
    }
}
