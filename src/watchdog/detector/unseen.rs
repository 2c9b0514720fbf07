//! What ended before anybody saw it: long polls and sleeps that were over by the next tick.
//!
//! *Runs on:* the watchdog thread.
//! *Here:* arithmetic on samples. The busy counter has the last word: what it has not counted did not hold
//! the worker.

use super::sample::{Interval, PollKey, Sample};
use super::split::TimeSplit;
use super::stretch::middle;
use super::{Certainty, Detector, Finding, Findings, HeldBy, Shown, Stall};
use crate::capture::ThreadState;
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
    /// Ticks to wait for a stack that is being looked at, which may show the same.
    wait: u32,
    /// The busy counter has counted as much.
    counted: bool,
}

impl Unconfirmed {
    pub(super) fn new(stall: Stall, busy_before: Duration, wait: u32) -> Unconfirmed {
        Unconfirmed {
            stall,
            busy_before,
            patience: PATIENCE,
            wait,
            counted: false,
        }
    }

    /// Takes in what a stack has shown; whether the poll may still be a stall.
    pub(super) fn is_shown(&mut self, serial: u64, shown: Shown) -> bool {
        if self.stall.serial == serial {
            self.wait = 0;
            return !matches!(shown, Shown::MovedAway | Shown::Parked);
        }
        true
    }
}

impl Detector {
    /// A poll ended beyond the threshold between two ticks, and its thread kept a record of it.
    pub(crate) fn ended_unseen(
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
        let host = interval.host;
        let duration = record.ended.since(started);
        if duration.saturating_sub(host) >= self.rules.threshold {
            let serial = self.next_serial();
            let stall = Stall {
                serial,
                held_by: HeldBy::Poll(poll),
                since: started,
                duration,
                error: Duration::ZERO,
                certainty: Certainty::Certain,
                split: interval.split.part(duration),
                call: None,
                name: record.name,
            };
            self.unconfirmed
                .push(Unconfirmed::new(stall, previous.after.busy, 0));
        }
    }

    /// Long polls that ended before they were announced count once the busy counter has counted them
    /// too. A poll that left its worker by `block_in_place` is not in there.
    pub(super) fn confirm(&mut self, sample: &Sample, went_on: bool) -> Findings {
        let mut findings = Findings::new();
        let leave = self.polls_leave;
        self.unconfirmed.retain_mut(|poll| {
            let busy = sample.before.busy.saturating_sub(poll.busy_before);
            poll.counted |= busy >= poll.stall.duration - poll.stall.duration / 10;
            if !poll.counted {
                poll.patience -= u32::from(went_on);
                return poll.patience > 0;
            }
            if poll.wait > 0 {
                poll.wait -= 1;
                if poll.wait == 0 && leave {
                    // No stack has told, and others have left this worker.
                    poll.stall.certainty = Certainty::Likely;
                }
                return true;
            }
            findings.push(Finding::Ended(poll.stall));
            false
        });
        findings
    }

    /// Without marks, and over before a stretch of it could be seen: the worker was active once, and its
    /// thread slept beyond the threshold while it was busy.
    ///
    /// A thread that was put on a CPU n times has slept n − 1 times in between, so the longest of these
    /// sleeps is known from below.
    pub(super) fn slept_unseen(
        &mut self,
        before: &Sample,
        sample: &Sample,
        interval: Interval,
    ) -> Option<Finding> {
        let (thread_before, thread) = (before.thread?, sample.thread?);
        let (slot_before, slot) = (before.slot?, sample.slot?);
        let parks = sample.before.parks.wrapping_sub(before.after.parks);
        let runs = u32::try_from(thread.runs.wrapping_sub(thread_before.runs)).ok()?;
        let no_marks =
            slot_before.poll() == slot.poll() && slot_before.allowed_until == slot.allowed_until;
        if !no_marks || !(1..=2).contains(&parks) || runs == 0 || slot.in_poll() || self.is_left {
            return None;
        }
        let length = sample.at.since(before.at);
        let busy = sample.before.busy.saturating_sub(before.after.busy);
        let computed = thread.cpu.saturating_sub(thread_before.cpu);
        let waited = thread
            .run_queue
            .saturating_sub(thread_before.run_queue)
            .max(interval.host);
        let asleep = busy.saturating_sub(computed).saturating_sub(waited);
        if asleep < self.rules.threshold || busy > length {
            return None;
        }
        // It may have slept elsewhere, in `block_in_place`, while another thread drove the worker. That it
        // has come back to where it parks the worker says that it has not.
        let is_back = self.polls_stay == Some(true) || self.parks_at.holds(sample);
        if !is_back && matches!(thread.state, ThreadState::Asleep(Some(_))) {
            return None;
        }
        let longest_sleep = asleep / (runs - 1).max(1);
        let (since, error) = middle(before.at, sample.at.minus(busy));
        Some(Finding::Ended(Stall {
            serial: self.next_serial(),
            held_by: HeldBy::Unmarked(Some(slot.poll())),
            since,
            duration: busy,
            error: error.min(busy - asleep),
            certainty: if longest_sleep >= self.rules.threshold && is_back {
                Certainty::Certain
            } else {
                Certainty::Likely
            },
            split: TimeSplit {
                cpu: computed.min(busy - asleep),
                asleep,
                run_queue: (busy - asleep).saturating_sub(computed),
                ..TimeSplit::default()
            },
            call: None,
            name: 0,
        }))
    }
}
