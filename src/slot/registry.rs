//! The list of all slots: one per thread that ever made a mark, claimed and released, never freed.
//!
//! *Runs on:* a thread's first mark and its exit; the watchdog walks the list, and whoever wants all workers'
//! stacks.
//! *Here:* no lock that a reader could wait for. The list only grows at its end, so walking it needs no
//! protection; its length is the largest number of threads that ever held slots at one time.

use super::line::{Line, LongPoll};
use super::timing::Pace;
use crate::clock::Nanos;
use crate::sync::{AtomicU32, AtomicU64, Ordering, const_unless_loom};
use parking_lot::Mutex;
use std::sync::OnceLock;

/// A thread's line and what is known of the thread.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) line: Line,
    pub(crate) pace: Pace,
    /// How long its timed polls took.
    #[cfg(feature = "metrics")]
    pub(crate) polls: super::polls::PollTimes,
    /// Odd while a thread owns the slot; counts its owners.
    tenancy: AtomicU64,
    tid: AtomicU32,
    /// The bounds of its stack, zeros if they are not known.
    stack: [AtomicU64; 2],
    /// Where its thread-local way to this slot lies.
    anchor: AtomicU64,
    claim: AtomicU64,
    /// When the claim was last made: the newer of two claims is the truer.
    claimed_at: AtomicU64,
    /// How often the owner was between two polls for certain.
    loops: AtomicU64,
    /// 1 if the runtime's own hooks mark every poll on this thread.
    all_polls: AtomicU32,
    /// 1 if the owner stops driving a worker without anything to show it.
    leaves_silently: AtomicU32,
    /// Locked by the owner when it takes the slot, and by the reporter; otherwise, by the owner after a
    /// long poll and by the watchdog, only with `try_lock`.
    about: Mutex<About>,
    next: OnceLock<&'static Slot>,
}

#[derive(Debug)]
struct About {
    thread_name: String,
    long_polls: Vec<LongPoll>,
}

/// The runtime and worker that a thread says it drives.
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
    /// One word: zero for "drives nothing", else the runtime and the worker plus one.
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

impl Slot {
    const_unless_loom! {
        /// A slot already owned by the calling thread.
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
            }
        }
    }

    fn try_take(&self) -> bool {
        let tenancy = self.tenancy.load(Ordering::Relaxed);
        tenancy % 2 == 0
            && self
                .tenancy
                // Acquire: pairs with the Release in `release`: the last owner's stores come before ours.
                .compare_exchange(tenancy, tenancy + 1, Ordering::Acquire, Ordering::Relaxed)
                .is_ok()
    }

    /// Says which thread this is. The owner's first act.
    pub(crate) fn introduce(
        &self,
        tid: u32,
        stack: (usize, usize),
        anchor: u64,
        thread_name: &str,
    ) {
        self.tid.store(tid, Ordering::Relaxed);
        // Relaxed: whoever reads it asks for the tenancy before and after.
        self.anchor.store(anchor, Ordering::Relaxed);
        // Relaxed: read by the signal handler on this very thread.
        self.stack[0].store(stack.0 as u64, Ordering::Relaxed);
        self.stack[1].store(stack.1 as u64, Ordering::Relaxed);
        let mut about = self.about.lock();
        about.long_polls.clear();
        about.thread_name.clear();
        about.thread_name.push_str(thread_name);
    }

    /// Gives the slot back. The thread makes no mark after this.
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

    /// Says what the owner drives at `now`.
    pub(crate) fn set_claim(&self, claim: Option<Claim>, now: Nanos) {
        self.claimed_at.store(now.0, Ordering::Relaxed);
        // Release: pairs with the Acquire in `claim`.
        self.claim.store(Claim::pack(claim), Ordering::Release);
    }

    /// What the owner last said it drives, and when.
    pub(crate) fn claim(&self) -> Option<(Claim, Nanos)> {
        let claim = Claim::unpack(self.claim.load(Ordering::Acquire))?;
        Some((claim, Nanos(self.claimed_at.load(Ordering::Relaxed))))
    }

    /// Whether the owner last said that it drives something …
    #[inline]
    pub(crate) fn claims_something(&self) -> bool {
        // Relaxed: for the owner.
        self.claim.load(Ordering::Relaxed) & WORKER_MASK != 0
    }

    /// … and that it is the worker with this index, of whatever runtime.
    #[inline]
    pub(crate) fn claims_worker(&self, worker: usize) -> bool {
        self.claim.load(Ordering::Relaxed) & WORKER_MASK == worker as u64 + 1
    }

    /// Says whether the owner stops driving a worker without anything to show it.
    pub(crate) fn set_leaves_silently(&self, silently: bool) {
        // Relaxed: only the owner reads it.
        self.leaves_silently
            .store(u32::from(silently), Ordering::Relaxed);
    }

    /// Whether it does.
    pub(crate) fn leaves_silently(&self) -> bool {
        self.leaves_silently.load(Ordering::Relaxed) != 0
    }

    /// Which owner this is; odd while there is one.
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

    /// The address of the owner's thread-local way to this slot: other thread-locals of the program lie a
    /// fixed way from it. Of use only while the tenancy stays the same.
    #[allow(dead_code)] // Where no turns are counted.
    pub(crate) fn anchor(&self) -> u64 {
        self.anchor.load(Ordering::Relaxed)
    }

    /// The owner's name. Takes a lock that the owner may hold for some instructions.
    pub(crate) fn thread_name(&self) -> String {
        self.about.lock().thread_name.clone()
    }

    /// Keeps a poll that ended beyond the threshold; the watchdog asks whether it knew.
    pub(crate) fn keep_long_poll(&self, poll: LongPoll) {
        // A worker never waits for us: while the lock is taken the record is lost, and the end of the poll
        // is then known to within a tick.
        let Some(mut about) = self.about.try_lock() else {
            return;
        };
        let long_polls = &mut about.long_polls;
        if long_polls.len() == LONG_POLLS {
            long_polls.remove(0);
        }
        long_polls.push(poll);
    }

    /// Names the long poll kept last.
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

    /// Hands over the long polls. Never waits: what is locked now is taken at the next tick.
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

    /// Says that the runtime's own hooks mark every poll on this thread.
    pub(crate) fn mark_all_polls_seen(&self) {
        self.all_polls.store(1, Ordering::Relaxed);
    }

    /// Whether they do.
    pub(crate) fn are_all_polls_seen(&self) -> bool {
        self.all_polls.load(Ordering::Relaxed) != 0
    }

    /// How often the owner was between two polls for certain.
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
