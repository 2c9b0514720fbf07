//! The cause of a stall, by the way in which its time was spent.
//!
//! *Runs on:* `stall-reporter`, and a thread that calls [`stalled_now`](crate::Guard::stalled_now).
//! `stall-watchdog` looks up the kind of a call's descriptor.
//!
//! Shares of the time decide, never an absolute time.

use super::inner_lock::inner_lock;
use crate::os::{self, Call, CallKind, Descriptor, Pid};
use crate::report::{Blocking, Cause, Frame, TimeSplit, done_by_the_poll};
use std::time::Duration;

/// The cause of a stall, from the split of its time, the call it slept in longest, and its stack.
pub(crate) fn cause(
    split: &TimeSplit,
    threshold: Duration,
    slept_in: Option<SleptIn>,
    frames: &[Frame],
) -> Cause {
    let code = split.cpu + split.asleep;
    if (code + split.host()) * 2 < split.unknown || split.total().is_zero() {
        return Cause::Unknown;
    }
    if split.host() > code * MOSTLY && code < threshold * LONG_BY_ITSELF {
        return host_cause(split);
    }
    if split.cpu >= split.asleep {
        return Cause::Cpu;
    }
    match blocking(slept_in, frames) {
        Blocking::Lock if code < threshold * LONG_FOR_A_LOCK && waits_for_inner_lock(frames) => {
            Cause::Contention
        }
        kind => Cause::Blocked(kind),
    }
}

/// Whether the thread waits for a lock whose holder can only be without a CPU (D192).
fn waits_for_inner_lock(frames: &[Frame]) -> bool {
    inner_lock(done_by_the_poll(frames)).is_some()
}

/// The cause at the host, by the longest part of its time.
fn host_cause(split: &TimeSplit) -> Cause {
    let parts = [
        (split.run_queue, Cause::Contention),
        (split.throttled, Cause::Throttled),
        (split.stopped, Cause::Suspended),
    ];
    let longest = parts.into_iter().max_by_key(|(time, _)| *time);
    longest.map_or(Cause::Unknown, |(_, cause)| cause)
}

/// If the host's time is more than so many times the code's own, the host is the cause.
const MOSTLY: u32 = 3;
/// If the code by itself held the worker for so many thresholds, the host is not the cause.
const LONG_BY_ITSELF: u32 = 5;
/// A thread that holds an inner lock has a CPU again within so many thresholds (D192). With ten
/// threads to a CPU, waits of 300 ms have been seen.
const LONG_FOR_A_LOCK: u32 = 100;

/// A call that a thread slept in, and the kind of its descriptor at that time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SleptIn {
    pub(crate) call: Call,
    pub(crate) descriptor: Descriptor,
}

impl SleptIn {
    /// A call that has returned. Its descriptor may refer to another object by now.
    pub(crate) fn long_ago(call: Call) -> SleptIn {
        SleptIn {
            call,
            descriptor: Descriptor::Other,
        }
    }

    /// A call that the thread sleeps in now. Looks up its descriptor.
    pub(crate) fn now(call: Call) -> SleptIn {
        SleptIn::now_in(Pid::OWN, call)
    }

    /// A call that a thread of this process sleeps in now. Looks up its descriptor.
    pub(crate) fn now_in(process: Pid, call: Call) -> SleptIn {
        let descriptor = match os::call_kind(call.number) {
            CallKind::Descriptor => os::descriptor(process, call.first),
            _ => Descriptor::Other,
        };
        SleptIn { call, descriptor }
    }
}

