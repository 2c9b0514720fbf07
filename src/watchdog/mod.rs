//! The watchdog: one thread that looks at every worker once a tick and decides which are held.
//!
//! *Runs on:* its own thread, `stall-watchdog`; `pulses` on another, `stall-pulse`.
//! *Here:* atomic loads, `pread` of kept descriptors, at the news of a stall the name of one, a directed signal,
//! arithmetic, and a bounded hand-over. No logging, no user code, no
//! waiting for anybody: a slow read or a lock here would look like a stalled host. That is also why
//! nothing here logs through a subscriber, which may be the very thing that is stuck.

pub(crate) mod detector;
mod host;
mod ledger;
pub(crate) mod pulses;
mod sampling;
pub(crate) mod workers;

use crate::clock::{self, Nanos};
use crate::engine::{Live, Shared, WatchedRuntime};
use crate::explain::Explainer;
use crate::explain::cause::SleptIn;
use crate::report::news::{Announcement, Message, StackNews, StallKey, StallNews, StallThread};
use crate::report::{NoStack, Phase};
use crate::slot::{self, LongPoll};
use detector::{Detector, Ends, Finding, HeldBy, PollKey, Refused, Sample, Stall};
use host::{OwnWait, Quota};
use ledger::Ledger;
use sampling::{Allowance, Sampled, Sampling};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::time::Duration;
use workers::{Drivers, Worker};

/// The tick while every worker is parked, and the longest tick at any threshold.
pub(crate) const IDLE_TICK: Duration = Duration::from_millis(25);
/// The shortest tick that is chosen by default.
pub(crate) const SHORTEST_TICK: Duration = Duration::from_micros(500);

/// A stack asked for is there after some microseconds, unless its thread has no CPU.
const ANSWER_AFTER: Duration = Duration::from_millis(1);

/// For so long after the start every tick is a short one: threads become known, and evidence about them
/// needs a first reading.
const SETTLING: Duration = Duration::from_secs(1);

/// A worker that rests is looked at so often all the same: its time is counted, and its thread may have gone.
const RESTS_FOR: Duration = Duration::from_millis(500);

/// An undriven `current_thread` runtime looks active for ever; after this long without a sign of life
/// it counts as idle.
const UNDRIVEN_AFTER: Duration = Duration::from_secs(1);

/// A stall this old is written to standard error, in case the logger is what is stuck.
pub(crate) const ENDLESS_AFTER: Duration = Duration::from_secs(10);
/// The sinks are stuck if they have been busy with one report for this long.
const SINKS_STUCK_AFTER: Duration = Duration::from_secs(1);

/// The thread's main function.
pub(crate) fn run(shared: &Arc<Shared>, reporter: SyncSender<Message>) {
    let mut watchdog = Watchdog {
        shared: shared.clone(),
        reporter,
        seen_version: None,
        runtimes: Vec::new(),
        drivers: Drivers::new(),
        quota: Quota::new(),
        own_wait: OwnWait::new(),
        stacks: Allowance::new(clock::now()),
        live: Vec::new(),
        live_changed: false,
        answers_due: None,
        polls_leave: false,
    };
    let mut due = clock::now();
    while !shared.stopping() {
        let now = clock::now();
        if watchdog.is_to_follow() {
            // A runtime that has just joined is looked at right away.
            due = due.min(now);
        }
        if let Some(answered) = watchdog.answers_due.filter(|answered| *answered < due) {
            if now < answered {
                std::thread::park_timeout(answered.since(now));
                continue;
            }
            watchdog.collect_answers();
        }
        if now < due {
            std::thread::park_timeout(due.since(now));
            continue;
        }
        let late = now.since(due);
        shared.note_lateness(late);
        let tick = watchdog.tick(due);
        // From the time this tick woke, not from now: if the process is stopped in between, the next tick
        // must find itself late.
        due = if late > tick {
            now.plus(tick)
        } else {
            due.plus(tick)
        };
    }
}

