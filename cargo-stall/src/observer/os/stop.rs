//! Stops one thread for as long as its registers and its stack are read.
//!
//! *Runs on:* the main thread.
//! *Must not:* attach with `PTRACE_ATTACH`, which sends a signal, or set `PTRACE_O_EXITKILL`, which
//! would kill the thread with the observer.
//!
//! `PTRACE_SEIZE` and `PTRACE_INTERRUPT` stop the thread without a signal. It may be stopped by a
//! signal of its own at that moment. The signal is then handed on.
//!
//! A thread that waits for a disk, or for a server of files that is gone, cannot be stopped before
//! that is over. It is not waited for. It is let go when it stops, which is looked for each tick.

#![allow(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;
use std::time::{Duration, Instant};
use tokio_stall::outside::ThreadRegisters;

/// The longest wait for a thread to stop. It may have to wait for a CPU.
const LONGEST: Duration = Duration::from_millis(20);

/// Most threads stop within this time, so they are asked all the time until then.
const SOON: Duration = Duration::from_micros(200);

/// Stops a thread, calls `read` with its registers, and lets it go. Returns also how long it was
/// held.
///
/// # Errors
///
/// The thread has exited, another debugger has it, or the kernel forbids it. With
/// [`TimedOut`](io::ErrorKind::TimedOut) it could not be stopped soon, and [`is_let_go`] must be
/// asked until it is.
///
/// # Cost
///
/// The thread is held for 10 to 50 µs, and for the time of `read`.
pub(crate) fn stopped<R>(
    tid: u32,
    read: impl FnOnce(ThreadRegisters) -> R,
) -> io::Result<(R, Duration)> {
    let tid = tid as i32;
    seize(tid)?;
    let begun = Instant::now();
    // A thread that has been seized is let go by the kernel if it exits now.
    request(libc::PTRACE_INTERRUPT, tid, 0, std::ptr::null_mut())?;
    let signal = wait_for(tid, begun + LONGEST)?;
    let read = registers(tid).map(read);
    let detached = let_go(tid, signal);
    let held = begun.elapsed();
    let read = read?;
    detached?;
    Ok((read, held))
}

/// Lets a thread go that could not be stopped soon, if it is stopped by now. Returns whether it is
/// free, or has exited.
pub(crate) fn is_let_go(tid: u32) -> bool {
    let tid = tid as i32;
    match stopped_by(tid, libc::WNOHANG) {
        Ok(None) => false,
        Ok(Some(signal)) => let_go(tid, signal).is_ok(),
        Err(_) => true,
    }
}

/// Lets a thread that is stopped go on, with the signal that it was about to take.
pub(super) fn let_go(tid: i32, signal: libc::c_int) -> io::Result<()> {
    let signal = std::ptr::without_provenance_mut(signal as usize);
    request(libc::PTRACE_DETACH, tid, 0, signal)
}

fn seize(tid: i32) -> io::Result<()> {
    request(libc::PTRACE_SEIZE, tid, 0, std::ptr::null_mut())
}

fn request(
    request: libc::c_uint,
    tid: i32,
    address: usize,
    data: *mut libc::c_void,
) -> io::Result<()> {
    let address = std::ptr::without_provenance_mut::<libc::c_void>(address);
    // SAFETY: the kernel writes to `data` alone, and only for the request for registers, which
    // passes a vector that is valid for the call.
    let result = unsafe { libc::ptrace(request, tid, address, data) };
    match result {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Waits until the thread is stopped. Returns the signal that it was about to take, or zero.
pub(super) fn wait(tid: i32) -> io::Result<libc::c_int> {
    loop {
        if let Some(signal) = stopped_by(tid, 0)? {
            return Ok(signal);
        }
    }
}

/// The same, up to this moment. A thread on a CPU stops within microseconds.
fn wait_for(tid: i32, end: Instant) -> io::Result<libc::c_int> {
    let soon = Instant::now() + SOON;
    loop {
        if let Some(signal) = stopped_by(tid, libc::WNOHANG)? {
            return Ok(signal);
        }
        match Instant::now() {
            now if now < soon => std::thread::yield_now(),
            now if now < end => std::thread::sleep(SOON),
            _ => return Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

/// Whether the thread is stopped: the signal that it was about to take, or zero. `None` if it is
/// not, and the options let the call return.
///
/// The event is looked at and not taken: the thread may be a child of ours that has exited, and
/// its exit is for the one who waits for children.
fn stopped_by(tid: i32, options: libc::c_int) -> io::Result<Option<libc::c_int>> {
    let mut seen = MaybeUninit::<libc::siginfo_t>::zeroed();
    let events = libc::WSTOPPED | libc::WEXITED | libc::WNOWAIT | libc::__WALL | options;
    loop {
        // SAFETY: `seen` is a valid place for the answer.
        let failed = unsafe { libc::waitid(libc::P_PID, tid as u32, seen.as_mut_ptr(), events) };
        let error = io::Error::last_os_error();
        match failed {
            0 => break,
            _ if error.kind() == io::ErrorKind::Interrupted => {}
            _ => return Err(error),
        }
    }
    // SAFETY: all-zero is a valid answer, and the kernel has written the fields for children.
    let (pid, code, status) = unsafe {
        let seen = seen.assume_init();
        (seen.si_pid(), seen.si_code, seen.si_status())
    };
    if pid == 0 {
        return Ok(None);
    }
    let is_event = status >> 8 != 0;
    match code {
        libc::CLD_TRAPPED | libc::CLD_STOPPED if is_event => Ok(Some(0)),
        libc::CLD_TRAPPED | libc::CLD_STOPPED => Ok(Some(status)),
        _ => Err(io::Error::from_raw_os_error(libc::ESRCH)),
    }
}

fn registers(tid: i32) -> io::Result<ThreadRegisters> {
    let mut set = MaybeUninit::<libc::user_regs_struct>::zeroed();
    let mut vector = libc::iovec {
        iov_base: set.as_mut_ptr().cast(),
        iov_len: size_of::<libc::user_regs_struct>(),
    };
    const GENERAL: usize = 1; // NT_PRSTATUS
    request(
        libc::PTRACE_GETREGSET,
        tid,
        GENERAL,
        (&raw mut vector).cast(),
    )?;
    // SAFETY: all-zero is a valid set of registers, and the kernel has written the rest.
    Ok(of_set(&unsafe { set.assume_init() }))
}

#[cfg(target_arch = "x86_64")]
fn of_set(set: &libc::user_regs_struct) -> ThreadRegisters {
    ThreadRegisters {
        pc: set.rip,
        sp: set.rsp,
        fp: set.rbp,
        lr: 0,
    }
}

#[cfg(target_arch = "aarch64")]
fn of_set(set: &libc::user_regs_struct) -> ThreadRegisters {
    ThreadRegisters {
        pc: set.pc,
        sp: set.sp,
        fp: set.regs[29],
        lr: set.regs[30],
    }
}
