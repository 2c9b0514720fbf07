//! The one clock that marks, ticks and reports share, so that their stamps can be compared.
//!
//! *Runs on:* any thread; inside a poll only if that poll is timed.
//! *Must not:* allocate, except at the first reading, which [`prime`] makes.

use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

static CLOCK: OnceLock<quanta::Clock> = OnceLock::new();

/// Readings that are no further apart belong together.
pub(crate) const AT_ONCE: Duration = Duration::from_micros(200);

/// A point on the shared clock, in nanoseconds since an arbitrary start. Zero is never a reading.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Nanos(pub(crate) u64);

impl Nanos {
    /// The time from `earlier` to `self`; zero if `earlier` is later.
    pub(crate) fn since(self, earlier: Nanos) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    pub(crate) fn plus(self, span: Duration) -> Nanos {
        Nanos(
            self.0
                .saturating_add(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)),
        )
    }

    pub(crate) fn minus(self, span: Duration) -> Nanos {
        Nanos(
            self.0
                .saturating_sub(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)),
        )
    }
}

/// Reads the clock: the time-stamp counter where the processor has a steady one (about 7 ns), else
/// the operating system's monotonic clock.
#[inline]
pub(crate) fn now() -> Nanos {
    let clock = CLOCK.get_or_init(quanta::Clock::new);
    Nanos(clock.delta_as_nanos(0, clock.raw()).max(1))
}

/// Calibrates the clock, which takes some milliseconds, so that no poll ever pays for it.
pub(crate) fn prime() {
    now();
}

/// The wall clock at a point on the shared clock.
pub(crate) fn wall_clock(at: Nanos) -> SystemTime {
    let today = SystemTime::now();
    today.checked_sub(now().since(at)).unwrap_or(today)
}
