//! Throwing something large away.
//!
//! People let a big structure go out of scope, which looks like nothing at all. Its millions of boxes
//! are freed one by one, where it is dropped: on the worker. The twin moves it to another thread and
//! has it dropped there.

use super::{Setup, Trap, Twin};
use crate::calibrate::{self, TARGET};
use crate::corpus::{Diagnosis, Drive, Expects};
use crate::failure::Failure;
use crate::record::Record;
use axum::Router;
use axum::extract::State;
use axum::routing::get;
use std::collections::HashMap;
use tokio::task;
use tokio_stall::Cause;
use tracing::instrument;

pub(crate) const TRAP: Trap = Trap {
    name: "drop",
    caught: Expects::Stall(Diagnosis {
        span: "drop_sessions",
        file: file!(),
        module: module_path!(),
        causes: &[Cause::Cpu],
        advice: "drop it",
    }),
    drive: Drive::Once,
    twin: Twin::Waits,
    routes,
};

/// In no order, as after a day of work: each box is somewhere else in memory.
type Sessions = HashMap<u64, Box<Session>>;

/// Not smaller: glibc puts off the work for millions of small boxes, and surprises whichever thread
/// allocates something large much later.
type Session = [u64; 20];

#[derive(Clone)]
struct Size {
    record: Record,
    sessions: u64,
}

fn routes(setup: &Setup<'_>) -> Result<Router, Failure> {
    // Each of many boxes takes longer than each of a few, which are still in the processor's caches.
    let sessions = calibrate::units(TARGET / 2, 50_000..=3_000_000, |count| {
        let sessions = sessions(count);
        Ok(calibrate::time(|| drop(sessions)).0)
    })?;
    let size = Size {
        record: setup.record.clone(),
        sessions,
    };
    Ok(Router::new()
        .route("/drop", get(drop_sessions))
        .route("/drop/twin", get(drop_sessions_twin))
        .with_state(size))
}

fn sessions(count: u64) -> Sessions {
    (0..count)
        .map(|number| (number, Box::new([number; 20])))
        .collect()
}

#[instrument(skip_all)]
async fn drop_sessions(State(size): State<Size>) -> Result<(), Failure> {
    let sessions = task::spawn_blocking(move || sessions(size.sessions)).await?;
    size.record.around(|| drop(sessions));
    Ok(())
}

#[instrument(skip_all)]
async fn drop_sessions_twin(State(size): State<Size>) -> Result<(), Failure> {
    let sessions = task::spawn_blocking(move || sessions(size.sessions)).await?;
    task::spawn_blocking(move || drop(sessions)).await?;
    Ok(())
}
