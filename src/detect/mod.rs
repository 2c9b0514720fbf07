//! Decides, from one look a tick, whether a worker is held. Pure: no clock, no threads, no I/O.
//!
//! *Runs on:* the watchdog thread.
//! *Must not:* do anything but arithmetic on what it is given. Time is handed in, so that tests need none.
//!
//! A worker is held by one thing for as long as nothing shows that it has gone on. Such a *hold* is a
//! marked poll (the same odd epoch in the slot of the worker's thread) or a poll that memory shows to be the
//! same one ([`PollId`]). Where memory cannot be read, it is a visit to the runtime's loop in which neither of
//! the worker's counters has moved.
//!
//! Only time for which the code can be blamed counts towards the threshold: time on a CPU and time
//! asleep, not time spent waiting for a CPU, nor time for which this whole process stood still.
//!
//! What a long hold proves is said by one function, [`belief`](belief::belief).

mod belief;
mod driver;
mod hold;
mod ledger;
mod sample;
mod unseen;

pub(crate) use belief::StackVerdict;
pub(crate) use driver::{EventDriver, Place};
pub(crate) use ledger::{Ledger, Page, WorkerState};
pub(crate) use sample::{Counters, Look, PollKey, Rules, Sample, SlotSeen};

use crate::clock::Nanos;
use crate::os::Call;
use crate::report::{Certainty, TimeSplit};
use crate::slot::LongPoll;
use crate::turns::{PollId, Stage};
use belief::{Sign, Whose, belief};
use hold::{Announced, Hold, measured_end, middle};
use sample::{Ends, Interval};
use std::time::Duration;
use unseen::Unconfirmed;

/// What holds a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeldBy {
    /// A marked poll.
    Poll(PollKey),
    /// A poll on this thread that memory shows to be the same one.
    Turn(Thread, PollId),
    /// Something without a mark, where memory shows nothing. The epoch, if a slot is known, is an even one: a
    /// mark that comes and goes in between is a sign of life.
    Unmarked(Option<PollKey>),
    /// A turn of the runtime's loop that has outlasted all the polls it could consist of.
    CountedOut,
}

/// Which slot, and which of its owners.
pub(crate) type Thread = (usize, u64);

/// What is known of a stall at this moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stall {
    /// Counts what was watched on its worker; the same from first suspicion to the end.
    pub(crate) serial: u64,
    pub(crate) held_by: HeldBy,
    pub(crate) since: Nanos,
    /// By the clock on the wall, host time included.
    pub(crate) duration: Duration,
    /// `duration` is right to within this much.
    pub(crate) error: Duration,
    pub(crate) certainty: Certainty,
    /// What the time was spent on, as far as it was looked at.
    pub(crate) split: TimeSplit,
    /// The system call that the thread slept in longest, as far as was seen.
    pub(crate) call: Option<Call>,
    /// The name its thread left behind, where the poll ended unseen; 0 for none.
    pub(crate) name: u32,
    /// Tokio's number for the task, where memory shows it; 0 for none.
    pub(crate) task: u64,
}

/// News about a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Finding {
    /// This may cross the threshold at the next tick: time to look up names and to take a stack.
    Suspect(Stall),
    Began(Stall),
    Ongoing(Stall),
    Ended(Stall),
}

/// At most three things can happen in one tick: a stall ends, and another is noticed.
pub(crate) type Findings = Vec<Finding>;

/// Watches one worker.
#[derive(Debug)]
pub(crate) struct Detector {
    rules: Rules,
    last: Option<Sample>,
    interval: Option<Interval>,
    hold: Option<Hold>,
    /// How many there have been.
    holds_seen: u64,
    /// An announced poll that has just ended. Boxed: rare, and large.
    closing: Option<Box<Closing>>,
    /// A mark that has outlived its poll, or whose poll has left its worker.
    outlived: Option<PollKey>,
    /// How long the worker's turn, or where none is seen its counters, have not moved.
    unmoved: Option<Unmoved>,
    /// Long polls that ended before they were announced, until the busy counter confirms them.
    unconfirmed: Vec<Unconfirmed>,
    /// When polls that are followed ended, as far as their thread has measured that.
    ends: Ends,
    /// Polls of this worker have been seen to leave it.
    leaves: bool,
}

