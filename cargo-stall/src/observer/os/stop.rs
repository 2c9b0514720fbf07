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
//! that is over. It is waited for 100 ms at most. Each tick looks whether it can be let go.
//!
//! A thread that exits while it is seized stays until its exit is taken, and its process stays with
//! it. Whoever gets an error of [`stopped`] asks [`is_let_go`] until that is so.

#![allow(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;
use std::time::{Duration, Instant};
use tokio_stall::outside::ThreadRegisters;

/// The longest wait for a thread to stop. It may have to wait for a CPU, longer than a thread of a
/// busy machine mostly does.
const LONGEST: Duration = Duration::from_millis(100);

/// Stops a thread, calls `read` with its registers, and lets it go. Returns also how long it was
/// held.
///
/// # Errors
///
/// The thread exits, another debugger has it, the kernel forbids it, or it could not be stopped
/// soon. It may be seized still.
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
    request(libc::PTRACE_INTERRUPT, tid, 0, std::ptr::null_mut())?;
    let signal = wait_for(tid, begun + LONGEST)?;
    let read = registers(tid).map(read);
    let detached = let_go(tid, signal);
    let held = begun.elapsed();
    let read = read?;
    detached?;
    Ok((read, held))
}

/// Lets a thread go that is seized still: if it is stopped by now, or has exited. Returns whether
/// it is free.
pub(crate) fn is_let_go(tid: u32) -> bool {
    let tid = tid as i32;
    match event(tid, libc::WNOHANG) {
        Ok(Some(Event::Stopped(signal))) => let_go(tid, signal).is_ok(),
        Ok(Some(Event::Exited)) => {
            take_exit(tid);
            true
        }
        Ok(None) => false,
        // It is not seized.
        Err(_) => true,
    }
}

/// Whether a child has ended. Its exit is left to its parent. A wait for the child would take a
/// stop of ours, too.
pub(crate) fn has_ended(child: u32) -> bool {
    matches!(
        event(child as i32, libc::WNOHANG),
        Ok(Some(Event::Exited)) | Err(_)
    )
}

/// Takes the exit of a thread, so that its process can end. The exit of a child of ours is for the
/// one who waits for children.
fn take_exit(tid: i32) {
    if is_child(tid) {
        return;
    }
    let mut seen = MaybeUninit::<libc::siginfo_t>::zeroed();
    let exits = libc::WEXITED | libc::WNOHANG | libc::__WALL;
    // SAFETY: `seen` is a valid place for the answer.
    unsafe { libc::waitid(libc::P_PID, tid as u32, seen.as_mut_ptr(), exits) };
}

/// Whether this is the main thread of a child of this process.
fn is_child(tid: i32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{tid}/status")).unwrap_or_default();
    let is = |name: &str, number: String| {
        let mut lines = status.lines();
        let field = lines.find_map(|line| line.strip_prefix(name));
        field.is_some_and(|field| field.trim() == number)
    };
    is("Tgid:", tid.to_string()) && is("PPid:", std::process::id().to_string())
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
        if let Some(signal) = stop_of(tid, 0)? {
            return Ok(signal);
        }
    }
}

/// The same, up to this moment.
fn wait_for(tid: i32, end: Instant) -> io::Result<libc::c_int> {
    let children = blocked_sigchld();
    loop {
        if let Some(signal) = stop_of(tid, libc::WNOHANG)? {
            return Ok(signal);
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "it could not be stopped: it waits for a disk, for a child, or for a CPU",
            ));
        }
        let left = libc::timespec {
            tv_sec: left.as_secs() as libc::time_t,
            tv_nsec: left.subsec_nanos().into(),
        };
        // A stop sends `SIGCHLD`, which wakes this thread at once. A sleep would hold the other one
        // for longer.
        // SAFETY: both pointers are valid for the call, and the signal's details are not asked for.
        unsafe { libc::sigtimedwait(&raw const children, std::ptr::null_mut(), &raw const left) };
    }
}

/// Blocks `SIGCHLD` in this thread, so that it can be waited for. Nobody else here wants it.
fn blocked_sigchld() -> libc::sigset_t {
    let mut set = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: the first call makes the set valid, and the others get it.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGCHLD);
        libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut());
        set.assume_init()
    }
}

