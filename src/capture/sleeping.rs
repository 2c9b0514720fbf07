//! A thread's stack during a sleep, taken by a timer of the thread itself.
//!
//! *Runs on:* the measured thread, before and after a poll, and in the signal handler.
//! *Must not:* run in production: the timer interrupts every [`PERIOD`]. Only assertions for tests
//! use it.
//!
//! A busy machine delays other threads that would look, but not the kernel's timers.
//!
//! The timer sends its signal to the thread while a measurement goes on. The handler ignores it
//! unless the thread has gone to sleep since the last signal, *and* the signal interrupts a system
//! call. Then it copies the stack and stops the timer. So it finds each sleep that lasts for a
//! period, and nothing else.
//!
//! # Access
//!
//! A [`TimerPlace`] belongs to one thread at a time, by `taken`. Its thread writes the other fields
//! between measurements, and reads and writes them in the handler, which runs on the same thread.

use super::RawStack;
use super::letter::{Addressee, Letter};
use super::mailbox::{Mailbox, Round};
use super::registers::Registers;
use crate::os::{self, own_sleeps};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};
use std::time::Duration;

/// The period of the timer: the shortest sleep that is surely found.
const PERIOD: Duration = Duration::from_micros(50);

/// The most threads that can be measured with stacks at one time. Others are measured without.
const PLACES: usize = 32;

static ALL: [TimerPlace; PLACES] = [const { TimerPlace::new() }; PLACES];

/// A timer, and the buffer for the stack that it takes.
struct TimerPlace {
    taken: AtomicBool,
    mailbox: Mailbox<Letter>,
    /// The C library's handle of the timer.
    timer: AtomicPtr<libc::c_void>,
    /// The thread's number of sleeps at the last signal.
    sleeps: AtomicU64,
}

impl TimerPlace {
    const fn new() -> TimerPlace {
        TimerPlace {
            taken: AtomicBool::new(false),
            mailbox: Mailbox::new(Letter::EMPTY),
            timer: AtomicPtr::new(std::ptr::null_mut()),
            sleeps: AtomicU64::new(0),
        }
    }

    /// Takes the place for the calling thread, if it is free.
    fn take(&self) -> bool {
        self.taken
            // Acquire: pairs with the Release in `drop`: the last owner is done with it.
            .compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed)
            .is_ok()
    }

    /// Starts the timer, or stops it with a period of zero.
    ///
    /// # Signal safety
    ///
    /// Makes one bare system call, which POSIX lists as safe.
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

/// Marks the signals of our timers. The rest of the value is the index of a place.
const OURS: usize = 0x7a11_0000;

/// Handles a signal that a timer has sent. The signal handler calls it.
///
/// # Signal safety
///
/// Uses atomics of a static, and `getrusage`, `process_vm_readv` and `timer_settime` as bare system
/// calls. [`Mailbox::answer`] and [`Letter::fill`] have notes of their own.
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
        // The thread has slept, but not now: for too short a time, or in a page fault.
        place.sleeps.store(sleeps, Ordering::Relaxed);
        return;
    }
    if place.mailbox.answer(tid, |letter| letter.fill(registers)) {
        place.set(Duration::ZERO);
    }
}

/// Whether the signal has interrupted a system call. The next instruction is the one that calls the
/// kernel if the call is to be made again, else the one after it.
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
    place: &'static TimerPlace,
    addressee: Addressee,
    round: Option<Round>,
    // The timer belongs to the thread that made it.
    _of_this_thread: std::marker::PhantomData<*const ()>,
}

impl std::fmt::Debug for TimerPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TimerPlace").finish_non_exhaustive()
    }
}

impl SleepTimer {
    /// Makes a timer for the calling thread, which is `addressee`. The handler of `signal` is
    /// installed. `None` if all places are taken, or if the system has no such timers.
    pub(crate) fn new(addressee: Addressee, signal: i32) -> Option<SleepTimer> {
        let (index, place) = ALL.iter().enumerate().find(|(_, place)| place.take())?;
        let Some(timer) = create(OURS + index, addressee.slot.tid(), signal) else {
            // Release: pairs with the Acquire in `take`.
            place.taken.store(false, Ordering::Release);
            return None;
        };
        place.timer.store(timer.cast(), Ordering::Relaxed);
        Some(SleepTimer {
            place,
            addressee,
            round: None,
            _of_this_thread: std::marker::PhantomData,
        })
    }

    /// Starts a measurement. The handler takes the stack of the first sleep in a system call that
    /// lasts for a period.
    pub(crate) fn begin(&mut self) {
        self.give_up();
        self.place.sleeps.store(own_sleeps(), Ordering::Relaxed);
        let addressee = self.addressee;
        let write = |letter: &mut Letter| letter.addressee = Some(addressee);
        self.round = self.place.mailbox.request(addressee.slot.tid(), write);
        self.place.set(PERIOD);
    }

    /// Takes no stack until [`go_on`](Self::go_on). A stack that was taken before stays.
    pub(crate) fn pause(&mut self) {
        self.place.set(Duration::ZERO);
    }

    /// Ends a pause. Sleeps during the pause do not count.
    pub(crate) fn go_on(&mut self) {
        let is_met = |round| self.place.mailbox.collect(round);
        if self.round.is_some_and(|round| !is_met(round)) {
            self.place.sleeps.store(own_sleeps(), Ordering::Relaxed);
            self.place.set(PERIOD);
        }
    }

    /// Ends the measurement, and returns the stack if one was taken.
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

/// Creates a timer that sends `signal` with `value` to thread `tid`.
#[allow(unsafe_code)]
fn create(value: usize, tid: u32, signal: i32) -> Option<libc::timer_t> {
    // SAFETY: all-zero is a valid `sigevent`.
    let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
    event.sigev_notify = libc::SIGEV_THREAD_ID;
    event.sigev_signo = signal;
    event.sigev_notify_thread_id = tid as libc::c_int;
    event.sigev_value.sival_ptr = std::ptr::without_provenance_mut(value);
    let mut timer: libc::timer_t = std::ptr::null_mut();
    // SAFETY: `event` is complete, and `timer` is a valid place for the answer.
    let failed =
        unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer) } != 0;
    (!failed).then_some(timer)
}

impl Drop for SleepTimer {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        self.give_up();
        // SAFETY: made by `new`, and not used after this.
        unsafe { libc::timer_delete(self.place.timer.load(Ordering::Relaxed).cast()) };
        // Release: pairs with the Acquire in `take`.
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
    fn a_sleep_is_found_and_computing_is_not() {
        let mut timer = timer();
        for _ in 0..20 {
            let sleeps = own_sleeps();
            timer.begin();
            let start = crate::os::own_usage().unwrap().cpu;
            while crate::os::own_usage().unwrap().cpu - start < Duration::from_millis(1) {}
            // Other threads of the process may hold it up in a page fault, which is a sleep.
            let found = timer.end().is_some();
            assert!(!found || own_sleeps() != sleeps, "a thread that computes");
            timer.begin();
            std::thread::sleep(Duration::from_millis(1));
            let stack = timer.end().expect("a thread that sleeps");
            assert!(stack.is_answered());
        }
    }
}
