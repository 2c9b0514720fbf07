//! Counters of tokio do what the detector relies on and tokio does not promise. If one of these
//! fails after an update of tokio, the message says which assumption of `watchdog/workers.rs` no
//! longer holds.
//!
//! A program of its own: no detector runs in it, so that a failure is tokio's.

mod support;

use std::sync::mpsc;
use std::time::{Duration, Instant};
use tokio::runtime::{Builder, Handle, Runtime, RuntimeMetrics};

fn one_worker() -> Runtime {
    Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap()
}

fn counters(metrics: &RuntimeMetrics) -> (u64, Duration) {
    (
        metrics.worker_park_unpark_count(0),
        metrics.worker_total_busy_duration(0),
    )
}

#[track_caller]
fn wait_until(what: &str, holds: impl FnMut() -> bool) {
    let bound = Duration::from_secs(60);
    support::wait_within(bound, &format!("tokio as it was: {what}"), holds);
}

#[test]
fn counts_are_odd_if_parked_and_even_if_active() {
    let runtime = one_worker();
    let metrics = runtime.metrics();
    wait_until(
        "an idle worker's park/unpark count is no longer odd",
        || metrics.worker_park_unpark_count(0) % 2 == 1,
    );
    let (release, held) = mpsc::channel::<()>();
    runtime.spawn(async move { held.recv().ok() });
    wait_until(
        "a worker inside a poll no longer shows an even count",
        || metrics.worker_park_unpark_count(0) % 2 == 0,
    );
    drop(release);
}

#[test]
fn counters_stand_still_during_a_poll_and_count_it_afterwards() {
    let runtime = one_worker();
    let metrics = runtime.metrics();
    let (entered, has_entered) = mpsc::channel();
    let (release, held) = mpsc::channel::<()>();
    runtime.spawn(async move {
        entered.send(Instant::now()).unwrap();
        held.recv().ok();
    });
    let start = has_entered.recv().unwrap();
    let during = counters(&metrics);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(
        counters(&metrics),
        during,
        "tokio changed: counters move during a poll"
    );
    let at_least = start.elapsed();
    drop(release);
    wait_until(
        "the busy duration no longer includes a long poll once it is over",
        || metrics.worker_total_busy_duration(0) >= during.1 + at_least,
    );
}

#[test]
fn a_worker_that_never_parks_publishes_within_61_turns() {
    // Counting happens on the worker itself, so the machine's pace plays no part.
    let runtime = one_worker();
    let most = runtime.block_on(async {
        tokio::spawn(async {
            let metrics = Handle::current().metrics();
            let (mut last, mut since, mut most) = (counters(&metrics), 0u32, 0u32);
            for _ in 0..2_000 {
                tokio::task::yield_now().await;
                since += 1;
                let now = counters(&metrics);
                if now != last {
                    (last, most, since) = (now, most.max(since), 0);
                }
            }
            most.max(since)
        })
        .await
        .unwrap()
    });
    assert!(
        (1..=61).contains(&most),
        "tokio changed: {most} polls between two publications; \
         `Builder::DEFAULT_EVENT_INTERVAL` is 61"
    );
}

#[test]
fn block_in_place_lets_the_counters_go_on() {
    let runtime = one_worker();
    let metrics = runtime.metrics();
    let (entered, has_entered) = mpsc::channel();
    let (release, held) = mpsc::channel::<()>();
    let own_metrics = metrics.clone();
    runtime.spawn(async move {
        entered.send(counters(&own_metrics)).unwrap();
        tokio::task::block_in_place(|| held.recv().ok());
    });
    let during = has_entered.recv().unwrap();
    wait_until(
        "a worker no longer goes on elsewhere during block_in_place",
        || counters(&metrics) != during,
    );
    drop(release);
}

#[test]
fn worker_index_tells_workers_from_other_threads() {
    let runtime = one_worker();
    let index = tokio::runtime::worker_index;
    runtime.block_on(async move {
        assert_eq!(
            index(),
            None,
            "tokio changed: the thread in block_on has an index"
        );
        assert_eq!(tokio::spawn(async move { index() }).await.unwrap(), Some(0));
        assert_eq!(tokio::task::spawn_blocking(index).await.unwrap(), None);
    });
    let current_thread = Builder::new_current_thread().build().unwrap();
    assert_eq!(current_thread.block_on(async move { index() }), Some(0));
    assert_eq!(index(), None, "tokio changed: an index outside of block_on");
}

#[test]
fn a_task_of_a_runtime_that_was_shut_down_is_over() {
    for builder in [Builder::new_multi_thread(), Builder::new_current_thread()].iter_mut() {
        let runtime = builder.build().unwrap();
        let handle = runtime.handle().clone();
        runtime.shutdown_background();
        // The workers of a multi-thread runtime take a moment to notice.
        wait_until("a runtime that was shut down takes tasks", || {
            handle.spawn(std::future::pending::<()>()).is_finished()
        });
    }
}
