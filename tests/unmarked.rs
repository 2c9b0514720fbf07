//! Polls without any mark: a long one is certain while it lasts, and rows of short ones are not reported at
//! all, not even as likely. Nothing here has a layer, a `watched` future or a hook.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

mod seen;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use seen::{Hogs, Seen, compute, workers};
use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;
use tokio::runtime::{self, Runtime};
use tokio::sync::mpsc;
use tokio_stall::{Certainty, Guard, Phase, StallReport};

/// Far over the threshold of 10 ms.
const LONG: Duration = Duration::from_millis(100);
/// For so long a row goes on.
const ROW: Duration = Duration::from_millis(1_500);

const MS: Duration = Duration::from_millis(1);

fn current_thread() -> Runtime {
    let mut builder = runtime::Builder::new_current_thread();
    builder.enable_all().build().unwrap()
}

#[track_caller]
fn assert_counts_turns(watch: &Guard) {
    for coverage in watch.coverage() {
        assert!(coverage.turns, "{coverage}");
    }
}

/// Runs `quiet`, of which nothing may be reported, and then a real stall in the same place, which must be.
fn silent(runtime: &Runtime, quiet: impl AsyncFnOnce() + Send + 'static) {
    runtime.block_on(async {
        let (watch, seen) = Seen::watch();
        assert_counts_turns(&watch);
        quiet().await;
        seen.assert_nothing();
        tokio::spawn(async { std::thread::sleep(LONG) })
            .await
            .unwrap();
        let ended = seen.wait(|report| report.phase == Phase::Ended);
        assert_eq!(ended.certainty, Certainty::Certain, "{ended}");
        assert!(ended.duration >= LONG * 9 / 10, "{ended}");
    });
}

/// Until the row is over.
fn rows() -> impl Fn() -> bool {
    let until = std::time::Instant::now() + ROW;
    move || std::time::Instant::now() < until
}

/// Many tasks, each of one poll of so long, on both workers.
async fn many_tasks(length: Duration) {
    let goes_on = rows();
    while goes_on() {
        let tasks: Vec<_> = (0..122)
            .map(|_| tokio::spawn(async move { compute(length) }))
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
    }
}

