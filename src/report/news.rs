//! What the watchdog and the pulse thread tell the reporter.
//!
//! *Runs on:* made by the watchdog and the pulse thread, taken in by the reporter.
//! *Here:* plain data, cheap to make: the names are looked up by who reads it.

use super::{NoStack, Phase};
use crate::capture::RawStack;
use crate::clock::Nanos;
use crate::engine::WatchedRuntime;
use crate::explain::cause::SleptIn;
use crate::slot::{Marks, Slot};
use crate::turns::NoTurns;
use crate::watchdog::detector::Stall;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// News for the reporter.
#[derive(Debug)]
pub(crate) enum Message {
    Stall(Box<StallNews>),
    Stack(StackNews),
    PoolWait(PoolNews),
    TurnsLost(TurnsLost),
}

/// A runtime's turns are not counted any more.
#[derive(Debug)]
pub(crate) struct TurnsLost {
    pub(crate) runtime: Arc<WatchedRuntime>,
    pub(crate) why: NoTurns,
}

/// What the watchdog found out about a worker.
#[derive(Debug)]
pub(crate) struct StallNews {
    /// `None` for a poll that is only suspected: its names are wanted, in case.
    pub(crate) announcement: Option<Announcement>,
    pub(crate) runtime: Arc<WatchedRuntime>,
    pub(crate) worker: usize,
    pub(crate) stall: Stall,
    /// What it was last seen asleep in.
    pub(crate) slept_in: Option<SleptIn>,
    /// For how long nobody has waited for the runtime's sockets and timers; `None` if that cannot be told.
    pub(crate) driver_frozen: Option<Duration>,
    pub(crate) thread: Option<StallThread>,
}

/// A stack that the watchdog has taken, or why it has not.
#[derive(Debug)]
pub(crate) struct StackNews {
    pub(crate) key: StallKey,
    pub(crate) runtime: Arc<WatchedRuntime>,
    /// How old the stall was when the stack was asked for.
    pub(crate) after: Duration,
    pub(crate) stack: Result<RawStack, NoStack>,
}

/// Which stall, from its first suspicion on: runtime, worker, and the serial of its detector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct StallKey {
    pub(crate) runtime: u64,
    pub(crate) worker: usize,
    pub(crate) serial: u64,
}

impl StallNews {
    pub(crate) fn key(&self) -> StallKey {
        StallKey {
            runtime: self.runtime.id,
            worker: self.worker,
            serial: self.stall.serial,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Announcement {
    pub(crate) id: u64,
    pub(crate) phase: Phase,
    pub(crate) last_words: Arc<AtomicBool>,
}

/// The thread that drives the worker, and the marks it had when the watchdog looked.
#[derive(Debug)]
pub(crate) struct StallThread {
    pub(crate) slot: &'static Slot,
    pub(crate) tenancy: u64,
    pub(crate) marks: Option<Marks>,
}

/// What the pulse thread found out about a blocking pool.
#[derive(Debug)]
pub(crate) struct PoolNews {
    pub(crate) id: u64,
    pub(crate) phase: Phase,
    pub(crate) runtime: Arc<WatchedRuntime>,
    pub(crate) since: Nanos,
    pub(crate) waited: Duration,
}
