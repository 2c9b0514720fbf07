//! What one tick sees of one worker, and what the time between two ticks was spent on.
//!
//! *Runs on:* the watchdog thread.
//! *Must not:* do anything but arithmetic.

use super::belief::StackVerdict;
use crate::clock::Nanos;
use crate::os::{ThreadEvidence, ThreadState};
use crate::report::TimeSplit;
use crate::slot::LongPoll;
use crate::turns::Turn;
use std::time::Duration;

/// What the rules of one runtime are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rules {
    pub(crate) threshold: Duration,
    /// The longest time between two samples of an active worker.
    pub(crate) tick: Duration,
    /// Ages at which a stall is announced besides the doublings: what is logged begins there.
    pub(crate) milestones: [Duration; 3],
    /// Whether an active worker is surely being driven. Not so on a `current_thread` runtime, whose counters
    /// look the same while nobody is inside its `block_on`. Of interest only where memory shows nothing.
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

/// What one tick brings to the detector.
#[derive(Clone, Debug)]
pub(crate) struct Look {
    pub(crate) sample: Sample,
    /// The long polls that the worker's thread has kept a record of since the last tick.
    pub(crate) records: Vec<(PollKey, LongPoll)>,
    /// What stacks have shown since the last tick, by the serial of what they were taken of.
    pub(crate) stacks: Vec<(u64, StackVerdict)>,
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
    /// What memory shows of that thread's poll.
    pub(crate) turn: Option<Turn>,
    /// No mark was made or ended while the thread was looked at, and memory shows the same poll: what was read
    /// belongs together.
    pub(crate) settled: bool,
    pub(crate) thread: Option<ThreadEvidence>,
    /// We have signalled the thread since the last sample, and it has taken the signal.
    pub(crate) signalled: bool,
    /// Time for which a CPU quota has held the process back so far, on all CPUs together.
    pub(crate) throttled: Duration,
}

/// A mark is stamped and a worker's resumption noted by two clocks. So much they may differ …
const CLOCKS_DIFFER: Duration = Duration::from_micros(100);
/// … and by one part in so many of the time that has passed since.
const CLOCKS_DRIFT: u32 = 1000;

impl Sample {
    /// The marked poll that the thread is in.
    pub(super) fn marked(&self) -> Option<PollKey> {
        self.slot
            .filter(|slot| slot.in_poll() && self.settled)
            .map(|slot| slot.poll())
    }

    /// The same, without its mark.
    pub(super) fn unmarked(&self) -> Sample {
        Sample {
            slot: self.slot.map(|slot| SlotSeen {
                epoch: slot.epoch + slot.epoch % 2,
                started: None,
                ..slot
            }),
            ..*self
        }
    }

    /// Whether memory shows another poll in the next sample, or that its thread has left its worker.
    pub(super) fn shows_another_poll(&self, next: &Sample) -> bool {
        match (self.turn, next.turn) {
            (Some(turn), Some(next)) => turn.id != next.id || !next.holds,
            _ => false,
        }
    }

    /// Whether the worker has parked, or looked for events, since the mark of the present poll was made.
    pub(super) fn is_resumed_since_its_mark(&self) -> bool {
        let started = self.slot.and_then(|slot| slot.started);
        let resumed = self.turn.and_then(|turn| turn.resumed);
        let marked = self.marked().and(started);
        marked.zip(resumed).is_some_and(|(started, resumed)| {
            let drift = self.at.since(started) / CLOCKS_DRIFT;
            resumed > started.plus(CLOCKS_DIFFER + drift)
        })
    }

    /// When the present poll began, if that is known, and if no mark has been made since the last look: a mark
    /// is a stall of its own.
    pub(super) fn begun(&self, last: Option<&Sample>) -> Option<Nanos> {
        let epoch = |sample: &Sample| sample.slot.map(|slot| slot.poll());
        let unmarked = last.is_some_and(|last| epoch(last) == epoch(self));
        self.turn?.begun.filter(|_| unmarked)
    }

    /// Whether nothing has moved until the next sample: not the counters, nor the turn where it is seen.
    pub(super) fn is_unmoved_in(&self, next: &Sample) -> bool {
        let loops = |sample: &Sample| sample.slot.map(|slot| slot.loops);
        let turn_stands = match (self.turn, next.turn) {
            (Some(turn), Some(next)) => {
                let of = |turn: Turn| (turn.id.turn, turn.id.entry);
                turn.holds && next.holds && of(turn) == of(next)
            }
            (None, None) => true,
            _ => false,
        };
        let settled = self.settled && next.settled;
        settled && self.after == next.after && loops(self) == loops(next) && turn_stands
    }
}

/// The measured ends of up to two polls: the one that holds the worker, and the one before.
pub(super) type Ends = [Option<(PollKey, Nanos)>; 2];

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
        // It has been on one CPU all the time, as far as the kernel knows: what is missing was taken from the
        // whole machine.
        ThreadState::OnCpu if before.state == ThreadState::OnCpu && before.runs == now.runs => {
            off_cpu
        }
        _ => now.run_queue.saturating_sub(before.run_queue).min(off_cpu),
    }
}
