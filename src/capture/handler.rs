//! The signal handler: copies the interrupted thread's registers and stack, and nothing else.
//!
//! *Runs on:* whichever thread is signalled, in the middle of anything: an allocation, a lock, a panic.
//! What installs it runs on whoever starts a watch, what asks for it on whoever asks for a stack.
//! *Here:* in the handler atomics and copies into static memory.
//!
//! # Signal safety
//!
//! Everything that [`on_signal`] reaches: `gettid` as a bare system call; the atomics of the mailboxes
//! and of one slot, all of which live for ever; [`Letter::fill`], which copies; and the place of `errno`,
//! saved and put back; and, for the timers of tests, [`on_timer`](super::sleeping::on_timer). No thread-local, since those may allocate in a library; no unwinding, which has
//! crashed or deadlocked everybody who did it in a handler. Before you add a call here, read what it
//! calls.

use super::POOL;
use super::letter::Letter;
use super::registers::Registers;
use crate::os;
use crate::report::NoStack;
use parking_lot::Mutex;
use std::io;

/// Between the look at who handles a signal and the installation, nobody else of ours looks. The handler
/// is never taken down: a signal may be on its way, and whoever came after us may call it.
static INSTALLING: Mutex<()> = Mutex::new(());

/// The signal used by default. Its default action is none, so one that arrives where the handler is
/// missing does no harm, and debuggers pass it on without a word.
pub(crate) const DEFAULT_SIGNAL: i32 = libc::SIGURG;

/// Whether a handler may be installed for this signal: it exists, can be caught, does not tell of a fault
/// of the thread itself, and is not one of the C library's own.
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
        // Between the last ordinary signal and the first real-time one that is free.
        && !(32..libc::SIGRTMIN()).contains(&signal)
}

/// Installs the handler, unless it is there. Refuses to replace anything but the default or "ignore".
#[allow(unsafe_code)]
pub(crate) fn install(signal: i32) -> Result<(), NoStack> {
    let _installing = INSTALLING.lock();
    let current = disposition(signal).map_err(|_| NoStack::Unsupported)?;
    if current == address() {
        return Ok(());
    }
    if current != libc::SIG_DFL && current != libc::SIG_IGN {
        return Err(NoStack::SignalTaken);
    }
    // SAFETY: all-zero is a valid `sigaction`: no handler, an empty mask, no flags.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = address();
    // ONSTACK: a thread near the end of its stack has an alternate one for handlers. RESTART: what can be
    // restarted is, so that a read does not fail for our sake.
    action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART | libc::SA_ONSTACK;
    // SAFETY: `action` is complete, and the handler keeps to what is safe in one.
    if unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) } != 0 {
        return Err(NoStack::Unsupported);
    }
    Ok(())
}

/// Whether nobody handles the signal any more: sending it might end the process.
pub(super) fn is_taken_away(signal: i32) -> bool {
    let handled = |current| current != libc::SIG_DFL && current != libc::SIG_IGN;
    !disposition(signal).is_ok_and(handled)
}

/// Whether the handler has been replaced by one that may not call it.
pub(crate) fn is_replaced(signal: i32) -> bool {
    disposition(signal).is_ok_and(|current| current != address())
}

#[allow(unsafe_code)]
fn disposition(signal: i32) -> io::Result<libc::sighandler_t> {
    // SAFETY: all-zero is a valid `sigaction` to be written over.
    let mut current: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: asks only; `current` is a valid place for the answer.
    if unsafe { libc::sigaction(signal, std::ptr::null(), &raw mut current) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(current.sa_sigaction)
}

fn address() -> libc::sighandler_t {
    on_signal as extern "C" fn(_, _, _) as usize as libc::sighandler_t
}

/// Rust does not call this, the kernel does. Read "Signal safety" above before you change it.
#[allow(unsafe_code)]
extern "C" fn on_signal(_: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the C library keeps one `errno` per thread, and its place is valid while the thread is.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: as above.
    let saved = unsafe { *errno };
    // SAFETY: with SA_SIGINFO the third argument is the interrupted context, ours to read until we return.
    let registers = Registers::of(unsafe { &*context.cast::<libc::ucontext_t>() });
    let tid = os::current_tid();
    for mailbox in &POOL {
        mailbox.answer(tid, |letter: &mut Letter| letter.fill(registers));
    }
    #[cfg(feature = "testing")]
    {
        // SAFETY: with SA_SIGINFO the second argument tells about the signal, ours to read until we return.
        let info = unsafe { &*info };
        if info.si_code == libc::SI_TIMER {
            // SAFETY: signals of timers carry a value.
            let value = unsafe { info.si_value() };
            super::sleeping::on_timer(value.sival_ptr.addr(), registers, tid);
        }
    }
    #[cfg(not(feature = "testing"))]
    let _ = info;
    // SAFETY: as above.
    unsafe { *errno = saved };
}