/// The thing that a thread slept for, by the call it slept in longest and by its stack.
fn blocking(slept_in: Option<SleptIn>, frames: &[Frame]) -> Blocking {
    if waits_for_a_process(frames) {
        return Blocking::Process;
    }
    let Some(SleptIn { call, descriptor }) = slept_in else {
        return Blocking::Other;
    };
    match (os::call_kind(call.number), descriptor) {
        (CallKind::Sleep, _) => Blocking::Sleep,
        (CallKind::Lock, _) => Blocking::Lock,
        (CallKind::File, _) | (CallKind::Descriptor, Descriptor::File) => Blocking::File,
        (CallKind::Network, _) | (CallKind::Descriptor, Descriptor::Socket) => Blocking::Network,
        // A poll of no descriptors is a sleep. The number of descriptors is not available for all
        // of these calls. Only `poll` and its kind take a null pointer.
        (CallKind::Poll, _) if call.first == 0 => Blocking::Sleep,
        (CallKind::Poll, _) => Blocking::Network,
        (CallKind::Process, _) if starts_a_thread(frames) => Blocking::Other,
        (CallKind::Process, _) => Blocking::Process,
        (CallKind::Descriptor, Descriptor::Other) | (CallKind::Other, _) => Blocking::Other,
    }
}

/// Whether the stack passes through the standard library's code for processes.
fn waits_for_a_process(frames: &[Frame]) -> bool {
    // The output of a child comes through a pipe, and its end through a pid file. These calls are
    // like others, but the functions are not.
    done_by_the_poll(frames)
        .iter()
        .filter_map(|frame| frame.function.as_deref())
        .any(is_of_processes)
}

/// Whether a function is of the standard library's code for processes. One that has such a type for
/// an argument is not.
fn is_of_processes(function: &str) -> bool {
    let path = function.trim_start_matches(['<', '&']);
    path.starts_with("std::process::") || path.starts_with("std::sys::process::")
}

/// Whether the stack passes through the start of a thread: that and a process begin with one call.
fn starts_a_thread(frames: &[Frame]) -> bool {
    // A worker's thread has itself been started, further out.
    let frames = done_by_the_poll(frames).iter();
    let names = frames.filter_map(|frame| frame.function.as_deref());
    let mut names = names.take_while(|name| !is_of_processes(name));
    names.any(|name| name.contains("pthread_create") || name.contains("std::thread::"))
}

#[cfg(all(test, not(loom), target_os = "linux"))]
mod tests {
    use super::*;
    use crate::report::Origin;

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    fn slept_in(number: i64, first: u64, descriptor: Descriptor) -> Option<SleptIn> {
        let call = Call {
            number,
            first,
            sp: 0,
            pc: 0,
        };
        Some(SleptIn { call, descriptor })
    }

    #[test]
    fn the_code_s_own_time_decides_unless_it_is_short_and_a_small_part() {
        let cause =
            |split: &TimeSplit, slept_in, frames: &[Frame]| cause(split, ms(20), slept_in, frames);
        let mut split = TimeSplit {
            cpu: ms(40),
            asleep: ms(39),
            run_queue: ms(10),
            ..TimeSplit::default()
        };
        let sleeping = slept_in(libc::SYS_clock_nanosleep, 0, Descriptor::Other);
        assert_eq!(cause(&split, sleeping, &[]), Cause::Cpu);
        split.asleep = ms(41);
        assert_eq!(
            cause(&split, sleeping, &[]),
            Cause::Blocked(Blocking::Sleep)
        );
        split.run_queue = ms(81 * 3);
        assert_eq!(
            cause(&split, sleeping, &[]),
            Cause::Blocked(Blocking::Sleep),
            "longer for the host, but long by itself"
        );
        split.run_queue = ms(81 * 3 + 1);
        assert_eq!(cause(&split, sleeping, &[]), Cause::Contention);
        split.throttled = ms(81 * 4);
        assert_eq!(cause(&split, sleeping, &[]), Cause::Throttled);
        split.stopped = ms(81 * 5);
        assert_eq!(cause(&split, sleeping, &[]), Cause::Suspended);
        assert!(cause(&split, sleeping, &[]).is_host());
        split.asleep = ms(61);
        assert_eq!(
            cause(&split, sleeping, &[]),
            Cause::Blocked(Blocking::Sleep),
            "five thresholds by itself"
        );
    }

