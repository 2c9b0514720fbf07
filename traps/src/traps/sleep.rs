//! Sleeping with the thread instead of the task.
//!
//! People write `std::thread::sleep` to retry later or to limit a rate. It puts the worker to sleep,
//! and with it every task that the worker would have polled. The twin uses `tokio::time::sleep`,
//! which frees the worker.

use super::{Setup, Trap, Twin};
use crate::corpus::{Diagnosis, Drive, Expects};
use crate::failure::Failure;
use crate::outside::SLOW;
use crate::record::Record;
use axum::Router;
use axum::extract::State;
use axum::routing::get;
use std::thread;
use tokio_stall::{Blocking, Cause};
use tracing::instrument;

pub(crate) const TRAP: Trap = Trap {
    name: "sleep",
    caught: Expects::Stall(Diagnosis {
        span: "sleep",
        file: file!(),
        module: module_path!(),
        causes: &[Cause::Blocked(Blocking::Sleep)],
        advice: "tokio::time::sleep",
    }),
    drive: Drive::Once,
    twin: Twin::Waits,
    routes,
};

fn routes(setup: &Setup<'_>) -> Result<Router, Failure> {
    Ok(Router::new()
        .route("/sleep", get(sleep))
        .route("/sleep/twin", get(sleep_twin))
        .with_state(setup.record.clone()))
}

#[instrument(skip_all)]
async fn sleep(State(record): State<Record>) {
    record.around(|| thread::sleep(SLOW));
}

#[instrument(skip_all)]
async fn sleep_twin() {
    tokio::time::sleep(SLOW).await;
}
