//! What ended before anybody saw it: long polls and sleeps that were over by the next tick.
//!
//! *Runs on:* the watchdog thread.
//! *Must not:* do anything but arithmetic on samples. The busy counter has the last word: what it has not counted
//! did not hold the worker.

use super::sample::{Interval, PollKey, Sample};
use super::split::TimeSplit;
use super::stretch::middle;
use super::{Certainty, Detector, Finding, Findings, HeldBy, POLLS_IN_A_TURN, Stall};
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

    /// Without marks, and over before it had been seen for long: the worker was parked before and is parked
    /// again, after one turn that took as long as the busy counter says.
    ///
    /// A thread that was put on a CPU n times has slept n − 1 times in between, so the longest of these
    /// sleeps is known from below.
    pub(super) fn slept_unseen(
        &mut self,
        before: &Sample,
        sample: &Sample,
        interval: Interval,
    ) -> Option<Finding> {
        if !self.is_one_turn(before, sample) {
            return None;
        }
        let (thread_before, thread) = (before.thread?, sample.thread?);
        let runs = u32::try_from(thread.runs.wrapping_sub(thread_before.runs)).ok()?;
        let length = sample.at.since(before.at);
        let busy = sample.before.busy.saturating_sub(before.after.busy);
        let computed = thread.cpu.saturating_sub(thread_before.cpu);
        let waited = thread
            .run_queue
            .saturating_sub(thread_before.run_queue)
            .max(interval.host);
        let own = busy.saturating_sub(waited);
        let asleep = own.saturating_sub(computed);
        let longest_sleep = asleep / runs.saturating_sub(1).max(1);
        let polls = if self.rules.multi_thread {
            POLLS_IN_A_TURN
        } else {
            1
        };
        let is_long = own / polls >= self.rules.threshold;
        if busy > length || !is_long && longest_sleep < self.rules.threshold {
            return None;
        }
        let (since, error) = middle(before.at, sample.at.minus(busy));
        Some(Finding::Ended(Stall {
            serial: self.next_serial(),
            held_by: HeldBy::CountedOut,
            since,
            duration: busy,
            error: error.min(busy - own),
            certainty: Certainty::Certain,
            split: TimeSplit {
                cpu: computed.min(busy - asleep),
                asleep,
                run_queue: (busy - asleep).saturating_sub(computed),
                ..TimeSplit::default()
            },
            call: None,
            name: 0,
            task: 0,
        }))
    }

    /// Whether the worker was parked at both looks, and has made one turn with polls in between, all of it
    /// unmarked and in the hands of this thread.
    fn is_one_turn(&self, before: &Sample, sample: &Sample) -> bool {
        let (Some(turn_before), Some(turn)) = (before.turn, sample.turn) else {
            return false;
        };
        let (Some(slot_before), Some(slot)) = (before.slot, sample.slot) else {
            return false;
        };
        let parked =
            |sample: &Sample| sample.before.parks % 2 == 1 && sample.before == sample.after;
        let turns = turn.id.turn.wrapping_sub(turn_before.id.turn);
        // One more in which a multi-thread worker finds nothing to do, and parks.
        let one = if self.rules.multi_thread { 2 } else { 1 };
        let no_marks =
            slot_before.poll() == slot.poll() && slot_before.allowed_until == slot.allowed_until;
        let held = turn_before.holds && turn.holds;
        no_marks && held && turns == one && parked(before) && parked(sample)
    }
}
