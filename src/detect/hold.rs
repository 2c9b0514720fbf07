//! A hold: a run of samples in which one thing held the worker.
//!
//! *Runs on:* `stall-watchdog`.
//! *Must not:* do anything but arithmetic on samples.

use super::belief::StackVerdict;
use super::sample::{Advance, Interval, Rules, Sample, Shows, SlotSeen};
use super::{Finding, HeldBy, Stall};
use crate::clock::Nanos;
use crate::os::{Call, ThreadEvidence};
use crate::report::{Certainty, TimeSplit};
use std::time::Duration;

/// Two ticks may be closer together than they should be, by one part in so many of a tick (D85).
const JITTER: u32 = 8;
/// The kernel's figures of the host's time may be too small by one part in so many (D84), since the
/// switch from one thread to another takes time as well.
const HOST_ERROR: u32 = 32;
/// The most that the kernel's figures are taken to be wrong by: one part in so many of the
/// threshold (D84).
const MOST_HOST_ERROR: u32 = 4;

#[derive(Clone, Copy, Debug)]
pub(super) struct Hold {
    /// The number of the hold among those of its detector.
    pub(super) serial: u64,
    pub(super) held_by: HeldBy,
    /// The hold began no earlier than this, and no later than its period. The two are equal if the
    /// begin was measured.
    pub(super) earliest: Nanos,
    pub(super) period: Period,
    /// The host's part of the time.
    host: Duration,
    /// CPU time that is not blamed, since the thread had not answered a signal (D232).
    unanswered: Duration,
    calls: Calls,
    sleep: Option<Sleep>,
    /// One sleep has lasted for the threshold.
    pub(super) long_sleep: bool,
    pub(super) ticks: u32,
    /// The longest time between two samples of it.
    widest: Duration,
    /// Memory shows the worker in the hands of this thread.
    pub(super) has_core: bool,
    /// Tokio's number for the task, if memory shows it; 0 for none.
    task: u64,
    /// The number of ticks since it was first suspected.
    pub(super) suspected_for: Option<u32>,
    /// The verdict of its stacks.
    pub(super) shown: Option<StackVerdict>,
    pub(super) announced: Option<Announced>,
}

/// The time from one moment to the last sample, by its parts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Period {
    pub(super) since: Nanos,
    pub(super) blamed: Duration,
    /// The thread may have no CPU since some moment (D189). Until it has one, only its CPU time is
    /// blamed.
    pub(super) doubtful: bool,
    pub(super) split: TimeSplit,
    /// The busy counter as it was last published before the period.
    pub(super) busy_before: Duration,
}

impl Period {
    /// The period that begins at the sample of this step, if the worker is not parked.
    pub(super) fn at_work_from(step: &Advance) -> Option<Period> {
        let sample = &step.sample;
        (!sample.after.is_parked()).then_some(Period {
            since: sample.at,
            blamed: Duration::ZERO,
            doubtful: step
                .interval
                .is_some_and(|interval| interval.shows == Shows::Preemption),
            split: TimeSplit::default(),
            busy_before: sample.after.busy,
        })
    }

    /// The period from a moment before this sample, or at it. The code is not blamed for the time
    /// before the last sample, nor for any time before the first (D79).
    fn back_to(since: Nanos, step: &Advance) -> Period {
        let age = step.sample.at.since(since);
        let interval = step.interval.unwrap_or_default();
        let seen = age.min(interval.length);
        let split = if step.last.is_some_and(|last| last.after.is_parked()) {
            interval.split.since_parked(seen)
        } else {
            interval.split.part(seen)
        };
        Period {
            since,
            blamed: seen.saturating_sub(interval.host),
            doubtful: interval.shows == Shows::Preemption,
            split: split.plus(TimeSplit::unknown(age - seen)),
            busy_before: step.last.unwrap_or(step.sample).after.busy,
        }
    }

    pub(super) fn add(&mut self, interval: &Interval) {
        match interval.shows {
            Shows::Thread => self.doubtful = false,
            Shows::Nothing => {}
            Shows::Preemption => self.doubtful = true,
        }
        self.blamed += if self.doubtful {
            interval.computed()
        } else {
            interval.blamed()
        };
        // It has a CPU again, and is not preempted once more.
        self.doubtful &= interval.shows == Shows::Preemption || interval.computed().is_zero();
        self.split = self.split.plus(interval.split);
    }

    /// Blames the code for the time from the last sample to the end, as far as it was looked at.
    pub(super) fn add_end(&mut self, end: Nanos, step: &Advance) {
        let blamed = step.blamed(self.since, end);
        self.blamed += if self.doubtful {
            blamed.min(step.interval.unwrap_or_default().computed())
        } else {
            blamed
        };
    }
}

