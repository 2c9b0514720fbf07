//! What each tool adds to a poll: tasks that yield on one worker, as in the second table of `poll_overhead`. What a tool
//! does on threads of its own is not in it.
//!
//! ```text
//! benches/run peers-polls
//! ```

#[path = "../../../rounds/mod.rs"]
mod rounds;
#[path = "../../../yielding/mod.rs"]
mod yielding;

use peers::recording::Recording;
use peers::stalls::{self, Blocking};
use peers::{blocked, console};
use rounds::Row;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;
use tokio_metrics::TaskMonitor;
use tokio_stall::{FutureExt as _, RuntimeBuilderExt as _, StallReport};
use tracing::Instrument as _;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::Identity;
use tracing_subscriber::prelude::*;
use yielding::{Clocked, POLLS, TASKS, Yielding, nanos_a_poll};

const ROUNDS: usize = 11;

const BARE: &str = "task";
const FLOOR: &str = "task in a span, registry and an empty layer";
const OUR_LAYER: &str = "task in a span, registry and **our layer**";

const ROWS: &[Row] = &[
    row(BARE, || nanos_a_poll(&runtime(), tokio::spawn)),
    row("task, **watched**", || {
        watched_by_us(
            runtime(),
            |task| tokio::spawn(task.watched("poll")),
            |task| tokio::spawn(task.watched("poll")),
            |stall| stall.span.as_deref() == Some("poll"),
        )
    }),
    row("task on a runtime with **our hooks**", || {
        let runtime = worker().watch_polls().build().expect("a runtime");
        watched_by_us(runtime, tokio::spawn, tokio::spawn, |stall| {
            stall.task.is_some()
        })
    }),
    row(FLOOR, || {
        // Up to INFO, as our layer asks for: without that, it would enter tokio's own spans as well.
        tracing_subscriber::registry()
            .with(Identity::new())
            .with(LevelFilter::INFO)
            .init();
        nanos_a_poll(&runtime(), |task| {
            tokio::spawn(task.instrument(tracing::info_span!("poll")))
        })
    }),
    row(OUR_LAYER, || {
        tracing_subscriber::registry()
            .with(tokio_stall::layer())
            .init();
        watched_by_us(
            runtime(),
            |task| tokio::spawn(task.instrument(tracing::info_span!("poll"))),
            |task| tokio::spawn(task.instrument(tracing::info_span!("poll"))),
            |stall| stall.span.as_deref() == Some("poll"),
        )
    }),
    row("task with `Instant::now` twice", || {
        nanos_a_poll(&runtime(), |task| tokio::spawn(Clocked { inner: task }))
    }),
    row("tokio's poll histogram", || {
        let runtime = worker()
            .enable_metrics_poll_time_histogram()
            .build()
            .expect("a runtime");
        let nanos = nanos_a_poll(&runtime, tokio::spawn);
        let metrics = runtime.metrics();
        let buckets = 0..metrics.poll_time_histogram_num_buckets();
        let polls = buckets.map(|bucket| metrics.poll_time_histogram_bucket_count(0, bucket));
        has_recorded(polls.sum());
        nanos
    }),
    row("tokio-metrics, one `TaskMonitor`", || {
        let monitor = TaskMonitor::new();
        let instrumented = monitor.clone();
        let nanos = nanos_a_poll(&runtime(), move |task| {
            tokio::spawn(TaskMonitor::instrument(&instrumented, task))
        });
        has_recorded(monitor.cumulative().total_poll_count);
        nanos
    }),
    row("dial9, its hooks", || recorded_by_dial9(tokio::spawn)),
    row("dial9, `dial9::spawn`", || recorded_by_dial9(dial9::spawn)),
    row("tokio-blocked", || {
        tracing_subscriber::registry().with(blocked::layer()).init();
        let runtime = runtime();
        let nanos = nanos_a_poll(&runtime, tokio::spawn);
        let (tasks, before) = blocked::seen();
        assert!(tasks >= 2 * TASKS as u64, "it has seen {tasks} tasks");
        runtime
            .block_on(runtime.spawn(Blocking))
            .expect("it does not panic");
        // The last span is closed when the worker lets go of the task, a moment after.
        drop(runtime);
        let busy = blocked::seen().1 - before;
        assert!(busy >= stalls::STALL, "it has seen {busy:?}");
        nanos
    }),
    row("console-subscriber, nobody connected", || {
        let (layer, address) = console::layer();
        tracing_subscriber::registry().with(layer).init();
        let nanos = nanos_a_poll(&runtime(), tokio::spawn);
        console::has_recorded(address, POLLS as u64);
        nanos
    }),
];

const fn row(name: &'static str, measure: fn() -> Vec<f64>) -> Row {
    Row { name, measure }
}

fn main() {
    rounds::be_the_row_asked_for(&[ROWS]);
    let table = rounds::measure_in_turn(ROWS, ROUNDS);
    println!(
        "A task that yields, {TASKS} of them on one worker ({ROUNDS} rounds: median and quartiles):\n"
    );
    println!("| poll | ns | ns over the bare task | times the bare task |\n|---|---|---|---|");
    for row in ROWS {
        println!(
            "| {} | {} | {} | {:.2} |",
            row.name,
            table.figure(row.name, 0).show(1),
            table.over(row.name, BARE, 0).show(1),
            table.ratio(row.name, BARE, 0).median,
        );
    }
    println!(
        "\nOver the same task in a span with an empty layer, our layer adds {} ns. All rows are one build, with \
         `tokio_unstable` and tokio's `tracing`.",
        table.over(OUR_LAYER, FLOOR, 0).show(1)
    );
}

fn worker() -> Builder {
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(1);
    builder
}

fn runtime() -> Runtime {
    worker().build().expect("a runtime")
}

fn has_recorded(polls: u64) {
    assert!(polls >= POLLS as u64, "it has recorded {polls} polls only");
}

/// `block` spawns in the same way as `spawn` does.
fn watched_by_us(
    runtime: Runtime,
    spawn: impl Fn(Yielding) -> JoinHandle<()> + Send + Sync + 'static,
    block: impl FnOnce(Blocking) -> JoinHandle<()>,
    is_named: impl Fn(&StallReport) -> bool,
) -> Vec<f64> {
    let _runtime = runtime.enter();
    let watch = tokio_stall::watch().expect("nothing else is watched");
    let nanos = nanos_a_poll(&runtime, spawn);
    runtime
        .block_on(block(Blocking))
        .expect("it does not panic");
    stalls::has_reported(&watch, is_named);
    nanos
}

fn recorded_by_dial9(
    spawn: impl Fn(Yielding) -> JoinHandle<()> + Send + Sync + 'static,
) -> Vec<f64> {
    let recording = Recording::start(worker());
    let nanos = nanos_a_poll(recording.runtime(), spawn);
    let events = recording.stop();
    has_recorded(events.get("PollStartEvent").copied().unwrap_or_default());
    nanos
}
