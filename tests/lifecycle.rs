//! Starting, stopping, and starting again leave nothing behind.
//!
//! A program of its own: threads and files belong to the process.
#![cfg(target_os = "linux")]

mod support;

use std::sync::{Arc, Mutex, mpsc};
use support::process::{detector_threads, open_files};
use support::stage::Stage;
use support::{FOREVER, Held, wait_until};
use tokio::runtime::{Builder, Runtime};
use tokio_stall::{FutureExt as _, Guard};

/// A dropped guard leaves no thread. The kernel may list one for a moment after it was joined.
fn no_detector_threads() {
    wait_until("the detector's threads to be gone", || {
        detector_threads().is_empty()
    });
}

fn two_workers() -> Runtime {
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(2).enable_all().build().unwrap()
}

/// A watch that starts and ends, with a stall in between or without.
fn round(runtime: &Runtime, with_stall: bool) {
    runtime.block_on(async {
        let (watch, seen) = support::seen::Seen::watch();
        if with_stall {
            // Nothing marks the stall: the thread of each worker must be known.
            support::threads_known(&watch).await;
            seen.stall_until_told().await;
            seen.wait_for_an_end();
        }
        drop(watch);
    });
    no_detector_threads();
}

#[test]
fn fifty_rounds_leave_neither_threads_nor_files_nor_tasks() {
    let runtime = two_workers();
    round(&runtime, true);
    let (files, tasks) = (open_files(), runtime.metrics().num_alive_tasks());
    for number in 0..50 {
        round(&runtime, number % 10 == 0);
    }
    // A pulse task ends at its next poll; the worker gets to that when it gets to it.
    wait_until("the pulse tasks to end", || {
        runtime.metrics().num_alive_tasks() <= tasks
    });
    let now = open_files();
    assert!(now <= files, "{files} files were open, now {now}");
}

#[test]
fn a_guard_may_be_dropped_inside_its_callback() {
    let guard: Arc<Mutex<Option<Guard>>> = Arc::default();
    let mine = guard.clone();
    let (dropped, was_dropped) = mpsc::channel();
    let runtime = two_workers();
    let builder = tokio_stall::Builder::new().runtime("drops", runtime.handle().clone());
    let builder = builder.on_stall(move |_| {
        // The detector's own thread.
        if let Some(watch) = mine.lock().unwrap().take() {
            drop(watch);
            dropped.send(()).unwrap();
        }
    });
    *guard.lock().unwrap() = Some(builder.start().unwrap());
    let (release, held) = Held::new();
    let stalled = runtime.spawn(async move { held.wait() }.watched("held"));
    was_dropped.recv_timeout(FOREVER).expect("the drop returns");
    drop(release);
    runtime.block_on(stalled).unwrap();
    no_detector_threads();
    round(&runtime, true);
}

/// The watch lets the runtime go, with the stall of it, and the drop of the guard finds nothing
/// amiss.
#[test]
fn a_runtime_may_be_shut_down_under_its_watch() {
    let Stage { runtime, watch, .. } = Stage::multi_thread(2).start();
    let (release, held) = Held::new();
    runtime.spawn(async move { held.wait() });
    wait_until("a stall going on", || !watch.stalled_now().is_empty());
    runtime.shutdown_background();
    wait_until("the runtime to be let go", || {
        watch.status().runtimes[0].shut_down && watch.stalled_now().is_empty()
    });
    drop(release);
    drop(watch);
    no_detector_threads();
}
