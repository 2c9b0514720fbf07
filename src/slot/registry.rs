//! The list of all slots: one per thread that ever made a mark, taken and released, never freed.
//!
//! *Runs on:* worker threads, at a thread's first mark and at its exit; `stall-watchdog` and the
//! thread that asks for the stacks of all workers walk the list.
//! *Must not:* take a lock that a reader could wait for. The list only grows at its end, so a walk
//! needs no protection. Its length is the largest number of threads that ever held slots at one
//! time.

use super::line::{Line, LongPoll};
use super::timing::Pace;
use crate::clock::Nanos;
use crate::sync::{AtomicU32, AtomicU64, Ordering, const_unless_loom};
use parking_lot::Mutex;
use std::sync::OnceLock;

/// A thread's line, and the facts about the thread.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) line: Line,
    pub(crate) pace: Pace,
    /// The durations of its timed polls.
    #[cfg(feature = "metrics")]
    pub(crate) polls: super::polls::PollTimes,
    /// Odd while a thread owns the slot; counts its owners.
    tenancy: AtomicU64,
    tid: AtomicU32,
    /// The bounds of its stack, zeros if they are not known.
    stack: [AtomicU64; 2],
    /// The address of the owner's thread-local pointer to this slot.
    anchor: AtomicU64,
    claim: AtomicU64,
    /// The time of the claim: of two claims to a worker, the newer one counts.
    claimed_at: AtomicU64,
    /// How often the owner was proven to be between two polls.
    loops: AtomicU64,
    /// 1 if the runtime's own hooks mark every poll on this thread.
    all_polls: AtomicU32,
    /// 1 if the owner can stop driving a worker without any sign of it.
    leaves_silently: AtomicU32,
    /// The owner locks it when it takes the slot, and the reporter when it reads the name. After a
    /// long poll the owner only tries the lock, and so does the watchdog.
    about: Mutex<About>,
    next: OnceLock<&'static Slot>,
    /// 1 if the slot is among those that have claimed a worker.
    is_claimer: AtomicU32,
    next_claimer: OnceLock<&'static Slot>,
}

#[derive(Debug)]
struct About {
    thread_name: String,
    long_polls: Vec<LongPoll>,
}

/// A slot, and the number of its owner.
pub(crate) type Thread = (usize, u64);

/// Names one marked poll for as long as the process lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PollKey {
    pub(crate) thread: Thread,
    pub(crate) epoch: u64,
}

/// The runtime and the worker that a thread claims to drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Claim {
    pub(crate) runtime: u64,
    pub(crate) worker: usize,
}

const WORKER_BITS: u32 = 20;
const WORKER_MASK: u64 = (1 << WORKER_BITS) - 1;

/// Long polls kept between two ticks.
const LONG_POLLS: usize = 8;

impl Claim {
    /// Packs a claim into one word: zero for none, else the runtime and the worker plus one.
    fn pack(claim: Option<Claim>) -> u64 {
        claim.map_or(0, |claim| {
            let worker = (claim.worker as u64 + 1).min(WORKER_MASK);
            claim.runtime << WORKER_BITS | worker
        })
    }

    fn unpack(word: u64) -> Option<Claim> {
        let worker = word & WORKER_MASK;
        (worker != 0).then(|| Claim {
            runtime: word >> WORKER_BITS,
            worker: worker as usize - 1,
        })
    }
}

static FIRST: OnceLock<&'static Slot> = OnceLock::new();

/// The first slot that has claimed a worker.
static FIRST_CLAIMER: OnceLock<&'static Slot> = OnceLock::new();

impl Slot {
    const_unless_loom! {
        /// A slot that the calling thread owns.
        pub(crate) fn owned() -> Slot {
            Slot {
                line: Line::new(),
                pace: Pace::new(),
                #[cfg(feature = "metrics")]
                polls: super::polls::PollTimes::new(),
                tenancy: AtomicU64::new(1),
                tid: AtomicU32::new(0),
                stack: [AtomicU64::new(0), AtomicU64::new(0)],
                anchor: AtomicU64::new(0),
                claim: AtomicU64::new(0),
                claimed_at: AtomicU64::new(0),
                loops: AtomicU64::new(0),
                all_polls: AtomicU32::new(0),
                leaves_silently: AtomicU32::new(0),
                about: Mutex::new(About {
                    thread_name: String::new(),
                    long_polls: Vec::new(),
                }),
                next: OnceLock::new(),
                is_claimer: AtomicU32::new(0),
                next_claimer: OnceLock::new(),
            }
        }
    }

    fn try_take(&self) -> bool {
        let tenancy = self.tenancy.load(Ordering::Relaxed);
        tenancy % 2 == 0
            && self
                .tenancy
                // Acquire: pairs with the Release in `release`: the stores of the last owner come
                // first.
                .compare_exchange(tenancy, tenancy + 1, Ordering::Acquire, Ordering::Relaxed)
                .is_ok()
    }

