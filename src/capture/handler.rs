//! The signal handler: copies the interrupted thread's registers and stack, and nothing else.
//!
//! *Runs on:* the stalled thread, in the middle of anything: an allocation, a lock, a panic. The
//! thread that starts a watch installs it. `stall-watchdog` and a thread that requests stacks check
//! it.
//! *Must not:* do anything in the handler but atomics, copies into static memory, and the calls
//! below.
//!
//! # Signal safety
//!
//! [`on_signal`] reaches:
//!
//! * `gettid` as a bare system call;
//! * the atomics of the mailboxes and of one slot, all of which live for ever;
//! * [`Letter::fill`], which copies;
//! * the place of `errno`, saved and put back;
//! * for the timers of tests, [`on_timer`](super::timer::on_timer).
//!
//! It uses no thread-local, since those may allocate in a library. It does not unwind: unwinding in
//! a handler can crash or deadlock. Before you add a call here, read everything that it calls.

use super::POOL;
use super::letter::Letter;
use super::registers::Registers;
use crate::os;
use crate::report::NoStack;
use parking_lot::Mutex;
use std::io;
use std::time::Duration;

/// Held from the look at a signal's handler to the installation, so that two watches do not
/// interleave. The handler is never removed: a signal may be on its way, and a handler installed
/// later may call it.
static INSTALLING: Mutex<()> = Mutex::new(());

/// How long an installation waits for another one, which takes some microseconds. In a forked child
/// the lock may be held for ever, by a thread of the parent.
const LONGEST_INSTALLATION: Duration = Duration::from_secs(1);

/// The signal used by default. Its default action is none, so it does no harm without the handler,
/// and debuggers pass it on silently.
pub(crate) const DEFAULT_SIGNAL: i32 = libc::SIGURG;

/// Whether a handler may be installed for this signal: it exists, can be caught, does not report a
/// fault of the thread itself, and is not used by the C library.
pub(crate) fn is_usable(signal: i32) -> bool {
    const NEVER: [i32; 8] = [
        libc::SIGKILL,
        libc::SIGSTOP,
        libc::SIGSEGV,
        libc::SIGBUS,
        libc::SIGILL,
        libc::SIGFPE,
        libc::SIGTRAP,
        libc::SIGABRT,
    ];
    (1..=libc::SIGRTMAX()).contains(&signal)
        && !NEVER.contains(&signal)
        // The C library's signals lie between the ordinary ones and the first free real-time one.
        && !(32..libc::SIGRTMIN()).contains(&signal)
}

/// Installs the handler, unless it is installed. Replaces only the default action and "ignore".
///
/// # Errors
///
/// [`NoStack::SignalTaken`] if another handler is installed, [`NoStack::Unsupported`] if the system
/// refuses.
pub(crate) fn install(signal: i32) -> Result<(), NoStack> {
    let _installing = INSTALLING.try_lock_for(LONGEST_INSTALLATION);
    let current = disposition(signal).map_err(|_| NoStack::Unsupported)?;
    if current == address() {
        return Ok(());
    }
    if current != libc::SIG_DFL && current != libc::SIG_IGN {
        return Err(NoStack::SignalTaken);
    }
    set(signal)
}

#[allow(unsafe_code)]
fn set(signal: i32) -> Result<(), NoStack> {
    // SAFETY: all-zero is a valid `sigaction`: no handler, an empty mask, no flags.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = address();
    // ONSTACK: a thread near the end of its stack has an alternate one for handlers. RESTART: the
    // kernel restarts interrupted calls where it can, so that a read does not fail because of us.
    // The mask: another handler would run on top of ours, on that small alternate stack.
    action.sa_mask = os::all_but_faults();
    action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART | libc::SA_ONSTACK;
    // SAFETY: `action` is complete, and the handler keeps to what is safe in one.
    if unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) } != 0 {
        return Err(NoStack::Unsupported);
    }
    keep_this_library();
    Ok(())
}

/// Keeps the library that holds the handler from being unloaded: the handler is never taken down.
/// The call changes nothing for a program that is no library.
#[allow(unsafe_code)]
fn keep_this_library() {
    let mut info = std::mem::MaybeUninit::<libc::Dl_info>::zeroed();
    let here = on_signal as extern "C" fn(_, _, _) as *const libc::c_void;
    // SAFETY: asks for the file that an address is in; `info` is a place for the answer.
    if unsafe { libc::dladdr(here, info.as_mut_ptr()) } == 0 {
        return;
    }
    // SAFETY: all-zero is valid, and the call has filled it in.
    let name = unsafe { info.assume_init() }.dli_fname;
    let flags = libc::RTLD_LAZY | libc::RTLD_NOLOAD | libc::RTLD_NODELETE;
    // SAFETY: a name that the loader itself has given. Nothing is loaded: it is loaded already.
    unsafe { libc::dlopen(name, flags) };
}

/// Whether the signal has no handler any more: sending it might end the process.
pub(super) fn is_taken_away(signal: i32) -> bool {
    let handled = |current| current != libc::SIG_DFL && current != libc::SIG_IGN;
    !disposition(signal).is_ok_and(handled)
}

/// Whether the handler has been replaced by one that may not call it.
pub(crate) fn is_replaced(signal: i32) -> bool {
    disposition(signal).is_ok_and(|current| current != address())
}

/// The handler that is installed for the signal.
#[allow(unsafe_code)]
pub(super) fn disposition(signal: i32) -> io::Result<libc::sighandler_t> {
    // SAFETY: all-zero is a valid `sigaction` to be written over.
    let mut current: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: reads only. `current` is a valid place for the answer.
    if unsafe { libc::sigaction(signal, std::ptr::null(), &raw mut current) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(current.sa_sigaction)
}

fn address() -> libc::sighandler_t {
    on_signal as extern "C" fn(_, _, _) as usize as libc::sighandler_t
}

/// The signal handler, called by the kernel. Read "Signal safety" above before you change it.
#[allow(unsafe_code)]
extern "C" fn on_signal(_: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the C library keeps one `errno` per thread, valid as long as the thread.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: as above.
    let saved = unsafe { *errno };
    // SAFETY: with SA_SIGINFO the third argument is the interrupted context, ours to read until we
    // return.
    let registers = Registers::of(unsafe { &*context.cast::<libc::ucontext_t>() });
    let tid = os::current_tid();
    for mailbox in &POOL {
        mailbox.answer(tid, |letter: &mut Letter| letter.fill(registers));
    }
    #[cfg(feature = "testing")]
    // SAFETY: with SA_SIGINFO the second argument describes the signal, ours to read until we
    // return.
    on_timer_signal(unsafe { &*info }, registers, tid);
    #[cfg(not(feature = "testing"))]
    let _ = info;
    // SAFETY: as above.
    unsafe { *errno = saved };
}

/// Passes a signal of a timer on.
#[cfg(feature = "testing")]
#[allow(unsafe_code)]
fn on_timer_signal(info: &libc::siginfo_t, registers: Registers, tid: u32) {
    if info.si_code == libc::SI_TIMER {
        // SAFETY: signals of timers carry a value.
        let value = unsafe { info.si_value() };
        super::timer::on_timer(value.sival_ptr.addr(), registers, tid);
    }
}
