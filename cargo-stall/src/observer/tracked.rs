//! One thread of the other process: its looks, its place in the runtime, and the poll that holds
//! it.
//!
//! *Runs on:* the main thread.
//!
//! A stack is taken when the thread sleeps in one call for a tick, or has computed for a tick
//! without a sleep. Later ones follow in longer and longer intervals while it is no worker.

use crate::observer::hold::{Beginning, Hold, Seen, Slept, first_evidence};
use crate::observer::os::PollEnd;
use crate::observer::sight::Sight;
use std::io;
use std::time::{Duration, Instant};
use tokio_stall::outside::{
    Doing, ObservedThread, SleepCall, StallEvidence, ThreadLook, ThreadPlace, ThreadStack,
    written_name,
};
use tokio_stall::{Frame, Origin};

/// The calls of a thread that are kept.
const KNOWN_CALLS: usize = 4;

/// How often a thread is looked at after a stop, with a millisecond between.
const AGAIN: u32 = 100;

/// A thread under observation.
#[derive(Debug)]
pub(crate) struct Tracked {
    pub(crate) tid: u32,
    pub(crate) name: String,
    files: ObservedThread,
    last: Option<ThreadLook>,
    /// When the sleep that goes on was first seen.
    asleep_since: Instant,
    /// The moment before the last look, and the one after it.
    looked_from: Instant,
    looked_at: Instant,
    /// No stop is tried before this, since the last one failed.
    stop_after: Instant,
    /// The time that may belong to a sleep, or to a poll that computes, before it was first seen.
    unseen: Duration,
    /// The last moment at which a poll that computes had not begun.
    free_at: Instant,
    /// The number of sleeps at the last look at which it computed.
    sleeps: Option<u64>,
    /// The sleep, by its number of runs, whose stack is known.
    known_sleep: Option<u64>,
    /// The call that a stop of ours has interrupted.
    stopped_in: Option<SleepCall>,
    /// Calls that are no part of a poll, by stacks. The same call from the same place on the stack
    /// and on the same object is the same.
    known_calls: Vec<(SleepCall, ThreadPlace)>,
    pub(crate) place: ThreadPlace,
    /// The worker's number, once it has been one.
    pub(crate) worker: Option<usize>,
    /// The test that it runs, by its stacks.
    test: Option<String>,
    pub(crate) hold: Option<Hold>,
    /// No stack is taken before this, unless it sleeps in a new call.
    quiet_until: Instant,
    pause: Duration,
    is_deep: bool,
}

/// The test that a stack is in, as libtest names it: the outermost own function inside of the
/// harness, without its crate. A thread's own name is cut by the kernel.
fn test_of(frames: &[Frame]) -> Option<String> {
    let is_harness = |frame: &Frame| {
        let function = frame.function.as_deref();
        function.is_some_and(|function| function.starts_with("test::"))
    };
    let harness = frames.iter().position(is_harness)?;
    let own = frames[..harness].iter().rev();
    let mut own = own.filter(|frame| frame.origin == Origin::Own);
    let function = written_name(own.next()?)?;
    Some(function.split_once("::")?.1.to_owned())
}

impl Tracked {
    pub(crate) fn open(sight: &Sight, tid: u32, now: Instant) -> io::Result<Option<Tracked>> {
        let Some(files) = sight.process.thread(tid)? else {
            return Ok(None);
        };
        Ok(Some(Tracked {
            tid,
            name: sight.target.thread_name(tid),
            files,
            last: None,
            asleep_since: now,
            looked_from: now,
            looked_at: now,
            stop_after: now,
            unseen: Duration::ZERO,
            free_at: now,
            sleeps: None,
            known_sleep: None,
            stopped_in: None,
            known_calls: Vec::new(),
            place: ThreadPlace::Elsewhere,
            worker: None,
            test: None,
            hold: None,
            quiet_until: now,
            pause: Duration::ZERO,
            is_deep: false,
        }))
    }

    /// Looks at the thread, and adds the reports that are due. Returns false once it has exited.
    pub(crate) fn tick(
        &mut self,
        sight: &mut Sight,
        now: Instant,
        due: &mut Vec<StallEvidence>,
    ) -> bool {
        let Some(look) = self.look() else {
            self.end_hold(now, due);
            sight.tests.retain(|(tid, _)| *tid != self.tid);
            return false;
        };
        // A begin is no earlier than this, and an end no later than `now`.
        let looked_at = Instant::now();
        let before = self.last.replace(look);
        let same_sleep = before.is_some_and(|before| is_same_sleep(&before, &look));
        let looked_before = std::mem::replace(&mut self.looked_from, now);
        let seen_before = std::mem::replace(&mut self.looked_at, looked_at);
        if !same_sleep {
            self.asleep_since = looked_at;
            self.unseen = looked_at - looked_before;
        }
        if look.doing != Doing::Runs || before.is_none_or(|before| before.doing != Doing::Runs) {
            self.free_at = looked_before;
        }
        self.forget_test(sight, look);
        let slept = self.slept(sight, same_sleep);
        let seen = Seen {
            look,
            since: if same_sleep {
                self.asleep_since
            } else {
                seen_before
            },
            now,
        };
        let hold = self.hold.as_mut();
        let goes_on = hold.map(|hold| hold.goes_on(&sight.process, seen, slept));
        match goes_on {
            Some(true) => self.go_on(sight, look, now, due),
            Some(false) => self.end_hold(now, due),
            None if look.doing != Doing::Runs => self.meet_sleeper(sight, look, now, same_sleep),
            None => self.meet_runner(sight, before, now),
        }
        true
    }

