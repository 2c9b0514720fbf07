//! One worker under watch: what it is asked, what is decided of it, and what the reporter hears.
//!
//! *Runs on:* the watchdog thread.
//! *Must not:* wait for anybody.

use super::episode::Episodes;
use super::sampling::{Sampled, Sampling};
use super::workers::Worker;
use super::{Out, RESTS_FOR, TickContext, UNDRIVEN_AFTER};
use crate::clock::{self, Nanos};
use crate::detect::{
    Detector, EventDriver, Finding, HeldBy, Ledger, Look, Page, Place, PollKey, Rules, Sample,
    StackVerdict, Stall,
};
use crate::engine::{Live, Message, Shared, StallNews, StallThread, WatchedRuntime, Work};
use crate::report::Phase;
use crate::slot::LongPoll;
use crate::turns::Track;
use std::sync::Arc;

pub(super) struct WorkerWatch {
    pub(super) worker: Worker,
    pub(super) detector: Detector,
    pub(super) sampling: Sampling,
    /// It is to be read at this tick, and has not been yet.
    pub(super) is_asked: bool,
    pub(super) looked_at: Nanos,
    /// What stacks have shown, until the next look.
    stacks: Vec<(u64, StackVerdict)>,
    episodes: Episodes,
    moved_at: Nanos,
    ledger: Ledger,
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
            episodes: Episodes::default(),
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
        self.episodes.is_any_announced()
    }

    /// Whether the worker has been parked all the time, and nothing is waited for: then there is nothing to look
    /// at, however many workers there are.
    pub(super) fn rests(&self, runtime: &WatchedRuntime, now: Nanos) -> bool {
        now.since(self.looked_at) < RESTS_FOR
            && self.worker.rests(&runtime.metrics)
            && self.detector.is_idle()
            && self.sampling.is_idle()
            && !self.episodes.is_any_announced()
    }

    /// Looks at the worker, and says what is new.
    pub(super) fn tick(
        &mut self,
        runtime: &Arc<WatchedRuntime>,
        round: &mut TickContext<'_>,
    ) -> Vec<Finding> {
        if let Some((id, shown)) = runtime.verdicts[self.worker.index()].take() {
            let serial = self.episodes.serial_of(id);
            self.stacks.extend(serial.map(|serial| (serial, shown)));
        }
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
        self.enter_in_ledger(runtime, &sample);
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

    fn enter_in_ledger(&mut self, runtime: &WatchedRuntime, sample: &Sample) {
        let Rules {
            tick,
            always_driven,
            ..
        } = runtime.rules;
        let entry = self
            .ledger
            .observe(sample, self.moved_at, always_driven, tick);
        let time = &runtime.stats.worker_time[self.worker.index()];
        time.set_unpublished(entry.unpublished);
        for (state, spent) in entry.page.iter().flat_map(Page::parts) {
            time.add(state, spent);
        }
    }

    fn sample_stacks(
        &mut self,
        runtime: &Arc<WatchedRuntime>,
        findings: &[Finding],
        sample: &Sample,
        round: &mut TickContext<'_>,
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
            if sampled.stack.as_ref().is_err_and(|why| why.is_final()) {
                self.stacks
                    .push((sampled.serial, StackVerdict::Inconclusive));
            }
            self.pass_on(runtime, sampled, round.out);
        }
    }

    /// Passes a stack on to the explainer, or to the reporter that there is none.
    pub(super) fn pass_on(&mut self, runtime: &Arc<WatchedRuntime>, sampled: Sampled, out: &Out) {
        let episode = self.episodes.of(sampled.serial, out.shared());
        let sent = sampled.stack.and_then(|stack| {
            out.explain(Work::OfStall {
                id: episode.id,
                runtime: runtime.clone(),
                worker: self.worker.index(),
                after: sampled.after,
                stack,
            })
        });
        match sent {
            Ok(()) => episode.stacks += 1,
            Err(why) if episode.misses_stack(why) => {
                out.report(Message::NoStack(episode.id, why));
            }
            Err(_) => {}
        }
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
        let thread = self.thread_of(&stall);
        let episode = self.episodes.of(stall.serial, shared);
        if phase.is_some() && episode.announce() {
            runtime.stats.count(stall.certainty);
        }
        let frozen = driver.frozen_in(stall.since);
        let news = StallNews {
            phase,
            live: Live {
                id: episode.id,
                runtime: runtime.clone(),
                worker: self.worker.index(),
                stall,
                last_words: episode.last_words.clone(),
            },
            slept_in: episode.slept_in(&stall, phase),
            driver_frozen: frozen.map(|now| episode.driver_frozen(now, &stall)),
            thread,
            stacks: episode.stacks,
        };
        if phase == Some(Phase::Ended) {
            self.episodes.end(stall.serial);
        }
        news
    }

    /// The thread that drives the worker, and its marks if the stall is a marked poll of it.
    fn thread_of(&self, stall: &Stall) -> Option<StallThread> {
        let driver = self.worker.driver()?;
        let marks = match stall.held_by {
            HeldBy::Poll(poll) if poll.thread == driver.thread() => {
                driver.slot.line.marks(poll.epoch)
            }
            _ => None,
        };
        Some(StallThread {
            slot: driver.slot,
            tenancy: driver.tenancy,
            marks,
        })
    }
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
