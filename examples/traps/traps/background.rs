//! Work moved "to the background" by spawning it.
//!
//! People `tokio::spawn` what takes long, so that the request is answered at once. But a task runs on
//! the same workers: it blocks somebody else's request instead. The twin yields after every piece of
//! less than a millisecond.

use super::cpu_sum::{items_for, sum_of_squares};
use super::{Setup, Trap, Twin};
use crate::corpus::Expects;
use crate::failure::Failure;
use crate::record::Record;
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use std::hint::black_box;
use std::time::{Duration, Instant};
use tokio::task;
use tracing::{Instrument, info_span, instrument};

pub(crate) const TRAP: Trap = Trap {
    name: "background",
    caught: Expects::Stall("reindex"),
    twin: Twin::InBackground,
    routes,
};

const LENGTH: Duration = Duration::from_millis(200);
const PIECES: u64 = 400;

#[derive(Clone)]
struct Index {
    record: Record,
    items: u64,
}

fn routes(setup: &Setup<'_>) -> Result<Router, Failure> {
    let index = Index {
        record: setup.record.clone(),
        items: items_for(LENGTH)?,
    };
    Ok(Router::new()
        .route("/background", get(background))
        .route("/background/twin", get(background_twin))
        .with_state(index))
}

#[instrument(skip_all)]
async fn background(State(index): State<Index>) -> StatusCode {
    let reindex = async move {
        let sum = index.record.around(|| sum_of_squares(0..index.items));
        black_box(sum);
    };
    tokio::spawn(reindex.instrument(info_span!("reindex")));
    StatusCode::ACCEPTED
}

#[instrument(skip_all)]
async fn background_twin(State(index): State<Index>) -> StatusCode {
    let reindex = async move {
        let from = Instant::now();
        let length = index.items / PIECES;
        for piece in 0..PIECES {
            black_box(sum_of_squares(piece * length..(piece + 1) * length));
            task::yield_now().await;
        }
        index.record.since(from);
    };
    tokio::spawn(reindex.instrument(info_span!("reindex_in_pieces")));
    StatusCode::ACCEPTED
}
