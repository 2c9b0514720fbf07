//! One tick's look at one worker, and the parts of the time between two looks.
//!
//! *Runs on:* `stall-watchdog`.
//! *Must not:* do anything but arithmetic.

use super::HeldBy;
use super::belief::StackVerdict;
use crate::clock::Nanos;
use crate::os::{Call, ThreadEvidence, ThreadState};
use crate::report::TimeSplit;
use crate::slot::{LongPoll, PollKey, Thread};
use crate::turns::Turn;
use std::time::Duration;

/// The rules of one runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rules {
    pub(crate) threshold: Duration,
    /// The longest time between two samples of an active worker.
    pub(crate) tick: Duration,
    /// Ages at which a stall is announced besides the doublings: the log's limits are among them.
    pub(crate) milestones: [Duration; 3],
    /// An active worker is surely driven. The counters of a `current_thread` runtime look the same
    /// while no thread is inside its `block_on`. It matters only if memory shows nothing.
    pub(crate) always_driven: bool,
}

impl Rules {
    /// The watchdog's lateness from which on it is evidence that the process stood still (D81).
    pub(crate) fn least_late(&self) -> Duration {
        self.threshold / 2
    }
}

/// A worker's published counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    /// Grows by one at each park and each unpark: odd while parked.
    pub(crate) parks: u64,
    pub(crate) busy: Duration,
}

impl Counters {
    pub(crate) fn is_parked(&self) -> bool {
        self.parks % 2 == 1
    }
}

/// The marks of the thread that drives the worker, as its slot showed them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SlotSeen {
    pub(crate) thread: Thread,
    /// The time of the thread's last claim of the worker.
    pub(crate) claimed_at: Nanos,
    pub(crate) epoch: u64,
    /// The start of the poll, if it was measured.
    pub(crate) started: Option<Nanos>,
    /// Tokio's number for the task that was polled then; 0 outside of one.
    pub(crate) task: u64,
    pub(crate) allowed: bool,
    pub(crate) allowed_until: Option<Nanos>,
    /// The number of times that the thread was certainly between two polls.
    pub(crate) loops: u64,
}

impl SlotSeen {
    pub(crate) fn in_poll(&self) -> bool {
        self.epoch % 2 == 1
    }

    pub(super) fn poll(&self) -> PollKey {
        PollKey {
            thread: self.thread,
            epoch: self.epoch,
        }
    }
}

/// The input of the detector at one tick.
#[derive(Clone, Debug)]
pub(crate) struct Look {
    pub(crate) sample: Sample,
    /// The long polls that the worker's thread has kept a record of since the last tick (D31).
    pub(crate) records: Vec<(PollKey, LongPoll)>,
    /// The verdicts of stacks since the last tick, each with the serial of its hold.
    pub(crate) stacks: Vec<(u64, StackVerdict)>,
    /// The explainer has a stack of this worker whose verdict is to come.
    pub(crate) is_explaining: bool,
}

/// One tick's view of one worker.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    pub(crate) at: Nanos,
    /// The time by which the watchdog itself woke too late for this tick.
    pub(crate) late: Duration,
    /// The time by which a wait of the watchdog ends too late on this system without any trouble.
    pub(crate) usually_late: Duration,
    /// The time for which the watchdog waited for a CPU since the last sample, if it is known.
    pub(crate) own_wait: Option<Duration>,
    /// The counters before the look at the slot.
    pub(crate) before: Counters,
    /// The counters after the look at the slot.
    pub(crate) after: Counters,
    pub(crate) slot: Option<SlotSeen>,
    /// The poll of that thread, as memory shows it.
    pub(crate) turn: Option<Turn>,
    /// All parts of the look belong together: no mark began or ended during it, the worker neither
    /// parked nor woke, and memory shows the same poll.
    pub(crate) settled: bool,
    /// Memory shows the same poll after the look, or shows none.
    pub(crate) still: bool,
    pub(crate) thread: Option<ThreadEvidence>,
    /// The CPU time of a thread of which the system shows no more than that.
    pub(crate) clock: Option<Duration>,
    /// The system shows threads, and there was no descriptor to look at this one.
    pub(crate) blind: bool,
    /// Since the last sample, a thread of the process has lost its CPU to another one while it
    /// computed. It may be this one. Only asked for where the system shows nothing of this thread.
    pub(crate) preempted: bool,
    /// We have signalled the thread since the last sample, and it has taken the signal.
    pub(crate) signalled: bool,
    /// The thread was asked for a stack before the last sample, or just after it, and has not
    /// answered. One that executes its own code answers at once.
    pub(crate) unanswered: bool,
    /// Time for which a CPU quota has held the process back so far, on all CPUs together.
    pub(crate) throttled: Duration,
}

