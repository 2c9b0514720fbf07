//! The stack of a thread that sleeps in a system call, copied without a signal.
//!
//! *Runs on:* a thread that requests a stack; `stall-explainer`, where the copy is not enough.
//! *Must not:* touch memory of the other thread itself: only the kernel may read it. Nor wait, but
//! for [`RawStack::by_signal`].
//!
//! The kernel shows where such a thread sleeps, and where its stack begins. It does not show the
//! frame pointer, which some stacks cannot be followed without. `stall-explainer` signals such a
//! thread, if it has slept ever since. Its call is noted, and threads that sleep there later are
//! signalled at once.

use super::letter::Letter;
use super::{Addressee, POOL, RawStack, Request};
use crate::clock;
use crate::os::{self, ThreadFiles, ThreadState};
use crate::report::NoStack;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// The longest wait for the answer of a thread that is asleep: a signal wakes it at once, and a
/// busy machine gives it a CPU within some milliseconds.
const ANSWERS_WITHIN: Duration = Duration::from_millis(20);

/// The calls that need a signal, by the instruction after each; zero is none. There are few: a call
/// is made by a function of the C library.
static NEED_SIGNAL: [AtomicU64; 32] = [const { AtomicU64::new(0) }; 32];
/// The number of calls noted so far. A new one takes the place of the oldest.
static NOTED: AtomicUsize = AtomicUsize::new(0);

/// Notes that a stack cannot be followed from this call without a signal.
fn note_need_of_signal(pc: u64) {
    if !needs_signal(pc) {
        // Relaxed, here and below: a thread that sees it late copies one stack more for nothing.
        let index = NOTED.fetch_add(1, Ordering::Relaxed) % NEED_SIGNAL.len();
        NEED_SIGNAL[index].store(pc, Ordering::Relaxed);
    }
}

/// Whether a stack could not be followed from this call without a signal.
pub(crate) fn needs_signal(pc: u64) -> bool {
    let mut noted = NEED_SIGNAL.iter();
    noted.any(|noted| noted.load(Ordering::Relaxed) == pc)
}

impl Request {
    /// Copies the stack of a thread that sleeps in a call. `None` if it does not, or if that cannot
    /// be seen; if no buffer is free; and, unless it `is_only_way`, if the call needs a signal.
    ///
    /// # Cost
    ///
    /// It opens two files, and reads the stack page by page: about 10 µs for a small one.
    pub(super) fn of_sleeper(addressee: Addressee, is_only_way: bool) -> Option<Request> {
        let mut files = ThreadFiles::open(addressee.slot.tid())?;
        let seen = files.look()?;
        let ThreadState::Asleep(Some(call)) = seen.state else {
            return None;
        };
        if needs_signal(call.pc) && !is_only_way {
            return None;
        }
        let mut is_asleep = true;
        POOL.iter().find_map(|mailbox| {
            let round = mailbox.fill(|letter: &mut Letter| {
                if is_asleep {
                    letter.fill_asleep(addressee, call, seen);
                    // A thread that was put on a CPU as often as before has slept all the time.
                    is_asleep = !letter.stack().is_empty() && files.look() == Some(seen);
                }
                is_asleep
            })?;
            Some(Request { mailbox, round })
        })
    }
}

impl RawStack {
    /// Whether the thread has copied itself, on a signal. If not, its frame pointer and its link
    /// register are not known, and are zero.
    pub(crate) fn is_by_signal(&self) -> bool {
        self.read(|letter| letter.asleep.is_none())
    }

