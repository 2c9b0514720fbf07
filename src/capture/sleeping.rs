//! A thread's stack at the moment when it sleeps, taken by a timer of its own: nobody else has to look in time.
//!
//! *Runs on:* the thread that is measured, before and after a poll; on the same thread, the signal handler.
//! *Here:* a busy machine delays watchers, but not the kernel's timers. Used by tests only, never in
//! production: the timer interrupts every [`PERIOD`].
//!
//! The timer sends its signal to the thread while a measurement goes on. The handler lets it pass unless the
//! thread has gone to sleep since it last looked, *and* the signal has met it in a system call; then it copies
//! the stack, and stops the timer. So a sleep that lasts for a period is met, and nothing else is.
//!
//! # Who may touch what
//!
//! A [`Place`] belongs to one thread at a time, by `taken`. Its thread writes the other fields between
//! measurements, and reads and writes them in the handler, which runs on the same thread.

use super::RawStack;
use super::letter::{Addressee, Letter};
use super::mailbox::{Mailbox, Round};
use super::registers::Registers;
use crate::os::{self, own_sleeps};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};
use std::time::Duration;

/// How often the timer interrupts: the shortest sleep that is surely met.
const PERIOD: Duration = Duration::from_micros(50);

/// Threads that can be measured with stacks at one time; others are measured without.
const PLACES: usize = 32;

static ALL: [Place; PLACES] = [const { Place::new() }; PLACES];

struct Place {
    taken: AtomicBool,
    mailbox: Mailbox<Letter>,
    /// The C library's handle of the timer.
    timer: AtomicPtr<libc::c_void>,
    /// Sleeps of the thread when it was last looked at.
    sleeps: AtomicU64,
}

impl Place {
    const fn new() -> Place {
        Place {
            taken: AtomicBool::new(false),
            mailbox: Mailbox::new(Letter::EMPTY),
            timer: AtomicPtr::new(std::ptr::null_mut()),
            sleeps: AtomicU64::new(0),
        }
    }

    /// Starts the timer, or stops it with a period of zero.
    ///
    /// # Signal safety
    ///
    /// One bare system call, which POSIX lists as safe.
    #[allow(unsafe_code)]
    fn set(&self, period: Duration) {
        let span = libc::timespec {
            tv_sec: 0,
            tv_nsec: period.subsec_nanos().into(),
        };
        let setting = libc::itimerspec {
            it_interval: span,
            it_value: span,
        };
        // SAFETY: the timer exists while its place is taken, and `setting` is complete.
        unsafe {
            libc::timer_settime(
                self.timer.load(Ordering::Relaxed).cast(),
                0,
                &raw const setting,
                std::ptr::null_mut(),
            )
        };
    }
}

/// Marks the signals of our timers; the rest of the value is the number of a place.
const OURS: usize = 0x7a11_0000;

/// Looks at a signal that a timer has sent. Called by the signal handler.
///
/// # Signal safety
///
/// Atomics of a static; `getrusage`, `process_vm_readv` and `timer_settime` as bare system calls; and what
/// [`Mailbox::answer`] and [`Letter::fill`] say of themselves.
pub(super) fn on_timer(value: usize, registers: Registers, tid: u32) {
    let Some(place) = value.checked_sub(OURS).and_then(|index| ALL.get(index)) else {
        return;
    };
    // Relaxed, here and below: written by this very thread.
    let sleeps = own_sleeps();
    if sleeps <= place.sleeps.load(Ordering::Relaxed) {
        return;
    }
    if !is_in_call(registers.pc) {
        // It has slept, but not now: too short a time to be met, or in a page fault.
        place.sleeps.store(sleeps, Ordering::Relaxed);
        return;
    }
    if place.mailbox.answer(tid, |letter| letter.fill(registers)) {
        place.set(Duration::ZERO);
    }
}

/// Whether the signal has interrupted a system call: the next instruction is the one that calls the kernel, if
/// the call is to be made again, or else the one after.
fn is_in_call(pc: u64) -> bool {
    #[cfg(target_arch = "x86_64")]
    const CALL: &[u8] = &[0x0f, 0x05];
    #[cfg(target_arch = "aarch64")]
    const CALL: &[u8] = &[0x01, 0x00, 0x00, 0xd4];
    let mut code = [0; 4];
    let code = &mut code[..CALL.len()];
    let mut is_call =
        |at: u64| os::memory::read_by_call(at, code) == Ok(CALL.len()) && code == CALL;
    is_call(pc) || is_call(pc.wrapping_sub(CALL.len() as u64))
}

