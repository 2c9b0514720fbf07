//! The detector against samples made by hand.
//!
//! *Must not:* use a clock, a thread or a sleep.

mod host;
mod marked;
mod model;
mod turns;
mod unmarked;
mod unseen;

use super::*;
use crate::os::{Call, ThreadEvidence, ThreadState};
use crate::turns::Turn;

const TICK: Duration = Duration::from_millis(5);
const THRESHOLD: Duration = Duration::from_millis(10);
/// The slot of the test thread, and its owner.
const THREAD: Thread = (0x1000, 1);
/// The call that it sleeps in.
const CALL: Call = Call {
    number: 35,
    first: 0,
    sp: 0x7000,
    pc: 0x4000,
};
/// The call in which it parks its worker.
const PARKED: Call = Call {
    number: 232,
    first: 5,
    sp: 0x7800,
    pc: 0x4100,
};

/// The name in the records of polls.
const NAME: u32 = 9;

fn rules() -> Rules {
    Rules {
        threshold: THRESHOLD,
        tick: TICK,
        milestones: [ms(60), ms(1_000), ms(10_000)],
        always_driven: true,
    }
}

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn at(millis: u64) -> Nanos {
    Nanos(1_000_000_000).plus(ms(millis))
}

/// A worker that a test moves by hand, and a detector that watches it.
struct World {
    detector: Detector,
    now: u64,
    late: Duration,
    usually_late: Duration,
    counters: Counters,
    slot: Option<SlotSeen>,
    thread: Option<ThreadEvidence>,
    turn: Option<Turn>,
    settled: bool,
    still: bool,
    blind: bool,
    records: Vec<(PollKey, LongPoll)>,
    shown: Vec<(u64, StackVerdict)>,
    own_wait: Option<Duration>,
    preempted: bool,
    clock: Option<Duration>,
    signalled: bool,
    unanswered: bool,
    throttled: Duration,
    /// Stacks are taken here, and a test gives their verdicts by [`World::show`].
    stacks: bool,
    is_explaining: bool,
}

impl World {
    /// A parked worker whose thread is known, with no mark made so far.
    fn parked() -> World {
        World {
            detector: Detector::new(rules()),
            now: 0,
            late: Duration::ZERO,
            usually_late: Duration::ZERO,
            counters: Counters {
                parks: 1,
                busy: Duration::ZERO,
            },
            slot: Some(SlotSeen {
                claimed_at: Nanos(u64::MAX),
                thread: THREAD,
                epoch: 0,
                started: None,
                task: 0,
                allowed: false,
                allowed_until: None,
                loops: 0,
            }),
            thread: Some(ThreadEvidence {
                cpu: Duration::ZERO,
                run_queue: Duration::ZERO,
                runs: 1,
                state: ThreadState::Unknown,
            }),
            turn: None,
            settled: true,
            still: true,
            blind: false,
            records: Vec::new(),
            shown: Vec::new(),
            own_wait: None,
            clock: None,
            preempted: false,
            signalled: false,
            unanswered: false,
            throttled: Duration::ZERO,
            stacks: false,
            is_explaining: false,
        }
    }

    fn with_stacks(mut self) -> World {
        self.stacks = true;
        self
    }

    /// Memory shows turns, of which this is one.
    fn with_turns(mut self) -> World {
        self.turn = Some(Turn {
            id: PollId {
                turn: 100,
                stage: Stage::Queue,
                task: 7,
                resumed: (0, 0),
            },
            task: 7,
            has_core: true,
            resumed: None,
            begun: None,
        });
        let task = self.turn.map_or(0, |turn| turn.task);
        self.slot().task = task;
        self
    }

    fn turn(&mut self) -> &mut Turn {
        self.turn.as_mut().expect("turns are seen")
    }

    /// The worker's loop goes on to the next turn.
    fn next_turn(&mut self) {
        let turn = self.turn();
        turn.id.turn += 1;
        turn.begun = None;
    }

    fn wake(mut self) -> World {
        self.counters.parks += 1;
        self
    }

    /// An active worker, seen once at this time, where a timed poll has just begun.
    fn polling_since(millis: u64) -> World {
        let mut world = World::parked().wake();
        world.compute(ms(millis));
        world.begin_poll(Some(at(millis)));
        world
    }

    fn slot(&mut self) -> &mut SlotSeen {
        self.slot.as_mut().expect("the thread is known")
    }

    fn begin_poll(&mut self, started: Option<Nanos>) {
        let task = self.turn.map_or(0, |turn| turn.task);
        let slot = self.slot();
        slot.epoch += 1;
        slot.started = started;
        slot.task = task;
    }

