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
        #[cfg(all(test, not(loom)))]
        tests::is_visited();
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
    use std::cell::Cell;
    use std::sync::Barrier;

    /// More threads than have claimed a worker at one time, in any test of this process: some of
    /// them have a slot that nobody has claimed a worker with.
    const MANY: usize = 64;

    thread_local! {
        /// The slots that this thread has visited to collect claims.
        static VISITED: Cell<usize> = const { Cell::new(0) };
    }

    pub(super) fn is_visited() {
        VISITED.set(VISITED.get() + 1);
    }

    /// The number of slots that are visited to collect the claims of all threads.
    fn visits() -> usize {
        let before = VISITED.get();
        collect_claims(&mut Claims::new());
        VISITED.get() - before
    }

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
        let (known, visits, visited, slots) = std::thread::scope(|scope| {
            let threads = [(); MANY].map(|()| scope.spawn(lives));
            ready.wait();
            let known: Vec<_> = all().map(address).collect();
            let visits = visits();
            let visited: Vec<_> = claimers().map(address).collect();
            done.wait();
            let slots = threads.map(|thread| thread.join().unwrap());
            (known, visits, visited, slots)
        });
        assert!(slots.iter().all(|slot| known.contains(slot)));
        assert!(slots.iter().any(|slot| !visited.contains(slot)));
        // A slot may have joined since the visits.
        let (known, visited) = (known.len(), visited.len());
        assert!(visits <= visited, "{visits} of {visited}, of {known}");
    }

    #[test]
    fn each_thread_with_a_worker_is_visited_once() {
        let slot = mine().expect("a slot");
        let claim = Claim {
            runtime: 1 << 40,
            worker: 0,
        };
        slot.set_claim(Some(claim), Nanos(1));
        let mut claims = Claims::new();
        collect_claims(&mut claims);
        let driver = claims
            .get(&claim)
            .map(|(driver, _)| std::ptr::from_ref(*driver));
        assert_eq!(driver, Some(std::ptr::from_ref(slot)));
        // No slot leaves the list, and other tests may add some.
        let least = claimers().count();
        let visits = visits();
        assert!((least..=claimers().count()).contains(&visits), "{visits}");
        slot.set_claim(None, Nanos(2));
    }
}
