//! One worker under watch: look, decide, take a stack, send news.
//!
//! *Runs on:* `stall-watchdog`.
//! *Must not:* wait.

use super::episode::Episodes;
use super::host::HostTime;
use super::recording::{Decided, Tape};
use super::sampling::{Sampled, Sampling, SentRequest};
use super::workers::Worker;
use super::{Out, RESTS_FOR, TickContext, UNDRIVEN_AFTER};
use crate::clock::{self, Nanos};
use crate::detect::{
    Detector, EventDriver, Finding, HeldBy, Ledger, Look, Page, Place, Sample, StackVerdict, Stall,
};
use crate::engine::{Live, Message, Shared, StallNews, StallThread, WatchedRuntime, Work};
use crate::os::waits_for_events;
use crate::report::{NoStack, Phase};
use crate::slot::{LongPoll, PollKey};
use crate::turns::{Looks, Track};
use std::sync::Arc;

pub(super) struct WorkerWatch {
    pub(super) worker: Worker,
    pub(super) detector: Detector,
    pub(super) sampling: Sampling,
    /// Its memory is to be read at this tick, and has not been yet.
    pub(super) is_asked: bool,
    pub(super) looked_at: Nanos,
    /// The verdicts of stacks since the last look.
    stacks: Vec<(u64, StackVerdict)>,
    episodes: Episodes,
    moved_at: Nanos,
    ledger: Ledger,
    tape: Tape,
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
            tape: Tape::default(),
        }
    }

    /// The worker's place, as the rules about the runtime's driver need it.
    pub(super) fn place(&self) -> Place {
        match (self.worker.parked_at(), self.detector.held_since()) {
            (Some(call), _) if waits_for_events(call.number) => Place::InDriver,
            (Some(_), _) => Place::Beside,
            (None, Some(since)) => Place::Held(since),
            (None, None) => Place::AtWork,
        }
    }

    /// Whether the last look has shown nothing of the thread, or there was none.
    pub(super) fn is_thread_hidden(&self) -> bool {
        let last = self.detector.last();
        last.is_none_or(|sample| sample.thread.is_none())
    }

    /// Whether an announced stall of this worker goes on.
    pub(super) fn is_stalled(&self) -> bool {
        self.episodes.is_any_announced()
    }

    /// The earliest begin of a poll that holds the worker, and is no stall yet.
    pub(super) fn suspected_since(&self) -> Option<Nanos> {
        let is_announced = self.episodes.is_any_announced();
        let held = self.detector.earliest_hold().filter(|_| !is_announced);
        // Polls that are over, and may have been stalls.
        let over = self.detector.earliest_unconfirmed();
        held.into_iter().chain(over).min()
    }

    /// Whether the worker has been parked all the time, and nothing is waited for. It then needs no
    /// look, so many parked workers cost little.
    pub(super) fn rests(&self, runtime: &WatchedRuntime, now: Nanos) -> bool {
        now.since(self.looked_at) < RESTS_FOR
            && self.worker.rests(&runtime.metrics)
            && self.detector.is_idle()
            && self.sampling.is_idle()
            && !self.episodes.is_any_announced()
    }

    /// Asks for the worker's words in memory, or notes that they are not needed. Returns whether it
    /// asks.
    pub(super) fn ask_if(
        &mut self,
        is_needed: bool,
        looks: &mut Looks,
        runtime: &WatchedRuntime,
    ) -> bool {
        self.is_asked = is_needed;
        if is_needed {
            self.worker.ask(looks, &runtime.metrics);
        }
        is_needed
    }

    /// Looks at the worker. Returns what is new.
    pub(super) fn tick(
        &mut self,
        runtime: &Arc<WatchedRuntime>,
        host: HostTime,
        context: &mut TickContext<'_>,
    ) -> Vec<Finding> {
        let cell = &runtime.verdicts[self.worker.index()];
        // Before the cell is emptied: a verdict that is not owed any more is in it.
        let is_explaining = cell.is_owed();
        while let Some((id, shown)) = cell.take() {
            let serial = self.episodes.serial_of(id);
            self.stacks.extend(serial.map(|serial| (serial, shown)));
        }
        let sample = self.sample(runtime, host, context);
        self.enter_in_ledger(runtime, &sample);
        let findings = self.detector.observe(&Look {
            sample,
            records: self.take_records(),
            stacks: std::mem::take(&mut self.stacks),
            is_explaining,
        });
        self.ask_for_end(&findings);
        self.sample_stacks(runtime, &findings, &sample, context);
        findings
    }

    fn sample(
        &mut self,
        runtime: &WatchedRuntime,
        host: HostTime,
        context: &mut TickContext<'_>,
    ) -> Sample {
        // The signal is checked before the thread is looked at. One that is taken in between costs
        // the proof of one sleep, and no more.
        let by_explainer = runtime.verdicts[self.worker.index()].take_signal();
        let signalled = self.sampling.is_answered() || by_explainer;
        let seen = self
            .worker
            .sample(&runtime.metrics, context.due, context.looks, context.room);
        let own_wait = if seen.late >= runtime.rules.least_late() {
            context.own_wait_by_now()
        } else {
            host.own_wait
        };
        let sample = Sample {
            signalled,
            unanswered: self.sampling.is_unanswered(),
            usually_late: host.usually_late,
            own_wait,
            preempted: host.preempted,
            throttled: host.throttled,
            ..seen
        };
        let previous = self.detector.last();
        if previous.is_none_or(|previous| previous.after != sample.after) {
            self.moved_at = sample.at;
        }
        sample
    }

    fn enter_in_ledger(&mut self, runtime: &WatchedRuntime, sample: &Sample) {
        let entry = self.ledger.observe(sample, self.moved_at, &runtime.rules);
        let time = &runtime.stats.worker_time[self.worker.index()];
        time.set_unpublished(entry.unpublished);
        for (state, spent) in entry.page.iter().flat_map(Page::parts) {
            time.add(state, spent);
        }
    }

    /// Asks the thread to time the end of a marked poll that may be or has become a stall.
    fn ask_for_end(&self, findings: &[Finding]) {
        let poll = findings.iter().find_map(|finding| match parts(finding) {
            (None | Some(Phase::Began), stall) => marked_poll(&stall),
            _ => None,
        });
        if let Some((poll, driver)) = poll.zip(self.worker.driver()) {
            if driver.thread() == poll.thread {
                driver.slot.line.ask_for_end();
            }
        }
    }

    /// Collects the stack that has been asked for, and asks for one if a finding needs it.
    fn sample_stacks(
        &mut self,
        runtime: &Arc<WatchedRuntime>,
        findings: &[Finding],
        sample: &Sample,
        context: &mut TickContext<'_>,
    ) {
        let collected = self.sampling.collect(self.detector.hold_serial());
        let mut stalls = findings.iter().map(parts);
        let going_on = stalls.find(|(phase, _)| *phase != Some(Phase::Ended));
        let refused = going_on.and_then(|(_, stall)| {
            let (driver, signal) = (self.worker.driver(), runtime.watch.signal);
            let threshold = runtime.rules.threshold;
            let allowance = &mut context.allowance;
            self.sampling.ask(stall, sample.thread, || {
                let is_allowed = || allowance.take_for(&stall, threshold, sample.at);
                let sent = SentRequest::send(driver, signal, is_allowed);
                if sent.as_ref().is_err_and(|why| *why != NoStack::RateLimited) {
                    allowance.give_back();
                }
                sent
            })
        });
        for sampled in [collected, refused].into_iter().flatten() {
            self.pass_on(runtime, sampled, context.out);
        }
    }

    /// Sends a stack to the explainer, or the reason for its lack to the reporter. If none can
    /// follow, the detector does not wait for one.
    pub(super) fn pass_on(&mut self, runtime: &Arc<WatchedRuntime>, sampled: Sampled, out: &Out) {
        let episode = self.episodes.of(sampled.serial, &out.shared);
        let worker = self.worker.index();
        let sent = sampled.stack.and_then(|stack| {
            let verdict = &runtime.verdicts[worker];
            verdict.expect();
            let work = Work::OfStall {
                id: episode.id,
                runtime: runtime.clone(),
                worker,
                after: sampled.after,
                stack,
            };
            out.explain(work).inspect_err(|_| verdict.expect_no_more())
        });
        if sent.is_err_and(NoStack::is_final) {
            let verdict = (sampled.serial, StackVerdict::Inconclusive);
            self.stacks.push(verdict);
        }
        match sent {
            Ok(()) => episode.stacks += 1,
            Err(why) if episode.has_no_stack(why) => {
                out.report(Message::NoStack(episode.id, why));
            }
            Err(_) => {}
        }
    }

    /// Records the last look, and what was decided on it.
    pub(super) fn record(&mut self, runtime: &WatchedRuntime) {
        let Some(last) = self.detector.last() else {
            return;
        };
        let hold = self.detector.hold_serial();
        let is_undriven = !last.after.is_parked() && !self.is_active(runtime);
        if is_undriven && !runtime.rules.always_driven {
            runtime.stats.note_undriven(last.at);
        }
        let decided = Decided {
            hold,
            stall: hold.and_then(|serial| self.episodes.id_of(serial)),
            is_undriven,
        };
        let (worker, turns) = (self.worker.index(), self.worker.turns());
        self.tape.look((runtime, worker), &last, turns, decided);
    }

    /// Records that the worker rests.
    pub(super) fn record_rest(&mut self, runtime: &WatchedRuntime, now: Nanos) {
        self.tape.rest((runtime, self.worker.index()), now);
    }

    /// The long polls that the worker's thread has recorded since the last tick.
    fn take_records(&self) -> Vec<(PollKey, LongPoll)> {
        let Some(driver) = self.worker.driver() else {
            return Vec::new();
        };
        let thread = driver.thread();
        let keyed = driver.slot.take_long_polls().into_iter().map(|record| {
            let epoch = record.epoch;
            (PollKey { thread, epoch }, record)
        });
        keyed.collect()
    }

    pub(super) fn is_active(&self, runtime: &WatchedRuntime) -> bool {
        let Some(last) = self.detector.last() else {
            return true;
        };
        let in_poll = last.slot.is_some_and(|slot| slot.epoch % 2 == 1);
        let lively = match last.turn {
            Some(turn) => turn.has_core,
            None => {
                runtime.rules.always_driven
                    || in_poll
                    || last.at.since(self.moved_at) < UNDRIVEN_AFTER
            }
        };
        let has_moved = self.moved_at == last.at;
        last.after.parks % 2 == 0 && lively || has_moved
    }

    /// Turns a finding into news for the reporter.
    pub(super) fn news(
        &mut self,
        runtime: &Arc<WatchedRuntime>,
        shared: &Shared,
        driver: &EventDriver,
        finding: &Finding,
    ) -> StallNews {
        let (phase, stall) = parts(finding);
        let thread = self.thread_of(&stall);
        let last = self.detector.last();
        let asleep_in = last.and_then(|last| last.asleep_in());
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
                slept_in: episode.slept_in(&stall, asleep_in),
                last_words: episode.last_words.clone(),
            },
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
        let poll = marked_poll(stall).filter(|poll| poll.thread == driver.thread());
        Some(StallThread {
            slot: driver.slot,
            tenancy: driver.tenancy,
            marks: poll.and_then(|poll| driver.slot.line.marks(poll.epoch)),
        })
    }
}

/// The phase of a finding, `None` for a suspicion; and its stall.
fn parts(finding: &Finding) -> (Option<Phase>, Stall) {
    match *finding {
        Finding::Suspect(stall) => (None, stall),
        Finding::Began(stall) => (Some(Phase::Began), stall),
        Finding::Ongoing(stall) => (Some(Phase::Ongoing), stall),
        Finding::Ended(stall) => (Some(Phase::Ended), stall),
    }
}

/// The marked poll that a stall consists of.
fn marked_poll(stall: &Stall) -> Option<PollKey> {
    match stall.held_by {
        HeldBy::Mark(poll) => Some(poll),
        _ => None,
    }
}