/// The sleep that a thread has been in since it was first seen in it.
#[derive(Clone, Copy, Debug)]
struct Sleep {
    runs: u64,
    cpu: Duration,
    call: Option<Call>,
    blamed: Duration,
}

impl Sleep {
    /// Whether the thread is in the same sleep. It has not run since (D34), or it ran once, to take
    /// our signal, and is in the same call again (D35).
    fn goes_on(&self, thread: &ThreadEvidence, call: Option<Call>, signalled: bool) -> bool {
        let has_not_run = (self.runs, self.cpu) == (thread.runs, thread.cpu);
        let for_us = signalled && call.is_some() && thread.runs == self.runs + 1;
        self.call == call && (has_not_run || for_us)
    }
}

/// The last few different system calls that the thread slept in.
#[derive(Clone, Copy, Debug, Default)]
struct Calls([Option<SleptCall>; 4]);

/// A system call by its number, made at one place or at several.
#[derive(Clone, Copy, Debug)]
struct SleptCall {
    /// The time asleep in all of them.
    total: Duration,
    /// The one with the longest sleep, and that.
    longest: (Call, Duration),
    /// The last one, and its sleep.
    last: (Call, Duration),
}

impl SleptCall {
    fn add(self, call: Call, asleep: Duration) -> SleptCall {
        let before = match self.last {
            (last, time) if last == call => time,
            _ => Duration::ZERO,
        };
        let last = (call, before + asleep);
        SleptCall {
            total: self.total + asleep,
            longest: if last.1 >= self.longest.1 {
                last
            } else {
                self.longest
            },
            last,
        }
    }
}

impl Calls {
    fn add(&mut self, call: Call, asleep: Duration) {
        let mut known = self.0.iter_mut().flatten();
        if let Some(known) = known.find(|known| known.last.0.number == call.number) {
            *known = known.add(call, asleep);
            return;
        }
        // The shortest makes room.
        let places = self.0.iter_mut();
        if let Some(place) = places.min_by_key(|place| place.map(|slept| slept.total)) {
            *place = Some(SleptCall {
                total: asleep,
                longest: (call, asleep),
                last: (call, asleep),
            });
        }
    }

