//! A runtime that measures itself: every turn of a worker, from one park to the next, by the worker's own thread.
//!
//! *Runs on:* worker threads, in tokio's hooks around a park; the thread in `block_on`.
//! *Here:* exact on stable tokio. A worker that is about to park looks at what it has done since it woke up: whatever
//! it slept in meanwhile held it.
//!
//! A worker leaves its thread in `block_in_place`. Its count of parks, which tokio keeps by worker, tells: it stands
//! still during a turn, unless another thread has taken over. Then nothing is said of the turn.

use super::baseline::Baseline;
use super::finding::{self, BlockingCall, Outcome};
use super::meter::Measurement;
use super::never_blocks::Excused;
use parking_lot::Mutex;
use pin_project_lite::pin_project;
use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::runtime::{Builder, Handle, RuntimeFlavor, RuntimeMetrics};

/// A runtime with two workers, timers and I/O that catches every blocking call of every task.
///
/// See [`Runtime`]. For another number of workers, or a `current_thread` runtime, see [`runtime_from`].
///
/// # Panics
///
/// If the runtime cannot be built.
///
/// # Examples
///
/// ```
/// let runtime = tokio_stall::testing::runtime();
/// let task = runtime.handle().spawn(async { 42 });
/// assert_eq!(runtime.block_on(task).unwrap(), 42);
/// ```
///
/// ```should_panic
/// use std::time::Duration;
///
/// let runtime = tokio_stall::testing::runtime();
/// # #[cfg(not(target_os = "linux"))]
/// # panic!("one millisecond is not seen on this system");
/// let task = runtime.handle().spawn(async { std::thread::sleep(Duration::from_millis(1)) });
/// runtime.block_on(task).unwrap();
/// ```
#[track_caller]
pub fn runtime() -> Runtime {
    runtime_from(Builder::new_multi_thread().worker_threads(2).enable_all())
}

/// A runtime built as you like that catches every blocking call of every task.
///
/// Its hooks `on_thread_park` and `on_thread_unpark` are ours; your own are replaced.
///
/// # Panics
///
/// If the runtime cannot be built, or its workers do not come to rest within ten seconds.
///
/// # Examples
///
/// ```
/// let mut builder = tokio::runtime::Builder::new_current_thread();
/// let runtime = tokio_stall::testing::runtime_from(builder.enable_all());
/// runtime.block_on(async {});
/// ```
///
/// ```should_panic
/// # #[cfg(not(target_os = "linux"))]
/// # panic!("one millisecond is not seen on this system");
/// let mut builder = tokio::runtime::Builder::new_current_thread();
/// let runtime = tokio_stall::testing::runtime_from(builder.enable_all());
/// runtime.block_on(async { std::thread::sleep(std::time::Duration::from_millis(1)) });
/// ```
#[track_caller]
pub fn runtime_from(builder: &mut Builder) -> Runtime {
    let shared = Arc::new(Shared::default());
    let (parking, unparking) = (shared.clone(), shared.clone());
    let inner = builder
        .on_thread_park(move || parking.end_turn())
        .on_thread_unpark(move || unparking.begin_turn())
        .build();
    let inner = inner.unwrap_or_else(|error| panic!("no runtime for the test: {error}"));
    let metrics = inner.metrics();
    shared.metrics.set(metrics.clone()).ok();
    if inner.handle().runtime_flavor() == RuntimeFlavor::MultiThread {
        // A turn that began before the hooks knew the counters is not measured, so it has to be over. An odd count is
        // that of a worker that is parked, and whose next turn is.
        let deadline = Instant::now() + PATIENCE;
        let is_parked = |worker| metrics.worker_park_unpark_count(worker) % 2 == 1;
        for worker in 0..metrics.num_workers() {
            while !is_parked(worker) {
                assert!(
                    Instant::now() < deadline,
                    "a worker of the test's runtime does not come to rest"
                );
                std::thread::sleep(Duration::from_micros(100));
            }
        }
    }
    Runtime { inner, shared }
}

const PATIENCE: Duration = Duration::from_secs(10);

/// Runs a future on a [`runtime()`], and fails if it or a task that it has spawned blocks.
///
/// # Panics
///
/// When the future is done, if anything has blocked.
///
/// # Examples
///
/// ```
/// # use std::time::Duration;
/// let answer = tokio_stall::testing::block_on(async {
///     tokio::task::spawn_blocking(|| std::thread::sleep(Duration::from_millis(1))).await.unwrap();
///     42
/// });
/// assert_eq!(answer, 42);
/// ```
///
/// ```should_panic
/// # use std::time::Duration;
/// # #[cfg(not(target_os = "linux"))]
/// # panic!("one millisecond is not seen on this system");
/// tokio_stall::testing::block_on(async {
///     tokio::spawn(async { std::thread::sleep(Duration::from_millis(1)) }).await.unwrap();
/// });
/// ```
#[track_caller]
pub fn block_on<F: Future>(future: F) -> F::Output {
    runtime().block_on(future)
}

/// A runtime that records what blocks it; made by [`runtime()`].
///
/// What is judged is a worker's turn, all that it does between two parks, and the future given to
/// [`block_on`](Self::block_on). The rules are those of [`assert_never_blocks`](super::assert_never_blocks).
///
/// One thing is not seen: what a thread that takes a worker over from `block_in_place` does until it first parks.
pub struct Runtime {
    inner: tokio::runtime::Runtime,
    shared: Arc<Shared>,
}