#[derive(Clone, Copy, Debug)]
struct Unmoved {
    since: Nanos,
    blamed: Duration,
    split: TimeSplit,
    busy_before: Duration,
}

impl Unmoved {
    /// From now on, unless the worker is parked.
    fn from(sample: &Sample) -> Option<Unmoved> {
        (sample.after.parks % 2 == 0).then_some(Unmoved {
            since: sample.at,
            blamed: Duration::ZERO,
            split: TimeSplit::default(),
            busy_before: sample.after.busy,
        })
    }
}

/// Between the end of a poll and the record of it, its thread may lose its CPU. The record is given one
/// more tick.
#[derive(Clone, Copy, Debug)]
struct Closing {
    hold: Hold,
    certainty: Certainty,
    not_before: Nanos,
    not_after: Nanos,
}

/// The most polls in one turn of a multi-thread worker: a task, and up to three from its "next" slot.
const POLLS_IN_A_TURN: u32 = 4;
/// The most polls between two moves of a worker's counters: tokio publishes them every 61 turns.
const POLLS_IN_A_PUBLICATION: u32 = 61 * POLLS_IN_A_TURN;
/// Ticks for which a marked poll waits for a stack, where memory does not show whose the worker is: debug
/// information may have to be read for it.
const PATIENCE: u32 = 400;

impl Detector {
    pub(crate) fn new(rules: Rules) -> Detector {
        Detector {
            rules,
            last: None,
            interval: None,
            hold: None,
            holds_seen: 0,
            closing: None,
            outlived: None,
            unmoved: None,
            unconfirmed: Vec::new(),
            ends: [None; 2],
            leaves: false,
        }
    }

    /// Takes in one tick's look, and says what is new.
    pub(crate) fn observe(&mut self, look: &Look) -> Findings {
        for (serial, shown) in &look.stacks {
            self.show(*serial, *shown);
        }
        let previous = self.last;
        let unseen = self.sort_records(&look.records);
        let mut findings = self.follow(&look.sample);
        for (poll, record) in unseen {
            self.ended_unseen(poll, &record, previous);
        }
        findings.extend(self.announce(&look.sample));
        findings
    }

    /// Takes in a tick at which an idle worker was parked as before: the sample taken in last holds for this
    /// moment as well.
    pub(crate) fn rested(&mut self, at: Nanos) {
        if let Some(last) = &mut self.last {
            last.at = at;
        }
    }

    /// Whether nothing is being watched, and nothing waited for.
    pub(crate) fn is_idle(&self) -> bool {
        self.hold.is_none()
            && self.closing.is_none()
            && self.outlived.is_none()
            && self.unconfirmed.is_empty()
    }

    /// What is being watched now, by its serial.
    pub(crate) fn watches(&self) -> Option<u64> {
        self.hold.map(|hold| hold.serial)
    }

    /// Since when one thing has held the worker, if it has been seen to at two ticks.
    pub(crate) fn held_since(&self) -> Option<Nanos> {
        let hold = self.hold.filter(|hold| hold.ticks >= 2);
        hold.map(|hold| hold.latest)
    }

    /// The sample taken in last.
    pub(crate) fn last(&self) -> Option<Sample> {
        self.last
    }

    /// Follows what holds the worker from the last sample to this one.
    fn follow(&mut self, sample: &Sample) -> Findings {
        let mut findings = Findings::new();
        let went_on = self.last.is_some_and(|last| last.after != sample.before);
        let sample = &self.without_outlived(sample, went_on);
        let last = self.last.replace(*sample);
        let interval = last.map(|last| Interval::between(&last, sample, &self.rules));
        self.interval = interval;
        self.follow_counters(last.as_ref(), sample, interval);
        findings.extend(self.close());

        let holder = self.holder(sample);
        let gone_on = went_on || sample.before != sample.after;
        match self.hold.take() {
            Some(mut hold) if holder == Some(hold.held_by) && !hold.is_over(gone_on) => {
                hold.extend(sample, interval, &self.rules);
                self.hold = Some(hold);
            }
            old => {
                if old.is_some_and(|old| old.announced.is_some()) {
                    // What has been told once does not count again.
                    self.unmoved = Unmoved::from(sample);
                }
                let over = old.and_then(|old| self.finish(old, last.as_ref(), sample, interval));
                findings.extend(over);
                let serial = self.next_serial();
                self.hold = holder.map(|held_by| match (held_by, &self.unmoved) {
                    (HeldBy::CountedOut, Some(unmoved)) => Hold::counted_out(serial, unmoved),
                    _ => Hold::begin(serial, held_by, last.as_ref(), sample, interval),
                });
            }
        }
        findings.extend(self.confirm(sample, went_on));
        findings
    }

