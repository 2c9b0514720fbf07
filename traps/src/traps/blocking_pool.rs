//! More blocking jobs than there are threads for them.
//!
//! People do the right thing with `spawn_blocking`, but do it with everything, and for long. Once all
//! threads of the pool are taken, the next job waits, and with it all file access and every name
//! look-up. No worker is held; it is the wait for the pool that is reported. The twin leaves threads
//! free.

use super::{Setup, Trap, Twin};
use crate::corpus::{Drive, Expects};
use crate::failure::Failure;
use crate::record::Record;
use crate::server::BLOCKING_THREADS;
use axum::Router;
use axum::extract::State;
use axum::routing::get;
use std::thread;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tracing::instrument;

pub(crate) const TRAP: Trap = Trap {
    name: "blocking-pool",
    caught: Expects::PoolWait,
    drive: Drive::Once,
    twin: Twin::Waits,
    routes,
};

/// So long that the detector's next probe, due every quarter of a second, waits visibly, also where
/// the first stack of a debug build takes a second to explain.
const JOB: Duration = Duration::from_millis(2_000);

fn routes(setup: &Setup<'_>) -> Result<Router, Failure> {
    Ok(Router::new()
        .route("/blocking-pool", get(blocking_pool))
        .route("/blocking-pool/twin", get(blocking_pool_twin))
        .with_state(setup.record.clone()))
}

#[instrument(skip_all)]
async fn blocking_pool(State(record): State<Record>) -> Result<(), Failure> {
    let from = Instant::now();
    let mut jobs = start(BLOCKING_THREADS);
    // With the first of them done, the pool has a thread again.
    if let Some(first) = jobs.join_next().await {
        first?;
    }
    record.since(from);
    rest(jobs).await
}

#[instrument(skip_all)]
async fn blocking_pool_twin() -> Result<(), Failure> {
    rest(start(BLOCKING_THREADS / 2)).await
}

fn start(count: usize) -> JoinSet<()> {
    let mut jobs = JoinSet::new();
    for _ in 0..count {
        jobs.spawn_blocking(|| thread::sleep(JOB));
    }
    jobs
}

async fn rest(mut jobs: JoinSet<()>) -> Result<(), Failure> {
    while let Some(job) = jobs.join_next().await {
        job?;
    }
    Ok(())
}
