//! When a stack is taken, and whether it shows the stall that it was taken for.
//!
//! *Runs on:* `stall-watchdog`.
//! *Must not:* wait. A request is a few system calls, and a collection is an atomic load. Files are
//! opened for a request, to copy the stack of a thread that sleeps, and for the reason if a thread
//! has not answered.
//!
//! A stack is asked for one tick before a stall may begin, when it has begun, and whenever its age
//! has doubled. A thread that is still in the same sleep is not asked again: its stack is the same.
//!
//! An answer takes some microseconds and may come too late for its stall. A stack counts if the
//! slot's epoch shows the same poll. Without a mark it counts if the worker has not moved since, or
//! if the thread was about to return from the very call in which it had been seen asleep.
//!
//! Stacks are collected a millisecond after the tick. A stack that proves its poll by itself is
//! passed on at once, so that its verdict is there at the next tick. The others are judged at that
//! tick.

use super::workers::WorkerThread;
use crate::capture::{self, Addressee, RawStack, Request};
use crate::clock::Nanos;
use crate::detect::{HeldBy, Stall};
use crate::os::{self, Call, ThreadEvidence, ThreadState};
use crate::report::NoStack;
use std::time::Duration;

/// The most stacks in a row, for a process that has just begun to stall.
const BURST: u32 = 32;
/// The time after which one more stack is allowed. Eight a second cost less than a hundredth of a
/// core to take and explain.
const SPACING: Duration = Duration::from_millis(125);
/// The stacks that are kept for long stalls: many short ones at one place would leave none.
const RESERVE: u32 = 8;
/// The thresholds from which on a stall is long.
const LONG: u32 = 4;

/// Ticks after which the reason for a missing answer is reported.
const SLOW: u32 = 2;

/// How many stacks this process may still take.
#[derive(Debug)]
pub(super) struct Allowance {
    left: u32,
    counted_at: Nanos,
}

impl Allowance {
    pub(super) fn new(now: Nanos) -> Allowance {
        Allowance {
            left: BURST,
            counted_at: now,
        }
    }

    /// Takes one stack for this stall, if there is one left.
    pub(super) fn take_for(&mut self, stall: &Stall, threshold: Duration, now: Nanos) -> bool {
        self.take(now, stall.duration >= threshold * LONG)
    }

    /// Gives back one that could not be taken.
    pub(super) fn give_back(&mut self) {
        self.left = (self.left + 1).min(BURST);
    }

    /// Takes one stack, for a stall that is long or not.
    fn take(&mut self, now: Nanos, is_long: bool) -> bool {
        while self.left < BURST && now.since(self.counted_at) >= SPACING {
            self.left += 1;
            self.counted_at = self.counted_at.plus(SPACING);
        }
        if self.left == BURST {
            self.counted_at = now;
        }
        let allowed = self.left > if is_long { 0 } else { RESERVE };
        self.left -= u32::from(allowed);
        allowed
    }
}

/// The stacks of one worker's stalls.
#[derive(Debug, Default)]
pub(super) struct Sampling {
    pending: Option<Pending>,
    /// Collected before the tick that shows whether the stack is of the stall it was asked for.
    early: Option<(RawStack, Stall)>,
    /// The thread has taken a signal whose stack was collected before the tick.
    answered_early: bool,
    /// The sleep that the last stack was taken in.
    slept: Option<SampledSleep>,
    /// The thread has blocked the signal, or another handler takes it.
    is_deaf: bool,
}

/// A stack that has been asked for.
#[derive(Debug)]
struct Pending {
    sent: SentRequest,
    stall: Stall,
    /// Ticks at which there was no answer.
    ticks: u32,
}

/// A request, and the two figures that explain a missing answer.
#[derive(Debug)]
pub(super) struct SentRequest {
    request: Request,
    tid: u32,
    signal: i32,
}

/// One sleep of a thread during one stall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct SampledSleep {
    serial: u64,
    place: SleepPlace,
}

/// The place of a sleep, which is the same for as long as the thread does not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SleepPlace {
    /// A system call, and the position on the stack that it was made at.
    Call { call: Call, needs_signal: bool },
    /// Outside of a call. The number counts the thread's times on a CPU.
    AfterRun(u64),
}

