//! A plain program with no layer and no wrapper: the blocked worker and its duration are reported.

mod seen;

use seen::{Seen, compute};
use std::time::{Duration, Instant};
use tokio_stall::{Certainty, Missing, Phase};

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn plain(program: impl AsyncFnOnce()) {
    program().await;
}

#[test]
fn a_sleeping_worker_is_reported_while_it_sleeps_and_for_certain() {
    plain(async || {
        let (watch, seen) = Seen::watch();
        let (send, receive) = std::sync::mpsc::channel::<()>();
        let started = Instant::now();
        let blocked = tokio::spawn(async move {
            receive.recv().ok(); // what std's channel does to a worker
        });
        // The worker sleeps until we have been told, so "while it lasts" needs no clock.
        let told = seen.clone();
        let began =
            tokio::task::spawn_blocking(move || told.wait(|report| report.phase == Phase::Began))
                .await
                .unwrap();
        assert_eq!(began.certainty, Certainty::Certain);
        assert_eq!(
            (began.runtime.as_str(), began.missing.as_slice()),
            ("main", &[Missing::Unmarked][..])
        );
        assert!(began.worker < 2);
        let now = watch.stalled_now();
        assert_eq!(
            now.iter().map(|stall| stall.id).collect::<Vec<_>>(),
            [began.id]
        );
        drop(send);
        blocked.await.unwrap();
        let outer = started.elapsed();
        let ended = seen.wait_for_end(began.id);
        assert!(ended.duration >= began.duration && ended.duration <= outer + ended.duration_error);
        assert_eq!(ended.worker, began.worker);
        assert_eq!(
            watch.recent().last().map(|stall| stall.phase),
            Some(Phase::Ended)
        );
    });
}

#[test]
fn a_computing_worker_is_likely_first_and_certain_when_it_has_gone_on_too_long_for_short_polls() {
    plain(async || {
        let threshold = Duration::from_millis(1);
        let (builder, seen) = Seen::builder();
        let _watch = builder.threshold(threshold).start().unwrap();
        // 61 turns of four polls each must not be able to explain it, and the host takes its share.
        tokio::spawn(async move { compute(threshold * 61 * 4 * 2) })
            .await
            .unwrap();
        let certain = seen.wait(|report| {
            report.certainty == Certainty::Certain && report.duration > threshold * 61
        });
        let all = seen.all();
        let first = all.iter().find(|report| report.id == certain.id).unwrap();
        assert_eq!(
            (first.certainty, first.phase),
            (Certainty::Likely, Phase::Began)
        );
        assert!(first.duration < certain.duration);
    });
}

#[test]
fn a_stall_of_a_current_thread_runtime_is_reported_when_it_is_over() {
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
    });
}
