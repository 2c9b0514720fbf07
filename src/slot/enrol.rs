//! A thread's access to its own slot, and its claim there.
//!
//! *Runs on:* worker threads: `begin` and `end_quickly` inside every poll, the rest at the first
//! mark, on the slow path and at thread exit. `stall-watchdog` sets from which length on polls are
//! kept.
//! *Must not:* do more than one thread-local load to find the slot. Taking a slot allocates, once
//! per thread.

use super::entry::Mark;
use super::line::{Closed, LongPoll, Start, Step};
use super::names;
#[cfg(feature = "tower")]
use super::registry::PollKey;
use super::registry::{self, Claim, Slot};
use crate::clock::{self, Nanos};
use crate::os::StaticRef;
use crate::sync::Ordering;
use std::cell::Cell;
use std::hash::{Hash, Hasher};
use std::time::Duration;
use tokio::runtime::{Handle, RuntimeFlavor};

/// Returns the name of the mark that ends.
type NameOf<'a> = &'a dyn Fn() -> Option<&'static str>;

/// The slot for the marks of threads without one. Its gate is SLOW for ever, so no mark is ever
/// written to it, and a begin needs no test for a missing slot.
#[cfg(not(loom))]
static PLACEHOLDER: Slot = Slot::owned();

thread_local! {
    // Constant and without a destructor, so that access is a plain load.
    #[cfg(not(loom))]
    static MINE: Cell<StaticRef<Slot>> = const { Cell::new(StaticRef::new(&PLACEHOLDER)) };
    #[cfg(loom)]
    static MINE: Cell<StaticRef<Slot>> = Cell::new(StaticRef::new(placeholder()));
    static EXITED: Cell<bool> = const { Cell::new(false) };
    static AT_EXIT: ReleaseAtExit = const { ReleaseAtExit };
}

#[cfg(not(loom))]
fn placeholder() -> &'static Slot {
    &PLACEHOLDER
}

#[cfg(loom)]
fn placeholder() -> &'static Slot {
    static PLACEHOLDER: std::sync::OnceLock<Slot> = std::sync::OnceLock::new();
    PLACEHOLDER.get_or_init(Slot::owned)
}

struct ReleaseAtExit;

impl Drop for ReleaseAtExit {
    fn drop(&mut self) {
        EXITED.set(true);
        let slot = MINE.replace(StaticRef::new(placeholder())).get();
        if !std::ptr::eq(slot, placeholder()) {
            slot.release();
        }
    }
}

/// The calling thread's slot. `None` only while the thread is being torn down.
pub(crate) fn mine() -> Option<&'static Slot> {
    let slot = MINE.get().get();
    if std::ptr::eq(slot, placeholder()) {
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
    MINE.set(StaticRef::new(slot));
    AT_EXIT.with(|_| ());
    Some(slot)
}

/// The address of the calling thread's thread-local pointer to its slot.
pub(crate) fn anchor() -> u64 {
    MINE.with(|mine| std::ptr::from_ref(mine).addr() as u64)
}

/// Tokio's number for the task that the calling thread polls; 0 outside of one.
pub(crate) fn own_task() -> u64 {
    tokio::task::try_id().map_or(0, |id| raw_id(&id))
}

/// The marked poll that the calling thread is in.
#[cfg(feature = "tower")]
#[inline]
pub(crate) fn own_poll() -> Option<PollKey> {
    MINE.get().get().own_poll()
}

/// Begins a mark on the calling thread; returns the slot that holds it. [`end_quickly`] ends it.
#[inline]
pub(crate) fn begin(mark: Mark, id: u64) -> &'static Slot {
    let slot = MINE.get().get();
    match slot.line.open_quickly(mark, id) {
        Step::Done => slot,
        Step::Declined => begin_slowly(slot, mark, id),
    }
}

/// Ends the innermost mark of the calling thread on the quick path. Otherwise returns the slot, on
/// which [`Slot::end_slowly`] is next. These are two steps so that the arguments of the second are
/// not computed before the first.
#[inline]
pub(crate) fn end_quickly() -> Option<&'static Slot> {
    let slot = MINE.get().get();
    match slot.line.close_quickly() {
        Step::Done => None,
        Step::Declined => Some(slot),
    }
}

