//! Names of the system calls that threads sleep in.
//!
//! *Runs on:* the reporter thread.
//! *Here:* a list. Numbers differ between architectures, so they come from the C library's own table.

/// The call's name, or its number if it is not one that programs usually sleep in.
// The constants are 32 bits wide where pointers are.
#[allow(clippy::useless_conversion)]
pub(crate) fn call_name(number: i64) -> String {
    let known = CALLS.iter().find(|(known, _)| i64::from(*known) == number);
    match known {
        Some((_, name)) => (*name).to_owned(),
        None => format!("system call {number}"),
    }
}

macro_rules! calls {
    ($($(#[$cfg:meta])* $constant:ident $name:literal)*) => {
        const CALLS: &[(libc::c_long, &str)] = &[$($(#[$cfg])* (libc::$constant, $name)),*];
    };
}

calls! {
    SYS_accept "accept"
    SYS_accept4 "accept4"
    SYS_clock_nanosleep "clock_nanosleep"
    SYS_clone "clone"
    SYS_connect "connect"
    SYS_copy_file_range "copy_file_range"
    SYS_epoll_pwait "epoll_pwait"
    #[cfg(target_arch = "x86_64")] SYS_epoll_wait "epoll_wait"
    SYS_execve "execve"
    SYS_fallocate "fallocate"
    SYS_fcntl "fcntl"
    SYS_fdatasync "fdatasync"
    SYS_flock "flock"
    #[cfg(target_arch = "x86_64")] SYS_fork "fork"
    SYS_fsync "fsync"
    SYS_ftruncate "ftruncate"
    SYS_futex "futex"
    SYS_getdents64 "getdents64"
    SYS_ioctl "ioctl"
    SYS_madvise "madvise"
    #[cfg(target_arch = "x86_64")] SYS_mkdir "mkdir"
    SYS_mmap "mmap"
    SYS_mprotect "mprotect"
    SYS_msync "msync"
    SYS_munmap "munmap"
    SYS_nanosleep "nanosleep"
    #[cfg(target_arch = "x86_64")] SYS_open "open"
    SYS_openat "openat"
    #[cfg(target_arch = "x86_64")] SYS_poll "poll"
    SYS_ppoll "ppoll"
    SYS_pread64 "pread64"
    SYS_preadv "preadv"
    SYS_pselect6 "pselect6"
    SYS_pwrite64 "pwrite64"
    SYS_pwritev "pwritev"
    SYS_read "read"
    SYS_readv "readv"
    SYS_recvfrom "recvfrom"
    SYS_recvmmsg "recvmmsg"
    SYS_recvmsg "recvmsg"
    #[cfg(target_arch = "x86_64")] SYS_rename "rename"
    SYS_renameat2 "renameat2"
    #[cfg(target_arch = "x86_64")] SYS_select "select"
    SYS_sendfile "sendfile"
    SYS_sendmmsg "sendmmsg"
    SYS_sendmsg "sendmsg"
    SYS_sendto "sendto"
    SYS_splice "splice"
    SYS_statx "statx"
    SYS_sync "sync"
    SYS_sync_file_range "sync_file_range"
    SYS_syncfs "syncfs"
    #[cfg(target_arch = "x86_64")] SYS_unlink "unlink"
    SYS_unlinkat "unlinkat"
    #[cfg(target_arch = "x86_64")] SYS_vfork "vfork"
    SYS_wait4 "wait4"
    SYS_waitid "waitid"
    SYS_write "write"
    SYS_writev "writev"
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_the_list_has_a_name_and_the_rest_a_number() {
        assert_eq!(call_name(libc::SYS_clock_nanosleep), "clock_nanosleep");
        assert_eq!(call_name(99_999), "system call 99999");
    }
}
