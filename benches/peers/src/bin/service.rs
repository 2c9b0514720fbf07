//! What each tool costs a whole service at saturation: the same load as in the benchmark `service`, and no stalls.
//!
//! ```text
//! benches/run peers-service
//! ```

#[path = "../../../load/mod.rs"]
mod load;
#[path = "../../../rounds/mod.rs"]
mod rounds;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use load::Stalls;
use peers::recording::Recording;
use peers::stalls::{self, Blocking};
use peers::{blocked, console};
use rounds::Row;
use std::collections::HashMap;
use tokio_metrics::TaskMonitor;
use tracing::{Instrument as _, Level, info_span};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::Identity;
use tracing_subscriber::prelude::*;

const ROUNDS: usize = 8;

const UNWATCHED: usize = 0;
const UNWATCHED_IN_SPANS: usize = 2;

const ROWS: &[Row] = &[
    row("unwatched", || load::measure(&load::runtime(), routes())),
    row("**`watch()`**", || {
        watched_by_us(routes(), tokio::spawn, |_| true)
    }),
    row("unwatched, a span for each request", || {
        // Up to INFO, as our layer asks for: without that, it would enter tokio's own spans as well.
        tracing_subscriber::registry()
            .with(Identity::new())
            .with(LevelFilter::INFO)
            .init();
        load::measure(&load::runtime(), routes_in_spans())
    }),
    row(
        "**`watch()` and `layer()`**, a span for each request",
        || {
            tracing_subscriber::registry()
                .with(tokio_stall::layer())
                .init();
            watched_by_us(
                routes_in_spans(),
                |task| tokio::spawn(task.instrument(info_span!("request"))),
                |span| span == Some("request"),
            )
        },
    ),
    row("tokio-metrics, a `TaskMonitor` around each request", || {
        let monitor = TaskMonitor::new();
        let routes = routes().layer(from_fn_with_state(monitor.clone(), monitored));
        let figures = load::measure(&load::runtime(), routes);
        has_recorded(monitor.cumulative().total_poll_count);
        figures
    }),
    row("dial9, its hooks", || {
        let (figures, events) = recorded_by_dial9(routes());
        has_recorded(events.get("PollStartEvent").copied().unwrap_or_default());
        figures
    }),
    row(
        "dial9, its hooks and its layer, a span for each request",
        || {
            let only_ours = Targets::new().with_target(module_path!(), Level::INFO);
            tracing_subscriber::registry()
                .with(dial9_utils::tracing_layer::Dial9TracingLayer::new().with_filter(only_ours))
                .init();
            let (figures, events) = recorded_by_dial9(routes_in_spans());
            let spans = events
                .iter()
                .filter(|(name, _)| name.starts_with("SpanEnter:"));
            has_recorded(spans.map(|(_, count)| count).sum());
            figures
        },
    ),
    row("console-subscriber, nobody connected", || {
        let (layer, address) = console::layer();
        tracing_subscriber::registry().with(layer).init();
        let runtime = load::runtime();
        let figures = load::measure(&runtime, routes());
        console::has_recorded(address, load::served() / 2);
        figures
    }),
    row("tokio-blocked", || {
        tracing_subscriber::registry().with(blocked::layer()).init();
        let runtime = load::runtime();
        let figures = load::measure(&runtime, routes());
        // The last spans are closed when the workers let go of the connections' tasks, a moment after.
        drop(runtime);
        let (tasks, busy) = blocked::seen();
        assert!(
            tasks >= load::CONNECTIONS as u64,
            "it has seen {tasks} tasks"
        );
        assert!(busy >= load::TIME / 4, "it has seen them busy for {busy:?}");
        figures
    }),
];

/// By row, the place of the one that it is compared with.
const BASES: &[usize] = &[
    UNWATCHED,
    UNWATCHED,
    UNWATCHED_IN_SPANS,
    UNWATCHED_IN_SPANS,
    UNWATCHED,
    UNWATCHED,
    UNWATCHED_IN_SPANS,
    UNWATCHED,
    UNWATCHED,
];

const fn row(name: &'static str, measure: fn() -> Vec<f64>) -> Row {
    Row { name, measure }
}

fn main() {
    rounds::be_the_row_asked_for(&[ROWS]);
    let table = rounds::measure_in_turn(ROWS, ROUNDS);
    println!(
        "A service at saturation, no request stalls ({ROUNDS} rounds: median and quartiles). All rows are one build, \
         with `tokio_unstable` and tokio's `tracing`:\n"
    );
    load::show(&table, ROWS, BASES, &[], |_| Vec::new());
}

fn routes() -> Router {
    load::routes(Stalls::None)
}

fn routes_in_spans() -> Router {
    load::routes_in_spans(Stalls::None)
}

/// A connection may find its next request there when it has answered one, and serve two in one poll.
fn has_recorded(events: u64) {
    let served = load::served();
    assert!(
        events >= served / 2,
        "it has recorded {events} polls or spans of {served} requests"
    );
}

/// `block` spawns a task in the way that requests are served.
fn watched_by_us(
    routes: Router,
    block: impl FnOnce(Blocking) -> tokio::task::JoinHandle<()>,
    is_named: impl Fn(Option<&str>) -> bool,
) -> Vec<f64> {
    let runtime = load::runtime();
    let _runtime = runtime.enter();
    let watch = tokio_stall::watch().expect("nothing else is watched");
    let figures = load::measure(&runtime, routes);
    assert!(watch.recent().is_empty(), "{:?}", watch.recent());
    runtime
        .block_on(block(Blocking))
        .expect("it does not panic");
    stalls::has_reported(&watch, |stall| is_named(stall.span.as_deref()));
    figures
}

async fn monitored(State(monitor): State<TaskMonitor>, request: Request, next: Next) -> Response {
    TaskMonitor::instrument(&monitor, next.run(request)).await
}

fn recorded_by_dial9(routes: Router) -> (Vec<f64>, HashMap<String, u64>) {
    let recording = Recording::start(load::builder());
    let figures = load::measure(recording.runtime(), routes);
    (figures, recording.stop())
}
