//! The host's share of the time: waits for a CPU, and quotas.
//!
//! *Runs on:* `stall-watchdog`, once a tick.
//! *Must not:* wait. A look reads descriptors that are kept open. Those that could not be opened
//! for a shortage are tried again now and then.

use super::files::Pause;
use crate::clock::{self, Nanos};
use crate::os::{self, ThreadFiles, Throttle};
use std::time::Duration;

/// The host's share, as one tick finds it.
#[derive(Clone, Copy)]
pub(super) struct HostTime {
    /// How long the watchdog has waited for a CPU since the last look; `None` if that is unknown.
    pub(super) own_wait: Option<Duration>,
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
