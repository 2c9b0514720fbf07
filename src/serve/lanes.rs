//! Lanes of workers for the page: segments of the flight recorder, in cells of equal length.
//!
//! *Runs on:* the thread `stall-serve`.
//!
//! A cell is one character, so the size of the news does not depend on how often a worker changes
//! its state.

use crate::clock::Nanos;
use crate::engine::{Lane, Segment, View};
use std::time::Duration;

/// The length of a cell.
pub(super) const STEP: Duration = Duration::from_millis(50);
/// The time that a page shows.
pub(super) const SHOWN: Duration = Duration::from_secs(60);
/// The last part of a lane is sent again: the watchdog may have been late.
const AGAIN: Duration = Duration::from_secs(1);
/// The most workers with a lane.
const WORKERS: usize = 64;

/// The cells of one worker.
pub(super) struct Cells {
    pub(super) runtime: String,
    pub(super) worker: usize,
    /// `H` for held, `0` to `9` for parked to busy all the time, `.` for unknown.
    pub(super) cells: String,
}

/// The lanes since this time, up to the last whole cell. Returns the number of the first cell,
/// which counts from the zero of the shared clock.
pub(super) fn read(view: &View, since: Nanos, now: Nanos) -> (u64, Vec<Cells>) {
    let number = |at: Nanos| at.0 / STEP.as_nanos() as u64;
    let (first, end) = (number(since.minus(AGAIN)), number(now.minus(STEP)));
    let from = Nanos(first * STEP.as_nanos() as u64);
    let mut lanes = Vec::new();
    for runtime in view.runtimes() {
        for worker in 0..runtime.metrics.num_workers() {
            let segments = runtime.recorder.segments(worker, from);
            lanes.push(Cells {
                runtime: runtime.name.clone(),
                worker,
                cells: cells(&segments, first..end),
            });
        }
    }
    lanes.truncate(WORKERS);
    (first, lanes)
}

/// The times of one cell, by lane.
#[derive(Clone, Copy, Default)]
struct Shares {
    parked: u64,
    busy: u64,
    held: u64,
}

/// The cells with these numbers.
fn cells(segments: &[Segment], numbers: std::ops::Range<u64>) -> String {
    let step = STEP.as_nanos() as u64;
    let begin = numbers.start * step;
    let mut shares = vec![Shares::default(); numbers.end.saturating_sub(numbers.start) as usize];
    for segment in segments {
        let first = segment.from.0.saturating_sub(begin) / step;
        for (index, share) in shares.iter_mut().enumerate().skip(first as usize) {
            let from = begin + index as u64 * step;
            if segment.to.0 <= from {
                break;
            }
            let part = segment.to.0.min(from + step) - segment.from.0.max(from).min(from + step);
            share.add(segment.lane, part);
        }
    }
    shares.into_iter().map(Shares::letter).collect()
}

impl Shares {
    fn add(&mut self, lane: Lane, part: u64) {
        match lane {
            Lane::Unknown => {}
            Lane::Parked => self.parked += part,
            Lane::Busy => self.busy += part,
            Lane::Held => self.held += part,
        }
    }

    fn letter(self) -> char {
        let known = self.parked + self.busy;
        if self.held > known {
            'H'
        } else if known == 0 {
            '.'
        } else {
            let tenths = (self.busy * 9).div_ceil(known);
            char::from_digit(tenths as u32, 10).unwrap_or('.')
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn segment(from: u64, to: u64, lane: Lane) -> Segment {
        let at = |milliseconds: u64| Nanos(milliseconds * 1_000_000);
        Segment {
            from: at(from),
            to: at(to),
            lane,
            cpu: None,
            run_queue: None,
            asleep: None,
            turns: 0,
            stall: None,
        }
    }

    #[test]
    fn a_cell_shows_the_longest_hold_or_the_busy_share() {
        let segments = [
            segment(40, 100, Lane::Parked),
            segment(100, 200, Lane::Busy),
            segment(200, 225, Lane::Parked),
            segment(225, 250, Lane::Busy),
            segment(250, 280, Lane::Held),
            segment(280, 310, Lane::Parked),
            segment(310, 350, Lane::Unknown),
        ];
        assert_eq!(cells(&segments, 0..8), "00995H0.");
        assert_eq!(cells(&segments, 2..5), "995", "a segment may begin before");
        assert_eq!(cells(&[], 0..3), "...");
        assert_eq!(cells(&segments, 5..5), "");
    }

    #[test]
    fn a_short_poll_in_a_parked_cell_is_not_lost() {
        let segments = [segment(0, 49, Lane::Parked), segment(49, 50, Lane::Busy)];
        assert_eq!(cells(&segments, 0..1), "1");
    }
}
