//! The detector leaves the rest of the program alone: handlers, signals, forks, privileges, loggers.
//!
//! A program of its own: handlers, masks and privileges belong to a process, and each test starts
//! one for itself.
#![cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64")
))]
#![allow(unsafe_code)]

mod support;

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use support::child::alone;
use support::load::compute;
use support::seen::Seen;
use support::{FOREVER, wait_until};
use tokio::runtime::{Handle, Runtime};
use tokio_stall::{Builder, FutureExt as _, Guard, Phase, StallReport};
use tracing::field::Visit;
use tracing::subscriber::Interest;
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::prelude::*;

fn workers(number: usize) -> Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(number).enable_all().build().unwrap()
}

static PROFILED: AtomicU32 = AtomicU32::new(0);

/// As a profiler's: it needs more stack than the alternate one has, so it does not ask for that one.
extern "C" fn profiles(_: libc::c_int) {
    let mut frames = [0_u64; 2048];
    std::hint::black_box(&mut frames);
    PROFILED.fetch_add(1, Ordering::Relaxed);
}

fn profile_every(period: Duration) {
    // SAFETY: all-zero is a valid `sigaction`.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = profiles as extern "C" fn(_) as usize;
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: `action` is complete, and the handler only touches its own stack and an atomic.
    assert_eq!(0, unsafe {
        libc::sigaction(libc::SIGPROF, &raw const action, std::ptr::null_mut())
    });
    let span = libc::timeval {
        tv_sec: 0,
        tv_usec: period.subsec_micros().into(),
    };
    let timer = libc::itimerval {
        it_interval: span,
        it_value: span,
    };
    // SAFETY: `timer` is complete.
    assert_eq!(0, unsafe {
        libc::setitimer(libc::ITIMER_PROF, &raw const timer, std::ptr::null_mut())
    });
}

#[test]
fn a_profiler_s_handler_never_runs_on_the_alternate_stack() {
    alone(|| {
        let runtime = workers(2);
        runtime.block_on(async {
            let (_watch, seen) = Seen::watch();
            profile_every(Duration::from_micros(250));
            for nth in 1..=12 {
                let stall = async { compute(Duration::from_millis(100)) };
                tokio::spawn(stall.watched("stall")).await.unwrap();
                let is_whole = |reports: usize| reports >= nth;
                while !is_whole(
                    seen.all()
                        .iter()
                        .filter(|report| !report.stacks.is_empty())
                        .count(),
                ) {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        });
        assert!(
            PROFILED.load(Ordering::Relaxed) > 100,
            "the profiler has run"
        );
    });
}

/// The signals that each thread has blocked, by its name.
fn masks() -> Vec<(String, u64)> {
    let mut masks = Vec::new();
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let Ok(status) = std::fs::read_to_string(task.unwrap().path().join("status")) else {
            // The thread has ended since.
            continue;
        };
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap().trim().to_owned()
        };
        let mask = u64::from_str_radix(&field("SigBlk:"), 16).unwrap();
        masks.push((field("Name:"), mask));
    }
    masks
}

fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

#[test]
fn threads_of_the_detector_take_no_signal_of_the_program() {
    alone(|| {
        let runtime = workers(1);
        let _watch = runtime.block_on(async { Builder::new().start() }).unwrap();
        let is_deaf = |mask: u64| {
            let signals = [
                libc::SIGTERM,
                libc::SIGINT,
                libc::SIGUSR1,
                libc::SIGCHLD,
                40,
            ];
            signals.iter().all(|signal| mask & bit(*signal) != 0) && mask & bit(libc::SIGSEGV) == 0
        };
        // A thread that calls the user's code, or starts a thread for the program, has the program's
        // mask for a moment.
        wait_until("all threads to be deaf at one moment", || {
            let mut masks = masks();
            masks.retain(|(name, _)| name.starts_with("stall-"));
            masks.len() >= 5 && masks.iter().all(|(_, mask)| is_deaf(*mask))
        });
    });
}

/// The code of a fork that has panicked.
const PANICKED: i32 = 101;

