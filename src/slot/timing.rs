//! Which polls are timed: all of them on a quiet thread, one in N on a busy one.
//!
//! *Runs on:* worker threads, at the start of a timed poll.
//! *Here:* one clock read and a few stores. Watching needs no clock; timing gives exact durations.

use crate::clock::Nanos;
use crate::sync::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// How many polls have their start and end measured.
///
/// Every poll is *watched* in any case: a stall is found and reported whichever is chosen. A stall whose
/// poll was timed has an exact start; otherwise its start is known to within a tick.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub enum PollTiming {
    /// Every poll: two clock reads for each.
    Every,
    /// At most about a thousand polls a second on each thread.
    #[default]
    Sampled,
    /// None.
    Off,
}

/// The aim of [`PollTiming::Sampled`]: a timed poll per thread and millisecond.
const SPACING: Duration = Duration::from_millis(1);
const MOST_SKIPPED: u32 = 1 << 16;

static MODE: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(SAMPLED);
const EVERY: u8 = 0;
const SAMPLED: u8 = 1;
const OFF: u8 = 2;

/// Sets the timing of all threads; each takes it up at its next look around.
pub(crate) fn set_mode(mode: PollTiming) {
    let mode = match mode {
        PollTiming::Every => EVERY,
        PollTiming::Sampled => SAMPLED,
        PollTiming::Off => OFF,
    };
    MODE.store(mode, std::sync::atomic::Ordering::Relaxed);
}

pub(crate) fn is_off() -> bool {
    MODE.load(std::sync::atomic::Ordering::Relaxed) == OFF
}

/// One thread's own spacing of timed polls. Only the owner touches it.
///
/// Time passes and pays for timed polls, one for each [`SPACING`]; a thread that has been quiet has saved
/// up for a burst of [`SAVED`]. In debt N doubles, in credit it halves. Besides, the watchdog asks each
/// worker's thread once a tick to time its next poll, so that N polls never take long to pass.
#[derive(Debug)]
pub(crate) struct Pace {
    every: AtomicU32,
    last: AtomicU64,
    credit: AtomicU64,
}

/// Timed polls that a quiet thread can make in a row.
const SAVED: u32 = 64;

impl Pace {
    pub(crate) fn new() -> Pace {
        Pace {
            every: AtomicU32::new(1),
            last: AtomicU64::new(0),
            credit: AtomicU64::new(0),
        }
    }

    /// How many polls to let pass untimed after the one timed at `now`.
    pub(crate) fn skip_after(&self, now: Nanos) -> u32 {
        match MODE.load(std::sync::atomic::Ordering::Relaxed) {
            EVERY => 0,
            OFF => MOST_SKIPPED,
            _ => {
                let gap = now.since(Nanos(self.last.load(Ordering::Relaxed)));
                let credit = Duration::from_nanos(self.credit.load(Ordering::Relaxed));
                let (every, credit) = next_every(self.every.load(Ordering::Relaxed), credit, gap);
                self.last.store(now.0, Ordering::Relaxed);
                // At most `SPACING * SAVED`, so it fits.
                self.credit
                    .store(credit.as_nanos() as u64, Ordering::Relaxed);
                self.every.store(every, Ordering::Relaxed);
                every - 1
            }
        }
    }
}

/// The next N, and the credit left, after a timed poll that came `gap` after the one before.
fn next_every(every: u32, credit: Duration, gap: Duration) -> (u32, Duration) {
    let credit = credit.saturating_add(gap).min(SPACING * SAVED);
    match credit.checked_sub(SPACING) {
        // Halved for each spacing that has passed: a burst long ago says nothing of now.
        Some(left) => {
            let spacings = (gap.as_nanos() / SPACING.as_nanos()).clamp(1, 31) as u32;
            ((every >> spacings).max(1), left)
        }
        None => ((every * 2).min(MOST_SKIPPED), Duration::ZERO),
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// Timed polls in a second of polls of this length in a row, after a second to settle.
    fn timed_per_second(poll: Duration) -> u64 {
        let (mut every, mut credit, mut skipped, mut timed) = (1, Duration::ZERO, 0, 0);
        let (mut last, mut now) = (Duration::ZERO, Duration::ZERO);
        while now < Duration::from_secs(2) {
            now += poll;
            skipped += 1;
            if skipped >= every {
                (every, credit) = next_every(every, credit, now - last);
                (last, skipped) = (now, 0);
                timed += u64::from(now > Duration::from_secs(1));
            }
        }
        timed
    }

    #[test]
    fn a_busy_thread_times_about_a_thousand_polls_a_second() {
        for micros in [1, 7, 40] {
            let timed = timed_per_second(Duration::from_micros(micros));
            assert!(
                (500..=1_500).contains(&timed),
                "{timed} timed polls of {micros} µs"
            );
        }
    }

    #[test]
    fn a_quiet_thread_times_every_poll() {
        assert_eq!(timed_per_second(Duration::from_millis(5)), 200);
    }

    #[test]
    fn a_burst_is_forgotten_within_milliseconds() {
        assert_eq!(next_every(512, Duration::ZERO, SPACING).0, 256);
        assert_eq!(next_every(512, Duration::ZERO, SPACING * 9).0, 1);
    }

    #[test]
    fn a_burst_after_a_quiet_time_is_timed_whole() {
        let (mut every, mut credit) = next_every(1, Duration::ZERO, Duration::from_secs(1));
        for _ in 1..SAVED {
            assert_eq!(every, 1);
            (every, credit) = next_every(every, credit, Duration::from_micros(1));
        }
        assert_eq!(every, 1);
        assert_eq!(next_every(every, credit, Duration::from_micros(1)).0, 2);
    }
}