    /// Records which thread the owner is. Its first call after taking the slot.
    pub(crate) fn introduce(
        &self,
        tid: u32,
        stack: (usize, usize),
        anchor: u64,
        thread_name: &str,
    ) {
        self.tid.store(tid, Ordering::Relaxed);
        // Relaxed: a reader checks the tenancy before and after.
        self.anchor.store(anchor, Ordering::Relaxed);
        // Relaxed: the signal handler reads it on this very thread. Another thread that copies the
        // stack compares the tenancy, and lets the kernel read.
        self.stack[0].store(stack.0 as u64, Ordering::Relaxed);
        self.stack[1].store(stack.1 as u64, Ordering::Relaxed);
        let mut about = self.about.lock();
        about.long_polls.clear();
        about.thread_name.clear();
        about.thread_name.push_str(thread_name);
    }

    /// Releases the slot. The thread makes no mark after this.
    pub(crate) fn release(&self) {
        self.line.reset();
        self.claim.store(0, Ordering::Relaxed);
        self.tid.store(0, Ordering::Relaxed);
        self.all_polls.store(0, Ordering::Relaxed);
        self.leaves_silently.store(0, Ordering::Relaxed);
        let tenancy = self.tenancy.load(Ordering::Relaxed);
        // Release: pairs with the Acquire in `try_take` and in `tenancy`.
        self.tenancy.store(tenancy + 1, Ordering::Release);
    }

    /// Sets what the owner drives at `now`.
    pub(crate) fn set_claim(&'static self, claim: Option<Claim>, now: Nanos) {
        if claim.is_some() {
            self.join_claimers();
        }
        // No claim while its time changes: a reader never sees one claim with the time of another.
        self.claim.store(0, Ordering::Relaxed);
        // Release: pairs with the Acquire in `claim`. A reader of this time sees no older claim.
        self.claimed_at.store(now.0, Ordering::Release);
        // Release: pairs with the Acquire in `claim`.
        self.claim.store(Claim::pack(claim), Ordering::Release);
    }

    /// The owner's last claim, and its time. `None` also while it changes.
    pub(crate) fn claim(&self) -> Option<(Claim, Nanos)> {
        // Acquire, both: pair with the two Releases in `set_claim`.
        let word = self.claim.load(Ordering::Acquire);
        let at = Nanos(self.claimed_at.load(Ordering::Acquire));
        // Relaxed: the Acquire above orders it.
        let is_same = self.claim.load(Ordering::Relaxed) == word;
        Claim::unpack(word)
            .filter(|_| is_same)
            .map(|claim| (claim, at))
    }

    /// Adds the slot to those that the watchdog visits each tick, once for ever. A program may have
    /// thousands of threads with a mark; few of them are workers.
    fn join_claimers(&'static self) {
        // Relaxed: only owners write it, one after another.
        if self.is_claimer.swap(1, Ordering::Relaxed) == 1 {
            return;
        }
        let mut link = &FIRST_CLAIMER;
        while link.set(self).is_err() {
            match link.get() {
                Some(claimer) => link = &claimer.next_claimer,
                None => return,
            }
        }
    }

    /// Whether the owner claims any worker.
    #[inline]
    pub(crate) fn claims_something(&self) -> bool {
        // Relaxed: for the owner.
        self.claim.load(Ordering::Relaxed) & WORKER_MASK != 0
    }

    /// Whether the owner claims the worker with this index, of any runtime.
    #[inline]
    pub(crate) fn claims_worker(&self, worker: usize) -> bool {
        self.claim.load(Ordering::Relaxed) & WORKER_MASK == worker as u64 + 1
    }

    /// Sets whether the owner can stop driving a worker without any sign of it.
    pub(crate) fn set_leaves_silently(&self, silently: bool) {
        // Relaxed: only the owner reads it.
        self.leaves_silently
            .store(u32::from(silently), Ordering::Relaxed);
    }

    /// Whether the owner can stop driving a worker without any sign of it.
    pub(crate) fn leaves_silently(&self) -> bool {
        self.leaves_silently.load(Ordering::Relaxed) != 0
    }

    /// The poll that goes on, for its own thread. `None` without a mark.
    #[cfg_attr(not(feature = "tower"), allow(dead_code))]
    pub(super) fn own_poll(&self) -> Option<PollKey> {
        let epoch = self.line.observe().epoch;
        let thread = self.thread(self.tenancy());
        (epoch % 2 == 1).then_some(PollKey { thread, epoch })
    }

    /// The thread that was the slot's owner at this count of owners.
    pub(crate) fn thread(&self, tenancy: u64) -> Thread {
        (std::ptr::from_ref(self).addr(), tenancy)
    }

    /// The count of owners; odd while there is one.
    pub(crate) fn tenancy(&self) -> u64 {
        self.tenancy.load(Ordering::Acquire)
    }

