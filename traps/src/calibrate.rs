//! How much work is a tenth of a second: measured once on this machine, before the service starts.

use crate::failure::Failure;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

/// How long a trap that computes should take: a clear stall, also where the machine turns out twice as
/// fast as when it was measured.
pub(crate) const TARGET: Duration = Duration::from_millis(150);

/// The shortest piece of work worth scaling up.
const MEASURABLE: Duration = Duration::from_millis(10);

/// The fastest of so many runs counts: the others were interrupted.
const RUNS: usize = 3;

/// Finds how many units of work take as long as `target`, within `bounds`. `took` does that many, and
/// tells how long it took.
pub(crate) fn units(
    target: Duration,
    bounds: RangeInclusive<u64>,
    mut took: impl FnMut(u64) -> Result<Duration, Failure>,
) -> Result<u64, Failure> {
    let mut piece = *bounds.start();
    loop {
        let mut fastest = Duration::MAX;
        for _ in 0..RUNS {
            fastest = fastest.min(took(piece)?);
        }
        if fastest >= MEASURABLE || piece >= *bounds.end() {
            let units = piece as f64 * target.as_secs_f64() / fastest.as_secs_f64();
            return Ok((units as u64).clamp(*bounds.start(), *bounds.end()));
        }
        piece *= 2;
    }
}

/// How long `work` takes, and what comes of it.
pub(crate) fn time<R>(work: impl FnOnce() -> R) -> (Duration, R) {
    let from = Instant::now();
    let result = work();
    (from.elapsed(), result)
}
