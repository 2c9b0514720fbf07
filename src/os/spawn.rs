//! How a thread of the detector begins: with all signals blocked but those of faults, and without a
//! real-time policy.
//!
//! *Runs on:* the thread that starts another, and the one that begins.
//!
//! The kernel gives a signal for the process to any thread that has not blocked it. The program may
//! wait for it with `sigwait`, or count on its handler to run on a thread of its own. A thread of a
//! library must not take it.
//!
//! A new thread inherits a real-time policy, too. A thread that reads debug information for a
//! second would keep all others of the program off its CPU.

use std::io;
use std::thread::{Builder, JoinHandle};

/// Starts a thread with this name.
///
/// # Errors
///
/// Where the system has no thread to give.
pub(crate) fn spawn<T: Send + 'static>(
    name: &str,
    main: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    let thread = Builder::new().name(name.to_owned());
    // A new thread inherits the mask, so there is no moment at which it could take a signal.
    #[cfg(all(target_os = "linux", not(loom)))]
    let blocked = Mask::all_but_faults().set();
    #[cfg(all(target_os = "linux", not(loom)))]
    let main = {
        let of_the_program = blocked.before();
        move || {
            OF_THE_PROGRAM.set(of_the_program);
            leave_real_time();
            main()
        }
    };
    thread.spawn(main)
}

/// Gives the calling thread the ordinary policy if it has a real-time one. The CPUs that it may run
/// on stay: the program may keep some of them for other threads.
///
/// Bare system calls: some C libraries refuse to tell the policy of a thread.
#[cfg(all(target_os = "linux", not(loom)))]
#[allow(unsafe_code)]
fn leave_real_time() {
    // SAFETY: asks for the policy of the calling thread.
    let policy = unsafe { libc::syscall(libc::SYS_sched_getscheduler, 0) };
    // What stands beside the policy is kept.
    let beside = policy & libc::c_long::from(libc::SCHED_RESET_ON_FORK);
    let is_real_time = [libc::SCHED_FIFO, libc::SCHED_RR]
        .iter()
        .any(|of| policy == beside | libc::c_long::from(*of));
    if policy < 0 || !is_real_time {
        return;
    }
    let ordinary = libc::c_long::from(libc::SCHED_OTHER) | beside;
    // The kernel's own structure: a priority, which is zero for the ordinary policy.
    let priority: libc::c_int = 0;
    // SAFETY: changes the calling thread, and reads one number.
    unsafe {
        libc::syscall(
            libc::SYS_sched_setscheduler,
            0,
            ordinary,
            &raw const priority,
        )
    };
}

/// Calls this with the signal mask of the thread that started this one, as the program's own code
/// may start threads, which inherit the mask.
///
/// A signal that the main thread blocks now stays blocked: the program may wait for it, and has
/// perhaps blocked it since this thread was started.
pub(crate) fn with_signals_of_the_program<R>(f: impl FnOnce() -> R) -> R {
    #[cfg(all(target_os = "linux", not(loom)))]
    let _mask = OF_THE_PROGRAM.get().map(|mask| {
        let by_main = super::evidence::blocked_signals(std::process::id());
        mask.and(by_main.unwrap_or(0)).set()
    });
    f()
}

#[cfg(all(target_os = "linux", not(loom)))]
thread_local! {
    static OF_THE_PROGRAM: std::cell::Cell<Option<Mask>> = const { std::cell::Cell::new(None) };
}

/// Lets the calling thread take this signal if it waits for the thread, and blocks it again. The
/// handler has returned when this does.
#[cfg(all(
    feature = "stacks",
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64"),
    not(loom)
))]
#[allow(unsafe_code)]
pub(crate) fn let_through(signal: libc::c_int) {
    let mut mask = Mask::now();
    // SAFETY: a complete set.
    unsafe { libc::sigdelset(&raw mut mask.0, signal) };
    drop(mask.set());
}

/// The signals that a thread blocks.
#[cfg(all(target_os = "linux", not(loom)))]
#[derive(Clone, Copy)]
struct Mask(libc::sigset_t);

/// A mask that this thread has until it is dropped. Holds the one before, if it could be changed.
#[cfg(all(target_os = "linux", not(loom)))]
struct MaskSet(Option<Mask>);

#[cfg(all(target_os = "linux", not(loom)))]
#[allow(unsafe_code)]
impl Mask {
    fn all_but_faults() -> Mask {
        Mask(all_but_faults())
    }