/// The calling thread's timer, and the place for its stack.
#[derive(Debug)]
pub(crate) struct SleepTimer {
    place: &'static Place,
    addressee: Addressee,
    round: Option<Round>,
    // The timer belongs to the thread that made it.
    _of_this_thread: std::marker::PhantomData<*const ()>,
}

impl std::fmt::Debug for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Place").finish_non_exhaustive()
    }
}

impl SleepTimer {
    /// Makes a timer for the calling thread, which is `addressee`; `signal` has its handler installed.
    /// `None` if all places are taken, or the system has no such timers.
    #[allow(unsafe_code)]
    pub(crate) fn new(addressee: Addressee, signal: i32) -> Option<SleepTimer> {
        let is_free = |place: &&Place| {
            place
                .taken
                // Acquire: pairs with the Release in `drop`: the last owner is done with it.
                .compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed)
                .is_ok()
        };
        let (index, place) = ALL.iter().enumerate().find(|(_, place)| is_free(place))?;
        // SAFETY: all-zero is a valid `sigevent`.
        let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = signal;
        event.sigev_notify_thread_id = addressee.slot.tid() as libc::c_int;
        event.sigev_value.sival_ptr = std::ptr::without_provenance_mut(OURS + index);
        let mut timer: libc::timer_t = std::ptr::null_mut();
        // SAFETY: `event` is complete, and `timer` is a valid place for the answer.
        let failed =
            unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer) }
                != 0;
        if failed {
            // Release: pairs with the Acquire above.
            place.taken.store(false, Ordering::Release);
            return None;
        }
        place.timer.store(timer.cast(), Ordering::Relaxed);
        Some(SleepTimer {
            place,
            addressee,
            round: None,
            _of_this_thread: std::marker::PhantomData,
        })
    }

    /// From now on, the first sleep in a system call that lasts for a period has its stack taken.
    pub(crate) fn begin(&mut self) {
        self.give_up();
        self.place.sleeps.store(own_sleeps(), Ordering::Relaxed);
        let addressee = self.addressee;
        let write = |letter: &mut Letter| letter.addressee = Some(addressee);
        self.round = self.place.mailbox.request(addressee.slot.tid(), write);
        self.place.set(PERIOD);
    }

    /// Takes no stack until [`go_on`](Self::go_on). One that was taken already stays.
    pub(crate) fn pause(&mut self) {
        self.place.set(Duration::ZERO);
    }

    /// Ends a pause: what has been slept meanwhile is passed over.
    pub(crate) fn go_on(&mut self) {
        let is_met = |round| self.place.mailbox.collect(round);
        if self.round.is_some_and(|round| !is_met(round)) {
            self.place.sleeps.store(own_sleeps(), Ordering::Relaxed);
            self.place.set(PERIOD);
        }
    }

    /// Stops, and hands over the stack if there is one.
    pub(crate) fn end(&mut self) -> Option<RawStack> {
        self.place.set(Duration::ZERO);
        let round = self.round.take()?;
        if self.place.mailbox.collect(round) {
            Some(RawStack {
                mailbox: &self.place.mailbox,
                round,
            })
        } else {
            self.place.mailbox.withdraw(round);
            None
        }
    }

    fn give_up(&mut self) {
        drop(self.end());
    }
}

impl Drop for SleepTimer {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        self.give_up();
        // SAFETY: made by `new`, and not used after this.
        unsafe { libc::timer_delete(self.place.timer.load(Ordering::Relaxed).cast()) };
        // Release: pairs with the Acquire in `new`.
        self.place.taken.store(false, Ordering::Release);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::{DEFAULT_SIGNAL, install};
    use super::*;
    use crate::slot;

    fn timer() -> SleepTimer {
        install(DEFAULT_SIGNAL).expect("nobody else's");
        let slot = slot::mine().unwrap();
        let addressee = Addressee {
            slot,
            tenancy: slot.tenancy(),
        };
        SleepTimer::new(addressee, DEFAULT_SIGNAL).expect("there is a place")
    }

    #[test]
    fn a_sleep_is_met_and_computing_is_not() {
        let mut timer = timer();
        for _ in 0..20 {
            timer.begin();
            let start = crate::os::own_usage().unwrap().cpu;
            while crate::os::own_usage().unwrap().cpu - start < Duration::from_millis(1) {}
            assert!(timer.end().is_none(), "a thread that computes");
            timer.begin();
            std::thread::sleep(Duration::from_millis(1));
            let stack = timer.end().expect("a thread that sleeps");
            assert!(stack.is_answered());
        }
    }
}
