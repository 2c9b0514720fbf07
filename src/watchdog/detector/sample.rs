//! What one tick sees of one worker, and what the time between two ticks was spent on.
//!
//! *Runs on:* the watchdog thread.
//! *Here:* plain data and arithmetic.

use super::split::TimeSplit;
use crate::capture::{ThreadEvidence, ThreadState};
use crate::clock::Nanos;
use std::time::Duration;

/// What the rules of one runtime are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rules {
    pub(crate) threshold: Duration,
    /// The longest time between two samples of an active worker.
    pub(crate) tick: Duration,
    /// The most polls a worker makes between two publications of its counters.
    pub(crate) polls_per_publication: u32,
    /// Ages at which a stall is announced besides the doublings: what is logged begins there.
    pub(crate) milestones: [Duration; 3],
    /// Whether an active worker is surely being driven. Not so on a `current_thread` runtime, whose
    /// counters look the same while nobody is inside its `block_on`.
    pub(crate) always_driven: bool,
}

/// A worker's published counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    /// Grows by one at each park and each unpark: odd while parked.
    pub(crate) parks: u64,
    pub(crate) busy: Duration,
}

/// What the slot of the thread that drives the worker showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SlotSeen {
    /// Which slot and which owner of it.
    pub(crate) thread: (usize, u64),
    pub(crate) epoch: u64,
    /// When the poll started, if that was measured.
    pub(crate) started: Option<Nanos>,
    pub(crate) allowed: bool,
    pub(crate) allowed_until: Option<Nanos>,
    /// How often the thread was seen between two polls for certain.
    pub(crate) loops: u64,
}

impl SlotSeen {
    pub(super) fn in_poll(&self) -> bool {
        self.epoch % 2 == 1
    }

    pub(super) fn poll(&self) -> PollKey {
        PollKey {
            thread: self.thread,
            epoch: self.epoch,
        }
    }
}

/// Names one poll for as long as the process lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PollKey {
    pub(crate) thread: (usize, u64),
    pub(crate) epoch: u64,
}

/// One tick's view of one worker.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    pub(crate) at: Nanos,
    /// How late the watchdog itself woke for this tick.
    pub(crate) late: Duration,
    /// How long the watchdog waited for a CPU since the last sample, where that can be told.
    pub(crate) own_wait: Option<Duration>,
    /// The counters before the slot was looked at, and after.
    pub(crate) before: Counters,
    pub(crate) after: Counters,
    pub(crate) slot: Option<SlotSeen>,
    pub(crate) thread: Option<ThreadEvidence>,
    /// We have signalled the thread since the last sample, and it has taken the signal.
    pub(crate) signalled: bool,
    /// Time for which a CPU quota has held the process back so far, on all CPUs together.
    pub(crate) throttled: Duration,
    /// When polls that the detector follows ended, as far as their threads have measured that by now.
    pub(crate) ends: Ends,
}

/// The measured ends of up to two polls: the one that holds the worker, and the one before.
pub(crate) type Ends = [Option<(PollKey, Nanos)>; 2];
/// What the time between two samples was spent on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Interval {
    pub(super) length: Duration,
    /// The part in which the code could do nothing: no CPU to be had, or the process stood still.
    pub(super) host: Duration,
    pub(super) split: TimeSplit,
    /// For so long, up to its end, the thread has been in a sleep that it is still in, where that is known.
    pub(super) last_sleep: Option<Duration>,
}

impl Interval {
    pub(super) fn between(last: &Sample, sample: &Sample, rules: &Rules) -> Interval {
        let length = sample.at.since(last.at);
        let late = Late::of(sample, rules, length);
        let (host, split) = match threads(last, sample) {
            Threads::Same(before, now) => {
                let cpu = now.cpu.saturating_sub(before.cpu);
                let cpu = cpu.min(length - late.suspect);
                let waited = waited(&before, &now, length).min(length - cpu);
                // Being stopped is not counted as a wait by the kernel, so the two do not overlap; where
                // they seem to, the longer one is right.
                let host = late.counted.max(waited).min(length - cpu);
                (host, split(sample, last, &late, cpu, waited, length))
            }
            // Another thread than before: nothing is known of it yet, so nothing is blamed.
            Threads::Other => (length, late.split(length)),
            // Nothing can be told on this system.
            Threads::Unknown => (late.counted, late.split(length)),
        };
        Interval {
            length,
            host,
            split,
            last_sleep: last_sleep(last, sample, length - host),
        }
    }

