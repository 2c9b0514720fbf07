//! Lanes of workers for the page: segments of the flight recorder, in cells of equal length.
//!
//! *Runs on:* the thread `stall-serve`.
//!
//! A cell is one character, so the size of the news does not depend on how often a worker changes
//! its state.

use crate::clock::Nanos;
use crate::engine::{Lane, Segment, View};
use serde::Serialize;
use std::time::Duration;

/// The length of a cell.
pub(super) const STEP: Duration = Duration::from_millis(50);
/// The time that a page shows.
pub(super) const SHOWN: Duration = Duration::from_secs(60);
/// The last part of a lane is sent again: the watchdog may have been late.
const AGAIN: Duration = Duration::from_secs(1);
/// The most workers with a lane.
const WORKERS: usize = 64;

/// The lanes of a time.
pub(super) struct Shown {
    /// The number of the first cell, which counts from the zero of the shared clock.
    pub(super) first: u64,
    pub(super) workers: Vec<Cells>,
    /// The workers that have no lane.
    pub(super) left_out: usize,
}

/// The cells of one worker, as the page reads them.
#[derive(Serialize)]
pub(super) struct Cells {
    pub(super) runtime: String,
    pub(super) worker: usize,
    /// `H` for held, `0` to `9` for parked to busy all the time, `.` for unknown.
    pub(super) cells: String,
}

/// The lanes since this time, up to the last whole cell.
pub(super) fn read(view: &View, since: Nanos, now: Nanos) -> Shown {
    let number = |at: Nanos| at.0 / STEP.as_nanos() as u64;
    let (first, end) = (number(since.minus(AGAIN)), number(now.minus(STEP)));
    let from = Nanos(first * STEP.as_nanos() as u64);
    let runtimes = view.runtimes();
    let counts = runtimes.iter().map(|runtime| runtime.metrics.num_workers());
    let counts: Vec<usize> = counts.collect();
    let mut workers = Vec::new();
    for (runtime, count) in runtimes.iter().zip(with_lanes(&counts, WORKERS)) {
        workers.extend((0..count).map(|worker| Cells {
            runtime: runtime.name.clone(),
            worker,
            cells: cells(&runtime.recorder.segments(worker, from), first..end),
        }));
    }
    Shown {
        first,
        left_out: counts.iter().sum::<usize>() - workers.len(),
        workers,
    }
}

/// How many workers of each runtime have a lane. A large runtime gives way to small ones.
fn with_lanes(counts: &[usize], room: usize) -> Vec<usize> {
    let mut smallest_first: Vec<usize> = (0..counts.len()).collect();
    smallest_first.sort_by_key(|runtime| counts[*runtime]);
    let mut shown = vec![0; counts.len()];
    let mut left = room;
    for (done, runtime) in smallest_first.into_iter().enumerate() {
        // Rounded up, so that there are lanes where runtimes are more than room.
        let part = left.div_ceil(counts.len() - done);
        shown[runtime] = counts[runtime].min(part);
        left -= shown[runtime];
    }
    shown
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
    use crate::engine::{Shared, WatchedRuntime};
    use std::sync::Arc;

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
    fn each_runtime_has_a_part_of_the_lanes() {
        assert_eq!(with_lanes(&[2, 4], 64), [2, 4], "there is room for all");
        assert_eq!(with_lanes(&[64, 4, 1], 64), [59, 4, 1]);
        assert_eq!(with_lanes(&[100, 100, 8], 64), [28, 28, 8]);
        let many = with_lanes(&[1; 100], 64);
        assert_eq!(many.iter().sum::<usize>(), 64, "first come, first served");
        assert_eq!(with_lanes(&[], 64), [0; 0]);
    }

    #[test]
    fn a_large_runtime_hides_no_other_and_what_is_left_out_is_counted() {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let large = builder.worker_threads(WORKERS).build().unwrap();
        let small = builder.worker_threads(2).build().unwrap();
        let watched = [&large, &small].map(|tokio| WatchedRuntime::for_tests(tokio.handle()));
        let [large, small] = watched.map(|runtime| Arc::into_inner(runtime).unwrap());
        let watch = large.watch.clone();
        let small = WatchedRuntime {
            name: "small".to_owned(),
            watch: watch.clone(),
            ..small
        };
        let shared = Arc::new(Shared::default());
        shared.watched.lock().extend([large, small].map(Arc::new));
        let view = View { watch, shared };
        let shown = read(&view, Nanos(0), Nanos(0));
        assert_eq!((shown.workers.len(), shown.left_out), (WORKERS, 2));
        let of_the_small = shown.workers.iter().filter(|lane| lane.runtime == "small");
        assert_eq!(of_the_small.count(), 2);
    }

    #[test]
    fn a_short_poll_in_a_parked_cell_is_not_lost() {
        let segments = [segment(0, 49, Lane::Parked), segment(49, 50, Lane::Busy)];
        assert_eq!(cells(&segments, 0..1), "1");
    }
}
