//! What watching costs a whole service: axum over loopback TCP with keep-alive at saturation, watched and unwatched
//! in turn, while nothing stalls and while one in a hundred or in twenty requests does; and what its layers for
//! requests cost beside each other, and what an observer from outside costs.
//!
//! ```text
//! cargo build --release -p cargo-stall    # the observer
//! cargo run --release -p service
//! cargo run --release -p service --features prometheus    # with a row for metrics
//! ```
//!
//! At saturation the requests per second are shared out between the service and its load, so they show less of a
//! difference than the CPU time per request does, which is the service's alone and also less noisy.

#[path = "../../load/mod.rs"]
mod load;
mod observer;
#[path = "../../rounds/mod.rs"]
mod rounds;

use axum::Router;
use load::Stalls;
use observer::Observer;
use rounds::Row;
use std::time::{Duration, Instant};
use tokio_stall::Guard;
use tokio_stall::tower::RequestLayer;
use tower::layer::layer_fn;
use tower_http::trace::TraceLayer;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::Identity;
use tracing_subscriber::prelude::*;

/// Of rows without stalls, where a percent is to be told; and of the others.
const ROUNDS: usize = 12;
const ROUNDS_WITH_STALLS: usize = 5;

/// How many stalls the detector has found of a hundred that were made; of a row that is not watched, none.
const FOUND: usize = load::FIGURES;

macro_rules! rows {
    ($share:literal, $stalls:expr) => {
        &[
            row(concat!("unwatched", $share), || {
                unwatched(load::routes($stalls))
            }),
            row(concat!("**`watch()`**", $share), || {
                watched($stalls, load::routes($stalls))
            }),
            row(
                concat!("unwatched, a span for each request", $share),
                || {
                    tracing_subscriber::registry().with(Identity::new()).init();
                    unwatched(load::routes_in_spans($stalls))
                },
            ),
            row(
                concat!(
                    "**`watch()` and `layer()`**, a span for each request",
                    $share
                ),
                || {
                    tracing_subscriber::registry()
                        .with(tokio_stall::layer())
                        .init();
                    watched($stalls, load::routes_in_spans($stalls))
                },
            ),
            #[cfg(feature = "prometheus")]
            row(
                concat!("the same, **with a Prometheus exporter**", $share),
                || {
                    export_to_prometheus();
                    tracing_subscriber::registry()
                        .with(tokio_stall::layer())
                        .init();
                    watched($stalls, load::routes_in_spans($stalls))
                },
            ),
        ]
    };
}

const WITHOUT_STALLS: &[Row] = rows!("", Stalls::None);
const ONE_PERCENT: &[Row] = rows!(", 1 %", Stalls::OneIn(100));
const FIVE_PERCENT: &[Row] = rows!(", 5 %", Stalls::OneIn(20));
/// By row, the place of the one that it is compared with.
const BASES: &[usize] = &[0, 0, 2, 2, 2];

/// Layers for requests, each compared with one that does nothing. The first `watch()` shows what the
/// detector costs without its layer.
const LAYERS: &[Row] = &[
    row("an empty tower layer", || unwatched(with_empty_layer())),
    row("`TraceLayer`, its spans disabled", || {
        trace_up_to(LevelFilter::INFO);
        unwatched(with_trace_layer())
    }),
    row("`TraceLayer`, its spans enabled", || {
        trace_up_to(LevelFilter::DEBUG);
        unwatched(with_trace_layer())
    }),
    row("an empty tower layer, **`watch()`**", || {
        watched(Stalls::None, with_empty_layer())
    }),
    row("**`RequestLayer`**, unwatched", || {
        unwatched(with_request_layer())
    }),
    row("**`RequestLayer` and `watch()`**", || {
        watched(Stalls::None, with_request_layer())
    }),
];
const EMPTY_LAYER: &[usize] = &[0; LAYERS.len()];

/// The same service, with no detector in it.
const OUTSIDE: &[Row] = &[
    row("nobody looks at it", unobserved),
    row("**`tokio-stall attach`** looks at it", observed),
];
const NOBODY: &[usize] = &[0; OUTSIDE.len()];

/// The figures of an observer's stops.
const STOPS_PER_SECOND: usize = load::FIGURES;
const MICROS_OF_A_STOP: usize = load::FIGURES + 1;

const fn row(name: &'static str, measure: fn() -> Vec<f64>) -> Row {
    Row { name, measure }
}

