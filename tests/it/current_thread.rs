//! A `current_thread` runtime, whose worker is any thread that is inside its `block_on`.

use crate::support::seen::Seen;
use crate::support::stage::Stage;
use crate::support::{FOREVER, threads_known};
use std::time::{Duration, Instant};
use tokio_stall::{Certainty, Phase, StallReport};
use tracing_subscriber::prelude::*;

const LONG: Duration = Duration::from_millis(100);
const MS: Duration = Duration::from_millis(1);

/// Blocks the thread until there is a report that fits.
fn block_until(seen: &Seen, fits: impl Fn(&StallReport) -> bool) {
    let deadline = Instant::now() + FOREVER;
    while !seen.all().iter().any(&fits) {
        assert!(Instant::now() < deadline, "no report: {:#?}", seen.all());
        std::thread::sleep(MS * 400);
    }
}

/// Drives the runtime, then leaves it alone for longer than a stall takes.
fn driven_and_left() -> Stage {
    let stage = Stage::current_thread().start();
    stage.block_on(async {
        threads_known(&stage.watch).await;
        tokio::time::sleep(LONG).await;
    });
    std::thread::sleep(LONG * 5);
    stage.seen.assert_nothing();
    stage
}

#[test]
fn the_first_thing_in_a_later_block_on_is_found_while_it_blocks() {
    let stage = driven_and_left();
    stage.block_on(async { block_until(&stage.seen, |_| true) });
    let ended = stage.seen.wait_for_an_end();
    assert_eq!(ended.certainty, Certainty::Certain, "{ended}");
}

/// The span stays entered on the thread, and other tasks run under it.
#[test]
fn a_span_guard_held_across_an_await_hides_no_stall() {
    let subscriber = tracing_subscriber::registry().with(tokio_stall::layer());
    tracing::subscriber::with_default(subscriber, || {
        let stage = Stage::current_thread().start();
        stage.block_on(async {
            threads_known(&stage.watch).await;
            let holds = async {
                let _entered = tracing::info_span!("job").entered();
                tokio::time::sleep(LONG * 3).await;
            };
            let blocks = async {
                tokio::time::sleep(MS * 20).await;
                block_until(&stage.seen, |report| report.phase == Phase::Began);
            };
            tokio::join!(holds, blocks);
        });
        stage.seen.wait_for_an_end();
    });
}

/// The same for one sleep in a task of its own, which nothing interrupts: there is no second stall.
#[test]
fn one_sleep_beside_a_span_guard_held_across_an_await_is_told_while_it_lasts() {
    let subscriber = tracing_subscriber::registry().with(tokio_stall::layer());
    tracing::subscriber::with_default(subscriber, || {
        let stage = Stage::current_thread().start();
        let told_meanwhile = stage.block_on(async {
            threads_known(&stage.watch).await;
            let _entered = tracing::info_span!("job").entered();
            let seen = stage.seen.clone();
            let blocks = tokio::spawn(async move {
                tokio::time::sleep(MS * 20).await;
                std::thread::sleep(LONG * 50);
                seen.all()
            });
            blocks.await.unwrap()
        });
        let began = |report: &StallReport| report.phase == Phase::Began;
        let all = stage.seen.all();
        assert!(told_meanwhile.iter().any(began), "{all:#?}");
        stage.seen.wait_for_an_end();
    });
}
