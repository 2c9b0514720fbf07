//! The threads that claim to drive a worker, by worker.
//!
//! *Runs on:* `stall-watchdog`, and the thread that asks for the stacks of all workers.

use super::{Claim, Slot, all};
use crate::clock::Nanos;
use std::collections::HashMap;

/// The slots of threads that claim a worker, by claim. Rebuilt each tick.
pub(crate) type Drivers = HashMap<Claim, (&'static Slot, Nanos)>;

/// Collects the claims of all threads. If two threads claim one worker, the later claim counts.
pub(crate) fn collect_drivers(drivers: &mut Drivers) {
    drivers.clear();
    for slot in all() {
        if let Some((claim, at)) = slot.claim() {
            let newest = drivers.entry(claim).or_insert((slot, at));
            if at > newest.1 {
                *newest = (slot, at);
            }
        }
    }
}
