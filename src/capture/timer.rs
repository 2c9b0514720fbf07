//! A thread's stack during a sleep, and past a budget of CPU time, taken by timers of the thread
//! itself.
//!
//! *Runs on:* the measured thread, before and after a poll, and in the signal handler.
//! *Must not:* run in production: the timer interrupts after each [`PERIOD`]. Only assertions for
//! tests use it.
//!
//! A busy machine delays other threads that would look, but not the kernel's timers.
//!
//! There are two timers, each with a buffer of its own, and each finds one stack:
//!
//! * One sends its signal a [`PERIOD`] after the last one has been handled, while a measurement
//!   goes on. The handler ignores it and sets the timer again, unless the thread has gone to sleep
//!   since the last signal, *and* the signal interrupts a system call. Then it copies the stack. So
//!   it finds each sleep that lasts for a period, and nothing else. The code gets a period of its
//!   own also where a signal takes longer than that, as under `strace`.
//! * The other one counts the CPU time of the thread, and sends its signal when the budget is used
//!   up, and again and again until the measurement ends. The first that arrives takes the stack of
//!   the code that it interrupts, which computes.
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
use rustix::time::{ClockId, clock_gettime};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};
use std::time::Duration;

/// The period of the timer: the shortest sleep that is surely found.
const PERIOD: Duration = Duration::from_micros(50);

/// The CPU time between two signals past the budget.
const AGAIN: Duration = Duration::from_millis(10);

/// The least time to the end of a budget for which the timer is set. One that is over at once would
/// find the code that sets it.
const LEAD: Duration = Duration::from_micros(100);

/// The most threads with timers. A thread has them from its first measurement until it exits: a
/// test runner with 64 threads, each with a runtime of two workers, needs 192. Others are measured
/// without stacks. A place is only address space until it is used.
const PLACES: usize = 256;

static ALL: [TimerPlace; PLACES] = [const { TimerPlace::new() }; PLACES];

/// The two timers of one thread.
struct TimerPlace {
    taken: AtomicBool,
    asleep: Lookout,
    /// Whether the handler sets the timer again.
    looks: AtomicBool,
    /// The thread's number of sleeps at the last signal.
    sleeps: AtomicU64,
    computing: Lookout,
}

/// A timer, and the buffer for the stack that it takes.
struct Lookout {
    mailbox: Mailbox<Letter>,
    /// The C library's handle of the timer.
    timer: AtomicPtr<libc::c_void>,
}

impl TimerPlace {
    const fn new() -> TimerPlace {
        TimerPlace {
            taken: AtomicBool::new(false),
            asleep: Lookout::new(),
            looks: AtomicBool::new(false),
            sleeps: AtomicU64::new(0),
            computing: Lookout::new(),
        }
    }

    /// Takes the place for the calling thread, if it is free.
    fn take(&self) -> bool {
        self.taken
            // Acquire: pairs with the Release in `leave`: the last owner is done with it.
            .compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed)
            .is_ok()
    }

    /// Has the timer look for sleeps from now on.
    fn look(&self) {
        self.looks.store(true, Ordering::Relaxed);
        self.asleep.start(PERIOD);
    }

    /// A signal that is under way does not set the timer again.
    fn look_no_more(&self) {
        self.looks.store(false, Ordering::Relaxed);
        self.asleep.stop();
    }

    /// Handles a signal of the timer that looks for sleeps.
    ///
    /// # Signal safety
    ///
    /// As [`on_timer`].
    fn answer_asleep(&self, registers: Registers, tid: u32) {
        // Relaxed, here and below: written by this very thread.
        let sleeps = own_sleeps();
        let has_slept = sleeps > self.sleeps.load(Ordering::Relaxed);
        if has_slept && is_in_call(registers.pc) {
            let mailbox = &self.asleep.mailbox;
            if mailbox.answer(tid, |letter| letter.fill(registers)) {
                return;
            }
        } else if has_slept {
            // Not now: for too short a time, or in a page fault.
            self.sleeps.store(sleeps, Ordering::Relaxed);
        }
        if self.looks.load(Ordering::Relaxed) {
            self.asleep.start(PERIOD);
        }
    }

    fn leave(&self) {
        // Release: pairs with the Acquire in `take`.
        self.taken.store(false, Ordering::Release);
    }
}