    pub(super) fn blamed(self) -> Duration {
        self.length - self.host
    }
}

/// How late the watchdog was, as far as that is evidence that the whole process stood still.
struct Late {
    /// The time that is nobody's doing.
    counted: Duration,
    /// The part of it in which the process was stopped, as far as can be told.
    stopped: Duration,
    /// The part in which even a thread's CPU clock is not believed: a machine that is stopped may let it
    /// run on. None, if the watchdog was late for want of a CPU.
    suspect: Duration,
}

impl Late {
    /// The watchdog wakes a little late whenever the machine is busy; the little is no evidence. What it
    /// waited for a CPU itself is no stop, but blamed on nobody either: a process that is stopped and
    /// continued on a busy machine does both, and the kernel counts the one only when it is over.
    fn of(sample: &Sample, rules: &Rules, length: Duration) -> Late {
        let counted = if sample.late >= rules.threshold / 2 {
            sample.late.min(length)
        } else {
            Duration::ZERO
        };
        let stopped = counted.saturating_sub(sample.own_wait.unwrap_or_default());
        let suspect = if stopped >= rules.threshold / 2 {
            counted
        } else {
            Duration::ZERO
        };
        Late {
            counted,
            stopped,
            suspect,
        }
    }

    fn split(&self, length: Duration) -> TimeSplit {
        TimeSplit {
            stopped: self.counted,
            ..TimeSplit::unknown(length - self.counted)
        }
    }
}

/// What the time was spent on, in words for people; blame is more careful.
fn split(
    sample: &Sample,
    last: &Sample,
    late: &Late,
    cpu: Duration,
    waited: Duration,
    length: Duration,
) -> TimeSplit {
    let (waited, stopped) = match sample.own_wait {
        Some(_) => (waited, late.stopped),
        // A wait about as long as the watchdog was late is what made it late, too. A short one is the rest
        // of an earlier wait.
        None if waited >= late.stopped / 2 => (waited, late.stopped.saturating_sub(waited)),
        None => (Duration::ZERO, late.stopped),
    };
    let stopped = stopped.min(length - cpu);
    let waited = waited.min(length - cpu - stopped);
    let throttled = sample.throttled.saturating_sub(last.throttled).min(waited);
    TimeSplit {
        cpu,
        asleep: length - cpu - waited - stopped,
        run_queue: waited - throttled,
        throttled,
        stopped,
        unknown: Duration::ZERO,
    }
}

enum Threads {
    Same(ThreadEvidence, ThreadEvidence),
    Other,
    Unknown,
}

fn threads(last: &Sample, sample: &Sample) -> Threads {
    let thread_of = |sample: &Sample| sample.slot.map(|slot| slot.thread);
    match (last.thread, sample.thread) {
        (Some(before), Some(now)) if thread_of(last) == thread_of(sample) => {
            Threads::Same(before, now)
        }
        (None, None) => Threads::Unknown,
        _ => Threads::Other,
    }
}

/// How long the thread has been asleep, if it was on a CPU at the last sample and has not been put on one since: it
/// went on computing there, and then fell asleep once.
fn last_sleep(last: &Sample, sample: &Sample, awake_or_asleep: Duration) -> Option<Duration> {
    let Threads::Same(before, now) = threads(last, sample) else {
        return None;
    };
    let once = before.state == ThreadState::OnCpu
        && matches!(now.state, ThreadState::Asleep(_))
        && before.runs == now.runs;
    once.then(|| awake_or_asleep.saturating_sub(now.cpu.saturating_sub(before.cpu)))
}

/// How long the thread was ready to run without a CPU: never too little, so that code is not blamed for
/// it. The kernel counts a wait when it ends, so the interval in which a long one ends may count more of
/// it than fell into it.
fn waited(before: &ThreadEvidence, now: &ThreadEvidence, length: Duration) -> Duration {
    let off_cpu = length.saturating_sub(now.cpu.saturating_sub(before.cpu));
    match now.state {
        // This wait has not ended.
        ThreadState::Waiting => off_cpu,
        _ => now.run_queue.saturating_sub(before.run_queue).min(off_cpu),
    }
}