impl Runtime {
    /// To spawn on.
    pub fn handle(&self) -> &Handle {
        self.inner.handle()
    }

    /// Lets the sites of a [`baseline`](super::baseline()) pass, from now on.
    pub fn known(&self, baseline: &Baseline) {
        *self.shared.known.lock() = Some(baseline.clone());
    }

    /// Runs a future to its end on this thread, then fails if anything on the runtime has blocked since the last
    /// look.
    ///
    /// # Panics
    ///
    /// If anything has blocked; and as tokio's own, inside of another runtime.
    #[track_caller]
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        let output = self.inner.block_on(Root {
            future,
            shared: &self.shared,
        });
        self.assert_none();
        output
    }

    /// What has blocked so far and has not been asserted yet.
    ///
    /// A worker says so when it parks. This waits until all have, for at most ten seconds; call it where nothing is
    /// running any more.
    pub fn recorded(&self) -> Vec<BlockingCall> {
        self.settle();
        self.shared.found.lock().clone()
    }

    /// Fails if anything has blocked since the last look.
    ///
    /// # Panics
    ///
    /// With what has blocked.
    #[track_caller]
    pub fn assert_none(&self) {
        self.settle();
        let found = std::mem::take(&mut *self.shared.found.lock());
        if !found.is_empty() {
            panic!("{}", Several(&found));
        }
    }

    /// Waits until every worker has parked, or is idle, once from now on.
    fn settle(&self) {
        let metrics = self.inner.metrics();
        let multi_thread = self.handle().runtime_flavor() == RuntimeFlavor::MultiThread;
        if !multi_thread || tokio::runtime::worker_index().is_some() {
            return;
        }
        let deadline = Instant::now() + PATIENCE;
        for worker in 0..metrics.num_workers() {
            let before = metrics.worker_park_unpark_count(worker);
            // Odd while parked.
            while metrics.worker_park_unpark_count(worker) == before && before % 2 == 0 {
                if Instant::now() > deadline {
                    eprintln!(
                        "tokio-stall: worker {worker} is still busy; what it does now is not judged"
                    );
                    return;
                }
                std::thread::sleep(Duration::from_micros(50));
            }
        }
    }
}

impl fmt::Debug for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runtime").finish_non_exhaustive()
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        self.settle();
        let found = std::mem::take(&mut *self.shared.found.lock());
        if !found.is_empty() {
            panic!("{}", Several(&found));
        }
    }
}

struct Several<'a>(&'a [BlockingCall]);

impl fmt::Display for Several<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} blocking calls on the runtime's threads",
            self.0.len()
        )?;
        for call in self.0 {
            write!(f, "\n\n{call}")?;
        }
        Ok(())
    }
}

#[derive(Default)]
struct Shared {
    metrics: OnceLock<RuntimeMetrics>,
    found: Mutex<Vec<BlockingCall>>,
    excused: Mutex<Excused>,
    known: Mutex<Option<Baseline>>,
}

/// What a worker does between two parks.
struct Turn {
    measurement: Measurement,
    worker: usize,
    parks: u64,
}

thread_local! {
    static TURN: RefCell<Option<Turn>> = const { RefCell::new(None) };
}

impl Shared {
    /// The worker that this thread drives, and its count of parks.
    fn worker(&self) -> Option<(usize, u64)> {
        let worker = tokio::runtime::worker_index()?;
        let metrics = self.metrics.get()?;
        Some((worker, metrics.worker_park_unpark_count(worker)))
    }

    fn begin_turn(&self) {
        let turn = self.worker().map(|(worker, parks)| Turn {
            measurement: Measurement::begin(),
            worker,
            parks,
        });
        TURN.with_borrow_mut(|open| *open = turn);
    }

    fn end_turn(&self) {
        let Some(turn) = TURN.with_borrow_mut(Option::take) else {
            return;
        };
        if self.worker() != Some((turn.worker, turn.parks)) {
            return;
        }
        let worker = turn.worker;
        self.judge(turn.measurement, || {
            format!("one of the polls of worker {worker} between two of its parks")
        });
    }

    fn judge(&self, measurement: Measurement, poll: impl FnOnce() -> String) {
        let (cost, met) = measurement.end();
        match finding::look_into(&cost, met, None, poll) {
            Outcome::Clean => {}
            Outcome::Excused(excuse, known) => {
                let time = known.asleep + known.run_queue;
                self.excused.lock().add(excuse, time);
            }
            Outcome::Found(call) => {
                let known = self.known.lock();
                let passes = |known: &Baseline| known.knows(call.site.as_ref(), call.cause);
                if !known.as_ref().is_some_and(passes) {
                    self.found.lock().push(*call);
                }
            }
        }
    }
}

pin_project! {
    /// The future given to `block_on`. On a `current_thread` runtime its polls are a part of the worker's turns, of
    /// which it begins the first and ends the last. Elsewhere its thread is no worker, and each poll is measured by
    /// itself.
    struct Root<'a, F> {
        #[pin]
        future: F,
        shared: &'a Shared,
    }
}

impl<F: Future> Future for Root<'_, F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        if this.shared.worker().is_some() {
            if TURN.with_borrow(Option::is_none) {
                this.shared.begin_turn();
            }
            let result = this.future.poll(cx);
            if result.is_ready() {
                this.shared.end_turn();
            }
            return result;
        }
        let measurement = Measurement::begin();
        let result = this.future.poll(cx);
        this.shared.judge(measurement, || {
            format!(
                "the future given to block_on: {}",
                std::any::type_name::<F>()
            )
        });
        result
    }
}
