//! The ways out of the watchdog: to the reporter and to the explainer, as far as there is room.
//!
//! *Runs on:* the watchdog thread.
//! *Must not:* wait. A message that finds no room is dropped and counted.

use crate::engine::{Message, Shared, Work};
use crate::report::NoStack;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::SyncSender;

/// The ways out.
pub(crate) struct Out {
    pub(crate) shared: Arc<Shared>,
    pub(crate) reporter: SyncSender<Message>,
    pub(crate) explainer: SyncSender<Work>,
}

impl Out {
    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }

    pub(super) fn report(&self, message: Message) {
        if self.reporter.try_send(message).is_err() {
            self.shared.dropped_reports.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Has a stack explained.
    pub(super) fn explain(&self, work: Work) -> Result<(), NoStack> {
        self.explainer.try_send(work).map_err(|_| NoStack::Busy)
    }
}
