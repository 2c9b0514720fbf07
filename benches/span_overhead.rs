//! What the layer adds to entering and leaving a span, over a registry with a layer that does nothing. (A registry
//! without any layer is no measure: it does not free closed spans.)
//!
//! ```text
//! cargo bench --bench span_overhead
//! ```

mod rounds;

use rounds::{Row, nanos_each};
use std::hint::black_box;
use std::time::Duration;
use tracing_subscriber::layer::Identity;
use tracing_subscriber::prelude::*;

const ROUNDS: usize = 15;
const TIME: Duration = Duration::from_millis(200);
/// Spans entered in one batch: shorter than any threshold.
const SPANS: usize = 20_000;

const ROWS: &[Row] = &[
    row("registry and an empty layer", || {
        enter_many(Subscriber::Empty, false)
    }),
    row("registry and our layer", || {
        enter_many(Subscriber::Ours, false)
    }),
    row("the same, inside another span: empty layer", || {
        enter_many(Subscriber::Empty, true)
    }),
    row("the same, inside another span: our layer", || {
        enter_many(Subscriber::Ours, true)
    }),
];

const fn row(name: &'static str, measure: fn() -> Vec<f64>) -> Row {
    Row { name, measure }
}

fn main() {
    rounds::be_the_row_asked_for(&[ROWS]);
    let table = rounds::measure_in_turn(ROWS, ROUNDS);
    println!("A span entered and left ({ROUNDS} rounds: median and quartiles):\n");
    println!("| subscriber | ns | ns over the empty layer |\n|---|---|---|");
    for pair in ROWS.chunks(2) {
        for row in pair {
            println!(
                "| {} | {} | {} |",
                row.name,
                table.figure(row.name, 0).show(1),
                table.over(row.name, pair[0].name, 0).show(1),
            );
        }
    }
}

enum Subscriber {
    Empty,
    Ours,
}

fn enter_many(subscriber: Subscriber, nested: bool) -> Vec<f64> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .build()
        .expect("a runtime");
    let _runtime = runtime.enter();
    let _watch = match subscriber {
        Subscriber::Empty => {
            tracing_subscriber::registry().with(Identity::new()).init();
            None
        }
        Subscriber::Ours => {
            tracing_subscriber::registry()
                .with(tokio_stall::layer())
                .init();
            Some(tokio_stall::watch().expect("nothing else is watched"))
        }
    };
    let work = runtime.spawn(async move {
        let outer = tracing::info_span!("outer");
        let span = tracing::info_span!("request");
        nanos_each(SPANS, TIME, || {
            let _outer = nested.then(|| outer.enter());
            for _ in 0..SPANS {
                span.in_scope(|| black_box(()));
            }
        })
        .await
    });
    vec![runtime.block_on(work).expect("it does not panic")]
}
