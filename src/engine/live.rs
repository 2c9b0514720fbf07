//! One stall: its number, its worker and its figures.
//!
//! *Runs on:* `stall-watchdog` keeps it. `stall-reporter` composes its report, and so does a thread
//! that calls `stalled_now()`.

use super::{StallId, WatchedRuntime};
use crate::clock::{self, Nanos, wall_clock};
use crate::detect::Stall;
use crate::explain::{self, SleptIn};
use crate::os;
use crate::report::{Certainty, Frame, Phase, StallReport};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// A stall, or a poll that may become one.
#[derive(Clone, Debug)]
pub(crate) struct Live {
    pub(crate) id: StallId,
    pub(crate) runtime: Arc<WatchedRuntime>,
    pub(crate) worker: usize,
    pub(crate) stall: Stall,
    /// The call that it has slept in longest, as that was looked up while the thread slept in it.
    pub(crate) slept_in: Option<SleptIn>,
    /// Whether it has been written to standard error.
    pub(crate) last_words: Arc<AtomicBool>,
}

impl Live {
    /// The age that one poll of the stall is proven to have: the longest of several polls took its
    /// share at least. `None` for a likely stall.
    pub(crate) fn proven_age(&self, now: Nanos) -> Option<Duration> {
        let is_certain = self.stall.certainty == Certainty::Certain;
        let age = now.since(self.stall.since) / self.stall.held_by.most_polls();
        is_certain.then_some(age)
    }

    /// The report of a stall that goes on, by the watchdog's own figures: without names and stacks.
    pub(crate) fn report_now(&self) -> StallReport {
        let mut now = self.clone();
        now.stall.duration = clock::now().since(self.stall.since);
        now.report(Phase::Ongoing, self.slept_in, &[])
    }

    /// The report of this stall, without names and stacks.
    ///
    /// `frames` is the stack that shows the cause; empty if there is none.
    pub(crate) fn report(
        &self,
        phase: Phase,
        slept_in: Option<SleptIn>,
        frames: &[Frame],
    ) -> StallReport {
        let Live { runtime, stall, .. } = self;
        StallReport {
            id: self.id.0,
            phase,
            certainty: stall.certainty,
            runtime: runtime.name.clone(),
            worker: self.worker,
            thread: None,
            tid: None,
            span: None,
            trace: None,
            task: (stall.task != 0).then_some(stall.task),
            spawned_at: None,
            started_at: wall_clock(stall.since),
            duration: stall.duration,
            duration_error: stall.error,
            time: stall.split,
            cause: explain::cause(&stall.split, runtime.rules.threshold, slept_in, frames),
            asleep_in: slept_in_call(stall),
            driver_frozen: None,
            victims: None,
            site: None,
            dependency: None,
            stacks: Vec::new(),
            representative_stack: None,
            advice: None,
            seen_here: 0,
            lost_here: Duration::ZERO,
            missing: Vec::new(),
            suppressed: 0,
        }
    }
}

/// The name of the call that the stall slept in. A poll that computes may have been met first while
/// its thread was still in the call before it, as a wait for work.
fn slept_in_call(stall: &Stall) -> Option<String> {
    let call = stall.call.filter(|_| stall.split.has_slept())?;
    Some(os::call_name(call.number))
}
