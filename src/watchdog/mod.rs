//! The watchdog: one thread that looks at every worker once a tick and decides which are held.
//!
//! *Runs on:* its own thread, `stall-watchdog`; `pulses` on another, `stall-pulse`.
//! *Must not:* log, call the user's code, or wait. The watchdog's own lateness is evidence, so a
//! slow read or a lock here would look like a stalled host. A tick loads atomics, reads memory and
//! descriptors that are kept open, sends a signal to one thread, and hands over its findings as far
//! as there is room. A log subscriber may be the code that is stuck, so nothing here logs through
//! one.

mod episode;
mod exhaustion;
mod files;
mod holders;
mod host;
mod out;
pub(crate) mod pulses;
#[cfg_attr(not(feature = "serve"), path = "no_recording.rs")]
mod recording;
#[cfg_attr(not(feature = "tower"), path = "no_requests.rs")]
mod requests;
mod runtime;
mod sampling;
mod worker;
pub(crate) mod workers;

use crate::clock::{self, Nanos};
#[cfg(feature = "tower")]
use crate::engine::RequestsNews;
use crate::engine::{
    ENDLESS_AFTER, LONGEST_TICK, Live, Message, StallId, StallNews, TurnsLost, WatchedRuntime,
};
use crate::report::Phase;
use crate::slot::{self, Claims, collect_claims};
use crate::turns::Looks;
use files::Room;
use host::{HostTime, OwnWait, Preemptions, Quota};
pub(crate) use out::Out;
use runtime::RuntimeWatch;
use sampling::Allowance;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// The shortest tick while every worker is parked.
const SHORTEST_IDLE_TICK: Duration = Duration::from_millis(5);
/// Time since a worker was last active after which the tick is the longest. Until then the tick is
/// short enough to see a stall before it is over.
const RESTED_AFTER: Duration = Duration::from_secs(10);
/// Time since a worker was last active after which the tick is a whole threshold. Until then it is
/// half of one, so that a stall is seen early.
const CALM_AFTER: Duration = Duration::from_secs(1);

/// Time after a tick at which stacks are collected. A thread answers within some microseconds,
/// unless it has no CPU.
const ANSWER_AFTER: Duration = Duration::from_millis(1);

/// The longest time between two looks at a worker that rests: its time is counted, and its thread
/// may have exited.
const RESTS_FOR: Duration = Duration::from_millis(500);

/// Time without a sign of life after which a `current_thread` runtime counts as idle. The counters
/// of one that is not driven look active.
const UNDRIVEN_AFTER: Duration = Duration::from_secs(1);

/// The sinks are stuck if they have been busy with one report for this long.
const SINKS_STUCK_AFTER: Duration = Duration::from_secs(1);

/// The thread's main function.
pub(crate) fn run(out: Out) {
    let shared = &out.shared.clone();
    let mut watchdog = Watchdog::new(out);
    let mut due = clock::now();
    while !shared.stopping() {
        let now = clock::now();
        if watchdog.is_to_follow() {
            // A runtime that has just joined is looked at right away.
            due = due.min(now);
        }
        if !watchdog.is_due(due, now) {
            continue;
        }
        let late = now.since(due);
        shared.note_lateness(late);
        let tick = watchdog.tick(due);
        // A late tick counts from its start: if the process is stopped during it, the next is late.
        due = if late > tick { now } else { due }.plus(tick);
    }
    watchdog.let_go_of(|_| true);
}

/// Reads memory for all workers that have asked, and again for those that have moved in between: a
/// context may move, and then a core.
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
            return;
        }
        std::mem::swap(looks, again);
    }
    // A thread may go from context to context without end.
    runtimes.iter_mut().for_each(RuntimeWatch::withdraw);
}

struct Watchdog {
    out: Out,
    seen_version: Option<u64>,
    runtimes: Vec<RuntimeWatch>,
    drivers: Claims,
    own_wait: OwnWait,
    preemptions: Preemptions,
    usually_late: Duration,
    quota: Quota,
    stacks: Allowance,
    room: Room,
    live: Vec<Live>,
    live_changed: bool,
    /// When to collect the stacks that the last tick has asked for.
    answers_due: Option<Nanos>,
    /// The places in workers' memory that a tick reads, and those that it reads a second time.
    looks: [Looks; 2],
    /// When some worker was last active.
    active_at: Nanos,
}

/// One tick, as all workers share it.
struct TickContext<'a> {
    due: Nanos,
    now: Nanos,
    /// `None` if every worker of every runtime rested when the tick began: then claims have not
    /// been collected either.
    host: Option<HostTime>,
    own_wait: &'a mut OwnWait,
    out: &'a Out,
    allowance: &'a mut Allowance,
    /// For a look at one worker.
    looks: &'a mut Looks,
    room: &'a Room,
    news: News,
}

impl TickContext<'_> {
    /// The watchdog's wait for a CPU since the last tick, up to now. It may have lost its CPU since
    /// this tick began.
    fn own_wait_by_now(&mut self) -> Option<Duration> {
        let more = self.own_wait.since_last_time(clock::now());
        let host = self.host.as_mut()?;
        host.own_wait = host.own_wait.zip(more).map(|(wait, more)| wait + more);
        host.own_wait
    }
}

