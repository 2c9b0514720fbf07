//! Polls without any mark: a long one is certain while it lasts, and rows of short ones are not reported at
//! all, not even as likely. Nothing here has a layer, a `watched` future or a hook.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

#[path = "../examples/unmarked/rows.rs"]
mod rows;
mod seen;

use rows::{GoesOn, MS, compute, goes_on_for};
use seen::{Hogs, Seen, workers};
use std::collections::HashSet;
use std::time::{Duration, Instant};
use tokio::runtime::{self, Runtime};
use tokio_stall::{Certainty, Guard, Phase, StallReport};

/// Far over the threshold of 10 ms.
const LONG: Duration = Duration::from_millis(100);

/// For so long a row goes on.
fn goes_on() -> GoesOn {
    goes_on_for(Duration::from_millis(1_500))
}

fn current_thread() -> Runtime {
    let mut builder = runtime::Builder::new_current_thread();
    builder.enable_all().build().unwrap()
}

/// Turns are counted, and all threads are known, which on a busy machine takes a moment.
#[track_caller]
fn assert_counts_turns(watch: &Guard) {
    let deadline = Instant::now() + seen::FOREVER;
    tokio_stall::allow_blocking("a test waits for threads to be known", || {
        for index in 0..watch.coverage().len() {
            loop {
                let coverage = &watch.coverage()[index];
                assert!(coverage.turns && Instant::now() < deadline, "{coverage}");
                if coverage.known_threads == coverage.workers {
                    break;
                }
                std::thread::sleep(MS);
            }
        }
    });
}

/// Runs `quiet`, of which nothing may be reported, and then a real stall in the same place, which must be.
fn silent(runtime: &Runtime, quiet: impl AsyncFnOnce() + Send + 'static) {
    runtime.block_on(async {
        let (watch, seen) = Seen::watch();
        assert_counts_turns(&watch);
        quiet().await;
        seen.assert_nothing();
        hold_until_told(&seen).await;
        let ended = seen.wait(|report| report.phase == Phase::Ended);
        assert_eq!(ended.certainty, Certainty::Certain, "{ended}");
    });
}

/// One poll that holds its worker until that has been reported, however busy the machine.
async fn hold_until_told(seen: &Seen) {
    let seen = seen.clone();
    let held = async move {
        let start = Instant::now();
        while seen.all().is_empty() && start.elapsed() < seen::FOREVER {
            std::thread::sleep(MS);
        }
    };
    tokio::spawn(held).await.unwrap();
}

#[test]
fn many_tasks_of_a_millisecond() {
    silent(&workers(2), async || {
        rows::rows_with_pauses(goes_on()).await
    });
}

#[test]
fn many_tasks_of_five_milliseconds_on_all_workers() {
    silent(&workers(2), async || {
        rows::many_tasks(goes_on(), 5 * MS).await
    });
}

#[test]
fn a_task_that_yields_every_millisecond() {
    silent(&workers(2), async || rows::yields(goes_on(), MS).await);
}

#[test]
fn a_task_that_yields_every_nine_milliseconds() {
    silent(&workers(2), async || rows::yields(goes_on(), 9 * MS).await);
}

#[test]
fn a_task_that_wakes_itself() {
    silent(&workers(2), async || {
        rows::wakes_itself(goes_on(), 3 * MS).await
    });
}

#[test]
fn two_tasks_that_wake_each_other() {
    silent(&workers(2), async || {
        rows::ping_pong(goes_on(), MS, MS).await;
        rows::ping_pong(goes_on(), 3 * MS, 3 * MS).await;
        // The short one between two long ones is seen by nobody, and the turn takes more than the threshold.
        rows::ping_pong(goes_on(), 6 * MS, Duration::ZERO).await;
    });
}

#[test]
fn futures_polled_together_within_the_threshold() {
    silent(&workers(2), async || rows::together(goes_on()).await);
}

#[test]
fn block_in_place_alone_and_followed_by_short_polls() {
    silent(&workers(2), async || {
        rows::in_place(goes_on(), 0).await;
        rows::in_place_beside_rows(goes_on()).await;
    });
}

#[test]
fn a_million_short_turns() {
    silent(&workers(2), async || {
        let turns = [(); 4].map(|()| {
            tokio::spawn(async {
                for _ in 0..250_000 {
                    tokio::task::yield_now().await;
                }
            })
        });
        for task in turns {
            task.await.unwrap();
        }
    });
}

