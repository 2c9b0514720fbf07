//! The stack of a thread that sleeps in a system call, copied without a signal.
//!
//! *Runs on:* a thread that requests a stack; `stall-explainer`, where the copy is not enough.
//! *Must not:* touch memory of the other thread itself: only the kernel may read it. Nor wait, but
//! for [`RawStack::by_signal`].
//!
//! The kernel shows where such a thread sleeps, and where its stack begins. It does not show the
//! frame pointer, which some stacks cannot be followed without. `stall-explainer` signals such a
//! thread, if it has slept ever since.

use super::letter::Letter;
use super::{Addressee, POOL, RawStack, Request};
use crate::os::{self, ThreadEvidence, ThreadFiles, ThreadState};
use crate::report::NoStack;
use std::time::Duration;

/// The longest wait for the answer of a thread that is asleep: a signal wakes it at once, and a
/// busy machine gives it a CPU within some milliseconds.
const ANSWERS_WITHIN: Duration = Duration::from_millis(20);
/// The time between two looks for an answer.
const LOOK: Duration = Duration::from_micros(50);

/// The evidence beside a stack that was copied without a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asleep {
    /// The thread before the copy and after it.
    pub(super) seen: ThreadEvidence,
    /// The reason why the thread must not be signalled.
    pub(super) unsignalled: Option<NoStack>,
}

/// The reasons for a copy that cannot be made.
struct Refusal {
    /// The thread's call or its stack cannot be seen.
    hidden: NoStack,
    /// The thread does not sleep.
    awake: NoStack,
}

impl Refusal {
    fn of(unsignalled: Option<NoStack>) -> Refusal {
        Refusal {
            hidden: unsignalled.unwrap_or(NoStack::MovedOn),
            awake: match unsignalled {
                // Once its call is over, a signal does no harm.
                Some(NoStack::WouldInterrupt) | None => NoStack::MovedOn,
                Some(why) => why,
            },
        }
    }
}

impl Request {
    /// Copies the stack of a thread that sleeps in a call. `unsignalled` is the reason why it must
    /// not be signalled.
    ///
    /// # Errors
    ///
    /// No buffer is free, the thread does not sleep in a call that can be seen, or it has woken.
    ///
    /// # Cost
    ///
    /// It opens two files, and reads the stack page by page: about 30 µs.
    pub(super) fn of_sleeper(
        addressee: Addressee,
        unsignalled: Option<NoStack>,
    ) -> Result<Request, NoStack> {
        let refusal = Refusal::of(unsignalled);
        let mut files = ThreadFiles::open(addressee.slot.tid()).ok_or(refusal.hidden)?;
        let seen = files.look().ok_or(refusal.awake)?;
        let call = match seen.state {
            ThreadState::Asleep(call) => call.ok_or(refusal.hidden)?,
            ThreadState::OnCpu | ThreadState::Waiting => return Err(refusal.awake),
            ThreadState::Unknown => return Err(refusal.hidden),
        };
        Request::filled(|letter| {
            letter.fill_asleep(addressee, call, Asleep { seen, unsignalled });
            // A thread that was put on a CPU as often as before has slept all the time.
            match files.look() == Some(seen) {
                _ if letter.stack().is_empty() => Err(refusal.hidden),
                true => Ok(()),
                false => Err(refusal.awake),
            }
        })
    }

    /// Fills a free buffer.
    fn filled(
        mut fill: impl FnMut(&mut Letter) -> Result<(), NoStack>,
    ) -> Result<Request, NoStack> {
        let mut filled = Err(NoStack::Busy);
        let request = POOL.iter().find_map(|mailbox| {
            if filled != Err(NoStack::Busy) {
                return None;
            }
            let round = mailbox.fill(|letter| {
                filled = fill(letter);
                filled.is_ok()
            })?;
            Some(Request {
                mailbox,
                round,
                is_signalled: false,
            })
        });
        filled.and(request.ok_or(NoStack::Busy))
    }

