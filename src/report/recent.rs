//! The last stalls, each with its latest report.
//!
//! *Runs on:* `stall-reporter` writes; threads that use a guard, and `stall-serve`, read.
//!
//! It is a ring with a fixed number of places.

use super::pool_wait::PoolWaitReport;
use super::stall::StallReport;
use super::trace_context::TraceContext;
use std::collections::VecDeque;

/// The last stalls and pool waits of one watch.
#[derive(Debug, Default)]
pub(crate) struct Recent {
    capacity: usize,
    /// The number of reports kept so far.
    changes: u64,
    /// Each with the number of its last change.
    stalls: VecDeque<(u64, StallReport)>,
    pool_waits: VecDeque<PoolWaitReport>,
}

impl Recent {
    pub(crate) fn new(capacity: usize) -> Recent {
        Recent {
            capacity,
            ..Recent::default()
        }
    }

    /// Keeps a report, in place of an earlier one of the same stall.
    pub(crate) fn keep(&mut self, mut report: StallReport) {
        self.changes += 1;
        if report.trace.is_none() {
            // It is found once, by the thread that logs.
            let mut stalls = self.stalls.iter().rev();
            let known = stalls.find(|(_, known)| known.id == report.id);
            report.trace = known.and_then(|(_, known)| known.trace.clone());
        }
        let change = (self.changes, report);
        keep(&mut self.stalls, self.capacity, change, |(_, report)| {
            report.id
        });
    }

    /// Adds the trace to the report of a stall that is kept.
    pub(crate) fn set_trace(&mut self, id: u64, trace: &TraceContext) {
        let mut stalls = self.stalls.iter_mut().rev();
        let kept = stalls.find(|(_, report)| report.id == id);
        if let Some((change, report)) = kept.filter(|(_, report)| report.trace.is_none()) {
            self.changes += 1;
            *change = self.changes;
            report.trace = Some(trace.clone());
        }
    }

    /// Keeps a report, in place of an earlier one of the same wait.
    pub(crate) fn keep_pool_wait(&mut self, report: PoolWaitReport) {
        keep(&mut self.pool_waits, self.capacity, report, |report| {
            report.id
        });
    }

    /// The stalls kept, oldest first.
    pub(crate) fn stalls(&self) -> Vec<StallReport> {
        self.stalls
            .iter()
            .map(|(_, report)| report.clone())
            .collect()
    }

    /// The stalls with a report after that many changes, oldest stall first, and the number of
    /// changes by now.
    #[cfg(feature = "serve")]
    pub(crate) fn since(&self, changes: u64) -> (u64, Vec<StallReport>) {
        let new = self.stalls.iter().filter(|(change, _)| *change > changes);
        let reports = new.map(|(_, report)| report.clone()).collect();
        (self.changes, reports)
    }

    /// The pool waits kept, oldest first.
    pub(crate) fn pool_waits(&self) -> Vec<PoolWaitReport> {
        self.pool_waits.iter().cloned().collect()
    }

    /// The latest report of this stall, if it is still kept.
    pub(crate) fn stall(&self, id: u64) -> Option<StallReport> {
        self.stalls
            .iter()
            .rev()
            .find(|(_, report)| report.id == id)
            .map(|(_, report)| report.clone())
    }
}

fn keep<T>(ring: &mut VecDeque<T>, capacity: usize, report: T, id: impl Fn(&T) -> u64) {
    if let Some(known) = ring.iter_mut().rev().find(|known| id(known) == id(&report)) {
        *known = report;
        return;
    }
    if ring.len() >= capacity {
        ring.pop_front();
    }
    if capacity > 0 {
        ring.push_back(report);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn report(id: u64) -> StallReport {
        StallReport {
            id,
            ..crate::report::example()
        }
    }

    #[test]
    fn a_later_report_takes_the_place_of_an_earlier_one() {
        let mut ring = VecDeque::new();
        for report in [(1, 'a'), (2, 'b'), (1, 'c'), (3, 'd'), (4, 'e')] {
            keep(&mut ring, 3, report, |report: &(u64, char)| report.0);
        }
        assert_eq!(ring, [(2, 'b'), (3, 'd'), (4, 'e')]);
        keep(&mut ring, 0, (5, 'f'), |report| report.0);
        assert!(!ring.contains(&(5, 'f')));
    }

    #[test]
    fn a_trace_stays_with_its_stall() {
        let mut recent = Recent::new(3);
        let trace = TraceContext::new("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
        recent.keep(report(1));
        recent.set_trace(1, &trace);
        recent.keep(report(1));
        recent.keep(report(2));
        let traces: Vec<_> = recent
            .stalls()
            .into_iter()
            .map(|stall| stall.trace)
            .collect();
        assert_eq!(traces, [Some(trace), None]);
    }

    #[cfg(feature = "serve")]
    #[test]
    fn a_reader_gets_the_reports_since_its_last_look() {
        let mut recent = Recent::new(3);
        let ids = |(changes, reports): (u64, Vec<StallReport>)| {
            let ids: Vec<u64> = reports.iter().map(|report| report.id).collect();
            (changes, ids)
        };
        recent.keep(report(1));
        recent.keep(report(2));
        assert_eq!(ids(recent.since(0)), (2, vec![1, 2]));
        assert_eq!(ids(recent.since(2)), (2, vec![]));
        recent.keep(report(1));
        recent.keep(report(3));
        assert_eq!(ids(recent.since(2)), (4, vec![1, 3]));
    }
}
