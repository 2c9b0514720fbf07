//! Decides, from one look a tick, whether a worker is held, and for how long.
//!
//! *Runs on:* `stall-watchdog`.
//! *Must not:* do anything but arithmetic on its arguments. It has no clock, no thread and no I/O:
//! each look brings its time with it, so tests need no real time.
//!
//! One thing holds a worker as long as nothing shows that the worker has gone on. A run of samples
//! in which one thing held the worker is a *hold*. It is a marked poll (the same odd epoch in the
//! slot of the worker's thread) or a poll that memory shows to be the same one ([`PollId`]). If
//! memory cannot be read, it is a visit to the runtime's loop in which neither of the worker's
//! counters has moved.
//!
//! Only blamed time counts towards the threshold: time on a CPU and time asleep. Time in which the
//! thread waited for a CPU does not count, nor does time in which the whole process stood still.
//!
//! `holder` names the thing that holds the worker, `sign` whether it has held it for long enough,
//! and [`belief`](belief::belief) whether it is certain that the worker was this thread's. Two
//! proofs come after the end: the record of a poll that no look has met (`unseen`), and the busy
//! counter of a `current_thread` runtime (`driven_after_all`).

mod belief;
mod driver;
mod hold;
mod ledger;
mod sample;
mod unseen;

pub(crate) use belief::StackVerdict;
pub(crate) use driver::{EventDriver, Place};
pub(crate) use ledger::{Ledger, Page, WorkerState};
pub(crate) use sample::{Counters, Look, Rules, Sample, SlotSeen};

use crate::clock::Nanos;
use crate::os::Call;
use crate::report::{Certainty, TimeSplit};
use crate::slot::{LongPoll, PollKey, Thread};
use crate::turns::{PollId, Stage};
use belief::{Sign, Whose, belief};
use hold::{Announced, Hold, Period, middle};
use sample::{Advance, Ends, record_of};
use std::time::Duration;
use unseen::{Proof, Unconfirmed};

/// The thing that holds a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeldBy {
    /// A marked poll.
    Mark(PollKey),
    /// A poll on this thread that memory shows to be the same one.
    Poll(Thread, PollId),
    /// A visit to the worker's loop of which neither mark nor turn shows one poll. The epoch, if a
    /// slot is known, is an even one: a mark that comes and goes in between is a sign of life.
    Visit(Option<PollKey>),
    /// A turn of the runtime's loop that has outlasted all the polls it could consist of, with the
    /// most that these are.
    CountedOut(u32),
}

impl HeldBy {
    /// The most polls that its time may consist of.
    pub(crate) fn most_polls(self) -> u32 {
        match self {
            HeldBy::CountedOut(polls) => polls,
            HeldBy::Mark(_) | HeldBy::Poll(..) | HeldBy::Visit(_) => 1,
        }
    }

    fn is_counted_out(self) -> bool {
        matches!(self, HeldBy::CountedOut(_))
    }
}

/// A stall as it is known at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stall {
    /// The number of its hold on this worker: the same from first suspicion to the end. The
    /// watchdog gives each its number in the process (D11).
    pub(crate) serial: u64,
    pub(crate) held_by: HeldBy,
    pub(crate) since: Nanos,
    /// By the wall clock, so it includes the host's time.
    pub(crate) duration: Duration,
    /// The largest possible error of `duration`.
    pub(crate) error: Duration,
    pub(crate) certainty: Certainty,
    /// The parts of the time that was looked at.
    pub(crate) split: TimeSplit,
    /// The system call that the thread was seen asleep in for the longest time.
    pub(crate) call: Option<Call>,
    /// The name in the thread's record, if the poll ended unseen; 0 for none.
    pub(crate) name: u32,
    /// Tokio's number for the task, if memory shows it; 0 for none.
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

/// The findings of one tick: most often none. Several stalls can end in one tick, as the busy
/// counter may confirm several polls at once.
pub(crate) type Findings = Vec<Finding>;