    /// Waits for the copy.
    fn within(mut self, longest: Duration) -> Result<RawStack, Request> {
        for _ in 0..longest.as_micros() / LOOK.as_micros() {
            match self.collect() {
                Ok(stack) => return Ok(stack),
                Err(request) => self = request,
            }
            std::thread::sleep(LOOK);
        }
        Err(self)
    }
}

impl RawStack {
    /// Whether the thread has copied itself, on a signal. If not, its frame pointer and its link
    /// register are not known, and are zero.
    pub(crate) fn is_by_signal(&self) -> bool {
        self.read(|letter| letter.asleep.is_none())
    }

    /// Has a thread that has slept since this copy was made copy itself. `signals` is called before
    /// and after. Waits for the thread: only `stall-explainer` may call it.
    ///
    /// # Errors
    ///
    /// The thread must not be signalled, has woken, or does not take the signal.
    ///
    /// # Cost
    ///
    /// About 0.1 ms, and up to 20 ms for a thread that does not answer.
    pub(crate) fn by_signal(
        self,
        signal: Result<i32, NoStack>,
        signals: impl Fn(),
    ) -> Result<RawStack, NoStack> {
        let letter = self.read(|letter| letter.addressee.zip(letter.asleep));
        let (addressee, Asleep { seen, unsignalled }) = letter.ok_or(NoStack::MovedOn)?;
        let (signal, place) = (signal?, self.position());
        if let Some(why) = unsignalled {
            return Err(why);
        }
        drop(self);
        let tid = addressee.slot.tid();
        let now = ThreadFiles::open(tid).and_then(|mut files| files.look());
        if now != Some(seen) {
            return Err(NoStack::MovedOn);
        }
        signals();
        let stack = Request::signal(addressee, signal)?.within(ANSWERS_WITHIN);
        signals();
        match stack {
            Ok(stack) if stack.is_at(place) => Ok(stack),
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
    use std::sync::atomic::{AtomicU32, Ordering};
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
    fn copied(slot: &'static Slot, unsignalled: Option<NoStack>) -> RawStack {
        loop {
            if let Ok(request) = Request::of_sleeper(addressee(slot), unsignalled) {
                assert!(request.is_full() && !request.is_signalled());
                return request.collect().expect("it is full");
            }
            std::thread::yield_now();
        }
    }

    #[test]
    fn the_stack_of_a_sleeper_is_copied_whole() {
        with_sleeper(|slot| {
            let stack = copied(slot, None);
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
    fn a_sleeper_that_may_be_signalled_copies_itself() {
        install(DEFAULT_SIGNAL).unwrap();
        with_sleeper(|slot| {
            let copy = copied(slot, None);
            let (place, words) = (copy.position(), copy.with_words(<[u64]>::to_vec));
            let signals = AtomicU32::new(0);
            let count = || {
                signals.fetch_add(1, Ordering::Relaxed);
            };
            let stack = copy.by_signal(Ok(DEFAULT_SIGNAL), count).unwrap();
            assert!(stack.is_by_signal() && stack.is_at(place));
            assert_eq!(signals.into_inner(), 2);
            // The call is the same, and so is the stack above it.
            assert!(stack.with_words(|again| again == words));

            let refused = copied(slot, Some(NoStack::WouldInterrupt));
            let refused = refused.by_signal(Ok(DEFAULT_SIGNAL), || panic!("a signal"));
            assert_eq!(refused.err(), Some(NoStack::WouldInterrupt));
        });
    }

    #[test]
    fn a_sleeper_that_has_woken_is_left_alone() {
        let stack = with_sleeper(|slot| copied(slot, None));
        let again = stack.by_signal(Ok(DEFAULT_SIGNAL), || panic!("a signal"));
        assert_eq!(again.err(), Some(NoStack::MovedOn));
    }

    #[test]
    fn a_thread_that_computes_is_not_copied() {
        let slot = slot::mine().expect("a slot");
        for unsignalled in [None, Some(NoStack::SignalTaken)] {
            let own = Request::of_sleeper(addressee(slot), unsignalled);
            assert_eq!(own.err(), Some(unsignalled.unwrap_or(NoStack::MovedOn)));
        }
    }
}