    /// Keeps when the polls that are followed ended; hands back the records of the others.
    fn sort_records(&mut self, records: &[(PollKey, LongPoll)]) -> Vec<(PollKey, LongPoll)> {
        // What is being watched is told as such. A poll that ended just after the sample was taken is seen to
        // be over only next time.
        let (followed, unseen): (Vec<_>, Vec<_>) = records
            .iter()
            .copied()
            .partition(|(poll, _)| self.follows(*poll));
        let known = self.ends.iter().flatten().copied();
        let known: Vec<_> = known.filter(|(poll, _)| self.follows(*poll)).collect();
        let new = followed
            .into_iter()
            .map(|(poll, record)| (poll, record.ended));
        let mut ends = new.chain(known);
        self.ends = [ends.next(), ends.next()];
        unseen
    }

    /// Whether the detector waits for the end of this poll.
    fn follows(&self, poll: PollKey) -> bool {
        let held_by = |hold: Option<Hold>| hold.map(|hold| hold.held_by);
        let poll = Some(HeldBy::Poll(poll));
        held_by(self.hold) == poll
            || held_by(self.closing.as_ref().map(|closing| closing.hold)) == poll
    }

    /// The sample without a mark that has outlived its poll, as a span guard that is held across an `.await`
    /// does, and without a thread that has left its worker.
    ///
    /// A worker neither parks nor publishes during a poll, and its turn does not move.
    fn without_outlived(&mut self, sample: &Sample, went_on: bool) -> Sample {
        let polled = sample.marked();
        let still = polled.is_some() && polled == self.last.and_then(|last| last.marked());
        let parked = sample.before.parks % 2 == 1;
        let moved = went_on
            || self
                .last
                .is_some_and(|last| last.shows_another_poll(sample));
        if polled.is_some() && (parked || still && moved || sample.is_resumed_since_its_mark()) {
            self.outlived = polled;
            self.leaves |= sample.turn.is_none();
        }
        if self.outlived.is_none() || self.outlived != polled {
            self.outlived = None;
            return *sample;
        }
        if sample.turn.is_some() {
            return sample.unmarked();
        }
        Sample {
            slot: None,
            thread: None,
            ..*sample
        }
    }

    /// Takes in what a stack has shown of what is being watched.
    fn show(&mut self, serial: u64, shown: StackVerdict) {
        self.leaves |= shown == StackVerdict::Detached;
        if let Some(hold) = &mut self.hold {
            // What one stack has shown, that there is no other does not undo.
            if hold.serial == serial
                && (shown != StackVerdict::Inconclusive || hold.shown.is_none())
            {
                hold.shown = Some(shown);
            }
        }
    }

    fn next_serial(&mut self) -> u64 {
        self.holds_seen += 1;
        self.holds_seen
    }

    /// What holds the worker in this sample; `None` if it is parked or allowed to block, if it went from poll to
    /// poll meanwhile, and where memory shows that this thread has no worker in its hands.
    fn holder(&self, sample: &Sample) -> Option<HeldBy> {
        let is_allowed = sample.slot.is_some_and(|slot| slot.allowed);
        let is_elsewhere = sample.turn.is_some_and(|turn| !turn.holds);
        if sample.after.parks % 2 == 1 || is_allowed || is_elsewhere || !sample.settled {
            return None;
        }
        let current = self.hold.map(|hold| hold.held_by);
        let said = self.hold.is_some_and(|hold| hold.announced.is_some());
        if self.counted_out(sample) && (current == Some(HeldBy::CountedOut) || !said) {
            return Some(HeldBy::CountedOut);
        }
        Some(match (sample.slot, sample.turn) {
            (Some(slot), _) if slot.in_poll() => HeldBy::Poll(slot.poll()),
            (Some(slot), Some(turn)) => HeldBy::Turn(slot.thread, turn.id),
            (slot, _) => HeldBy::Unmarked(slot.map(|slot| slot.poll())),
        })
    }

