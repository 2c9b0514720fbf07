//! One stall of one worker, from its first suspicion to its end.
//!
//! *Runs on:* `stall-watchdog`.
//! *Must not:* wait.

use crate::detect::Stall;
use crate::engine::{Shared, StallId};
use crate::explain::SleptIn;
use crate::os::Call;
use crate::report::NoStack;
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
    /// The call that it has slept in longest, as it was looked up while the thread slept in it.
    slept_in: Option<SleptIn>,
    driver_frozen: Duration,
    /// Stacks that the explainer has been sent.
    pub(super) stacks: u32,
    /// The reason that was last reported for the lack of a stack.
    no_stack: Option<NoStack>,
}

impl Episode {
    /// Notes that it is announced. Returns whether this is the first time.
    pub(super) fn announce(&mut self) -> bool {
        !std::mem::replace(&mut self.is_announced, true)
    }

    /// The call that the stall has slept in longest. The target of its descriptor is looked up
    /// once, if the thread sleeps in that call `now`: later, the number may be another file's.
    pub(super) fn slept_in(&mut self, stall: &Stall, now: Option<Call>) -> Option<SleptIn> {
        let call = stall.call?;
        let known = self.slept_in.filter(|known| known.call == call);
        self.slept_in = known.or_else(|| (now == Some(call)).then(|| SleptIn::now(call)));
        Some(self.slept_in.unwrap_or(SleptIn::long_ago(call)))
    }

    /// How long the driver has been frozen during the stall. A worker may be back in the driver
    /// when the stall ends, so the longest figure counts.
    pub(super) fn driver_frozen(&mut self, now: Duration, stall: &Stall) -> Duration {
        self.driver_frozen = self.driver_frozen.max(now).min(stall.duration);
        self.driver_frozen
    }

    /// Notes why there is no stack. Returns whether the reason is a new one.
    pub(super) fn has_no_stack(&mut self, why: NoStack) -> bool {
        self.no_stack.replace(why) != Some(why)
    }
}

/// Suspicions that are remembered. One may be proven after its end, by its stack. So many stacks
/// can wait until the first debug information has been read.
const SUSPICIONS: usize = 8;

/// The stalls of one worker that are not over.
///
/// There may be two: one that goes on or is suspected, and one whose end is not recorded yet.
#[derive(Debug, Default)]
pub(super) struct Episodes(Vec<Episode>);

impl Episodes {
    /// The stall with the detector's number. A new one gets an id, and suspicions that came to
    /// nothing are forgotten.
    pub(super) fn of(&mut self, serial: u64, shared: &Shared) -> &mut Episode {
        let known = self.0.iter().position(|known| known.serial == serial);
        let index = known.unwrap_or_else(|| {
            self.make_room();
            self.0.push(Episode {
                serial,
                id: StallId(shared.next_id()),
                is_announced: false,
                last_words: Arc::default(),
                slept_in: None,
                driver_frozen: Duration::ZERO,
                stacks: 0,
                no_stack: None,
            });
            self.0.len() - 1
        });
        &mut self.0[index]
    }

    /// Forgets the oldest suspicion that came to nothing, if there are many.
    fn make_room(&mut self) {
        let is_suspected = |known: &Episode| !known.is_announced;
        if self.0.iter().filter(|known| is_suspected(known)).count() >= SUSPICIONS {
            let oldest = self.0.iter().position(is_suspected);
            oldest.map(|oldest| self.0.remove(oldest));
        }
    }

    /// The detector's number of a stall, while the stall is not over.
    pub(super) fn serial_of(&self, id: StallId) -> Option<u64> {
        let known = self.0.iter().find(|known| known.id == id);
        known.map(|known| known.serial)
    }

    /// The stall or the suspicion with the detector's number.
    pub(super) fn id_of(&self, serial: u64) -> Option<StallId> {
        let known = self.0.iter().find(|known| known.serial == serial);
        known.map(|known| known.id)
    }

    pub(super) fn is_any_announced(&self) -> bool {
        self.0.iter().any(|known| known.is_announced)
    }

    pub(super) fn end(&mut self, serial: u64) {
        self.0.retain(|known| known.serial != serial);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_given_once() {
        let (mut episodes, shared) = (Episodes::default(), Shared::default());
        let id = episodes.of(1, &shared).id;
        assert!(episodes.of(1, &shared).announce());
        assert!(!episodes.of(1, &shared).announce());
        assert_eq!(episodes.of(1, &shared).id, id);
        assert_eq!(episodes.serial_of(id), Some(1));
        assert_ne!(episodes.of(2, &shared).id, id);
    }

    #[test]
    fn a_suspicion_that_came_to_nothing_is_forgotten() {
        let (mut episodes, shared) = (Episodes::default(), Shared::default());
        let id = episodes.of(1, &shared).id;
        for serial in 2..=SUSPICIONS as u64 {
            episodes.of(serial, &shared);
        }
        assert_eq!(
            episodes.serial_of(id),
            Some(1),
            "its stack may come after its end"
        );
        episodes.of(100, &shared);
        assert_eq!(episodes.serial_of(id), None);
        assert!(!episodes.is_any_announced());
    }

    #[test]
    fn an_announced_stall_is_kept_until_its_end() {
        let (mut episodes, shared) = (Episodes::default(), Shared::default());
        let id = episodes.of(1, &shared).id;
        episodes.of(1, &shared).announce();
        episodes.of(2, &shared);
        episodes.of(3, &shared);
        assert_eq!(episodes.serial_of(id), Some(1));
        assert!(episodes.is_any_announced());
        episodes.end(1);
        assert_eq!(episodes.serial_of(id), None);
        assert!(!episodes.is_any_announced());
    }

    #[test]
    fn a_reason_for_no_stack_is_new_once() {
        let (mut episodes, shared) = (Episodes::default(), Shared::default());
        let episode = episodes.of(1, &shared);
        assert!(episode.has_no_stack(NoStack::Busy));
        assert!(!episode.has_no_stack(NoStack::Busy));
        assert!(episode.has_no_stack(NoStack::MovedOn));
    }
}
