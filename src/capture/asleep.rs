//! The stack of a thread that sleeps in a system call, copied without a signal.
//!
//! *Runs on:* a thread that requests a stack; `stall-explainer` notes the calls that need a signal.
//! *Must not:* wait, or touch memory of the other thread itself: only the kernel may read it.
//!
//! The kernel shows where such a thread sleeps, and where its stack begins. It does not show the
//! frame pointer, which some stacks cannot be followed without. The calls that such stacks were
//! made at are noted, and threads that sleep there are signalled from then on.

use super::letter::Letter;
use super::{Addressee, POOL, Request};
use crate::os::{Call, ThreadEvidence, ThreadFiles, ThreadState};
use crate::report::NoStack;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// The calls that need a signal, by the instruction after each; zero is none. There are few: a call
/// is made by a function of the C library.
static NEED_SIGNAL: [AtomicU64; 32] = [const { AtomicU64::new(0) }; 32];
/// The number of calls noted so far. A new one takes the place of the oldest.
static NOTED: AtomicUsize = AtomicUsize::new(0);

/// Notes that a stack cannot be followed from this call without a signal. Only `stall-explainer`
/// calls it.
pub(crate) fn note_need_of_signal(pc: u64) {
    if !needs_signal(pc) {
        // Relaxed: a thread that sees it late copies one stack more for nothing.
        let index = NOTED.fetch_add(1, Ordering::Relaxed) % NEED_SIGNAL.len();
        NEED_SIGNAL[index].store(pc, Ordering::Relaxed);
    }
}

/// Whether a stack could not be followed from this call without a signal.
pub(crate) fn needs_signal(pc: u64) -> bool {
    let mut noted = NEED_SIGNAL.iter();
    // Relaxed: as above.
    noted.any(|noted| noted.load(Ordering::Relaxed) == pc)
}

impl Request {
    /// Copies the stack of a thread that sleeps in a call. It is the only way for this reason;
    /// [`NoStack::NotYet`] if a signal is another one.
    ///
    /// # Errors
    ///
    /// The reason, if the thread does not sleep in a call that can be seen, if no buffer is free,
    /// or if a signal is better.
    ///
    /// # Cost
    ///
    /// It opens two files, and reads the stack page by page: about 30 µs.
    pub(crate) fn of_sleeper(addressee: Addressee, why: NoStack) -> Result<Request, NoStack> {
        let mut files = ThreadFiles::open(addressee.slot.tid()).ok_or(why)?;
        let seen = files.look().ok_or(why)?;
        let call = call_asleep_in(&seen).ok_or(why)?;
        if why == NoStack::NotYet && needs_signal(call.pc) {
            return Err(why);
        }
        let mut is_asleep = true;
        let request = POOL.iter().find_map(|mailbox| {
            let round = mailbox.fill(|letter: &mut Letter| {
                if is_asleep {
                    letter.fill_asleep(addressee, call, why);
                    // A thread that was put on a CPU as often as before has slept all the time.
                    is_asleep = !letter.stack().is_empty() && files.look() == Some(seen);
                }
                is_asleep
            })?;
            Some(Request {
                mailbox,
                round,
                is_signalled: false,
            })
        });
        request.ok_or(why)
    }
}

fn call_asleep_in(thread: &ThreadEvidence) -> Option<Call> {
    match thread.state {
        ThreadState::Asleep(call) => call,
        _ => None,
    }
}

#[cfg(test)]
mod tests {
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
    fn copied(slot: &'static Slot, why: NoStack) -> super::super::RawStack {
        loop {
            if let Ok(request) = Request::of_sleeper(addressee(slot), why) {
                assert!(request.is_full() && !request.is_signalled());
                return request.collect().expect("it is full");
            }
            std::thread::yield_now();
        }
    }

    #[test]
    fn the_stack_of_a_sleeper_is_copied_with_its_reason() {
        with_sleeper(|slot| {
            let stack = copied(slot, NoStack::WouldInterrupt);
            assert_eq!(stack.unsignalled(), Some(NoStack::WouldInterrupt));
            assert_eq!(stack.registers().fp, 0);
            let (_, sp) = stack.position();
            let (low, high) = slot.stack();
            assert!((low..high).contains(&(sp as usize)));
            let words = stack.with_words(<[u64]>::len);
            assert_eq!(words, (high - (sp as usize & !7)) / 8);
        });
    }

    #[test]
    fn a_call_that_needs_a_signal_is_left_to_it() {
        with_sleeper(|slot| {
            let (pc, _) = copied(slot, NoStack::NotYet).position();
            assert!(!needs_signal(pc));
            note_need_of_signal(pc);
            note_need_of_signal(pc);
            assert!(needs_signal(pc));
            let again = Request::of_sleeper(addressee(slot), NoStack::NotYet);
            assert_eq!(again.err(), Some(NoStack::NotYet));
            // Where there is no signal, a copy may be better than nothing.
            copied(slot, NoStack::SignalBlocked);
        });
    }

    #[test]
    fn a_thread_that_computes_is_not_copied() {
        let slot = slot::mine().expect("a slot");
        let own = Request::of_sleeper(addressee(slot), NoStack::SignalTaken);
        assert_eq!(own.err(), Some(NoStack::SignalTaken));
    }
}
