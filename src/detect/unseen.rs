//! Long polls that ended before they were announced, and the proofs that they held the worker.
//!
//! *Runs on:* `stall-watchdog`.
//! *Must not:* do anything but arithmetic on samples.
//!
//! The thread of a marked poll keeps a record of it (D31). An unmarked poll is known by its sleep
//! (D38). Two things must hold: the busy counter has counted it, and its thread had the worker
//! (D32).

use super::belief::{Sign, StackVerdict, Whose, belief};
use super::hold::{Hold, Period};
use super::sample::{Advance, Sample};
use super::{Detector, Finding, Findings, HeldBy, Stall, TICKS_FOR_A_STACK};
use crate::report::Certainty;
use crate::slot::{LongPoll, PollKey, Thread};
use std::time::Duration;

/// Publications that a poll waits for (D33). One just before the poll does not count it; one after
/// it does.
const PUBLICATIONS: u32 = 3;

/// The longest wait for a verdict that is to come. The explainer reads debug information before its
/// first one, for some seconds on a busy machine.
const LONGEST_EXPLANATION: Duration = Duration::from_secs(60);

/// A long poll that ended before it was announced, until the busy counter confirms it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unconfirmed {
    pub(super) stall: Stall,
    busy_before: Duration,
    /// Publications to wait for before the poll counts as one that left its worker.
    publications: u32,
    /// The busy counter has counted it.
    is_counted: bool,
    proof: Proof,
    /// Ticks for which the proof is waited for.
    ticks: u32,
}

/// The proof that the poll stayed on its worker. The busy counter alone is none: it counts the
/// polls of another thread on the same worker, too.
#[derive(Clone, Copy, Debug)]
pub(super) enum Proof {
    /// Memory has shown it.
    Turns,
    /// Its thread claims the worker again, after the end.
    Claim,
    /// The verdict of a stack that was taken of it.
    Stack(Option<StackVerdict>),
    /// The same, of a sleep without a mark.
    Sleep(Option<StackVerdict>),
}

impl Unconfirmed {
    pub(super) fn new(stall: Stall, busy_before: Duration, proof: Proof) -> Unconfirmed {
        Unconfirmed {
            stall,
            busy_before,
            publications: PUBLICATIONS,
            is_counted: false,
            proof,
            ticks: TICKS_FOR_A_STACK,
        }
    }

    /// Whether it is a sleep without a mark.
    pub(super) fn is_a_sleep(&self) -> bool {
        matches!(self.proof, Proof::Sleep(_))
    }

    /// Takes in the verdict of a stack, if it is of this poll.
    pub(super) fn show(&mut self, serial: u64, shown: StackVerdict) {
        if let Proof::Stack(known) | Proof::Sleep(known) = &mut self.proof {
            if self.stall.serial == serial {
                known.get_or_insert(shown);
            }
        }
    }

    /// The certainty of the poll, if it is proven that it stayed on its worker.
    fn certainty(&self, sample: &Sample, leaves: bool) -> Option<Certainty> {
        match self.proof {
            Proof::Turns => Some(Certainty::Certain),
            Proof::Claim => self.is_claimed_since(sample).then_some(Certainty::Certain),
            Proof::Stack(shown) => belief(Sign::Mark, Whose::ByStack { shown, leaves }),
            Proof::Sleep(shown) => belief(Sign::Sleep, Whose::ByStack { shown, leaves }),
        }
    }

    /// Whether its thread has claimed the worker after its end. A thread that has left the worker
    /// by `block_in_place` does not.
    fn is_claimed_since(&self, sample: &Sample) -> bool {
        let end = self.stall.since.plus(self.stall.duration);
        let claims = |thread: Thread| {
            let slot = sample.slot.filter(|slot| slot.thread == thread);
            slot.is_some_and(|slot| slot.claimed_at >= end)
        };
        matches!(self.stall.held_by, HeldBy::Mark(poll) if claims(poll.thread))
    }

    /// Takes in one more tick. Returns whether it is waited for any longer: for some ticks, and for
    /// as long as a verdict is to come (D208).
    fn waits(&mut self, step: &Advance, is_explaining: bool) -> bool {
        if !self.is_counted {
            self.publications -= u32::from(step.went_on);
        }
        let since_end = step
            .sample
            .at
            .since(self.stall.since.plus(self.stall.duration));
        let is_owed =
            is_explaining && self.is_shown_by_a_stack() && since_end < LONGEST_EXPLANATION;
        self.ticks -= u32::from(!is_owed);
        self.publications > 0 && self.ticks > 0
    }

    fn is_shown_by_a_stack(&self) -> bool {
        matches!(self.proof, Proof::Stack(_) | Proof::Sleep(_))
    }
}

impl Detector {
    /// Takes in the record of a poll that began and ended between two ticks (D31). With turns, its
    /// thread must have the worker at both: in `block_in_place` it has lost it (D33).
    pub(super) fn ended_unseen(&mut self, poll: PollKey, record: &LongPoll, step: &Advance) {
        let is_proven = !self.counts_turns || step.stays_on(poll.thread);
        if let Some(period) = self.unseen_period(record, step).filter(|_| is_proven) {
            let hold = Hold::new(self.next_serial(), HeldBy::Mark(poll), period);
            let stall = Stall {
                name: record.name,
                ..hold.stall_until(record.ended, Duration::ZERO, Certainty::Certain)
            };
            let proof = if self.counts_turns {
                Proof::Turns
            } else {
                Proof::Claim
            };
            let unconfirmed = Unconfirmed::new(stall, period.busy_before, proof);
            self.unconfirmed.push(unconfirmed);
        }
    }

    /// The period of a recorded poll, if it was long and began after the last sample. An older one
    /// was a hold of the detector.
    fn unseen_period(&self, record: &LongPoll, step: &Advance) -> Option<Period> {
        let (started, last) = (record.started?, step.last?);
        let since = record
            .allowed_until
            .map_or(started, |until| until.max(started));
        let blamed = step.blamed(since, record.ended);
        let is_long = blamed >= self.rules.threshold;
        (is_long && started >= last.at).then(|| Period {
            since,
            blamed,
            doubtful: false,
            split: step.split(since, record.ended),
            busy_before: last.after.busy,
        })
    }

    /// Ends the stalls of which the busy counter has counted nine tenths as well (D32). It does not
    /// count a poll that left its worker by `block_in_place` (D33).
    pub(super) fn confirm(&mut self, step: &Advance) -> Findings {
        let mut findings = Findings::new();
        let (leaves, is_explaining) = (self.leaves, self.is_explaining);
        self.unconfirmed.retain_mut(|poll| {
            let busy = step.busy_since(poll.busy_before);
            poll.is_counted |= busy >= poll.stall.duration - poll.stall.duration / 10;
            match poll.certainty(&step.sample, leaves) {
                Some(certainty) if poll.is_counted => {
                    findings.push(Finding::Ended(Stall {
                        certainty,
                        ..poll.stall
                    }));
                    false
                }
                _ => poll.waits(step, is_explaining),
            }
        });
        findings
    }
}
