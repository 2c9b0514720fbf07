//! Which thread says that it drives which worker.
//!
//! *Runs on:* the watchdog thread, and the thread that asks for the stacks of all workers.

use super::{Claim, Slot, all};
use crate::clock::Nanos;
use std::collections::HashMap;

/// The slots of threads that say they drive a worker, by what they say. Rebuilt each tick.
pub(crate) type Drivers = HashMap<Claim, (&'static Slot, Nanos)>;

/// Collects the claims of all threads; of two threads that claim a worker, the later one is right.
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
