//! Whether the driver of a runtime is frozen, from the places of its workers.
//!
//! *Runs on:* `stall-watchdog`.
//! *Must not:* do anything but arithmetic on its arguments.
//!
//! A runtime has one driver, in which one parked worker waits for sockets and timers. A worker that
//! comes from there and is held at once may leave it empty, while the other workers sleep beside
//! it. Then no socket and no timer of the runtime moves before that poll ends (D72).

use crate::clock::Nanos;
use std::time::Duration;

/// The place of a worker, in relation to the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Parked in the driver: it waits for sockets and timers.
    InDriver,
    /// Parked beside it.
    Beside,
    /// Held by one thing, at the latest since then.
    Held(Nanos),
    /// At work, so it looks into the driver now and then; or not known.
    AtWork,
}

/// The driver of one runtime.
#[derive(Debug, Default)]
pub(crate) struct EventDriver {
    /// A worker has been seen in it, so there is one (D74).
    exists: bool,
    frozen_since: Option<Nanos>,
    looked_at: Nanos,
    /// The part of the time between the last two looks for which no worker was in it.
    frozen_now: Option<Duration>,
}

impl EventDriver {
    /// Takes in the places of all workers.
    pub(crate) fn follow(&mut self, workers: impl Iterator<Item = Place>, now: Nanos) {
        let mut is_frozen = true;
        let mut since = None;
        for place in workers {
            match place {
                Place::InDriver => (self.exists, is_frozen) = (true, false),
                Place::AtWork => is_frozen = false,
                Place::Held(from) => since = since.max(Some(from)),
                Place::Beside => {}
            }
        }
        let since = since.filter(|_| is_frozen && self.exists);
        self.frozen_since = since.map(|since| self.frozen_since.unwrap_or(since));
        let frozen_now = |since: Nanos| now.since(since.max(self.looked_at));
        self.frozen_now = self.frozen_since.map(frozen_now);
        self.looked_at = now;
    }

    /// The time since which it is empty.
    pub(crate) fn frozen_since(&self) -> Option<Nanos> {
        self.frozen_since
    }

    /// The part of the time between the last two looks for which the driver was empty.
    pub(crate) fn frozen_now(&self) -> Option<Duration> {
        self.frozen_now
    }

    /// The time for which it has been empty since a stall began, up to the last look. `None` if it
    /// is not known (D74).
    pub(crate) fn frozen_in(&self, since: Nanos) -> Option<Duration> {
        let frozen = |from: Nanos| self.looked_at.since(from.max(since));
        self.exists
            .then(|| self.frozen_since.map_or(Duration::ZERO, frozen))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const T: fn(u64) -> Nanos = |millis| Nanos(millis * 1_000_000);
    const MS: fn(u64) -> Duration = Duration::from_millis;

    fn follow(driver: &mut EventDriver, now: u64, places: &[Place]) -> Option<Duration> {
        driver.follow(places.iter().copied(), T(now));
        driver.frozen_in(T(10))
    }

    #[test]
    fn it_is_frozen_while_one_worker_is_held_and_no_other_looks() {
        let mut driver = EventDriver::default();
        let held = Place::Held(T(20));
        assert_eq!(
            follow(&mut driver, 10, &[Place::InDriver, Place::Beside]),
            Some(MS(0))
        );
        assert_eq!(
            follow(&mut driver, 30, &[held, Place::Beside]),
            Some(MS(10))
        );
        assert_eq!(
            follow(&mut driver, 60, &[held, Place::Beside]),
            Some(MS(40))
        );
        assert_eq!(driver.frozen_now(), Some(MS(30)));
        for other in [Place::InDriver, Place::AtWork] {
            assert_eq!(
                follow(&mut driver, 70, &[held, other]),
                Some(MS(0)),
                "{other:?}"
            );
            assert_eq!(driver.frozen_now(), None);
        }
    }

    #[test]
    fn it_is_frozen_from_when_the_last_worker_was_held() {
        let mut driver = EventDriver::default();
        follow(&mut driver, 5, &[Place::InDriver]);
        let places = [Place::Held(T(12)), Place::Held(T(18))];
        assert_eq!(follow(&mut driver, 30, &places), Some(MS(12)));
    }

    #[test]
    fn a_runtime_in_which_no_worker_was_ever_seen_to_wait_may_have_no_driver() {
        let mut driver = EventDriver::default();
        assert_eq!(
            follow(&mut driver, 30, &[Place::Held(T(12)), Place::Beside]),
            None
        );
    }

    #[test]
    fn workers_that_are_all_parked_beside_it_are_not_frozen() {
        let mut driver = EventDriver::default();
        follow(&mut driver, 5, &[Place::InDriver]);
        assert_eq!(follow(&mut driver, 9, &[Place::Beside]), Some(MS(0)));
    }
}
