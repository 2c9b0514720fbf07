//! A poll that never returns.
//!
//! People wait for a message from a channel of `std`, whose sender has forgotten them. A worker is
//! lost for good, and nothing that measures polls when they end will ever tell. There is no right way
//! to do this, hence no twin; here the sender is dropped after three seconds, so that the program
//! ends.

use super::{Setup, Trap, Twin};
use crate::corpus::{Diagnosis, Drive, Expects};
use crate::failure::Failure;
use crate::record::Record;
use axum::Router;
use axum::extract::State;
use axum::routing::get;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;
use tokio_stall::{Blocking, Cause};
use tracing::instrument;

pub(crate) const TRAP: Trap = Trap {
    name: "endless",
    caught: Expects::Stall(Diagnosis {
        span: "endless",
        file: file!(),
        module: module_path!(),
        causes: &[Cause::Blocked(Blocking::Lock)],
        advice: "tokio::sync::mpsc",
    }),
    drive: Drive::Once,
    twin: Twin::None,
    routes,
};

const FOREVER: Duration = Duration::from_secs(3);

fn routes(setup: &Setup<'_>) -> Result<Router, Failure> {
    Ok(Router::new()
        .route("/endless", get(endless))
        .with_state(setup.record.clone()))
}

#[instrument(skip_all)]
async fn endless(State(record): State<Record>) {
    let (sender, receiver) = mpsc::channel::<()>();
    thread::spawn(move || {
        thread::sleep(FOREVER);
        drop(sender);
    });
    // That the sender is gone is how this ends.
    record.around(|| receiver.recv()).ok();
}
