//! A wait that ends after so many steps of the waiting thread, and not after a time.
//!
//! *Runs on:* the threads of tests.
//! *Must not:* read a clock. On a busy machine each step takes longer, and so does all that is
//! waited for.

use std::time::Duration;

/// The time between two checks of a condition, on a machine with nothing else to do.
const STEP: Duration = Duration::from_micros(500);

/// The number of steps: ten seconds on such a machine, and more on a busy one.
const STEPS: usize = 20_000;

/// Waits for a condition. Returns whether it holds.
pub(super) fn wait_until(is_done: impl Fn() -> bool) -> bool {
    for _ in 0..STEPS {
        if is_done() {
            return true;
        }
        std::thread::sleep(STEP);
    }
    is_done()
}
