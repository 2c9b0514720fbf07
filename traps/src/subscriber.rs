//! The subscriber of the service: the detector's layer if polls are to be marked, what a person
//! reads, and two access logs for the trap of that name.

use crate::failure::Failure;
use crate::traps::logging::{self, AccessLogs};
use std::io;
use std::sync::Mutex;
use tracing::Subscriber;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt;
use tracing_subscriber::prelude::*;
use tracing_subscriber::registry::LookupSpan;

/// Installs it for the whole process. With `quiet` nothing goes to standard error.
pub(crate) fn install(quiet: bool, marked: bool) -> Result<AccessLogs, Failure> {
    // An `Option` of a layer does not tell the layer that it is installed: hence two chains.
    if marked {
        let marking = tracing_subscriber::registry().with(tokio_stall::layer());
        install_on(marking, quiet)
    } else {
        install_on(tracing_subscriber::registry(), quiet)
    }
}

fn install_on<S>(subscriber: S, quiet: bool) -> Result<AccessLogs, Failure>
where
    S: Subscriber + for<'span> LookupSpan<'span> + Send + Sync,
{
    let for_people = (!quiet).then(|| {
        fmt::layer()
            .with_writer(io::stderr)
            .with_filter(LevelFilter::WARN)
    });
    let (blocking, blocking_log) = logging::stuck_log()?;
    let (behind_a_queue, queued_log) = logging::stuck_log()?;
    let (queue, flush_at_exit) = tracing_appender::non_blocking(behind_a_queue);

    subscriber
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