    /// The call that the thread slept in longest, at the place of its longest sleep. Not one in
    /// which it was met, but which took no time of this hold: the thread was there before.
    fn longest(&self) -> Option<Call> {
        let known = self
            .0
            .iter()
            .flatten()
            .filter(|slept| !slept.total.is_zero());
        let longest = known.max_by_key(|slept| slept.total);
        longest.map(|slept| slept.longest.0)
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Announced {
    pub(super) certainty: Certainty,
    /// The age at which it is announced again.
    next_age: Duration,
}

impl Hold {
    /// The hold of a thing that was not there at the last sample.
    pub(super) fn begin(serial: u64, held_by: HeldBy, step: &Advance) -> Hold {
        let sample = &step.sample;
        let exact = exact_begin(held_by, step);
        // A poll in which the thread is asleep began before that sleep did (D86).
        let asleep = match held_by {
            HeldBy::Mark(_) | HeldBy::Poll(..) => step.interval.and_then(|step| step.last_sleep),
            HeldBy::Visit(_) | HeldBy::CountedOut(_) => None,
        };
        let resumed = sample.slot.and_then(|slot| slot.allowed_until);
        let earliest = exact.unwrap_or(step.last_seen().max(resumed.unwrap_or_default()));
        let asleep_since = sample.at.minus(asleep.unwrap_or_default());
        let latest = exact.unwrap_or(asleep_since.max(earliest));
        let mut hold = Hold {
            earliest,
            has_core: sample.turn.is_some_and(|turn| turn.has_core),
            task: sample.turn.map_or(0, |turn| turn.task),
            ..Hold::new(serial, held_by, Period::back_to(latest, step))
        };
        hold.follow_sleep(sample, Duration::ZERO, hold.period.split.asleep);
        hold
    }

    /// The hold that began exactly when its period did.
    pub(super) fn new(serial: u64, held_by: HeldBy, period: Period) -> Hold {
        Hold {
            serial,
            held_by,
            earliest: period.since,
            period,
            host: Duration::ZERO,
            unanswered: Duration::ZERO,
            calls: Calls::default(),
            sleep: None,
            long_sleep: false,
            ticks: 1,
            widest: Duration::ZERO,
            has_core: false,
            task: 0,
            suspected_for: None,
            shown: None,
            announced: None,
        }
    }

    /// The same, with the verdict of a stack that was taken before.
    pub(super) fn with_verdict(mut self, shown: Option<StackVerdict>) -> Hold {
        self.shown = shown;
        self
    }

    /// Whether the hold is over if the worker has gone on: a marked poll ends with its mark,
    /// anything else when the worker's counters move.
    pub(super) fn is_over(&self, gone_on: bool) -> bool {
        gone_on && !matches!(self.held_by, HeldBy::Mark(_))
    }

    /// Whether a sleep has begun or ended since the last sample. Without marks and turns, nothing
    /// shows that what comes before or after a sleep is of the same poll (D38). A runtime that may
    /// not be driven is judged by its whole visit (D37), until that is announced.
    pub(super) fn has_another_sleep(&self, sample: &Sample, rules: &Rules) -> bool {
        let is_unmarked = matches!(self.held_by, HeldBy::Visit(_));
        let counts = rules.always_driven || self.announced.is_some();
        let is_same = match (sample.asleep(), self.sleep) {
            (Some((thread, call)), Some(sleep)) => sleep.goes_on(&thread, call, sample.signalled),
            (now, before) => now.is_none() && before.is_none(),
        };
        is_unmarked && counts && !is_same
    }

    /// Takes in one more sample of the hold.
    pub(super) fn extend(&mut self, step: &Advance, rules: &Rules) {
        self.ticks += 1;
        let Some(interval) = step.interval else {
            return;
        };
        let sample = &step.sample;
        let interval = &self.without_unanswered(sample, interval, rules);
        self.widest = self.widest.max(interval.length);
        self.host += interval.host;
        self.has_core = sample.turn.is_some_and(|turn| turn.has_core);
        match self.begun_since(step) {
            Some(begun) => {
                let step = Advance {
                    interval: Some(*interval),
                    ..*step
                };
                self.count_from(begun, sample.at, &step);
            }
            None => {
                self.period.add(interval);
                self.follow_sleep(sample, interval.blamed(), interval.split.asleep);
                self.long_sleep |= self.one_sleep() >= self.enough(rules);
            }
        }
    }

    /// The moment since the last look from which on the hold counts: the end of `allow_blocking`,
    /// or the begin of a poll that began between the look at its thread and the look at its mark.
    fn begun_since(&self, step: &Advance) -> Option<Nanos> {
        let resumed = step.sample.slot.and_then(|slot| slot.allowed_until);
        let late = Some(self.period.since).filter(|since| *since > step.last_seen());
        resumed.filter(|until| *until > self.period.since).or(late)
    }

    /// Takes CPU time out of the blame if the thread has not answered a signal by its end (D232).
    fn without_unanswered(
        &mut self,
        sample: &Sample,
        interval: Interval,
        rules: &Rules,
    ) -> Interval {
        if !sample.unanswered {
            return interval;
        }
        let left = rules.threshold.saturating_sub(self.unanswered);
        let excused = interval.computed().min(left);
        self.unanswered += excused;
        interval.with_more_of_the_host(excused)
    }

    /// Counts from a moment between two ticks on (D80), until this one.
    pub(super) fn count_from(&mut self, begun: Nanos, until: Nanos, step: &Advance) {
        let shows = step.interval.unwrap_or_default().shows;
        self.earliest = begun;
        self.period.since = begun;
        self.period.blamed = step.blamed(begun, until);
        self.period.doubtful = shows == Shows::Preemption;
        self.period.split = step.split(begun, until);
        self.sleep = None;
    }

    /// The blamed time that makes it long: the threshold, and what the kernel's figures of the host
    /// may be wrong by (D84). If the begin was not measured, the hold is older than it has been
    /// seen, and two ticks that are a little close together suffice (D85).
    pub(super) fn enough(&self, rules: &Rules) -> Duration {
        let known = if self.earliest == self.period.since {
            rules.threshold
        } else {
            rules.threshold - rules.tick.min(rules.threshold) / JITTER
        };
        known + (self.host / HOST_ERROR).min(rules.threshold / MOST_HOST_ERROR)
    }

    /// Whether one of two polls must have been long, with a third between them that no tick has
    /// seen (D52).
    pub(super) fn outlasts_two(&self, rules: &Rules) -> bool {
        self.period.blamed.saturating_sub(self.widest) >= rules.threshold.saturating_mul(2)
    }

    /// Whether it is one long sleep without a mark that is not announced, and whose stack is not
    /// known yet.
    pub(super) fn awaits_the_verdict_of_a_sleep(&self, rules: &Rules) -> bool {
        let is_a_sleep = matches!(self.held_by, HeldBy::Visit(_)) && self.long_sleep;
        is_a_sleep && rules.always_driven && self.announced.is_none() && self.shown.is_none()
    }

    /// Whether its verdict needs a stack, and there is none yet.
    pub(super) fn waits_for_a_stack(&self) -> bool {
        let waits = match self.held_by {
            HeldBy::Mark(_) => !self.has_core,
            HeldBy::Visit(_) => !self.one_sleep().is_zero(),
            HeldBy::Poll(..) | HeldBy::CountedOut(_) => false,
        };
        waits && self.shown.is_none()
    }

    fn follow_sleep(&mut self, sample: &Sample, blamed: Duration, asleep: Duration) {
        let Some((thread, call)) = sample.asleep() else {
            self.sleep = None;
            return;
        };
        if let Some(call) = call {
            self.calls.add(call, asleep);
        }
        let same = self
            .sleep
            .filter(|sleep| sleep.goes_on(&thread, call, sample.signalled));
        self.sleep = Some(Sleep {
            runs: thread.runs,
            cpu: thread.cpu,
            call,
            blamed: same.map_or(Duration::ZERO, |sleep| sleep.blamed + blamed),
        });
    }

    /// The blamed time of the sleep that the thread is in.
    pub(super) fn one_sleep(&self) -> Duration {
        self.sleep.map_or(Duration::ZERO, |sleep| sleep.blamed)
    }

    /// The stall that the hold is, if it lasts until `end`.
    pub(super) fn stall_until(
        &self,
        end: Nanos,
        end_error: Duration,
        certainty: Certainty,
    ) -> Stall {
        let (since, start_error) = middle(self.earliest, self.period.since);
        Stall {
            serial: self.serial,
            held_by: self.held_by,
            since,
            duration: end.since(since),
            error: start_error + end_error,
            certainty,
            split: self.period.split,
            call: self.calls.longest(),
            name: 0,
            task: self.task,
        }
    }

    /// Announces the stall that it is now, if that is news: at first, when it has reached the next
    /// age, and when it has become surer.
    pub(super) fn announce(&mut self, stall: Stall, rules: &Rules) -> Option<Finding> {
        let Some(announced) = &mut self.announced else {
            self.announced = Some(Announced {
                certainty: stall.certainty,
                next_age: next_age(rules, stall.duration),
            });
            return Some(Finding::Began(stall));
        };
        let is_older = stall.duration >= announced.next_age;
        let is_surer = stall.certainty > announced.certainty;
        announced.certainty = stall.certainty;
        if is_older {
            announced.next_age = next_age(rules, stall.duration);
        }
        (is_older || is_surer).then_some(Finding::Ongoing(stall))
    }
}

/// The begin of a new hold, if it was measured: by the mark, by tokio (D61), or at the end of
/// `allow_blocking` (D80).
fn exact_begin(held_by: HeldBy, step: &Advance) -> Option<Nanos> {
    let slot = step.sample.slot;
    let measured = match held_by {
        HeldBy::Mark(_) => slot.and_then(|slot| began_in_this_poll(&slot, &step.sample)),
        HeldBy::Poll(..) => step.sample.begun(step.last.as_ref()),
        HeldBy::Visit(_) | HeldBy::CountedOut(_) => None,
    };
    // Of another poll, it is not known whether blocking was allowed in it or in one before it.
    let is_known = step.last.is_some_and(|last| match held_by {
        HeldBy::Mark(poll) => last.marked() == Some(poll),
        HeldBy::Poll(_, poll) => last.turn.is_some_and(|turn| turn.id == poll),
        HeldBy::Visit(_) | HeldBy::CountedOut(_) => false,
    });
    let known_since = measured.or(is_known.then_some(step.last_seen()));
    let resumed = slot.and_then(|slot| slot.allowed_until);
    let resumed = resumed.filter(|until| known_since.is_some_and(|since| *until > since));
    resumed.or(measured)
}

/// The start of a mark. `None` if another task is polled by now: a span guard held across an
/// `.await` has left its mark behind, or the poll runs other tasks inside.
fn began_in_this_poll(slot: &SlotSeen, sample: &Sample) -> Option<Nanos> {
    let is_same = sample.turn.is_none_or(|turn| turn.task == slot.task);
    slot.started.filter(|_| is_same)
}

/// The first age beyond this one that is a doubling of the threshold, or a milestone.
fn next_age(rules: &Rules, reached: Duration) -> Duration {
    let mut doubled = rules.threshold;
    while doubled <= reached {
        doubled = doubled.saturating_mul(2);
    }
    let milestones = rules.milestones.into_iter().filter(|age| *age > reached);
    milestones.fold(doubled, Duration::min)
}

/// The middle between two times, and its distance from each.
pub(super) fn middle(earliest: Nanos, latest: Nanos) -> (Nanos, Duration) {
    let half = latest.since(earliest) / 2;
    (earliest.plus(half), half)
}
