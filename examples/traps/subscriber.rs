//! The subscriber of the service: the detector's layer, what a person reads, and two access logs for
//! the trap of that name.

use crate::failure::Failure;
use crate::traps::logging::{self, AccessLogs};
use std::io;
use std::sync::Mutex;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt;
use tracing_subscriber::prelude::*;

/// Installs it for the whole process. With `quiet` nothing goes to standard error.
pub(crate) fn install(quiet: bool) -> Result<AccessLogs, Failure> {
    let for_people = (!quiet).then(|| {
        fmt::layer()
            .with_writer(io::stderr)
            .with_filter(LevelFilter::WARN)
    });
    let (blocking, blocking_log) = logging::stuck_log()?;
    let (behind_a_queue, queued_log) = logging::stuck_log()?;
    let (queue, flush_at_exit) = tracing_appender::non_blocking(behind_a_queue);

    tracing_subscriber::registry()
        .with(tokio_stall::layer())
        .with(for_people)
        .with(
            fmt::layer()
                .with_writer(Mutex::new(blocking))
                .with_filter(only(logging::BLOCKING)),
        )
        .with(
            fmt::layer()
                .with_writer(queue)
                .with_filter(only(logging::QUEUED)),
        )
        .init();
    Ok(AccessLogs {
        blocking: blocking_log,
        queued: queued_log,
        _flush_at_exit: flush_at_exit,
    })
}

fn only(target: &str) -> Targets {
    Targets::new().with_target(target, LevelFilter::INFO)
}
