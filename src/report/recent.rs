//! The last stalls, each with its latest report.
//!
//! *Runs on:* `stall-reporter` writes; threads that use a guard, and `stall-serve`, read.
//!
//! It is a ring with a fixed number of places.

use super::pool_wait::PoolWaitReport;
use super::stall::StallReport;
use std::collections::VecDeque;

/// The last stalls and pool waits of one watch.
#[derive(Debug, Default)]
pub(crate) struct Recent {
    capacity: usize,
    stalls: VecDeque<StallReport>,
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
    pub(crate) fn keep(&mut self, report: StallReport) {
        keep(&mut self.stalls, self.capacity, report, |report| report.id);
    }

    /// Keeps a report, in place of an earlier one of the same wait.
    pub(crate) fn keep_pool_wait(&mut self, report: PoolWaitReport) {
        keep(&mut self.pool_waits, self.capacity, report, |report| {
            report.id
        });
    }

    /// The stalls kept, oldest first.
    pub(crate) fn stalls(&self) -> Vec<StallReport> {
        self.stalls.iter().cloned().collect()
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
            .find(|report| report.id == id)
            .cloned()
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
}
