//! What must not be reported, each beside a positive control in the same program.

mod seen;

use seen::{Hogs, Seen, compute, workers};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime;
use tokio_stall::{Certainty, FutureExt as _, Phase, allow_blocking};
use tracing::info_span;
use tracing_subscriber::prelude::*;

const LONG: Duration = Duration::from_millis(120);

fn with_layer() {
    // Every test is a process of its own under nextest, and one thread of one process under
    // `cargo test`: the subscriber is set once and holds for all.
    tracing_subscriber::registry()
        .with(tokio_stall::layer())
        .try_init()
        .ok();
}

/// Runs `quiet`, of which nothing may be reported, and then a real stall, which must be.
fn silent(quiet: impl AsyncFnOnce()) {
    with_layer();
    workers(2).block_on(async {
        let (_watch, seen) = Seen::watch();
        quiet().await;
        tokio::spawn(async { std::thread::sleep(LONG) }.watched("control"))
            .await
            .unwrap();
        seen.wait(|report| {
            report.phase == Phase::Ended && report.span.as_deref() == Some("control")
        });
        let others: Vec<_> = seen
            .all()
            .into_iter()
            .filter(|report| report.span.as_deref() != Some("control"))
            .collect();
        assert!(others.is_empty(), "false alarm: {others:#?}");
    });
}

#[test]
fn block_in_place() {
    silent(async || {
        for _ in 0..5 {
            tokio::spawn(
                async { tokio::task::block_in_place(|| std::thread::sleep(LONG)) }
                    .watched("in_place"),
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
    });
}

#[test]
fn spans_on_threads_that_drive_nothing() {
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
fn waiting_without_blocking() {
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
fn yield_storms() {
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
fn a_row_of_short_marked_polls() {
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

/// As many polls of a millisecond as a worker makes before it says that it has made any, then a pause.
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
fn rows_of_short_polls_with_pauses() {
    silent(async || {
        tokio::spawn(rows_of_short_polls(10)).await.unwrap();
        tokio::spawn(rows_of_short_polls(5).watched("row"))
            .await
            .unwrap();
    });
}

/// While a poll sleeps in place, another thread takes its worker over and says nothing of that for a row.
#[test]
fn block_in_place_beside_rows_of_short_polls() {
    silent(async || {
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
    });
}

#[test]
fn blocking_that_is_allowed_is_counted_instead() {
    with_layer();
    workers(2).block_on(async {
        let (watch, seen) = Seen::watch();
        tokio::spawn(
            async {
                allow_blocking("reads its config once", || std::thread::sleep(LONG));
                allow_blocking("outer", || {
                    allow_blocking("inner", || std::thread::sleep(LONG))
                });
            }
            .watched("start"),
        )
        .await
        .unwrap();
        tokio::spawn(async { allow_blocking("unmarked", || std::thread::sleep(LONG)) })
            .await
            .unwrap();
        seen.assert_nothing();
        let allowed = watch.status().allowed;
        let of = |reason| {
            allowed
                .iter()
                .find(|allowed| allowed.reason == reason)
                .unwrap()
        };
        assert_eq!(of("reads its config once").count, 1);
        assert!(
            of("reads its config once").total >= LONG && of("outer").total >= of("inner").total
        );
        // Positive control: what follows an allowed region in the same poll is not allowed.
        tokio::spawn(
            async {
                allow_blocking("reads its config once", || std::thread::sleep(LONG));
                std::thread::sleep(LONG);
            }
            .watched("start"),
        )
        .await
        .unwrap();
        let ended = seen.wait(|report| report.phase == Phase::Ended);
        assert!(
            ended.duration >= LONG && ended.duration < LONG * 2,
            "only its own time: {ended}"
        );
    });
}

#[test]
fn a_current_thread_runtime_that_nobody_drives() {
    with_layer();
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let (builder, seen) = Seen::builder();
    let _watch = builder
        .runtime("cli", runtime.handle().clone())
        .start()
        .unwrap();
    runtime.block_on(async { tokio::task::yield_now().await }.watched("request"));
    // Back in ordinary code, which may block, in a span of its own and without.
    info_span!("report").in_scope(|| std::thread::sleep(LONG));
    std::thread::sleep(LONG);
    runtime.block_on(tokio::task::yield_now());
    seen.assert_nothing();
    // Positive control: the same span inside the runtime.
    runtime.block_on(async { info_span!("report").in_scope(|| std::thread::sleep(LONG)) });
    let ended = seen.wait(|report| report.phase == Phase::Ended);
    assert_eq!(
        (ended.span.as_deref(), ended.certainty),
        (Some("report"), Certainty::Certain),
        "{ended}"
    );
}

#[test]
fn a_span_guard_held_across_an_await() {
    with_layer();
    workers(2).block_on(async {
        let (_watch, seen) = Seen::watch();
        // The classic mistake: the span stays entered on the thread while the task waits.
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
        // On workers, where it would look like a poll that never ends.
        let on_worker = tokio::spawn(async {
            let leak = info_span!("leaked");
            let id = leak.id().unwrap();
            tracing::dispatcher::get_default(|dispatch| dispatch.enter(&id));
            tokio::time::sleep(LONG).await;
            drop(leak);
        });
        on_worker.await.unwrap();
        tokio::time::sleep(LONG).await;
        seen.assert_nothing_certain();
        // Positive control: the workers are watched all the same. A thread whose marks have leaked is
        // not taken for its worker's until a pulse has put it right, so this may be no more than likely.
        seen.stall_until_told().await;
    });
}

#[test]
fn short_polls_on_a_machine_with_four_times_more_to_do_than_cpus() {
    with_layer();
    workers(2).block_on(async {
        let (_watch, seen) = Seen::watch();
        {
            let cpus = std::thread::available_parallelism().map_or(2, usize::from);
            let _hogs = Hogs::start(cpus * 4);
            for _ in 0..150 {
                let polls = (0..2).map(|_| {
                    tokio::spawn(
                        async { compute(Duration::from_millis(2)) }.watched("two_milliseconds"),
                    )
                });
                for poll in polls.collect::<Vec<_>>() {
                    poll.await.unwrap();
                }
            }
        }
        seen.assert_nothing_certain();
        // Positive control: the same under the same load, but for long.
        let _hogs = Hogs::start(4);
        tokio::spawn(async { compute(LONG) }.watched("long"))
            .await
            .unwrap();
        let ended = seen
            .wait(|report| report.phase == Phase::Ended && report.certainty == Certainty::Certain);
        assert_eq!(ended.span.as_deref(), Some("long"));
    });
}
