//! The host's share of the time: waits for a CPU, coarse timers, and quotas.
//!
//! *Runs on:* `stall-watchdog`, once a tick; the timer is measured once, when the thread begins.
//! *Must not:* wait for anything but the next tick. A look reads descriptors that are kept open.
//! Those that could not be opened for a shortage are tried again now and then.

use super::files::Pause;
use crate::clock::{self, Nanos};
use crate::os::{self, ThreadFiles, Throttle};
use std::time::Duration;

/// The host's share, as one tick finds it.
#[derive(Clone, Copy)]
pub(super) struct HostTime {
    /// By how much a wait ends too late on this system without any trouble.
    pub(super) usually_late: Duration,
    /// How long the watchdog has waited for a CPU since the last look; `None` if that is unknown.
    pub(super) own_wait: Option<Duration>,
    /// A thread of the process has lost its CPU to another one since the last look. Only asked for
    /// if the system hides some thread.
    pub(super) preempted: bool,
    /// How long a quota has held the process back so far, on all CPUs together.
    pub(super) throttled: Duration,
}

/// How long the watchdog itself has waited for a CPU.
pub(super) struct OwnWait {
    files: Option<ThreadFiles>,
    pause: Pause,
    so_far: Option<Duration>,
}

impl OwnWait {
    pub(super) fn new() -> OwnWait {
        let mut own_wait = OwnWait {
            files: None,
            pause: Pause::default(),
            so_far: None,
        };
        own_wait.since_last_time(clock::now());
        own_wait
    }

    pub(super) fn since_last_time(&mut self, now: Nanos) -> Option<Duration> {
        if self.files.is_none() && self.pause.is_over(now) {
            let files = ThreadFiles::open(os::current_tid());
            self.files = self.pause.note(files, now);
        }
        let waited = self.files.as_ref().and_then(ThreadFiles::run_queue);
        let so_far = std::mem::replace(&mut self.so_far, waited);
        Some(waited?.saturating_sub(so_far?))
    }
}

/// Whether threads of the process lose their CPUs to others: involuntary context switches.
#[derive(Default)]
pub(super) struct Preemptions {
    so_far: Option<u64>,
}

impl Preemptions {
    /// Whether there was one since the last time. The first time, there may have been.
    ///
    /// # Cost
    ///
    /// One system call, which visits each thread of the process.
    pub(super) fn any_since_last_time(&mut self) -> bool {
        let now = os::preemptions();
        let before = std::mem::replace(&mut self.so_far, now);
        now.is_some() && now != before
    }
}

/// Waits for this time. Where it can, the wait ends early if the thread is unparked.
pub(super) fn wait(time: Duration) {
    // A thread that is parked on Windows wakes with a clock of 64 Hz. One that sleeps has a finer
    // timer there, and a runtime that joins is looked at a tick later.
    if cfg!(windows) {
        std::thread::sleep(time);
    } else {
        std::thread::park_timeout(time);
    }
}

/// By how much a wait ends too late here without any trouble. Zero where the watchdog's own wait
/// for a CPU is known: these systems have fine timers.
///
/// # Cost
///
/// Some milliseconds, or some hundred where timers are coarse.
pub(super) fn usually_late(own_wait: &OwnWait) -> Duration {
    if own_wait.files.is_some() {
        return Duration::ZERO;
    }
    usual(|time| {
        let begun = clock::now();
        wait(time);
        clock::now().since(begun)
    })
}

/// The lateness of short waits that this function makes and measures.
///
/// The first wait begins at any moment; the others begin right after the timer's last step. A
/// thread that gets no CPU is later than usual, and its next wait may begin in the middle of a
/// step. So neither the longest wait counts nor the very shortest.
fn usual(mut wait: impl FnMut(Duration) -> Duration) -> Duration {
    const SHORT: Duration = Duration::from_micros(100);
    // The coarsest timer in use has 64 steps a second.
    const COARSEST: Duration = Duration::from_micros(15_625);
    wait(SHORT);
    let mut late = [(); 7].map(|()| wait(SHORT).saturating_sub(SHORT));
    late.sort_unstable();
    let usual = late[1].min(COARSEST);
    // Steps vary a little.
    usual + usual / 8
}

/// The CPU quota of the process. Its use is read at each tick only if there is a quota.
pub(super) struct Quota {
    throttle: Throttle,
    limits: bool,
    before: Duration,
    checked_at: Nanos,
}

/// Time between two checks for a quota, which may be set at any time.
const QUOTA_CHECKED_EVERY: Duration = Duration::from_secs(1);

impl Quota {
    pub(super) fn new() -> Quota {
        let throttle = Throttle::open();
        Quota {
            limits: throttle.has_quota(),
            throttle,
            before: Duration::ZERO,
            checked_at: clock::now(),
        }
    }

    pub(super) fn throttled(&mut self) -> Duration {
        let now = clock::now();
        if !self.limits && now.since(self.checked_at) >= QUOTA_CHECKED_EVERY {
            self.checked_at = now;
            if self.throttle.is_incomplete() {
                self.throttle = Throttle::open();
            }
            self.limits = self.throttle.has_quota();
            // Time that was held back before this check is not counted.
            self.before = self.throttle.read();
        }
        if self.limits {
            self.throttle.read().saturating_sub(self.before)
        } else {
            Duration::ZERO
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// The usual lateness of a timer with steps of this length, if the thread is held up so long
    /// after each of its waits. In microseconds.
    fn usual_of(step: u64, held_up: [u64; 8]) -> u64 {
        let (mut now, mut held_up) = (0, held_up.into_iter());
        let usual = usual(|time| {
            let begun = now;
            let due = begun + u64::try_from(time.as_micros()).unwrap();
            now = due.next_multiple_of(step) + held_up.next().unwrap();
            Duration::from_micros(now - begun)
        });
        u64::try_from(usual.as_micros()).unwrap()
    }

    #[test]
    fn a_coarse_timer_is_usually_late_by_its_step_and_a_busy_machine_is_not() {
        assert_eq!(usual_of(1, [0; 8]), 0);
        assert_eq!(usual_of(1, [0, 0, 9_000, 9_000, 9_000, 9_000, 9_000, 0]), 0);
        for held_up in [[0; 8], [0, 0, 9_000, 0, 0, 0, 0, 0]] {
            let usual = usual_of(15_625, held_up);
            assert!((15_000..18_000).contains(&usual), "{usual}");
        }
        // Never more than the coarsest timer, however busy the machine is.
        assert!(usual_of(1, [90_000; 8]) < 18_000);
    }

    #[test]
    fn a_system_that_shows_the_watchdog_s_own_wait_has_fine_timers() {
        let own_wait = OwnWait::new();
        if own_wait.files.is_some() {
            assert_eq!(usually_late(&own_wait), Duration::ZERO);
        }
        let unknown = OwnWait {
            files: None,
            pause: Pause::default(),
            so_far: None,
        };
        assert!(usually_late(&unknown) < Duration::from_millis(18));
    }
}
