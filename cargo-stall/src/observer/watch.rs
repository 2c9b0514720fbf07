//! The loop that looks: all threads of one process, once a tick.
//!
//! *Runs on:* the main thread.

use crate::observer::os;
use crate::observer::problem::Problem;
use crate::observer::sight::{Sight, Stops};
use crate::observer::target::Target;
use crate::observer::tracked::Tracked;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tokio_stall::StallReport;
use tokio_stall::outside::{ObservedProcess, StallEvidence};

/// The observation of one process.
#[derive(Debug)]
pub(crate) struct ProcessWatch {
    sight: Sight,
    threads: BTreeMap<u32, Tracked>,
}

impl ProcessWatch {
    pub(crate) fn new(target: Target, threshold: Duration, own: &[String]) -> ProcessWatch {
        ProcessWatch {
            sight: Sight::new(target, threshold, own),
            threads: BTreeMap::new(),
        }
    }

    /// Reports also code that computes in a poll whose end cannot be seen.
    pub(crate) fn with_likely(mut self, likely: bool) -> ProcessWatch {
        self.sight.likely = likely;
        self
    }

    /// A sentence about code that computes and is not reported, if there is any.
    pub(crate) fn unproven(&self) -> Option<&'static str> {
        let is_silent = self.sight.unproven > 0 && !self.sight.likely;
        is_silent.then_some(
            "code computes in polls whose end cannot be seen, so it is not reported; allow \
             `perf_event_open`, or give `--likely` to `attach`",
        )
    }

    /// The time between two ticks: a tenth of the threshold, 1 to 10 ms.
    pub(crate) fn tick_length(&self) -> Duration {
        let tenth = self.sight.threshold / 10;
        tenth.clamp(Duration::from_millis(1), Duration::from_millis(10))
    }

    /// Reads the program's debug information, so that the first stack is not late.
    pub(crate) fn prime(&mut self) {
        self.sight.process.prime();
    }

    /// Looks at all threads. Returns the reports that are due.
    ///
    /// # Errors
    ///
    /// Descriptors are short.
    pub(crate) fn tick(&mut self) -> Result<Vec<StallReport>, Problem> {
        let mut due: Vec<StallEvidence> = Vec::new();
        self.find_threads()?;
        let sight = &mut self.sight;
        sight.seized.retain(|tid| !os::is_let_go(*tid));
        self.threads
            .retain(|_, thread| thread.tick(sight, Instant::now(), &mut due));
        let reports = due.iter().map(|evidence| sight.process.report(evidence));
        Ok(reports.collect())
    }

    /// Whether the process is still there.
    pub(crate) fn is_there(&self) -> bool {
        self.sight.target.is_there()
    }

    fn find_threads(&mut self) -> Result<(), Problem> {
        let now = Instant::now();
        for tid in self.sight.target.threads() {
            if self.threads.contains_key(&tid) {
                continue;
            }
            let opened = Tracked::open(&self.sight, tid, now)?;
            self.threads.extend(opened.map(|thread| (tid, thread)));
        }
        Ok(())
    }

    /// The threads that drive workers, or did.
    pub(crate) fn workers(&self) -> impl Iterator<Item = &Tracked> {
        let threads = self.threads.values();
        threads.filter(|thread| thread.worker.is_some())
    }

    pub(crate) fn stops(&self) -> Stops {
        self.sight.stops
    }

    /// Whether stacks were taken, and no function on any of them had a name.
    pub(crate) fn is_nameless(&self) -> bool {
        !self.sight.has_names
    }

    /// Whether any stack has been taken so far.
    pub(crate) fn has_taken_stacks(&self) -> bool {
        self.sight.stacks > 0
    }

    pub(crate) fn name(&self) -> &str {
        &self.sight.target.name
    }

    /// The last reports of the stalls that go on, when the observation ends.
    pub(crate) fn end(&mut self) -> Vec<StallReport> {
        let mut due = Vec::new();
        for thread in self.threads.values_mut() {
            thread.end_hold(Instant::now(), &mut due);
        }
        let process = &self.sight.process;
        due.iter()
            .map(|evidence| process.report(evidence))
            .collect()
    }

    pub(crate) fn process(&self) -> &ObservedProcess {
        &self.sight.process
    }
}
