//! The end of a poll: a hardware breakpoint of `perf` on the instruction that the thread executes
//! once the poll is over.
//!
//! *Runs on:* the main thread.
//! *Must not:* write into the other process. The processor compares addresses, and the kernel
//! counts. One thread alone has the breakpoint, and only while a poll of it is suspected.

use perf_event::events::Breakpoint;
use perf_event::{Builder, Counter};

/// Counts how often one thread executes one instruction.
#[derive(Debug)]
pub(crate) struct PollEnd {
    counter: Counter,
    address: u64,
}

impl PollEnd {
    /// Counts from now on. `None` if the kernel or a sandbox has none to give.
    pub(crate) fn of(tid: u32, address: u64) -> Option<PollEnd> {
        let mut builder = Builder::new(Breakpoint::execute(address));
        builder.observe_pid(tid as i32);
        builder.any_cpu().exclude_kernel(true).exclude_hv(true);
        builder.enabled(true);
        let counter = builder.build().ok()?;
        Some(PollEnd { counter, address })
    }

    /// Whether it counts this instruction.
    pub(crate) fn is_at(&self, address: u64) -> bool {
        self.address == address
    }

    /// Whether the instruction has been executed, so that the poll is over. A counter that fails
    /// proves nothing any more, so it counts as an end.
    pub(crate) fn is_over(&mut self) -> bool {
        self.counter.read().map_or(true, |count| count > 0)
    }
}