fn main() {
    rounds::be_the_row_asked_for(&[WITHOUT_STALLS, LAYERS, OUTSIDE, ONE_PERCENT, FIVE_PERCENT]);

    show("No request stalls", WITHOUT_STALLS, BASES, ROUNDS);
    println!();
    show(
        "Layers for requests; no request stalls",
        LAYERS,
        EMPTY_LAYER,
        ROUNDS,
    );
    println!();
    show_outside();
    let stall = format!("block their worker for {} ms", load::STALL.as_millis());
    println!();
    show(
        &format!("1 % of the requests {stall}"),
        ONE_PERCENT,
        BASES,
        ROUNDS_WITH_STALLS,
    );
    println!();
    show(
        &format!("5 % of the requests {stall}"),
        FIVE_PERCENT,
        BASES,
        ROUNDS_WITH_STALLS,
    );
}

fn show(title: &str, rows: &[Row], bases: &[usize], rounds: usize) {
    let table = rounds::measure_in_turn(rows, rounds);
    println!("{title} ({rounds} rounds: median and quartiles):\n");
    load::show(&table, rows, bases, &["stalls found, %"], |row| {
        let found = table.figure(row.name, FOUND);
        vec![if found.median.is_nan() {
            "–".to_owned()
        } else {
            found.show(1)
        }]
    });
}

fn show_outside() {
    let table = rounds::measure_in_turn(OUTSIDE, ROUNDS);
    println!(
        "Looked at from outside; no request stalls ({ROUNDS} rounds: median and quartiles):\n"
    );
    let columns = ["stops a second", "µs of a stop"];
    load::show(&table, OUTSIDE, NOBODY, &columns, |row| {
        let places = [STOPS_PER_SECOND, MICROS_OF_A_STOP];
        let figures = places.map(|place| table.figure(row.name, place));
        let shown = figures.map(|figure| match figure.median.is_nan() {
            true => "–".to_owned(),
            false => figure.show(1),
        });
        shown.to_vec()
    });
}

fn with_empty_layer() -> Router {
    load::routes(Stalls::None).layer(layer_fn(|service| service))
}

fn with_trace_layer() -> Router {
    load::routes(Stalls::None).layer(TraceLayer::new_for_http())
}

fn with_request_layer() -> Router {
    load::routes(Stalls::None).layer(RequestLayer::new())
}

/// Spans and events up to this level are enabled, and nothing reads them. `TraceLayer` uses DEBUG.
fn trace_up_to(level: LevelFilter) {
    tracing_subscriber::registry().with(level).init();
}

fn unwatched(routes: Router) -> Vec<f64> {
    let mut figures = load::measure(&load::runtime(), routes);
    figures.push(f64::NAN);
    figures
}

fn unobserved() -> Vec<f64> {
    let mut figures = load::measure(&load::runtime(), load::routes(Stalls::None));
    figures.extend([f64::NAN; 2]);
    figures
}

fn observed() -> Vec<f64> {
    let runtime = load::runtime();
    let observer = Observer::start();
    let mut figures = load::measure(&runtime, load::routes(Stalls::None));
    let stops = observer.end();
    figures.extend([stops.per_second, stops.micros]);
    figures
}

fn watched(stalls: Stalls, routes: Router) -> Vec<f64> {
    let runtime = load::runtime();
    let entered = runtime.enter();
    let watch = tokio_stall::watch().expect("nothing else is watched");
    drop(entered);
    let mut figures = load::measure(&runtime, routes);
    figures.push(found(&watch, load::stalls_made(stalls)));
    figures
}

/// The percentage found of the stalls made.
///
/// # Panics
///
/// If it has found none, or if it has found one where none was made: then it was not at work.
fn found(watch: &Guard, made: u64) -> f64 {
    // The last one is counted when the reporter comes to it.
    let counted = || {
        let runtimes = watch.status().runtimes;
        runtimes
            .iter()
            .map(|runtime| runtime.stalls + runtime.likely_stalls)
            .sum::<u64>()
    };
    let patience = Instant::now() + Duration::from_millis(200);
    while Instant::now() < patience && (made == 0 || counted() < made) {
        std::thread::sleep(Duration::from_millis(5));
    }
    let found = counted();
    if made == 0 {
        assert_eq!(found, 0, "{:?}", watch.recent());
        return f64::NAN;
    }
    assert!(found > 0, "{made} stalls were made");
    found as f64 / made as f64 * 100.0
}

#[cfg(feature = "prometheus")]
fn export_to_prometheus() {
    use tokio_stall::prometheus::{self, PrometheusBuilder};

    let builder = PrometheusBuilder::new().with_http_listener(([127, 0, 0, 1], 0));
    prometheus::install(builder).expect("nothing else exports");
}
