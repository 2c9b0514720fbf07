//! One worker under watch: what it is asked, what is decided of it, and what the reporter hears.
//!
//! *Runs on:* the watchdog thread.
//! *Must not:* wait for anybody.

use super::driver::{EventDriver, Place};
use super::ledger::Ledger;
use super::sampling::{Sampled, Sampling};
use super::workers::Worker;
use super::{RESTS_FOR, Round, UNDRIVEN_AFTER};
use crate::clock::{self, Nanos};
use crate::engine::{Shared, WatchedRuntime};
use crate::explain::cause::SleptIn;
use crate::report::news::{Announcement, StackNews, StallKey, StallNews, StallThread};
use crate::report::{NoStack, Phase};
use crate::slot::LongPoll;
use crate::turns::Track;
use crate::watchdog::detector::{Detector, Finding, HeldBy, Look, PollKey, Sample, Shown, Stall};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

pub(super) struct WorkerWatch {
    pub(super) worker: Worker,
    pub(super) detector: Detector,
    pub(super) sampling: Sampling,
    /// It is to be read at this tick, and has not been yet.
    pub(super) is_asked: bool,
    pub(super) looked_at: Nanos,
    /// What stacks have shown, until the next look.
    stacks: Vec<(u64, Shown)>,
    /// The stalls announced and not yet ended, by serial: one going on, and perhaps one whose end is still to
    /// be recorded.
    announced: Vec<(u64, Announced)>,
    /// What the stall with this serial was last seen asleep in.
    slept_in: Option<(u64, SleptIn)>,
    /// For how long nobody has been in the driver during the stall with this serial.
    driver_frozen: Option<(u64, Duration)>,
    moved_at: Nanos,
    ledger: Ledger,
}

#[derive(Clone)]
struct Announced {
    id: u64,
    last_words: Arc<AtomicBool>,
}

impl WorkerWatch {
    pub(super) fn new(index: usize, runtime: &WatchedRuntime) -> WorkerWatch {
        let flavor = runtime.handle.runtime_flavor();
        let track = Track::new(flavor, runtime.watch.settings.turns);
        WorkerWatch {
            worker: Worker::new(index, track),
            detector: Detector::new(runtime.rules),
            sampling: Sampling::default(),
            is_asked: false,
            looked_at: clock::now(),
            stacks: Vec::new(),
            announced: Vec::new(),
            slept_in: None,
            driver_frozen: None,
            moved_at: clock::now(),
            ledger: Ledger::default(),
        }
    }

    /// Where the worker is, for the driver of its runtime.
    pub(super) fn place(&self) -> Place {
        match self.detector.held_since() {
            _ if self.worker.waits_in_driver() => Place::InDriver,
            _ if self.worker.sleeps_parked() => Place::Beside,
            Some(since) => Place::Held(since),
            None => Place::AtWork,
        }
    }

    /// Whether a stall of it has been announced that has not ended.
    pub(super) fn is_stalled(&self) -> bool {
        !self.announced.is_empty()
    }

    /// Whether the worker has been parked all the time, and nothing is waited for: then there is nothing to look
    /// at, however many workers there are.
    pub(super) fn rests(&self, runtime: &WatchedRuntime, now: Nanos) -> bool {
        now.since(self.looked_at) < RESTS_FOR
            && self.worker.rests(&runtime.metrics)
            && self.detector.is_idle()
            && self.sampling.is_idle()
            && self.announced.is_empty()
    }

    /// Looks at the worker, and says what is new.
    pub(super) fn tick(
        &mut self,
        runtime: &Arc<WatchedRuntime>,
        round: &mut Round<'_>,
    ) -> Vec<Finding> {
        self.stacks
            .extend(runtime.shown[self.worker.index()].take());
        let previous = self.detector.last();
        // Asked before the thread is looked at: a signal taken in between costs the proof of one sleep, not
        // more.
        let signalled = self.sampling.is_answered();
        let sample = Sample {
            signalled,
            own_wait: round.own_wait,
            throttled: round.throttled,
            ..self.worker.sample(&runtime.metrics, round.due, round.looks)
        };
        if previous.is_none_or(|previous| previous.after != sample.after) {
            self.moved_at = sample.at;
        }
        self.ledger.observe(
            &sample,
            self.moved_at,
            runtime.rules.always_driven,
            runtime.rules.tick,
            &runtime.stats.worker_time[self.worker.index()],
        );
        let look = Look {
            sample,
            records: self.take_records(),
            stacks: std::mem::take(&mut self.stacks),
        };
        let findings = self.detector.observe(&look);
        if let Some(poll) = findings.iter().find_map(going_on) {
            if let Some(driver) = self
                .worker
                .driver()
                .filter(|driver| driver.thread() == poll.thread)
            {
                driver.slot.line.ask_for_end();
            }
        }
        self.sample_stacks(runtime, &findings, &sample, round);
        findings
    }

    fn sample_stacks(
        &mut self,
        runtime: &Arc<WatchedRuntime>,
        findings: &[Finding],
        sample: &Sample,
        round: &mut Round<'_>,
    ) {
        let collected = self.sampling.collect(self.detector.watches());
        let refused = self.sampling.ask(
            findings,
            runtime.watch.signal,
            self.worker.driver(),
            sample.thread,
            round.allowance,
            sample.at,
        );
        for sampled in [collected, refused].into_iter().flatten() {
            if sampled.stack.as_ref().is_err_and(|why| is_final(*why)) {
                self.stacks.push((sampled.serial, Shown::Unclear));
            }
            round.stacks.push(self.stack_news(runtime, sampled));
        }
    }