/// A stack that was taken, or why there is none.
#[derive(Debug)]
pub(super) struct Sampled {
    /// The detector's number of the stall.
    pub(super) serial: u64,
    /// The age of the stall when the stack was asked for.
    pub(super) after: Duration,
    pub(super) stack: Result<RawStack, NoStack>,
}

impl Sampled {
    fn of(stall: &Stall, stack: Result<RawStack, NoStack>) -> Sampled {
        Sampled {
            serial: stall.serial,
            after: stall.duration,
            stack,
        }
    }
}

impl Sampling {
    /// Whether no stack is on its way.
    pub(super) fn is_idle(&self) -> bool {
        self.pending.is_none() && self.early.is_none()
    }

    /// Whether the thread has taken the signal that was sent last.
    pub(super) fn is_answered(&self) -> bool {
        let pending = self.pending.as_ref();
        self.answered_early || pending.is_some_and(|pending| pending.sent.request.is_answered())
    }

    /// Whether the thread has not taken a signal that was sent a tick ago or earlier. A thread that
    /// never takes it has not failed to.
    pub(super) fn is_unanswered(&self) -> bool {
        let pending = self.pending.as_ref();
        pending.is_some_and(|pending| !pending.sent.request.is_full()) && !self.is_deaf
    }

    /// Whether a stack has been asked for and has not come yet.
    pub(super) fn is_waiting(&self) -> bool {
        self.pending.is_some()
    }

    /// Collects, a moment after it was asked for, a stack that proves its poll by itself.
    pub(super) fn collect_early(&mut self) -> Option<Sampled> {
        let (stack, stall) = self.answer()?;
        self.answered_early = stack.is_by_signal() && stack.is_answered();
        if is_of(&stack, &stall, true) {
            return Some(Sampled::of(&stall, Ok(stack)));
        }
        self.early = Some((stack, stall));
        None
    }

    /// Collects a stack that was asked for at an earlier tick. `watched` is the serial of what
    /// holds the worker now.
    pub(super) fn collect(&mut self, watched: Option<u64>) -> Option<Sampled> {
        self.answered_early = false;
        let is_over = |stall: &Stall| watched != Some(stall.serial);
        if let Some((stack, stall)) = self.early.take().or_else(|| self.answer()) {
            let is_of_it = is_of(&stack, &stall, is_over(&stall));
            let stack = is_of_it.then_some(stack).ok_or(NoStack::MovedOn);
            return Some(Sampled::of(&stall, stack));
        }
        let pending = self.pending.as_mut()?;
        pending.ticks += 1;
        let is_over = is_over(&pending.stall);
        if !is_over && pending.ticks != SLOW {
            return None;
        }
        let why = pending.sent.why_unanswered();
        self.is_deaf = why != NoStack::NotAnswered;
        let sampled = Sampled::of(&pending.stall, Err(why));
        self.pending.take_if(|_| is_over);
        Some(sampled)
    }

    /// The stack that has been asked for, if it has been copied by now.
    fn answer(&mut self) -> Option<(RawStack, Stall)> {
        let pending = self.pending.take()?;
        match pending.sent.request.collect() {
            Ok(stack) => {
                self.is_deaf &= !stack.is_by_signal();
                Some((stack, pending.stall))
            }
            Err(request) => {
                let sent = SentRequest {
                    request,
                    ..pending.sent
                };
                self.pending = Some(Pending { sent, ..pending });
                None
            }
        }
    }

    /// Sends a request for a stack of this stall, unless one is on its way, or the thread is in the
    /// sleep that the last one was taken in. Returns the reason if the request cannot be sent.
    pub(super) fn ask(
        &mut self,
        stall: Stall,
        thread: Option<ThreadEvidence>,
        send: impl FnOnce() -> Result<SentRequest, NoStack>,
    ) -> Option<Sampled> {
        let slept = thread.and_then(|thread| SampledSleep::now(&stall, thread));
        let is_copied = slept.is_some_and(SampledSleep::is_copied) && slept != self.slept;
        if self.is_deaf && is_copied {
            // The signal that it has not taken is not needed.
            self.pending = None;
        }
        if self.pending.is_some() || slept.is_some() && slept == self.slept {
            return None;
        }
        match send() {
            Ok(sent) => {
                self.slept = slept;
                self.pending = Some(Pending {
                    sent,
                    stall,
                    ticks: 0,
                });
                None
            }
            Err(why) => Some(Sampled::of(&stall, Err(why))),
        }
    }
}

