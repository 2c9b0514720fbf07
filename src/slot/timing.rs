//! Chooses the polls to be timed: all of them on a quiet thread, about one a millisecond on a busy
//! one.
//!
//! *Runs on:* worker threads, at the start of a poll on the slow path.
//! *Must not:* do more than a few loads and stores.
//!
//! Watching needs no clock. Timing adds exact durations.

use crate::clock::Nanos;
use crate::sync::{AtomicU64, Ordering, const_unless_loom};

/// How many polls have their start and end measured; for
/// [`Builder::poll_timing`](crate::Builder::poll_timing).
///
/// Every poll is *watched* in any case: a stall is found and reported with each of these. A stall
/// whose poll was timed has an exact start; otherwise its start is known to within a tick.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub enum PollTiming {
    /// Every poll, with two clock reads each.
    Every,
    /// At most about a thousand polls a second on each thread.
    #[default]
    Sampled,
    /// No poll.
    Off,
}

/// The aim of [`PollTiming::Sampled`]: a timed poll per thread and millisecond. In nanoseconds.
const SPACING: u64 = 1_000_000;

static MODE: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(SAMPLED);
const EVERY: u8 = 0;
const SAMPLED: u8 = 1;
const OFF: u8 = 2;

/// Sets the timing of all threads. A thread takes it up at its next slow begin.
pub(crate) fn set_mode(mode: PollTiming) {
    let mode = match mode {
        PollTiming::Every => EVERY,
        PollTiming::Sampled => SAMPLED,
        PollTiming::Off => OFF,
    };
    MODE.store(mode, std::sync::atomic::Ordering::Relaxed);
}

/// One thread's spacing of timed polls. Only the owner touches it.
///
/// Each timed poll costs [`SPACING`] of elapsed time. A quiet thread saves up time for a burst, up
/// to [`MOST_SAVED`]. A thread without credit leaves the slow path; the watchdog sends it there
/// again at its next tick, so that no poll has to count for it.
#[derive(Debug)]
pub(crate) struct Pace {
    last: AtomicU64,
    credit: AtomicU64,
}

/// The choice for one poll, and for the one after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TimingChoice {
    /// The start and the end of this poll are measured.
    pub(crate) timed: bool,
    /// The next poll takes the slow path as well.
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

    /// Chooses whether to time the poll that begins now.
    #[inline]
    pub(crate) fn choose(&self, now: Nanos) -> TimingChoice {
        let all = |timed| TimingChoice {
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

    /// The number of timed polls in the second second, for polls `apart` from each other and a
    /// request for the slow path at each tick.
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
                let choice = pace.choose(Nanos(now.as_nanos() as u64));
                looks = choice.next_too;
                timed += usize::from(choice.timed && now > Duration::from_secs(1));
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
        let burst = (0..100).map(|poll| pace.choose(Nanos(start + poll)).timed);
        assert_eq!(burst.filter(|timed| *timed).count(), 64);
    }

    #[test]
    fn credit_has_an_end() {
        assert_eq!(saved(MOST_SAVED, u64::MAX), MOST_SAVED);
    }
}
