//! One runtime under watch: its workers, and whether one of them waits for sockets and timers.
//!
//! *Runs on:* `stall-watchdog`.
//! *Must not:* wait.

use super::News;
use super::TickContext;
use super::recording;
use super::requests::RequestWatch;
use super::worker::WorkerWatch;
use crate::clock::{self, Nanos};
use crate::detect::EventDriver;
use crate::engine::{TurnsLost, WatchedRuntime};
#[cfg(feature = "tower")]
use crate::requests::RequestNews;
use crate::slot::Claims;
use crate::turns::{Inside, Looks};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Time after the start during which every tick is a short one: threads become known, and evidence
/// about them needs a first reading.
const SETTLING: Duration = Duration::from_secs(1);

pub(super) struct RuntimeWatch {
    pub(super) runtime: Arc<WatchedRuntime>,
    pub(super) workers: Vec<WorkerWatch>,
    driver: EventDriver,
    requests: RequestWatch,
    /// When it was last reported that turns are not counted any more.
    lost_reported_at: Option<Nanos>,
}

/// The shortest time between two reports that turns are not counted any more: they may come and go.
const LOST_AGAIN_AFTER: Duration = Duration::from_secs(60);

impl RuntimeWatch {
    pub(super) fn new(runtime: Arc<WatchedRuntime>) -> RuntimeWatch {
        let workers = (0..runtime.metrics.num_workers())
            .map(|index| WorkerWatch::new(index, &runtime))
            .collect();
        RuntimeWatch {
            runtime,
            workers,
            driver: EventDriver::default(),
            requests: RequestWatch::default(),
            lost_reported_at: None,
        }
    }

    /// Whether nothing can have happened to any worker since the last tick.
    pub(super) fn rests(&self, now: Nanos) -> bool {
        let mut workers = self.workers.iter();
        workers.all(|watch| watch.rests(&self.runtime, now))
    }

    /// Whether the last look has shown nothing of some worker's thread.
    pub(super) fn hides_a_thread(&self) -> bool {
        self.workers.iter().any(WorkerWatch::is_thread_hidden)
    }

    /// Notes the threads that drive the workers that do not rest, and asks for their words in
    /// memory.
    pub(super) fn ask(&mut self, drivers: &Claims, looks: &mut Looks, now: Nanos) {
        if self.runtime.is_gone() {
            return;
        }
        for watch in &mut self.workers {
            let is_active = !watch.rests(&self.runtime, now);
            if is_active {
                watch.worker.follow(self.runtime.id, drivers);
            }
            watch.ask_if(is_active, looks, &self.runtime);
        }
    }

    /// Takes the words that were read, and asks again for those that lie elsewhere now. Returns
    /// whether there are any.
    pub(super) fn take(&mut self, looks: &Looks, again: &mut Looks) -> bool {
        let mut any = false;
        for watch in self.workers.iter_mut().filter(|watch| watch.is_asked) {
            let is_moved = watch.worker.take(looks, &self.runtime.metrics);
            any |= watch.ask_if(is_moved, again, &self.runtime);
        }
        any
    }

    /// Takes back what is asked for and was not read.
    pub(super) fn withdraw(&mut self) {
        for watch in self.workers.iter_mut().filter(|watch| watch.is_asked) {
            watch.is_asked = false;
            watch.worker.withdraw();
        }
    }

    /// Looks for the threads of workers that are at work on another thread than was thought, and
    /// asks for their words in memory. Returns whether there are any.
    pub(super) fn find_lost(
        &mut self,
        inside: &mut Option<Inside>,
        looks: &mut Looks,
        again: &mut Looks,
        now: Nanos,
    ) -> bool {
        let runtime = &self.runtime;
        let mut any = false;
        for watch in &mut self.workers {
            if !watch.rests(runtime, now) && watch.worker.is_lost(&runtime.metrics) {
                let inside = inside.get_or_insert_with(|| Inside::look(looks));
                let is_found = watch.worker.find(inside, looks);
                any |= watch.ask_if(is_found, again, runtime);
            }
        }
        any
    }

