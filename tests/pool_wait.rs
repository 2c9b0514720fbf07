//! An exhausted blocking pool is reported while it lasts, and scheduler lag is measured.

mod seen;

use seen::FOREVER;
use std::sync::mpsc;
use std::time::Duration;
use tokio::runtime::Builder;
use tokio_stall::Phase;

/// Beyond what a busy machine takes to start a thread; the pool stays exhausted until we are told.
const LIMIT: Duration = Duration::from_millis(500);

#[test]
fn a_closure_that_waits_for_the_blocking_pool_is_reported() {
    let runtime = Builder::new_multi_thread()
        .worker_threads(1)
        .max_blocking_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let (told, reports) = mpsc::channel();
    let watch = tokio_stall::Builder::new()
        .runtime("api", runtime.handle().clone())
        .pool_threshold(LIMIT)
        .on_pool_wait(move |report| told.send(report.clone()).unwrap())
        .start()
        .unwrap();
    // Positive control first: a pool with room is not reported. The probe has passed through it.
    let deadline = std::time::Instant::now() + FOREVER;
    while watch.status().runtimes[0].blocking_queue_wait.is_none() {
        assert!(
            std::time::Instant::now() < deadline,
            "no probe has come back"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(reports.try_recv().is_err());

    let (release, held) = mpsc::channel::<()>();
    let held = std::sync::Arc::new(std::sync::Mutex::new(held));
    for _ in 0..2 {
        let held = held.clone();
        runtime.spawn_blocking(move || held.lock().unwrap().recv().ok());
    }
    let began = reports.recv_timeout(FOREVER).expect("while it lasts");
    assert_eq!((began.phase, began.runtime.as_str()), (Phase::Began, "api"));
    assert!(began.waited >= LIMIT);
    drop(release);
    let ended = reports
        .iter()
        .find(|report| report.phase == Phase::Ended)
        .unwrap();
    assert_eq!(ended.id, began.id);
    assert!(ended.waited >= began.waited);
    assert_eq!(watch.recent_pool_waits(), [ended]);

    // No worker was held by any of this, and pulses came through.
    assert!(watch.recent().is_empty());
    assert!(watch.status().runtimes[0].scheduler_lag.is_some());
}
