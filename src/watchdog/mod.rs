//! The watchdog: one thread that looks at every worker once a tick and decides which are held.
//!
//! *Runs on:* its own thread, `stall-watchdog`; `pulses` on another, `stall-pulse`.
//! *Must not:* log, call the user's code, or wait for anybody: a slow read or a lock here would look like a
//! stalled host. It loads atomics, reads kept descriptors and memory, sends a directed signal, and hands over
//! what it finds, as far as there is room. That is also why nothing here logs through a subscriber, which may
//! be the very thing that is stuck.

mod episode;
mod host;
mod out;
pub(crate) mod pulses;
mod runtime;
mod sampling;
mod worker;
pub(crate) mod workers;

use crate::clock::{self, Nanos};
use crate::engine::{
    ENDLESS_AFTER, LONGEST_TICK, Live, Message, StallNews, TurnsLost, WatchedRuntime,
};
use crate::report::{Phase, write_last_words};
use crate::slot::{self, Drivers, collect_drivers};
use crate::turns::Looks;
use host::{OwnWait, Quota};
pub(crate) use out::Out;
use runtime::RuntimeWatch;
use sampling::Allowance;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// The shortest tick while every worker is parked.
const SHORTEST_IDLE_TICK: Duration = Duration::from_millis(5);
/// For so long after a worker was last active, the tick is short enough that no stall is over before it …
const RESTED_AFTER: Duration = Duration::from_secs(10);
/// … and for so long, short enough that a stall is seen early, whatever came before it.
const CALM_AFTER: Duration = Duration::from_secs(1);

/// A stack asked for is there after some microseconds, unless its thread has no CPU.
const ANSWER_AFTER: Duration = Duration::from_millis(1);

/// A worker that rests is looked at so often all the same: its time is counted, and its thread may have gone.
const RESTS_FOR: Duration = Duration::from_millis(500);

/// An undriven `current_thread` runtime looks active for ever; after this long without a sign of life
/// it counts as idle.
const UNDRIVEN_AFTER: Duration = Duration::from_secs(1);

/// The sinks are stuck if they have been busy with one report for this long.
const SINKS_STUCK_AFTER: Duration = Duration::from_secs(1);

