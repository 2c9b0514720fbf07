//! Starting, stopping, and starting again leave nothing behind.

mod seen;

use seen::{FOREVER, Seen, open_files, thread_names};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::runtime::Builder;
use tokio_stall::{Guard, Phase};

/// A dropped guard leaves no thread. The kernel may list one for a moment after it has been joined, and a
/// thread of tokio's that one of ours has just started bears our name until it gives itself its own.
fn no_detector_threads() {
    wait_until("the detector's threads to be gone", || {
        detector_threads() == 0
    });
}

fn detector_threads() -> usize {
    thread_names()
        .iter()
        .filter(|name| name.starts_with("stall-"))
        .count()
}

/// One test: threads and files belong to the process.
#[test]
fn fifty_rounds_leave_neither_threads_nor_files_nor_tasks() {
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let round = |expect_stall: bool| {
        runtime.block_on(async {
            let (watch, seen) = Seen::watch();
            if expect_stall {
                seen.stall_until_told().await;
                seen.wait(|report| report.phase == Phase::Ended);
            }
            drop(watch);
        });
        no_detector_threads();
    };
    round(true);
    let (files, tasks) = (open_files(), runtime.metrics().num_alive_tasks());
    for number in 0..50 {
        round(number % 10 == 0);
    }
    // A pulse task ends at its next poll; the worker gets to that when it gets to it.
    wait_until("the pulse tasks to end", || {
        runtime.metrics().num_alive_tasks() <= tasks
    });
    assert!(
        open_files() <= files,
        "{} files were open, now {}",
        files,
        open_files()
    );

    // A guard dropped inside the callback, on the detector's own thread.
    let guard: Arc<Mutex<Option<Guard>>> = Arc::default();
    let mine = guard.clone();
    let (dropped, was_dropped) = std::sync::mpsc::channel();
    runtime.block_on(async {
        let watch = tokio_stall::Builder::new()
            .on_stall(move |_| {
                if let Some(watch) = mine.lock().unwrap().take() {
                    drop(watch);
                    dropped.send(()).unwrap();
                }
            })
            .start()
            .unwrap();
        *guard.lock().unwrap() = Some(watch);
        tokio::spawn(async { std::thread::sleep(Duration::from_millis(50)) })
            .await
            .unwrap();
        was_dropped.recv_timeout(FOREVER).expect("the drop returns");
    });
    no_detector_threads();
    round(true);

    // A runtime that is shut down under the watch is let go, with what it was doing; the guard's drop
    // finds nothing amiss.
    let short_lived = Builder::new_multi_thread()
        .worker_threads(2)
        .build()
        .unwrap();
    let watch = tokio_stall::Builder::new()
        .runtime("short", short_lived.handle().clone())
        .start()
        .unwrap();
    let (release, held) = std::sync::mpsc::channel::<()>();
    short_lived.spawn(async move { held.recv().ok() });
    wait_until("a stall going on", || !watch.stalled_now().is_empty());
    short_lived.shutdown_background();
    wait_until("the runtime to be let go", || {
        watch.status().runtimes[0].shut_down && watch.stalled_now().is_empty()
    });
    drop(release);
    drop(watch);
    no_detector_threads();
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + FOREVER;
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
