//! Blocking on a future inside a future.
//!
//! People call async code from a function that is not async by `futures::executor::block_on`, and the
//! function from a handler. The worker sleeps until the inner future is done. If that needed this very
//! worker, say for tokio's timers, it would be forever; so here a thread fulfils it. The twin awaits.

use super::{Setup, Trap, Twin};
use crate::corpus::{Diagnosis, Drive, Expects};
use crate::failure::Failure;
use crate::outside::SLOW;
use crate::record::Record;
use axum::Router;
use axum::extract::State;
use axum::routing::get;
use futures::executor;
use std::thread;
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::RecvError;
use tokio_stall::{Blocking, Cause};
use tracing::instrument;

pub(crate) const TRAP: Trap = Trap {
    name: "nested-runtime",
    caught: Expects::Stall(Diagnosis {
        span: "nested_runtime",
        file: file!(),
        module: module_path!(),
        // `block_on` parks the thread, until the one that fulfils the future wakes it.
        causes: &[Cause::Blocked(Blocking::Lock)],
        advice: "block_on",
    }),
    drive: Drive::Once,
    twin: Twin::Waits,
    routes,
};

fn routes(setup: &Setup<'_>) -> Result<Router, Failure> {
    Ok(Router::new()
        .route("/nested-runtime", get(nested_runtime))
        .route("/nested-runtime/twin", get(nested_runtime_twin))
        .with_state(setup.record.clone()))
}

/// What somebody has written as async, for it takes a while.
async fn slow_answer() -> Result<&'static str, RecvError> {
    let (sender, receiver) = oneshot::channel();
    thread::spawn(move || {
        thread::sleep(SLOW);
        sender.send("at last")
    });
    receiver.await
}

#[instrument(skip_all)]
async fn nested_runtime(State(record): State<Record>) -> Result<&'static str, Failure> {
    Ok(record.around(|| executor::block_on(slow_answer()))?)
}

#[instrument(skip_all)]
async fn nested_runtime_twin() -> Result<&'static str, Failure> {
    Ok(slow_answer().await?)
}
