//! Decides, from one sample a tick, whether a worker is held. Pure: no clock, no threads, no I/O.
//!
//! *Runs on:* the watchdog thread.
//! *Here:* arithmetic on samples. Time is handed in, so that tests need none.
//!
//! A worker is held by one thing for as long as nothing shows that it has gone on. Such a *stretch* is
//! either a marked poll (the same odd epoch in the slot of the worker's thread) or, where there are no
//! marks, a visit to the runtime's loop that has not come back (the worker is active and neither of its
//! counters has moved).
//!
//! Only time for which the code can be blamed counts towards the threshold: time on a CPU and time
//! asleep, not time spent waiting for a CPU, nor time for which this whole process stood still.
//!
//! # Certain or likely
//!
//! A marked poll is one poll: *certain*. An unmarked stretch may be one long poll or many short ones,
//! since tokio moves the counters every 61 turns of its loop. It is certain when the thread has been in
//! one and the same sleep for the threshold and drives its worker, or when even 61 turns of four polls each
//! (tokio runs up to three tasks from its "next" slot in one turn) cannot all have been shorter than it.
//! Otherwise it is *likely*, and only if it takes more than a row of honest polls, and stands out from what
//! this worker usually does between two publications.
//!
//! # Whose sleep it is
//!
//! A poll that enters `block_in_place` leaves its worker to another thread, which may poll 61 turns before
//! a counter tells of it. Until then the thread that sleeps is taken for the worker's. So a sleep without a
//! mark proves nothing by itself: the stack must show the thread in a poll, or the thread must be found
//! where it parks its worker afterwards.

mod sample;
mod split;
mod stretch;
mod undecided;
mod unseen;

pub use split::TimeSplit;

pub(crate) use sample::{Counters, Ends, PollKey, Rules, Sample, SlotSeen};

use crate::capture::Call;
use crate::clock::Nanos;
use sample::Interval;
use std::time::Duration;
use stretch::{Announced, Stretch, measured_end, middle};
use undecided::{ParkPlaces, Undecided};
use unseen::Unconfirmed;

/// What holds a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeldBy {
    /// A marked poll.
    Poll(PollKey),
    /// Something without a mark. The epoch, if a slot is known, is an even one: a mark that comes and
    /// goes in between is a sign of life.
    Unmarked(Option<PollKey>),
    /// A turn of the runtime's loop that has outlasted all the polls it could consist of.
    CountedOut,
}

/// How sure it is that one poll held its worker for the whole time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "snake_case")
)]
#[non_exhaustive]
pub enum Certainty {
    /// One long poll, or many short ones in a row: nothing at hand tells them apart. Never a reason to
    /// alert or to fail a test.
    Likely,
    /// One poll, proven by a mark, by one sleep in the kernel, or by counting.
    Certain,
}

/// What the stack of the worker's thread has shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shown {
    /// The thread is inside the runtime's `block_on`, or its worker's loop: it drives the worker.
    Driving,
    /// It is inside `block_in_place`, or idle in the blocking pool: the worker is another thread's.
    MovedAway,
    /// It waits in the runtime's driver for something to do, or for its turn there: if the worker is held,
    /// this thread is not what holds it.
    Parked,
    /// There is no stack to be had, or its functions have no names.
    Unclear,
}