/// One task that computes and yields, again and again.
async fn yields(length: Duration) {
    let goes_on = rows();
    tokio::spawn(async move {
        while goes_on() {
            compute(length);
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
}

/// One task that computes and wakes itself, again and again.
async fn wakes_itself(length: Duration) {
    let goes_on = rows();
    tokio::spawn(poll_fn(move |cx| {
        compute(length);
        if !goes_on() {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }))
    .await
    .unwrap();
}

/// Two tasks that wake each other, so that tokio polls them from the "next" slot, four in a turn.
async fn ping_pong(ping: Duration, pong: Duration) {
    let goes_on = rows();
    let (to_pong, mut from_ping) = mpsc::unbounded_channel();
    let (to_ping, mut from_pong) = mpsc::unbounded_channel();
    let other = tokio::spawn(async move {
        while from_ping.recv().await.is_some() {
            compute(pong);
            to_ping.send(()).ok();
        }
    });
    let one = tokio::spawn(async move {
        while goes_on() {
            compute(ping);
            to_pong.send(()).unwrap();
            from_pong.recv().await.unwrap();
        }
    });
    one.await.unwrap();
    other.await.unwrap();
}

#[test]
fn many_tasks_of_a_millisecond() {
    silent(&workers(2), async || many_tasks(MS).await);
}

#[test]
fn many_tasks_of_five_milliseconds_on_all_workers() {
    silent(&workers(2), async || many_tasks(5 * MS).await);
}

#[test]
fn a_task_that_yields_every_millisecond() {
    silent(&workers(2), async || yields(MS).await);
}

#[test]
fn a_task_that_yields_every_nine_milliseconds() {
    silent(&workers(2), async || yields(9 * MS).await);
}

#[test]
fn a_task_that_wakes_itself() {
    silent(&workers(2), async || wakes_itself(3 * MS).await);
}

#[test]
fn two_tasks_that_wake_each_other() {
    silent(&workers(2), async || {
        ping_pong(MS, MS).await;
        ping_pong(3 * MS, 3 * MS).await;
        // The short one between two long ones is seen by nobody, and the turn takes more than the threshold.
        ping_pong(6 * MS, Duration::ZERO).await;
    });
}

#[test]
fn futures_polled_together_within_the_threshold() {
    silent(&workers(2), async || {
        let goes_on = rows();
        tokio::spawn(async move {
            while goes_on() {
                let mut together: FuturesUnordered<_> =
                    (0..4).map(|_| async { compute(MS) }).collect();
                while together.next().await.is_some() {
                    tokio::task::yield_now().await;
                }
                let (send, mut receive) = mpsc::channel(4);
                send.send(()).await.unwrap();
                tokio::select! {
                    _ = receive.recv() => compute(MS),
                    () = tokio::task::yield_now() => compute(MS),
                }
            }
        })
        .await
        .unwrap();
    });
}

#[test]
fn block_in_place_alone_and_followed_by_short_polls() {
    silent(&workers(2), async || {
        for _ in 0..10 {
            let asleep = async { tokio::task::block_in_place(|| std::thread::sleep(LONG / 2)) };
            tokio::spawn(asleep).await.unwrap();
        }
        let goes_on = rows();
        let in_place = tokio::spawn(async move {
            while goes_on() {
                tokio::task::block_in_place(|| std::thread::sleep(LONG / 4));
                compute(MS);
                tokio::task::yield_now().await;
            }
        });
        tokio::join!(many_tasks(MS), yields(3 * MS), async {
            in_place.await.unwrap()
        });
    });
}

#[test]
fn a_million_short_turns() {
    silent(&workers(2), async || {
        let tasks: Vec<_> = (0..4)
            .map(|_| {
                tokio::spawn(async {
                    for _ in 0..250_000 {
                        tokio::task::yield_now().await;
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
    });
}

#[test]
fn rows_on_a_current_thread_runtime() {
    silent(&current_thread(), async || {
        many_tasks(MS).await;
        yields(9 * MS).await;
        ping_pong(6 * MS, Duration::ZERO).await;
        // In the future of `block_on` itself.
        let goes_on = rows();
        while goes_on() {
            compute(9 * MS);
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn calls_of_block_on_one_after_another() {
    let runtime = current_thread();
    let (builder, seen) = Seen::builder();
    let builder = builder.runtime("cli", runtime.handle().clone());
    let watch = builder.start().unwrap();
    assert_counts_turns(&watch);
    let goes_on = rows();
    runtime.block_on(async { tokio::spawn(async {}).await.unwrap() });
    while goes_on() {
        // Neither the turn nor a counter moves between these.
        runtime.block_on(async { compute(6 * MS) });
    }
    // Nobody drives the runtime.
    compute(LONG);
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
        yields(3 * MS).await;
        many_tasks(2 * MS).await;
        ping_pong(3 * MS, MS).await;
    });
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
            let ids = seen.all().iter().map(|report| report.id).max();
            assert_eq!(
                ids,
                Some(2),
                "two stalls in a row are two: {:#?}",
                seen.all()
            );
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
        let (_watch, seen) = Seen::watch();
        for nth in 1..=3 {
            let task = tokio::spawn(async {
                compute(LONG);
                tokio::task::id().to_string()
            });
            let id = task.await.unwrap();
            let ended = seen.wait_for_end(nth);
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
        let ids: std::collections::HashSet<u64> =
            seen.all().iter().map(|report| report.id).collect();
        assert_eq!(ids.len(), 3, "nothing but these: {:#?}", seen.all());
        let turns = &watch.status().runtimes[0].worker_turns;
        assert!(turns.iter().sum::<u64>() > 1_000, "{turns:?}");
    });
}

#[test]
fn a_runtime_whose_only_worker_is_held_has_a_frozen_driver() {
    workers(1).block_on(async {
        let (watch, seen) = Seen::watch();
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
