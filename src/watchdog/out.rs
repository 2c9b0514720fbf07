//! The ways out of the watchdog: to the reporter and to the explainer, as far as there is room.
//!
//! *Runs on:* `stall-watchdog`.
//! *Must not:* wait. A message that finds no room is dropped and counted.

use crate::engine::{Live, Message, Shared, Work};
use crate::os;
use crate::report::{NoStack, write_last_words};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{SyncSender, TrySendError};

/// The ways out.
pub(crate) struct Out {
    pub(crate) shared: Arc<Shared>,
    pub(crate) reporter: SyncSender<Message>,
    pub(crate) explainer: SyncSender<Work>,
}

impl Out {
    pub(super) fn report(&self, message: Message) {
        self.try_report(message).ok();
    }

    /// The same. Returns a message that finds no room.
    pub(super) fn try_report(&self, message: Message) -> Result<(), Message> {
        self.reporter.try_send(message).map_err(|error| {
            self.shared.dropped_reports.fetch_add(1, Ordering::Relaxed);
            match error {
                TrySendError::Full(message) | TrySendError::Disconnected(message) => message,
            }
        })
    }

    /// Sends a stack to the explainer.
    pub(super) fn explain(&self, work: Work) -> Result<(), NoStack> {
        self.explainer.try_send(work).map_err(|error| match error {
            TrySendError::Full(_) => NoStack::Busy,
            TrySendError::Disconnected(_) => NoStack::NoExplainer,
        })
    }

    /// Writes a stall to standard error, on a thread made for it: the write may wait.
    pub(super) fn last_words(&self, live: Live) {
        let write = move || write_last_words(&live.report_now());
        if os::spawn("stall-last-word", write).is_err() {
            self.shared.dropped_reports.fetch_add(1, Ordering::Relaxed);
        }
    }
}