/// Watches one worker.
#[derive(Debug)]
pub(crate) struct Detector {
    rules: Rules,
    last: Option<Sample>,
    hold: Option<Hold>,
    /// The serial that was given last.
    last_serial: u64,
    /// An announced poll that has just ended. Boxed: rare, and large.
    closing: Option<Box<Closing>>,
    /// A mark that has outlived its poll, or whose poll has left its worker.
    outlived: Option<PollKey>,
    /// The time for which the worker's turn has not moved; without turns, its counters.
    unmoved: Option<Period>,
    /// Long polls that ended before they were announced, until the busy counter confirms them.
    unconfirmed: Vec<Unconfirmed>,
    /// The records of the polls that are followed.
    ends: Ends,
    /// Polls of this worker have been seen to leave it.
    leaves: bool,
    /// Memory has shown a turn of this worker.
    counts_turns: bool,
    /// The verdict of a stack of this worker is to come.
    is_explaining: bool,
}

/// An announced poll that is over, while its record may still come: between the end of a poll and
/// the record of it, its thread may lose its CPU. The record has one more tick.
#[derive(Clone, Copy, Debug)]
struct Closing {
    hold: Hold,
    certainty: Certainty,
    /// The end without a record, and the error of it.
    end: (Nanos, Duration),
}

/// The most polls in one turn of a multi-thread worker (D25): a task, and up to three from its
/// "next" slot.
const POLLS_IN_A_TURN: u32 = 4;
/// The most polls between two moves of a worker's counters (D25): tokio publishes them every 61
/// turns.
const POLLS_IN_A_PUBLICATION: u32 = 61 * POLLS_IN_A_TURN;
/// Ticks for which a marked poll waits for a stack if memory does not show who drives the worker
/// (D23). The explainer may have to read debug information for it.
const TICKS_FOR_A_STACK: u32 = 400;

impl Detector {
    pub(crate) fn new(rules: Rules) -> Detector {
        Detector {
            rules,
            last: None,
            hold: None,
            last_serial: 0,
            closing: None,
            outlived: None,
            unmoved: None,
            unconfirmed: Vec::new(),
            ends: [None; 2],
            leaves: false,
            counts_turns: false,
            is_explaining: false,
        }
    }

    /// Takes in the look of one tick, and returns the news.
    pub(crate) fn observe(&mut self, look: &Look) -> Findings {
        for (serial, shown) in &look.stacks {
            self.show(*serial, *shown);
        }
        let unseen = self.sort_records(look);
        self.is_explaining = look.is_explaining;
        let step = self.step_to(&look.sample);
        let mut findings = self.follow(&step);
        for (poll, record) in unseen {
            self.ended_unseen(poll, &record, &step);
        }
        findings.extend(self.announce(look.sample.at));
        findings
    }

    /// Takes in a tick at which an idle worker was parked as before: the last sample holds for this
    /// moment as well.
    pub(crate) fn rested(&mut self, at: Nanos) {
        if let Some(last) = &mut self.last {
            last.at = at;
        }
    }

    /// Whether nothing holds the worker, and nothing is waited for.
    pub(crate) fn is_idle(&self) -> bool {
        self.hold.is_none()
            && self.closing.is_none()
            && self.outlived.is_none()
            && self.unconfirmed.is_empty()
    }

    /// The serial of the present hold.
    pub(crate) fn hold_serial(&self) -> Option<u64> {
        self.hold.map(|hold| hold.serial)
    }

    /// The time since which one thing has held the worker, if it did so at two ticks.
    pub(crate) fn held_since(&self) -> Option<Nanos> {
        let hold = self.hold.filter(|hold| hold.ticks >= 2);
        hold.map(|hold| hold.period.since)
    }

    /// The earliest time since which one thing may hold the worker.
    pub(crate) fn earliest_hold(&self) -> Option<Nanos> {
        self.hold.map(|hold| hold.earliest)
    }

