//! Starting, stopping, and starting again leave nothing behind.
//!
//! A program of its own: threads and files belong to the process.
#![cfg(target_os = "linux")]

mod support;

use std::sync::{Arc, Mutex, mpsc};
use support::child::alone;
use support::process::{detector_threads, open_files};
use support::stage::Stage;
use support::{FOREVER, Held, wait_until};
use tokio::runtime::{Builder, Runtime};
use tokio_stall::{FutureExt as _, Guard};
use tracing::subscriber::Interest;
use tracing::{Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};

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

/// The watch lets the runtime go, and with it the stall, of which there is a last report. The drop of
/// the guard finds nothing amiss.
#[test]
fn a_runtime_may_be_shut_down_under_its_watch() {
    let Stage {
        runtime,
        watch,
        seen,
    } = Stage::multi_thread(2).start();
    let (release, held) = Held::new();
    runtime.spawn(async move { held.wait() });
    wait_until("a stall going on", || !watch.stalled_now().is_empty());
    let told = seen.wait(|_| true);
    runtime.shutdown_background();
    wait_until("the runtime to be let go", || {
        watch.status().runtimes[0].shut_down && watch.stalled_now().is_empty()
    });
    seen.wait_for_end(told.id);
    drop(release);
    drop(watch);
    no_detector_threads();
}

/// A filter that waits for a lock of the program, for events of the detector.
struct Waits(Arc<Mutex<()>>);

impl<S: Subscriber> Layer<S> for Waits {
    fn register_callsite(&self, _: &'static Metadata<'static>) -> Interest {
        Interest::sometimes()
    }

    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        if metadata.target() == "tokio_stall" {
            drop(self.0.lock());
        }
        true
    }
}

/// A start asks the subscriber whether it takes reports. It does not wait for the answer for ever,
/// and no other start or end waits with it.
#[test]
fn a_filter_that_waits_for_the_caller_holds_no_start_up() {
    alone(|| {
        let lock: Arc<Mutex<()>> = Arc::default();
        let subscriber = tracing_subscriber::registry().with(Waits(lock.clone()));
        tracing::subscriber::set_global_default(subscriber).unwrap();
        let runtimes = ["a", "b"].map(|name| (name, two_workers()));
        let (send, done) = mpsc::channel();
        let held = lock.lock().unwrap();
        for (name, runtime) in &runtimes {
            let (name, send, handle) = (*name, send.clone(), runtime.handle().clone());
            std::thread::spawn(move || {
                let builder = tokio_stall::Builder::new().log(false);
                let watch = builder.runtime(name, handle).start().unwrap();
                watch.explain_coverage();
                drop(watch);
                send.send(()).unwrap();
            });
        }
        for _ in &runtimes {
            done.recv_timeout(FOREVER).expect("it starts and ends");
        }
        drop(held);
        no_detector_threads();
    });
}

/// Runs this in a fork. Returns whether it ended well, and not by the signal of a clock.
#[allow(unsafe_code)]
fn ends_in_a_fork(body: impl FnOnce()) -> bool {
    // SAFETY: the child uses only threads that it makes itself.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // SAFETY: the default action ends a child that hangs.
        unsafe { libc::alarm(60) };
        body();
        // SAFETY: ends the child at once.
        unsafe { libc::_exit(0) };
    }
    let mut status = 0;
    // SAFETY: our own child, and a place for the answer.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0
}

/// The engine's lock is held by a thread that the child does not have.
#[test]
fn a_fork_in_the_middle_of_an_end_can_be_watched() {
    alone(|| {
        let current_thread = || Builder::new_current_thread().enable_all().build().unwrap();
        let (release, held) = Held::new();
        let (send, is_called) = mpsc::channel();
        let held = Mutex::new(Some(held));
        let builder = tokio_stall::Builder::new().log(false).on_stall(move |_| {
            if let Some(held) = held.lock().unwrap().take() {
                send.send(()).unwrap();
                held.wait();
            }
        });
        let runtime = two_workers();
        let watch = builder.runtime("parent", runtime.handle().clone());
        let watch = watch.start().unwrap();
        let (end_stall, stalls) = Held::new();
        runtime.spawn(async move { stalls.wait() }.watched("stalls"));
        is_called.recv_timeout(FOREVER).expect("a callback");
        // It waits for the callback, for a second.
        let ends = std::thread::spawn(move || drop(watch));
        wait_until("the end of the watch to begin", || {
            !detector_threads()
                .iter()
                .any(|name| name == "stall-watchdog")
        });
        let is_in_the_middle = !ends.is_finished();
        let ended_well = ends_in_a_fork(|| {
            let runtime = current_thread();
            let _context = runtime.enter();
            let watch = tokio_stall::Builder::new().log(false).start().unwrap();
            assert!(!watch.status().forked);
            drop(watch);
        });
        assert!(ended_well, "the child hangs");
        if !is_in_the_middle {
            eprintln!("NOT TRIED: the machine is so busy that the end was over before the fork");
        }
        drop((release, end_stall));
        ends.join().unwrap();
    });
}