impl Lookout {
    const fn new() -> Lookout {
        Lookout {
            mailbox: Mailbox::new(Letter::EMPTY),
            timer: AtomicPtr::new(std::ptr::null_mut()),
        }
    }

    /// Has the timer send one signal, after this time.
    ///
    /// # Signal safety
    ///
    /// As [`stop`](Self::stop).
    fn start(&self, after: Duration) {
        self.set(0, after, Duration::ZERO);
    }

    /// Has the timer send a signal at a CPU time of the calling thread, and more after it.
    fn start_at(&self, time: Duration) {
        let time = time.max(own_cpu().saturating_add(LEAD));
        self.set(libc::TIMER_ABSTIME, time, AGAIN);
    }

    /// Stops the timer.
    ///
    /// # Signal safety
    ///
    /// Makes one bare system call, which POSIX lists as safe.
    fn stop(&self) {
        self.set(0, Duration::ZERO, Duration::ZERO);
    }

    #[allow(unsafe_code)]
    fn set(&self, flags: i32, time: Duration, interval: Duration) {
        let span = |time: Duration| libc::timespec {
            tv_sec: time.as_secs().try_into().unwrap_or(libc::time_t::MAX),
            tv_nsec: time.subsec_nanos().into(),
        };
        let setting = libc::itimerspec {
            it_interval: span(interval),
            it_value: span(time),
        };
        // SAFETY: the timer exists while its place is taken, and `setting` is complete.
        unsafe {
            libc::timer_settime(
                self.timer.load(Ordering::Relaxed).cast(),
                flags,
                &raw const setting,
                std::ptr::null_mut(),
            )
        };
    }

    fn ask(&self, addressee: Addressee) -> Option<Round> {
        let write = |letter: &mut Letter| letter.addressee = Some(addressee);
        self.mailbox.request(addressee.slot.tid(), write)
    }

    /// Whether a stack is asked for that has not been taken.
    fn is_open(&self, round: Option<Round>) -> bool {
        round.is_some_and(|round| !self.mailbox.collect(round))
    }

    /// Stops the timer and ends the round. Returns its stack, if it was taken.
    fn end(&'static self, round: Option<Round>) -> Option<RawStack> {
        let round = round?;
        self.stop();
        let mailbox = &self.mailbox;
        if mailbox.collect(round) {
            return Some(RawStack { mailbox, round });
        }
        mailbox.withdraw(round);
        None
    }

    /// Ends the timer for good.
    #[allow(unsafe_code)]
    fn delete(&self) {
        // SAFETY: made by `create`, and not used after this.
        unsafe { libc::timer_delete(self.timer.load(Ordering::Relaxed).cast()) };
    }
}

/// Marks the signals of our timers. The rest of the value is twice the index of a place, and one
/// more for the timer of CPU time.
const OURS: usize = 0x7a11_0000;

