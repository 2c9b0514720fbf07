//! The time of a stall, by the way in which it was spent.
//!
//! *Runs on:* `stall-watchdog`; users read it on any thread.
//!
//! The parts add up to the time that was looked at.

use std::time::Duration;

/// The time of a stall, by the way in which it was spent; a
/// [`StallReport`](crate::StallReport) has it.
///
/// The parts add up to the duration, except for the part of a tick at an end that was not measured.
/// `cpu` and `asleep` are the code's time. `run_queue`, `throttled` and `stopped` are the host's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct TimeSplit {
    /// Computing.
    #[cfg_attr(
        feature = "serde",
        serde(rename = "cpu_seconds", serialize_with = "super::seconds")
    )]
    pub cpu: Duration,
    /// Asleep in the kernel, as in a sleep, a lock, a read or a write.
    #[cfg_attr(
        feature = "serde",
        serde(rename = "asleep_seconds", serialize_with = "super::seconds")
    )]
    pub asleep: Duration,
    /// Ready to compute, without a CPU: other work on the machine had it.
    #[cfg_attr(
        feature = "serde",
        serde(rename = "run_queue_seconds", serialize_with = "super::seconds")
    )]
    pub run_queue: Duration,
    /// Ready to compute, but held back by the CPU quota of a control group.
    #[cfg_attr(
        feature = "serde",
        serde(rename = "throttled_seconds", serialize_with = "super::seconds")
    )]
    pub throttled: Duration,
    /// The whole process stood still: stopped, suspended, or its machine was.
    #[cfg_attr(
        feature = "serde",
        serde(rename = "stopped_seconds", serialize_with = "super::seconds")
    )]
    pub stopped: Duration,
    /// Unknown: this system shows no evidence about the thread, or there was none yet.
    #[cfg_attr(
        feature = "serde",
        serde(rename = "unknown_seconds", serialize_with = "super::seconds")
    )]
    pub unknown: Duration,
}

impl TimeSplit {
    pub(crate) fn unknown(time: Duration) -> TimeSplit {
        TimeSplit {
            unknown: time,
            ..TimeSplit::default()
        }
    }

    /// The sum of the parts that are the host's.
    pub fn host(&self) -> Duration {
        self.run_queue + self.throttled + self.stopped
    }

    /// Whether the code slept for a part of its own time that is worth a word.
    pub(crate) fn has_slept(&self) -> bool {
        !self.asleep.is_zero() && self.asleep * 10 >= self.asleep + self.cpu
    }

    /// The sum of all parts.
    pub fn total(&self) -> Duration {
        self.cpu + self.asleep + self.host() + self.unknown
    }

    pub(crate) fn plus(self, other: TimeSplit) -> TimeSplit {
        TimeSplit {
            cpu: self.cpu + other.cpu,
            asleep: self.asleep + other.asleep,
            run_queue: self.run_queue + other.run_queue,
            throttled: self.throttled + other.throttled,
            stopped: self.stopped + other.stopped,
            unknown: self.unknown + other.unknown,
        }
    }

    /// The split of the last part of the same time, for a worker that was parked before it. Sleep
    /// before that part is left out.
    pub(crate) fn since_parked(self, part: Duration) -> TimeSplit {
        let before = self.total().saturating_sub(part);
        let awake = TimeSplit {
            asleep: self.asleep.saturating_sub(before),
            ..self
        };
        awake.part(part)
    }

    /// The split of a part of the same time, as if it had been spent evenly.
    pub(crate) fn part(self, part: Duration) -> TimeSplit {
        let whole = self.total();
        if whole.is_zero() {
            return TimeSplit::unknown(part);
        }
        let share = part.as_secs_f64() / whole.as_secs_f64();
        TimeSplit {
            cpu: self.cpu.mul_f64(share),
            asleep: self.asleep.mul_f64(share),
            run_queue: self.run_queue.mul_f64(share),
            throttled: self.throttled.mul_f64(share),
            stopped: self.stopped.mul_f64(share),
            unknown: self.unknown.mul_f64(share),
        }
    }
}
