//! The durations of a thread's timed polls by name: the first sixteen names of the program, and the
//! rest.
//!
//! *Runs on:* worker threads, at the end of a timed poll; exporters read.
//! *Must not:* allocate. Every slot has its places from the start. The end of a poll compares up to
//! sixteen names and makes four memory accesses.

// Without metrics no code reads these figures.
#![cfg_attr(not(feature = "metrics"), allow(dead_code))]

use crate::tally::Tally;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Names with a place of their own.
pub(crate) const NAMES: usize = 16;
/// The place of polls without a name.
const UNNAMED: usize = NAMES;
/// The place of polls whose name came after the limit was reached.
const OTHER: usize = NAMES + 1;
/// All places: the names, [`UNNAMED`] and [`OTHER`].
pub(crate) const PLACES: usize = NAMES + 2;

static NAMED: [OnceLock<&'static str>; NAMES] = [const { OnceLock::new() }; NAMES];
/// The number of places in [`NAMED`] that may be used.
static MOST: AtomicUsize = AtomicUsize::new(NAMES);

/// Sets how many names get a place of their own. Names that have one keep it.
pub(crate) fn set_name_limit(names: usize) {
    MOST.store(names.min(NAMES), Ordering::Relaxed);
}

/// Durations of timed polls on one thread.
#[derive(Debug)]
pub(crate) struct PollTimes([Tally; PLACES]);

impl PollTimes {
    pub(crate) const fn new() -> PollTimes {
        PollTimes([const { Tally::new() }; PLACES])
    }

    /// Counts one poll of the owner, which took `took` nanoseconds.
    pub(crate) fn note(&self, name: Option<&'static str>, took: u64) {
        let place = name.map_or(UNNAMED, place_of);
        self.0[place].note_nanos(took);
    }

    /// The counts by place.
    pub(crate) fn tallies(&self) -> &[Tally; PLACES] {
        &self.0
    }
}

/// The name of a place.
pub(crate) fn name_of(place: usize) -> &'static str {
    match place {
        UNNAMED => crate::tally::UNNAMED,
        place => NAMED
            .get(place)
            .and_then(OnceLock::get)
            .unwrap_or(&crate::tally::OTHER),
    }
}

fn place_of(name: &'static str) -> usize {
    place_among(&NAMED[..MOST.load(Ordering::Relaxed)], name)
}

fn place_among(named: &[OnceLock<&'static str>], name: &'static str) -> usize {
    // Nearly always the name is known at this very address, and no text has to be compared.
    let known_here = named
        .iter()
        .map_while(OnceLock::get)
        .position(|known| std::ptr::eq(*known, name));
    known_here.unwrap_or_else(|| place_by_text(named, name))
}

#[cold]
fn place_by_text(named: &[OnceLock<&'static str>], name: &'static str) -> usize {
    named
        .iter()
        .position(|known| *known.get_or_init(|| name) == name)
        .unwrap_or(OTHER)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_first_names_have_places_and_the_rest_share_one() {
        let named = [const { OnceLock::new() }; 2];
        let again: &'static str = String::from("a").leak();
        assert_eq!(place_among(&named, "a"), 0);
        assert_eq!(place_among(&named, "b"), 1);
        assert_eq!(place_among(&named, "c"), OTHER);
        assert_eq!(place_among(&named, again), 0, "by text, wherever it lies");
        assert_eq!(place_among(&named[..0], "a"), OTHER);
    }

    #[test]
    fn places_without_a_name_of_their_own_have_one_too() {
        assert_eq!(name_of(UNNAMED), "unnamed");
        assert_eq!(name_of(OTHER), "other");
    }

    #[test]
    fn a_thread_s_slot_stays_small() {
        assert!(
            size_of::<super::super::Slot>() <= 4096,
            "the budget per thread"
        );
    }
}