    /// Whether even the most polls that fit into what has not moved cannot all have been short.
    fn counted_out(&self, sample: &Sample) -> bool {
        let polls = match sample.turn {
            Some(_) => POLLS_IN_A_TURN,
            None if self.rules.always_driven => POLLS_IN_A_PUBLICATION,
            None => return false,
        };
        let enough = self.rules.threshold.saturating_mul(polls);
        self.unmoved.is_some_and(|unmoved| unmoved.blamed >= enough)
    }

    /// Keeps the time for which the worker has not moved.
    fn follow_counters(
        &mut self,
        last: Option<&Sample>,
        sample: &Sample,
        interval: Option<Interval>,
    ) {
        let parked = sample.after.parks % 2 == 1;
        let excused = sample.slot.is_some_and(|slot| {
            let since = self.unmoved.map(|unmoved| unmoved.since);
            slot.allowed || slot.allowed_until > since
        });
        let still = last.is_some_and(|last| last.is_unmoved_in(sample)) && !parked && !excused;
        match (&mut self.unmoved, interval) {
            (Some(unmoved), Some(interval)) if still => {
                unmoved.blamed += interval.blamed();
                unmoved.split = unmoved.split.plus(interval.split);
            }
            _ => {
                self.unmoved = Unmoved::from(sample);
            }
        }
    }

    /// Says what this tick adds to what was said before.
    fn announce(&mut self, sample: &Sample) -> Option<Finding> {
        let certainty = self.certainty();
        let near = self.is_near();
        let hold = self.hold.as_mut()?;
        hold.suspected_for += u32::from(hold.suspected);
        let stall = hold.stall_until(
            sample.at,
            Duration::ZERO,
            certainty.unwrap_or(Certainty::Likely),
        );
        // A stack that a verdict depends on is asked for until there is one.
        let again = hold.waits_for_a_stack();
        if near && certainty.is_none() && (again || !hold.suspected) {
            hold.suspected = true;
            return Some(Finding::Suspect(stall));
        }
        let certainty = certainty?;
        let Some(announced) = &mut hold.announced else {
            hold.announced = Some(Announced {
                certainty,
                next_age: next_age(&self.rules, stall.duration),
            });
            return Some(Finding::Began(stall));
        };
        let grown_up = stall.duration >= announced.next_age;
        let surer = certainty > announced.certainty;
        announced.certainty = certainty;
        if grown_up {
            announced.next_age = next_age(&self.rules, stall.duration);
        }
        (grown_up || surer).then_some(Finding::Ongoing(stall))
    }

    /// Whether the next tick may find a stall.
    fn is_near(&self) -> bool {
        let Some(hold) = &self.hold else {
            return false;
        };
        let long = match hold.held_by {
            HeldBy::Poll(_) | HeldBy::Turn(..) => hold.blamed,
            HeldBy::Unmarked(_) => hold.one_sleep(),
            HeldBy::CountedOut => return false,
        };
        let enough = hold.enough(&self.rules).min(self.rules.threshold);
        !long.is_zero() && long + self.rules.tick >= enough
    }

    /// How sure a stall going on is; `None` if there is none.
    fn certainty(&self) -> Option<Certainty> {
        let hold = self.hold.as_ref()?;
        let said = hold.announced.map(|announced| announced.certainty);
        let now = self.sign(hold).and_then(|sign| {
            let waited = hold.suspected_for >= PATIENCE;
            belief(sign, self.whose(hold, waited))
        });
        now.max(said)
    }

    /// What a hold is a sign of, if it is long enough to be one.
    fn sign(&self, hold: &Hold) -> Option<Sign> {
        let is_long = hold.blamed >= hold.enough(&self.rules);
        match hold.held_by {
            HeldBy::CountedOut => Some(Sign::CountedOut),
            // A poll seen for the first time may have left its worker just before.
            HeldBy::Poll(_) => (is_long && hold.ticks >= 2).then_some(Sign::Mark),
            HeldBy::Turn(_, poll) if is_long => {
                let is_one = poll.stage != Stage::Unclear
                    || hold.one_sleep() >= hold.enough(&self.rules)
                    || hold.outlasts_two(&self.rules);
                is_one.then_some(Sign::Poll)
            }
            HeldBy::Unmarked(_) if hold.long_sleep => Some(Sign::Sleep),
            HeldBy::Turn(..) | HeldBy::Unmarked(_) => None,
        }
    }

