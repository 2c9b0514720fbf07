//! Code that must not be reported, each beside a positive control in the same program.
//!
//! A program of its own: its subscriber is that of the process.

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};
use support::load::{Hogs, compute};
use support::stage::{Setup, Stage, sleeps};
use support::{assert_at_least, wait_until};
use tokio_stall::{Certainty, FutureExt as _, StallReport, allow_blocking};
use tracing::info_span;
use tracing_subscriber::prelude::*;

const LONG: Duration = Duration::from_millis(120);

/// The subscriber is the same for all tests of this process: the first one sets it.
fn with_layer(setup: Setup) -> Stage {
    let registry = tracing_subscriber::registry();
    registry.with(tokio_stall::layer()).try_init().ok();
    setup.start()
}

/// Runs `quiet`, of which nothing may be reported, and then a real stall, which must be.
fn silent(quiet: impl AsyncFnOnce()) {
    let stage = with_layer(Stage::multi_thread(2));
    stage.block_on(quiet());
    stage.silent_beside(|| sleeps(LONG));
}

/// The same where turns are not counted: then stacks and the worker's counters decide.
fn silent_without_turns(quiet: impl AsyncFnOnce()) {
    let setup = Stage::multi_thread(2).settings(|builder| builder.turns(false));
    let stage = with_layer(setup);
    stage.block_on(quiet());
    stage.silent_beside(|| sleeps(LONG));
}

async fn sleeps_and_computes_in_place() {
    for _ in 0..5 {
        tokio::spawn(
            async { tokio::task::block_in_place(|| std::thread::sleep(LONG)) }.watched("in_place"),
        )
        .await
        .unwrap();
        tokio::spawn(async {
            let _span = info_span!("in_place").entered();
            tokio::task::block_in_place(|| compute(LONG / 4));
        })
        .await
        .unwrap();
    }
}

#[test]
fn block_in_place_is_silent() {
    silent(sleeps_and_computes_in_place);
}

#[test]
fn block_in_place_is_silent_without_turns() {
    silent_without_turns(sleeps_and_computes_in_place);
}

#[test]
fn spans_on_threads_that_drive_nothing_are_silent() {
    silent(async || {
        let on_blocking_thread = || info_span!("import").in_scope(|| std::thread::sleep(LONG));
        tokio::task::spawn_blocking(on_blocking_thread)
            .await
            .unwrap();
        let on_own_thread =
            std::thread::spawn(|| info_span!("batch").in_scope(|| std::thread::sleep(LONG)));
        // The thread in `block_on` of a multi-thread runtime is no worker either.
        info_span!("main").in_scope(|| std::thread::sleep(LONG));
        on_own_thread.join().unwrap();
    });
}

#[test]
fn waits_without_blocking_are_silent() {
    silent(async || {
        let waiting = (0..20).map(|number| {
            tokio::spawn(tokio::time::sleep(LONG + Duration::from_millis(number)).watched("timer"))
        });
        for timer in waiting.collect::<Vec<_>>() {
            timer.await.unwrap();
        }
    });
}

#[test]
fn yield_storms_are_silent() {
    silent(async || {
        let storms = (0..4).map(|_| {
            tokio::spawn(async {
                let until = tokio::time::Instant::now() + LONG;
                while tokio::time::Instant::now() < until {
                    tokio::task::yield_now().await;
                }
            })
        });
        for storm in storms.collect::<Vec<_>>() {
            storm.await.unwrap();
        }
    });
}

#[test]
fn a_row_of_short_marked_polls_is_silent() {
    silent(async || {
        let polls = (0..122)
            .map(|_| tokio::spawn(async { compute(Duration::from_millis(1)) }.watched("short")));
        for poll in polls.collect::<Vec<_>>() {
            poll.await.unwrap();
        }
    });
}

/// After so many turns a worker publishes its counters.
const ROW: u32 = 61;