/// The findings of one tick.
#[derive(Default)]
struct News {
    stalls: Vec<StallNews>,
    turns_lost: Vec<TurnsLost>,
    /// Stalls that are over, and whose last news is held back.
    over: Vec<StallId>,
    #[cfg(feature = "tower")]
    requests: Vec<RequestsNews>,
}

impl Watchdog {
    fn new(out: Out) -> Watchdog {
        let own_wait = OwnWait::new();
        Watchdog {
            out,
            seen_version: None,
            runtimes: Vec::new(),
            drivers: Claims::new(),
            usually_late: host::usually_late(&own_wait),
            own_wait,
            preemptions: Preemptions::default(),
            quota: Quota::new(),
            stacks: Allowance::new(clock::now()),
            room: Room::new(clock::now()),
            live: Vec::new(),
            live_changed: false,
            answers_due: None,
            looks: [Looks::default(), Looks::default()],
            active_at: clock::now(),
        }
    }

    /// Whether the next tick is due now. If not, waits for it, or for the stacks that are collected
    /// before it.
    fn is_due(&mut self, due: Nanos, now: Nanos) -> bool {
        let answers_due = self.answers_due.filter(|answers_due| *answers_due < due);
        if answers_due.is_some_and(|answers_due| answers_due <= now) {
            self.collect_answers();
        }
        let next = self
            .answers_due
            .map_or(due, |answers_due| due.min(answers_due));
        if now < next {
            host::wait(next.since(now));
        }
        now >= next
    }

    /// Looks at everything once. Returns the time until the next tick.
    fn tick(&mut self, due: Nanos) -> Duration {
        self.follow_registrations();
        let now = clock::now();
        let host = self.look_around(now);
        self.read_turns(now);
        let (news, next) = self.look_at_workers(due, now, host);
        self.publish(news);
        self.write_last_words();
        self.end_tick();
        next
    }

    /// Collects the claims of threads, and the host's share of the time. `None` if all workers
    /// rest: then neither is needed, and the files are cold.
    fn look_around(&mut self, now: Nanos) -> Option<HostTime> {
        let hides_a_thread = self.runtimes.iter().any(RuntimeWatch::hides_a_thread);
        let preempted = hides_a_thread && self.preemptions.any_since_last_time();
        if self.runtimes.iter().all(|watch| watch.rests(now)) {
            return None;
        }
        collect_claims(&mut self.drivers);
        self.room.follow_limit(now);
        workers::ask_for_claim();
        Some(HostTime {
            usually_late: self.usually_late,
            own_wait: self.own_wait.since_last_time(now),
            preempted,
            throttled: self.quota.throttled(),
        })
    }

    /// Looks at all workers. Returns the findings, and the time until the next tick.
    fn look_at_workers(
        &mut self,
        due: Nanos,
        now: Nanos,
        host: Option<HostTime>,
    ) -> (News, Duration) {
        let mut next = self.idle_tick(now);
        let mut context = TickContext {
            due,
            now,
            host,
            own_wait: &mut self.own_wait,
            out: &self.out,
            allowance: &mut self.stacks,
            looks: &mut self.looks[0],
            room: &self.room,
            news: News::default(),
        };
        for watch in &mut self.runtimes {
            if watch.tick(&mut context) {
                next = next.min(watch.runtime.rules.tick);
                self.active_at = now;
            }
        }
        (context.news, next)
    }

    /// Reads the turns of all workers that do not rest, in one system call, and those that have
    /// moved in between once more.
    fn read_turns(&mut self, now: Nanos) {
        let [looks, again] = &mut self.looks;
        looks.clear();
        for watch in &mut self.runtimes {
            watch.ask(&self.drivers, looks, now);
        }
        take(&mut self.runtimes, looks, again);
        // The threads of the other workers are looked for in the same way, and read once more.
        again.clear();
        let (mut inside, mut any) = (None, false);
        for watch in &mut self.runtimes {
            any |= watch.find_lost(&mut inside, looks, again, now);
        }
        if any {
            take(&mut self.runtimes, again, looks);
        }
    }

    /// The tick while every worker is parked, and none has moved. A stall that begins between two
    /// of them is seen before it has lasted for the threshold, except in a program that has rested
    /// for [`RESTED_AFTER`].
    fn idle_tick(&self, now: Nanos) -> Duration {
        let idle_for = now.since(self.active_at);
        if idle_for >= RESTED_AFTER {
            return LONGEST_TICK;
        }
        let parts = if idle_for < CALM_AFTER { 2 } else { 1 };
        let rules = self.runtimes.iter().map(|watch| watch.runtime.rules);
        let shortest = rules.map(|rules| rules.threshold / parts).min();
        let idle_tick = shortest.unwrap_or(LONGEST_TICK);
        idle_tick.clamp(SHORTEST_IDLE_TICK, LONGEST_TICK)
    }