/// A begin on the slow path: mostly a mark inside a poll. Cold and not inlined, like the next ones,
/// to keep the quick path short.
#[cold]
#[inline(never)]
fn begin_slowly(slot: &'static Slot, mark: Mark, id: u64) -> &'static Slot {
    match slot.line.push(mark, id) {
        Step::Done => slot,
        Step::Declined => open_slowly(mark, id),
    }
}

/// Opens a poll on the slow path, such as the first one of a thread.
#[cold]
#[inline(never)]
fn open_slowly(mark: Mark, id: u64) -> &'static Slot {
    let Some(slot) = mine() else {
        return placeholder();
    };
    slot.line.open_slowly(mark, id);
    slot.check_claim();
    slot
}

impl Slot {
    /// Ends the innermost mark on the slow path. `name` returns its name; it is called if the mark
    /// closed a poll whose end is measured.
    #[cold]
    #[inline(never)]
    pub(crate) fn end_slowly(&self, name: NameOf<'_>) {
        if self.line.pop() == Step::Declined {
            self.close_slowly(name);
        }
    }

    /// Ends the innermost mark on the slow path, for a mark that is a name: the slot has it.
    #[cold]
    #[inline(never)]
    pub(crate) fn end_name_slowly(&self) {
        if self.line.pop() == Step::Declined {
            self.close_slowly(&|| self.line.outermost_name());
        }
    }

    #[cold]
    #[inline(never)]
    fn close_slowly(&self, name: NameOf<'_>) {
        if let Closed::Measure {
            epoch,
            started,
            wanted,
        } = self.line.close()
        {
            self.measure_end(epoch, started, wanted, name);
        }
    }

    /// Ends a mark of a poll whose length is not counted.
    #[cfg_attr(not(feature = "testing"), allow(dead_code))]
    pub(crate) fn end_uncounted(&self) {
        if self.line.close_quickly() == Step::Declined && self.line.pop() == Step::Declined {
            self.line.close();
        }
    }

    /// Renews the claim if it may have changed, and starts to time the poll if it is its turn.
    #[inline]
    fn check_claim(&'static self) {
        let now = clock::now();
        // Asking tokio for the runtime as well costs ten times as much, and a thread that works for
        // one multi-thread runtime never works for another.
        let is_still = match tokio::runtime::worker_index() {
            Some(worker) => self.claims_worker(worker),
            None => !self.claims_something(),
        };
        if self.line.take_claim_request() || self.leaves_silently() || !is_still {
            self.ask_tokio(now);
        }
        let choice = self.pace.choose(now);
        if choice.timed {
            let start = Start {
                at: now,
                task: self.task_of_poll(),
            };
            self.line.stamp_start(start);
        }
        // A thread leaves a `current_thread` runtime without any sign, so there every poll checks
        // again. Elsewhere the worker's counters change when its thread leaves it.
        self.line
            .keep_slow(choice.next_too || self.leaves_silently());
    }

    /// Renews the claim between two polls.
    fn renew_claim(&'static self) {
        self.ask_tokio(clock::now());
        if self.leaves_silently() {
            self.line.keep_slow(true);
        }
    }

    #[cold]
    #[inline(never)]
    fn ask_tokio(&'static self, now: Nanos) {
        let driven = driven_here();
        self.set_claim(driven.map(|driven| driven.claim), now);
        self.set_leaves_silently(driven.is_some_and(|driven| driven.leaves_silently));
    }

    #[inline]
    fn measure_end(&self, epoch: u64, started: Option<Start>, wanted: bool, name: NameOf<'_>) {
        let ended = clock::now();
        // A span guard held across an `.await` may end in another task's poll.
        let is_same = |start: &Start| start.task == self.task_of_poll();
        let started = started.filter(is_same).map(|start| start.at);
        let took = self.took(started, ended);
        let counted = took != NOT_COUNTED;
        #[cfg(feature = "metrics")]
        if counted {
            self.polls.note(name(), took);
        }
        if wanted || counted && took >= LONG_POLL_NANOS.load(Ordering::Relaxed) {
            let poll = LongPoll {
                epoch,
                started,
                allowed_until: self.line.observe().allowed_until,
                ended,
                name: 0,
            };
            self.keep(poll, name);
        }
    }

