//! A thread's own way to its slot, and what it says of itself there.
//!
//! *Runs on:* worker threads: `mine` inside every poll, the rest at the first mark, when asked to look
//! around, and at thread exit. The watchdog sets from which length on polls are kept.
//! *Here:* `mine` is one thread-local load. Taking a slot allocates, once per thread.

use super::line::{Closed, LongPoll, Opened};
use super::registry::{self, Claim, Slot};
use super::{Mark, names};
use crate::clock;
use crate::sync::Ordering;
use std::cell::Cell;
use std::hash::{Hash, Hasher};
use std::time::Duration;
use tokio::runtime::{Handle, RuntimeFlavor};

/// Where the marks of a thread without a slot go: its gate says "look closer" for ever, so nothing is ever
/// written to it, and the way to a mark needs no test for "has this thread a slot?".
#[cfg(not(loom))]
static NOBODY: Slot = Slot::owned();

thread_local! {
    // Constant and without a destructor, so that access is a plain load.
    #[cfg(not(loom))]
    static MINE: Cell<&'static Slot> = const { Cell::new(&NOBODY) };
    #[cfg(loom)]
    static MINE: Cell<&'static Slot> = Cell::new(nobody());
    static EXITED: Cell<bool> = const { Cell::new(false) };
    static AT_EXIT: ReleaseAtExit = const { ReleaseAtExit };
}

#[cfg(not(loom))]
fn nobody() -> &'static Slot {
    &NOBODY
}

#[cfg(loom)]
fn nobody() -> &'static Slot {
    static NOBODY: std::sync::OnceLock<Slot> = std::sync::OnceLock::new();
    NOBODY.get_or_init(Slot::owned)
}

struct ReleaseAtExit;

impl Drop for ReleaseAtExit {
    fn drop(&mut self) {
        EXITED.set(true);
        let slot = MINE.replace(nobody());
        if !std::ptr::eq(slot, nobody()) {
            slot.release();
        }
    }
}

/// The calling thread's slot. `None` only while the thread is being torn down.
pub(crate) fn mine() -> Option<&'static Slot> {
    let slot = MINE.get();
    if std::ptr::eq(slot, nobody()) {
        take()
    } else {
        Some(slot)
    }
}

#[cold]
fn take() -> Option<&'static Slot> {
    if EXITED.get() {
        return None;
    }
    let slot = registry::take();
    let thread = std::thread::current();
    slot.introduce(
        crate::capture::current_tid(),
        crate::capture::own_bounds(),
        thread.name().unwrap_or(""),
    );
    slot.line.ask_to_look_around();
    slot.set_claim(driven_here().map(|driven| driven.claim), clock::now());
    MINE.set(slot);
    AT_EXIT.with(|_| ());
    Some(slot)
}

/// Begins a mark on the calling thread; returns whose [`end`](Slot::end) ends it.
#[inline]
pub(crate) fn begin(mark: Mark, id: u64) -> &'static Slot {
    let slot = MINE.get();
    if slot.line.open_quickly(mark, id) {
        slot
    } else {
        begin_closer(mark, id)
    }
}

/// Ends the innermost mark of the calling thread. `name` is its name, asked for if somebody wants it.
#[inline]
pub(crate) fn end(name: impl Fn() -> Option<&'static str>) {
    MINE.get().end(name);
}

/// Any mark but the first of a poll that nobody wants more of. Cold, as the next one is, in that it is kept
/// out of the way of what is short: inner spans come here too.
#[cold]
#[inline(never)]
fn begin_closer(mark: Mark, id: u64) -> &'static Slot {
    let Some(slot) = mine() else {
        return nobody();
    };
    if slot.line.push(mark, id) == Opened::Poll {
        slot.look_around();
    }
    slot
}

impl Slot {
    /// Ends the innermost mark, on the slot's own thread. `name` is its name, asked for if it closed a poll
    /// whose end was measured.
    #[inline]
    pub(crate) fn end(&self, name: impl Fn() -> Option<&'static str>) {
        if !self.line.close_quickly() {
            self.end_closer(&name);
        }
    }

    /// The name comes behind a pointer to a function: a value would be loaded before each end.
    #[cold]
    #[inline(never)]
    fn end_closer(&self, name: &dyn Fn() -> Option<&'static str>) {
        if let Some(measured) = self.pop() {
            self.name_measured(measured, name());
        }
    }

    /// The same for a poll that is nobody's: its length is not counted.
    #[cfg_attr(not(feature = "testing"), allow(dead_code))]
    pub(crate) fn end_uncounted(&self) {
        if !self.line.close_quickly() {
            self.pop();
        }
    }

    fn pop(&self) -> Option<Measured> {
        match self.line.pop() {
            Closed::Inner | Closed::Poll => None,
            Closed::Measure { epoch, wanted } => self.measure_end(epoch, wanted),
        }
    }

    /// Which worker is this, and is this poll's start to be measured?
    fn look_around(&self) {
        let now = clock::now();
        let silent = self.leaves_silently();
        if self.line.is_to_look_around() || silent || !self.is_still(tokio::runtime::worker_index())
        {
            self.ask_tokio(now);
        }
        let turn = self.pace.turn(now);
        if turn.timed {
            self.line.stamp_start(now);
        }
        // The thread of a `current_thread` runtime leaves it without a trace, so there every poll asks
        // again. Elsewhere a thread stops being a worker only with the worker's counters moving on.
        self.line
            .look_closer_next_time(turn.next_too || self.leaves_silently());
    }

