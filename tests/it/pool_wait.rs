//! An exhausted blocking pool is reported while it lasts, and scheduler lag is measured.

use crate::support::load::Hogs;
use crate::support::stage::Stage;
use crate::support::{FOREVER, Held, wait_until};
use std::sync::mpsc;
use std::time::Duration;
use tokio_stall::{Phase, PoolWaitReport};

/// Beyond the time that a busy machine takes to start a thread. The pool stays exhausted until the
/// report.
const LIMIT: Duration = Duration::from_millis(500);

#[inline(never)]
fn holds_the_pool(held: &Held) {
    held.wait();
    // So that the call above is no tail call.
    std::hint::black_box(held);
}

/// Whether the report has the stack of a closure of these tests.
fn holds_known(report: &PoolWaitReport) -> bool {
    let frames = report.stacks.iter().flat_map(|stack| &stack.frames);
    let mut functions = frames.filter_map(|frame| frame.function.as_deref());
    functions.any(|function| function.contains("holds_the_pool"))
}

#[test]
fn a_closure_that_waits_for_the_blocking_pool_is_reported() {
    let (told, reports) = mpsc::channel();
    let stage = Stage::multi_thread(1)
        .named("api")
        .runtime(|builder| builder.max_blocking_threads(2))
        .settings(|builder| {
            let builder = builder.pool_threshold(LIMIT);
            builder.on_pool_wait(move |report| told.send(report.clone()).unwrap())
        })
        .start();
    let watch = &stage.watch;
    // A pool with room is not reported: the probe has passed through it.
    wait_until("a probe that comes back", || {
        watch.status().runtimes[0].blocking_queue_wait.is_some()
    });
    assert!(reports.try_recv().is_err());

    // Positive control: a pool without room is.
    let (release, held) = Held::new();
    for _ in 0..2 {
        let held = held.clone();
        stage.runtime.spawn_blocking(move || holds_the_pool(&held));
    }
    let began = reports.recv_timeout(FOREVER).expect("while it lasts");
    assert_eq!((began.phase, began.runtime.as_str()), (Phase::Began, "api"));
    assert!(began.waited >= LIMIT);
    #[cfg(all(
        target_os = "linux",
        any(target_arch = "x86_64", target_arch = "aarch64")
    ))]
    wait_until("the stack of a closure that holds the pool", || {
        let kept = watch.recent_pool_waits().pop().unwrap();
        holds_known(&kept) && kept.to_string().contains("; held in ")
    });
    drop(release);
    let mut later = reports.iter();
    let ended = later.find(|report| report.phase == Phase::Ended).unwrap();
    assert_eq!(ended.id, began.id);
    assert!(ended.waited >= began.waited);
    assert_eq!(watch.recent_pool_waits(), [ended]);

    // No worker was held by any of this, and pulses came through.
    assert!(watch.recent().is_empty());
    assert!(watch.status().runtimes[0].scheduler_lag.is_some());
}

/// With the default threshold, which the wait for a CPU exceeds here now and then.
#[test]
fn an_idle_pool_on_a_busy_machine_is_not_exhausted() {
    let (told, reports) = mpsc::channel();
    let stage = Stage::multi_thread(2)
        .runtime(|builder| builder.max_blocking_threads(2))
        .settings(|builder| builder.on_pool_wait(move |report| told.send(report.clone()).unwrap()))
        .start();
    // A runtime with work sends probes more often.
    stage.runtime.spawn(async {
        loop {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let cpus = std::thread::available_parallelism().map_or(2, usize::from);
    let hogs = Hogs::start(cpus * 8);
    std::thread::sleep(Duration::from_secs(5));
    let alarms: Vec<_> = reports.try_iter().collect();
    assert!(alarms.is_empty(), "false alarm: {alarms:#?}");

    // Positive control: beside the same threads, an exhausted pool is reported.
    let (release, held) = Held::new();
    for _ in 0..2 {
        let held = held.clone();
        stage.runtime.spawn_blocking(move || holds_the_pool(&held));
    }
    let began = reports.recv_timeout(FOREVER).expect("while it lasts");
    assert_eq!(began.phase, Phase::Began);
    drop((release, hogs));
    let ended = reports.iter().find(|report| report.phase == Phase::Ended);
    assert_eq!(ended.unwrap().id, began.id);
}
