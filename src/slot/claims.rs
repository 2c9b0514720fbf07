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

    #[test]
    fn a_thread_without_a_worker_is_not_visited() {
        let visited = claimers().count();
        let threads: Vec<_> = (0..8)
            .map(|_| std::thread::spawn(|| mine().is_some()))
            .collect();
        for thread in threads {
            assert!(thread.join().unwrap(), "it has a slot");
        }
        assert!(all().next().is_some());
        assert_eq!(claimers().count(), visited);
    }
}
