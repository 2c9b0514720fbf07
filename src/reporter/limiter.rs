//! The limit of the log: one stall per place and minute, ten a minute in all, and the rest is
//! counted.
//!
//! *Runs on:* `stall-sinks`.
//! *Must not:* read a clock. Time is handed in.
//!
//! Metrics, callbacks and `recent()` have no limit.

use crate::clock::Nanos;
use std::collections::{HashMap, VecDeque};
use std::time::Duration;

/// The time in which one place is logged once.
const WINDOW: Duration = Duration::from_secs(60);
/// The most stalls of all places together that are logged in [`WINDOW`].
const IN_ALL: usize = 10;
/// The most places that are remembered. One more, and all are forgotten.
const PLACES: usize = 256;

/// Decides which stalls are logged.
#[derive(Debug, Default)]
pub(crate) struct Limiter {
    places: HashMap<String, Nanos>,
    logged: VecDeque<Nanos>,
    suppressed: u64,
}

impl Limiter {
    /// Notes that a stall at this place is in the log.
    pub(crate) fn note(&mut self, place: &str, now: Nanos) {
        if self.places.len() < PLACES && !self.places.contains_key(place) {
            self.places.insert(place.to_owned(), now);
        }
    }

    /// Takes a stall back that was counted as suppressed: it is decided about again.
    pub(crate) fn take_back(&mut self) {
        self.suppressed = self.suppressed.saturating_sub(1);
    }

    /// Decides whether a stall at this place is logged now. If so, returns how many have been
    /// suppressed since the last one that was logged; if not, counts it as suppressed.
    pub(crate) fn admit(&mut self, place: &str, now: Nanos) -> Option<u64> {
        let window = now.minus(WINDOW);
        self.places.retain(|_, at| *at > window);
        self.logged.retain(|at| *at > window);
        if self.places.contains_key(place) || self.logged.len() >= IN_ALL {
            self.suppressed += 1;
            return None;
        }
        if self.places.len() >= PLACES {
            self.places.clear();
        }
        self.places.insert(place.to_owned(), now);
        self.logged.push_back(now);
        Some(std::mem::take(&mut self.suppressed))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Nanos {
        Nanos(1_000_000_000_000 + seconds * 1_000_000_000)
    }

    #[test]
    fn a_place_is_logged_once_a_minute_and_the_rest_is_counted() {
        let mut limiter = Limiter::default();
        assert_eq!(limiter.admit("a", at(0)), Some(0));
        for second in 1..=59 {
            assert_eq!(limiter.admit("a", at(second)), None);
        }
        assert_eq!(limiter.admit("a", at(60)), Some(59));
    }

    #[test]
    fn a_place_that_is_noted_is_logged_no_more() {
        let mut limiter = Limiter::default();
        assert_eq!(limiter.admit("not known yet", at(0)), Some(0));
        limiter.note("a", at(1));
        assert_eq!(limiter.admit("a", at(2)), None);
        assert_eq!(limiter.admit("b", at(2)), Some(1), "positive control");
    }

    #[test]
    fn a_stall_that_is_decided_about_twice_is_counted_once() {
        let mut limiter = Limiter::default();
        assert_eq!(limiter.admit("a", at(0)), Some(0));
        assert_eq!(limiter.admit("a", at(1)), None);
        limiter.take_back();
        assert_eq!(limiter.admit("a", at(2)), None);
        assert_eq!(limiter.admit("b", at(2)), Some(1));
    }

    #[test]
    fn places_do_not_silence_each_other_until_ten_a_minute() {
        let mut limiter = Limiter::default();
        let places: Vec<String> = (0..12).map(|place| place.to_string()).collect();
        let admitted = places
            .iter()
            .filter(|place| limiter.admit(place, at(1)).is_some())
            .count();
        assert_eq!(admitted, 10);
        assert_eq!(limiter.admit("another", at(61)), Some(2));
    }
}
