//! Where reports go: the user's callback, the log, and standard error for a stall that does not end.
//!
//! *Runs on:* its own thread, `stall-sinks`.
//! *Here:* calls the user's code, and may wait for it as long as that takes. Nothing depends on this
//! thread: what must not be lost has been counted and kept before a report comes here.

use super::log::{self, Log};
use crate::clock;
use crate::engine::{ENDLESS_AFTER, Shared, TurnsLost, WatchState};
use crate::report::{PoolWaitReport, StallReport, write_last_words};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;

/// A report on its way.
#[derive(Debug)]
pub(crate) enum Delivery {
    Stall {
        report: Box<StallReport>,
        watch: Arc<WatchState>,
        /// Standard error has been told of it.
        last_words: Arc<AtomicBool>,
    },
    PoolWait {
        report: PoolWaitReport,
        watch: Arc<WatchState>,
    },
    TurnsLost(TurnsLost),
}

/// The thread's main function; ends when the reporter has.
pub(crate) fn run(shared: &Shared, reports: &Receiver<Delivery>) {
    let mut log = Log::default();
    for told in reports {
        let now = clock::now();
        shared.sinks_busy_since.store(now.0, Ordering::Relaxed);
        match told {
            Delivery::Stall {
                mut report,
                watch,
                last_words,
            } => {
                if report.duration >= ENDLESS_AFTER && !last_words.swap(true, Ordering::Relaxed) {
                    write_last_words(&report);
                }
                if let Some(on_stall) = &watch.settings.on_stall {
                    guarded(shared, || on_stall(&report));
                }
                guarded(shared, || log.stall(&mut report, &watch, now));
            }
            Delivery::PoolWait { report, watch } => {
                if let Some(on_pool_wait) = &watch.settings.on_pool_wait {
                    guarded(shared, || on_pool_wait(&report));
                }
                guarded(shared, || log.pool_wait(&report, &watch, now));
            }
            Delivery::TurnsLost(TurnsLost { runtime, why }) => {
                guarded(shared, || log::turns_lost(&runtime, why));
            }
        }
        shared.sinks_busy_since.store(0, Ordering::Relaxed);
    }
}

/// The user's code may panic; that is counted, and the thread goes on.
pub(crate) fn guarded(shared: &Shared, user_code: impl FnOnce()) {
    if std::panic::catch_unwind(AssertUnwindSafe(user_code)).is_err() {
        shared.failed_callbacks.fetch_add(1, Ordering::Relaxed);
    }
}
