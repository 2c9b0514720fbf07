//! A runtime under watch, and the other things that several tests need.
#![allow(dead_code, unreachable_pub)] // Each binary uses its own part.

#[cfg(feature = "serve")]
pub mod browser;
pub mod child;
pub mod load;
#[cfg(target_os = "linux")]
pub mod process;
#[cfg(feature = "prometheus")]
pub mod scraped;
pub mod seen;
#[cfg(feature = "tower")]
pub mod service;
#[cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64")
))]
pub mod signal;
pub mod stage;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio_stall::{Guard, Missing, StallReport};

/// The bound of waits, for a test that would otherwise never end. Waits end on news.
pub const FOREVER: Duration = Duration::from_secs(match option_env!("TOKIO_STALL_EMULATED") {
    Some(_) => 600,
    None => 20,
});

/// Waits until this holds.
#[track_caller]
pub fn wait_until(what: &str, holds: impl FnMut() -> bool) {
    wait_within(FOREVER, what, holds);
}

/// Waits for at most this time.
#[track_caller]
pub fn wait_within(bound: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + bound;
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Checks that a duration of the detector is no shorter than one by the system's clock. Its own
/// clock is set by the system's at the start, which on a busy machine leaves 0.02 % between them.
#[track_caller]
pub fn assert_at_least(told: Duration, truth: Duration) {
    assert!(told >= truth.mul_f64(0.99), "{told:?} of {truth:?}");
}

/// Whether the watch knows the thread of each worker. Only then can it signal and measure them.
fn knows_threads(watch: &Guard) -> bool {
    let mut runtimes = watch.coverage().into_iter();
    runtimes.all(|runtime| runtime.known_threads == runtime.workers)
}

/// Waits until the watch knows the thread of each worker.
#[track_caller]
pub fn wait_for_threads(watch: &Guard) {
    wait_until("the threads of all workers", || knows_threads(watch));
}

/// The same on the runtime itself, whose loop must go round for it.
pub async fn threads_known(watch: &Guard) {
    let deadline = Instant::now() + FOREVER;
    while !knows_threads(watch) {
        assert!(Instant::now() < deadline, "{:?}", watch.coverage());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// The text that this panics with, if it does.
pub fn failure(fails: impl FnOnce()) -> Option<String> {
    let failed = catch_unwind(AssertUnwindSafe(fails)).err()?;
    Some(*failed.downcast::<String>().expect("a text"))
}

/// Compares the report's site with a line of a test.
#[track_caller]
pub fn assert_site(report: &StallReport, file: &str, line: u32, function: &str) {
    let site = report.site.as_ref();
    let site = site.unwrap_or_else(|| panic!("no site: {report:#?}"));
    assert_eq!(site.function, function, "{report:#?}");
    let has_file = |path: &String| path.ends_with(file);
    assert!(site.file.as_ref().is_some_and(has_file), "{site:?}");
    assert_eq!(site.line, Some(line), "{report:#?}");
}

/// The parts that the report misses about the names of its poll. Stacks may come later.
pub fn missing_names(report: &StallReport) -> Vec<Missing> {
    let about_names = |missing: &Missing| {
        matches!(
            missing,
            Missing::Unmarked | Missing::MovedOn | Missing::TooDeep
        )
    };
    report.missing.iter().copied().filter(about_names).collect()
}

/// Blocks all who wait, until the sender is dropped.
#[derive(Clone)]
pub struct Held(Arc<Mutex<Receiver<()>>>);

impl Held {
    pub fn new() -> (Sender<()>, Held) {
        let (release, held) = mpsc::channel();
        (release, Held(Arc::new(Mutex::new(held))))
    }

    /// One has the lock, the others wait for the lock: a sender that goes releases all of them.
    pub fn wait(&self) {
        self.0.lock().unwrap().recv().ok();
    }
}

/// Stops a loop when it is dropped, also in a test that fails: the loop's runtime waits for it.
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    pub fn new() -> (Stop, Arc<AtomicBool>) {
        let stopped = Arc::new(AtomicBool::new(false));
        (Stop(stopped.clone()), stopped)
    }
}

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
