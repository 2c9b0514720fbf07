//! A plain program with no layer and no wrapper: a report has the blocked worker and its duration.

use crate::support::load::compute;
use crate::support::seen::Seen;
use crate::support::stage::{Stage, sleeps};
use crate::support::{FOREVER, missing_names, threads_known};
use std::time::{Duration, Instant};
use tokio_stall::{Certainty, Missing, Phase};

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn plain(program: impl AsyncFnOnce()) {
    program().await;
}

#[test]
fn a_sleeping_worker_is_reported_for_certain_while_it_sleeps() {
    plain(async || {
        let (watch, seen) = Seen::watch();
        threads_known(&watch).await;
        let told = seen.clone();
        let stalled = tokio::spawn(async move { told.stall_until_told().await });
        let began = seen.clone();
        let began = move || began.wait(|report| report.phase == Phase::Began);
        let began = tokio::task::spawn_blocking(began).await.unwrap();
        assert_eq!(began.certainty, Certainty::Certain);
        assert_eq!(missing_names(&began), [Missing::Unmarked]);
        assert!(began.worker < 2 && !began.duration.is_zero());
        assert_eq!(stalled.await.unwrap(), began);
    });
}

#[test]
fn a_sleeping_worker_is_reported_at_its_end() {
    plain(async || {
        let (watch, seen) = Seen::watch();
        threads_known(&watch).await;
        let told = seen.clone();
        let stalled = tokio::spawn(async move { told.stall_until_told().await });
        let began = stalled.await.unwrap();
        let ended = seen.wait_for_end(began.id);
        // Neither start nor end is marked, so both durations are estimates.
        let margin = began.duration_error + ended.duration_error;
        assert!(
            ended.duration + margin >= began.duration,
            "{began}\n{ended}"
        );
        assert_eq!(ended.worker, began.worker);
        assert_eq!(ended.runtime, watch.coverage()[0].runtime);
        let last = watch.recent().last().map(|stall| stall.phase);
        assert_eq!(last, Some(Phase::Ended));
        assert!(watch.stalled_now().is_empty());
    });
}

#[test]
fn a_computing_worker_is_reported_for_certain_while_it_computes() {
    plain(async || {
        let (watch, seen) = Seen::watch();
        threads_known(&watch).await;
        let told = seen.clone();
        // It cannot end before it is reported.
        let computing = async move {
            let until = Instant::now() + FOREVER;
            while told.all().is_empty() {
                assert!(Instant::now() < until, "no report while it lasts");
                compute(Duration::from_millis(1));
            }
        };
        tokio::spawn(computing).await.unwrap();
        let first = seen.wait(|report| report.phase == Phase::Began);
        assert_eq!(first.certainty, Certainty::Certain, "{first}");
        assert!(first.task.is_some(), "{first}");
    });
}

#[test]
fn a_stall_of_a_current_thread_runtime_is_reported_while_it_lasts() {
    let stage = Stage::current_thread().start();
    stage.block_on(async {
        tokio::task::yield_now().await;
        // In the root future, which no hook sees.
        sleeps(Duration::from_secs(1)).await;
        tokio::time::sleep(Duration::from_millis(1)).await;
    });
    let ended = stage.seen.wait_for_an_end();
    assert!(ended.duration >= Duration::from_millis(500), "{ended}");
    let first = &stage.seen.all()[0];
    assert_eq!(first.phase, Phase::Began);
    assert_eq!(first.certainty, Certainty::Certain);
}