/// As many polls of a millisecond as a worker makes before it publishes any, then a pause.
async fn rows_of_short_polls(rows: u32) {
    for _ in 0..rows {
        for _ in 0..ROW {
            compute(Duration::from_millis(1));
            tokio::task::yield_now().await;
        }
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
}

#[test]
fn rows_of_short_polls_with_pauses_are_silent() {
    silent(async || {
        tokio::spawn(rows_of_short_polls(10)).await.unwrap();
        tokio::spawn(rows_of_short_polls(5).watched("row"))
            .await
            .unwrap();
    });
}

async fn sleeps_in_place_beside_rows() {
    let in_place = async || {
        for _ in 0..16 {
            tokio::task::block_in_place(|| std::thread::sleep(Duration::from_millis(30)));
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    };
    let tasks = [
        tokio::spawn(rows_of_short_polls(10)),
        tokio::spawn(rows_of_short_polls(10).watched("row")),
        tokio::spawn(async move { in_place().await }),
        tokio::spawn(async move { in_place().await }.watched("in_place")),
    ];
    for task in tasks {
        task.await.unwrap();
    }
}

#[test]
fn block_in_place_beside_rows_of_short_polls_is_silent() {
    silent(sleeps_in_place_beside_rows);
}

/// While a poll sleeps in place, another thread takes its worker over, and moves no counter for a
/// row.
#[test]
fn block_in_place_beside_rows_is_silent_without_turns() {
    silent_without_turns(sleeps_in_place_beside_rows);
}

#[test]
fn blocking_that_is_allowed_is_counted_instead() {
    let stage = with_layer(Stage::multi_thread(2));
    let marked = async {
        allow_blocking("reads its config once", || std::thread::sleep(LONG));
        allow_blocking("outer", || {
            allow_blocking("inner", || std::thread::sleep(LONG))
        });
    };
    stage.run(marked.watched("start"));
    stage.run(async { allow_blocking("unmarked", || std::thread::sleep(LONG)) });
    let allowed = stage.watch.status().allowed;
    let of = |reason| {
        let mut allowed = allowed.iter();
        allowed.find(|allowed| allowed.reason == reason).unwrap()
    };
    assert_eq!(of("reads its config once").count, 1);
    assert_at_least(of("reads its config once").total, LONG);
    assert!(of("outer").total >= of("inner").total);
    stage.silent_beside(|| sleeps(LONG));
}

#[test]
fn blocking_after_an_allowed_region_is_a_stall_of_its_own_time() {
    let stage = with_layer(Stage::multi_thread(2));
    let start = Instant::now();
    let ended = stage.silent_beside(|| async {
        allow_blocking("reads its config once more", || std::thread::sleep(LONG));
        std::thread::sleep(LONG);
    });
    let all = start.elapsed();
    assert_at_least(ended.duration, LONG);
    // Only its own time.
    assert_at_least(all, ended.duration + LONG);
}

#[test]
fn a_current_thread_runtime_that_nobody_drives_is_silent() {
    let stage = with_layer(Stage::current_thread().named("cli"));
    stage.block_on(async { tokio::task::yield_now().await }.watched("request"));
    // Back in ordinary code, which may block, in a span of its own and without.
    info_span!("report").in_scope(|| std::thread::sleep(LONG));
    std::thread::sleep(LONG);
    stage.block_on(tokio::task::yield_now());
    stage.seen.assert_nothing();
    // Positive control: the same span inside the runtime.
    let is_it = |report: &StallReport| {
        report.span.as_deref() == Some("report") && report.certainty == Certainty::Certain
    };
    wait_until("a report of the span", || {
        stage.block_on(async { info_span!("report").in_scope(|| std::thread::sleep(LONG)) });
        stage.seen.all().iter().any(is_it)
    });
}

/// The classic mistake: the span stays entered on the thread while the task waits.
async fn guards_held_across_an_await() {
    let wrong = (0..8).map(|_| {
        let span = Arc::new(info_span!("leaked"));
        let local = tokio::task::LocalSet::new();
        local.spawn_local(async move {
            let _entered = span.enter();
            tokio::time::sleep(LONG).await;
        });
        local
    });
    for local in wrong.collect::<Vec<_>>() {
        local.await;
    }
}

/// The same on a worker, on which it would look like a poll that never ends.
async fn leaks_a_span() {
    let leak = info_span!("leaked");
    let id = leak.id().unwrap();
    tracing::dispatcher::get_default(|dispatch| dispatch.enter(&id));
    tokio::time::sleep(LONG).await;
    drop(leak);
}

#[test]
fn a_span_guard_held_across_an_await_is_never_certain() {
    let stage = with_layer(Stage::multi_thread(2));
    stage.block_on(async {
        guards_held_across_an_await().await;
        tokio::spawn(leaks_a_span()).await.unwrap();
        tokio::time::sleep(LONG).await;
    });
    stage.seen.assert_nothing_certain();
    // Positive control: the workers are watched all the same. A thread with leaked marks is not
    // taken for its worker's until a pulse has put it right, so this may be no more than likely.
    stage.block_on(stage.seen.stall_until_told());
}

#[test]
fn short_polls_on_a_busy_machine_are_never_certain() {
    let stage = with_layer(Stage::multi_thread(2));
    let hogs = Hogs::four_for_each_cpu();
    stage.block_on(async {
        for _ in 0..150 {
            let polls = [(); 2].map(|()| {
                let short = async { compute(Duration::from_millis(2)) };
                tokio::spawn(short.watched("two_milliseconds"))
            });
            for poll in polls {
                poll.await.unwrap();
            }
        }
    });
    drop(hogs);
    stage.seen.assert_nothing_certain();
    // Positive control: the same under load, but for long.
    let _hogs = Hogs::start(4);
    stage.certain_control(|| async { compute(LONG) });
    assert_eq!(stage.seen.certain()[0].span.as_deref(), Some("control"));
}
