//! One watch, as its guard and its server read it.
//!
//! *Runs on:* the user's threads, and `stall-serve`.

use super::{Coverage, Shared, WatchState, WatchedRuntime};
use crate::report::{Phase, Profile, StallReport};
use std::sync::Arc;

/// One watch and the shared data, for its guard and its server.
#[derive(Clone, Debug)]
pub(crate) struct View {
    pub(crate) watch: Arc<WatchState>,
    pub(crate) shared: Arc<Shared>,
}

impl View {
    pub(crate) fn stalled_now(&self) -> Vec<StallReport> {
        if self.shared.is_inherited() {
            return Vec::new();
        }
        let live = self.shared.live.lock().clone();
        let recent = self.watch.recent.lock();
        live.iter()
            .filter(|live| Arc::ptr_eq(&live.runtime.watch, &self.watch))
            .filter_map(|live| {
                let now = live.report_now();
                match recent.stall(live.id.0) {
                    // It is over since the list was copied.
                    Some(named) if named.phase == Phase::Ended => None,
                    Some(named) => Some(StallReport {
                        duration: now.duration,
                        certainty: now.certainty,
                        time: now.time,
                        ..named
                    }),
                    None => Some(now),
                }
            })
            .collect()
    }

    pub(crate) fn recent(&self) -> Vec<StallReport> {
        match self.shared.is_inherited() {
            true => Vec::new(),
            false => self.watch.recent.lock().stalls(),
        }
    }

    pub(crate) fn profile(&self) -> Profile {
        match self.shared.is_inherited() {
            true => Profile::default(),
            false => self.watch.profile.lock().take(),
        }
    }

    pub(crate) fn runtimes(&self) -> Vec<Arc<WatchedRuntime>> {
        // In a fork, a thread of the parent may hold the lock for ever.
        let watched = if self.shared.is_inherited() {
            self.shared.watched.try_lock()
        } else {
            Some(self.shared.watched.lock())
        };
        watched
            .as_deref()
            .into_iter()
            .flatten()
            .filter(|runtime| self.watches(runtime))
            .cloned()
            .collect()
    }

    /// The coverage of each runtime.
    pub(crate) fn coverage(&self) -> Vec<Coverage> {
        if let Some(off) = &self.watch.off {
            return off.clone();
        }
        let runtimes = self.runtimes();
        let coverage = runtimes.iter().map(|runtime| Coverage::of(runtime));
        coverage.collect()
    }

    pub(crate) fn watches(&self, runtime: &WatchedRuntime) -> bool {
        Arc::ptr_eq(&runtime.watch, &self.watch)
    }
}
