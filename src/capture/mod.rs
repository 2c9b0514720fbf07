//! The stack of a thread, taken from outside. That of a thread that sleeps in a call is read
//! without disturbing it. Else the handler of one directed signal copies registers and stack.
//!
//! *Runs on:* `stall-watchdog` and `stall-pulse` request and collect, as does a thread that calls
//! [`worker_stacks`](crate::Guard::worker_stacks). The stalled thread answers, in the signal
//! handler. `stall-explainer` reads, asks again where a copy is not enough, and takes a stack of
//! itself now and then.
//! *Must not:* unwind in the handler, or wait on a thread that has a tick: there, a request is
//! collected about a millisecond later, or withdrawn.
//!
//! The process has [`MAILBOXES`] buffers. They are zero pages of the program until they are used,
//! and from then on as large as the deepest stack that was copied into them.

mod asleep;
mod handler;
mod letter;
mod mailbox;

mod modules;
mod oneself;
mod registers;
#[cfg(feature = "testing")]
mod timer;

pub(crate) use asleep::needs_signal;
pub(crate) use handler::{DEFAULT_SIGNAL, install, is_replaced, is_usable};
pub(crate) use letter::{Addressee, Extent};
use modules::mapped_at_all;
pub(crate) use modules::{Mapped, Module, mapped};
pub(crate) use oneself::{ForeignHandler, try_on_oneself, why_unexplained};
pub(crate) use registers::Registers;
#[cfg(feature = "testing")]
pub(crate) use timer::StackTimer;

use crate::clock::{self, Nanos};
use crate::os;
use crate::report::NoStack;
use letter::Letter;
use mailbox::{Mailbox, Round};
use std::time::Duration;

/// Stacks can be taken on this system and in this build.
pub(crate) const IS_SUPPORTED: bool = true;

/// The time between two looks for an answer, of a thread that may wait for it.
const LOOK: Duration = Duration::from_micros(50);

/// The most stacks that can be on their way to the explainer at one time.
pub(crate) const MAILBOXES: usize = 8;

static POOL: [Mailbox<Letter>; MAILBOXES] = [const { Mailbox::new(Letter::EMPTY) }; MAILBOXES];

/// A request for a thread's stack. Dropping it withdraws it.
#[derive(Debug)]
pub(crate) struct Request {
    mailbox: &'static Mailbox<Letter>,
    round: Round,
}

impl Request {
    /// Requests a thread's stack. One that sleeps in a call is copied at once; another one is asked
    /// by this signal.
    ///
    /// # Errors
    ///
    /// The thread has exited, all buffers are in use, or a sandbox forbids to signal. If the thread
    /// does not sleep in a call that can be seen: its call would fail, or the signal has no handler
    /// any more.
    ///
    /// # Cost
    ///
    /// A few system calls, some of which open files: about 10 µs, and 30 µs more for a real-time
    /// signal. The answer to a signal takes 50 to 150 µs.
    pub(crate) fn send(addressee: Addressee, signal: i32) -> Result<Request, NoStack> {
        let is_only_way = why_not_to_signal(addressee.slot.tid(), signal).is_some();
        match Request::of_sleeper(addressee, is_only_way) {
            Some(copied) => Ok(copied),
            None => Request::signal(addressee, signal),
        }
    }

    /// Asks a thread by this signal.
    #[allow(unsafe_code)]
    fn signal(addressee: Addressee, signal: i32) -> Result<Request, NoStack> {
        let tid = addressee.slot.tid();
        if tid == 0 {
            return Err(NoStack::ThreadGone);
        }
        if let Some(why) = why_not_to_signal(tid, signal) {
            return Err(why);
        }
        let request = Request::claim(addressee, tid).ok_or(NoStack::Busy)?;
        if is_queued(signal) && os::is_signal_pending(tid, signal) {
            // The handler answers all requests that are there when it runs (D251).
            return Ok(request);
        }
        // SAFETY: sends a signal to a thread of this process, whose handler is installed. If the
        // number has been given to another thread, the handler there compares tenancies and copies
        // nothing.
        let failed = unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, signal) } != 0;
        if failed {
            return Err(why_unsent(&std::io::Error::last_os_error()));
        }
        Ok(request)
    }

    /// Takes a free buffer for this thread. `None` if all are in use.
    fn claim(addressee: Addressee, tid: u32) -> Option<Request> {
        let question = |letter: &mut Letter| letter.addressee = Some(addressee);
        POOL.iter().find_map(|mailbox| {
            let round = mailbox.request(tid, question)?;
            Some(Request { mailbox, round })
        })
    }

    /// Whether the stack has been copied.
    pub(crate) fn is_full(&self) -> bool {
        self.mailbox.collect(self.round)
    }

    /// Whether the thread has copied it itself, on a signal.
    pub(crate) fn is_answered(&self) -> bool {
        let by_signal = |letter: &Letter| letter.asleep.is_none();
        self.mailbox.read(self.round, by_signal) == Some(true)
    }

    /// Waits for the stack until then. Else returns the request again.
    pub(crate) fn by(mut self, deadline: Nanos) -> Result<RawStack, Request> {
        loop {
            match self.collect() {
                Ok(stack) => return Ok(stack),
                Err(request) if clock::now() >= deadline => return Err(request),
                Err(request) => self = request,
            }
            std::thread::sleep(LOOK);
        }
    }

    /// The stack, if it has been copied by now. Else the request again.
    pub(crate) fn collect(self) -> Result<RawStack, Request> {
        if self.mailbox.collect(self.round) {
            let stack = RawStack {
                mailbox: self.mailbox,
                round: self.round,
            };
            // The stack owns the round now.
            std::mem::forget(self);
            Ok(stack)
        } else {
            Err(self)
        }
    }
}

