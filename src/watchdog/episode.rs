//! One stall of one worker, from its first suspicion to its end.
//!
//! *Runs on:* the watchdog thread.
//! *Must not:* wait for anybody.

use crate::detect::Stall;
use crate::engine::{Shared, StallId};
use crate::explain::SleptIn;
use crate::report::{NoStack, Phase};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// One stall, or one poll that may become one.
#[derive(Debug)]
pub(super) struct Episode {
    /// The detector's number for it.
    serial: u64,
    pub(super) id: StallId,
    is_announced: bool,
    pub(super) last_words: Arc<AtomicBool>,
    /// The call that the thread was last seen asleep in.
    slept_in: Option<SleptIn>,
    driver_frozen: Duration,
    /// Stacks that the explainer has been sent.
    pub(super) stacks: u32,
    said_missing: Option<NoStack>,
}

impl Episode {
    /// Notes that it is announced; returns whether it had not been.
    pub(super) fn announce(&mut self) -> bool {
        !std::mem::replace(&mut self.is_announced, true)
    }

    /// The call that the thread was last seen asleep in, and what its descriptor leads to while it sleeps.
    pub(super) fn slept_in(&mut self, stall: &Stall, phase: Option<Phase>) -> Option<SleptIn> {
        let call = stall.call?;
        let known = self.slept_in.filter(|known| known.call == call);
        self.slept_in = known.or_else(|| {
            Some(match phase {
                Some(Phase::Ended) => SleptIn::long_ago(call),
                _ => SleptIn::now(call),
            })
        });
        self.slept_in
    }

    /// For how long the driver has been empty during it. At its end somebody is there again, so the longest
    /// figure counts.
    pub(super) fn driver_frozen(&mut self, now: Duration, stall: &Stall) -> Duration {
        self.driver_frozen = self.driver_frozen.max(now).min(stall.duration);
        self.driver_frozen
    }

    /// Whether it is news that there is no stack for this reason.
    pub(super) fn misses_stack(&mut self, why: NoStack) -> bool {
        self.said_missing.replace(why) != Some(why)
    }
}

/// The stalls of one worker that are not over: one that goes on or is suspected, and perhaps one whose end is
/// still to be recorded.
#[derive(Debug, Default)]
pub(super) struct Episodes(Vec<Episode>);

impl Episodes {
    /// The one with the detector's number, which is given an id if it is new. A suspicion that came to nothing
    /// is forgotten.
    pub(super) fn of(&mut self, serial: u64, shared: &Shared) -> &mut Episode {
        let known = self.0.iter().position(|known| known.serial == serial);
        let index = known.unwrap_or_else(|| {
            self.0.retain(|known| known.is_announced);
            self.0.push(Episode {
                serial,
                id: StallId(shared.next_id()),
                is_announced: false,
                last_words: Arc::default(),
                slept_in: None,
                driver_frozen: Duration::ZERO,
                stacks: 0,
                said_missing: None,
            });
            self.0.len() - 1
        });
        &mut self.0[index]
    }

    /// The detector's number of a stall, while it is not over.
    pub(super) fn serial_of(&self, id: StallId) -> Option<u64> {
        let known = self.0.iter().find(|known| known.id == id);
        known.map(|known| known.serial)
    }

    pub(super) fn is_any_announced(&self) -> bool {
        self.0.iter().any(|known| known.is_announced)
    }

    pub(super) fn end(&mut self, serial: u64) {
        self.0.retain(|known| known.serial != serial);
    }
}