/// The clocks of a mark and of a worker's resumption may differ by this much at once.
const CLOCKS_DIFFER: Duration = Duration::from_micros(100);
/// The same two clocks may drift apart by one part in so many of the time that passes.
const CLOCKS_DRIFT: u32 = 1000;

impl Sample {
    /// The marked poll that the thread is in.
    pub(super) fn marked(&self) -> Option<PollKey> {
        self.slot
            .filter(|slot| slot.in_poll() && self.settled)
            .map(|slot| slot.poll())
    }

    /// The same sample without its mark.
    pub(super) fn unmarked(&self) -> Sample {
        Sample {
            slot: self.slot.map(|slot| SlotSeen {
                epoch: slot.epoch + slot.epoch % 2,
                started: None,
                task: 0,
                ..slot
            }),
            ..*self
        }
    }

    /// The thread and its system call, if it is asleep.
    pub(super) fn asleep(&self) -> Option<(ThreadEvidence, Option<Call>)> {
        let thread = self.thread?;
        match thread.state {
            ThreadState::Asleep(call) => Some((thread, call)),
            _ => None,
        }
    }

    /// The system call that the thread sleeps in.
    pub(crate) fn asleep_in(&self) -> Option<Call> {
        self.asleep()?.1
    }

    /// The part of the time since the last sample in which the process was stopped.
    pub(super) fn stopped(&self, rules: &Rules, since_last: Duration) -> Duration {
        Late::of(self, rules, since_last).stopped
    }

    /// Whether the next sample shows another poll, or a thread that has left its worker.
    pub(super) fn shows_another_poll(&self, next: &Sample) -> bool {
        match (self.turn, next.turn) {
            (Some(turn), Some(next)) => turn.id != next.id || !next.has_core,
            _ => false,
        }
    }

    /// Whether the worker has parked, or looked for events, since the mark of the present poll.
    pub(super) fn is_resumed_since_its_mark(&self) -> bool {
        let started = self.slot.and_then(|slot| slot.started);
        let resumed = self.turn.and_then(|turn| turn.resumed);
        let marked = self.marked().and(started);
        marked.zip(resumed).is_some_and(|(started, resumed)| {
            let drift = self.at.since(started) / CLOCKS_DRIFT;
            resumed > started.plus(CLOCKS_DIFFER + drift)
        })
    }

    /// The begin of the present poll (D61), if it is known and no mark began or ended since the
    /// last look: code after a mark counts from the end of the mark (D29).
    pub(super) fn begun(&self, last: Option<&Sample>) -> Option<Nanos> {
        let epoch = |sample: &Sample| sample.slot.map(|slot| slot.poll());
        let unmarked = last.is_some_and(|last| epoch(last) == epoch(self));
        self.turn?.begun.filter(|_| unmarked)
    }

    /// Whether nothing has moved until the next sample: not the counters, nor the turn if it is
    /// seen.
    pub(super) fn is_unmoved_in(&self, next: &Sample) -> bool {
        let loops = |sample: &Sample| sample.slot.map(|slot| slot.loops);
        let turn_stands = match (self.turn, next.turn) {
            (Some(turn), Some(next)) => {
                let of = |turn: Turn| (turn.id.turn, turn.id.resumed);
                turn.has_core && next.has_core && of(turn) == of(next)
            }
            (None, None) => true,
            _ => false,
        };
        let still = self.still && next.still;
        still && self.after == next.after && loops(self) == loops(next) && turn_stands
    }
}

