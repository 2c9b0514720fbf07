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
#[derive(Debug)]
pub(crate) struct Pace {
    every: AtomicU32,
    last: AtomicU64,
}

impl Pace {
    pub(crate) fn new() -> Pace {
        Pace {
            every: AtomicU32::new(1),
            last: AtomicU64::new(0),
        }
    }

    /// How many polls to let pass untimed after the one timed at `now`.
    pub(crate) fn skip_after(&self, now: Nanos) -> u32 {
        match MODE.load(std::sync::atomic::Ordering::Relaxed) {
            EVERY => 0,
            OFF => MOST_SKIPPED,
            _ => {
                let gap = now.since(Nanos(self.last.load(Ordering::Relaxed)));
                self.last.store(now.0, Ordering::Relaxed);
                let every = next_every(self.every.load(Ordering::Relaxed), gap);
                self.every.store(every, Ordering::Relaxed);
                every - 1
            }
        }
    }
}

/// Doubles N while timed polls come too often, halves it while they are rare.
fn next_every(every: u32, gap: Duration) -> u32 {
    if gap < SPACING {
        (every * 2).min(MOST_SKIPPED)
    } else if gap > SPACING * 2 {
        (every / 2).max(1)
    } else {
        every
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// Timed polls in a second of polls of this length in a row, after a second to settle.
    fn timed_per_second(poll: Duration) -> u64 {
        let (mut every, mut skipped, mut timed) = (1, 0, 0);
        let mut last = Duration::ZERO;
        let mut now = Duration::ZERO;
        while now < Duration::from_secs(2) {
            now += poll;
            skipped += 1;
            if skipped >= every {
                every = next_every(every, now - last);
                (last, skipped) = (now, 0);
                timed += u64::from(now >= Duration::from_secs(1));
            }
        }
        timed
    }

    #[test]
    fn a_busy_thread_times_about_a_thousand_polls_a_second() {
        for micros in [1, 7, 40] {
            let timed = timed_per_second(Duration::from_micros(micros));
            assert!(
                (400..=1_500).contains(&timed),
                "{timed} timed polls of {micros} µs"
            );
        }
    }

    #[test]
    fn a_quiet_thread_times_every_poll() {
        let timed = timed_per_second(Duration::from_millis(5));
        assert!((200..=201).contains(&timed), "{timed} of 200");
    }
}