/// Why there is no stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// There will be none.
    ForGood,
    /// Others have used up the ration.
    Rationed,
    /// Another is asked for at the next tick.
    ForNow,
}

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
    stretch: Option<Stretch>,
    /// How many there have been.
    stretches: u64,
    /// An announced poll that has just ended. Boxed: rare, and large.
    closing: Option<Box<Closing>>,
    /// A poll whose worker went on without it: `block_in_place`, or a mark whose end was lost.
    left_behind: Option<PollKey>,
    /// How long the counters have not moved.
    unmoved: Option<Unmoved>,
    /// How long the worker took between its last publications, zero where a tick saw it move on.
    paces: [Duration; PACES],
    next_pace: usize,
    /// Long polls that ended before they were announced, until the busy counter confirms them.
    unconfirmed: Vec<Unconfirmed>,
    /// Sleeps that were over before a stack told whether their thread drove the worker.
    undecided: Vec<Undecided>,
    /// Where the thread sleeps while the worker is parked.
    parks_at: ParkPlaces,
    /// A stack has shown that polls leave this worker: where there is no stack, nothing is believed.
    is_left: bool,
    /// Nothing in this program lets a poll leave its worker, so that no stack is needed to believe one.
    /// Unknown while the program is being looked at, in its first moments.
    polls_stay: Option<bool>,
    /// A stack has shown that polls of this program do leave their worker: from then on not even a mark is
    /// believed before the stack is there.
    polls_leave: bool,
}

#[derive(Clone, Copy, Debug)]
struct Unmoved {
    since: Nanos,
    blamed: Duration,
    split: TimeSplit,
    busy_before: Duration,
}
/// Between the end of a poll and the record of it, its thread may lose its CPU. The record is given one
/// more tick.
#[derive(Clone, Copy, Debug)]
struct Closing {
    stretch: Stretch,
    certainty: Certainty,
    not_before: Nanos,
    not_after: Nanos,
}

/// Ticks for which a marked poll waits for the stack that has been asked for, where polls may leave their worker:
/// debug information may have to be read for it.
const MARKS_WAIT: u32 = undecided::PATIENCE;
/// An unmarked stretch must be this much longer than the usual one to be called a likely stall …
const STANDS_OUT: u32 = 4;
/// … have been seen at this many ticks …
const AGREEING_TICKS: u32 = 3;
/// … and take longer than as many polls as fit between two publications, each of this part of the
/// threshold: 61 turns of one poll that takes a fifth, or of four polls that take a twentieth each.
const HONEST_POLL: u32 = 20;
/// Where the worker's thread is not known, nothing tells whether it had a CPU: so many times more.
const UNKNOWN_THREAD: u32 = 4;
/// What is usual is taken from this many publications …
const PACES: usize = 8;
/// … leaving out this many of the longest, which may be stalls themselves.
const OUTLIERS: usize = 2;

impl Detector {
    pub(crate) fn new(rules: Rules) -> Detector {
        Detector {
            rules,
            last: None,
            interval: None,
            stretch: None,
            stretches: 0,
            closing: None,
            left_behind: None,
            unmoved: None,
            paces: [Duration::ZERO; PACES],
            next_pace: 0,
            unconfirmed: Vec::new(),
            undecided: Vec::new(),
            parks_at: ParkPlaces::default(),
            is_left: false,
            polls_stay: None,
            polls_leave: false,
        }
    }

    /// Whether the detector waits for the end of this poll.
    pub(crate) fn follows(&self, poll: PollKey) -> bool {
        let held_by = |stretch: Option<Stretch>| stretch.map(|stretch| stretch.held_by);
        let poll = Some(HeldBy::Poll(poll));
        held_by(self.stretch) == poll
            || held_by(self.closing.as_ref().map(|closing| closing.stretch)) == poll
    }

