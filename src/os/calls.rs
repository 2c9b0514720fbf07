//! The system calls that threads sleep in: their names, and the things they wait for.
//!
//! *Runs on:* `stall-reporter`, and a thread that calls `stalled_now()`: both need names.
//! `stall-watchdog` needs kinds.
//!
//! Numbers differ between architectures, so they come from the C library's table.

use super::CallKind;

/// The call's name, or its number if it is not one that programs usually sleep in.
pub(crate) fn call_name(number: i64) -> String {
    match find(number) {
        Some((_, name, _)) => (*name).to_owned(),
        None => format!("system call {number}"),
    }
}

/// Whether a thread in this call waits for events of any kind, as a runtime's driver does.
pub(crate) fn waits_for_events(number: i64) -> bool {
    find(number).is_some_and(|(_, name, _)| name.starts_with("epoll_"))
}

/// The thing that the call waits for.
pub(crate) fn call_kind(number: i64) -> CallKind {
    find(number).map_or(CallKind::Other, |(_, _, kind)| *kind)
}

// The constants are 32 bits wide where pointers are.
#[allow(clippy::useless_conversion)]
fn find(number: i64) -> Option<&'static (libc::c_long, &'static str, CallKind)> {
    CALLS
        .iter()
        .find(|(known, _, _)| i64::from(*known) == number)
}

macro_rules! calls {
    ($($(#[$cfg:meta])* $constant:ident $name:literal $kind:ident)*) => {
        const CALLS: &[(libc::c_long, &str, CallKind)] =
            &[$($(#[$cfg])* (libc::$constant, $name, CallKind::$kind)),*];
    };
}

calls! {
    SYS_accept "accept" Network
    SYS_accept4 "accept4" Network
    SYS_clock_nanosleep "clock_nanosleep" Sleep
    SYS_clone "clone" Process
    SYS_connect "connect" Network
    SYS_copy_file_range "copy_file_range" File
    SYS_epoll_pwait "epoll_pwait" Other
    #[cfg(target_arch = "x86_64")] SYS_epoll_wait "epoll_wait" Other
    SYS_execve "execve" Process
    SYS_fallocate "fallocate" File
    SYS_fcntl "fcntl" Descriptor
    SYS_fdatasync "fdatasync" File
    SYS_flock "flock" File
    #[cfg(target_arch = "x86_64")] SYS_fork "fork" Process
    SYS_fsync "fsync" File
    SYS_ftruncate "ftruncate" File
    SYS_futex "futex" Lock
    SYS_getdents64 "getdents64" File
    SYS_ioctl "ioctl" Descriptor
    SYS_madvise "madvise" Other
    #[cfg(target_arch = "x86_64")] SYS_mkdir "mkdir" File
    SYS_mmap "mmap" Other
    SYS_mprotect "mprotect" Other
    SYS_msync "msync" File
    SYS_munmap "munmap" Other
    SYS_nanosleep "nanosleep" Sleep
    #[cfg(target_arch = "x86_64")] SYS_open "open" File
    SYS_openat "openat" File
    #[cfg(target_arch = "x86_64")] SYS_poll "poll" Poll
    SYS_ppoll "ppoll" Poll
    SYS_pread64 "pread64" Descriptor
    SYS_preadv "preadv" Descriptor
    SYS_process_vm_readv "process_vm_readv" Other
    SYS_pselect6 "pselect6" Poll
    SYS_pwrite64 "pwrite64" Descriptor
    SYS_pwritev "pwritev" Descriptor
    SYS_read "read" Descriptor
    SYS_readv "readv" Descriptor
    SYS_recvfrom "recvfrom" Network
    SYS_recvmmsg "recvmmsg" Network
    SYS_recvmsg "recvmsg" Network
    #[cfg(target_arch = "x86_64")] SYS_rename "rename" File
    SYS_renameat2 "renameat2" File
    #[cfg(target_arch = "x86_64")] SYS_select "select" Poll
    SYS_sendfile "sendfile" Descriptor
    SYS_sendmmsg "sendmmsg" Network
    SYS_sendmsg "sendmsg" Network
    SYS_sendto "sendto" Network
    SYS_splice "splice" Descriptor
    SYS_statx "statx" File
    SYS_sync "sync" File
    SYS_sync_file_range "sync_file_range" File
    SYS_syncfs "syncfs" File
    #[cfg(target_arch = "x86_64")] SYS_unlink "unlink" File
    SYS_unlinkat "unlinkat" File
    #[cfg(target_arch = "x86_64")] SYS_vfork "vfork" Process
    SYS_wait4 "wait4" Process
    SYS_waitid "waitid" Process
    SYS_write "write" Descriptor
    SYS_writev "writev" Descriptor
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn listed_calls_have_a_name_and_others_a_number() {
        assert_eq!(call_name(libc::SYS_clock_nanosleep), "clock_nanosleep");
        assert_eq!(call_name(99_999), "system call 99999");
    }
}
