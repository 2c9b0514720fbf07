//! A hold: a run of samples in which one thing held the worker.
//!
//! *Runs on:* the watchdog thread.
//! *Must not:* do anything but arithmetic on samples.

use super::belief::StackVerdict;
use super::sample::{Interval, PollKey, Rules, Sample};
use super::{Ends, HeldBy, Stall, Unmoved};
use crate::clock::Nanos;
use crate::os::{Call, ThreadEvidence, ThreadState};
use crate::report::{Certainty, TimeSplit};
use std::time::Duration;

/// Ticks may be closer together than they should by one part in so many.
const JITTER: u32 = 8;
/// The kernel's figures of what the host has taken may be too small by one part in so many, since switching from
/// one thread to another takes time as well …
const HOST_ERROR: u32 = 32;
/// … but never by more than this part of the threshold.
const MOST_HOST_ERROR: u32 = 4;

#[derive(Clone, Copy, Debug)]
pub(super) struct Hold {
    /// Counts the holds_seen of its detector.
    pub(super) serial: u64,
    pub(super) held_by: HeldBy,
    /// It began no earlier than this …
    pub(super) earliest: Nanos,
    /// … and no later than this. Equal if the start was measured.
    pub(super) latest: Nanos,
    /// Time for which the code is to blame, from `latest` on.
    pub(super) blamed: Duration,
    /// Time that the host has taken meanwhile.
    host: Duration,
    /// What the time since `latest` was spent on, up to the last sample.
    pub(super) split: TimeSplit,
    /// The system calls that the thread was seen asleep in.
    pub(super) calls: Calls,
    pub(super) busy_before: Duration,
    pub(super) sleep: Option<Sleep>,
    /// One sleep has lasted for the threshold.
    pub(super) long_sleep: bool,
    pub(super) ticks: u32,
    /// The longest time between two samples of it.
    pub(super) widest: Duration,
    /// Memory shows the worker in the hands of this thread.
    pub(super) holds: bool,
    /// Tokio's number for the task, as far as memory shows it.
    pub(super) task: u64,
    pub(super) suspected: bool,
    /// For so many ticks it has been suspected.
    pub(super) suspected_for: u32,
    /// What a stack has shown.
    pub(super) shown: Option<StackVerdict>,
    pub(super) announced: Option<Announced>,
}

/// The one sleep a thread has been in since it was first seen in it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sleep {
    runs: u64,
    cpu: Duration,
    call: Option<Call>,
    pub(super) blamed: Duration,
}

impl Sleep {
    /// Whether the thread is in the same sleep: it has not run since, or only once, to take our signal,
    /// and went back to where it was.
    fn goes_on(&self, thread: &ThreadEvidence, call: Option<Call>, signalled: bool) -> bool {
        let has_not_run = (self.runs, self.cpu) == (thread.runs, thread.cpu);
        let for_us = signalled && call.is_some() && thread.runs == self.runs + 1;
        self.call == call && (has_not_run || for_us)
    }
}

/// The last few different system calls, and how long the thread slept in each.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Calls([Option<(Call, Duration)>; 4]);

impl Calls {
    fn add(&mut self, call: Call, asleep: Duration) {
        let known = self
            .0
            .iter_mut()
            .flatten()
            .find(|(known, _)| known.number == call.number);
        match known {
            Some((known, time)) => {
                *known = call;
                *time += asleep;
            }
            None => {
                // The shortest makes room.
                let place = self
                    .0
                    .iter_mut()
                    .min_by_key(|place| place.map(|(_, time)| time));
                if let Some(place) = place {
                    *place = Some((call, asleep));
                }
            }
        }
    }