/// The thread's main function.
pub(crate) fn run(out: Out) {
    let shared = &out.shared.clone();
    let mut watchdog = Watchdog {
        out,
        seen_version: None,
        runtimes: Vec::new(),
        drivers: Drivers::new(),
        quota: Quota::new(),
        own_wait: OwnWait::new(),
        stacks: Allowance::new(clock::now()),
        live: Vec::new(),
        live_changed: false,
        answers_due: None,
        looks: [Looks::default(), Looks::default()],
        active_at: clock::now(),
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

/// Reads what has been asked for, and what turns out to lie elsewhere, which a context and then a core may do.
fn take(runtimes: &mut [RuntimeWatch], looks: &mut Looks, again: &mut Looks) {
    const TRIES: usize = 3;
    for _ in 0..TRIES {
        looks.read();
        again.clear();
        let mut any = false;
        for watch in &mut *runtimes {
            any |= watch.take(looks, again);
        }
        if !any {
            break;
        }
        std::mem::swap(looks, again);
    }
}

struct Watchdog {
    out: Out,
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
    /// What is read of workers' memory at a tick, and once more.
    looks: [Looks; 2],
    /// When some worker was last active.
    active_at: Nanos,
}

/// One tick, as all workers share it.
struct TickContext<'a> {
    due: Nanos,
    now: Nanos,
    /// Every worker of every runtime rested when the tick began: who drives them has not been asked.
    all_rest: bool,
    own_wait: Option<Duration>,
    throttled: Duration,
    out: &'a Out,
    allowance: &'a mut Allowance,
    /// For a look at one worker.
    looks: &'a mut Looks,
    news: Vec<StallNews>,
    turns_lost: Vec<TurnsLost>,
}

impl Watchdog {
    /// Looks at everything once, and says when to look again.
    fn tick(&mut self, due: Nanos) -> Duration {
        self.follow_registrations();
        let now = clock::now();
        let all_rest = self.runtimes.iter().all(|watch| watch.rests(now));
        if !all_rest {
            collect_drivers(&mut self.drivers);
            workers::ask_for_claim();
        }
        // Nobody asks while all rest, and the files are cold.
        let (own_wait, throttled) = if all_rest {
            (None, Duration::ZERO)
        } else {
            (self.own_wait.since_last_time(), self.quota.throttled())
        };
        self.read_turns(now);
        let mut next = self.idle_tick(now);
        let mut round = TickContext {
            due,
            now,
            all_rest,
            own_wait,
            throttled,
            out: &self.out,
            allowance: &mut self.stacks,
            looks: &mut self.looks[0],
            news: Vec::new(),
            turns_lost: Vec::new(),
        };
        for watch in &mut self.runtimes {
            if watch.tick(&mut round) {
                next = next.min(watch.runtime.rules.tick);
                self.active_at = now;
            }
        }
        let TickContext {
            news, turns_lost, ..
        } = round;
        // What a runtime was doing when it was shut down is not going on any more.
        let before = self.live.len();
        self.live.retain(|live| !live.runtime.is_gone());
        self.live_changed |= self.live.len() != before;
        // Whoever hears of a stall finds it in `stalled_now()` already.
        for news in &news {
            self.update_live(news);
        }
        self.publish_live();
        for news in news {
            self.out.report(Message::Stall(Box::new(news)));
        }
        for news in turns_lost {
            self.out.report(Message::TurnsLost(news));
        }
        self.speak_for_stuck_sinks();
        let now = clock::now();
        let mut workers = self.runtimes.iter().flat_map(|watch| &watch.workers);
        let is_waiting = workers.any(|watch| watch.sampling.is_waiting());
        self.answers_due = is_waiting.then(|| now.plus(ANSWER_AFTER));
        self.out.shared.ticked(now);
        next
    }

    /// Reads the turns of all workers that do not rest, in one system call, and then what has moved meanwhile.
    fn read_turns(&mut self, now: Nanos) {
        let [looks, again] = &mut self.looks;
        looks.clear();
        for watch in &mut self.runtimes {
            watch.ask(&self.drivers, looks, now);
        }
        take(&mut self.runtimes, looks, again);
        // Who has the others in their hands is looked for in the same way, and they are read once more.
        again.clear();
        let (mut inside, mut any) = (None, false);
        for watch in &mut self.runtimes {
            any |= watch.find_lost(&mut inside, looks, again, now);
        }
        if any {
            take(&mut self.runtimes, again, looks);
        }
    }

    /// The tick while every worker is parked, and none has moved. Whatever begins between two of them is seen
    /// before it has lasted for the threshold, but not in a program that has done nothing for a while.
    fn idle_tick(&self, now: Nanos) -> Duration {
        let idle_for = now.since(self.active_at);
        if idle_for >= RESTED_AFTER {
            return LONGEST_TICK;
        }
        let parts = if idle_for < CALM_AFTER { 2 } else { 1 };
        let rules = self.runtimes.iter().map(|watch| watch.runtime.rules);
        let shortest = rules.map(|rules| rules.threshold / parts).min();
        shortest
            .unwrap_or(LONGEST_TICK)
            .clamp(SHORTEST_IDLE_TICK, LONGEST_TICK)
    }

    /// Passes on the stacks that have been taken since the tick. Only once between two ticks: what is not
    /// there by then is collected at one.
    fn collect_answers(&mut self) {
        self.answers_due = None;
        for RuntimeWatch {
            runtime, workers, ..
        } in &mut self.runtimes
        {
            for watch in workers {
                if let Some(sampled) = watch.sampling.collect_early() {
                    watch.pass_on(runtime, sampled, &self.out);
                }
            }
        }
    }

    fn is_to_follow(&self) -> bool {
        self.seen_version != Some(self.out.shared.version.load(Ordering::Acquire))
    }

    /// Takes over runtimes that have joined and lets go of those that have left. Never waits: if the
    /// list is being changed right now, the next tick sees it.
    fn follow_registrations(&mut self) {
        if !self.is_to_follow() {
            return;
        }
        let version = self.out.shared.version.load(Ordering::Acquire);
        let Some(watched) = self
            .out
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
        let Some(phase) = news.phase else {
            return;
        };
        self.live.retain(|live| live.id != news.live.id);
        if phase != Phase::Ended {
            self.live.push(news.live.clone());
        }
        self.live_changed = true;
    }

    fn publish_live(&mut self) {
        if self.live_changed {
            if let Some(mut live) = self.out.shared.live.try_lock() {
                live.clone_from(&self.live);
                self.live_changed = false;
                drop(live);
                self.out.shared.live_changed();
            }
        }
    }

    /// The sinks write endless stalls to standard error. If they cannot, being stuck in the logger or in a
    /// callback, a thread made for this one purpose does.
    fn speak_for_stuck_sinks(&self) {
        let now = clock::now();
        let is_endless = |live: &&Live| now.since(live.stall.since) >= ENDLESS_AFTER;
        for live in self.live.iter().filter(is_endless) {
            if self.out.shared.sinks_busy_for(now) < SINKS_STUCK_AFTER
                || live.last_words.swap(true, Ordering::Relaxed)
            {
                continue;
            }
            let live = live.clone();
            let speaker = std::thread::Builder::new().name("stall-last-word".to_owned());
            if speaker
                .spawn(move || write_last_words(&live.report_now()))
                .is_err()
            {
                self.out
                    .shared
                    .dropped_reports
                    .fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}
