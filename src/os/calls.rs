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

// A `long` of C may have 32 bits.
#[allow(clippy::useless_conversion)]
fn find(number: i64) -> Option<&'static (libc::c_long, &'static str, CallKind)> {
    CALLS
        .iter()
        .chain(CALLS_WITH_LONG_TIMES)
        .find(|(known, _, _)| i64::from(*known) == number)
}

/// Makes the table, in which a call that this architecture has not has a number that no call has.
/// The C library's constants are nearer than those of `absent`, so they are the ones that count.
macro_rules! calls {
    ($($constant:ident $name:literal $kind:ident)*) => {
        #[allow(dead_code, non_upper_case_globals)] // Those that the C library has.
        mod absent {
            $(pub(super) const $constant: libc::c_long = libc::c_long::MIN;)*
        }

        const CALLS: &[(libc::c_long, &str, CallKind)] = {
            #[allow(unused_imports)]
            use absent::*;
            {
                #[allow(unused_imports)]
                use libc::*;
                &[$(($constant, $name, CallKind::$kind)),*]
            }
        };
    };
}

/// The calls that 32-bit systems have a second time, with 64 bits for a time. Their numbers are the
/// same everywhere, and the C library's table does not have them.
const CALLS_WITH_LONG_TIMES: &[(libc::c_long, &str, CallKind)] = if LONG_IS_SHORT {
    &[
        (407, "clock_nanosleep", CallKind::Sleep),
        (413, "pselect6", CallKind::Poll),
        (414, "ppoll", CallKind::Poll),
        (417, "recvmmsg", CallKind::Network),
        (422, "futex", CallKind::Lock),
    ]
} else {
    &[]
};

/// Where a `long` of C has 32 bits, so that a time of it ends in 2038.
const LONG_IS_SHORT: bool = libc::c_long::BITS == 32;

calls! {
    SYS_accept "accept" Network
    SYS_accept4 "accept4" Network
    SYS_arm_sync_file_range "sync_file_range" File
    SYS_clock_nanosleep "clock_nanosleep" Sleep
    SYS_clone "clone" Process
    SYS_clone3 "clone3" Process
    SYS_connect "connect" Network
    SYS_copy_file_range "copy_file_range" File
    SYS_epoll_pwait "epoll_pwait" Other
    SYS_epoll_pwait2 "epoll_pwait2" Other
    SYS_epoll_wait "epoll_wait" Other
    SYS_execve "execve" Process
    SYS_fallocate "fallocate" File
    SYS_fcntl "fcntl" Descriptor
    SYS_fcntl64 "fcntl" Descriptor
    SYS_fdatasync "fdatasync" File
    SYS_flock "flock" Lock
    SYS_fork "fork" Process
    SYS_fsync "fsync" File
    SYS_ftruncate "ftruncate" File
    SYS_ftruncate64 "ftruncate" File
    SYS_futex "futex" Lock
    SYS_getdents64 "getdents64" File
    SYS_ioctl "ioctl" Descriptor
    SYS_madvise "madvise" Other
    SYS_mkdir "mkdir" File
    SYS_mmap "mmap" Other
    SYS_mmap2 "mmap" Other
    SYS_mprotect "mprotect" Other
    SYS_msync "msync" File
    SYS_munmap "munmap" Other
    SYS_nanosleep "nanosleep" Sleep
    SYS__newselect "select" Poll
    SYS_open "open" File
    SYS_openat "openat" File
    SYS_poll "poll" Poll
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
    SYS_rename "rename" File
    SYS_renameat2 "renameat2" File
    SYS_select "select" Poll
    SYS_sendfile "sendfile" Descriptor
    SYS_sendfile64 "sendfile" Descriptor
    SYS_sendmmsg "sendmmsg" Network
    SYS_sendmsg "sendmsg" Network
    SYS_sendto "sendto" Network
    SYS_socketcall "socketcall" Network
    SYS_splice "splice" Descriptor
    SYS_statx "statx" File
    SYS_sync "sync" File
    SYS_sync_file_range "sync_file_range" File
    SYS_sync_file_range2 "sync_file_range" File
    SYS_syncfs "syncfs" File
    SYS_unlink "unlink" File
    SYS_unlinkat "unlinkat" File
    SYS_vfork "vfork" Process
    SYS_wait4 "wait4" Process
    SYS_waitid "waitid" Process
    SYS_write "write" Descriptor
    SYS_writev "writev" Descriptor
}

#[cfg(all(test, not(loom)))]
#[allow(clippy::useless_conversion)] // A `long` of C may have 32 bits.
mod tests {
    use super::*;

    #[test]
    fn listed_calls_have_a_name_and_others_a_number() {
        let name = |constant: libc::c_long| call_name(constant.into());
        assert_eq!(name(libc::SYS_clock_nanosleep), "clock_nanosleep");
        assert_eq!(name(libc::SYS_futex), "futex");
        assert_eq!(name(libc::SYS_process_vm_readv), "process_vm_readv");
        assert_eq!(call_name(99_999), "system call 99999");
    }

    #[test]
    fn a_call_is_absent_only_if_the_c_library_has_no_number_for_it() {
        let absent = |(number, ..): &&(libc::c_long, _, _)| *number == absent::SYS_read;
        assert!(CALLS.iter().filter(absent).count() < CALLS.len() / 2);
        assert!(waits_for_events(libc::SYS_epoll_pwait.into()));
        // This architecture has no second kind of `mmap`.
        #[cfg(target_arch = "x86_64")]
        assert!(
            CALLS
                .iter()
                .any(|(number, ..)| *number == absent::SYS_mmap2)
        );
    }

    #[test]
    fn calls_with_long_times_are_those_of_short_longs() {
        let is_known = call_name(422) == "futex";
        assert_eq!(is_known, cfg!(target_pointer_width = "32"));
    }
}