#[test]
fn rows_on_a_current_thread_runtime() {
    silent(&current_thread(), async || {
        rows::rows_with_pauses(goes_on()).await;
        rows::yields(goes_on(), 9 * MS).await;
        rows::ping_pong(goes_on(), 6 * MS, Duration::ZERO).await;
        // In the future of `block_on` itself.
        let goes_on = goes_on();
        while goes_on() {
            compute(9 * MS);
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn a_current_thread_runtime_that_is_driven_now_and_then() {
    let runtime = current_thread();
    let (builder, seen) = Seen::builder();
    let builder = builder.runtime("cli", runtime.handle().clone());
    let watch = builder.start().unwrap();
    assert!(watch.coverage()[0].turns, "{}", watch.coverage()[0]);
    rows::driven_now_and_then(&runtime, &goes_on());
    seen.assert_nothing();
    // Positive control.
    runtime.block_on(async { compute(LONG) });
    let ended = seen.wait(|report| report.phase == Phase::Ended);
    assert_eq!(ended.certainty, Certainty::Certain, "{ended}");
    assert_eq!(ended.task, None, "not in a task");
}

#[test]
fn rows_on_a_machine_with_more_to_do_than_cpus() {
    silent(&workers(2), async || {
        let _hogs = Hogs::start(4);
        rows::yields(goes_on(), 3 * MS).await;
        rows::rows_with_pauses(goes_on()).await;
        rows::ping_pong(goes_on(), 3 * MS, MS).await;
    });
}

/// The stalls that were told of. They are numbered for the whole process, in which other tests run.
fn ids(seen: &Seen) -> HashSet<u64> {
    seen.all().iter().map(|report| report.id).collect()
}

/// What a stall of a hundred milliseconds looks like while it lasts, wherever it comes from.
fn is_found(seen: &Seen, fits: impl Fn(&StallReport) -> bool) -> StallReport {
    // The wait for its end would be another stall.
    tokio_stall::allow_blocking("a test waits for a report", || {
        let began = seen.wait(|report| report.phase == Phase::Began && fits(report));
        assert_eq!(began.certainty, Certainty::Certain, "{began}");
        seen.wait_for_end(began.id)
    })
}

#[test]
fn computing_and_sleeping_are_found_in_tasks_and_in_block_on() {
    for runtime in [workers(1), workers(2), current_thread()] {
        runtime.block_on(async {
            let (watch, seen) = Seen::watch();
            assert_counts_turns(&watch);
            tokio::spawn(async { compute(LONG) }).await.unwrap();
            let computed = is_found(&seen, |report| report.task.is_some());
            assert!(computed.time.cpu >= LONG / 2, "{computed}");
            tokio::spawn(async { std::thread::sleep(LONG) })
                .await
                .unwrap();
            let slept = is_found(&seen, |report| report.id > computed.id);
            assert!(slept.time.asleep >= LONG / 2, "{slept}");
            let ids = ids(&seen);
            assert_eq!(ids.len(), 2, "two stalls in a row are two: {ids:?}");
        });
    }
    // The future of `block_on` of a `current_thread` runtime runs on its worker.
    current_thread().block_on(async {
        let (_watch, seen) = Seen::watch();
        // Once round the loop, so that the thread is known.
        tokio::time::sleep(LONG).await;
        compute(LONG);
        tokio::task::yield_now().await;
        let ended = is_found(&seen, |_| true);
        assert_eq!(ended.task, None, "{ended}");
    });
}

#[test]
fn the_task_of_a_report_is_the_one_that_stalls() {
    workers(2).block_on(async {
        let (watch, seen) = Seen::watch();
        assert_counts_turns(&watch);
        for _ in 0..3 {
            let known = ids(&seen);
            let task = tokio::spawn(async {
                compute(LONG);
                tokio::task::id().to_string()
            });
            let id = task.await.unwrap();
            let ended =
                seen.wait(|report| report.phase == Phase::Ended && !known.contains(&report.id));
            assert_eq!(ended.task.map(|task| task.to_string()), Some(id), "{ended}");
        }
    });
}

#[test]
fn workers_that_are_busy_already_are_watched() {
    let runtime = workers(2);
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    for _ in 0..4 {
        let stop = stop.clone();
        runtime.spawn(async move {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                compute(MS / 20);
                tokio::task::yield_now().await;
            }
        });
    }
    runtime.block_on(async {
        tokio::time::sleep(LONG).await;
        let (watch, seen) = Seen::watch();
        assert_counts_turns(&watch);
        for length in [30, 60, 100] {
            let known = seen.all().len();
            tokio::spawn(async move { compute(length * MS) })
                .await
                .unwrap();
            seen.wait(|report| report.phase == Phase::Ended && report.duration >= length * MS / 2);
            assert!(seen.all().len() > known);
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(ids(&seen).len(), 3, "nothing but these: {:#?}", seen.all());
        let turns = &watch.status().runtimes[0].worker_turns;
        assert!(turns.iter().sum::<u64>() > 1_000, "{turns:?}");
    });
}

#[test]
fn a_runtime_whose_only_worker_is_held_has_a_frozen_driver() {
    workers(1).block_on(async {
        let (watch, seen) = Seen::watch();
        assert_counts_turns(&watch);
        // Until the worker has been seen to wait in the driver.
        tokio::time::sleep(3 * LONG).await;
        tokio::spawn(async { std::thread::sleep(LONG) })
            .await
            .unwrap();
        let ended = seen.wait(|report| report.phase == Phase::Ended);
        let frozen = ended.driver_frozen.expect("it has been seen");
        assert!(frozen >= LONG / 2 && frozen <= ended.duration, "{ended}");
        let status = watch.status();
        assert!(status.runtimes[0].driver_frozen >= LONG / 2, "{status:?}");
    });
}

#[test]
fn switched_off_there_are_only_marks() {
    workers(2).block_on(async {
        let (builder, seen) = Seen::builder();
        let watch = builder.turns(false).start().unwrap();
        let coverage = &watch.coverage()[0];
        assert_eq!(
            (coverage.turns, coverage.no_turns),
            (false, Some("switched off by `Builder::turns`"))
        );
        tokio::spawn(async { compute(LONG) }).await.unwrap();
        seen.assert_nothing();
        tokio::spawn(tokio_stall::FutureExt::watched(
            async { compute(LONG) },
            "marked",
        ))
        .await
        .unwrap();
        let ended = seen.wait(|report| report.phase == Phase::Ended);
        assert_eq!(ended.span.as_deref(), Some("marked"), "{ended}");
    });
}