    /// Passes on the stacks that have been copied since the tick. This is done once between two
    /// ticks; a stack that is not copied by then is collected at a tick.
    fn collect_answers(&mut self) {
        self.answers_due = None;
        for watched in &mut self.runtimes {
            for watch in &mut watched.workers {
                if let Some(sampled) = watch.sampling.collect_early() {
                    watch.pass_on(&watched.runtime, sampled, &self.out);
                }
            }
        }
    }

    fn is_to_follow(&self) -> bool {
        self.seen_version != Some(self.out.shared.version.load(Ordering::Acquire))
    }

    /// Takes over runtimes that have joined and lets go of those that have left.
    fn follow_registrations(&mut self) {
        let Some(watched) = self.changed_list() else {
            return;
        };
        let is_watched =
            |runtime: &Arc<WatchedRuntime>| watched.iter().any(|other| Arc::ptr_eq(other, runtime));
        self.let_go_of(|runtime| !is_watched(runtime));
        self.live.retain(|live| is_watched(&live.runtime));
        self.live_changed = true;
        for runtime in watched {
            let mut known = self.runtimes.iter();
            if !known.any(|watch| Arc::ptr_eq(&watch.runtime, &runtime)) {
                self.runtimes.push(RuntimeWatch::new(runtime));
            }
        }
        let rules = self.runtimes.iter().map(|watch| watch.runtime.rules);
        slot::keep_polls_longer_than(rules.map(|rules| rules.threshold).min());
    }

    /// Lets go of these runtimes. News that was held back for them is sent.
    fn let_go_of(&mut self, leaves: impl Fn(&Arc<WatchedRuntime>) -> bool) {
        let mut last = News::default();
        self.runtimes.retain_mut(|watch| {
            let leaves = leaves(&watch.runtime);
            if leaves {
                watch.flush(&mut last);
            }
            !leaves
        });
        self.publish(last);
    }

    /// Ends the announced stalls of runtimes that have been shut down, with their latest figures:
    /// nobody looks at their workers any more.
    fn end_with_their_runtimes(&mut self, news: &mut News) {
        if !self.live.iter().any(|live| live.runtime.is_gone()) {
            return;
        }
        let all = std::mem::take(&mut self.live).into_iter();
        let (over, live): (Vec<_>, _) = all.partition(|live| live.runtime.is_gone());
        self.live = live;
        self.live_changed = true;
        news.stalls.extend(over.into_iter().map(|live| StallNews {
            phase: Some(Phase::Ended),
            live,
            driver_frozen: None,
            thread: None,
            stacks: 0,
        }));
    }

    /// The list of runtimes, if it has changed. Never waits: if the list is locked right now, the
    /// next tick reads it.
    fn changed_list(&mut self) -> Option<Vec<Arc<WatchedRuntime>>> {
        if !self.is_to_follow() {
            return None;
        }
        let version = self.out.shared.version.load(Ordering::Acquire);
        let watched = self.out.shared.watched.try_lock()?.clone();
        self.seen_version = Some(version);
        Some(watched)
    }

    /// Lists the stalls that go on, and sends news of them. The list comes first, so that
    /// `stalled_now()` has a stall before its report arrives.
    fn publish(&mut self, mut news: News) {
        for news in &news.stalls {
            self.update_live(news);
        }
        self.live.retain(|live| !news.over.contains(&live.id));
        self.live_changed |= !news.over.is_empty();
        self.end_with_their_runtimes(&mut news);
        self.publish_live();
        #[cfg(feature = "tower")]
        for news in news.requests {
            if let Err(Message::Requests(unsent)) = self.out.try_report(Message::Requests(news)) {
                self.take_back(unsent);
            }
        }
        for news in news.stalls {
            self.out.report(Message::Stall(Box::new(news)));
        }
        for news in news.turns_lost {
            self.out.report(Message::TurnsLost(news));
        }
    }

    #[cfg(feature = "tower")]
    fn take_back(&mut self, unsent: RequestsNews) {
        let mut runtimes = self.runtimes.iter_mut();
        if let Some(watch) = runtimes.find(|watch| watch.runtime.id == unsent.runtime.id) {
            watch.take_back(unsent.news);
        }
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

    /// Writes endless stalls to standard error if the sinks cannot: they are stuck in the logger or
    /// in a callback.
    fn write_last_words(&self) {
        let now = clock::now();
        if self.out.shared.sinks_busy_for(now) < SINKS_STUCK_AFTER {
            return;
        }
        let is_endless = |live: &&Live| live.proven_age(now) >= Some(ENDLESS_AFTER);
        for live in self.live.iter().filter(is_endless) {
            if !live.last_words.swap(true, Ordering::Relaxed) {
                self.out.last_words(live.clone());
            }
        }
    }

    /// Notes the end of the tick, and when the stacks that it has asked for are to be collected.
    fn end_tick(&mut self) {
        let now = clock::now();
        let mut workers = self.runtimes.iter().flat_map(|watch| &watch.workers);
        let is_waiting = workers.any(|watch| watch.sampling.is_waiting());
        self.answers_due = is_waiting.then(|| now.plus(ANSWER_AFTER));
        self.out.shared.ticked(now);
    }
}