    /// Looks at the thread. A call that goes on after a stop of ours is the one that it was.
    fn look(&mut self) -> Option<ThreadLook> {
        let look = self.files.look()?;
        let goes_on = self.stopped_in.filter(|before| match look.doing {
            Doing::Sleeps(Some(now)) => now.is_restarted() && is_at(&look, *before),
            _ => false,
        });
        Some(ThreadLook {
            doing: goes_on.map_or(look.doing, |before| Doing::Sleeps(Some(before))),
            ..look
        })
    }

    /// Forgets the test if the thread has run since the stack that showed it: it may run the next
    /// one.
    fn forget_test(&mut self, sight: &mut Sight, look: ThreadLook) {
        if self.test.is_some() && self.hold.is_none() && self.known_sleep != Some(look.runs) {
            self.test = None;
            sight.note_test(self.tid, None);
        }
    }

    /// How much of the time since the last look a thread that is held has slept.
    fn slept(&mut self, sight: &Sight, same_sleep: bool) -> Slept {
        if same_sleep {
            return Slept::AllAlong;
        }
        if self.hold.is_none() {
            return Slept::Partly;
        }
        let sleeps = sight.target.sleeps(self.tid);
        let is_same = sleeps.is_some() && sleeps == self.sleeps;
        self.sleeps = sleeps;
        match is_same {
            true => Slept::Never,
            false => Slept::Partly,
        }
    }

    /// A poll goes on. Further stacks are taken now and then, and the reports are made.
    fn go_on(
        &mut self,
        sight: &mut Sight,
        look: ThreadLook,
        now: Instant,
        due: &mut Vec<StallEvidence>,
    ) {
        let Some(age) = self.hold.as_ref().map(Hold::age) else {
            return;
        };
        let stack = self.next_stack(sight, look, age);
        let is_known = match look.doing {
            Doing::Sleeps(Some(_)) => self.known_sleep == Some(look.runs),
            Doing::Sleeps(None) | Doing::Unknown => true,
            Doing::Runs => false,
        };
        let Some(hold) = &mut self.hold else {
            return;
        };
        let is_shown = is_known || stack.is_some();
        if let Some(stack) = stack {
            // Blocking is allowed where the worker was handed over.
            if !hold.fits(&stack) || hold.is_over() {
                self.place = stack.place;
                return self.end_hold(now, due);
            }
            hold.evidence.add(&stack, age);
        }
        if let Some(test) = sight.only_test().filter(|_| self.test.is_none()) {
            hold.evidence.thread = test;
        }
        // Without a stack, the worker may have been handed over since the last one.
        if is_shown {
            due.extend(hold.due_report().cloned());
        }
    }

    /// Another stack of a poll that goes on, if one is due.
    fn next_stack(
        &mut self,
        sight: &mut Sight,
        look: ThreadLook,
        age: Duration,
    ) -> Option<ThreadStack> {
        let is_due = |hold: &&mut Hold| age >= hold.stack_due || hold.is_due();
        let hold = self.hold.as_mut().filter(is_due)?;
        hold.stack_due = age + (age / 2).max(sight.threshold / 4);
        let is_worth_a_stop = hold.is_due();
        match look.doing {
            Doing::Sleeps(Some(call)) if self.known_sleep != Some(look.runs) => {
                let stack = self.sleeping_stack(sight, look, call)?;
                if stack.lost && is_worth_a_stop {
                    self.stopped_in = Some(call);
                    return self.stop_again(sight);
                }
                Some(stack).filter(|stack| !stack.lost)
            }
            Doing::Runs => self.stop_again(sight),
            _ => None,
        }
    }

    pub(crate) fn end_hold(&mut self, now: Instant, due: &mut Vec<StallEvidence>) {
        let hold = self.hold.take();
        self.free_at = hold.as_ref().map_or(self.free_at, Hold::until);
        due.extend(hold.and_then(|mut hold| hold.ended(now).cloned()));
        if self.place == ThreadPlace::Polling {
            self.place = ThreadPlace::Scheduling;
        }
        self.quiet_until = now;
    }