struct Watchdog {
    shared: Arc<Shared>,
    reporter: SyncSender<Message>,
    seen_version: Option<u64>,
    runtimes: Vec<RuntimeWatch>,
    drivers: Drivers,
    quota: Quota,
    own_wait: OwnWait,
    stacks: Allowance,
    live: Vec<Live>,
    live_changed: bool,
    /// When to collect the stacks that the last tick has asked for.
    answers_due: Option<Nanos>,
    /// See [`Round`].
    polls_leave: bool,
}

/// One tick, as all workers share it.
struct Round<'a> {
    due: Nanos,
    now: Nanos,
    /// Polls of this program leave their worker: some worker's thread has been seen in `block_in_place`.
    polls_leave: bool,
    /// Every worker of every runtime rested when the tick began: who drives them has not been asked.
    all_rest: bool,
    own_wait: Option<Duration>,
    throttled: Duration,
    drivers: &'a Drivers,
    shared: &'a Shared,
    allowance: &'a mut Allowance,
    news: Vec<StallNews>,
    stacks: Vec<StackNews>,
}

struct RuntimeWatch {
    runtime: Arc<WatchedRuntime>,
    workers: Vec<WorkerWatch>,
}

struct WorkerWatch {
    worker: Worker,
    detector: Detector,
    sampling: Sampling,
    /// The stalls announced and not yet ended, by serial: one going on, and perhaps one whose end is still to
    /// be recorded.
    announced: Vec<(u64, Announced)>,
    /// What the stall with this serial was last seen asleep in.
    slept_in: Option<(u64, SleptIn)>,
    ends: Ends,
    moved_at: Nanos,
    looked_at: Nanos,
    ledger: Ledger,
}

#[derive(Clone)]
struct Announced {
    id: u64,
    last_words: Arc<AtomicBool>,
}

impl Watchdog {
    /// Looks at everything once, and says when to look again.
    fn tick(&mut self, due: Nanos) -> Duration {
        self.follow_registrations();
        let now = clock::now();
        let all_rest = self.runtimes.iter().all(|watch| watch.rests(now));
        if !all_rest {
            workers::collect_drivers(&mut self.drivers);
            workers::ask_to_look_around();
        }
        // Nobody asks while all rest, and the files are cold.
        let (own_wait, throttled) = if all_rest {
            (None, Duration::ZERO)
        } else {
            (self.own_wait.since_last_time(), self.quota.throttled())
        };
        let mut next = IDLE_TICK;
        let mut round = Round {
            due,
            now,
            polls_leave: self.polls_leave,
            all_rest,
            own_wait,
            throttled,
            drivers: &self.drivers,
            shared: &self.shared,
            allowance: &mut self.stacks,
            news: Vec::new(),
            stacks: Vec::new(),
        };
        for watch in &mut self.runtimes {
            if watch.tick(&mut round) {
                next = next.min(watch.runtime.rules.tick);
            }
        }
        let Round {
            news,
            stacks,
            polls_leave,
            ..
        } = round;
        self.polls_leave = polls_leave;
        // What a runtime was doing when it was shut down is not going on any more.
        let before = self.live.len();
        self.live.retain(|live| !live.runtime.is_gone());
        self.live_changed |= self.live.len() != before;
        // Whoever hears of a stall finds it in `stalled_now()` already.
        for news in &news {
            self.update_live(news);
        }
        self.publish_live();
        // A stack comes before what is said of its stall.
        for stack in stacks {
            self.send(Message::Stack(stack));
        }
        for news in news {
            self.send(Message::Stall(Box::new(news)));
        }
        self.speak_for_stuck_sinks();
        let now = clock::now();
        let mut workers = self.runtimes.iter().flat_map(|watch| &watch.workers);
        let is_waiting = workers.any(|watch| watch.sampling.is_waiting());
        self.answers_due = is_waiting.then(|| now.plus(ANSWER_AFTER));
        self.shared.ticked(now);
        next
    }

    /// Passes on the stacks that have been taken since the tick. Only once between two ticks: what is not
    /// there by then is collected at one.
    fn collect_answers(&mut self) {
        self.answers_due = None;
        let mut stacks = Vec::new();
        for RuntimeWatch { runtime, workers } in &mut self.runtimes {
            for watch in workers {
                if let Some(sampled) = watch.sampling.collect_early() {
                    stacks.push(watch.stack_news(runtime, sampled));
                }
            }
        }
        for stack in stacks {
            self.send(Message::Stack(stack));
        }
    }