/// The signal that a stopped thread was about to take, or zero. `None` if it is not stopped.
fn stop_of(tid: i32, options: libc::c_int) -> io::Result<Option<libc::c_int>> {
    match event(tid, options)? {
        Some(Event::Stopped(signal)) => Ok(Some(signal)),
        Some(Event::Exited) => Err(io::Error::from_raw_os_error(libc::ESRCH)),
        None => Ok(None),
    }
}

/// A thing that has happened to a seized thread.
enum Event {
    /// It is stopped, and was about to take this signal, or none: zero.
    Stopped(libc::c_int),
    Exited,
}

/// The thread's event, if there is one. It is looked at and not taken. With `WNOHANG` it is not
/// waited for.
fn event(tid: i32, options: libc::c_int) -> io::Result<Option<Event>> {
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
    Ok(Some(match code {
        libc::CLD_TRAPPED | libc::CLD_STOPPED if is_event => Event::Stopped(0),
        libc::CLD_TRAPPED | libc::CLD_STOPPED => Event::Stopped(status),
        _ => Event::Exited,
    }))
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command, Stdio};
    use std::thread;

    /// In a process of the test below, makes this the program.
    const PROGRAM: &str = "TOKIO_STALL_TEST_PROGRAM";

    #[test]
    fn a_program_that_ends_when_its_input_does() {
        if std::env::var_os(PROGRAM).is_some() {
            let seized = thread::Builder::new().name("seized".to_owned());
            seized
                .spawn(|| thread::sleep(Duration::from_secs(600)))
                .unwrap();
            std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).unwrap();
        }
    }

    fn program() -> Child {
        let this = thread::current();
        let name = this.name().unwrap().rsplit_once("::").unwrap().0;
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.arg(format!("{name}::a_program_that_ends_when_its_input_does"));
        command.env(PROGRAM, "1");
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    }

    fn until<T>(mut found: impl FnMut() -> Option<T>) -> T {
        let begun = Instant::now();
        loop {
            if let Some(found) = found() {
                return found;
            }
            assert!(begun.elapsed() < Duration::from_secs(60));
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn seized_thread(pid: u32) -> Option<u32> {
        let mut tasks = std::fs::read_dir(format!("/proc/{pid}/task"))
            .ok()?
            .flatten();
        let task = tasks.find(|task| {
            let name = std::fs::read_to_string(task.path().join("comm"));
            name.is_ok_and(|name| name == "seized\n")
        })?;
        task.file_name().to_str()?.parse().ok()
    }

    fn is_zombie(pid: u32, tid: u32) -> bool {
        std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/stat"))
            .unwrap()
            .contains(") Z ")
    }

    #[test]
    fn a_thread_that_exits_while_it_is_seized_lets_its_process_end() {
        let mut child = program();
        let tid = until(|| seized_thread(child.id()));
        seize(tid as i32).unwrap();
        assert!(!is_let_go(tid));
        drop(child.stdin.take());
        until(|| is_zombie(child.id(), child.id()).then_some(()));
        until(|| is_zombie(child.id(), tid).then_some(()));
        // The control: the seized thread holds its process back.
        assert!(child.try_wait().unwrap().is_none());
        until(|| is_let_go(tid).then_some(()));
        assert!(child.wait().unwrap().success());
    }

    #[test]
    fn the_exit_of_a_child_is_left_to_its_parent() {
        let mut child = program();
        let tid = child.id();
        until(|| seized_thread(tid));
        seize(tid as i32).unwrap();
        drop(child.stdin.take());
        until(|| is_zombie(tid, tid).then_some(()));
        // Its other threads die when they get a CPU.
        until(|| is_let_go(tid).then_some(()));
        assert!(child.wait().unwrap().success());
    }

    #[test]
    fn a_child_that_is_stopped_has_not_ended() {
        let mut child = program();
        let tid = child.id();
        until(|| seized_thread(tid));
        seize(tid as i32).unwrap();
        request(libc::PTRACE_INTERRUPT, tid as i32, 0, std::ptr::null_mut()).unwrap();
        let stopped = || stop_of(tid as i32, libc::WNOHANG).unwrap();
        until(stopped);
        assert!(!has_ended(tid));
        until(|| is_let_go(tid).then_some(()));
        drop(child.stdin.take());
        until(|| has_ended(tid).then_some(()));
        assert!(child.wait().unwrap().success());
    }
}
