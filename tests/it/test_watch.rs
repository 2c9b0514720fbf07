//! `testing::watch`: a whole test under the detector's eyes.

use crate::support::failure;
use crate::support::load::compute;
use std::sync::mpsc;
use std::time::Duration;
use tokio_stall::testing::{self, Watch};
use tokio_stall::{Blocking, Cause, FutureExt as _};

/// Far over the threshold, also where the watchdog itself waits for a CPU.
const LONG: Duration = Duration::from_millis(300);

#[inline(never)]
fn block() {
    std::thread::sleep(LONG);
}

/// As a query of a synchronous database that computes.
async fn computes() {
    tokio::spawn(async { compute(LONG) }.watched("query"))
        .await
        .unwrap();
}

async fn spawned() {
    tokio::spawn(async { block() }.watched("reindex"))
        .await
        .unwrap();
}

async fn clean() {
    for _ in 0..20 {
        tokio::spawn(tokio::time::sleep(Duration::from_millis(1)))
            .await
            .unwrap();
    }
    tokio::task::spawn_blocking(block).await.unwrap();
    tokio::spawn(async { tokio_stall::allow_blocking("it is a test", block) })
        .await
        .unwrap();
}

#[tokio::test]
async fn a_clean_test_passes() {
    let stalls = testing::watch();
    clean().await;
    stalls.assert_none();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clean_test_passes_on_several_workers() {
    let stalls = testing::watch();
    clean().await;
    stalls.assert_none();
}

#[track_caller]
fn assert_tells_of_computing(stalls: Watch) {
    let text = failure(|| stalls.assert_none()).expect("it computes");
    assert!(text.starts_with("expected no stalls, saw 1\n"), "{text}");
    assert!(text.contains("in        query"), "{text}");
}

#[tokio::test]
async fn a_test_that_computes_fails() {
    let stalls = testing::watch();
    computes().await;
    assert_tells_of_computing(stalls);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_test_that_computes_fails_on_several_workers() {
    let stalls = testing::watch();
    computes().await;
    assert_tells_of_computing(stalls);
}

#[track_caller]
fn assert_tells_of_the_stall(stalls: Watch) {
    let text = failure(|| stalls.assert_none()).expect("it sleeps");
    assert!(
        text.starts_with("expected no stalls, saw 1\n\nstall #"),
        "{text}"
    );
    for part in [
        "where     it::test_watch::block (tests/it/test_watch.rs:",
        "in        reindex",
        "why       blocked/sleep: asleep in clock_nanosleep",
        "do        Sleep with `tokio::time::sleep(…).await`",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
}

#[tokio::test]
async fn a_stall_fails_and_says_all_of_it() {
    let stalls = testing::watch();
    spawned().await;
    assert_tells_of_the_stall(stalls);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stall_fails_on_several_workers() {
    let stalls = testing::watch();
    spawned().await;
    assert_tells_of_the_stall(stalls);
}

#[tokio::test]
async fn the_body_of_a_current_thread_test_is_seen() {
    let mut stalls = testing::watch();
    block();
    tokio::task::yield_now().await;
    assert_eq!(stalls.recorded().len(), 1);
}

#[tokio::test]
async fn two_stalls_are_more_than_one() {
    let mut stalls = testing::watch();
    spawned().await;
    spawned().await;
    assert_eq!(stalls.recorded().len(), 2);
    let text = failure(|| stalls.assert_at_most(1)).expect("two are more than one");
    assert!(
        text.starts_with("expected at most 1 stalls, saw 2\n\nstall #"),
        "{text}"
    );
}

#[tokio::test]
async fn an_expected_stall_is_taken_out() {
    let mut stalls = testing::watch();
    spawned().await;
    let cause = Cause::Blocked(Blocking::Sleep);
    let seen = stalls
        .expect()
        .in_span("reindex")
        .at_site("it::test_watch::block")
        .caused_by(cause)
        .seen();
    assert_eq!(seen.len(), 1);
    stalls.assert_none();
}

#[tokio::test]
async fn an_expected_stall_that_is_missing_fails() {
    let mut stalls = testing::watch();
    spawned().await;
    let text = failure(|| {
        stalls
            .expect()
            .in_span("other")
            .at_site("f")
            .caused_by(Cause::Cpu)
            .seen();
    });
    let text = text.expect("there is no such stall");
    let expected =
        "expected a stall in span \"other\" at site \"f\" caused by cpu, saw 1 others\n\nstall #";
    assert!(text.starts_with(expected), "{text}");
}

#[tokio::test]
async fn a_watch_dropped_without_a_look_fails() {
    let stalls = testing::watch();
    spawned().await;
    assert!(failure(|| drop(stalls)).is_some());
    let stalls = testing::watch();
    clean().await;
    assert_eq!(failure(|| drop(stalls)), None);
}

#[tokio::test]
async fn a_test_that_panics_already_is_left_alone() {
    let stalls = testing::watch();
    spawned().await;
    let text = failure(|| {
        let _stalls = stalls;
        std::panic::panic_any("the test's own".to_owned());
    });
    assert_eq!(text.as_deref(), Some("the test's own"));
}

#[test]
fn tests_in_parallel_do_not_see_each_other() {
    let (told, until_told) = mpsc::channel::<()>();
    let (done, until_done) = mpsc::channel::<()>();
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    };
    let other = std::thread::spawn(move || {
        runtime().block_on(async {
            let mut stalls = testing::watch();
            told.send(()).unwrap();
            tokio::spawn(async move { until_done.recv().unwrap() })
                .await
                .unwrap();
            assert_eq!(stalls.recorded().len(), 1);
        });
    });
    until_told.recv().unwrap();
    runtime().block_on(async {
        let stalls = testing::watch();
        tokio::time::sleep(LONG).await;
        stalls.assert_none();
    });
    done.send(()).unwrap();
    other.join().unwrap();
}

#[test]
fn a_watch_without_a_runtime_fails_with_the_reason() {
    let text = std::panic::catch_unwind(|| drop(testing::watch())).unwrap_err();
    let text = text.downcast_ref::<&str>().copied().expect("a text");
    assert!(text.contains("needs a runtime"), "{text}");
}

#[tokio::test]
async fn a_second_watch_fails_with_the_reason() {
    let mut first = testing::watch();
    let text = failure(|| drop(testing::watch())).expect("it is watched");
    assert!(
        text.starts_with("`testing::watch` could not start: "),
        "{text}"
    );
    // With `RUST_BACKTRACE` set, the panic itself computes for longer than the threshold.
    first.recorded();
}

/// A runtime that nobody drives: the planted stall is never polled, and the watch must not pass.
#[test]
fn a_watch_that_sees_nothing_fails() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let _entered = runtime.enter();
    let text = failure(|| drop(testing::watch())).expect("it is blind");
    assert!(text.starts_with("`testing::watch` is blind"), "{text}");
}
