//! A log that nobody reads.
//!
//! People log to standard output, which is a pipe to a collector. When the collector is stuck the
//! pipe fills up, and the next event waits in `write`, with the worker that wrote it. The twin's
//! events go through `tracing_appender::non_blocking`: a queue, and a thread that writes.

use super::{Setup, Trap, Twin};
use crate::corpus::{Diagnosis, Drive, Expects};
use crate::failure::Failure;
use crate::outside::SLOW;
use crate::record::Record;
use axum::Router;
use axum::extract::State;
use axum::routing::get;
use rustix::pipe::{fcntl_getpipe_size, pipe};
use std::fs::File;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use tokio_stall::{Blocking, Cause};
use tracing::{info, instrument};
use tracing_appender::non_blocking::WorkerGuard;

pub(crate) const TRAP: Trap = Trap {
    name: "logging",
    caught: Expects::Stall(Diagnosis {
        span: "logging",
        file: file!(),
        module: module_path!(),
        causes: &[Cause::Blocked(Blocking::File)],
        advice: "non-blocking writer",
    }),
    drive: Drive::Once,
    twin: Twin::Waits,
    routes,
};

/// The target of events that are written where they happen.
pub(crate) const BLOCKING: &str = "access_log::blocking";

/// The target of events that are queued for another thread to write.
pub(crate) const QUEUED: &str = "access_log::queued";

/// The far ends of two logs.
#[derive(Debug)]
pub(crate) struct AccessLogs {
    pub(crate) blocking: Collector,
    pub(crate) queued: Collector,
    pub(crate) _flush_at_exit: WorkerGuard,
}

/// What should read a log, and is stuck.
#[derive(Clone, Debug)]
pub(crate) struct Collector(Arc<Mutex<Option<File>>>);

/// Opens a pipe, fills it to the brim, and returns the end to write to and a collector that does not
/// read.
pub(crate) fn stuck_log() -> io::Result<(File, Collector)> {
    let (reader, writer) = pipe()?;
    let capacity = fcntl_getpipe_size(&writer)?;
    let mut writer = File::from(writer);
    writer.write_all(&vec![b'.'; capacity])?;
    let collector = Collector(Arc::new(Mutex::new(Some(File::from(reader)))));
    Ok((writer, collector))
}

impl Collector {
    /// Has the collector read on after a while, and from then on.
    fn recover_slowly(&self) {
        let reader = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut reader) = reader {
            thread::spawn(move || {
                thread::sleep(SLOW);
                io::copy(&mut reader, &mut io::sink())
            });
        }
    }
}

#[derive(Clone)]
struct Logs {
    record: Record,
    blocking: Collector,
    queued: Collector,
}

fn routes(setup: &Setup<'_>) -> Result<Router, Failure> {
    let logs = Logs {
        record: setup.record.clone(),
        blocking: setup.logs.blocking.clone(),
        queued: setup.logs.queued.clone(),
    };
    Ok(Router::new()
        .route("/logging", get(logging))
        .route("/logging/twin", get(logging_twin))
        .with_state(logs))
}

#[instrument(skip_all)]
async fn logging(State(logs): State<Logs>) {
    logs.blocking.recover_slowly();
    logs.record
        .around(|| info!(target: BLOCKING, "GET /logging"));
}

#[instrument(skip_all)]
async fn logging_twin(State(logs): State<Logs>) {
    logs.queued.recover_slowly();
    info!(target: QUEUED, "GET /logging/twin");
}