    /// The earliest begin of a poll that is over and may have been a stall.
    pub(crate) fn earliest_unconfirmed(&self) -> Option<Nanos> {
        let polls = self.unconfirmed.iter();
        polls.map(|poll| poll.stall.since).min()
    }

    /// The last sample.
    pub(crate) fn last(&self) -> Option<Sample> {
        self.last
    }

    /// The step from the last sample to this one, which becomes the last.
    fn step_to(&mut self, sample: &Sample) -> Advance {
        let went_on = self.last.is_some_and(|last| last.after != sample.before);
        let sample = self.without_outlived(sample, went_on);
        let last = self.last.replace(sample);
        self.counts_turns |= sample.turn.is_some();
        Advance::new(last, sample, went_on, &self.rules)
    }

    /// Follows the hold from the last sample to this one.
    fn follow(&mut self, step: &Advance) -> Findings {
        self.follow_counters(step);
        let mut findings = Findings::from_iter(self.close());
        let holder = self.holder(&step.sample);
        let gone_on = step.went_on || step.sample.before != step.sample.after;
        match self.hold.take() {
            Some(mut hold)
                if holder == Some(hold.held_by)
                    && !hold.is_over(gone_on)
                    && !hold.has_another_sleep(&step.sample, &self.rules) =>
            {
                hold.extend(step, &self.rules);
                self.hold = Some(hold);
            }
            old => findings.extend(self.begin_hold(old, holder, step)),
        }
        findings.extend(self.confirm(step));
        findings
    }

    /// Ends the old hold, if there is one, and begins that of a new holder.
    fn begin_hold(
        &mut self,
        old: Option<Hold>,
        holder: Option<HeldBy>,
        step: &Advance,
    ) -> Option<Finding> {
        if old.is_some_and(|old| old.announced.is_some()) {
            // A stall that was announced does not count again (D30).
            self.unmoved = Period::at_work_from(step);
        }
        // The verdict of a stack holds for the thread, whatever its time is counted as (D22).
        let shown = old.and_then(|old| old.shown);
        let counts_all = holder.is_some_and(HeldBy::is_counted_out);
        if counts_all {
            // Its time includes the sleeps that wait for their stacks.
            self.unconfirmed.retain(|poll| !poll.is_a_sleep());
        }
        let over = old.filter(|_| !counts_all);
        let ended = over.and_then(|over| self.finish(over, step));
        let serial = self.next_serial();
        self.hold = holder.map(|held_by| match (held_by, self.unmoved) {
            (HeldBy::CountedOut(_), Some(unmoved)) => {
                Hold::new(serial, held_by, unmoved).with_verdict(shown)
            }
            _ => Hold::begin(serial, held_by, step),
        });
        ended
    }

    /// Keeps the records of the polls that are followed, and returns those of the others.
    fn sort_records(&mut self, look: &Look) -> Vec<(PollKey, LongPoll)> {
        // A poll that ended just after its sample was taken is still a hold: it is seen to be over
        // at the next tick.
        let met = look.sample.marked();
        let records = look.records.iter().copied();
        let (followed, unseen): (Vec<_>, Vec<_>) =
            records.partition(|(poll, _)| self.follows(*poll) || met == Some(*poll));
        let known = self.ends.iter().flatten().copied();
        let known: Vec<_> = known.filter(|(poll, _)| self.follows(*poll)).collect();
        let mut ends = followed.into_iter().chain(known);
        self.ends = [ends.next(), ends.next()];
        unseen
    }

    /// Whether the detector waits for the end of this poll.
    fn follows(&self, poll: PollKey) -> bool {
        let closing = self.closing.as_ref().map(|closing| &closing.hold);
        let mut holds = self.hold.iter().chain(closing);
        holds.any(|hold| hold.held_by == HeldBy::Mark(poll))
    }