    /// Takes in one tick's sample.
    pub(crate) fn observe(&mut self, sample: &Sample) -> Findings {
        let mut findings = Findings::new();
        let went_on = self.last.is_some_and(|last| last.after != sample.before);
        let sample = &self.without_left_behind(sample, went_on);
        let last = self.last.replace(*sample);
        let interval = last.map(|last| Interval::between(&last, sample, &self.rules));
        self.interval = interval;
        self.follow_counters(last.as_ref(), sample, interval);
        findings.extend(self.close(sample));

        let holder = self.holder(sample);
        let gone_on = went_on || sample.before != sample.after;
        match self.stretch.take() {
            Some(mut stretch) if holder == Some(stretch.held_by) && !stretch.is_over(gone_on) => {
                stretch.extend(sample, interval, &self.rules);
                self.stretch = Some(stretch);
            }
            old => {
                if let Some(old) = old {
                    findings.extend(self.finish(old, last.as_ref(), sample, interval));
                } else if let (Some(last), Some(interval)) = (&last, interval) {
                    findings.extend(self.slept_unseen(last, sample, interval));
                }
                let serial = self.next_serial();
                self.stretch = holder.map(|held_by| match (held_by, &self.unmoved) {
                    (HeldBy::CountedOut, Some(unmoved)) => Stretch::counted_out(serial, unmoved),
                    _ => Stretch::begin(serial, held_by, last.as_ref(), sample, interval),
                });
            }
        }
        findings.extend(self.confirm(sample, went_on));
        findings.extend(self.decide_by_place(sample));
        if self.undecided.is_empty() {
            // Else it may not be this thread that has parked the worker.
            self.parks_at.follow(sample);
        }
        findings.extend(self.announce(sample));
        findings
    }

    /// The sample, without the thread if that is seen not to drive the worker any more.
    ///
    /// A worker neither parks nor publishes during a poll. Where it does, the poll has left it by
    /// `block_in_place` and another thread, not yet known, drives it; or the poll's mark has lost its end.
    fn without_left_behind(&mut self, sample: &Sample, went_on: bool) -> Sample {
        let marked =
            |slot: Option<SlotSeen>| slot.filter(SlotSeen::in_poll).map(|slot| slot.poll());
        let polled = marked(sample.slot);
        let still = polled.is_some() && polled == self.last.and_then(|last| marked(last.slot));
        let parked = sample.before.parks % 2 == 1;
        if polled.is_some() && (parked || still && went_on) {
            self.left_behind = polled;
        }
        if self.left_behind.is_some() && self.left_behind == polled {
            return Sample {
                slot: None,
                thread: None,
                ..*sample
            };
        }
        self.left_behind = None;
        *sample
    }

    /// Whether nothing is being watched, and nothing waited for.
    pub(crate) fn is_idle(&self) -> bool {
        self.stretch.is_none()
            && self.closing.is_none()
            && self.left_behind.is_none()
            && self.unconfirmed.is_empty()
            && self.undecided.is_empty()
    }

    /// Takes in a tick at which an idle worker was parked as before: the sample taken in last holds for this
    /// moment as well.
    pub(crate) fn rested(&mut self, at: Nanos) {
        if let Some(last) = &mut self.last {
            last.at = at;
        }
    }

    /// What is being watched now, by its serial.
    pub(crate) fn watches(&self) -> Option<u64> {
        self.stretch.map(|stretch| stretch.serial)
    }

    /// Takes in what a stack has shown of what is being watched.
    pub(crate) fn show(&mut self, serial: u64, shown: Shown) {
        self.is_left |= shown == Shown::MovedAway;
        self.polls_leave |= self.is_left;
        if let Some(stretch) = &mut self.stretch {
            // What one stack has shown, that there is no other does not undo.
            if stretch.serial == serial && (shown != Shown::Unclear || stretch.shown.is_none()) {
                stretch.shown = Some(shown);
            }
        }
        self.decide_by_stack(serial, shown);
    }

    /// Takes in whether polls of this program are known never to leave their worker.
    pub(crate) fn polls_stay(&mut self, polls_stay: Option<bool>) {
        self.polls_stay = polls_stay;
    }

    /// Takes in that polls of this program leave their worker, as seen anywhere in it.
    pub(crate) fn polls_leave(&mut self) {
        self.polls_leave = true;
    }

    /// Whether that has been seen here.
    pub(crate) fn do_polls_leave(&self) -> bool {
        self.polls_leave
    }

    /// There is no stack of what is being watched.
    pub(crate) fn show_none(&mut self, serial: u64, why: Refused) {
        let stretch = self.stretch.filter(|stretch| stretch.serial == serial);
        let marked = stretch.is_some_and(|stretch| matches!(stretch.held_by, HeldBy::Poll(_)));
        let is_final = match why {
            Refused::ForGood => true,
            Refused::Rationed => marked && !self.polls_leave,
            Refused::ForNow => false,
        };
        if is_final {
            self.show(serial, Shown::Unclear);
        }
    }