/// The records of up to two polls: the one that holds the worker, and the one before.
pub(super) type Ends = [Option<(PollKey, LongPoll)>; 2];

/// The record of a poll, if its thread has measured its end.
pub(super) fn record_of(ends: &Ends, held_by: HeldBy) -> Option<LongPoll> {
    let mut ends = ends.iter().flatten();
    let record = ends.find(|(poll, _)| HeldBy::Mark(*poll) == held_by);
    record.map(|(_, record)| *record)
}

/// The step from the last sample, if there is one, to this one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Advance {
    pub(super) last: Option<Sample>,
    pub(super) sample: Sample,
    pub(super) interval: Option<Interval>,
    /// The counters have moved between the two samples.
    pub(super) went_on: bool,
}

impl Advance {
    pub(super) fn new(
        last: Option<Sample>,
        sample: Sample,
        went_on: bool,
        rules: &Rules,
    ) -> Advance {
        Advance {
            last,
            sample,
            interval: last.map(|last| Interval::between(&last, &sample, rules)),
            went_on,
        }
    }

    /// The time of the last sample; of this one, if it is the first.
    pub(super) fn last_seen(&self) -> Nanos {
        self.last.unwrap_or(self.sample).at
    }

    /// The most that the code can have had of this time: the host's part may lie anywhere in the
    /// step.
    pub(super) fn blamed(&self, since: Nanos, until: Nanos) -> Duration {
        let host = self.interval.unwrap_or_default().host;
        self.seen(since, until).saturating_sub(host)
    }

    /// The split of this time.
    pub(super) fn split(&self, since: Nanos, until: Nanos) -> TimeSplit {
        let seen = self.seen(since, until);
        let split = self.interval.unwrap_or_default().split.part(seen);
        split.plus(TimeSplit::unknown(until.since(since) - seen))
    }

    /// The part of this time that lies between the two looks at the thread. The record of a poll
    /// may be read later than that, if the watchdog loses its CPU in between (D239).
    fn seen(&self, since: Nanos, until: Nanos) -> Duration {
        until.min(self.sample.at).since(since.max(self.last_seen()))
    }

    /// Whether this thread had the worker at both looks.
    pub(super) fn stays_on(&self, thread: Thread) -> bool {
        let has_it = |sample: &Sample| {
            let is_its = sample.slot.is_some_and(|slot| slot.thread == thread);
            is_its && (sample.after.is_parked() || sample.turn.is_some_and(|turn| turn.has_core))
        };
        self.last.is_some_and(|last| has_it(&last)) && has_it(&self.sample)
    }

    /// The time that the busy counter has counted since it had this value.
    pub(super) fn busy_since(&self, busy: Duration) -> Duration {
        self.sample.before.busy.saturating_sub(busy)
    }
}

/// The time between two samples, by its parts.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Interval {
    pub(super) length: Duration,
    /// The part in which the code could do nothing: it had no CPU, or the process stood still.
    pub(super) host: Duration,
    pub(super) split: TimeSplit,
    /// The last part, in which the thread was in the sleep that it is still in, if it is known.
    pub(super) last_sleep: Option<Duration>,
    pub(super) shows: Shows,
}

/// The knowledge that an interval brings of whether the thread had a CPU, or slept by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Shows {
    /// The system shows the thread.
    Thread,
    /// It shows nothing, and no thread of the process was kept from computing.
    #[default]
    Nothing,
    /// It shows nothing, and some thread of the process was: perhaps this one.
    Preemption,
}

