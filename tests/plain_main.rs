//! A plain program with no layer and no wrapper: the blocked worker and its duration are reported.

mod seen;

use seen::{FOREVER, Seen, compute, missing_names};
use std::time::{Duration, Instant};
use tokio_stall::{Certainty, Guard, Missing, Phase};

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn plain(program: impl AsyncFnOnce()) {
    program().await;
}

#[test]
fn a_sleeping_worker_is_reported_while_it_sleeps_and_for_certain() {
    plain(async || {
        let (watch, seen) = Seen::watch();
        all_threads_known(&watch).await;
        let told = seen.clone();
        let stalled = tokio::spawn(async move { told.stall_until_told().await });
        let began = seen.clone();
        let began =
            tokio::task::spawn_blocking(move || began.wait(|report| report.phase == Phase::Began));
        let began = began.await.unwrap();
        assert_eq!(began.certainty, Certainty::Certain);
        assert_eq!(missing_names(&began), [Missing::Unmarked]);
        assert!(began.worker < 2 && !began.duration.is_zero());
        assert_eq!(stalled.await.unwrap(), began);
        let ended = seen.wait_for_end(began.id);
        // Neither start nor end is marked, so both durations are estimates.
        let margin = began.duration_error + ended.duration_error;
        assert!(
            ended.duration + margin >= began.duration,
            "{began}\n{ended}"
        );
        assert_eq!(
            (ended.worker, &ended.runtime),
            (began.worker, &watch.coverage()[0].runtime)
        );
        assert_eq!(
            watch.recent().last().map(|stall| stall.phase),
            Some(Phase::Ended)
        );
        assert!(watch.stalled_now().is_empty());
    });
}

/// Proof of sleep needs the worker's thread; on a busy machine it takes a moment until all are known.
async fn all_threads_known(watch: &Guard) {
    let deadline = Instant::now() + FOREVER;
    while watch.coverage()[0].known_threads < 2 {
        assert!(Instant::now() < deadline, "{:?}", watch.coverage());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[test]
fn a_computing_worker_is_reported_while_it_computes_and_for_certain() {
    plain(async || {
        let (watch, seen) = Seen::watch();
        all_threads_known(&watch).await;
        tokio::spawn(async { compute(Duration::from_millis(300)) })
            .await
            .unwrap();
        let first = seen.wait(|report| report.phase == Phase::Began);
        assert_eq!(first.certainty, Certainty::Certain, "{first}");
        assert!(first.task.is_some(), "{first}");
        assert!(first.duration < Duration::from_millis(150), "{first}");
    });
}

#[test]
fn a_stall_of_a_current_thread_runtime_is_reported_while_it_lasts() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let (_watch, seen) = Seen::watch();
        tokio::task::yield_now().await;
        std::thread::sleep(Duration::from_millis(200)); // in the root future, which no hook sees
        tokio::time::sleep(Duration::from_millis(1)).await;
        let ended = seen.wait(|report| report.phase == Phase::Ended);
        assert!(ended.duration >= Duration::from_millis(150), "{ended}");
        let first = &seen.all()[0];
        assert_eq!(
            (first.phase, first.certainty),
            (Phase::Began, Certainty::Certain)
        );
    });
}