    /// Tokio's number for the task whose poll is open, or was open last; 0 outside of one. The
    /// hooks around a poll are called when tokio does not know it.
    #[inline]
    fn task_of_poll(&self) -> u64 {
        self.line.outermost_task().unwrap_or_else(own_task)
    }

    /// How long a poll took in nanoseconds, or [`NOT_COUNTED`].
    #[inline]
    fn took(&self, started: Option<Nanos>, ended: Nanos) -> u64 {
        match started {
            // A long span on a thread that drives nothing holds no worker.
            Some(started) if self.claims_something() => ended.0.saturating_sub(started.0),
            _ => NOT_COUNTED,
        }
    }

    #[cold]
    #[inline(never)]
    fn keep(&self, poll: LongPoll, name: NameOf<'_>) {
        let epoch = poll.epoch;
        self.keep_long_poll(poll);
        // The name comes second: a new name's number allocates, and the record is kept already.
        if let Some(name) = name() {
            self.name_long_poll(epoch, names::number(names::Name::Text(name)));
        }
    }
}

/// The length of a poll whose start was not measured, or whose thread drives no worker.
const NOT_COUNTED: u64 = u64::MAX;

/// The length in nanoseconds from which on a poll is kept; the smallest threshold in force.
static LONG_POLL_NANOS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(u64::MAX);

/// Sets the length from which on a poll is kept; `None` keeps none.
pub(crate) fn keep_polls_longer_than(threshold: Option<Duration>) {
    let nanos = threshold.map_or(u64::MAX, |threshold| {
        u64::try_from(threshold.as_nanos()).unwrap_or(u64::MAX)
    });
    LONG_POLL_NANOS.store(nanos, Ordering::Relaxed);
}

/// Enrols the calling thread, and closes marks that leaked. The caller is between two polls. A span
/// guard held across an `.await` leaves its end on another thread.
pub(crate) fn reset_marks() {
    if let Some(slot) = mine() {
        slot.reset_marks();
        slot.renew_claim();
    }
}

/// The same, also after a fork.
///
/// # Cost
///
/// A system call more.
pub(crate) fn reset_marks_in_this_process() {
    mine_in_this_process();
    reset_marks();
}

/// Enrols the calling thread if it drives a worker; returns the number of the worker's runtime.
pub(crate) fn enrol() -> Option<u64> {
    let claim = driven_here()?.claim;
    mine_in_this_process()?.renew_claim();
    Some(claim.runtime)
}

/// The calling thread's slot. After a fork the thread has another number, so it takes a new slot.
/// The old one is left alone for ever: a thread that exists no more may hold its lock.
fn mine_in_this_process() -> Option<&'static Slot> {
    let slot = mine()?;
    if slot.tid() == crate::os::current_tid() {
        return Some(slot);
    }
    slot.set_claim(None, clock::now());
    MINE.set(StaticRef::new(placeholder()));
    take()
}

/// The calling thread's worker, as tokio reports it.
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

/// The number inside one of tokio's ids. They are opaque but for `Display`, which would allocate,
/// and `Hash`, which passes the number to the hasher.
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

    /// As after a fork, in which another thread may have held the slot's lock for ever.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_thread_with_another_number_takes_a_new_slot_and_leaves_the_old_one() {
        let thread = std::thread::spawn(|| {
            let old = mine().expect("a slot");
            assert!(
                std::ptr::eq(mine_in_this_process().unwrap(), old),
                "its own"
            );
            let tenancy = old.tenancy();
            old.introduce(old.tid() + 1, (0, 0), 0, "of the parent");
            let new = mine_in_this_process().expect("a slot");
            assert!(!std::ptr::eq(new, old));
            assert_eq!(new.tid(), crate::os::current_tid());
            assert_eq!((old.tenancy(), old.claim()), (tenancy, None));
        });
        thread.join().unwrap();
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
