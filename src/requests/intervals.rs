//! The last stalls of a runtime, as intervals that requests read without a lock.
//!
//! *Runs on:* `stall-watchdog` writes; worker threads read, at a late poll.
//! *Must not:* make a reader wait. An entry that changes during the reading is passed over.

use super::time::Stretch;
use crate::clock::Nanos;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// Stalls that are kept.
const KEPT: usize = 32;

/// One stall. It is complete while `id` is not zero.
#[derive(Debug, Default)]
struct KeptStall {
    id: AtomicU64,
    since: AtomicU64,
    /// 0 while it goes on.
    until: AtomicU64,
}

/// The last stalls of a runtime.
#[derive(Debug, Default)]
pub(crate) struct StallIntervals {
    entries: [KeptStall; KEPT],
    next: AtomicUsize,
}

impl StallIntervals {
    /// Notes a stall that goes on, or its end. Only the watchdog calls it.
    pub(crate) fn note(&self, id: u64, since: Nanos, until: Option<Nanos>) {
        let known = self.entries.iter();
        let mut known = known.filter(|entry| entry.id.load(Ordering::Relaxed) == id);
        let entry = known.next().unwrap_or_else(|| self.oldest());
        // Release: pairs with the Acquire in `read`. A reader that sees one of the new values below
        // sees the zero in its second look at the id.
        entry.id.store(0, Ordering::Release);
        entry.since.store(since.0, Ordering::Release);
        let until = until.map_or(0, |until| until.0);
        entry.until.store(until, Ordering::Release);
        entry.id.store(id, Ordering::Release);
    }

    fn oldest(&self) -> &KeptStall {
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        &self.entries[next % KEPT]
    }

    /// The time of an interval that overlaps with stalls, and the stall with the largest part.
    pub(crate) fn lost_in(&self, ready: Stretch) -> Option<(u64, Duration)> {
        let overlaps = self.entries.iter().filter_map(|entry| {
            let (id, since, until) = entry.read()?;
            let lost = ready.during(since, until).length();
            (!lost.is_zero()).then_some((id, lost))
        });
        overlaps.max_by_key(|(_, lost)| *lost)
    }
}

impl KeptStall {
    fn read(&self) -> Option<(u64, Nanos, Option<Nanos>)> {
        // Acquire: pairs with the Release stores in `note`.
        let id = self.id.load(Ordering::Acquire);
        let since = Nanos(self.since.load(Ordering::Acquire));
        let until = self.until.load(Ordering::Acquire);
        let is_same = id != 0 && self.id.load(Ordering::Relaxed) == id;
        is_same.then_some((id, since, (until != 0).then_some(Nanos(until))))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn at(millis: u64) -> Nanos {
        Nanos(millis * 1_000_000)
    }

    fn ready(since: u64, until: u64) -> Stretch {
        Stretch {
            since: at(since),
            until: at(until),
        }
    }

    #[test]
    fn the_stall_with_the_largest_part_is_found() {
        let stalls = StallIntervals::default();
        assert_eq!(stalls.lost_in(ready(0, 100)), None);
        stalls.note(1, at(10), Some(at(30)));
        stalls.note(2, at(50), None);
        let ms = Duration::from_millis;
        assert_eq!(stalls.lost_in(ready(20, 55)), Some((1, ms(10))));
        assert_eq!(stalls.lost_in(ready(20, 90)), Some((2, ms(40))));
        assert_eq!(stalls.lost_in(ready(31, 49)), None);
        stalls.note(2, at(50), Some(at(60)));
        assert_eq!(stalls.lost_in(ready(40, 90)), Some((2, ms(10))));
    }

    #[test]
    fn the_oldest_makes_room() {
        let stalls = StallIntervals::default();
        for id in 1..=KEPT as u64 + 1 {
            stalls.note(id, at(100 * id), Some(at(100 * id + 50)));
        }
        assert_eq!(stalls.lost_in(ready(100, 150)), None);
        assert!(stalls.lost_in(ready(200, 250)).is_some());
    }
}