impl SampledSleep {
    fn now(stall: &Stall, thread: ThreadEvidence) -> Option<SampledSleep> {
        let ThreadState::Asleep(call) = thread.state else {
            return None;
        };
        Some(SampledSleep {
            serial: stall.serial,
            place: match call {
                Some(call) => SleepPlace::Call {
                    call,
                    needs_signal: capture::needs_signal(call.pc),
                },
                None => SleepPlace::AfterRun(thread.runs),
            },
        })
    }

    /// Whether its stack is copied without a signal.
    fn is_copied(self) -> bool {
        matches!(
            self.place,
            SleepPlace::Call {
                needs_signal: false,
                ..
            }
        )
    }
}

impl SentRequest {
    /// Asks the thread that drives a worker for its stack, if the allowance has one left.
    pub(super) fn send(
        driver: Option<&WorkerThread>,
        signal: Result<i32, NoStack>,
        is_allowed: impl FnOnce() -> bool,
    ) -> Result<SentRequest, NoStack> {
        let (signal, driver) = (signal?, driver.ok_or(NoStack::ThreadUnknown)?);
        if !is_allowed() {
            return Err(NoStack::RateLimited);
        }
        SentRequest::to(
            Addressee {
                slot: driver.slot,
                tenancy: driver.tenancy,
            },
            signal,
        )
    }

    fn to(addressee: Addressee, signal: i32) -> Result<SentRequest, NoStack> {
        Ok(SentRequest {
            tid: addressee.slot.tid(),
            request: Request::send(addressee, signal)?,
            signal,
        })
    }

    fn why_unanswered(&self) -> NoStack {
        if os::is_signal_blocked(self.tid, self.signal) {
            NoStack::SignalBlocked
        } else if capture::is_replaced(self.signal) {
            NoStack::SignalTaken
        } else {
            NoStack::NotAnswered
        }
    }
}

/// Whether the stack shows the stall that it was asked for. `over` is whether that has ended.
fn is_of(stack: &RawStack, stall: &Stall, over: bool) -> bool {
    if !stack.is_answered() {
        return false;
    }
    if let HeldBy::Mark(poll) = stall.held_by {
        return stack.epoch() == poll.epoch;
    }
    !over || is_in_its_call(stack, stall)
}