    pub(super) fn stack_news(&self, runtime: &Arc<WatchedRuntime>, sampled: Sampled) -> StackNews {
        StackNews {
            key: StallKey {
                runtime: runtime.id,
                worker: self.worker.index(),
                serial: sampled.serial,
            },
            runtime: runtime.clone(),
            after: sampled.after,
            stack: sampled.stack,
        }
    }

    /// What the thread was last seen asleep in, and what that call's descriptor leads to while it sleeps.
    fn slept_in(&mut self, stall: &Stall, goes_on: bool) -> Option<SleptIn> {
        let known = self
            .slept_in
            .filter(|(serial, known)| *serial == stall.serial && Some(known.call) == stall.call);
        if known.is_none() {
            let call = stall.call?;
            let slept_in = if goes_on {
                SleptIn::now(call)
            } else {
                SleptIn::long_ago(call)
            };
            self.slept_in = Some((stall.serial, slept_in));
        }
        self.slept_in.map(|(_, slept_in)| slept_in)
    }

    /// The long polls that the worker's thread has kept a record of since the last tick.
    fn take_records(&self) -> Vec<(PollKey, LongPoll)> {
        let Some(driver) = self.worker.driver() else {
            return Vec::new();
        };
        let thread = driver.thread();
        let records = driver.slot.take_long_polls().into_iter();
        records
            .map(|record| {
                (
                    PollKey {
                        thread,
                        epoch: record.epoch,
                    },
                    record,
                )
            })
            .collect()
    }

    pub(super) fn is_active(&self, runtime: &WatchedRuntime) -> bool {
        let Some(last) = self.detector.last() else {
            return true;
        };
        let in_poll = last.slot.is_some_and(|slot| slot.epoch % 2 == 1);
        let lively = match last.turn {
            Some(turn) => turn.holds,
            None => {
                runtime.rules.always_driven
                    || in_poll
                    || last.at.since(self.moved_at) < UNDRIVEN_AFTER
            }
        };
        let has_moved = self.moved_at == last.at;
        last.after.parks % 2 == 0 && lively || has_moved
    }

    /// Turns a finding into what the reporter needs to know.
    pub(super) fn news(
        &mut self,
        runtime: &Arc<WatchedRuntime>,
        shared: &Shared,
        driver: &EventDriver,
        finding: Finding,
    ) -> StallNews {
        let (phase, stall) = match finding {
            Finding::Suspect(stall) => (None, stall),
            Finding::Began(stall) => (Some(Phase::Began), stall),
            Finding::Ongoing(stall) => (Some(Phase::Ongoing), stall),
            Finding::Ended(stall) => (Some(Phase::Ended), stall),
        };
        let known = self
            .announced
            .iter()
            .position(|(serial, _)| *serial == stall.serial);
        let announced = match (phase, known) {
            (None, _) => None,
            (Some(Phase::Ended), Some(known)) => Some(self.announced.remove(known).1),
            (Some(_), Some(known)) => Some(self.announced[known].1.clone()),
            (Some(phase), None) => {
                let new = Announced::new(shared);
                runtime.stats.count(stall.certainty);
                if phase != Phase::Ended {
                    self.announced.push((stall.serial, new.clone()));
                }
                Some(new)
            }
        };
        let slept_in = self.slept_in(&stall, phase != Some(Phase::Ended));
        let driver_frozen = self.driver_frozen(&stall, driver);
        let thread = self.worker.driver().map(|driver| StallThread {
            slot: driver.slot,
            tenancy: driver.tenancy,
            marks: match stall.held_by {
                HeldBy::Poll(poll) if poll.thread == driver.thread() => {
                    driver.slot.line.marks(poll.epoch)
                }
                _ => None,
            },
        });
        StallNews {
            announcement: announced.zip(phase).map(|(announced, phase)| Announcement {
                id: announced.id,
                phase,
                last_words: announced.last_words,
            }),
            runtime: runtime.clone(),
            worker: self.worker.index(),
            stall,
            slept_in,
            driver_frozen,
            thread,
        }
    }

    /// For how long nobody has been in the driver so far: at the end of a stall somebody is there again.
    fn driver_frozen(&mut self, stall: &Stall, driver: &EventDriver) -> Option<Duration> {
        let now = driver.frozen_in(stall.since)?;
        let known = self
            .driver_frozen
            .filter(|(serial, _)| *serial == stall.serial)
            .map_or(Duration::ZERO, |(_, known)| known);
        let frozen = known.max(now).min(stall.duration);
        self.driver_frozen = Some((stall.serial, frozen));
        Some(frozen)
    }
}

impl Announced {
    fn new(shared: &Shared) -> Announced {
        Announced {
            id: shared.next_id(),
            last_words: Arc::default(),
        }
    }
}

/// Whether there will be no stack of what was asked for.
fn is_final(why: NoStack) -> bool {
    let another_is_asked_for =
        matches!(why, NoStack::RateLimited | NoStack::Busy | NoStack::MovedOn);
    !another_is_asked_for
}

/// The marked poll that a finding says is going on.
fn going_on(finding: &Finding) -> Option<PollKey> {
    match finding {
        Finding::Suspect(stall) | Finding::Began(stall) => match stall.held_by {
            HeldBy::Poll(poll) => Some(poll),
            _ => None,
        },
        _ => None,
    }
}
