//! Sleeps that were over before a stack told whose they were, and what may still tell it.
//!
//! *Runs on:* the watchdog thread.
//! *Here:* arithmetic on samples.

use super::sample::Sample;
use super::stretch::Stretch;
use super::{Certainty, Detector, Finding, Findings, Shown, Stall};
use crate::capture::{Call, ThreadState};

/// Sleeps that wait for a verdict at a time.
const MOST: usize = 8;
/// Ticks for which a stack may be looked at: debug information may have to be read for it.
pub(super) const PATIENCE: u32 = 400;

/// A sleep of the threshold in a worker's thread, of which nothing told in time whether the thread drove the
/// worker. Certain, if it did.
#[derive(Clone, Copy, Debug)]
pub(super) struct Undecided {
    stall: Stall,
    thread: (usize, u64),
    patience: u32,
    verdict: Option<Shown>,
}

/// The places where a thread was asleep while its worker was parked: in the driver, or waiting for another
/// thread that is in there.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ParkPlaces {
    thread: (usize, u64),
    places: [Option<Call>; 2],
}

impl ParkPlaces {
    pub(super) fn follow(&mut self, sample: &Sample) {
        if sample.slot.is_none() {
            // What was taken for its parking was another thread's.
            *self = ParkPlaces::default();
        }
        let Some((thread, call)) = parked_at(sample) else {
            return;
        };
        if self.thread != thread {
            *self = ParkPlaces {
                thread,
                places: [None; 2],
            };
        }
        if !self.places.contains(&Some(call)) {
            self.places = [Some(call), self.places[0]];
        }
    }

    /// Whether the worker is parked, and its thread is where it has parked it before.
    pub(super) fn holds(&self, sample: &Sample) -> bool {
        parked_at(sample).is_some_and(|(thread, call)| {
            self.thread == thread && self.places.contains(&Some(call))
        })
    }
}

/// Which thread sleeps where while the worker is parked.
fn parked_at(sample: &Sample) -> Option<((usize, u64), Call)> {
    let parked = sample.before.parks % 2 == 1 && sample.before == sample.after;
    match (sample.slot, sample.thread?.state) {
        (Some(slot), ThreadState::Asleep(Some(call))) if parked => Some((slot.thread, call)),
        _ => None,
    }
}

impl Detector {
    /// Whether anything may still tell that this long sleep, which is over, held the worker. Not where its
    /// thread is another's now, or has been seen elsewhere.
    pub(super) fn may_be_decided(&self, stretch: &Stretch, sample: &Sample) -> bool {
        let thread = |sample: &Sample| sample.slot.map(|slot| slot.thread);
        let before = stretch.before.as_ref().and_then(thread);
        thread(sample).is_some()
            && before.is_none_or(|before| Some(before) == thread(sample))
            && !stretch.is_elsewhere()
    }

    pub(super) fn leave_undecided(&mut self, stall: Stall, shown: Option<Shown>, sample: &Sample) {
        let Some(slot) = sample.slot else {
            return;
        };
        if self.undecided.len() == MOST {
            self.undecided.remove(0);
        }
        self.undecided.push(Undecided {
            stall,
            thread: slot.thread,
            patience: PATIENCE,
            verdict: shown,
        });
    }

    /// Takes in what a stack has shown of a sleep that is over.
    pub(super) fn decide_by_stack(&mut self, serial: u64, shown: Shown) {
        let mut undecided = self.undecided.iter_mut();
        if let Some(sleep) = undecided.find(|sleep| sleep.stall.serial == serial) {
            sleep.verdict = Some(shown);
        }
        self.unconfirmed
            .retain_mut(|poll| poll.is_shown(serial, shown));
    }

    /// Says what has been decided: by a stack, or because the thread has parked the worker where it always
    /// did, which a thread that has left it does not.
    pub(super) fn decide_by_place(&mut self, sample: &Sample) -> Findings {
        let is_left = self.is_left;
        // Where polls can leave their worker, only the stack tells: who has slept in `block_in_place` may park
        // the worker again before it has been looked at.
        let parks = !is_left && self.polls_stay != Some(false) && self.parks_at.holds(sample);
        let thread = sample.slot.map(|slot| slot.thread);
        let mut findings = Findings::new();
        self.undecided.retain_mut(|sleep| {
            let likely = (!is_left).then_some(Certainty::Likely);
            let decided = match sleep.verdict {
                Some(Shown::Driving) => Some(Certainty::Certain),
                Some(Shown::MovedAway | Shown::Parked) => return false,
                _ if parks && thread == Some(sleep.thread) => Some(Certainty::Certain),
                _ if sleep.patience == 0 => likely,
                _ => None,
            };
            if let Some(certainty) = decided {
                findings.push(Finding::Ended(Stall {
                    certainty,
                    ..sleep.stall
                }));
                return false;
            }
            sleep.patience = sleep.patience.saturating_sub(1);
            !(sleep.patience == 0 && is_left)
        });
        findings
    }
}
