//! When a stack is taken, and whether it shows what it was taken for.
//!
//! *Runs on:* the watchdog thread.
//! *Here:* two system calls to ask, an atomic load to collect. Nobody waits. Only where there is no answer is a
//! file opened, to say why.
//!
//! An answer takes some microseconds. It is collected a moment later, so that what the stack shows is known
//! by the next tick, if it says by itself what it is of; else at that tick.
//!
//! A stack is asked for one tick before a stall may be one, when it has become one, and whenever its age
//! has doubled; of a thread that is still in the sleep it was found in, not again: its stack is the same.
//! What comes back may be too late. It counts if the slot's epoch says that it was the same poll; without
//! a mark, if the worker has not moved since, or if the thread was about to return from the very call it
//! had been seen asleep in.

use super::workers::Driver;
use crate::capture::{self, Addressee, RawStack, Request};
use crate::clock::Nanos;
use crate::detect::{Finding, HeldBy, Stall};
use crate::os::{self, Call, ThreadEvidence, ThreadState};
use crate::report::NoStack;
use std::time::Duration;

/// Stacks in a row, for a process that has just begun to stall …
const BURST: u32 = 32;
/// … and the time after which one more is allowed: eight a second, which cost less than a hundredth of a
/// core to take and explain.
const SPACING: Duration = Duration::from_millis(125);

/// Ticks after which a request without an answer is worth a word.
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

    fn take(&mut self, now: Nanos) -> bool {
        while self.left < BURST && now.since(self.counted_at) >= SPACING {
            self.left += 1;
            self.counted_at = self.counted_at.plus(SPACING);
        }
        if self.left == BURST {
            self.counted_at = now;
        }
        let allowed = self.left > 0;
        self.left -= u32::from(allowed);
        allowed
    }
}

/// The stacks of one worker's stalls.
#[derive(Debug, Default)]
pub(super) struct Sampling {
    pending: Option<Pending>,
    /// Answered and collected before the tick that tells whether it is of the stall asked for.
    early: Option<(RawStack, Stall)>,
    /// The thread has taken a signal that was collected before the tick.
    answered_early: bool,
    /// The sleep that the last stack was taken in.
    slept: Option<SampledSleep>,
}

#[derive(Debug)]
struct Pending {
    request: Request,
    stall: Stall,
    tid: u32,
    signal: i32,
    ticks: u32,
}

/// One sleep of a thread: the call and the place on the stack it was made at, or outside of a call, as
/// long as it has not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct SampledSleep {
    serial: u64,
    place: Result<Call, u64>,
}

/// A stack that was taken, or why there is none.
#[derive(Debug)]
pub(super) struct Sampled {
    /// Of which stall.
    pub(super) serial: u64,
    /// How old that was.
    pub(super) after: Duration,
    pub(super) stack: Result<RawStack, NoStack>,
}

impl Sampling {
    /// Nothing has been asked for that is still to come.
    pub(super) fn is_idle(&self) -> bool {
        self.pending.is_none() && self.early.is_none()
    }

    /// The thread has taken the signal that was sent last.
    pub(super) fn is_answered(&self) -> bool {
        let pending = self.pending.as_ref();
        self.answered_early || pending.is_some_and(|pending| pending.request.is_answered())
    }

    /// Whether a stack has been asked for and not come yet.
    pub(super) fn is_waiting(&self) -> bool {
        self.pending.is_some()
    }

    /// Collects, a moment after it was asked for, a stack that says by itself what it is of.
    pub(super) fn collect_early(&mut self) -> Option<Sampled> {
        let pending = self.pending.take()?;
        let stall = pending.stall;
        match pending.request.collect() {
            Ok(stack) => {
                self.answered_early = stack.is_answered();
                if is_of(&stack, &stall, true) {
                    return Some(Sampled {
                        serial: stall.serial,
                        after: stall.duration,
                        stack: Ok(stack),
                    });
                }
                self.early = Some((stack, stall));
            }
            Err(request) => self.pending = Some(Pending { request, ..pending }),
        }
        None
    }

