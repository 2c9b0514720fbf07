//! A lock that somebody else holds for long.
//!
//! People share state in a `std::sync::Mutex`, which is right as long as all hold it for a moment. If
//! one does not, the worker sleeps in `lock`. The twin uses `tokio::sync::Mutex`, for which only the
//! task waits.

use super::{Setup, Trap, Twin};
use crate::corpus::{Diagnosis, Drive, Expects};
use crate::failure::Failure;
use crate::outside;
use crate::record::Record;
use axum::Router;
use axum::extract::State;
use axum::routing::get;
use std::sync::{Arc, Mutex, PoisonError};
use tokio_stall::{Blocking, Cause};
use tracing::instrument;

pub(crate) const TRAP: Trap = Trap {
    name: "lock",
    caught: Expects::Stall(Diagnosis {
        span: "lock",
        file: file!(),
        module: module_path!(),
        causes: &[Cause::Blocked(Blocking::Lock)],
        advice: "critical section",
    }),
    drive: Drive::Once,
    twin: Twin::Waits,
    routes,
};

#[derive(Clone)]
struct Counters {
    record: Record,
    blocking: Arc<Mutex<u64>>,
    not_blocking: Arc<tokio::sync::Mutex<u64>>,
}

fn routes(setup: &Setup<'_>) -> Result<Router, Failure> {
    let counters = Counters {
        record: setup.record.clone(),
        blocking: Arc::default(),
        not_blocking: Arc::default(),
    };
    Ok(Router::new()
        .route("/lock", get(lock))
        .route("/lock/twin", get(lock_twin))
        .with_state(counters))
}

#[instrument(skip_all)]
async fn lock(State(counters): State<Counters>) -> Result<(), Failure> {
    let counter = Arc::clone(&counters.blocking);
    outside::hold(move |taken| {
        let _counter = counter.lock().unwrap_or_else(PoisonError::into_inner);
        taken.keep();
        Ok(())
    })
    .await?;
    *counters.record.around(|| {
        counters
            .blocking
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }) += 1;
    Ok(())
}

#[instrument(skip_all)]
async fn lock_twin(State(counters): State<Counters>) -> Result<(), Failure> {
    let counter = Arc::clone(&counters.not_blocking);
    outside::hold(move |taken| {
        let _counter = counter.blocking_lock();
        taken.keep();
        Ok(())
    })
    .await?;
    *counters.not_blocking.lock().await += 1;
    Ok(())
}