    fn next_serial(&mut self) -> u64 {
        self.stretches += 1;
        self.stretches
    }

    /// The sample taken in last.
    pub(crate) fn last(&self) -> Option<Sample> {
        self.last
    }

    /// What holds the worker in this sample; `None` if it is parked or allowed to block.
    fn holder(&self, sample: &Sample) -> Option<HeldBy> {
        if sample.after.parks % 2 == 1 || sample.slot.is_some_and(|slot| slot.allowed) {
            return None;
        }
        let current = self.stretch.map(|stretch| stretch.held_by);
        let said = self
            .stretch
            .is_some_and(|stretch| stretch.announced.is_some());
        if self.counted_out() && (current == Some(HeldBy::CountedOut) || !said) {
            return Some(HeldBy::CountedOut);
        }
        Some(match sample.slot {
            Some(slot) if slot.in_poll() => HeldBy::Poll(slot.poll()),
            slot => HeldBy::Unmarked(slot.map(|slot| slot.poll())),
        })
    }

    /// Whether even the most polls that fit between two publications cannot all have been short.
    fn counted_out(&self) -> bool {
        let Rules {
            threshold,
            polls_per_publication,
            always_driven,
            ..
        } = self.rules;
        let enough = threshold.saturating_mul(polls_per_publication);
        always_driven && self.unmoved.is_some_and(|unmoved| unmoved.blamed >= enough)
    }

    /// Keeps the time for which the counters have not moved, and what is usual for it.
    fn follow_counters(
        &mut self,
        last: Option<&Sample>,
        sample: &Sample,
        interval: Option<Interval>,
    ) {
        let parked = sample.after.parks % 2 == 1;
        let seen_looping = last.and_then(|last| last.slot).map(|slot| slot.loops)
            != sample.slot.map(|slot| slot.loops);
        let excused = sample.slot.is_some_and(|slot| {
            let since = self.unmoved.map(|unmoved| unmoved.since);
            slot.allowed || slot.allowed_until > since
        });
        let still = last.is_some_and(|last| last.after == sample.after)
            && !parked
            && !excused
            && !seen_looping;
        match (&mut self.unmoved, interval) {
            (Some(unmoved), Some(interval)) if still => {
                unmoved.blamed += interval.blamed();
                unmoved.split = unmoved.split.plus(interval.split);
            }
            _ => {
                let took = self.unmoved.take().filter(|_| !excused);
                self.paces[self.next_pace] = took.map_or(Duration::ZERO, |unmoved| unmoved.blamed);
                self.next_pace = (self.next_pace + 1) % PACES;
                self.unmoved = (!parked).then_some(Unmoved {
                    since: sample.at,
                    blamed: Duration::ZERO,
                    split: TimeSplit::default(),
                    busy_before: sample.after.busy,
                });
            }
        }
    }