    fn end_poll(&mut self, ended: Option<Nanos>) {
        let poll = self.slot().poll();
        self.slot().epoch += 1;
        if let Some(ended) = ended {
            self.record(poll, ended);
        }
    }

    /// The thread leaves a record of a poll, with [`NAME`].
    fn record(&mut self, poll: PollKey, ended: Nanos) {
        let record = LongPoll {
            epoch: poll.epoch,
            started: self.slot().started,
            allowed_until: self.slot().allowed_until,
            ended,
            name: NAME,
        };
        self.records.push((poll, record));
    }

    /// The worker returns to its loop and publishes.
    fn publish(&mut self, busy: Duration) {
        self.counters.busy += busy;
    }

    fn park(&mut self) {
        self.counters.parks += 1;
    }

    /// A stack of the present hold is explained.
    fn show(&mut self, shown: StackVerdict) {
        let serial = self.detector.hold_serial().expect("something is watched");
        self.shown.push((serial, shown));
    }

    /// The worker is parked for a tick, and its thread, which has run before, asleep in this call.
    fn parked_at(&mut self, call: Option<Call>) -> Findings {
        let thread = self.thread.as_mut().expect("the thread is known");
        if thread.state != ThreadState::Asleep(call) {
            thread.runs += 1;
            thread.state = ThreadState::Asleep(call);
        }
        self.pass(TICK)
    }

    /// Time passes in which the thread computes.
    fn compute(&mut self, time: Duration) -> Findings {
        let thread = self.thread.as_mut().expect("the thread is known");
        thread.cpu += time;
        thread.state = ThreadState::OnCpu;
        self.pass(time)
    }

    /// Time passes in which the thread sleeps in one call.
    fn sleep(&mut self, time: Duration) -> Findings {
        let thread = self.thread.as_mut().expect("the thread is known");
        let asleep = ThreadState::Asleep(Some(CALL));
        if thread.state != asleep {
            thread.runs += 1;
            thread.state = asleep;
        }
        self.pass(time)
    }

    /// Time passes in which the thread computes and then falls asleep, once.
    fn fall_asleep(&mut self, computing: Duration, asleep: Duration) -> Findings {
        let thread = self.thread.as_mut().expect("the thread is known");
        thread.cpu += computing;
        thread.state = ThreadState::Asleep(Some(CALL));
        self.pass(computing + asleep)
    }

    /// Time passes in which the thread would run and has no CPU.
    fn starve(&mut self, time: Duration) -> Findings {
        self.thread.as_mut().expect("the thread is known").state = ThreadState::Waiting;
        self.pass(time)
    }

    /// Time passes that the thread's clocks do not count.
    fn pass(&mut self, time: Duration) -> Findings {
        self.now += u64::try_from(time.as_millis()).unwrap();
        let sample = Sample {
            at: at(self.now),
            late: std::mem::take(&mut self.late),
            usually_late: self.usually_late,
            before: self.counters,
            after: self.counters,
            slot: self.slot,
            turn: self.turn,
            settled: std::mem::replace(&mut self.settled, true),
            still: std::mem::replace(&mut self.still, true),
            thread: self.thread,
            own_wait: self.own_wait.take(),
            preempted: self.preempted,
            clock: self.clock,
            signalled: std::mem::take(&mut self.signalled),
            unanswered: self.unanswered,
            blind: self.blind,
            throttled: self.throttled,
        };
        let findings = self.detector.observe(&Look {
            sample,
            records: std::mem::take(&mut self.records),
            stacks: std::mem::take(&mut self.shown),
            is_explaining: self.is_explaining,
        });
        let suspects = |finding: &Finding| matches!(finding, Finding::Suspect(_));
        if !self.stacks && findings.iter().any(suspects) {
            self.show(StackVerdict::Inconclusive);
        }
        // A suspicion only makes the reporter look up names.
        findings
            .into_iter()
            .filter(|finding| !matches!(finding, Finding::Suspect(_)))
            .collect()
    }

    /// Ticks until there is a finding. Returns the number of ticks, and the findings.
    fn until_found(&mut self, mut step: impl FnMut(&mut World) -> Findings) -> (u32, Findings) {
        for ticks in 1..10_000 {
            let found = step(self);
            if !found.is_empty() {
                return (ticks, found);
            }
        }
        (10_000, Findings::new())
    }
}

fn began(findings: &[Finding]) -> Option<Stall> {
    findings.iter().find_map(|finding| match finding {
        Finding::Began(stall) => Some(*stall),
        _ => None,
    })
}

fn ended(findings: &[Finding]) -> Option<Stall> {
    findings.iter().find_map(|finding| match finding {
        Finding::Ended(stall) => Some(*stall),
        _ => None,
    })
}
