//! Several runtimes at once, by name: multi-thread and `current_thread`, one guard or two.

mod seen;

use seen::Seen;
use std::time::Duration;
use tokio::runtime::Builder;
use tokio_stall::{FutureExt as _, Phase, StallReport};

const LONG: Duration = Duration::from_millis(80);

fn ended_in<'a>(runtime: &'a str) -> impl Fn(&StallReport) -> bool + 'a {
    move |report| report.phase == Phase::Ended && report.runtime == runtime
}

#[test]
fn a_stall_is_reported_under_the_name_of_its_runtime_and_to_its_guard() {
    let api = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let jobs = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let (to_ui, for_ui) = std::sync::mpsc::channel();
    let (done, until_done) = tokio::sync::oneshot::channel::<()>();
    let ui = std::thread::spawn(move || {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        to_ui.send(runtime.handle().clone()).unwrap();
        runtime.block_on(until_done).ok();
    });
    let ui_handle = for_ui.recv().unwrap();

    let (builder, seen) = Seen::builder();
    let _both = builder
        .runtime("api", api.handle().clone())
        .runtime("ui", ui_handle.clone())
        .start()
        .unwrap();
    let (builder, seen_by_jobs) = Seen::builder();
    let jobs_watch = builder
        .runtime("jobs", jobs.handle().clone())
        .threshold(Duration::from_millis(30))
        .start()
        .unwrap();

    let block = || async { std::thread::sleep(LONG) };
    api.spawn(block().watched("in_api"));
    ui_handle.spawn(block().watched("in_ui"));
    jobs.spawn(block().watched("in_jobs"));

    for (seen, runtime) in [(&seen, "api"), (&seen, "ui"), (&seen_by_jobs, "jobs")] {
        let report = seen.wait(ended_in(runtime));
        assert_eq!(report.span, Some(format!("in_{runtime}")));
    }
    assert!(
        seen.all().iter().all(|report| report.runtime != "jobs"),
        "each guard hears of its own"
    );
    assert!(
        seen_by_jobs
            .all()
            .iter()
            .all(|report| report.runtime == "jobs")
    );

    // Each runtime has its own threshold.
    jobs.block_on(async {
        tokio::spawn(async { std::thread::sleep(Duration::from_millis(2)) }.watched("short"))
            .await
            .unwrap();
        tokio::spawn(block().watched("long")).await.unwrap();
    });
    let long = seen_by_jobs
        .wait(|report| report.phase == Phase::Ended && report.span.as_deref() == Some("long"));
    assert!(long.duration >= LONG);
    assert!(
        seen_by_jobs
            .all()
            .iter()
            .all(|report| report.span.as_deref() != Some("short"))
    );

    // One guard goes, the other stays.
    drop(jobs_watch);
    api.spawn(block().watched("again"));
    seen.wait(|report| report.phase == Phase::Ended && report.span.as_deref() == Some("again"));
    done.send(()).unwrap();
    ui.join().unwrap();
}
