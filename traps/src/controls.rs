//! Busy, and not blocked: what a detector might mistake for a stall.

use crate::corpus::Drive;
use crate::failure::Failure;
use crate::server::WORKERS;
use axum::Router;
use axum::extract::State;
use axum::routing::get;
use futures::future::BoxFuture;
use std::hint;
use std::thread;
use std::time::{Duration, Instant};
use tokio::task::{self, JoinSet};
use tokio_stall::FutureExt as _;
use tracing::{Instrument, info_span, instrument};

#[derive(Debug)]
pub(crate) struct Control {
    pub(crate) name: &'static str,
    pub(crate) drive: Drive,
}

pub(crate) const ALL: &[Control] = &[
    Control::silent("block-in-place"),
    Control::silent("yield-storm"),
    Control::silent("row-of-polls"),
    Control::silent("row-of-polls-unmarked"),
    Control::silent("many-tasks"),
    Control {
        drive: Drive::Saturate,
        ..Control::silent("saturated")
    },
];

/// Whether anything marks a poll.
#[derive(Clone, Copy, Debug)]
struct Marked(bool);

impl Control {
    const fn silent(name: &'static str) -> Control {
        Control {
            name,
            drive: Drive::Once,
        }
    }
}

pub(crate) fn routes(marked: bool) -> Router {
    Router::new()
        .route("/block-in-place", get(block_in_place))
        .route("/yield-storm", get(yield_storm))
        .route("/row-of-polls", get(row_of_polls))
        .route("/row-of-polls-unmarked", get(row_of_polls_unmarked))
        .route("/many-tasks", get(many_tasks))
        .with_state(Marked(marked))
}

/// Blocks, but says so: tokio gives the worker to another thread for that time.
#[instrument(skip_all)]
async fn block_in_place() {
    task::block_in_place(|| thread::sleep(Duration::from_millis(200)));
}

/// Four tasks that do nothing but yield: the workers are never idle, and each poll is short.
#[instrument(skip_all)]
async fn yield_storm() -> Result<(), Failure> {
    let until = Instant::now() + Duration::from_millis(300);
    let mut storm = JoinSet::new();
    for _ in 0..4 {
        let task = async move {
            while Instant::now() < until {
                task::yield_now().await;
            }
        };
        storm.spawn(task.instrument(info_span!("yielding")));
    }
    join(storm).await
}

/// After so many polls, tokio's workers publish their counters; until then a row of short polls
/// looks to them like one long poll.
const ROW: usize = 61;

/// Many polls of a millisecond, one after another on each worker, in spans: the marks tell them
/// apart. In a run without marks nobody looks at the spans.
#[instrument(skip_all)]
async fn row_of_polls(State(Marked(marked)): State<Marked>) -> Result<(), Failure> {
    one_row_per_worker(move |number| {
        let poll = async { busy_for_a_millisecond() };
        // Both kinds of marks, in turns.
        if number % 2 == 0 || !marked {
            Box::pin(poll.instrument(info_span!("one_of_a_row")))
        } else {
            Box::pin(poll.watched("one_of_a_row"))
        }
    })
    .await
}

/// The same, and nothing marks them: the turns of the worker tell them apart.
#[instrument(skip_all)]
async fn row_of_polls_unmarked() -> Result<(), Failure> {
    one_row_per_worker(|_| Box::pin(async { busy_for_a_millisecond() })).await
}

/// As many tasks as give each worker a row, for idle workers take half of what another has queued.
async fn one_row_per_worker(poll: impl Fn(usize) -> BoxFuture<'static, ()>) -> Result<(), Failure> {
    let mut row = JoinSet::new();
    for number in 0..ROW * WORKERS {
        row.spawn(poll(number));
    }
    join(row).await
}

fn busy_for_a_millisecond() {
    let until = Instant::now() + Duration::from_millis(1);
    while Instant::now() < until {
        hint::spin_loop();
    }
}

/// Ten thousand tasks of tiny polls. Spawning them all in one poll would itself be a stall.
#[instrument(skip_all)]
async fn many_tasks() -> Result<(), Failure> {
    let mut tasks = JoinSet::new();
    for _ in 0..100 {
        for _ in 0..100 {
            tasks.spawn(async {
                for _ in 0..3 {
                    task::yield_now().await;
                }
            });
        }
        task::yield_now().await;
    }
    join(tasks).await
}

async fn join(mut tasks: JoinSet<()>) -> Result<(), Failure> {
    while let Some(task) = tasks.join_next().await {
        task?;
    }
    Ok(())
}