    /// Looks at all workers. Returns whether any is active.
    pub(super) fn tick(&mut self, context: &mut TickContext<'_>) -> bool {
        if self.runtime.is_gone() {
            self.workers.clear();
            self.flush(&mut context.news);
            return false;
        }
        self.follow_driver(context.now);
        let mut active = false;
        for watch in &mut self.workers {
            match context.host {
                Some(host) if !watch.rests(&self.runtime, context.now) => {
                    watch.looked_at = context.now;
                    for finding in watch.tick(&self.runtime, host, context) {
                        let shared = &context.out.shared;
                        let news = watch.news(&self.runtime, shared, &self.driver, &finding);
                        let (now, out) = (context.now, &mut context.news);
                        self.requests.stall(&self.runtime, news, now, out);
                    }
                    watch.record(&self.runtime);
                }
                _ => {
                    watch.detector.rested(context.now);
                    watch.worker.rest(context.room);
                    watch.record_rest(&self.runtime, context.now);
                }
            }
            active |= watch.is_active(&self.runtime);
        }
        self.note(active);
        recording::ticked(&self.runtime, context.now);
        let decided = self.decided(context.now);
        let (now, out) = (context.now, &mut context.news);
        self.requests.tick(&self.runtime, now, decided, out);
        context.news.turns_lost.extend(self.turns_lost(context.now));
        active || clock::now().since(self.runtime.watch.started_at) < SETTLING
    }

    /// Sends the news that was held back.
    pub(super) fn flush(&mut self, out: &mut News) {
        self.requests.flush(&self.runtime, clock::now(), out);
    }

    #[cfg(feature = "tower")]
    pub(super) fn take_back(&mut self, unsent: Vec<RequestNews>) {
        self.requests.take_back(unsent);
    }

    /// The time up to which it is known whether the workers were stalled: a poll that is suspected
    /// may become a stall.
    fn decided(&self, now: Nanos) -> Nanos {
        let suspected = self.workers.iter().filter_map(WorkerWatch::suspected_since);
        suspected.fold(now, Nanos::min)
    }

    /// Notes which workers wait in the runtime's driver, and how long none has during a stall.
    fn follow_driver(&mut self, now: Nanos) {
        let places = self.workers.iter().map(WorkerWatch::place);
        self.driver.follow(places, now);
        let is_stalled = self.workers.iter().any(WorkerWatch::is_stalled);
        if let Some(frozen) = self.driver.frozen_now().filter(|_| is_stalled) {
            self.runtime.stats.note_driver_frozen(frozen);
        }
        let since = self.driver.frozen_since().filter(|_| is_stalled);
        RequestWatch::driver_is_frozen(&self.runtime, since, now);
    }

    /// Notes whether turns are counted. Returns news if they are not any more.
    fn turns_lost(&mut self, now: Nanos) -> Option<TurnsLost> {
        let stats = &self.runtime.stats;
        let before = stats.no_turns();
        let mut workers = self.workers.iter();
        let why = workers.find_map(|watch| watch.worker.no_turns());
        stats.note_no_turns(why);
        let why = why.filter(|_| before.is_none())?;
        let is_recent = |reported: Nanos| now.since(reported) < LOST_AGAIN_AFTER;
        if self.lost_reported_at.is_some_and(is_recent) {
            return None;
        }
        self.lost_reported_at = Some(now);
        Some(TurnsLost {
            runtime: self.runtime.clone(),
            why,
        })
    }

    /// Notes the runtime's figures.
    fn note(&self, active: bool) {
        let stats = &self.runtime.stats;
        let drivers = || self.workers.iter().map(|watch| watch.worker.driver());
        let enrolled = drivers().flatten().count();
        let sees_all = |driver: &super::workers::WorkerThread| driver.slot.are_all_polls_seen();
        let all_polls = drivers().all(|driver| driver.is_some_and(sees_all));
        stats.enrolled.store(enrolled, Ordering::Relaxed);
        stats.all_polls.store(all_polls, Ordering::Relaxed);
        stats.active.fetch_or(active, Ordering::Relaxed);
        for (watch, turns) in self.workers.iter().zip(&stats.worker_turns) {
            turns.store(watch.worker.turns(), Ordering::Relaxed);
        }
    }
}
