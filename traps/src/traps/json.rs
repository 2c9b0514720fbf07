//! Serialising a large response in one go.
//!
//! People return all rows as JSON. Turning them into tens of megabytes of text is one call, and one
//! long poll. The twin serialises a few hundred rows at a time, and yields in between. Both send
//! their text in small pieces, so that it is the serialising that makes the difference.

use super::{Setup, Trap, Twin};
use crate::calibrate::{self, TARGET};
use crate::corpus::{Diagnosis, Drive, Expects};
use crate::failure::Failure;
use crate::record::Record;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::routing::get;
use futures::stream;
use serde::Serialize;
use std::sync::Arc;
use tokio::task;
use tokio_stall::Cause;
use tracing::{Instrument, Span, instrument};

pub(crate) const TRAP: Trap = Trap {
    name: "json",
    caught: Expects::Stall(Diagnosis {
        span: "json",
        file: file!(),
        module: module_path!(),
        causes: &[Cause::Cpu],
        advice: "JSON",
    }),
    drive: Drive::Once,
    twin: Twin::Waits,
    routes,
};

/// What is sent at a time.
const PIECE_BYTES: usize = 1 << 16;

/// What the twin serialises at a time: much less than a millisecond's worth.
const PIECE_ROWS: usize = 500;

#[derive(Clone)]
struct Orders {
    record: Record,
    rows: Arc<[Order]>,
}

#[derive(Serialize)]
struct Order {
    id: u64,
    customer: String,
    address: &'static str,
    quantities: [u32; 4],
    total: f64,
    paid: bool,
}

impl Order {
    fn new(id: u64) -> Order {
        Order {
            id,
            customer: format!("customer {}", id % 1_000),
            address: "1, \"Event Loop\" Road",
            quantities: [1, 20, 300, 4_000].map(|quantity| quantity + id as u32 % 1_000),
            total: id as f64 * 1.19,
            paid: id % 2 == 0,
        }
    }
}

fn routes(setup: &Setup<'_>) -> Result<Router, Failure> {
    let few: Vec<Order> = (0..1_000).map(Order::new).collect();
    // A long text takes longer than many short ones: its memory is new, page by page.
    let rows = calibrate::units(TARGET / 2, 1_000..=2_000_000, |rows| {
        let many: Vec<&[Order]> = vec![&few; rows as usize / few.len()];
        let (took, text) = calibrate::time(|| serde_json::to_vec(&many));
        text?;
        Ok(took)
    })?;
    let orders = Orders {
        record: setup.record.clone(),
        rows: (0..rows).map(Order::new).collect(),
    };
    Ok(Router::new()
        .route("/json", get(json))
        .route("/json/twin", get(json_twin))
        .with_state(orders))
}

#[instrument(skip_all)]
async fn json(State(orders): State<Orders>) -> Result<Body, Failure> {
    let text = orders.record.around(|| serde_json::to_vec(&*orders.rows))?;
    let text = Bytes::from(text);
    Ok(in_pieces(text.len().div_ceil(PIECE_BYTES), move |number| {
        let from = number * PIECE_BYTES;
        Ok(text.slice(from..text.len().min(from + PIECE_BYTES)))
    }))
}

/// One order per line, as a list of unknown length is usually streamed.
#[instrument(skip_all)]
async fn json_twin(State(orders): State<Orders>) -> Body {
    let rows = orders.rows;
    in_pieces(rows.len().div_ceil(PIECE_ROWS), move |number| {
        let mut text = Vec::new();
        for row in rows.iter().skip(number * PIECE_ROWS).take(PIECE_ROWS) {
            serde_json::to_writer(&mut text, row)?;
            text.push(b'\n');
        }
        Ok(Bytes::from(text))
    })
}

/// A body of so many pieces, each made in a poll of its own.
fn in_pieces<F>(count: usize, piece: F) -> Body
where
    F: Fn(usize) -> Result<Bytes, serde_json::Error> + Clone + Send + 'static,
{
    let span = Span::current();
    Body::from_stream(stream::unfold(0, move |number| {
        let piece = piece.clone();
        async move {
            if number == count {
                return None;
            }
            task::yield_now().await;
            Some((piece(number), number + 1))
        }
        .instrument(span.clone())
    }))
}
