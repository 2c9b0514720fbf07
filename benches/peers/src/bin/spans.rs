//! What each tool's layer adds to entering and leaving a span, over a registry with a layer that does nothing. Measured
//! inside a task on a worker, and for dial9 on one of its own, since its layer writes nothing elsewhere.
//!
//! ```text
//! benches/run peers-spans
//! ```

#[path = "../../../rounds/mod.rs"]
mod rounds;

use dial9_utils::tracing_layer::Dial9TracingLayer;
use peers::recording::Recording;
use peers::stalls::{self, STALL};
use peers::{blocked, console};
use rounds::{Row, nanos_each};
use std::hint::black_box;
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};
use tracing::{Level, Span};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::Identity;
use tracing_subscriber::prelude::*;

const ROUNDS: usize = 15;
/// Long enough for several batches of the slowest.
const TIME: Duration = Duration::from_millis(500);
/// Spans entered in one batch: shorter than our threshold.
const SPANS: usize = 20_000;

const FLOOR: &str = "registry and an empty layer";

/// Up to INFO, as our layer asks for, so that tokio's own spans, of level TRACE, are in none of them. But the last two
/// cannot do without.
const OWN_SPAN: &[Row] = &[
    row(FLOOR, || {
        tracing_subscriber::registry()
            .with(Identity::new())
            .with(LevelFilter::INFO)
            .init();
        enter_many(&runtime(), own_span)
    }),
    row("**our layer**", || {
        tracing_subscriber::registry()
            .with(tokio_stall::layer())
            .init();
        watched_by_us("request", own_span)
    }),
    row("dial9's layer", || {
        let only_ours = Targets::new().with_target(module_path!(), Level::INFO);
        tracing_subscriber::registry()
            .with(Dial9TracingLayer::new().with_filter(only_ours))
            .init();
        let recording = Recording::start(worker());
        let nanos = enter_many(recording.runtime(), own_span);
        let events = recording.stop();
        let spans = events
            .iter()
            .filter(|(name, _)| name.starts_with("SpanEnter:"));
        let spans: u64 = spans.map(|(_, count)| count).sum();
        assert!(spans >= SPANS as u64, "it has recorded {events:?}");
        nanos
    }),
    row(
        "tokio-blocked, which looks the span up and lets it be",
        || {
            tracing_subscriber::registry().with(blocked::layer()).init();
            enter_many(&runtime(), own_span)
        },
    ),
    row(
        "console-subscriber, which lets it be, beside an empty layer that wants it",
        || {
            let (layer, _) = console::layer();
            tracing_subscriber::registry()
                .with(layer)
                .with(Identity::new())
                .init();
            enter_many(&runtime(), own_span)
        },
    ),
];

const TOKIO_FLOOR: &str = "registry and an empty layer, tokio's span";

const TOKIOS_SPAN: &[Row] = &[
    row(TOKIO_FLOOR, || {
        tracing_subscriber::registry().with(Identity::new()).init();
        enter_many(&runtime(), tokios_span)
    }),
    row("**our layer**, asked to take spans of level TRACE", || {
        tracing_subscriber::registry()
            .with(tokio_stall::layer().with_max_level(LevelFilter::TRACE))
            .init();
        watched_by_us("runtime.spawn", tokios_span)
    }),
    row("tokio-blocked's layer", || {
        tracing_subscriber::registry().with(blocked::layer()).init();
        let runtime = runtime();
        let nanos = enter_many(&runtime, tokios_span);
        drop(runtime);
        let (_, busy) = blocked::seen();
        assert!(busy >= STALL, "it has seen {busy:?}");
        nanos
    }),
    row("console-subscriber's layer, nobody connected", || {
        let (layer, address) = console::layer();
        tracing_subscriber::registry().with(layer).init();
        let nanos = enter_many(&runtime(), tokios_span);
        console::has_recorded(address, SPANS as u64);
        nanos
    }),
];

const fn row(name: &'static str, measure: fn() -> Vec<f64>) -> Row {
    Row { name, measure }
}

fn main() {
    rounds::be_the_row_asked_for(&[OWN_SPAN, TOKIOS_SPAN]);
    println!(
        "A span of the program's own, entered and left ({ROUNDS} rounds: median and quartiles):\n"
    );
    show(OWN_SPAN, FLOOR);
    println!("\nA span that tokio has around a task, entered and left:\n");
    show(TOKIOS_SPAN, TOKIO_FLOOR);
}

fn show(rows: &[Row], floor: &str) {
    let table = rounds::measure_in_turn(rows, ROUNDS);
    println!("| subscriber | ns | ns over the empty layer |\n|---|---|---|");
    for row in rows {
        println!(
            "| {} | {} | {} |",
            row.name,
            table.figure(row.name, 0).show(1),
            table.over(row.name, floor, 0).show(1),
        );
    }
}

fn worker() -> Builder {
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(1);
    builder
}

fn runtime() -> Runtime {
    worker().build().expect("a runtime")
}

async fn own_span() -> Span {
    tracing::info_span!("request")
}

/// The one around a task that has ended: it stays open for who holds it.
async fn tokios_span() -> Span {
    let span = tokio::spawn(async { Span::current() });
    span.await.expect("it does not panic")
}

/// In the end, one that takes long is left for those to find who look for that.
fn enter_many<F>(runtime: &Runtime, span: fn() -> F) -> Vec<f64>
where
    F: Future<Output = Span> + Send + 'static,
{
    let work = runtime.spawn(async move {
        let span = span().await;
        let nanos = nanos_each(SPANS, TIME, || {
            for _ in 0..SPANS {
                span.in_scope(|| black_box(()));
            }
        })
        .await;
        span.in_scope(|| std::thread::sleep(STALL));
        nanos
    });
    vec![runtime.block_on(work).expect("it does not panic")]
}

fn watched_by_us<F>(name: &str, span: fn() -> F) -> Vec<f64>
where
    F: Future<Output = Span> + Send + 'static,
{
    let runtime = runtime();
    let _runtime = runtime.enter();
    let watch = tokio_stall::watch().expect("nothing else is watched");
    let nanos = enter_many(&runtime, span);
    // Inside tokio's span of this task there is the other one.
    stalls::has_reported(&watch, |stall| {
        let span = stall.span.as_deref();
        span.is_some_and(|span| span.ends_with(name))
    });
    nanos
}
