//! Work moved "to the background" by spawning it.
//!
//! People `tokio::spawn` what takes long, so that the request is answered at once. But a task runs on
//! the same workers: it blocks somebody else's request instead. The twin yields after every piece of
//! less than a millisecond.

use super::{Setup, Trap, Twin};
use crate::calibrate;
use crate::corpus::{Diagnosis, Drive, Expects};
use crate::failure::Failure;
use crate::record::Record;
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use std::hint::black_box;
use std::ops::Range;
use std::time::{Duration, Instant};
use tokio::task;
use tokio_stall::Cause;
use tracing::{Instrument, info_span, instrument};

pub(crate) const TRAP: Trap = Trap {
    name: "background",
    caught: Expects::Stall(Diagnosis {
        span: "reindex",
        file: file!(),
        module: module_path!(),
        causes: &[Cause::Cpu],
        advice: "Move the computation",
    }),
    drive: Drive::Once,
    twin: Twin::InBackground,
    routes,
};

const LENGTH: Duration = Duration::from_millis(200);
const PIECES: u64 = 400;

#[derive(Clone)]
struct Index {
    record: Record,
    /// How many keys there are, from zero.
    keys: u64,
}

fn routes(setup: &Setup<'_>) -> Result<Router, Failure> {
    let keys = calibrate::units(LENGTH, 100_000..=1_000_000_000, |keys| {
        let (took, fingerprint) = calibrate::time(|| fingerprint(0..keys));
        black_box(fingerprint);
        Ok(took)
    })?;
    let index = Index {
        record: setup.record.clone(),
        keys,
    };
    Ok(Router::new()
        .route("/background", get(background))
        .route("/background/twin", get(background_twin))
        .with_state(index))
}

/// FNV-1a over all these keys. Each step needs the one before, so that no optimiser can shorten it.
fn fingerprint(keys: Range<u64>) -> u64 {
    let bytes = keys.flat_map(u64::to_le_bytes);
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[instrument(skip_all)]
async fn background(State(index): State<Index>) -> StatusCode {
    let reindex = async move {
        let fingerprint = index.record.around(|| fingerprint(0..index.keys));
        black_box(fingerprint);
    };
    tokio::spawn(reindex.instrument(info_span!("reindex")));
    StatusCode::ACCEPTED
}

#[instrument(skip_all)]
async fn background_twin(State(index): State<Index>) -> StatusCode {
    let reindex = async move {
        let from = Instant::now();
        let length = index.keys / PIECES;
        for piece in 0..PIECES {
            black_box(fingerprint(piece * length..(piece + 1) * length));
            task::yield_now().await;
        }
        index.record.since(from);
    };
    tokio::spawn(reindex.instrument(info_span!("reindex_in_pieces")));
    StatusCode::ACCEPTED
}