/// Runs this in a fork, and returns how that ended: its exit code, or `None` if it had to be killed.
fn in_a_fork(body: impl FnOnce() -> i32) -> Option<i32> {
    // SAFETY: the child uses only threads that it makes itself.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // A panic would end this thread alone, which is the last one: the code would be 0.
        let code = std::panic::catch_unwind(AssertUnwindSafe(body)).unwrap_or(PANICKED);
        // SAFETY: ends the child at once.
        unsafe { libc::_exit(code) };
    }
    let deadline = Instant::now() + FOREVER;
    loop {
        let mut status = 0;
        // SAFETY: `status` is a place for the answer.
        if unsafe { libc::waitpid(pid, &raw mut status, libc::WNOHANG) } == pid {
            return Some(libc::WEXITSTATUS(status)).filter(|_| libc::WIFEXITED(status));
        }
        if Instant::now() > deadline {
            // SAFETY: our own child.
            unsafe { libc::kill(pid, libc::SIGKILL) };
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A program that blocks a signal after the start, and waits for it, has no other thread that may
/// take it. The detector has: it calls loggers, and starts threads for the blocking pool.
#[test]
fn a_signal_that_the_program_waits_for_is_left_to_it() {
    // A fork has one thread. The program that runs the tests has another one.
    alone(|| assert_eq!(in_a_fork(waits_for_a_signal), Some(0)));
}

/// Returns 0 if the signal is left after the detector's threads have done all that they do.
fn waits_for_a_signal() -> i32 {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_keep_alive(Duration::from_millis(1))
        .build()
        .unwrap();
    let (builder, seen) = Seen::builder();
    let builder = builder.pool_threshold(Duration::from_secs(1));
    let watch = runtime.block_on(async { builder.start() }).unwrap();
    let mut term = std::mem::MaybeUninit::uninit();
    // SAFETY: a place for a set, which the first call completes.
    let term = unsafe {
        libc::sigemptyset(term.as_mut_ptr());
        libc::sigaddset(term.as_mut_ptr(), libc::SIGTERM);
        libc::pthread_sigmask(libc::SIG_BLOCK, term.as_ptr(), std::ptr::null_mut());
        term.assume_init()
    };
    // A thread that has asked for the mask before uses it first, and one that the pool had ends.
    let is_blocked = || {
        std::thread::sleep(Duration::from_millis(10));
        let mut masks = masks().into_iter();
        masks.all(|(_, mask)| mask & bit(libc::SIGTERM) != 0)
    };
    wait_until("all threads to have blocked the signal for a while", || {
        (0..20).all(|_| is_blocked())
    });
    // SAFETY: a signal to this process, which no thread of the program takes.
    unsafe { libc::kill(std::process::id() as i32, libc::SIGTERM) };
    // The positive control: meanwhile the detector calls the program's code, and asks the pool.
    wait_until("a report, and a probe of the pool", || {
        let blocks = async { std::thread::sleep(Duration::from_millis(50)) };
        runtime.block_on(blocks.watched("held"));
        runtime.block_on(async { tokio::time::sleep(Duration::from_millis(50)).await });
        let is_probed = watch.status().runtimes[0].blocking_queue_wait.is_some();
        is_probed && !seen.all().is_empty()
    });
    let at_once = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: a complete set and a complete time.
    let taken = unsafe { libc::sigtimedwait(&raw const term, std::ptr::null_mut(), &at_once) };
    i32::from(taken != libc::SIGTERM)
}

/// Codes of a fork that is watched, and of one that waits in the drop of the guard.
const WATCHED: i32 = 1;
const WAITED: i32 = 2;

/// Drops the parent's guard and runtime. Returns 0 if that is as it should be in a fork.
fn lets_go(watch: Guard, runtime: Runtime) -> i32 {
    if !watch.status().forked || watch.coverage().iter().any(|seen| !seen.forked) {
        return WATCHED;
    }
    let start = Instant::now();
    drop(watch);
    let waited = start.elapsed();
    drop(runtime);
    // A wait for a thread that is not here lasts for a second, or for ever.
    i32::from(waited > Duration::from_millis(500)) * WAITED
}

/// A fork of a process that is watched so lets go of the guard at once.
#[track_caller]
fn assert_a_fork_lets_go(builder: Builder) {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().build().unwrap();
    let watch = runtime.block_on(async { builder.start() }).unwrap();
    runtime.block_on(async { tokio::time::sleep(Duration::from_millis(300)).await });
    assert!(!watch.coverage()[0].forked && !watch.status().forked);
    // Each fork has a copy of both.
    let watch = std::cell::Cell::new(Some(watch));
    let runtime = std::cell::Cell::new(Some(runtime));
    let fork = || in_a_fork(|| lets_go(watch.take().unwrap(), runtime.take().unwrap()));
    // On a busy machine, one may get no CPU meanwhile.
    let mut ends = (0..3).map(|_| fork());
    let end = ends.find(|end| *end != Some(WAITED));
    assert_eq!(end, Some(Some(0)));
}

#[test]
fn a_fork_is_not_watched_and_lets_go_of_the_guard_at_once() {
    alone(|| assert_a_fork_lets_go(Builder::new()));
}

#[cfg(feature = "serve")]
#[test]
fn a_fork_of_a_program_that_serves_lets_go_of_the_guard_at_once() {
    alone(|| assert_a_fork_lets_go(Builder::new().serve(([127, 0, 0, 1], 0))));
}

#[test]
fn a_watch_that_is_started_in_a_fork_finds_what_blocks_there() {
    alone(|| {
        // A runtime without threads: a fork copies the queues of their locks, and not the threads.
        let parents = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let _watch = parents.block_on(async { Builder::new().start() }).unwrap();
        let code = in_a_fork(|| {
            let runtime = workers(2);
            let (builder, seen) = Seen::builder();
            let watch = builder
                .runtime("child", runtime.handle().clone())
                .start()
                .unwrap();
            runtime.block_on(async { seen.marked_stall_until_told().await });
            i32::from(watch.status().forked)
        });
        assert_eq!(code, Some(0));
    });
}

/// The thread has another number in the child, and has had a slot since before.
#[test]
fn a_thread_that_has_forked_is_seen_in_its_own_runtime() {
    alone(|| {
        let current_thread = || {
            let mut builder = tokio::runtime::Builder::new_current_thread();
            builder.enable_all().build().unwrap()
        };
        let parents = current_thread();
        let _watch = parents.block_on(async { Builder::new().start() }).unwrap();
        parents.block_on(async {}.watched("gives the thread a slot"));
        let code = in_a_fork(|| {
            let runtime = current_thread();
            let (builder, seen) = Seen::builder();
            let builder = builder.runtime("child", runtime.handle().clone());
            let _watch = builder.start().unwrap();
            runtime.block_on(async {
                // The pulse has its turn first.
                tokio::time::sleep(Duration::from_millis(300)).await;
                std::thread::sleep(Duration::from_millis(300));
            });
            let ended = seen.wait_for_an_end();
            let is_seen = ended.asleep_in.as_deref() == Some("clock_nanosleep");
            if !is_seen {
                eprintln!("{ended:#?}");
            }
            i32::from(!is_seen)
        });
        assert_eq!(code, Some(0));
    });
}

/// A subscriber that panics at the first event of the detector.
struct Panics;

impl tracing::Subscriber for Panics {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        assert_ne!(metadata.target(), "tokio_stall", "as a broken logger does");
        false
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, _: &tracing::Event<'_>) {}
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

#[test]
fn a_logger_that_panics_in_start_leaves_nothing_behind() {
    alone(|| {
        let runtime = workers(1);
        let start = || runtime.block_on(async { Builder::new().start() });
        let panicked = tracing::subscriber::with_default(Panics, || {
            std::panic::catch_unwind(AssertUnwindSafe(start)).is_err()
        });
        assert!(panicked, "or the test shows nothing");
        assert!(start().is_ok(), "the runtime is free to be watched");
    });
}

#[test]
fn a_callback_runs_in_the_context_of_the_runtime() {
    alone(|| {
        let runtime = workers(1);
        let (send, receive) = std::sync::mpsc::channel();
        let _watch = runtime.block_on(async {
            let builder = Builder::new().on_stall(move |_| {
                let here = tokio::runtime::Handle::try_current().map(|here| here.id());
                send.send(here.ok()).ok();
            });
            builder.start().unwrap()
        });
        // On a busy machine one such stall may be over before the watchdog runs.
        let mut heard = None;
        wait_until("a report", || {
            let blocks = async { std::thread::sleep(Duration::from_millis(50)) };
            runtime.block_on(runtime.spawn(blocks)).unwrap();
            heard = receive.try_recv().ok();
            heard.is_some()
        });
        assert_eq!(heard.unwrap(), Some(runtime.handle().id()));
    });
}

#[test]
fn a_callback_of_waits_for_the_pool_runs_in_the_context_of_the_runtime() {
    alone(|| {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).max_blocking_threads(1);
        let runtime = runtime.enable_all().build().unwrap();
        let (send, receive) = std::sync::mpsc::channel();
        let _watch = runtime.block_on(async {
            let builder = Builder::new().on_pool_wait(move |_| {
                let here = Handle::try_current().map(|here| here.id());
                send.send(here.ok()).ok();
            });
            builder.start().unwrap()
        });
        let (release, held) = std::sync::mpsc::channel::<()>();
        let holds = runtime.spawn_blocking(move || held.recv().ok());
        let heard = receive.recv_timeout(support::FOREVER).unwrap();
        assert_eq!(heard, Some(runtime.handle().id()));
        drop(release);
        runtime.block_on(holds).unwrap();
    });
}

/// A logger that panics outside of a runtime, as one that spawns a task for each line. It keeps the
/// lines of the detector.
#[derive(Clone, Default)]
struct NeedsRuntime(Arc<Mutex<Vec<String>>>);

impl<S: Subscriber> Layer<S> for NeedsRuntime {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        struct Text(String);
        impl Visit for Text {
            fn record_debug(&mut self, _: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                self.0 += &format!("{value:?} ");
            }
        }
        if event.metadata().target() == "tokio_stall" {
            let _needed = Handle::current();
            let mut text = Text(String::new());
            event.record(&mut text);
            self.0.lock().unwrap().push(text.0);
        }
    }
}

impl NeedsRuntime {
    #[track_caller]
    fn wait_for(&self, text: &str) {
        wait_until(text, || {
            let lines = self.0.lock().unwrap();
            lines.iter().any(|line| line.contains(text))
        });
    }
}

#[test]
fn a_logger_that_needs_a_runtime_fails_at_no_line() {
    alone(|| {
        let logger = NeedsRuntime::default();
        tracing_subscriber::registry().with(logger.clone()).init();
        let runtime = workers(1);
        let watch_with_a_stall = |grace| {
            let long = Duration::from_millis(40);
            let (builder, seen) = Seen::builder();
            let builder = builder.startup_grace(grace).warn_after(long);
            let watch = runtime.block_on(async { builder.start() }).unwrap();
            let is_loggable =
                |told: &StallReport| told.phase == Phase::Ended && told.duration >= long;
            wait_until("a stall that is long enough", || {
                let blocks = async { std::thread::sleep(Duration::from_millis(100)) };
                let blocks = runtime.spawn(blocks.watched("blocks"));
                runtime.block_on(blocks).unwrap();
                seen.all().iter().any(is_loggable)
            });
            watch
        };
        let watch = watch_with_a_stall(Duration::ZERO);
        logger.wait_for("was blocked for");
        assert_eq!(watch.status().failed_callbacks, 0);
        drop(watch);
        // The stall of a start is told of when the watch has ended.
        let watch = watch_with_a_stall(Duration::from_secs(3600));
        assert_eq!(watch.status().failed_callbacks, 0);
        drop(watch);
        logger.wait_for("of the start");
    });
}

/// A filter that hides all, and keeps whether the detector has asked it inside of a runtime.
#[derive(Clone, Default)]
struct HidesAll(Arc<Mutex<Vec<bool>>>);

impl<S: Subscriber> Layer<S> for HidesAll {
    fn register_callsite(&self, _: &'static Metadata<'static>) -> Interest {
        Interest::sometimes()
    }

    fn enabled(&self, _: &Metadata<'_>, _: Context<'_, S>) -> bool {
        if std::thread::current().name() == Some("stall-sinks") {
            let is_inside = Handle::try_current().is_ok();
            self.0.lock().unwrap().push(is_inside);
        }
        false
    }
}

/// While nobody hears the log, the filter is asked again and again.
#[test]
fn a_filter_is_asked_in_the_context_of_a_runtime() {
    alone(|| {
        let filter = HidesAll::default();
        tracing_subscriber::registry().with(filter.clone()).init();
        let runtime = workers(1);
        let _watch = runtime.block_on(async { Builder::new().start() }).unwrap();
        let answers = || filter.0.lock().unwrap().clone();
        wait_until("a question", || !answers().is_empty());
        assert!(answers().iter().all(|is_inside| *is_inside));
    });
}

#[test]
fn a_thread_of_the_program_is_not_deaf_because_the_detector_started_it() {
    alone(|| {
        let runtime = workers(1);
        let watch = runtime.block_on(async { Builder::new().start() }).unwrap();
        // The first probe of the pool has come back: the pool has a thread that was started for it.
        while watch.status().runtimes[0].blocking_queue_wait.is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let mask = runtime.block_on(runtime.spawn_blocking(|| {
            let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
            let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:"));
            u64::from_str_radix(mask.unwrap().trim(), 16).unwrap()
        }));
        assert_eq!(mask.unwrap(), 0);
    });
}
