//! The threads that claim to drive a worker, by worker.
//!
//! *Runs on:* `stall-watchdog`, the thread that asks for the stacks of all workers, and
//! `stall-explainer`.

use super::registry::claimers;
use super::{Claim, Slot};
use crate::clock::Nanos;
use std::collections::HashMap;

/// The slots of threads that claim a worker, by claim. Rebuilt each tick.
pub(crate) type Claims = HashMap<Claim, (&'static Slot, Nanos)>;

/// Collects the claims of all threads. If two threads claim one worker, the later claim counts.
pub(crate) fn collect_claims(drivers: &mut Claims) {
    drivers.clear();
    for slot in claimers() {
        if let Some((claim, at)) = slot.claim() {
            let newest = drivers.entry(claim).or_insert((slot, at));
            if at > newest.1 {
                *newest = (slot, at);
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::{all, mine};
    use super::*;
    use std::sync::Barrier;

    /// More threads than have claimed a worker at one time, in any test of this process: some of
    /// them have a slot that nobody has claimed a worker with.
    const MANY: usize = 64;

    #[test]
    fn a_thread_without_a_worker_is_not_visited() {
        // All live until they have been looked for.
        let (ready, done) = (Barrier::new(MANY + 1), Barrier::new(MANY + 1));
        let address = |slot: &'static Slot| std::ptr::from_ref(slot).addr();
        let lives = || {
            let slot = address(mine().expect("it has a slot"));
            ready.wait();
            done.wait();
            slot
        };
        let (known, visited, slots) = std::thread::scope(|scope| {
            let threads = [(); MANY].map(|()| scope.spawn(lives));
            ready.wait();
            let known: Vec<_> = all().map(address).collect();
            let visited: Vec<_> = claimers().map(address).collect();
            done.wait();
            (known, visited, threads.map(|thread| thread.join().unwrap()))
        });
        assert!(slots.iter().all(|slot| known.contains(slot)));
        assert!(slots.iter().any(|slot| !visited.contains(slot)));
    }
}