impl Interval {
    fn between(last: &Sample, sample: &Sample, rules: &Rules) -> Interval {
        let thread_of = |sample: &Sample| sample.slot.map(|slot| slot.thread);
        let length = sample.at.since(last.at);
        let late = Late::of(sample, rules, length);
        match (last.thread, sample.thread) {
            (Some(before), Some(now)) if thread_of(last) == thread_of(sample) => {
                let throttled = sample.throttled.saturating_sub(last.throttled);
                let has_parked = last.after.parks != sample.after.parks;
                Interval::of_one_thread(&before, &now, has_parked, &late, throttled)
            }
            // The thread is hidden.
            (_, None) if sample.preempted => Interval {
                shows: Shows::Preemption,
                ..Interval::of_hidden(computed(last, sample), &late, length)
            },
            (None, None) if !last.blind && !sample.blind => {
                Interval::of_hidden(computed(last, sample), &late, late.counted)
            }
            // The thread is another one than before, or could not be looked at. Nothing is known of
            // it yet, so it is not blamed (D79).
            _ => Interval::unknown(&late, length),
        }
    }

    fn unknown(late: &Late, host: Duration) -> Interval {
        // A watchdog that may itself have waited for a CPU does not show that the process stood
        // still.
        let stopped = if late.knows_own_wait {
            late.stopped
        } else {
            Duration::ZERO
        };
        Interval {
            length: late.length,
            host,
            split: TimeSplit {
                stopped,
                ..TimeSplit::unknown(late.length - stopped)
            },
            last_sleep: None,
            shows: Shows::Nothing,
        }
    }

    /// The interval of a thread of which no more than the CPU time is known.
    fn of_hidden(computed: Duration, late: &Late, host: Duration) -> Interval {
        let unknown = Interval::unknown(late, host);
        let cpu = computed.min(unknown.split.unknown);
        Interval {
            host: host.min(late.length - cpu),
            split: TimeSplit {
                cpu,
                unknown: unknown.split.unknown - cpu,
                ..unknown.split
            },
            ..unknown
        }
    }

    fn of_one_thread(
        before: &ThreadEvidence,
        now: &ThreadEvidence,
        has_parked: bool,
        late: &Late,
        throttled: Duration,
    ) -> Interval {
        let length = late.length;
        let computed = now.cpu.saturating_sub(before.cpu);
        let cpu = computed.min(length - late.suspect);
        let waited = waited(before, now, has_parked, length).min(length - cpu);
        // The kernel does not count a stop as a wait, so the two do not overlap. If they seem to,
        // the longer one is right.
        let host = late.counted.max(waited).min(length - cpu);
        // The thread went on computing, and then fell asleep once (D86).
        let slept_once = now.state.is_asleep() && stayed_on_cpu(before, now);
        Interval {
            length,
            host,
            split: late.split(cpu, waited, throttled, unexplained(before, now, waited)),
            last_sleep: slept_once.then(|| (length - host).saturating_sub(computed)),
            shows: Shows::Thread,
        }
    }

    pub(super) fn blamed(&self) -> Duration {
        self.length - self.host
    }

    /// The same, with this much more of it the host's.
    pub(super) fn with_more_of_the_host(self, time: Duration) -> Interval {
        Interval {
            host: self.host + time.min(self.blamed()),
            ..self
        }
    }

    /// The part that is blamed if the thread may have waited for a CPU since an earlier moment.
    pub(super) fn computed(&self) -> Duration {
        self.split.cpu.min(self.blamed())
    }
}

/// The CPU time of the worker's thread between two samples, if it is the same thread.
fn computed(last: &Sample, sample: &Sample) -> Duration {
    let thread_of = |sample: &Sample| sample.slot.map(|slot| slot.thread);
    let clock = |sample: &Sample| sample.thread.map(|thread| thread.cpu).or(sample.clock);
    let clocks = clock(last).zip(clock(sample));
    let clocks = clocks.filter(|_| thread_of(last) == thread_of(sample));
    clocks.map_or(Duration::ZERO, |(before, now)| now.saturating_sub(before))
}

