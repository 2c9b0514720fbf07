//! Decides whether a wait for a blocking pool shows that the pool is exhausted, or that the host is
//! late.
//!
//! *Runs on:* `stall-pulse`.
//! *Must not:* read a clock: times are arguments.
//!
//! An empty closure waits for a thread of the pool, and the thread may wait for a CPU. Two things
//! separate the waits. A thread that is idle shows on its stack that the pool has a thread to give:
//! the time up to then is the host's. Threads of the detector's own wait for a CPU in the same way.
//! The longest such delay, several times over, is the host's as well: one thread gets a CPU later
//! than another.

use crate::clock::Nanos;
use crate::explain::PoolThread;
use std::time::Duration;

/// The number of times over that the longest delay of an own thread is not counted.
const DELAYS: u32 = 4;
/// The shortest wait that counts if no stack has shown a closure that holds a thread. Until then,
/// an own thread has been started and has come back some fifteen times.
const WITHOUT_STACK: Duration = Duration::from_millis(500);

/// The evidence about one wait for a blocking pool.
#[derive(Debug, Default)]
pub(super) struct PoolEvidence {
    /// The time up to which the wait is the host's.
    pub(super) since: Nanos,
    /// The longest delay of an own thread.
    delay: Duration,
    /// A stack since then has shown a closure that holds a thread.
    is_held: bool,
}

impl PoolEvidence {
    /// The evidence about a closure that the pool has from this time on. An own thread started just
    /// before has taken this long to come back.
    pub(super) fn new(since: Nanos, delay: Duration) -> PoolEvidence {
        PoolEvidence {
            since,
            delay,
            is_held: false,
        }
    }

    /// Adds the delay of an own thread during the wait.
    pub(super) fn add_delay(&mut self, delay: Duration) {
        self.delay = self.delay.max(delay);
    }

    /// Adds what a stack has shown, at the time at which it is known.
    pub(super) fn add_stack(&mut self, shown: PoolThread, now: Nanos) {
        match shown {
            PoolThread::Holds => self.is_held = true,
            PoolThread::Idle => (self.since, self.is_held) = (now, false),
        }
    }

    /// Whether so much of the wait counts that the pool may be exhausted.
    pub(super) fn is_suspect(&self, now: Nanos, threshold: Duration) -> bool {
        self.counted(now) >= threshold
    }

    /// Whether the pool is exhausted. While stacks are on their way, nothing is: the thread that
    /// does not answer may be the idle one, which has no CPU to answer.
    pub(super) fn is_exhausted(
        &self,
        now: Nanos,
        threshold: Duration,
        awaits_stacks: bool,
    ) -> bool {
        let needed = if self.is_held {
            threshold
        } else {
            threshold.max(WITHOUT_STACK)
        };
        !awaits_stacks && self.counted(now) >= needed
    }

    fn counted(&self, now: Nanos) -> Duration {
        now.since(self.since)
            .saturating_sub(self.delay.saturating_mul(DELAYS))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const THRESHOLD: Duration = Duration::from_millis(100);

    fn at(millis: u64) -> Nanos {
        Nanos((1_000 + millis) * 1_000_000)
    }

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// A closure is handed over at 0.
    fn wait() -> PoolEvidence {
        PoolEvidence::new(at(0), Duration::ZERO)
    }

    fn is_exhausted(wait: &PoolEvidence, age: u64) -> bool {
        wait.is_exhausted(at(age), THRESHOLD, false)
    }

    #[test]
    fn a_held_thread_counts_from_the_threshold_on() {
        let mut wait = wait();
        assert!(!wait.is_suspect(at(99), THRESHOLD) && wait.is_suspect(at(100), THRESHOLD));
        assert!(!is_exhausted(&wait, 100), "nothing is shown yet");
        wait.add_stack(PoolThread::Holds, at(100));
        assert!(is_exhausted(&wait, 100));
    }

    #[test]
    fn an_idle_thread_shows_that_the_time_so_far_is_the_hosts() {
        let mut wait = wait();
        wait.add_stack(PoolThread::Holds, at(100));
        wait.add_stack(PoolThread::Idle, at(450));
        assert!(!is_exhausted(&wait, 549) && !wait.is_suspect(at(549), THRESHOLD));
        assert!(
            !is_exhausted(&wait, 949),
            "the closure shown before counts no more"
        );
        // The idle thread has taken another closure than the probe.
        wait.add_stack(PoolThread::Holds, at(550));
        assert!(!is_exhausted(&wait, 549) && is_exhausted(&wait, 550));
    }

    #[test]
    fn nothing_is_exhausted_while_a_thread_has_not_answered() {
        let mut wait = wait();
        wait.add_stack(PoolThread::Holds, at(100));
        assert!(!wait.is_exhausted(at(5_000), THRESHOLD, true));
        assert!(wait.is_exhausted(at(5_000), THRESHOLD, false));
    }

    #[test]
    fn without_stacks_a_longer_wait_counts() {
        assert!(!is_exhausted(&wait(), 499) && is_exhausted(&wait(), 500));
        let threshold = millis(800);
        assert!(!wait().is_exhausted(at(799), threshold, false));
        assert!(wait().is_exhausted(at(800), threshold, false));
    }

    #[test]
    fn the_longest_delay_of_an_own_thread_is_left_out_four_times_over() {
        let mut wait = PoolEvidence::new(at(0), millis(60));
        wait.add_delay(millis(150));
        wait.add_delay(millis(20));
        assert!(!wait.is_suspect(at(699), THRESHOLD) && wait.is_suspect(at(700), THRESHOLD));
        assert!(!is_exhausted(&wait, 1_099) && is_exhausted(&wait, 1_100));
        wait.add_stack(PoolThread::Holds, at(650));
        assert!(!is_exhausted(&wait, 699) && is_exhausted(&wait, 700));
        // A host that is always late delays the announcement, and does not prevent it.
        wait.add_delay(millis(500));
        assert!(!is_exhausted(&wait, 2_099) && is_exhausted(&wait, 2_100));
    }
}