/// The reason why a thread must not be signalled. Opens a file.
fn why_not_to_signal(tid: u32, signal: i32) -> Option<NoStack> {
    if handler::is_taken_away(signal) {
        return Some(NoStack::SignalTaken);
    }
    // No stack is worth a call that fails (D250).
    os::would_fail_by_a_signal(tid).then_some(NoStack::WouldInterrupt)
}

/// Whether a thread that blocks the signal takes it later as often as it was sent. The system's
/// room for such signals is limited, and the program's own need it.
fn is_queued(signal: i32) -> bool {
    signal >= libc::SIGRTMIN()
}

fn why_unsent(error: &std::io::Error) -> NoStack {
    match error.raw_os_error() {
        Some(libc::ESRCH) => NoStack::ThreadGone,
        // The queue of real-time signals is full.
        Some(libc::EAGAIN) => NoStack::Busy,
        _ => NoStack::SignalForbidden,
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        self.mailbox.withdraw(self.round);
    }
}

/// A copied stack. Dropping it frees its buffer.
#[derive(Debug)]
pub(crate) struct RawStack {
    mailbox: &'static Mailbox<Letter>,
    round: Round,
}

impl RawStack {
    /// The slot's epoch at that moment. It identifies the poll.
    pub(crate) fn epoch(&self) -> u64 {
        self.read(|letter| letter.epoch)
    }

    pub(crate) fn registers(&self) -> Registers {
        self.read(|letter| letter.registers)
    }

    /// The next instruction and the stack pointer.
    pub(crate) fn position(&self) -> (u64, u64) {
        let Registers { pc, sp, .. } = self.registers();
        (pc, sp)
    }

    /// Whether the right thread answered, and not another one with the same number.
    pub(crate) fn is_answered(&self) -> bool {
        self.extent() != Extent::Nothing
    }

    pub(crate) fn extent(&self) -> Extent {
        self.read(|letter| letter.extent)
    }

    /// Calls `f` with the words of the stack, from the stack pointer (rounded down to a word) on.
    pub(crate) fn with_words<R>(&self, f: impl FnOnce(&[u64]) -> R) -> R {
        self.read(|letter| f(letter.stack()))
    }

    fn read<R>(&self, read: impl FnOnce(&Letter) -> R) -> R {
        self.mailbox
            .read(self.round, read)
            .expect("a stack holds its mailbox until it is dropped")
    }
}

impl Drop for RawStack {
    fn drop(&mut self) {
        self.mailbox.withdraw(self.round);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slot;

    /// Takes a signal that the calling thread blocks, if it waits.
    #[allow(unsafe_code)]
    fn takes(signal: i32) -> bool {
        // SAFETY: all-zero is a valid set: an empty one.
        let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
        // SAFETY: a complete set.
        unsafe { libc::sigaddset(&raw mut set, signal) };
        let at_once = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: both are complete, and no description of the signal is asked for.
        unsafe {
            libc::sigtimedwait(&raw const set, std::ptr::null_mut(), &raw const at_once) == signal
        }
    }

    #[test]
    fn a_thread_that_blocks_the_signal_is_sent_it_once() {
        let signal = libc::SIGRTMAX() - 2;
        for signal in [signal, DEFAULT_SIGNAL] {
            install(signal).unwrap();
            // A thread of ours blocks all signals.
            let deaf = os::spawn("test", move || {
                let slot = slot::mine().expect("a slot");
                let tenancy = slot.tenancy();
                let send = || Request::send(Addressee { slot, tenancy }, signal);
                let requests: Vec<_> = std::iter::repeat_with(send).take(3).collect();
                assert!(requests.iter().all(Result::is_ok), "{requests:?}");
                drop(requests);
                let taken = std::iter::repeat_with(|| takes(signal)).take_while(|taken| *taken);
                assert_eq!(taken.count(), 1, "signal {signal}");
                // The one that waits answers the request that is there when it is let through.
                drop(send().unwrap());
                let last = send().unwrap();
                os::let_through(signal);
                assert!(last.is_full() && !takes(signal));
            });
            deaf.unwrap().join().unwrap();
        }
    }
}