    /// Has a thread that has slept since this copy was made copy itself, since the copy cannot be
    /// followed. Waits for the thread: only `stall-explainer` may call it.
    ///
    /// # Errors
    ///
    /// The thread must not be signalled, has woken, or does not take the signal.
    ///
    /// # Cost
    ///
    /// About 0.1 ms, and 20 ms for a thread that does not answer.
    pub(crate) fn by_signal(self, signal: Result<i32, NoStack>) -> Result<RawStack, NoStack> {
        let letter = self.read(|letter| letter.addressee.zip(letter.asleep));
        let (addressee, seen) = letter.ok_or(NoStack::MovedOn)?;
        let (signal, place, epoch) = (signal?, self.position(), self.epoch());
        drop(self);
        note_need_of_signal(place.0);
        let tid = addressee.slot.tid();
        if ThreadFiles::open(tid).and_then(|mut files| files.look()) != Some(seen) {
            return Err(NoStack::MovedOn);
        }
        let deadline = clock::now().plus(ANSWERS_WITHIN);
        match Request::signal(addressee, signal)?.by(deadline) {
            Ok(stack) if stack.is_at(place) && stack.epoch() == epoch => Ok(stack),
            Ok(_) => Err(NoStack::MovedOn),
            Err(_) if os::is_signal_blocked(tid, signal) => Err(NoStack::SignalBlocked),
            Err(_) => Err(NoStack::NotAnswered),
        }
    }

    /// Whether the thread was in the call with this next instruction and stack pointer. A call that
    /// is to be made again has its own instruction for the next.
    fn is_at(&self, (after, sp): (u64, u64)) -> bool {
        const LONGEST_CALL: u64 = 4;
        let (pc, own_sp) = self.position();
        self.is_answered() && own_sp == sp && after.wrapping_sub(pc) <= LONGEST_CALL
    }
}

#[cfg(test)]
mod tests {
    use super::super::{DEFAULT_SIGNAL, install};
    use super::*;
    use crate::slot::{self, Slot};
    use std::io::Read as _;
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc;

    /// Has a thread read what never comes, and looks at it.
    fn with_sleeper<R>(look: impl FnOnce(&'static Slot) -> R) -> R {
        let (mut here, there) = UnixStream::pair().unwrap();
        let (send, slot) = mpsc::channel();
        let reads = std::thread::spawn(move || {
            send.send(slot::mine().expect("a slot")).unwrap();
            here.read_exact(&mut [0; 1]).ok();
        });
        let seen = look(slot.recv().unwrap());
        drop(there);
        reads.join().unwrap();
        seen
    }

    fn addressee(slot: &'static Slot) -> Addressee {
        let tenancy = slot.tenancy();
        Addressee { slot, tenancy }
    }

    /// Copies the stack once the thread is asleep.
    fn copied(slot: &'static Slot) -> RawStack {
        loop {
            if let Some(request) = Request::of_sleeper(addressee(slot), true) {
                assert!(request.is_full() && !request.is_answered());
                return request.collect().expect("it is full");
            }
            std::thread::yield_now();
        }
    }

    #[test]
    fn the_stack_of_a_sleeper_is_copied_whole() {
        with_sleeper(|slot| {
            let stack = copied(slot);
            assert!(!stack.is_by_signal());
            assert_eq!(stack.registers().fp, 0);
            let (_, sp) = stack.position();
            let (low, high) = slot.stack();
            assert!((low..high).contains(&(sp as usize)));
            let words = stack.with_words(<[u64]>::len);
            assert_eq!(words, (high - (sp as usize & !7)) / 8);
        });
    }

    #[test]
    fn a_sleeper_that_may_be_signalled_copies_itself_and_later_ones_do_so_at_once() {
        install(DEFAULT_SIGNAL).unwrap();
        with_sleeper(|slot| {
            let copy = copied(slot);
            let (place, words) = (copy.position(), copy.with_words(<[u64]>::to_vec));
            let stack = copy.by_signal(Ok(DEFAULT_SIGNAL)).unwrap();
            assert!(stack.is_by_signal() && stack.is_at(place));
            // The call is the same, and so is the stack above it.
            assert!(stack.with_words(|again| again == words));
            assert!(needs_signal(place.0));
            assert!(Request::of_sleeper(addressee(slot), false).is_none());
            assert!(!copied(slot).is_by_signal(), "where it is the only way");
        });
    }

    #[test]
    fn a_sleeper_that_has_woken_is_left_alone() {
        let stack = with_sleeper(copied);
        let again = stack.by_signal(Ok(DEFAULT_SIGNAL));
        assert_eq!(again.err(), Some(NoStack::MovedOn));
    }

    #[test]
    fn a_thread_that_computes_is_not_copied() {
        let slot = slot::mine().expect("a slot");
        assert!(Request::of_sleeper(addressee(slot), true).is_none());
    }
}