    /// Says what this tick adds to what was said before.
    fn announce(&mut self, sample: &Sample) -> Option<Finding> {
        let certainty = self.certainty();
        let near = self.is_near();
        let stretch = self.stretch.as_mut()?;
        stretch.suspected_for += u32::from(stretch.suspected);
        let stall = stretch.stall_until(
            sample.at,
            Duration::ZERO,
            certainty.unwrap_or(Certainty::Likely),
        );
        // A stack that a verdict depends on is asked for until there is one.
        let waits = self.rules.always_driven && self.polls_stay != Some(true);
        let again = waits && stretch.waits_for_a_stack();
        if near && certainty.is_none() && (again || !stretch.suspected) {
            stretch.suspected = true;
            return Some(Finding::Suspect(stall));
        }
        let certainty = certainty?;
        let Some(announced) = &mut stretch.announced else {
            stretch.announced = Some(Announced {
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
        let Some(stretch) = &self.stretch else {
            return false;
        };
        let Rules {
            threshold, tick, ..
        } = self.rules;
        match stretch.held_by {
            HeldBy::Poll(_) => stretch.blamed + tick >= threshold,
            HeldBy::Unmarked(_) => {
                let slept = stretch.one_sleep();
                // On a `current_thread` runtime nothing is said without a stack.
                let wanted = !self.rules.always_driven && self.stands_out(stretch);
                !slept.is_zero() && slept + tick >= threshold || wanted
            }
            HeldBy::CountedOut => false,
        }
    }

    /// How sure a stall going on is; `None` if there is none.
    fn certainty(&self) -> Option<Certainty> {
        let stretch = self.stretch.as_ref()?;
        let said = stretch.announced.map(|announced| announced.certainty);
        let now = match stretch.held_by {
            _ if stretch.is_elsewhere() => None,
            HeldBy::CountedOut => Some(Certainty::Certain),
            // A poll seen for the first time may have left its worker just before.
            HeldBy::Poll(_)
                if stretch.blamed < stretch.enough(&self.rules) || stretch.ticks < 2 =>
            {
                None
            }
            HeldBy::Poll(_) => self.by_its_mark(stretch),
            HeldBy::Unmarked(_) if !self.is_driven(stretch) => None,
            HeldBy::Unmarked(_) if self.counted_out() => Some(Certainty::Certain),
            HeldBy::Unmarked(_) if stretch.long_sleep => self.by_its_sleep(stretch),
            // A sleep that has outlasted a tick is about to prove itself.
            HeldBy::Unmarked(_) if !stretch.one_sleep().is_zero() => None,
            HeldBy::Unmarked(_) => self.stands_out(stretch).then_some(Certainty::Likely),
        };
        now.max(said)
    }

    /// What a long poll with a mark says, by what a stack has shown of its thread: it may have left its worker
    /// by `block_in_place`, where tokio has that.
    fn by_its_mark(&self, stretch: &Stretch) -> Option<Certainty> {
        match stretch.shown {
            // A mark is believed until there is reason to doubt it.
            _ if !self.rules.always_driven || self.polls_stay != Some(false) => {
                Some(Certainty::Certain)
            }
            // A stack that has been asked for may show it elsewhere. It is not waited for without end.
            None if !self.polls_leave && stretch.suspected_for >= MARKS_WAIT => {
                Some(Certainty::Certain)
            }
            None | Some(Shown::MovedAway | Shown::Parked) => None,
            Some(Shown::Unclear) if self.is_left => Some(Certainty::Likely),
            Some(Shown::Unclear | Shown::Driving) => Some(Certainty::Certain),
        }
    }

    /// What one long sleep without a mark says, by what a stack has shown of its thread.
    fn by_its_sleep(&self, stretch: &Stretch) -> Option<Certainty> {
        if self.polls_stay == Some(true) {
            return Some(Certainty::Certain);
        }
        match stretch.shown? {
            Shown::Driving => Some(Certainty::Certain),
            Shown::MovedAway | Shown::Parked => None,
            Shown::Unclear => (!self.is_left).then_some(Certainty::Likely),
        }
    }

    /// Whether the worker is surely being driven: always on a multi-thread runtime, else by a stack.
    fn is_driven(&self, stretch: &Stretch) -> bool {
        self.rules.always_driven || stretch.shown == Some(Shown::Driving)
    }

    /// Whether an unmarked stretch is long, and longer than this worker's usual ones.
    fn stands_out(&self, stretch: &Stretch) -> bool {
        let mut paces = self.paces;
        paces.sort_unstable();
        let usual = paces[PACES - 1 - OUTLIERS].saturating_mul(STANDS_OUT);
        let Rules {
            threshold,
            polls_per_publication,
            ..
        } = self.rules;
        let row = threshold.saturating_mul(polls_per_publication) / HONEST_POLL;
        let row = match stretch.held_by {
            HeldBy::Unmarked(None) => row.saturating_mul(UNKNOWN_THREAD),
            _ => row,
        };
        let enough = threshold.max(row).max(usual);
        stretch.ticks >= AGREEING_TICKS && stretch.blamed >= enough
    }

    /// A stretch is over: the end of a stall that was announced, or of one that nobody saw in time.
    fn finish(
        &mut self,
        mut stretch: Stretch,
        last: Option<&Sample>,
        sample: &Sample,
        interval: Option<Interval>,
    ) -> Option<Finding> {
        let last_seen = last.map_or(sample.at, |last| last.at);
        let said = stretch.announced.map(|announced| announced.certainty);
        if let HeldBy::Poll(_) = stretch.held_by {
            let measured = measured_end(sample, stretch.held_by);
            let end = measured.unwrap_or(middle(last_seen, sample.at).0);
            stretch.add_tail(end.since(last_seen), interval);
            if let Some(certainty) = said {
                self.closing = Some(Box::new(Closing {
                    stretch,
                    certainty,
                    not_before: last_seen,
                    not_after: sample.at,
                }));
                return measured.and_then(|_| self.close(sample));
            }
            // It ended between two ticks. Blame it for the rest only as far as the host allows.
            measured?;
            let host = interval.map_or(Duration::ZERO, |interval| interval.host);
            stretch.blamed += end.since(last_seen).saturating_sub(host);
            if stretch.blamed >= stretch.enough(&self.rules) && !stretch.is_elsewhere() {
                let stall = stretch.stall_until(end, Duration::ZERO, Certainty::Certain);
                let may_leave = self.rules.always_driven && self.polls_stay == Some(false);
                // Also for a stack that came too late to be taken: meanwhile another may show that polls leave.
                let wait = match stretch.shown {
                    None if may_leave => undecided::PATIENCE,
                    _ => 0,
                };
                self.unconfirmed
                    .push(Unconfirmed::new(stall, stretch.busy_before, wait));
            }
            return None;
        }
        let said = said.or_else(|| self.driven_after_all(&stretch, sample));
        let undecided = said.is_none() && self.rules.always_driven && stretch.long_sleep;
        if undecided && !self.may_be_decided(&stretch, sample) {
            return None;
        }
        let certainty = match said {
            Some(certainty) => certainty,
            None if undecided => Certainty::Certain,
            None => return self.slept_unseen(&stretch.before?, sample, interval?),
        };
        let (end, error) = middle(last_seen, sample.at);
        stretch.add_tail(end.since(last_seen), interval);
        let mut stall = stretch.stall_until(end, error, certainty);
        // The busy counter has counted the stretch, and what else the worker did since it last published.
        let busy = sample.before.busy.saturating_sub(stretch.busy_before);
        let seen = last_seen.since(stretch.latest);
        if busy >= seen {
            stall.duration = stall.duration.min(busy).max(seen);
        }
        if undecided {
            self.leave_undecided(stall, stretch.shown, sample);
            return None;
        }
        Some(Finding::Ended(stall))
    }

    /// Says that an announced poll is over.
    fn close(&mut self, sample: &Sample) -> Option<Finding> {
        let closing = self.closing.take()?;
        let (end, error) = match measured_end(sample, closing.stretch.held_by) {
            Some(end) => (end, Duration::ZERO),
            None => middle(closing.not_before, closing.not_after),
        };
        Some(Finding::Ended(closing.stretch.stall_until(
            end,
            error,
            closing.certainty,
        )))
    }

    /// A `current_thread` runtime proves by its busy counter, once it moves, that it was being driven.
    fn driven_after_all(&self, stretch: &Stretch, sample: &Sample) -> Option<Certainty> {
        let busy = sample.before.busy.saturating_sub(stretch.busy_before);
        if self.rules.always_driven || busy < stretch.blamed {
            return None;
        }
        if stretch.one_sleep() >= self.rules.threshold {
            return Some(Certainty::Certain);
        }
        self.stands_out(stretch).then_some(Certainty::Likely)
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
