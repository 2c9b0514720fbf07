//! The sinks of reports: the user's callback, the log, and standard error for a stall that does not
//! end.
//!
//! *Runs on:* its own thread, `stall-sinks`. It calls the user's code, in the context of a watched
//! runtime, and waits for it.
//! *Must not:* be waited for. A report has been counted and kept before it comes here.

use super::log::Log;
use super::traces::Traces;
use crate::clock::{self, Nanos};
use crate::engine::{ENDLESS_AFTER, Hearing, Shared, TurnsLost, WatchedRuntime};
use crate::os;
use crate::probe::SpanRef;
#[cfg(feature = "tower")]
use crate::report::RequestReport;
use crate::report::{PoolWaitReport, StallReport, write_last_words};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;
use tokio::runtime::Handle;

/// The time between two questions whether anybody hears the log, while nobody does.
const ASK_EVERY: Duration = Duration::from_secs(2);

/// A report on its way to the sinks.
#[derive(Debug)]
pub(crate) enum Delivery {
    Stall {
        report: Box<StallReport>,
        runtime: Arc<WatchedRuntime>,
        /// The innermost span of the poll.
        span: Option<SpanRef>,
        /// The stall has been written to standard error.
        last_words: Arc<AtomicBool>,
    },
    PoolWait {
        report: PoolWaitReport,
        runtime: Arc<WatchedRuntime>,
    },
    TurnsLost(TurnsLost),
    /// The log of this watched runtime names those that nobody watches.
    OtherRuntimes(Arc<WatchedRuntime>),
    #[cfg(feature = "tower")]
    Request {
        report: RequestReport,
        runtime: Arc<WatchedRuntime>,
    },
}

/// The thread's main function. Ends when the reporter has ended.
pub(crate) fn run(shared: &Shared, reports: &Receiver<Delivery>) {
    let mut log = Log::default();
    let mut traces = Traces::default();
    let mut early_in = None;
    loop {
        match next(reports) {
            Ok(delivery) => busy(shared, |now| {
                if let Delivery::Stall { runtime, .. } = &delivery {
                    early_in = is_early(runtime, now).then(|| runtime.handle.clone());
                }
                deliver(delivery, &mut log, &mut traces, shared, now);
            }),
            Err(RecvTimeoutError::Timeout) => busy(shared, |_| ask(shared)),
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    busy(shared, |_| {
        // By now, no runtime is watched any more.
        let _context = early_in.as_ref().map(Handle::enter);
        guarded(shared, || log.tell_of_early_stalls());
    });
}

/// Whether the log has yet to tell of the stalls that this runtime has now.
fn is_early(runtime: &WatchedRuntime, now: Nanos) -> bool {
    let watch = &runtime.watch;
    watch.settings.log && watch.settings.is_in_grace(watch.started_at, now)
}

/// Asks whether anybody hears the log. A filter is the user's code, as a logger is.
fn ask(shared: &Shared) {
    let runtime = shared.watched.lock().first().cloned();
    let _context = runtime.as_ref().map(|runtime| runtime.handle.enter());
    guarded(shared, || {
        Hearing::ask();
    });
}

/// The next report. While nobody hears the log, a subscriber may come any time.
fn next(reports: &Receiver<Delivery>) -> Result<Delivery, RecvTimeoutError> {
    match Hearing::last() {
        Hearing::Heard => Ok(reports.recv()?),
        _ => reports.recv_timeout(ASK_EVERY),
    }
}

/// Runs code of the user, in sight of the other threads.
fn busy(shared: &Shared, user_code: impl FnOnce(Nanos)) {
    let now = clock::now();
    shared.sinks_busy_since.store(now.0, Ordering::Relaxed);
    // The user's code may start threads, which inherit the mask.
    os::with_signals_of_the_program(|| user_code(now));
    shared.sinks_busy_since.store(0, Ordering::Relaxed);
}

fn deliver(delivery: Delivery, log: &mut Log, traces: &mut Traces, shared: &Shared, now: Nanos) {
    match delivery {
        Delivery::Stall {
            mut report,
            runtime,
            span,
            last_words,
        } => {
            let watch = &runtime.watch;
            let _context = runtime.handle.enter();
            if report.duration >= ENDLESS_AFTER && !last_words.swap(true, Ordering::Relaxed) {
                write_last_words(&report);
            }
            traces.add(&mut report, span, watch, shared);
            if let Some(on_stall) = &watch.settings.on_stall {
                guarded(shared, || on_stall(&report));
            }
            guarded(shared, || log.stall(&mut report, span, watch, now));
        }
        Delivery::PoolWait { report, runtime } => {
            let watch = &runtime.watch;
            let _context = runtime.handle.enter();
            if let Some(on_pool_wait) = &watch.settings.on_pool_wait {
                guarded(shared, || on_pool_wait(&report));
            }
            guarded(shared, || log.pool_wait(&report, watch, now));
        }
        Delivery::TurnsLost(TurnsLost { runtime, why }) => {
            let _context = runtime.handle.enter();
            guarded(shared, || log.turns_lost(&runtime, why));
        }
        Delivery::OtherRuntimes(runtime) => {
            let _context = runtime.handle.enter();
            guarded(shared, || log.other_runtimes(&runtime));
        }
        #[cfg(feature = "tower")]
        Delivery::Request { report, runtime } => {
            let _context = runtime.handle.enter();
            if let Some((_, on_slow_request)) = &runtime.watch.settings.on_slow_request {
                guarded(shared, || on_slow_request(&report));
            }
        }
    }
}

/// Calls the user's code. A panic of it is counted, and the thread goes on.
pub(crate) fn guarded(shared: &Shared, user_code: impl FnOnce()) {
    if std::panic::catch_unwind(AssertUnwindSafe(user_code)).is_err() {
        shared.failed_callbacks.fetch_add(1, Ordering::Relaxed);
    }
}