    /// The sample without a mark that has outlived its poll (D28). Without turns the thread goes as
    /// well, since its poll may have left the worker.
    fn without_outlived(&mut self, sample: &Sample, went_on: bool) -> Sample {
        let marked = sample.marked();
        if marked.is_some() && self.has_outlived(sample, went_on) {
            self.outlived = marked;
            self.leaves |= sample.turn.is_none();
        }
        if self.outlived.is_none() || self.outlived != marked {
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

    /// Whether the poll of the sample's mark is over, or has left the worker: during a poll the
    /// worker neither parks nor publishes, and its turn does not move (D28).
    fn has_outlived(&self, sample: &Sample, went_on: bool) -> bool {
        let same = self.last.filter(|last| last.marked() == sample.marked());
        same.is_some_and(|last| went_on || last.shows_another_poll(sample))
            || sample.before.is_parked()
            || sample.is_resumed_since_its_mark()
    }

    /// Takes in the verdict of a stack that was taken of this hold.
    fn show(&mut self, serial: u64, shown: StackVerdict) {
        self.leaves |= shown == StackVerdict::Detached;
        self.unconfirmed
            .iter_mut()
            .for_each(|poll| poll.show(serial, shown));
        if let Some(hold) = self.hold.as_mut().filter(|hold| hold.serial == serial) {
            // A stack that shows less does not undo an earlier verdict.
            if hold.shown.is_none_or(|known| shown.outweighs(known)) {
                hold.shown = Some(shown);
            }
        }
    }

    fn next_serial(&mut self) -> u64 {
        self.last_serial += 1;
        self.last_serial
    }

    /// The thing that holds the worker in this sample.
    ///
    /// `None` if the worker is parked or may block, if it went from poll to poll during the look,
    /// or if memory shows no worker in the hands of this thread.
    fn holder(&self, sample: &Sample) -> Option<HeldBy> {
        let is_allowed = sample.slot.is_some_and(|slot| slot.allowed);
        let is_elsewhere = sample.turn.is_some_and(|turn| !turn.has_core);
        if sample.after.is_parked() || is_allowed || is_elsewhere {
            return None;
        }
        let is_old = |hold: Hold| hold.held_by.is_counted_out() || hold.announced.is_none();
        // Marks that come and go during the look do not matter for it.
        let counted_out = self.counted_out(sample);
        if counted_out.is_some() && self.hold.is_none_or(is_old) {
            return counted_out;
        }
        sample.settled.then(|| match (sample.slot, sample.turn) {
            (Some(slot), _) if slot.in_poll() => HeldBy::Mark(slot.poll()),
            (Some(slot), Some(turn)) => HeldBy::Poll(slot.thread, turn.id),
            (slot, _) => HeldBy::Visit(slot.map(|slot| slot.poll())),
        })
    }

    /// Whether the worker has not moved for longer than all the polls of that time could take, had
    /// each been short (D25, D26).
    fn counted_out(&self, sample: &Sample) -> Option<HeldBy> {
        let is_multi_thread = self.rules.always_driven;
        let polls = match sample.turn {
            Some(_) if is_multi_thread => POLLS_IN_A_TURN,
            Some(_) => 1,
            None if is_multi_thread => POLLS_IN_A_PUBLICATION,
            None => return None,
        };
        // A poll with one mark is a stall before, and has the name of that mark.
        let at_least = polls.max(POLLS_IN_A_TURN);
        let enough = self.rules.threshold.saturating_mul(at_least);
        let is_long = |unmoved: Period| unmoved.blamed >= enough;
        let counted_out = HeldBy::CountedOut(polls);
        self.unmoved.is_some_and(is_long).then_some(counted_out)
    }

    /// Keeps the time for which the worker has not moved.
    fn follow_counters(&mut self, step: &Advance) {
        let sample = &step.sample;
        let excused = sample.slot.is_some_and(|slot| {
            let since = self.unmoved.map(|unmoved| unmoved.since);
            slot.allowed || slot.allowed_until > since
        });
        let stands = step.last.is_some_and(|last| last.is_unmoved_in(sample));
        let still = stands && !sample.after.is_parked() && !excused;
        match (&mut self.unmoved, &step.interval) {
            (Some(unmoved), Some(interval)) if still => unmoved.add(interval),
            _ => self.unmoved = Period::at_work_from(step),
        }
    }

    /// The news about the present hold.
    fn announce(&mut self, now: Nanos) -> Option<Finding> {
        let certainty = self.certainty();
        let is_near = self.is_near();
        let hold = self.hold.as_mut()?;
        hold.suspected_for = hold.suspected_for.map(|ticks| ticks + 1);
        let likely = certainty.unwrap_or(Certainty::Likely);
        let stall = hold.stall_until(now, Duration::ZERO, likely);
        if certainty.is_some() {
            return hold.announce(stall, &self.rules);
        }
        // A verdict needs a stack, so each tick asks for one until there is one.
        let asks = hold.suspected_for.is_none() || hold.waits_for_a_stack();
        (is_near && asks).then(|| {
            hold.suspected_for.get_or_insert(0);
            Finding::Suspect(stall)
        })
    }

    /// Whether the next tick may find a stall.
    fn is_near(&self) -> bool {
        let Some(hold) = &self.hold else {
            return false;
        };
        let long = match hold.held_by {
            HeldBy::Mark(_) | HeldBy::Poll(..) => hold.period.blamed,
            HeldBy::Visit(_) => hold.one_sleep(),
            HeldBy::CountedOut(_) => return false,
        };
        let enough = hold.enough(&self.rules).min(self.rules.threshold);
        !long.is_zero() && long + self.rules.tick >= enough
    }

    /// The certainty of the present stall; `None` if there is none. It never falls.
    fn certainty(&self) -> Option<Certainty> {
        let hold = self.hold.as_ref()?;
        let announced = hold.announced.map(|announced| announced.certainty);
        let has_waited = hold.suspected_for >= Some(TICKS_FOR_A_STACK);
        let sign = self.sign(hold);
        let now = sign.and_then(|sign| belief(sign, self.whose(hold, has_waited)));
        now.max(announced)
    }

    /// The sign that a hold is, if it is long enough to be one.
    fn sign(&self, hold: &Hold) -> Option<Sign> {
        let enough = hold.enough(&self.rules);
        let is_long = hold.period.blamed >= enough;
        match hold.held_by {
            HeldBy::CountedOut(_) => Some(Sign::CountedOut),
            // A poll seen for the first time may have left its worker just before (D27).
            HeldBy::Mark(_) => (is_long && hold.ticks >= 2).then_some(Sign::Mark),
            HeldBy::Poll(_, poll) if is_long => {
                // Calls that look the same may be two polls (D52).
                let is_one = poll.stage != Stage::Unclear
                    || hold.one_sleep() >= enough
                    || hold.outlasts_two(&self.rules);
                is_one.then_some(Sign::Poll)
            }
            HeldBy::Visit(_) if hold.long_sleep => Some(Sign::Sleep),
            HeldBy::Poll(..) | HeldBy::Visit(_) => None,
        }
    }

    /// The evidence that the worker belongs to the thread of the hold. If the hold has waited long
    /// enough for a stack, a missing one counts as inconclusive (D23).
    fn whose(&self, hold: &Hold, has_waited: bool) -> Whose {
        if hold.has_core {
            return Whose::Held;
        }
        let missing = has_waited.then_some(StackVerdict::Inconclusive);
        Whose::ByStack {
            shown: hold.shown.or(missing),
            leaves: self.leaves,
        }
    }

    /// Ends a hold. It is news if its stall was announced, or is proven only now.
    fn finish(&mut self, mut hold: Hold, step: &Advance) -> Option<Finding> {
        let last_seen = step.last_seen();
        let end = middle(last_seen, step.sample.at);
        let record = record_of(&self.ends, hold.held_by);
        let since = last_seen.max(hold.period.since);
        let tail = step.split(since, record.map_or(end.0, |record| record.ended));
        hold.period.split = hold.period.split.plus(tail);
        match (hold.held_by, hold.announced) {
            (HeldBy::Mark(_), Some(Announced { certainty, .. })) => {
                let closing = Closing {
                    hold,
                    certainty,
                    end,
                };
                self.closing = Some(Box::new(closing));
                record.and_then(|_| self.close())
            }
            (HeldBy::Mark(_), None) => {
                self.finish_unannounced(hold, &record?, step);
                None
            }
            _ if hold.awaits_the_verdict_of_a_sleep(&self.rules) => {
                self.finish_asleep(&hold, end.0);
                None
            }
            _ => self.finish_unmarked(&hold, end, step),
        }
    }

    /// Ends a sleep that was long, while its stack may still come (D38).
    fn finish_asleep(&mut self, hold: &Hold, end: Nanos) {
        let stall = hold.stall_until(end, Duration::ZERO, Certainty::Certain);
        let proof = Proof::Sleep(hold.shown);
        let unconfirmed = Unconfirmed::new(stall, hold.period.busy_before, proof);
        self.unconfirmed.push(unconfirmed);
    }

    /// Ends a marked poll that was not announced. It ended between two ticks, and the rest of it is
    /// blamed only as far as the host allows. Its stall waits for the busy counter (D32).
    fn finish_unannounced(&mut self, mut hold: Hold, record: &LongPoll, step: &Advance) {
        let resumed = record.allowed_until;
        match resumed.filter(|resumed| *resumed > hold.period.since) {
            Some(resumed) => hold.count_from(resumed, record.ended, step),
            None => hold.period.add_end(record.ended, step),
        }
        if hold.period.blamed < hold.enough(&self.rules) {
            return;
        }
        let proof = match hold.ticks {
            _ if hold.has_core => Proof::Turns,
            // It was met once, just before its end, and no stack was asked for.
            1 if !self.counts_turns => Proof::Claim,
            _ => Proof::Stack(hold.shown),
        };
        let stall = Stall {
            name: record.name,
            ..hold.stall_until(record.ended, Duration::ZERO, Certainty::Certain)
        };
        let unconfirmed = Unconfirmed::new(stall, hold.period.busy_before, proof);
        self.unconfirmed.push(unconfirmed);
    }

    /// Ends a hold without a mark.
    fn finish_unmarked(
        &self,
        hold: &Hold,
        (end, error): (Nanos, Duration),
        step: &Advance,
    ) -> Option<Finding> {
        let busy = step.busy_since(hold.period.busy_before);
        let announced = hold.announced.map(|announced| announced.certainty);
        let certainty = announced.or_else(|| self.driven_after_all(hold, busy))?;
        let mut stall = hold.stall_until(end, error, certainty);
        // The busy counter has counted the hold, and all other work since the last publication.
        let seen = step.last_seen().since(hold.period.since);
        if busy >= seen {
            stall.duration = stall.duration.min(busy).max(seen);
        }
        Some(Finding::Ended(stall))
    }

    /// Ends the stall of a poll that was announced and is over.
    fn close(&mut self) -> Option<Finding> {
        let closing = *self.closing.take()?;
        let record = record_of(&self.ends, closing.hold.held_by);
        let (end, error) = record.map_or(closing.end, |record| (record.ended, Duration::ZERO));
        let stall = closing.hold.stall_until(end, error, closing.certainty);
        Some(Finding::Ended(stall))
    }

    /// Whether the busy counter of a `current_thread` runtime proves, once it moves, that the
    /// runtime was driven.
    fn driven_after_all(&self, hold: &Hold, busy: Duration) -> Option<Certainty> {
        let was_driven = !self.rules.always_driven && busy >= hold.period.blamed;
        (was_driven && hold.long_sleep && !hold.has_core).then_some(Certainty::Certain)
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