/// Handles a signal that a timer has sent. The signal handler calls it.
///
/// # Signal safety
///
/// Uses atomics of a static, and `getrusage`, `process_vm_readv` and `timer_settime` as bare system
/// calls. [`Mailbox::answer`] and [`Letter::fill`] have notes of their own.
pub(super) fn on_timer(value: usize, registers: Registers, tid: u32) {
    let Some(value) = value.checked_sub(OURS) else {
        return;
    };
    let Some(place) = ALL.get(value / 2) else {
        return;
    };
    if value % 2 == 1 {
        let fill = |letter: &mut Letter| letter.fill(registers);
        place.computing.mailbox.answer(tid, fill);
    } else {
        place.answer_asleep(registers, tid);
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

/// The calling thread's timers, and the place for their stacks.
#[derive(Debug)]
pub(crate) struct StackTimer {
    place: &'static TimerPlace,
    addressee: Addressee,
    asleep: Option<Round>,
    computing: Option<Round>,
    /// The system has timers that count the CPU time of a thread.
    counts_cpu: bool,
    /// The CPU time at which the budget is used up.
    cpu_limit: Duration,
    /// The CPU time at the begin of a pause.
    paused_at: Duration,
    // The timers belong to the thread that made them.
    _of_this_thread: std::marker::PhantomData<*const ()>,
}

/// The stacks of one measurement.
#[derive(Debug, Default)]
pub(crate) struct TimerStacks {
    /// The first sleep in a system call that lasted for a period.
    pub(crate) asleep: Option<RawStack>,
    /// The code that computed when the budget was used up. The kernel looks once a tick, so it may
    /// be missing from a poll that went on for less than 20 ms after that.
    pub(crate) computing: Option<RawStack>,
}

impl std::fmt::Debug for TimerPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TimerPlace").finish_non_exhaustive()
    }
}

impl StackTimer {
    /// Makes the timers of the calling thread, which is `addressee`. The handler of `signal` is
    /// installed. `None` if all places are taken, or if the system has no such timers.
    pub(crate) fn new(addressee: Addressee, signal: i32) -> Option<StackTimer> {
        let (index, place) = ALL.iter().enumerate().find(|(_, place)| place.take())?;
        let tid = addressee.slot.tid();
        let create = |lookout: &Lookout, clock, value| {
            let timer = create(clock, OURS + value, tid, signal)?;
            lookout.timer.store(timer.cast(), Ordering::Relaxed);
            Some(())
        };
        if create(&place.asleep, libc::CLOCK_MONOTONIC, 2 * index).is_none() {
            place.leave();
            return None;
        }
        let clock = libc::CLOCK_THREAD_CPUTIME_ID;
        Some(StackTimer {
            place,
            addressee,
            asleep: None,
            computing: None,
            counts_cpu: create(&place.computing, clock, 2 * index + 1).is_some(),
            cpu_limit: Duration::MAX,
            paused_at: Duration::ZERO,
            _of_this_thread: std::marker::PhantomData,
        })
    }

    /// Whether it can take a stack past a budget of CPU time.
    pub(crate) fn counts_cpu(&self) -> bool {
        self.counts_cpu
    }

    /// Starts a measurement. The handler takes the stack of the first sleep in a system call that
    /// lasts for a period, and one when the budget is used up.
    pub(crate) fn begin(&mut self, cpu_budget: Option<Duration>) {
        drop(self.end());
        self.place.sleeps.store(own_sleeps(), Ordering::Relaxed);
        self.asleep = self.place.asleep.ask(self.addressee);
        let budget = cpu_budget.filter(|_| self.counts_cpu);
        if let Some(limit) = budget.and_then(|budget| own_cpu().checked_add(budget)) {
            self.cpu_limit = limit;
            self.computing = self.place.computing.ask(self.addressee);
            if self.computing.is_some() {
                self.place.computing.start_at(limit);
            }
        }
        if self.asleep.is_some() {
            self.place.look();
        }
    }

    /// Takes no stack until [`go_on`](Self::go_on). A stack that was taken before stays.
    pub(crate) fn pause(&mut self) {
        self.place.look_no_more();
        if self.computing.is_some() {
            self.place.computing.stop();
            self.paused_at = own_cpu();
        }
    }

    /// Ends a pause. Sleeps and CPU time during the pause do not count.
    pub(crate) fn go_on(&mut self) {
        let TimerPlace {
            asleep, computing, ..
        } = self.place;
        if computing.is_open(self.computing) {
            self.cpu_limit += own_cpu().saturating_sub(self.paused_at);
            computing.start_at(self.cpu_limit);
        }
        if asleep.is_open(self.asleep) {
            self.place.sleeps.store(own_sleeps(), Ordering::Relaxed);
            self.place.look();
        }
    }

