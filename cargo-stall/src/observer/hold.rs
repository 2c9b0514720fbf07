//! One poll that holds its worker: its proof, its time and its stacks.
//!
//! *Runs on:* the main thread.
//! *Must not:* claim more than is proven. A sleep in one call is one poll. So is a time in which
//! the thread has not executed the instruction after the poll. Anything else is likely.

use crate::observer::os::PollEnd;
use std::time::{Duration, Instant, SystemTime};
use tokio_stall::outside::{
    DescribedCall, Doing, ObservedProcess, SleepCall, StallEvidence, ThreadLook, ThreadPlace,
    ThreadStack,
};
use tokio_stall::{Certainty, Phase, TimeSplit};

/// A poll that has been seen to go on.
#[derive(Debug)]
pub(crate) struct Hold {
    pub(crate) evidence: StallEvidence,
    /// The first moment for which it is proven.
    since: Instant,
    /// The last moment for which it is proven.
    until: Instant,
    proof: HoldProof,
    /// The time before `since` that may belong to it.
    unseen: Duration,
    first: ThreadLook,
    /// The time asleep that was seen as such.
    asleep: Duration,
    /// The time between looks of which it has slept a part.
    dozed: Duration,
    /// The same of a thread that runs since: it may have waited for a CPU, which the kernel counts
    /// once it has one. With the thread's number of runs.
    uncounted: (Duration, u64),
    /// The blamed time at which the next report is due.
    due: Duration,
    is_announced: bool,
    /// The age at which the next stack is due.
    pub(crate) stack_due: Duration,
    /// The calls slept in, each with its time.
    slept: Vec<(DescribedCall, Duration)>,
}

/// The longest time between two updates of a running thread's CPU time in `/proc`.
const KERNEL_TICK: Duration = Duration::from_millis(10);

/// The part of the time between two looks in which the thread has slept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slept {
    /// All of it, in one call.
    AllAlong,
    /// Some of it, or nobody knows.
    Partly,
    /// None of it.
    Never,
}

/// The thing that shows that it is one poll.
#[derive(Debug)]
enum HoldProof {
    /// The instruction after the poll has not been executed.
    Counted(PollEnd),
    /// It has slept in one call all the time.
    OneSleep,
    /// Each stack has shown a poll at the same place.
    Stacks,
}

/// A look at the thread, with two moments: the first one is after the look before, and the second
/// one before this look. The observer may lose its CPU at each.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    pub(crate) look: ThreadLook,
    pub(crate) since: Instant,
    pub(crate) now: Instant,
}

/// The start of a hold.
#[derive(Debug)]
pub(crate) struct Beginning {
    pub(crate) evidence: StallEvidence,
    pub(crate) since: Instant,
    pub(crate) now: Instant,
    pub(crate) look: ThreadLook,
    pub(crate) end: Option<PollEnd>,
    /// The time before `since` that may belong to it.
    pub(crate) unseen: Duration,
}

impl Hold {
    pub(crate) fn begin(process: &ObservedProcess, from: Beginning) -> Hold {
        let sleeps = matches!(from.look.doing, Doing::Sleeps(_));
        let proof = match from.end {
            Some(mut end) => {
                end.begins();
                HoldProof::Counted(end)
            }
            None if sleeps => HoldProof::OneSleep,
            None => HoldProof::Stacks,
        };
        let threshold = from.evidence.threshold;
        let mut hold = Hold {
            evidence: from.evidence,
            since: from.since,
            until: from.since,
            proof,
            unseen: from.unseen,
            first: from.look,
            asleep: Duration::ZERO,
            dozed: Duration::ZERO,
            uncounted: (Duration::ZERO, 0),
            due: threshold,
            is_announced: false,
            stack_due: threshold / 2,
            slept: Vec::new(),
        };
        if sleeps {
            let seen = Seen {
                look: from.look,
                since: from.since,
                now: from.now,
            };
            hold.account(process, seen, None, Slept::AllAlong);
        }
        hold
    }

    /// The last moment for which it is proven.
    pub(crate) fn until(&self) -> Instant {
        self.until
    }

    pub(crate) fn age(&self) -> Duration {
        self.until - self.since
    }

    /// Goes on to this look. Returns false once it is over, or not proven any more.
    pub(crate) fn goes_on(&mut self, process: &ObservedProcess, seen: Seen, slept: Slept) -> bool {
        let mut on_cpu = None;
        let holds = match &mut self.proof {
            HoldProof::Counted(end) => {
                on_cpu = end.on_cpu();
                on_cpu.is_some()
            }
            HoldProof::OneSleep => slept == Slept::AllAlong,
            HoldProof::Stacks => matches!(seen.look.doing, Doing::Runs),
        };
        if holds {
            self.account(process, seen, on_cpu, slept);
        }
        holds
    }

    /// Whether the poll is over, as far as that is counted.
    pub(crate) fn is_over(&mut self) -> bool {
        match &mut self.proof {
            HoldProof::Counted(end) => end.on_cpu().is_none(),
            HoldProof::OneSleep | HoldProof::Stacks => false,
        }
    }