    fn ask_tokio(&self, now: clock::Nanos) {
        let driven = driven_here();
        self.set_claim(driven.map(|driven| driven.claim), now);
        self.set_leaves_silently(driven.is_some_and(|driven| driven.leaves_silently));
    }

    /// Whether this is the worker that was said last. To ask tokio for the runtime as well costs ten times as
    /// much, and a thread that works for one multi-thread runtime never works for another.
    fn is_still(&self, worker: Option<usize>) -> bool {
        self.claim()
            .is_some_and(|(claim, _)| Some(claim.worker) == worker)
    }

    fn measure_end(&self, epoch: u64, wanted: bool) -> Option<Measured> {
        let ended = clock::now();
        let started = self.line.started(epoch);
        // A long span on a thread that drives nothing holds nobody up.
        let took = match started {
            Some(started) if self.claim().is_some() => Some(ended.0.saturating_sub(started.0)),
            _ => None,
        };
        let too_long = took.is_some_and(|took| took >= LONG_POLL_NANOS.load(Ordering::Relaxed));
        let kept = wanted || too_long;
        if kept {
            self.keep_long_poll(LongPoll {
                epoch,
                started,
                ended,
                name: 0,
            });
        }
        let counted = cfg!(feature = "metrics") && took.is_some();
        (counted || kept).then_some(Measured {
            took,
            kept: kept.then_some(epoch),
        })
    }

    /// Counts a poll whose end was measured, under its name.
    fn name_measured(&self, poll: Measured, name: Option<&'static str>) {
        #[cfg(feature = "metrics")]
        if let Some(took) = poll.took {
            self.polls.note(name, took);
        }
        if let (Some(epoch), Some(name)) = (poll.kept, name) {
            self.name_long_poll(epoch, names::number(names::Name::Text(name)));
        }
    }
}

/// A poll whose end was measured.
#[derive(Clone, Copy, Debug)]
struct Measured {
    /// How long it took, in nanoseconds, on a thread that drives a worker.
    #[cfg_attr(not(feature = "metrics"), allow(dead_code))]
    took: Option<u64>,
    /// Its epoch, if a record of it was kept.
    kept: Option<u64>,
}

/// From which length on a poll leaves a record behind; the smallest threshold in force.
static LONG_POLL_NANOS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(u64::MAX);

/// Sets that length, or none.
pub(crate) fn keep_polls_longer_than(threshold: Option<Duration>) {
    let nanos = threshold.map_or(u64::MAX, |threshold| {
        u64::try_from(threshold.as_nanos()).unwrap_or(u64::MAX)
    });
    LONG_POLL_NANOS.store(nanos, Ordering::Relaxed);
}

/// Enrols the calling thread and closes marks that leaked into this moment between two polls: a span
/// guard held across an `.await` leaves its end on another thread.
pub(crate) fn reset_marks() {
    if let Some(slot) = mine() {
        slot.reset_marks();
        slot.set_claim(driven_here().map(|driven| driven.claim), clock::now());
    }
}

/// Enrols the calling thread, wherever it is; returns the number of the runtime it is a worker of.
pub(crate) fn enrol() -> Option<u64> {
    let claim = driven_here()?.claim;
    mine()?.set_claim(Some(claim), clock::now());
    Some(claim.runtime)
}

/// What tokio says of the calling thread.
#[derive(Clone, Copy, Debug)]
struct Driven {
    claim: Claim,
    leaves_silently: bool,
}

/// Asks tokio which worker of which runtime the calling thread is.
fn driven_here() -> Option<Driven> {
    let worker = tokio::runtime::worker_index()?;
    let runtime = Handle::try_current().ok()?;
    Some(Driven {
        claim: Claim {
            runtime: raw_id(&runtime.id()),
            worker,
        },
        leaves_silently: runtime.runtime_flavor() != RuntimeFlavor::MultiThread,
    })
}

/// The number inside one of tokio's ids. They are opaque but for `Display`, which would allocate, and
/// `Hash`, which hands the number to whoever listens.
pub(crate) fn raw_id(id: &impl Hash) -> u64 {
    struct Listen(u64);
    impl Hasher for Listen {
        fn finish(&self) -> u64 {
            self.0
        }
        fn write(&mut self, bytes: &[u8]) {
            for byte in bytes {
                self.0 = self.0 << 8 | u64::from(*byte);
            }
        }
        fn write_u64(&mut self, number: u64) {
            self.0 = number;
        }
    }
    let mut listen = Listen(0);
    id.hash(&mut listen);
    listen.finish()
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn raw_ids_are_the_numbers_tokio_shows() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let handle = runtime.handle();
        assert_eq!(raw_id(&handle.id()).to_string(), handle.id().to_string());
        runtime.block_on(async {
            let task = tokio::spawn(async { tokio::task::id() });
            let id = task.await.unwrap();
            assert_eq!(raw_id(&id).to_string(), id.to_string());
        });
    }

    #[test]
    fn a_worker_claims_itself_and_a_blocking_thread_does_not() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .build()
            .unwrap();
        let claim = || mine().unwrap().claim().map(|(claim, _)| claim);
        runtime.block_on(async move {
            let on_worker = tokio::spawn(async move { claim() }).await.unwrap();
            assert_eq!(on_worker.map(|claim| claim.worker), Some(0));
            let on_blocking = tokio::task::spawn_blocking(claim).await.unwrap();
            assert_eq!(on_blocking, None);
            assert_eq!(claim(), None, "the thread in block_on is no worker");
        });
    }
}