    /// The mask of the calling thread.
    #[cfg(all(
        feature = "stacks",
        any(target_arch = "x86_64", target_arch = "aarch64")
    ))]
    fn now() -> Mask {
        // SAFETY: all-zero is a valid set: an empty one.
        let mut now: libc::sigset_t = unsafe { std::mem::zeroed() };
        // SAFETY: asks only. `now` is a valid place for a set.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, std::ptr::null(), &raw mut now) };
        Mask(now)
    }

    /// This mask, and these signals; the lowest bit is signal 1.
    fn and(mut self, blocked: u64) -> Mask {
        for signal in (1..=64).filter(|signal| blocked & (1 << (signal - 1)) != 0) {
            // SAFETY: a complete set, and a number from 1 to 64.
            unsafe { libc::sigaddset(&raw mut self.0, signal) };
        }
        self
    }

    fn set(self) -> MaskSet {
        let mut before = std::mem::MaybeUninit::uninit();
        // SAFETY: a complete set, and a place for one.
        let failed = unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, before.as_mut_ptr())
        };
        // SAFETY: written by the call, unless it has failed.
        MaskSet((failed == 0).then(|| Mask(unsafe { before.assume_init() })))
    }
}

#[cfg(all(target_os = "linux", not(loom)))]
impl MaskSet {
    fn before(&self) -> Option<Mask> {
        self.0
    }
}

#[cfg(all(target_os = "linux", not(loom)))]
impl Drop for MaskSet {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // SAFETY: a complete set, as the thread had it.
            unsafe {
                libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before.0, std::ptr::null_mut())
            };
        }
    }
}

/// All signals but those that tell of a fault of the thread itself: a handler of the program for
/// these, as of a crash reporter, must run wherever the fault is.
#[cfg(all(target_os = "linux", not(loom)))]
#[allow(unsafe_code)]
pub(crate) fn all_but_faults() -> libc::sigset_t {
    const FAULTS: [libc::c_int; 6] = [
        libc::SIGSEGV,
        libc::SIGBUS,
        libc::SIGFPE,
        libc::SIGILL,
        libc::SIGTRAP,
        libc::SIGSYS,
    ];
    // SAFETY: all-zero is a valid set: an empty one.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is a valid place for a set.
    unsafe { libc::sigfillset(&raw mut set) };
    for fault in FAULTS {
        // SAFETY: `set` is complete, and the number is of a signal.
        unsafe { libc::sigdelset(&raw mut set, fault) };
    }
    set
}

#[cfg(all(test, target_os = "linux", not(loom)))]
mod tests {
    use super::*;
    use crate::os::current_tid;
    use crate::os::is_signal_blocked;

    /// The policy of the calling thread.
    #[allow(unsafe_code)]
    fn policy() -> libc::c_int {
        // SAFETY: asks only.
        let policy = unsafe { libc::syscall(libc::SYS_sched_getscheduler, 0) };
        policy as libc::c_int
    }

    /// Gives the calling thread a policy, if it may have that.
    #[allow(unsafe_code)]
    fn has_taken(policy: libc::c_int, priority: libc::c_int) -> bool {
        // SAFETY: changes the calling thread, and reads one number.
        let result =
            unsafe { libc::syscall(libc::SYS_sched_setscheduler, 0, policy, &raw const priority) };
        result == 0
    }

    #[test]
    fn a_thread_of_ours_has_no_real_time_policy() {
        for (given, priority, wanted) in [
            (libc::SCHED_FIFO, 1, libc::SCHED_OTHER),
            (libc::SCHED_RR, 1, libc::SCHED_OTHER),
            // A program that wants to disturb nobody keeps its wish.
            (libc::SCHED_BATCH, 0, libc::SCHED_BATCH),
        ] {
            let starter = std::thread::spawn(move || {
                if !has_taken(given, priority) {
                    eprintln!("NOT TRIED: policy {given} needs a privilege");
                    return;
                }
                let by_std = std::thread::spawn(policy).join().unwrap();
                assert_eq!(by_std, given, "threads inherit it");
                let by_us = spawn("test", policy).unwrap().join().unwrap();
                assert_eq!(by_us, wanted);
                assert_eq!(policy(), given, "the starter keeps its own");
            });
            starter.join().unwrap();
        }
    }

    #[test]
    fn a_thread_begins_with_all_signals_blocked_but_those_of_faults() {
        let blocked = |signal| is_signal_blocked(current_tid(), signal);
        let seen = spawn("test", move || {
            [libc::SIGTERM, libc::SIGPROF, libc::SIGSEGV].map(blocked)
        });
        assert_eq!(seen.unwrap().join().unwrap(), [true, true, false]);
        let blocked_inside = move || with_signals_of_the_program(|| blocked(libc::SIGTERM));
        let seen = spawn("test", move || (blocked_inside(), blocked(libc::SIGTERM)));
        assert_eq!(seen.unwrap().join().unwrap(), (false, true));
        assert!(
            !blocked(libc::SIGTERM),
            "the thread that starts it has its own mask back"
        );
    }
}
