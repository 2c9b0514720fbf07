//! Why a worker was held: the verdict on how the time was spent.
//!
//! *Runs on:* the reporter thread, and whoever asks what is stalled now; the watchdog looks where a call's
//! descriptor leads.
//! *Here:* arithmetic and names. Shares decide; nothing is ever classified by its size.

use crate::os::{self, Call, CallKind, Descriptor};
use crate::report::{Blocking, Cause, Frame, TimeSplit, of_the_poll};
use std::time::Duration;

/// The verdict on a stall, from how its time was spent, the call it slept in longest, and its stack.
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
        let parts = [
            (split.run_queue, Cause::Contention),
            (split.throttled, Cause::Throttled),
            (split.stopped, Cause::Suspended),
        ];
        let longest = parts.into_iter().max_by_key(|(time, _)| *time);
        return longest.map_or(Cause::Unknown, |(_, cause)| cause);
    }
    if split.cpu >= split.asleep {
        Cause::Cpu
    } else {
        Cause::Blocked(blocking(slept_in, frames))
    }
}

/// So many times the code's own time is mostly the host's doing …
const MOSTLY: u32 = 3;
/// … but not if the code held the worker for so many thresholds by itself.
const LONG_BY_ITSELF: u32 = 5;

/// A call that a thread slept in, and what its descriptor led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SleptIn {
    pub(crate) call: Call,
    pub(crate) descriptor: Descriptor,
}

impl SleptIn {
    /// The call has returned: its descriptor may lead elsewhere by now.
    pub(crate) fn long_ago(call: Call) -> SleptIn {
        SleptIn {
            call,
            descriptor: Descriptor::Other,
        }
    }

    /// Looks at the descriptor now, while the thread sleeps.
    pub(crate) fn now(call: Call) -> SleptIn {
        let descriptor = match os::call_kind(call.number) {
            CallKind::Descriptor => os::descriptor(call.first),
            _ => Descriptor::Other,
        };
        SleptIn { call, descriptor }
    }
}

fn blocking(slept_in: Option<SleptIn>, frames: &[Frame]) -> Blocking {
    // What a child writes comes through a pipe, and its end through a pid file: the calls look like
    // others, the functions do not.
    let passes = |module: &str| {
        of_the_poll(frames)
            .iter()
            .filter_map(|frame| frame.function.as_deref())
            .any(|function| function.contains(module))
    };
    if passes("std::process::") || passes("std::sys::process::") {
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
        // To poll nothing is to sleep; the number of descriptors is not at hand for all of these, but
        // only `poll` and its kind take a null pointer.
        (CallKind::Poll, _) if call.first == 0 => Blocking::Sleep,
        (CallKind::Poll, _) => Blocking::Network,
        (CallKind::Process, _) => Blocking::Process,
        (CallKind::Descriptor, Descriptor::Other) | (CallKind::Other, _) => Blocking::Other,
    }
}

#[cfg(all(test, not(loom), target_os = "linux"))]
mod tests {
    use super::*;
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
    fn what_was_hardly_looked_at_is_unknown() {
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
    fn a_read_is_what_its_descriptor_is() {
        let kind = |number, descriptor| blocking(slept_in(number, 5, descriptor), &[]);
        assert_eq!(kind(libc::SYS_read, Descriptor::File), Blocking::File);
        assert_eq!(kind(libc::SYS_read, Descriptor::Socket), Blocking::Network);
        assert_eq!(kind(libc::SYS_read, Descriptor::Other), Blocking::Other);
        assert_eq!(kind(libc::SYS_fsync, Descriptor::Other), Blocking::File);
        assert_eq!(kind(libc::SYS_futex, Descriptor::Other), Blocking::Lock);
        assert_eq!(kind(libc::SYS_wait4, Descriptor::Other), Blocking::Process);
        assert_eq!(blocking(None, &[]), Blocking::Other);
    }
}