    /// The one slept in longest.
    fn longest(&self) -> Option<Call> {
        let known = self.0.iter().flatten();
        known.max_by_key(|(_, time)| *time).map(|(call, _)| *call)
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Announced {
    pub(super) certainty: Certainty,
    pub(super) next_age: Duration,
}

impl Hold {
    pub(super) fn begin(
        serial: u64,
        held_by: HeldBy,
        last: Option<&Sample>,
        sample: &Sample,
        interval: Option<Interval>,
    ) -> Hold {
        let slot = sample.slot;
        let measured = match held_by {
            HeldBy::Poll(_) => slot.and_then(|slot| slot.started),
            HeldBy::Turn(..) => sample.begun(last),
            _ => None,
        };
        let not_before = last.map_or(sample.at, |last| last.at);
        let resumed = slot
            .and_then(|slot| slot.allowed_until)
            .filter(|until| *until > measured.unwrap_or(not_before));
        let exact = resumed.or(measured);
        // A poll in which the thread is asleep began before the sleep did.
        let asleep = match held_by {
            HeldBy::Poll(_) | HeldBy::Turn(..) => interval.and_then(|interval| interval.last_sleep),
            _ => None,
        };
        let latest = exact.unwrap_or(sample.at.minus(asleep.unwrap_or_default()));
        // What happened before the last sample, or before the first, is not known to be the code's doing.
        let age = sample.at.since(latest);
        let (blamed, split) = match interval {
            Some(interval) => {
                let seen = age.min(interval.length);
                let unseen = TimeSplit::unknown(age - seen);
                let was_parked = last.is_some_and(|last| last.after.parks % 2 == 1);
                let split = if was_parked {
                    interval.split.since_parked(seen)
                } else {
                    interval.split.part(seen)
                };
                (seen.saturating_sub(interval.host), split.plus(unseen))
            }
            None => (Duration::ZERO, TimeSplit::unknown(age)),
        };
        let mut hold = Hold {
            earliest: exact.unwrap_or(not_before),
            split,
            blamed,
            holds: sample.turn.is_some_and(|turn| turn.holds),
            task: sample.turn.map_or(0, |turn| turn.id.task),
            ..Hold::new(
                serial,
                held_by,
                latest,
                last.map_or(sample.after, |last| last.after).busy,
            )
        };
        hold.follow_sleep(sample, Duration::ZERO, hold.split.asleep);
        hold
    }

    /// The hold since the worker was last seen to move.
    pub(super) fn counted_out(serial: u64, unmoved: &Unmoved) -> Hold {
        Hold {
            blamed: unmoved.blamed,
            split: unmoved.split,
            ..Hold::new(
                serial,
                HeldBy::CountedOut,
                unmoved.since,
                unmoved.busy_before,
            )
        }
    }

    fn new(serial: u64, held_by: HeldBy, since: Nanos, busy_before: Duration) -> Hold {
        Hold {
            serial,
            held_by,
            earliest: since,
            latest: since,
            blamed: Duration::ZERO,
            host: Duration::ZERO,
            split: TimeSplit::default(),
            calls: Calls::default(),
            busy_before,
            sleep: None,
            long_sleep: false,
            ticks: 1,
            widest: Duration::ZERO,
            holds: false,
            task: 0,
            suspected: false,
            suspected_for: 0,
            shown: None,
            announced: None,
        }
    }

    /// A marked poll ends with its mark, anything else when the worker's counters move.
    pub(super) fn is_over(&self, gone_on: bool) -> bool {
        gone_on && !matches!(self.held_by, HeldBy::Poll(_))
    }

    pub(super) fn extend(&mut self, sample: &Sample, interval: Option<Interval>, rules: &Rules) {
        self.ticks += 1;
        let Some(interval) = interval else {
            return;
        };
        let blamed = interval.blamed();
        self.widest = self.widest.max(interval.length);
        self.host += interval.host;
        self.holds = sample.turn.is_some_and(|turn| turn.holds);
        let resumed = sample.slot.and_then(|slot| slot.allowed_until);
        if let Some(resumed) = resumed.filter(|resumed| *resumed > self.latest) {
            // `allow_blocking` was entered and left between two ticks.
            self.earliest = resumed;
            self.latest = resumed;
            let age = sample.at.since(resumed);
            self.blamed = age.min(blamed);
            self.split = interval.split.part(age);
            self.sleep = None;
        } else {
            self.blamed += blamed;
            self.split = self.split.plus(interval.split);
            self.follow_sleep(sample, blamed, interval.split.asleep);
            let unmarked = matches!(self.held_by, HeldBy::Unmarked(_));
            if unmarked && rules.always_driven && self.one_sleep().is_zero() && !self.is_decided() {
                // Another sleep, if any, for which another stack must speak.
                self.shown = None;
                self.long_sleep = false;
            }
            self.long_sleep |= self.one_sleep() >= self.enough(rules);
        }
    }

    /// How long it must have been seen to be a stall: for the threshold. Where it began is between two ticks, it is
    /// older than it has been seen, and two ticks that are a little close together do.
    pub(super) fn enough(&self, rules: &Rules) -> Duration {
        let known = if self.earliest == self.latest {
            rules.threshold
        } else {
            rules.threshold - rules.tick.min(rules.threshold) / JITTER
        };
        known + (self.host / HOST_ERROR).min(rules.threshold / MOST_HOST_ERROR)
    }

    /// Whether one of two polls, with a third between them that no tick has seen, must have been long.
    pub(super) fn outlasts_two(&self, rules: &Rules) -> bool {
        self.blamed.saturating_sub(self.widest) >= rules.threshold.saturating_mul(2)
    }

    /// Whether a long sleep has been, and not been another thread's: what comes after it changes nothing.
    fn is_decided(&self) -> bool {
        self.long_sleep && !self.is_elsewhere()
    }

    /// Whether a stack has shown the thread where it does not hold the worker.
    pub(super) fn is_elsewhere(&self) -> bool {
        matches!(
            self.shown,
            Some(StackVerdict::Detached | StackVerdict::Parked)
        )
    }

    /// Whether nothing can be said before a stack is there.
    pub(super) fn waits_for_a_stack(&self) -> bool {
        let waits = match self.held_by {
            HeldBy::Poll(_) => !self.holds,
            HeldBy::Unmarked(_) => !self.one_sleep().is_zero(),
            HeldBy::Turn(..) | HeldBy::CountedOut => false,
        };
        waits && self.shown.is_none()
    }

    /// Adds the time between the last sample that showed the hold and its end, to what it was spent on.
    pub(super) fn add_tail(&mut self, tail: Duration, interval: Option<Interval>) {
        if let Some(interval) = interval {
            self.split = self.split.plus(interval.split.part(tail));
        }
    }

    fn follow_sleep(&mut self, sample: &Sample, blamed: Duration, asleep: Duration) {
        let Some((thread, call)) = sample.thread.and_then(|thread| match thread.state {
            ThreadState::Asleep(call) => Some((thread, call)),
            _ => None,
        }) else {
            self.sleep = None;
            return;
        };
        if let Some(call) = call {
            self.calls.add(call, asleep);
        }
        match &mut self.sleep {
            Some(sleep) if sleep.goes_on(&thread, call, sample.signalled) => {
                sleep.blamed += blamed;
                (sleep.runs, sleep.cpu) = (thread.runs, thread.cpu);
            }
            sleep => {
                *sleep = Some(Sleep {
                    runs: thread.runs,
                    cpu: thread.cpu,
                    call,
                    blamed: Duration::ZERO,
                });
            }
        }
    }

    pub(super) fn one_sleep(&self) -> Duration {
        self.sleep.map_or(Duration::ZERO, |sleep| sleep.blamed)
    }

    pub(super) fn stall_until(
        &self,
        end: Nanos,
        end_error: Duration,
        certainty: Certainty,
    ) -> Stall {
        let (since, start_error) = middle(self.earliest, self.latest);
        Stall {
            serial: self.serial,
            held_by: self.held_by,
            since,
            duration: end.since(since),
            error: start_error + end_error,
            certainty,
            split: self.split,
            call: self.calls.longest(),
            name: 0,
            task: self.task,
        }
    }
}

/// When the poll ended, if its thread has measured that.
pub(super) fn measured_end(ends: &Ends, held_by: HeldBy) -> Option<Nanos> {
    let of_this = |(poll, end): &(PollKey, Nanos)| (HeldBy::Poll(*poll) == held_by).then_some(*end);
    ends.iter().flatten().find_map(of_this)
}

/// The middle between two times, and how far it is from each.
pub(super) fn middle(earliest: Nanos, latest: Nanos) -> (Nanos, Duration) {
    let half = latest.since(earliest) / 2;
    (earliest.plus(half), half)
}
