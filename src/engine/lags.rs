//! The last scheduler lags of one runtime, with their times.
//!
//! *Runs on:* `stall-pulse` writes. Any thread reads.
//! *Must not:* lock or wait.
//!
//! An entry is one word: the time in units of 0.1 ms, and the lag in microseconds. So each is
//! complete in itself, and an overtaken reader gets newer ones instead.

use crate::clock::Nanos;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// The lags that are kept: one each 100 ms of a runtime at work, for 50 s.
const LAGS: usize = 512;
/// The bits of a lag, which ends at 16 s.
const LAG_BITS: u32 = 24;
const LONGEST_LAG: u64 = (1 << LAG_BITS) - 1;
/// The unit of the time, in nanoseconds.
const TIME_UNIT: u64 = 100_000;

/// A ring of lags.
#[derive(Debug)]
pub(crate) struct Lags {
    words: Box<[AtomicU64]>,
    noted: AtomicUsize,
}

impl Lags {
    /// Room for them, if they are kept.
    pub(crate) fn new(are_kept: bool) -> Lags {
        let room = if are_kept { LAGS } else { 0 };
        let words = std::iter::repeat_with(AtomicU64::default).take(room);
        Lags {
            words: words.collect(),
            noted: AtomicUsize::new(0),
        }
    }

    /// Notes a lag. Only one thread may.
    pub(crate) fn note(&self, at: Nanos, lag: Duration) {
        let micros = u64::try_from(lag.as_micros()).unwrap_or(LONGEST_LAG);
        let word = (at.0 / TIME_UNIT) << LAG_BITS | micros.min(LONGEST_LAG);
        // Relaxed: a word is complete in itself, and publishes nothing else.
        let noted = self.noted.fetch_add(1, Ordering::Relaxed);
        if let Some(place) = self.words.get(noted % LAGS) {
            place.store(word, Ordering::Relaxed);
        }
    }

    /// The lags that were noted from this time on, oldest first.
    pub(crate) fn since(&self, since: Nanos) -> Vec<(Nanos, Duration)> {
        let words = self.words.iter().map(|word| word.load(Ordering::Relaxed));
        let lags = words.filter(|word| *word != 0).map(|word| {
            let at = Nanos((word >> LAG_BITS) * TIME_UNIT);
            (at, Duration::from_micros(word & LONGEST_LAG))
        });
        let mut lags: Vec<_> = lags.filter(|(at, _)| *at >= since).collect();
        lags.sort();
        lags
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_last_lags_are_kept_in_order() {
        let lags = Lags::new(true);
        let at = |number: u64| Nanos(number * 100_000_000);
        for number in 1..=LAGS as u64 + 10 {
            lags.note(at(number), Duration::from_micros(number));
        }
        let all = lags.since(Nanos(0));
        assert_eq!(all.len(), LAGS);
        assert_eq!(all[0], (at(11), Duration::from_micros(11)));
        assert_eq!(lags.since(at(LAGS as u64 + 9)).len(), 2);
    }

    #[test]
    fn a_very_long_lag_is_shortened_and_its_time_is_kept() {
        let lags = Lags::new(true);
        let at = Nanos(3_600_000_000_000);
        lags.note(at, Duration::from_secs(1000));
        assert_eq!(lags.since(at), [(at, Duration::from_micros(LONGEST_LAG))]);
    }
}