    /// Whether a new stack shows the same poll, as far as a stack can.
    pub(crate) fn fits(&self, stack: &ThreadStack) -> bool {
        match &self.proof {
            // A stack that is not followed to its root does not show that the poll is over.
            HoldProof::Counted(_) if !stack.complete && !stack.place.is_worker() => true,
            // Parts of a poll are tokio's own work. A panic may leave it without its end.
            HoldProof::Counted(end) => match stack.place {
                ThreadPlace::Polling => stack.returns_to.is_none_or(|address| end.is_at(address)),
                place => place == ThreadPlace::Scheduling,
            },
            HoldProof::OneSleep | HoldProof::Stacks => stack.place == ThreadPlace::Polling,
        }
    }

    /// Adds the time since the last look, and splits the whole time anew. `on_cpu` is the thread's
    /// time on a CPU if the end of the poll is counted.
    fn account(
        &mut self,
        process: &ObservedProcess,
        Seen { look, since, now }: Seen,
        on_cpu: Option<Duration>,
        slept: Slept,
    ) {
        let passed = now.saturating_duration_since(self.until);
        self.until = self.until.max(now);
        let runs = matches!(look.doing, Doing::Runs);
        if !runs || look.runs != self.uncounted.1 {
            self.dozed += std::mem::take(&mut self.uncounted.0);
        }
        match slept {
            Slept::AllAlong => self.asleep += passed.min(now.saturating_duration_since(since)),
            Slept::Partly if runs => self.uncounted = (self.uncounted.0 + passed, look.runs),
            Slept::Partly => self.dozed += passed,
            Slept::Never => {}
        }
        if let Doing::Sleeps(Some(call)) = look.doing {
            self.sleeps_in(process, call, passed);
        }
        let awake = self.age().saturating_sub(self.asleep);
        let queued = look.run_queue.saturating_sub(self.first.run_queue);
        let rest = awake - queued.min(awake);
        let cpu = on_cpu.unwrap_or_else(|| look.cpu.saturating_sub(self.first.cpu));
        let cpu = cpu.min(rest);
        let dozed = (rest - cpu).min(self.dozed);
        let left = rest - cpu - dozed;
        // `/proc` counts computing in ticks. A wait for a CPU is counted when it ends.
        // Without a breakpoint nobody knows which of both it is, and neither is blamed.
        let may_be_computed = match on_cpu {
            Some(_) => Duration::ZERO,
            None => left.min(KERNEL_TICK),
        };
        let time = &mut self.evidence.time;
        time.cpu = cpu;
        time.asleep = self.asleep + dozed;
        time.unknown = may_be_computed;
        time.run_queue = awake - cpu - dozed - may_be_computed;
    }

    /// The time that the code itself has held the worker. A thread without a CPU holds it, too, and
    /// that is not the code's doing.
    fn blamed(&self) -> Duration {
        self.evidence.time.cpu + self.evidence.time.asleep
    }

    fn sleeps_in(&mut self, process: &ObservedProcess, call: SleepCall, time: Duration) {
        if call.is_restarted() {
            return;
        }
        match self
            .slept
            .iter()
            .position(|(known, _)| known.call() == call)
        {
            Some(index) => self.slept[index].1 += time,
            None if self.slept.len() < 32 => self.slept.push((process.described(call), time)),
            None => {}
        }
        let longest = self.slept.iter().max_by_key(|(_, time)| *time);
        self.evidence.asleep_in = longest.map(|(call, _)| *call);
    }

    /// Whether a report is due, so that a stack must show that it is still a poll on its worker.
    pub(crate) fn is_due(&self) -> bool {
        self.blamed() >= self.due
    }

    /// The evidence for a report, if one is due.
    pub(crate) fn due_report(&mut self) -> Option<&StallEvidence> {
        let blamed = self.blamed();
        if blamed < self.due {
            return None;
        }
        let phase = if self.is_announced {
            Phase::Ongoing
        } else {
            Phase::Began
        };
        self.is_announced = true;
        while self.due <= blamed {
            self.due *= 2;
        }
        Some(self.figures(phase, Duration::ZERO))
    }

    /// The evidence for the last report. `None` if it was never a stall.
    pub(crate) fn ended(&mut self, now: Instant) -> Option<&StallEvidence> {
        let unseen = now - self.until;
        self.is_announced
            .then(|| self.figures(Phase::Ended, unseen))
    }

    fn figures(&mut self, phase: Phase, unseen: Duration) -> &StallEvidence {
        let (age, error) = (self.age(), self.unseen);
        let evidence = &mut self.evidence;
        evidence.phase = phase;
        evidence.certainty = match self.proof {
            HoldProof::Counted(_) | HoldProof::OneSleep => Certainty::Certain,
            HoldProof::Stacks => Certainty::Likely,
        };
        evidence.duration = age;
        evidence.duration_error = error + unseen;
        &self.evidence
    }
}

/// The evidence of a poll that was first seen now.
pub(crate) fn first_evidence(worker: usize, threshold: Duration, ago: Duration) -> StallEvidence {
    StallEvidence {
        id: 0,
        phase: Phase::Began,
        certainty: Certainty::Likely,
        runtime: String::new(),
        worker,
        thread: String::new(),
        tid: 0,
        started_at: SystemTime::now() - ago,
        duration: Duration::ZERO,
        duration_error: Duration::ZERO,
        time: TimeSplit::default(),
        threshold,
        asleep_in: None,
        stacks: Vec::new(),
        missing: Vec::new(),
    }
}
