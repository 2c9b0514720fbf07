//! Masks of signals, and a system call that the kernel refuses.
#![allow(unsafe_code)]

use std::io;

/// Blocks a signal for the calling thread, or unblocks it.
pub fn mask(how: libc::c_int, signal: i32) {
    // SAFETY: all-zero is a valid set, which is emptied, and has a valid signal added.
    let changed = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, signal);
        libc::pthread_sigmask(how, &raw const set, std::ptr::null_mut())
    };
    assert_eq!(changed, 0);
}

/// Whether this process handles a signal, as the kernel says.
pub fn is_handled(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let caught = u64::from_str_radix(caught.unwrap().trim(), 16).unwrap();
    caught & (1 << (signal - 1)) != 0
}

/// Blocks the detector's default signal for the calling thread.
pub fn block_sigurg() {
    mask(libc::SIG_BLOCK, libc::SIGURG);
}

/// Has the kernel refuse `process_vm_readv`, as policies of container runtimes do.
pub fn forbid_process_vm_readv() -> io::Result<()> {
    forbid(libc::SYS_process_vm_readv)
}

/// Has the kernel refuse a system call with `EPERM` to the calling thread, and to threads that it
/// starts.
pub fn forbid(call: libc::c_long) -> io::Result<()> {
    let step = |code, otherwise, operand| libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf: otherwise,
        k: operand,
    };
    let number_at = std::mem::offset_of!(libc::seccomp_data, nr) as u32;
    let number = call as u32;
    let denied = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    let mut steps = [
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, number_at),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, number),
        step(libc::BPF_RET | libc::BPF_K, 0, denied),
        step(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: steps.len() as u16,
        filter: steps.as_mut_ptr(),
    };
    let (yes, no): (libc::c_ulong, libc::c_ulong) = (1, 0);
    let filter = libc::c_ulong::from(libc::SECCOMP_MODE_FILTER);
    // SAFETY: restricts this thread; the kernel reads the program before the call returns.
    let restricted = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, yes, no, no, no) == 0
            && libc::prctl(libc::PR_SET_SECCOMP, filter, &raw const program) == 0
    };
    if restricted {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