    /// The thread sleeps, maybe since the last look. Short sleeps that follow each other may be one
    /// poll, too.
    fn meet_sleeper(
        &mut self,
        sight: &mut Sight,
        look: ThreadLook,
        now: Instant,
        same_sleep: bool,
    ) {
        self.sleeps = None;
        let Doing::Sleeps(Some(call)) = look.doing else {
            return;
        };
        if self.known_sleep == Some(look.runs) || now < self.quiet_until {
            return;
        }
        if let Some((_, place)) = self.known_calls.iter().find(|(known, _)| *known == call) {
            self.place = *place;
            return;
        }
        if !same_sleep {
            self.quiet_until = now + sight.threshold / 4;
        }
        self.explain_sleep(sight, (look, call), now, same_sleep);
    }

    /// Takes the stack of a sleep that is not known.
    fn explain_sleep(
        &mut self,
        sight: &mut Sight,
        (look, call): (ThreadLook, SleepCall),
        now: Instant,
        same_sleep: bool,
    ) {
        let Some(mut stack) = self.sleeping_stack(sight, look, call) else {
            return;
        };
        let by_stop = stack.lost;
        if by_stop && !same_sleep {
            // A sleep that is over soon is not worth a stop.
            self.quiet_until = now;
            return;
        }
        if by_stop {
            // The kernel restarts the call, which counts as another sleep.
            self.stopped_in = Some(call);
            stack = self.stop(sight).unwrap_or(stack);
        }
        // Before the look: a sleep that goes on at it has seen the whole count.
        let end = self.armed(&stack);
        let still = match by_stop {
            true => self.asleep_again(call),
            false => self.look().filter(|still| is_same_sleep(&look, still)),
        };
        let Some(still) = still else {
            return self.meet_woken(sight, &stack, by_stop, now);
        };
        self.known_sleep = Some(still.runs);
        self.last = Some(still);
        if matches!(stack.place, ThreadPlace::Parked | ThreadPlace::IdlePool) {
            self.known_calls.truncate(KNOWN_CALLS - 1);
            self.known_calls.insert(0, (call, stack.place));
        }
        self.place_by(sight, &stack, now);
        if stack.place == ThreadPlace::Polling {
            // After the look: other polls may have been between the stop and this sleep.
            let (since, now) = match by_stop {
                true => (Instant::now(), Instant::now()),
                false => (self.asleep_since, now),
            };
            let look = ThreadLook {
                doing: look.doing,
                ..still
            };
            self.begin(sight, &stack, look, since, now, end);
        }
    }

    /// The sleep is over, and its poll may go on: a thread may sleep often in one, and the first
    /// stack of a place takes long to explain.
    fn meet_woken(&mut self, sight: &mut Sight, stack: &ThreadStack, by_stop: bool, now: Instant) {
        if by_stop {
            self.quiet_until = now + sight.threshold;
        } else if stack.place == ThreadPlace::Polling {
            self.place_by(sight, stack, now);
            self.suspect(sight, stack, now);
        }
    }

    /// The stack of a sleep, without a stop. `None` if the thread has woken up.
    fn sleeping_stack(
        &mut self,
        sight: &mut Sight,
        look: ThreadLook,
        call: SleepCall,
    ) -> Option<ThreadStack> {
        let is_awake = || {
            let still = self.files.look();
            !still.is_some_and(|still| is_same_sleep(&look, &still))
        };
        sight.sleeping_stack(call, is_awake)
    }

    /// The stack of now: without a stop if the thread sleeps.
    fn stack_of_now(&mut self, sight: &mut Sight) -> Option<ThreadStack> {
        let look = self.look()?;
        match look.doing {
            Doing::Sleeps(Some(call)) => self.sleeping_stack(sight, look, call),
            _ => self.stop(sight).ok(),
        }
    }