    #[test]
    fn a_wait_for_the_allocator_s_lock_is_the_host_s() {
        let split = |milliseconds| TimeSplit {
            asleep: ms(milliseconds),
            ..TimeSplit::default()
        };
        let in_futex = slept_in(libc::SYS_futex, 0, Descriptor::Other);
        let frames = |functions: &[&str]| -> Vec<Frame> {
            let frame = |name: &&str| match *name {
                "app::handler" => Frame::of(name, Origin::Own),
                _ => Frame::of(name, Origin::System),
            };
            functions.iter().map(frame).collect()
        };
        let inside = frames(&["__lll_lock_wait_private", "cfree", "app::handler"]);
        let outside = frames(&["futex_wait", "app::handler"]);
        let cause = |split: &TimeSplit, frames: &[Frame]| cause(split, ms(10), in_futex, frames);
        assert_eq!(cause(&split(12), &inside), Cause::Contention);
        assert_eq!(cause(&split(990), &inside), Cause::Contention);
        assert_eq!(cause(&split(12), &outside), Cause::Blocked(Blocking::Lock));
        // A thread without a CPU for so long is not likely: the lock may never be free again.
        assert_eq!(
            cause(&split(1_000), &inside),
            Cause::Blocked(Blocking::Lock)
        );
    }

    #[test]
    fn the_start_of_a_thread_is_not_that_of_a_process() {
        let frames = |name| {
            [
                Frame::of("clone3", Origin::System),
                Frame::of(name, Origin::Std),
                Frame::of("app::handler", Origin::Own),
            ]
        };
        let kind = |name| {
            let call = slept_in(libc::SYS_clone3, 0, Descriptor::Other);
            blocking(call, &frames(name))
        };
        assert_eq!(
            kind("std::thread::lifecycle::spawn_unchecked"),
            Blocking::Other
        );
        assert_eq!(kind("pthread_create@@GLIBC_2.34"), Blocking::Other);
        for process in [
            "std::process::Command::spawn",
            "<std::process::Command>::output",
            "<std::process::Child as std::os::linux::process::ChildExt>::pidfd",
            "std::sys::process::unix::unix::Process::wait",
        ] {
            assert_eq!(kind(process), Blocking::Process, "{process}");
        }
        let waits = [Frame::of("app::retry::<std::process::Output>", Origin::Own)];
        let asleep = slept_in(libc::SYS_clock_nanosleep, 0, Descriptor::Other);
        assert_eq!(blocking(asleep, &waits), Blocking::Sleep);
        // The start of the worker's own thread is not the poll's doing.
        let frames = [
            Frame::of("vfork", Origin::System),
            Frame::of("app::handler", Origin::Own),
            Frame::of("tokio::runtime::task::raw::poll", Origin::Runtime),
            Frame::of("std::thread::lifecycle::spawn_unchecked", Origin::Std),
        ];
        let call = slept_in(libc::SYS_clone, 0, Descriptor::Other);
        assert_eq!(blocking(call, &frames), Blocking::Process);
    }

    #[test]
    fn time_that_is_mostly_without_evidence_is_unknown() {
        let split = TimeSplit {
            cpu: ms(1),
            unknown: ms(9),
            ..TimeSplit::default()
        };
        let cause = |split: &TimeSplit| cause(split, ms(10), None, &[]);
        assert_eq!(cause(&split), Cause::Unknown);
        assert_eq!(cause(&TimeSplit::default()), Cause::Unknown);
    }

    #[test]
    fn a_read_has_the_kind_of_its_descriptor() {
        let kind = |number, descriptor| blocking(slept_in(number, 5, descriptor), &[]);
        assert_eq!(kind(libc::SYS_read, Descriptor::File), Blocking::File);
        assert_eq!(kind(libc::SYS_read, Descriptor::Socket), Blocking::Network);
        assert_eq!(kind(libc::SYS_read, Descriptor::Other), Blocking::Other);
        assert_eq!(kind(libc::SYS_fsync, Descriptor::Other), Blocking::File);
        assert_eq!(kind(libc::SYS_futex, Descriptor::Other), Blocking::Lock);
        assert_eq!(kind(libc::SYS_flock, Descriptor::Other), Blocking::Lock);
        assert_eq!(kind(libc::SYS_wait4, Descriptor::Other), Blocking::Process);
        assert_eq!(blocking(None, &[]), Blocking::Other);
    }
}