    /// Whose the worker is, as far as is known.
    fn whose(&self, hold: &Hold, waited: bool) -> Whose {
        if hold.holds {
            return Whose::Held;
        }
        let shown = hold.shown.or(waited.then_some(StackVerdict::Inconclusive));
        Whose::ByStack {
            shown,
            leaves: self.leaves,
        }
    }

    /// A hold is over: the end of a stall that was announced, or of one that nobody saw in time.
    fn finish(
        &mut self,
        mut hold: Hold,
        last: Option<&Sample>,
        sample: &Sample,
        interval: Option<Interval>,
    ) -> Option<Finding> {
        if let HeldBy::Poll(_) = hold.held_by {
            return self.finish_marked(hold, last, sample, interval);
        }
        let last_seen = last.map_or(sample.at, |last| last.at);
        let said = hold.announced.map(|announced| announced.certainty);
        let certainty = said.or_else(|| self.driven_after_all(&hold, sample))?;
        let (end, error) = middle(last_seen, sample.at);
        hold.add_tail(end.since(last_seen), interval);
        let mut stall = hold.stall_until(end, error, certainty);
        // The busy counter has counted the hold, and what else the worker did since it last published.
        let busy = sample.before.busy.saturating_sub(hold.busy_before);
        let seen = last_seen.since(hold.latest);
        if busy >= seen {
            stall.duration = stall.duration.min(busy).max(seen);
        }
        Some(Finding::Ended(stall))
    }

    fn finish_marked(
        &mut self,
        mut hold: Hold,
        last: Option<&Sample>,
        sample: &Sample,
        interval: Option<Interval>,
    ) -> Option<Finding> {
        let last_seen = last.map_or(sample.at, |last| last.at);
        let measured = measured_end(&self.ends, hold.held_by);
        let end = measured.unwrap_or(middle(last_seen, sample.at).0);
        hold.add_tail(end.since(last_seen), interval);
        if let Some(Announced { certainty, .. }) = hold.announced {
            self.closing = Some(Box::new(Closing {
                hold,
                certainty,
                not_before: last_seen,
                not_after: sample.at,
            }));
            return measured.and_then(|_| self.close());
        }
        // It ended between two ticks. Blame it for the rest only as far as the host allows.
        measured?;
        let host = interval.map_or(Duration::ZERO, |interval| interval.host);
        hold.blamed += end.since(last_seen).saturating_sub(host);
        if hold.blamed >= hold.enough(&self.rules) {
            let certainty = belief(Sign::Mark, self.whose(&hold, true))?;
            let stall = hold.stall_until(end, Duration::ZERO, certainty);
            self.unconfirmed
                .push(Unconfirmed::new(stall, hold.busy_before));
        }
        None
    }

    /// Says that an announced poll is over.
    fn close(&mut self) -> Option<Finding> {
        let closing = self.closing.take()?;
        let (end, error) = match measured_end(&self.ends, closing.hold.held_by) {
            Some(end) => (end, Duration::ZERO),
            None => middle(closing.not_before, closing.not_after),
        };
        Some(Finding::Ended(closing.hold.stall_until(
            end,
            error,
            closing.certainty,
        )))
    }

    /// A `current_thread` runtime proves by its busy counter, once it moves, that it was being driven.
    fn driven_after_all(&self, hold: &Hold, sample: &Sample) -> Option<Certainty> {
        let busy = sample.before.busy.saturating_sub(hold.busy_before);
        let was_driven = !self.rules.always_driven && busy >= hold.blamed;
        (was_driven && hold.long_sleep && !hold.holds).then_some(Certainty::Certain)
    }
}

/// The first doubling of the threshold, or milestone, that lies beyond an age.
fn next_age(rules: &Rules, reached: Duration) -> Duration {
    let mut doubled = rules.threshold;
    while doubled <= reached {
        doubled = doubled.saturating_mul(2);
    }
    let milestones = rules.milestones.into_iter().filter(|age| *age > reached);
    milestones.fold(doubled, Duration::min)
}

#[cfg(all(test, not(loom)))]
mod tests;
