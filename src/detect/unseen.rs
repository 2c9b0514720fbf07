//! Marked polls that ended before they were announced, and the busy counter that confirms them.
//!
//! *Runs on:* `stall-watchdog`.
//! *Must not:* do anything but arithmetic on samples.
//!
//! The thread of such a poll keeps a record of it (D31). The busy counter decides: a poll that it
//! has not counted did not hold the worker.

use super::hold::{Hold, Period};
use super::sample::{Advance, PollKey};
use super::{Detector, Finding, Findings, HeldBy, Stall};
use crate::report::Certainty;
use crate::slot::LongPoll;
use std::time::Duration;

/// Publications that a poll waits for (D33). One just before the poll does not count it; one after
/// it does.
const PUBLICATIONS: u32 = 3;

/// A long poll that ended before it was announced, until the busy counter confirms it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unconfirmed {
    stall: Stall,
    busy_before: Duration,
    /// Publications to wait for before the poll counts as one that left its worker.
    publications: u32,
}

impl Unconfirmed {
    pub(super) fn new(stall: Stall, busy_before: Duration) -> Unconfirmed {
        Unconfirmed {
            stall,
            busy_before,
            publications: PUBLICATIONS,
        }
    }
}

impl Detector {
    /// Takes in the record of a poll that began and ended between two ticks (D31).
    pub(super) fn ended_unseen(&mut self, poll: PollKey, record: &LongPoll, step: &Advance) {
        if let Some(period) = self.unseen_period(record, step) {
            let hold = Hold::new(self.next_serial(), HeldBy::Poll(poll), period);
            let stall = Stall {
                name: record.name,
                ..hold.stall_until(record.ended, Duration::ZERO, Certainty::Certain)
            };
            let unconfirmed = Unconfirmed::new(stall, period.busy_before);
            self.unconfirmed.push(unconfirmed);
        }
    }

    /// The period of a recorded poll, if it was long and began after the last sample. An older one
    /// was a hold of the detector.
    fn unseen_period(&self, record: &LongPoll, step: &Advance) -> Option<Period> {
        let (since, last, interval) = (record.started?, step.last?, step.interval?);
        let duration = record.ended.since(since);
        let is_long = duration.saturating_sub(interval.host) >= self.rules.threshold;
        (is_long && since >= last.at).then(|| Period {
            since,
            blamed: duration,
            split: interval.split.part(duration),
            busy_before: last.after.busy,
        })
    }

    /// Ends the stalls of which the busy counter has counted nine tenths as well (D32). It does not
    /// count a poll that left its worker by `block_in_place` (D33).
    pub(super) fn confirm(&mut self, step: &Advance) -> Findings {
        let mut findings = Findings::new();
        self.unconfirmed.retain_mut(|poll| {
            let busy = step.busy_since(poll.busy_before);
            if busy >= poll.stall.duration - poll.stall.duration / 10 {
                findings.push(Finding::Ended(poll.stall));
                return false;
            }
            poll.publications -= u32::from(step.went_on);
            poll.publications > 0
        });
        findings
    }
}