/// Whether the thread was about to return from the call that the stall has slept in.
fn is_in_its_call(stack: &RawStack, stall: &Stall) -> bool {
    stall
        .call
        .is_some_and(|call| (call.pc, call.sp) == stack.position())
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::report::{Certainty, TimeSplit};

    fn stall(serial: u64) -> Stall {
        Stall {
            serial,
            held_by: HeldBy::Visit(None),
            since: Nanos(1),
            duration: Duration::from_millis(10),
            error: Duration::ZERO,
            certainty: Certainty::Certain,
            split: TimeSplit::default(),
            call: None,
            name: 0,
            task: 0,
        }
    }

    fn thread(runs: u64, state: ThreadState) -> ThreadEvidence {
        ThreadEvidence {
            cpu: Duration::ZERO,
            run_queue: Duration::ZERO,
            runs,
            state,
        }
    }

    #[test]
    fn a_sleep_stays_the_same_for_as_long_as_the_thread_does_not_run() {
        let call = |sp| Call {
            number: 202,
            first: 0,
            sp,
            pc: 1,
        };
        let sleep = |serial, runs, call| {
            SampledSleep::now(&stall(serial), thread(runs, ThreadState::Asleep(call)))
        };
        // A call is told by its position: a signal makes the thread run, and the call goes on.
        assert_eq!(sleep(1, 7, Some(call(2))), sleep(1, 8, Some(call(2))));
        assert_ne!(sleep(1, 7, Some(call(2))), sleep(1, 7, Some(call(3))));
        assert_eq!(sleep(1, 7, None), sleep(1, 7, None));
        assert_ne!(sleep(1, 7, None), sleep(1, 8, None));
        assert_ne!(sleep(1, 7, None), sleep(2, 7, None));
        let computing = thread(7, ThreadState::OnCpu);
        assert_eq!(SampledSleep::now(&stall(1), computing), None);
    }

    #[test]
    fn a_request_that_cannot_be_sent_gives_the_reason() {
        let mut sampling = Sampling::default();
        let refused = sampling.ask(stall(3), None, || Err(NoStack::RateLimited));
        let refused = refused.expect("a reason");
        assert_eq!(refused.serial, 3);
        assert_eq!(refused.stack.err(), Some(NoStack::RateLimited));
        assert!(sampling.is_idle());
        assert!(sampling.collect(None).is_none());
    }

    #[cfg(all(
        feature = "stacks",
        target_os = "linux",
        any(target_arch = "x86_64", target_arch = "aarch64")
    ))]
    #[test]
    fn a_thread_that_blocks_the_signal_has_not_failed_to_answer() {
        const SIGNAL: i32 = capture::DEFAULT_SIGNAL;
        capture::install(SIGNAL).unwrap();
        // A thread of ours blocks all signals.
        let thread = os::spawn("test", || {
            let slot = crate::slot::mine().expect("a slot");
            let tenancy = slot.tenancy();
            let send = || SentRequest::to(Addressee { slot, tenancy }, SIGNAL);
            let mut sampling = Sampling::default();
            assert!(sampling.ask(stall(1), None, send).is_none());
            assert!(sampling.is_unanswered(), "the reason is not known yet");
            let collected = (0..SLOW).find_map(|_| sampling.collect(Some(1)));
            let why = collected.expect("a reason").stack.err();
            assert_eq!(why, Some(NoStack::SignalBlocked));
            assert!(!sampling.is_unanswered());
            os::let_through(SIGNAL);
            let answer = sampling.collect(Some(1)).expect("an answer");
            assert!(answer.stack.is_ok());
            assert!(sampling.ask(stall(1), None, send).is_none());
            assert!(sampling.is_unanswered(), "it has been seen to answer");
            // Known to be deaf, it is copied once it sleeps.
            sampling.is_deaf = true;
            let call = Call {
                number: 202,
                first: 0,
                sp: 2,
                pc: 1,
            };
            let mut ask = |state| {
                let asleep = Some(thread(1, ThreadState::Asleep(state)));
                sampling.ask(stall(1), asleep, || Err(NoStack::Busy))
            };
            assert!(ask(None).is_none(), "its call is secret");
            assert!(ask(Some(call)).is_some());
        });
        thread.unwrap().join().unwrap();
    }

    #[test]
    fn the_allowance_is_used_up_and_grows_again() {
        let start = Nanos(1_000_000_000);
        let mut allowance = Allowance::new(start);
        let taken = |allowance: &mut Allowance, now, is_long| {
            (0..100).filter(|_| allowance.take(now, is_long)).count() as u32
        };
        assert_eq!(taken(&mut allowance, start, true), BURST);
        let later = start.plus(SPACING * 3);
        assert_eq!(taken(&mut allowance, later, true), 3);
        let later = start.plus(SPACING * 1000);
        assert_eq!(taken(&mut allowance, later, true), BURST);
    }

    #[test]
    fn short_stalls_leave_some_stacks_to_long_ones() {
        let start = Nanos(1_000_000_000);
        let mut allowance = Allowance::new(start);
        let mut taken = |milliseconds| {
            let stall = Stall {
                duration: Duration::from_millis(milliseconds),
                ..stall(1)
            };
            let threshold = Duration::from_millis(10);
            let all = (0..100).filter(|_| allowance.take_for(&stall, threshold, start));
            all.count() as u32
        };
        assert_eq!(taken(39), BURST - RESERVE);
        assert_eq!(taken(40), RESERVE);
    }
}
