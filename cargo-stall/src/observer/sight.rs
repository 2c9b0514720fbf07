//! The observed process as a whole: its files, its tests, and the stops of its threads so far.
//!
//! *Runs on:* the main thread.
//!
//! A stack is taken without a stop where the thread sleeps, and by a stop where it computes.

use crate::observer::os;
use crate::observer::target::Target;
use std::io;
use std::time::Duration;
use tokio_stall::outside::{ObservedProcess, SleepCall, StackCopy, ThreadRegisters, ThreadStack};

/// What the threads of one process share.
#[derive(Debug)]
pub(crate) struct Sight {
    pub(crate) target: Target,
    pub(crate) process: ObservedProcess,
    pub(crate) threshold: Duration,
    pub(crate) workers: usize,
    /// The tests that run, each with its thread.
    pub(crate) tests: Vec<(u32, Option<String>)>,
    pub(crate) stops: Stops,
    /// Threads that may be seized still, since they could not be stopped. They must be let go.
    pub(crate) seized: Vec<u32>,
    pub(crate) stalls: u64,
    /// Whether computing is reported without proof.
    pub(crate) likely: bool,
    /// How often a poll computed whose end could not be seen.
    pub(crate) unproven: u64,
    /// The number of stacks so far.
    pub(crate) stacks: u64,
    /// Whether any function of the program had a name so far.
    pub(crate) has_names: bool,
}

/// The stops of threads so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Stops {
    pub(crate) count: u64,
    pub(crate) total: Duration,
    pub(crate) longest: Duration,
    /// How often a thread could not be stopped in time.
    pub(crate) failed: u64,
}

impl Stops {
    fn add(&mut self, held: Duration) {
        self.count += 1;
        self.total += held;
        self.longest = self.longest.max(held);
    }
}

impl Sight {
    /// The sight of a process of which nothing has been looked at so far.
    pub(crate) fn new(target: Target, threshold: Duration, own: &[String]) -> Sight {
        let process = ObservedProcess::new(target.pid, own.iter().cloned());
        Sight {
            target,
            process,
            threshold,
            workers: 0,
            tests: Vec::new(),
            stops: Stops::default(),
            seized: Vec::new(),
            stalls: 0,
            likely: false,
            unproven: 0,
            stacks: 0,
            has_names: false,
        }
    }

    /// The stack of a thread that sleeps in this call, without a stop. It is lost if it needs
    /// registers that the kernel does not show. `None` once the thread `is_awake`: its stack may
    /// have changed while it was copied.
    pub(crate) fn sleeping_stack(
        &mut self,
        call: SleepCall,
        mut is_awake: impl FnMut() -> bool,
    ) -> Option<ThreadStack> {
        let registers = call.registers();
        if registers.sp == 0 {
            return None;
        }
        let mut unwound = |deep| {
            let copy = self.process.copy_stack(registers.sp, deep);
            let is_valid = !is_awake();
            is_valid.then(|| ThreadStack {
                asleep: true,
                ..self.explained(registers, &copy)
            })
        };
        let stack = unwound(false)?;
        match stack.truncated {
            true => unwound(true),
            false => Some(stack),
        }
    }

    pub(super) fn explained(
        &mut self,
        registers: ThreadRegisters,
        copy: &StackCopy,
    ) -> ThreadStack {
        let stack = self.process.explain(registers, copy);
        self.stacks += 1;
        self.has_names |= stack.has_names();
        stack
    }

    /// The stack of a thread that computes, by a stop.
    pub(crate) fn stopped_stack(&mut self, tid: u32, deep: bool) -> io::Result<ThreadStack> {
        let (registers, copy) = self.stopped_copy(tid, deep)?;
        Ok(self.explained(registers, &copy))
    }

    pub(super) fn stopped_copy(
        &mut self,
        tid: u32,
        deep: bool,
    ) -> io::Result<(ThreadRegisters, StackCopy)> {
        let process = &self.process;
        let copy = |registers: ThreadRegisters| (registers, process.copy_stack(registers.sp, deep));
        let stopped = os::stopped(tid, copy);
        if let Err(error) = &stopped {
            let is_late = error.kind() == io::ErrorKind::TimedOut;
            self.stops.failed += u64::from(is_late);
            if !self.seized.contains(&tid) {
                self.seized.push(tid);
            }
        }
        let (copied, held) = stopped?;
        self.stops.add(held);
        Ok(copied)
    }

    /// Notes the test that a thread runs; `None` if it runs one whose name is not known.
    pub(super) fn note_test(&mut self, tid: u32, test: Option<String>) {
        self.tests.retain(|(known, _)| *known != tid);
        self.tests.push((tid, test));
    }

    /// The test that runs, if there is only one. The threads of its runtime are its own.
    pub(super) fn only_test(&self) -> Option<String> {
        match self.tests.as_slice() {
            [(_, test)] => test.clone(),
            _ => None,
        }
    }
}
