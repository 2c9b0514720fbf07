//! The messages of the watchdog, the pulse thread and the explainer.
//!
//! *Runs on:* made by the thread that sends, taken in by the reporter or the explainer.
//! *Must not:* cost the watchdog more than a copy. Names are looked up by the reporter.

use super::{Live, WatchState, WatchedRuntime};
use crate::capture::RawStack;
use crate::clock::Nanos;
use crate::explain::{Explained, SleptIn};
use crate::report::{NoStack, Phase};
use crate::slot::{Marks, Slot};
use crate::turns::NoTurns;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

/// The number of a stall, from its first suspicion on. A suspicion that comes to nothing uses a number up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct StallId(pub(crate) u64);

/// News for the reporter.
#[derive(Debug)]
pub(crate) enum Message {
    Stall(Box<StallNews>),
    Stack(Box<StackNews>),
    /// There will be no stack of what was asked for.
    NoStack(StallId, NoStack),
    PoolWait(PoolNews),
    TurnsLost(TurnsLost),
}

/// A runtime's turns are not counted any more.
#[derive(Debug)]
pub(crate) struct TurnsLost {
    pub(crate) runtime: Arc<WatchedRuntime>,
    pub(crate) why: NoTurns,
}

/// The watchdog's findings about a worker.
#[derive(Debug)]
pub(crate) struct StallNews {
    /// `None` for a poll that is only suspected: the names are looked up in case it becomes a stall.
    pub(crate) phase: Option<Phase>,
    pub(crate) live: Live,
    /// The call that the thread was last seen asleep in.
    pub(crate) slept_in: Option<SleptIn>,
    /// For how long nobody has waited for the runtime's sockets and timers; `None` if that cannot be told.
    pub(crate) driver_frozen: Option<Duration>,
    pub(crate) thread: Option<StallThread>,
    /// Stacks of this stall that the explainer has been sent so far.
    pub(crate) stacks: u32,
}

/// The thread that drives the worker, and the marks it had when the watchdog looked.
#[derive(Debug)]
pub(crate) struct StallThread {
    pub(crate) slot: &'static Slot,
    pub(crate) tenancy: u64,
    pub(crate) marks: Option<Marks>,
}

/// Work for the explainer.
#[derive(Debug)]
pub(crate) enum Work {
    /// A stack that the watchdog has taken of a stall.
    OfStall {
        id: StallId,
        runtime: Arc<WatchedRuntime>,
        worker: usize,
        /// How old the stall was when the stack was asked for.
        after: Duration,
        stack: RawStack,
    },
    /// A stack that a user has asked for, and who waits for it.
    Asked {
        watch: Arc<WatchState>,
        stack: RawStack,
        answer: SyncSender<Result<Explained, NoStack>>,
    },
}

/// A stack of a stall, explained.
#[derive(Debug)]
pub(crate) struct StackNews {
    pub(crate) id: StallId,
    /// How old the stall was when the stack was asked for.
    pub(crate) after: Duration,
    pub(crate) stack: Result<Explained, NoStack>,
}

/// The pulse thread's findings about a blocking pool.
#[derive(Debug)]
pub(crate) struct PoolNews {
    pub(crate) id: u64,
    pub(crate) phase: Phase,
    pub(crate) runtime: Arc<WatchedRuntime>,
    pub(crate) since: Nanos,
    pub(crate) waited: Duration,
}