    /// Collects what was asked for at an earlier tick. `watched` is what holds the worker now.
    pub(super) fn collect(&mut self, watched: Option<u64>) -> Option<Sampled> {
        self.answered_early = false;
        if let Some((stack, stall)) = self.early.take() {
            let of_it = is_of(&stack, &stall, watched != Some(stall.serial));
            return Some(Sampled {
                serial: stall.serial,
                after: stall.duration,
                stack: of_it.then_some(stack).ok_or(NoStack::MovedOn),
            });
        }
        let Pending {
            request,
            stall,
            tid,
            signal,
            ticks,
        } = self.pending.take()?;
        let over = watched != Some(stall.serial);
        let stack = match request.collect() {
            Ok(stack) if is_of(&stack, &stall, over) => Ok(stack),
            Ok(_) => Err(NoStack::MovedOn),
            Err(_) if over => Err(unanswered(tid, signal)),
            Err(request) => {
                self.pending = Some(Pending {
                    request,
                    stall,
                    tid,
                    signal,
                    ticks: ticks + 1,
                });
                if ticks + 1 != SLOW {
                    return None;
                }
                Err(unanswered(tid, signal))
            }
        };
        Some(Sampled {
            serial: stall.serial,
            after: stall.duration,
            stack,
        })
    }

    /// Asks for a stack if a finding calls for one.
    pub(super) fn ask(
        &mut self,
        findings: &[Finding],
        signal: Result<i32, NoStack>,
        driver: Option<&Driver>,
        thread: Option<ThreadEvidence>,
        allowance: &mut Allowance,
        now: Nanos,
    ) -> Option<Sampled> {
        let stall = findings.iter().find_map(|finding| match finding {
            Finding::Suspect(stall) | Finding::Began(stall) | Finding::Ongoing(stall) => {
                Some(*stall)
            }
            Finding::Ended(_) => None,
        })?;
        if self.pending.is_some() {
            return None;
        }
        let sleep = thread.and_then(|thread| match thread.state {
            ThreadState::Asleep(call) => Some(SampledSleep {
                serial: stall.serial,
                place: call.ok_or(thread.runs),
            }),
            _ => None,
        });
        if sleep.is_some() && sleep == self.slept {
            return None;
        }
        let asked = signal.and_then(|signal| {
            let driver = driver.ok_or(NoStack::ThreadUnknown)?;
            if !allowance.take(now) {
                return Err(NoStack::RateLimited);
            }
            let addressee = Addressee {
                slot: driver.slot,
                tenancy: driver.tenancy,
            };
            let request = Request::send(addressee, signal)?;
            Ok(Pending {
                request,
                stall,
                tid: driver.slot.tid(),
                signal,
                ticks: 0,
            })
        });
        match asked {
            Ok(pending) => {
                self.pending = Some(pending);
                self.slept = sleep;
                None
            }
            Err(why) => Some(Sampled {
                serial: stall.serial,
                after: stall.duration,
                stack: Err(why),
            }),
        }
    }
}

/// Whether the stack shows the stall it was asked for.
fn is_of(stack: &RawStack, stall: &Stall, over: bool) -> bool {
    if !stack.is_answered() {
        return false;
    }
    if let HeldBy::Poll(poll) = stall.held_by {
        return stack.epoch() == poll.epoch;
    }
    let returns_from_it = stall.call.is_some_and(|call| {
        let (pc, sp) = stack.position();
        (call.pc, call.sp) == (pc, sp)
    });
    !over || returns_from_it
}

/// Why a request has not been answered.
fn unanswered(tid: u32, signal: i32) -> NoStack {
    if os::is_signal_blocked(tid, signal) {
        NoStack::SignalBlocked
    } else if capture::is_replaced(signal) {
        NoStack::SignalTaken
    } else {
        NoStack::NotAnswered
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn stacks_are_rationed_and_the_ration_grows_again() {
        let start = Nanos(1_000_000_000);
        let mut allowance = Allowance::new(start);
        let taken = |allowance: &mut Allowance, now| {
            (0..100).filter(|_| allowance.take(now)).count() as u32
        };
        assert_eq!(taken(&mut allowance, start), BURST);
        assert_eq!(taken(&mut allowance, start.plus(SPACING * 3)), 3);
        assert_eq!(taken(&mut allowance, start.plus(SPACING * 1000)), BURST);
    }
}