    fn send(&self, message: Message) {
        if self.reporter.try_send(message).is_err() {
            self.shared.dropped_reports.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn is_to_follow(&self) -> bool {
        self.seen_version != Some(self.shared.version.load(Ordering::Acquire))
    }

    /// Takes over runtimes that have joined and lets go of those that have left. Never waits: if the
    /// list is being changed right now, the next tick sees it.
    fn follow_registrations(&mut self) {
        if !self.is_to_follow() {
            return;
        }
        let version = self.shared.version.load(Ordering::Acquire);
        let Some(watched) = self
            .shared
            .watched
            .try_lock()
            .map(|watched| watched.clone())
        else {
            return;
        };
        self.seen_version = Some(version);
        let is_watched =
            |runtime: &Arc<WatchedRuntime>| watched.iter().any(|other| Arc::ptr_eq(other, runtime));
        self.runtimes.retain(|watch| is_watched(&watch.runtime));
        self.live.retain(|live| is_watched(&live.runtime));
        self.live_changed = true;
        for runtime in watched {
            if !self
                .runtimes
                .iter()
                .any(|watch| Arc::ptr_eq(&watch.runtime, &runtime))
            {
                self.runtimes.push(RuntimeWatch::new(runtime));
            }
        }
        let threshold = self
            .runtimes
            .iter()
            .map(|watch| watch.runtime.rules.threshold)
            .min();
        slot::keep_polls_longer_than(threshold);
    }

    fn update_live(&mut self, news: &StallNews) {
        let Some(announcement) = &news.announcement else {
            return;
        };
        self.live.retain(|live| live.id != announcement.id);
        if announcement.phase != Phase::Ended {
            self.live.push(Live {
                id: announcement.id,
                runtime: news.runtime.clone(),
                worker: news.worker,
                stall: news.stall,
                last_words: announcement.last_words.clone(),
            });
        }
        self.live_changed = true;
    }

    fn publish_live(&mut self) {
        if self.live_changed {
            if let Some(mut live) = self.shared.live.try_lock() {
                live.clone_from(&self.live);
                self.live_changed = false;
                drop(live);
                self.shared.live_changed();
            }
        }
    }

    /// The sinks write endless stalls to standard error. If they cannot, being stuck in the logger or in a
    /// callback, a thread made for this one purpose does.
    fn speak_for_stuck_sinks(&self) {
        let now = clock::now();
        let is_endless = |live: &&Live| now.since(live.stall.since) >= ENDLESS_AFTER;
        for live in self.live.iter().filter(is_endless) {
            if self.shared.sinks_busy_for(now) < SINKS_STUCK_AFTER
                || live.last_words.swap(true, Ordering::Relaxed)
            {
                continue;
            }
            let live = live.clone();
            let speaker = std::thread::Builder::new().name("stall-last-word".to_owned());
            if speaker
                .spawn(move || crate::report::log::write_last_words(&live.unnamed_report()))
                .is_err()
            {
                self.shared.dropped_reports.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

impl RuntimeWatch {
    fn new(runtime: Arc<WatchedRuntime>) -> RuntimeWatch {
        let workers = (0..runtime.metrics.num_workers())
            .map(|index| WorkerWatch {
                worker: Worker::new(index),
                detector: Detector::new(runtime.rules),
                sampling: Sampling::default(),
                announced: Vec::new(),
                slept_in: None,
                ends: [None; 2],
                moved_at: clock::now(),
                looked_at: clock::now(),
                ledger: Ledger::default(),
            })
            .collect();
        RuntimeWatch { runtime, workers }
    }

    /// Whether nothing can have happened to any worker since the last tick.
    fn rests(&self, now: Nanos) -> bool {
        let mut workers = self.workers.iter();
        workers.all(|watch| watch.rests(&self.runtime, now))
    }

    /// Looks at all workers; returns whether any is active.
    fn tick(&mut self, round: &mut Round<'_>) -> bool {
        let RuntimeWatch { runtime, workers } = self;
        if runtime.is_gone() {
            workers.clear();
            return false;
        }
        let (mut active, mut enrolled, mut all_polls) = (false, 0, true);
        for watch in workers {
            if round.all_rest || watch.rests(runtime, round.now) {
                watch.detector.rested(round.now);
            } else {
                watch.looked_at = round.now;
                for finding in watch.tick(runtime, round) {
                    let news = watch.news(runtime, round.shared, finding);
                    round.news.push(news);
                }
            }
            active |= watch.is_active(runtime);
            let driver = watch.worker.driver();
            enrolled += usize::from(driver.is_some());
            all_polls &= driver.is_some_and(|driver| driver.slot.are_all_polls_seen());
        }
        runtime.stats.enrolled.store(enrolled, Ordering::Relaxed);
        runtime.stats.all_polls.store(all_polls, Ordering::Relaxed);
        runtime.stats.active.fetch_or(active, Ordering::Relaxed);
        active || clock::now().since(runtime.watch.started_at) < SETTLING
    }
}

impl WorkerWatch {
    /// Whether the worker has been parked all the time, and nothing is waited for: then there is nothing to look
    /// at, however many workers there are.
    fn rests(&self, runtime: &WatchedRuntime, now: Nanos) -> bool {
        now.since(self.looked_at) < RESTS_FOR
            && self.worker.rests(&runtime.metrics)
            && self.detector.is_idle()
            && self.sampling.is_idle()
            && self.announced.is_empty()
    }

    fn tick(&mut self, runtime: &Arc<WatchedRuntime>, round: &mut Round<'_>) -> Vec<Finding> {
        self.worker.follow(runtime.id, round.drivers);
        let previous = self.detector.last();
        if let Some((serial, shown)) = runtime.shown[self.worker.index()].take() {
            self.detector.show(serial, shown);
        }
        // Asked before the thread is looked at: a signal taken in between costs the proof of one sleep, not
        // more.
        let signalled = self.sampling.is_answered();
        let mut sample = self.worker.sample(&runtime.metrics, round.due);
        sample.signalled = signalled;
        sample.own_wait = round.own_wait;
        sample.throttled = round.throttled;
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
        let records = self.take_records();
        // What the detector has been watching is its own to report. A poll that ended just after the
        // sample was taken is seen to be over only next time.
        let (followed, unseen): (Vec<_>, Vec<_>) = records
            .into_iter()
            .partition(|(poll, _)| self.detector.follows(*poll));
        let known = self
            .ends
            .iter()
            .flatten()
            .copied()
            .filter(|(poll, _)| self.detector.follows(*poll));
        let new = followed.iter().map(|(poll, record)| (*poll, record.ended));
        let mut ends = new.chain(known);
        self.ends = [ends.next(), ends.next()];
        sample.ends = self.ends;
        self.detector.polls_stay(Explainer::known_polls_stay());
        if round.polls_leave {
            self.detector.polls_leave();
        }
        let findings = self.detector.observe(&sample);
        round.polls_leave |= self.detector.do_polls_leave();
        for (poll, record) in unseen {
            self.detector.ended_unseen(poll, &record, previous);
        }
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
            if let Err(why) = &sampled.stack {
                self.detector.show_none(sampled.serial, reason(*why));
            }
            round.stacks.push(self.stack_news(runtime, sampled));
        }
    }

    fn stack_news(&self, runtime: &Arc<WatchedRuntime>, sampled: Sampled) -> StackNews {
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

    fn is_active(&self, runtime: &WatchedRuntime) -> bool {
        let Some(last) = self.detector.last() else {
            return true;
        };
        let in_poll = last.slot.is_some_and(|slot| slot.epoch % 2 == 1);
        let lively =
            runtime.rules.always_driven || in_poll || last.at.since(self.moved_at) < UNDRIVEN_AFTER;
        last.after.parks % 2 == 0 && lively
    }

    /// Turns a finding into what the reporter needs to know.
    fn news(
        &mut self,
        runtime: &Arc<WatchedRuntime>,
        shared: &Shared,
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
            thread,
        }
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

fn reason(why: NoStack) -> Refused {
    match why {
        NoStack::RateLimited => Refused::Rationed,
        NoStack::Busy | NoStack::MovedOn => Refused::ForNow,
        _ => Refused::ForGood,
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
