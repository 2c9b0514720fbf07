//! Which polls are timed: all of them on a quiet thread, about one a millisecond on a busy one.
//!
//! *Runs on:* worker threads, at the start of a poll that is looked at closer.
//! *Here:* a few loads and stores. Watching needs no clock; timing gives exact durations.

use crate::clock::Nanos;
use crate::sync::{AtomicU64, Ordering, const_unless_loom};

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

/// The aim of [`PollTiming::Sampled`]: a timed poll per thread and millisecond. In nanoseconds.
const SPACING: u64 = 1_000_000;

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

/// One thread's own spacing of timed polls. Only the owner touches it.
///
/// Time passes and pays for timed polls, one for each [`SPACING`]; a thread that has been quiet has saved
/// up for a burst of [`MOST_SAVED`]. When it has run out of credit, its next polls are not even looked at,
/// until the watchdog asks at its next tick: no poll has to count for that.
#[derive(Debug)]
pub(crate) struct Pace {
    last: AtomicU64,
    credit: AtomicU64,
}

/// What to do with a poll, and with the one after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Turn {
    /// Measure its start and its end.
    pub(crate) timed: bool,
    /// Look at the next one as well.
    pub(crate) next_too: bool,
}

/// Credit for 64 timed polls in a row, in nanoseconds.
const MOST_SAVED: u64 = 64 * SPACING;

impl Pace {
    const_unless_loom! {
        pub(crate) fn new() -> Pace {
            Pace {
                last: AtomicU64::new(0),
                credit: AtomicU64::new(0),
            }
        }
    }

    /// Whether to time the poll that begins now.
    #[inline]
    pub(crate) fn turn(&self, now: Nanos) -> Turn {
        let all = |timed| Turn {
            timed,
            next_too: timed,
        };
        match MODE.load(std::sync::atomic::Ordering::Relaxed) {
            EVERY => all(true),
            OFF => all(false),
            _ => {
                let gap = now.0.saturating_sub(self.last.load(Ordering::Relaxed));
                let credit = saved(self.credit.load(Ordering::Relaxed), gap);
                let paid = credit.checked_sub(SPACING);
                self.last.store(now.0, Ordering::Relaxed);
                self.credit.store(paid.unwrap_or(credit), Ordering::Relaxed);
                all(paid.is_some())
            }
        }
    }
}

/// The credit after some time without a timed poll.
fn saved(credit: u64, gap: u64) -> u64 {
    credit.saturating_add(gap).min(MOST_SAVED)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::time::Duration;

    /// Timed polls in the second second of polls that begin so far apart, where the thread is asked to look
    /// around at each tick.
    fn timed_per_second(apart: Duration, tick: Duration) -> usize {
        let pace = Pace::new();
        let (mut now, mut asked_at, mut looks) = (Duration::ZERO, Duration::ZERO, true);
        let mut timed = 0;
        while now < Duration::from_secs(2) {
            now += apart;
            if now - asked_at >= tick {
                asked_at = now;
                looks = true;
            }
            if looks {
                let turn = pace.turn(Nanos(now.as_nanos() as u64));
                looks = turn.next_too;
                timed += usize::from(turn.timed && now > Duration::from_secs(1));
            }
        }
        timed
    }

    #[test]
    fn a_busy_thread_times_about_a_thousand_polls_a_second() {
        for micros in [1, 7, 40, 300] {
            for tick in [500, 5_000, 25_000].map(Duration::from_micros) {
                let timed = timed_per_second(Duration::from_micros(micros), tick);
                assert!(
                    (900..=1_100).contains(&timed),
                    "{timed} timed polls {micros} µs apart, ticks of {tick:?}"
                );
            }
        }
    }

    #[test]
    fn a_quiet_thread_times_every_poll() {
        let apart = Duration::from_millis(5);
        assert_eq!(timed_per_second(apart, Duration::from_millis(25)), 200);
    }

    #[test]
    fn a_burst_after_a_quiet_time_is_timed_whole() {
        let pace = Pace::new();
        let start = 10_000_000_000;
        let burst = (0..100).map(|poll| pace.turn(Nanos(start + poll)).timed);
        assert_eq!(burst.filter(|timed| *timed).count(), 64);
    }

    #[test]
    fn credit_has_an_end() {
        assert_eq!(saved(MOST_SAVED, u64::MAX), MOST_SAVED);
    }
}