    /// Waits until the thread sleeps in this call again after a stop. It needs a CPU for that.
    fn asleep_again(&mut self, call: SleepCall) -> Option<ThreadLook> {
        for _ in 0..AGAIN {
            let look = self.look()?;
            if is_at(&look, call) {
                return Some(look);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        None
    }

    /// The thread is not in a sleep that was seen before.
    fn meet_runner(&mut self, sight: &mut Sight, before: Option<ThreadLook>, now: Instant) {
        let sleeps = sight.target.sleeps(self.tid);
        let computes = before.is_some_and(|before| before.doing == Doing::Runs)
            && sleeps.is_some()
            && self.sleeps == sleeps;
        self.sleeps = sleeps;
        if !computes || now < self.quiet_until {
            return;
        }
        let Ok(stack) = self.stop(sight) else {
            return self.rest(now, sight.threshold);
        };
        self.place_by(sight, &stack, now);
        match stack.place {
            ThreadPlace::Polling => self.suspect(sight, &stack, now),
            _ => self.free_at = now,
        }
    }

    /// A stack shows a poll, and may be old. A second one, taken once the end of the poll is
    /// counted, proves that it is the same poll from now on. The time before belongs to it, too,
    /// and is not proven.
    fn suspect(&mut self, sight: &mut Sight, first: &ThreadStack, met: Instant) {
        let mut end = self.armed(first);
        let Some(second) = self.stack_of_now(sight) else {
            return;
        };
        let now = Instant::now();
        self.quiet_until = now + sight.threshold / 4;
        let is_over = end.as_mut().is_some_and(|end| end.on_cpu().is_none());
        let is_same = second.place == ThreadPlace::Polling
            && second.returns_to == first.returns_to
            && !is_over;
        let Some(look) = self.files.look().filter(|_| is_same) else {
            self.free_at = met;
            return;
        };
        self.unseen = now - self.free_at;
        self.begin(sight, &second, look, now, now, end);
    }

    /// Takes the stack of a poll that goes on, by a stop. One that fails may take long, so a pause
    /// follows it.
    fn stop_again(&mut self, sight: &mut Sight) -> Option<ThreadStack> {
        if Instant::now() < self.stop_after {
            return None;
        }
        let stack = self.stop(sight).ok();
        if stack.is_none() {
            self.stop_after = Instant::now() + sight.threshold / 2;
        }
        stack
    }

    /// Takes the thread's stack by a stop, which the kernel counts as a sleep.
    fn stop(&mut self, sight: &mut Sight) -> io::Result<ThreadStack> {
        let (registers, copy) = sight.stopped_copy(self.tid, self.is_deep)?;
        self.sleeps = sight.target.sleeps(self.tid);
        let stack = sight.explained(registers, &copy);
        self.is_deep |= stack.truncated;
        Ok(stack)
    }

    fn armed(&self, stack: &ThreadStack) -> Option<PollEnd> {
        PollEnd::of(self.tid, stack.returns_to?)
    }

    fn begin(
        &mut self,
        sight: &mut Sight,
        stack: &ThreadStack,
        look: ThreadLook,
        since: Instant,
        now: Instant,
        end: Option<PollEnd>,
    ) {
        if end.is_none() && look.doing == Doing::Runs {
            sight.unproven += 1;
            if !sight.likely {
                return;
            }
        }
        sight.stalls += 1;
        let worker = self.worker.unwrap_or_default();
        let mut evidence = first_evidence(worker, sight.threshold, now - since);
        evidence.id = sight.stalls;
        evidence.runtime.clone_from(&sight.target.name);
        // A test's thread has its name later than the thread itself.
        let test = self.test.clone().or_else(|| sight.only_test());
        self.name = test.unwrap_or_else(|| sight.target.thread_name(self.tid));
        evidence.thread.clone_from(&self.name);
        evidence.tid = self.tid;
        evidence.add(stack, now - since);
        let beginning = Beginning {
            evidence,
            since,
            now,
            look,
            unseen: self.unseen,
            end,
        };
        self.hold = Some(Hold::begin(&sight.process, beginning));
    }

    fn place_by(&mut self, sight: &mut Sight, stack: &ThreadStack, now: Instant) {
        self.place = stack.place;
        if let Some(test) = test_of(&stack.frames) {
            sight.note_test(self.tid, Some(test.clone()));
            self.test = Some(test);
        }
        if stack.place.is_worker() {
            if self.worker.is_none() {
                self.worker = Some(sight.workers);
                sight.workers += 1;
            }
            self.pause = Duration::ZERO;
        } else {
            self.rest(now, sight.threshold);
        }
    }

    /// Takes no stack for a while. The time doubles up to the threshold.
    fn rest(&mut self, now: Instant, threshold: Duration) {
        self.pause = (self.pause * 2).clamp(threshold / 8, threshold);
        self.quiet_until = now + self.pause;
    }
}

/// Whether the thread sleeps at the same place on its stack as in this call.
fn is_at(look: &ThreadLook, call: SleepCall) -> bool {
    match look.doing {
        Doing::Sleeps(Some(now)) => now.registers() == call.registers(),
        _ => false,
    }
}

/// Whether the thread has slept in one call from one look to the next. A look reads the call first,
/// so the number of runs may be that of the next one.
fn is_same_sleep(before: &ThreadLook, after: &ThreadLook) -> bool {
    let registers = |call: Option<SleepCall>| call.map(|call| call.registers());
    match (before.doing, after.doing) {
        (Doing::Sleeps(before_in), Doing::Sleeps(after_in)) => {
            before.runs == after.runs && registers(before_in) == registers(after_in)
        }
        _ => false,
    }
}
