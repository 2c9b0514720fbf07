//! Marked polls that ended before anybody saw them, by the records that their threads keep.
//!
//! *Runs on:* the watchdog thread.
//! *Must not:* do anything but arithmetic on samples. The busy counter has the last word: what it has not counted
//! did not hold the worker.

use super::sample::{PollKey, Sample};
use super::{Detector, Finding, Findings, HeldBy, Stall};
use crate::report::Certainty;
use crate::slot::LongPoll;
use std::time::Duration;

/// A publication just before the poll says nothing of it, one after it does.
const PATIENCE: u32 = 3;

/// A long poll that ended before it was announced, until the busy counter confirms it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unconfirmed {
    stall: Stall,
    busy_before: Duration,
    /// Publications to wait for before the poll is taken for one that left its worker.
    patience: u32,
}

impl Unconfirmed {
    pub(super) fn new(stall: Stall, busy_before: Duration) -> Unconfirmed {
        Unconfirmed {
            stall,
            busy_before,
            patience: PATIENCE,
        }
    }
}

impl Detector {
    /// A poll ended beyond the threshold between two ticks, and its thread kept a record of it.
    pub(super) fn ended_unseen(
        &mut self,
        poll: PollKey,
        record: &LongPoll,
        previous: Option<Sample>,
    ) {
        let (Some(interval), Some(previous), Some(started)) =
            (self.interval, previous, record.started)
        else {
            return;
        };
        // One that had begun by the last look was the detector's to follow.
        if started < previous.at {
            return;
        }
        let duration = record.ended.since(started);
        if duration.saturating_sub(interval.host) >= self.rules.threshold {
            let stall = Stall {
                serial: self.next_serial(),
                held_by: HeldBy::Poll(poll),
                since: started,
                duration,
                error: Duration::ZERO,
                certainty: Certainty::Certain,
                split: interval.split.part(duration),
                call: None,
                name: record.name,
                task: 0,
            };
            self.unconfirmed
                .push(Unconfirmed::new(stall, previous.after.busy));
        }
    }

    /// Long polls that ended before they were announced count once the busy counter has counted them
    /// too. A poll that left its worker by `block_in_place` is not in there.
    pub(super) fn confirm(&mut self, sample: &Sample, went_on: bool) -> Findings {
        let mut findings = Findings::new();
        self.unconfirmed.retain_mut(|poll| {
            let busy = sample.before.busy.saturating_sub(poll.busy_before);
            if busy >= poll.stall.duration - poll.stall.duration / 10 {
                findings.push(Finding::Ended(poll.stall));
                return false;
            }
            poll.patience -= u32::from(went_on);
            poll.patience > 0
        });
        findings
    }
}