    /// Ends the measurement, and returns the stacks that were taken.
    pub(crate) fn end(&mut self) -> TimerStacks {
        // A signal that comes now is the last one.
        self.place.looks.store(false, Ordering::Relaxed);
        TimerStacks {
            asleep: self.place.asleep.end(self.asleep.take()),
            computing: self.place.computing.end(self.computing.take()),
        }
    }
}

/// The CPU time of the calling thread so far.
fn own_cpu() -> Duration {
    let cpu = clock_gettime(ClockId::ThreadCPUTime);
    let seconds = u64::try_from(cpu.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(cpu.tv_nsec).unwrap_or(0))
}

/// Creates a timer of this clock that sends `signal` with `value` to thread `tid`.
#[allow(unsafe_code)]
fn create(clock: libc::clockid_t, value: usize, tid: u32, signal: i32) -> Option<libc::timer_t> {
    // SAFETY: all-zero is a valid `sigevent`.
    let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
    event.sigev_notify = libc::SIGEV_THREAD_ID;
    event.sigev_signo = signal;
    event.sigev_notify_thread_id = tid as libc::c_int;
    event.sigev_value.sival_ptr = std::ptr::without_provenance_mut(value);
    let mut timer: libc::timer_t = std::ptr::null_mut();
    // SAFETY: `event` is complete, and `timer` is a valid place for the answer.
    let failed = unsafe { libc::timer_create(clock, &raw mut event, &raw mut timer) } != 0;
    (!failed).then_some(timer)
}

impl Drop for StackTimer {
    fn drop(&mut self) {
        drop(self.end());
        self.place.asleep.delete();
        if self.counts_cpu {
            self.place.computing.delete();
        }
        self.place.leave();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::{DEFAULT_SIGNAL, install};
    use super::*;
    use crate::slot;

    fn timer() -> StackTimer {
        install(DEFAULT_SIGNAL).expect("nobody else's");
        let slot = slot::mine().unwrap();
        let addressee = Addressee {
            slot,
            tenancy: slot.tenancy(),
        };
        StackTimer::new(addressee, DEFAULT_SIGNAL).expect("there is a place")
    }

    fn compute(cpu: Duration) {
        let used = || crate::os::own_usage().unwrap().cpu;
        let start = used();
        while used() - start < cpu {}
    }

    #[test]
    fn a_sleep_is_found_and_computing_is_not() {
        let mut timer = timer();
        for _ in 0..20 {
            let sleeps = own_sleeps();
            timer.begin(None);
            compute(Duration::from_millis(1));
            // Other threads of the process may hold it up in a page fault, which is a sleep.
            let found = timer.end();
            let has_slept = own_sleeps() != sleeps;
            assert!(found.asleep.is_none() || has_slept, "it computes");
            assert!(found.computing.is_none(), "there is no budget");
            timer.begin(None);
            std::thread::sleep(Duration::from_millis(1));
            let stack = timer.end().asleep.expect("it sleeps");
            assert!(stack.is_answered());
        }
    }

    #[test]
    fn computing_is_found_past_the_budget_and_not_before() {
        let mut timer = timer();
        let budget = Duration::from_millis(40);
        let start = own_cpu();
        timer.begin(Some(budget));
        compute(budget / 8);
        timer.pause();
        let paused = own_cpu();
        compute(budget * 2);
        let allowed = own_cpu() - paused;
        timer.go_on();
        compute(budget / 8);
        let found = timer.end().computing.is_some();
        // In an emulator, the signals alone may use up the budget.
        let used = own_cpu() - start - allowed;
        assert!(!found || used >= budget, "{used:?} of {budget:?}");
        // The kernel looks at its ticks, and a virtual machine may lose its CPU between two.
        let is_found = (0..20).any(|_| {
            timer.begin(Some(budget));
            std::thread::sleep(Duration::from_millis(1));
            compute(budget * 2);
            let stacks = timer.end();
            assert!(stacks.asleep.is_some(), "a sleep before is found, too");
            stacks.computing.is_some_and(|stack| stack.is_answered())
        });
        assert!(is_found);
    }
}
