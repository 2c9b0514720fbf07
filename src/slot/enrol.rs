//! A thread's own way to its slot, and what it says of itself there.
//!
//! *Runs on:* worker threads: `begin` and `end_quickly` inside every poll, the rest at the first mark, when asked to look
//! around, and at thread exit. The watchdog sets from which length on polls are kept.
//! *Here:* one thread-local load finds the slot. Taking a slot allocates, once per thread.

use super::entry::Mark;
use super::line::{Closed, LongPoll};
use super::names;
use super::registry::{self, Claim, Slot};
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
        crate::os::current_tid(),
        crate::os::own_bounds(),
        anchor(),
        thread.name().unwrap_or(""),
    );
    slot.line.ask_for_claim();
    slot.set_claim(driven_here().map(|driven| driven.claim), clock::now());
    MINE.set(slot);
    AT_EXIT.with(|_| ());
    Some(slot)
}

/// The address of the calling thread's way to its slot.
pub(crate) fn anchor() -> u64 {
    MINE.with(|mine| std::ptr::from_ref(mine).addr() as u64)
}

/// Tokio's number for the task that the calling thread polls; 0 outside of one.
#[allow(dead_code)] // Where no turns are counted.
pub(crate) fn own_task() -> u64 {
    tokio::task::try_id().map_or(0, |id| raw_id(&id))
}

/// Begins a mark on the calling thread; returns on whose slot. [`end_quickly`] ends it.
#[inline]
pub(crate) fn begin(mark: Mark, id: u64) -> &'static Slot {
    let slot = MINE.get();
    if slot.line.open_quickly(mark, id) {
        slot
    } else {
        begin_closer(slot, mark, id)
    }
}

/// Where a mark of the calling thread ends, or nothing if it has ended quickly: see [`Slot::end_quickly`].
#[inline]
pub(crate) fn end_quickly() -> Option<&'static Slot> {
    let slot = MINE.get();
    (!slot.end_quickly()).then_some(slot)
}

/// A mark inside a poll, and all else. Cold, as the next ones are, in that it is kept out of the way of what is
/// shorter.
#[cold]
#[inline(never)]
fn begin_closer(slot: &'static Slot, mark: Mark, id: u64) -> &'static Slot {
    if slot.line.push(mark, id) {
        slot
    } else {
        begin_slowly(mark, id)
    }
}

/// A poll that is to be looked at, and the first one of a thread.
#[cold]
#[inline(never)]
fn begin_slowly(mark: Mark, id: u64) -> &'static Slot {
    let Some(slot) = mine() else {
        return nobody();
    };
    slot.line.open_slowly(mark, id);
    slot.look_around();
    slot
}

impl Slot {
    /// Ends the innermost mark, on the slot's own thread, if that is all there is to do. Otherwise
    /// [`end_closer`](Slot::end_closer) does it: two steps, so that what the second one needs to know is not made
    /// ready before the first.
    #[inline]
    #[must_use]
    pub(crate) fn end_quickly(&self) -> bool {
        self.line.close_quickly()
    }

    /// Ends the innermost mark, whatever there is to do. `name` is its name, asked for if it closed a poll whose
    /// end was measured.
    #[cold]
    #[inline(never)]
    pub(crate) fn end_closer(&self, name: &dyn Fn() -> Option<&'static str>) {
        if !self.line.pop() {
            self.end_slowly(name);
        }
    }

    /// The same for a mark that is a name: it is in the slot.
    #[cold]
    #[inline(never)]
    pub(crate) fn end_name_closer(&self) {
        if !self.line.pop() {
            self.end_slowly(&|| self.line.outermost_name());
        }
    }

    #[cold]
    #[inline(never)]
    fn end_slowly(&self, name: &dyn Fn() -> Option<&'static str>) {
        if let Closed::Measure {
            epoch,
            started,
            wanted,
        } = self.line.close()
        {
            self.measure_end(epoch, started, wanted, name);
        }
    }

    /// Ends a mark whose poll is nobody's: its length is not counted.
    #[cfg_attr(not(feature = "testing"), allow(dead_code))]
    pub(crate) fn end_uncounted(&self) {
        if !self.line.close_quickly() && !self.line.pop() {
            self.line.close();
        }
    }

    /// Which worker is this, and is this poll's start to be measured?
    #[inline]
    fn look_around(&self) {
        let now = clock::now();
        // To ask tokio for the runtime as well costs ten times as much, and a thread that works for one
        // multi-thread runtime never works for another.
        let is_still = match tokio::runtime::worker_index() {
            Some(worker) => self.claims_worker(worker),
            None => !self.claims_something(),
        };
        if self.line.is_to_look_around() || self.leaves_silently() || !is_still {
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

    #[cold]
    #[inline(never)]
    fn ask_tokio(&self, now: clock::Nanos) {
        let driven = driven_here();
        self.set_claim(driven.map(|driven| driven.claim), now);
        self.set_leaves_silently(driven.is_some_and(|driven| driven.leaves_silently));
    }

    #[inline]
    fn measure_end(
        &self,
        epoch: u64,
        started: Option<clock::Nanos>,
        wanted: bool,
        name: &dyn Fn() -> Option<&'static str>,
    ) {
        let ended = clock::now();
        // A long span on a thread that drives nothing holds nobody up.
        let took = match started {
            Some(started) if self.claims_something() => ended.0.saturating_sub(started.0),
            _ => NOT_COUNTED,
        };
        let counted = took != NOT_COUNTED;
        #[cfg(feature = "metrics")]
        if counted {
            self.polls.note(name(), took);
        }
        if wanted || counted && took >= LONG_POLL_NANOS.load(Ordering::Relaxed) {
            let poll = LongPoll {
                epoch,
                started,
                ended,
                name: 0,
            };
            self.keep(poll, name);
        }
    }

    #[cold]
    #[inline(never)]
    fn keep(&self, poll: LongPoll, name: &dyn Fn() -> Option<&'static str>) {
        let epoch = poll.epoch;
        self.keep_long_poll(poll);
        // Only now: to give a name a number may allocate, and the record is there already.
        if let Some(name) = name() {
            self.name_long_poll(epoch, names::number(names::Name::Text(name)));
        }
    }
}

/// The length of a poll whose start is not known, or whose thread drives nothing.
const NOT_COUNTED: u64 = u64::MAX;

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
