//! One runtime under watch: its workers, and whether anything of it waits for sockets and timers.
//!
//! *Runs on:* the watchdog thread.
//! *Must not:* wait for anybody.

use super::TickContext;
use super::worker::WorkerWatch;
use crate::clock::{self, Nanos};
use crate::detect::EventDriver;
use crate::engine::{TurnsLost, WatchedRuntime};
use crate::slot::Drivers;
use crate::turns::{Inside, Looks};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// For so long after the start every tick is a short one: threads become known, and evidence about them
/// needs a first reading.
const SETTLING: Duration = Duration::from_secs(1);

pub(super) struct RuntimeWatch {
    pub(super) runtime: Arc<WatchedRuntime>,
    pub(super) workers: Vec<WorkerWatch>,
    driver: EventDriver,
    /// When it was last said that turns are not counted any more.
    said_lost: Option<Nanos>,
}

/// Between two words about turns that are not counted any more: they may come and go.
const SAID_AGAIN_AFTER: Duration = Duration::from_secs(60);

impl RuntimeWatch {
    pub(super) fn new(runtime: Arc<WatchedRuntime>) -> RuntimeWatch {
        let workers = (0..runtime.metrics.num_workers())
            .map(|index| WorkerWatch::new(index, &runtime))
            .collect();
        RuntimeWatch {
            runtime,
            workers,
            driver: EventDriver::default(),
            said_lost: None,
        }
    }

    /// Whether nothing can have happened to any worker since the last tick.
    pub(super) fn rests(&self, now: Nanos) -> bool {
        let mut workers = self.workers.iter();
        workers.all(|watch| watch.rests(&self.runtime, now))
    }

    /// Notes who drives the workers that do not rest, and asks for what is to be read of them.
    pub(super) fn ask(&mut self, drivers: &Drivers, looks: &mut Looks, now: Nanos) {
        if self.runtime.is_gone() {
            return;
        }
        for watch in &mut self.workers {
            watch.is_asked = !watch.rests(&self.runtime, now);
            if watch.is_asked {
                watch.worker.follow(self.runtime.id, drivers);
                watch.worker.ask(looks, &self.runtime.metrics);
            }
        }
    }

    /// Takes what was read, and asks again for what lies elsewhere now. Returns whether there is any.
    pub(super) fn take(&mut self, looks: &Looks, again: &mut Looks) -> bool {
        let mut any = false;
        for watch in self.workers.iter_mut().filter(|watch| watch.is_asked) {
            watch.is_asked = watch.worker.take(looks, &self.runtime.metrics);
            if watch.is_asked {
                watch.worker.ask(again, &self.runtime.metrics);
                any = true;
            }
        }
        any
    }

    /// Looks for the threads of workers that are at work in other hands than was thought, and asks for what is
    /// to be read of them. Returns whether there are any.
    pub(super) fn find_lost(
        &mut self,
        inside: &mut Option<Inside>,
        looks: &mut Looks,
        again: &mut Looks,
        now: Nanos,
    ) -> bool {
        let mut any = false;
        let runtime = &self.runtime;
        let is_asked = |watch: &&mut WorkerWatch| !watch.rests(runtime, now);
        for watch in self.workers.iter_mut().filter(is_asked) {
            if watch.worker.is_lost(&runtime.metrics) {
                let inside = inside.get_or_insert_with(|| Inside::look(looks));
                watch.is_asked = watch.worker.find(inside, looks);
                if watch.is_asked {
                    watch.worker.ask(again, &runtime.metrics);
                    any = true;
                }
            }
        }
        any
    }

    /// Looks at all workers; returns whether any is active.
    pub(super) fn tick(&mut self, round: &mut TickContext<'_>) -> bool {
        if self.runtime.is_gone() {
            self.workers.clear();
            return false;
        }
        self.driver
            .follow(self.workers.iter().map(WorkerWatch::place), round.now);
        let is_stalled = self.workers.iter().any(WorkerWatch::is_stalled);
        if let Some(frozen) = self.driver.frozen_now().filter(|_| is_stalled) {
            self.runtime.stats.note_driver_frozen(frozen);
        }
        let RuntimeWatch {
            runtime,
            workers,
            driver,
            ..
        } = self;
        let mut active = false;
        for watch in workers.iter_mut() {
            if round.all_rest || watch.rests(runtime, round.now) {
                watch.detector.rested(round.now);
            } else {
                watch.looked_at = round.now;
                for finding in watch.tick(runtime, round) {
                    let news = watch.news(runtime, round.out.shared(), driver, finding);
                    round.news.push(news);
                }
            }
            active |= watch.is_active(runtime);
        }
        self.note(active);
        round.turns_lost.extend(self.turns_lost(round.now));
        active || clock::now().since(self.runtime.watch.started_at) < SETTLING
    }

    /// Notes whether turns are counted, and returns what is to be said if they are not any more.
    fn turns_lost(&mut self, now: Nanos) -> Option<TurnsLost> {
        let stats = &self.runtime.stats;
        let before = stats.no_turns();
        let why = self
            .workers
            .iter()
            .find_map(|watch| watch.worker.no_turns());
        stats.note_no_turns(why);
        let why = why.filter(|_| before.is_none())?;
        let is_new = |said: Nanos| now.since(said) >= SAID_AGAIN_AFTER;
        if !self.said_lost.is_none_or(is_new) {
            return None;
        }
        self.said_lost = Some(now);
        Some(TurnsLost {
            runtime: self.runtime.clone(),
            why,
        })
    }

    /// Notes what is seen of the runtime.
    fn note(&self, active: bool) {
        let stats = &self.runtime.stats;
        let drivers = || self.workers.iter().map(|watch| watch.worker.driver());
        let enrolled = drivers().flatten().count();
        let sees_all = |driver: &super::workers::Driver| driver.slot.are_all_polls_seen();
        let all_polls = drivers().all(|driver| driver.is_some_and(sees_all));
        stats.enrolled.store(enrolled, Ordering::Relaxed);
        stats.all_polls.store(all_polls, Ordering::Relaxed);
        stats.active.fetch_or(active, Ordering::Relaxed);
        for (watch, turns) in self.workers.iter().zip(&stats.worker_turns) {
            turns.store(watch.worker.turns(), Ordering::Relaxed);
        }
    }
}
