//! The messages of the watchdog, the pulse thread and the explainer.
//!
//! *Runs on:* `stall-watchdog`, `stall-pulse` and `stall-explainer` send them. `stall-reporter` and
//! `stall-explainer` receive them.
//! *Must not:* cost the watchdog more than a copy. The reporter looks up the names.

use super::{Live, WatchState, WatchedRuntime};
use crate::capture::RawStack;
use crate::clock::Nanos;
use crate::explain::Explained;
use crate::report::{NoStack, Phase};
#[cfg(feature = "tower")]
use crate::requests::RequestNews;
use crate::slot::{Marks, Slot};
use crate::turns::NoTurns;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

/// The number of a stall, from its first suspicion on.
///
/// A suspicion that does not become a stall has a number too, so numbers of stalls have gaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct StallId(pub(crate) u64);

/// News for the reporter.
#[derive(Debug)]
pub(crate) enum Message {
    Stall(Box<StallNews>),
    Stack(Box<StackNews>),
    /// A stack of this stall was asked for and will not come.
    NoStack(StallId, NoStack),
    PoolWait(PoolNews),
    TurnsLost(TurnsLost),
    /// Runtimes have appeared that nobody watches. The log of this watched one names them.
    OtherRuntimes(Arc<WatchedRuntime>),
    #[cfg(feature = "tower")]
    Requests(RequestsNews),
}

/// News of requests, in order.
#[cfg(feature = "tower")]
#[derive(Debug)]
pub(crate) struct RequestsNews {
    pub(crate) runtime: Arc<WatchedRuntime>,
    pub(crate) news: Vec<RequestNews>,
}

/// The turns of a runtime are not counted any more.
#[derive(Debug)]
pub(crate) struct TurnsLost {
    pub(crate) runtime: Arc<WatchedRuntime>,
    pub(crate) why: NoTurns,
}

/// The watchdog's findings about a worker.
#[derive(Debug)]
pub(crate) struct StallNews {
    /// The phase of the stall. `None` for a suspicion: its names are looked up in case it becomes a
    /// stall.
    pub(crate) phase: Option<Phase>,
    pub(crate) live: Live,
    /// The time for which no worker has waited for the runtime's sockets and timers; `None` if it
    /// is not known.
    pub(crate) driver_frozen: Option<Duration>,
    pub(crate) thread: Option<StallThread>,
    /// The number of stacks of this stall that the explainer has been sent so far.
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
    /// A stack of a stall, taken by the watchdog.
    OfStall {
        id: StallId,
        runtime: Arc<WatchedRuntime>,
        worker: usize,
        /// The age of the stall when the stack was asked for.
        after: Duration,
        stack: RawStack,
    },
    /// A stack of a thread of a blocking pool that lets a closure wait, and the channel for the
    /// answer. There is none if the stack cannot be explained.
    OfPool {
        watch: Arc<WatchState>,
        /// The age of the wait when the stack was asked for.
        after: Duration,
        stack: RawStack,
        answer: SyncSender<PoolStack>,
    },
    /// A stack that a user has asked for, and the channel for the answer.
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
    /// The age of the stall when the stack was asked for.
    pub(crate) after: Duration,
    /// The next instruction and the stack pointer of the thread.
    pub(crate) position: (u64, u64),
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
    /// The stacks of closures that hold the pool which have come since the last news.
    pub(crate) stacks: Vec<PoolStack>,
}

/// A stack of a thread of a blocking pool, explained.
#[derive(Debug)]
pub(crate) struct PoolStack {
    /// The age of the wait when the stack was asked for.
    pub(crate) after: Duration,
    pub(crate) stack: Explained,
}