    /// The kernel's number for the owner, 0 if unknown.
    pub(crate) fn tid(&self) -> u32 {
        self.tid.load(Ordering::Relaxed)
    }

    /// The bounds of the owner's stack, lowest address first.
    #[allow(dead_code)] // Where no stacks are taken.
    pub(crate) fn stack(&self) -> (usize, usize) {
        let bound = |bound: &AtomicU64| bound.load(Ordering::Relaxed) as usize;
        (bound(&self.stack[0]), bound(&self.stack[1]))
    }

    /// The address of the owner's thread-local pointer to this slot. The program's other
    /// thread-locals lie at a constant distance from it. Valid only while the tenancy stays the
    /// same.
    #[allow(dead_code)] // Where no turns are counted.
    pub(crate) fn anchor(&self) -> u64 {
        self.anchor.load(Ordering::Relaxed)
    }

    /// The owner's name. Takes a lock that the owner may hold for some instructions.
    pub(crate) fn thread_name(&self) -> String {
        self.about.lock().thread_name.clone()
    }

    /// Keeps a poll that ended beyond the threshold, or whose end was asked for, until the watchdog
    /// takes it.
    pub(crate) fn keep_long_poll(&self, poll: LongPoll) {
        // A worker does not wait: while the lock is taken the record is lost, and the end of the
        // poll is then known to within a tick.
        let Some(mut about) = self.about.try_lock() else {
            return;
        };
        let long_polls = &mut about.long_polls;
        if long_polls.len() == LONG_POLLS {
            long_polls.remove(0);
        }
        long_polls.push(poll);
    }

    /// Sets the name of the long poll kept last, if it has this epoch.
    pub(crate) fn name_long_poll(&self, epoch: u64, name: u32) {
        let Some(mut about) = self.about.try_lock() else {
            return;
        };
        if let Some(poll) = about.long_polls.last_mut() {
            if poll.epoch == epoch {
                poll.name = name;
            }
        }
    }

    /// Takes the long polls. Never waits: if the lock is taken, they follow at the next tick.
    pub(crate) fn take_long_polls(&self) -> Vec<LongPoll> {
        match self.about.try_lock() {
            Some(mut about) => std::mem::take(&mut about.long_polls),
            None => Vec::new(),
        }
    }

    /// Closes marks that outlived their poll. Only the owner calls this, between polls.
    pub(crate) fn reset_marks(&self) {
        self.line.reset();
        let loops = self.loops.load(Ordering::Relaxed);
        self.loops.store(loops + 1, Ordering::Relaxed);
    }

    /// Records that the runtime's own hooks mark every poll on this thread.
    pub(crate) fn mark_all_polls_seen(&self) {
        self.all_polls.store(1, Ordering::Relaxed);
    }

    /// Whether the runtime's own hooks mark every poll on this thread.
    pub(crate) fn are_all_polls_seen(&self) -> bool {
        self.all_polls.load(Ordering::Relaxed) != 0
    }

    /// How often the owner was proven to be between two polls.
    pub(crate) fn loops(&self) -> u64 {
        self.loops.load(Ordering::Relaxed)
    }
}

/// Takes a free slot, or adds one.
pub(crate) fn take() -> &'static Slot {
    if let Some(slot) = all().find(|slot| slot.try_take()) {
        return slot;
    }
    let mut new = None;
    let mut link = &FIRST;
    loop {
        let slot = link.get_or_init(|| {
            let slot: &'static Slot = Box::leak(Box::new(Slot::owned()));
            new = Some(slot);
            slot
        });
        match new {
            Some(slot) => return slot,
            None => link = &slot.next,
        }
    }
}

/// The slots that have claimed a worker, by this owner or an earlier one.
pub(crate) fn claimers() -> impl Iterator<Item = &'static Slot> {
    let first = FIRST_CLAIMER.get().copied();
    std::iter::successors(first, |slot| slot.next_claimer.get().copied())
}

/// All slots, owned or not.
pub(crate) fn all() -> impl Iterator<Item = &'static Slot> {
    std::iter::successors(FIRST.get().copied(), |slot| slot.next.get().copied())
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::entry::Mark;
    use super::*;

    #[test]
    fn claims_survive_packing() {
        for claim in [
            None,
            Some(Claim {
                runtime: 1,
                worker: 0,
            }),
            Some(Claim {
                runtime: 1 << 40,
                worker: 511,
            }),
        ] {
            assert_eq!(Claim::unpack(Claim::pack(claim)), claim);
        }
    }

    #[test]
    fn a_released_slot_is_taken_again_with_its_epoch_going_on() {
        let slot = Slot::owned();
        slot.line.open_slowly(Mark::NAME, 1);
        slot.release();
        assert_eq!(slot.line.observe().epoch, 2, "release closes the open poll");
        assert!(slot.try_take());
        assert!(!slot.try_take(), "one owner at a time");
        assert_eq!(slot.line.observe().epoch, 2);
    }
}
