//! A long loop.
//!
//! People compute a sum over what they have in memory, which takes no time in their tests. With real
//! data it does, and there is no `.await` in a loop at which the worker could turn to another task.
//! The twin computes on rayon's threads, and awaits the result through a oneshot channel.

use super::{Setup, Trap, Twin};
use crate::calibrate::{self, TARGET};
use crate::corpus::{Diagnosis, Drive, Expects};
use crate::failure::Failure;
use crate::record::Record;
use axum::Router;
use axum::extract::State;
use axum::routing::get;
use std::hint::black_box;
use std::ops::Range;
use tokio::sync::oneshot;
use tokio_stall::Cause;
use tracing::instrument;

pub(crate) const TRAP: Trap = Trap {
    name: "cpu-sum",
    caught: Expects::Stall(Diagnosis {
        span: "cpu_sum",
        file: file!(),
        module: module_path!(),
        causes: &[Cause::Cpu],
        advice: "Move the computation",
    }),
    drive: Drive::Once,
    twin: Twin::Waits,
    routes,
};

#[derive(Clone)]
struct Sum {
    record: Record,
    items: u64,
}

fn routes(setup: &Setup<'_>) -> Result<Router, Failure> {
    let items = calibrate::units(TARGET, 10_000_000..=1_000_000_000, |items| {
        let (took, sum) = calibrate::time(|| sum_of_squares(0..items));
        black_box(sum);
        Ok(took)
    })?;
    let sum = Sum {
        record: setup.record.clone(),
        items,
    };
    Ok(Router::new()
        .route("/cpu-sum", get(cpu_sum))
        .route("/cpu-sum/twin", get(cpu_sum_twin))
        .with_state(sum))
}

/// Hidden from the optimiser, which knows a formula for this.
fn sum_of_squares(items: Range<u64>) -> u64 {
    items.fold(0, |sum: u64, item| {
        let item = black_box(item);
        sum.wrapping_add(item.wrapping_mul(item))
    })
}

#[instrument(skip_all)]
async fn cpu_sum(State(sum): State<Sum>) -> String {
    let answer = sum.record.around(|| sum_of_squares(0..sum.items));
    answer.to_string()
}

#[instrument(skip_all)]
async fn cpu_sum_twin(State(sum): State<Sum>) -> Result<String, Failure> {
    let (sender, receiver) = oneshot::channel();
    rayon::spawn(move || {
        // If the client has gone away, nobody wants the answer.
        sender.send(sum_of_squares(0..sum.items)).ok();
    });
    Ok(receiver.await?.to_string())
}