/// The watchdog's lateness, as evidence that the whole process stood still.
struct Late {
    /// The time between the two samples.
    length: Duration,
    /// The time for which nothing is blamed (D81).
    counted: Duration,
    /// The part of it in which the process was stopped, as far as it is known (D82).
    stopped: Duration,
    /// The part of it in which even a thread's CPU clock is not believed: a stopped machine may let
    /// it run on. Zero if the watchdog was late because it had no CPU.
    suspect: Duration,
    /// The watchdog's own wait for a CPU is known.
    knows_own_wait: bool,
}

impl Late {
    /// The watchdog wakes a little late whenever the machine is busy, so a short lateness is no
    /// evidence. Beyond it, the usual lateness of a coarse timer is none either. The watchdog's own
    /// wait for a CPU is no stop, and is not blamed either. A process that is stopped and continued
    /// on a busy machine has both, and the kernel counts the wait only when it is over.
    fn of(sample: &Sample, rules: &Rules, length: Duration) -> Late {
        let is_evidence = |late: Duration| late >= rules.least_late();
        let counted = if is_evidence(sample.late.saturating_sub(sample.usually_late)) {
            sample.late.min(length)
        } else {
            Duration::ZERO
        };
        let stopped = counted.saturating_sub(sample.own_wait.unwrap_or_default());
        Late {
            length,
            counted,
            stopped,
            suspect: if is_evidence(stopped) {
                counted
            } else {
                Duration::ZERO
            },
            knows_own_wait: sample.own_wait.is_some(),
        }
    }

    /// The parts of the interval, for the report. Blame is more careful.
    fn split(
        &self,
        cpu: Duration,
        waited: Duration,
        throttled: Duration,
        unexplained: Duration,
    ) -> TimeSplit {
        let (waited, stopped) = if self.knows_own_wait {
            (waited, self.stopped)
        } else if waited >= self.stopped / 2 {
            // A wait about as long as the lateness made the watchdog late, too.
            (waited, self.stopped.saturating_sub(waited))
        } else {
            // A short wait is the rest of an earlier one.
            (Duration::ZERO, self.stopped)
        };
        let stopped = stopped.min(self.length - cpu);
        let waited = waited.min(self.length - cpu - stopped);
        let throttled = throttled.min(waited);
        let unknown = unexplained.min(waited - throttled);
        TimeSplit {
            cpu,
            asleep: self.length - cpu - waited - stopped,
            run_queue: waited - throttled - unknown,
            throttled,
            stopped,
            unknown,
        }
    }
}

/// The part of a wait that is excused without evidence of a wait.
fn unexplained(before: &ThreadEvidence, now: &ThreadEvidence, waited: Duration) -> Duration {
    let counted = now.run_queue.saturating_sub(before.run_queue);
    match now.state {
        ThreadState::Unknown => waited.saturating_sub(counted),
        ThreadState::OnCpu if !stayed_on_cpu(before, now) => waited.saturating_sub(counted),
        _ => Duration::ZERO,
    }
}

/// Whether the thread was on a CPU at the last sample, and has been put on none since.
fn stayed_on_cpu(before: &ThreadEvidence, now: &ThreadEvidence) -> bool {
    before.state == ThreadState::OnCpu && before.runs == now.runs
}

/// The time for which the thread was ready to run without a CPU. It is never too short, so that the
/// code is not blamed for a wait. The kernel counts a wait when it ends, so the interval in which a
/// long one ends may count more of it than fell into it (D77).
fn waited(
    before: &ThreadEvidence,
    now: &ThreadEvidence,
    has_parked: bool,
    length: Duration,
) -> Duration {
    let off_cpu = length.saturating_sub(now.cpu.saturating_sub(before.cpu));
    match now.state {
        // This wait has not ended (D76), or nothing shows that it was no wait.
        ThreadState::Waiting | ThreadState::Unknown => off_cpu,
        // The thread was asleep at neither look, nor parked in between. Missing time may have been
        // taken from the whole machine, and is no evidence of a sleep (D78).
        ThreadState::OnCpu if !before.state.is_asleep() && !has_parked => off_cpu,
        _ => now.run_queue.saturating_sub(before.run_queue).min(off_cpu),
    }
}
