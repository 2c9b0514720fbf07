//! A runtime that measures itself: every turn of a worker, from one park to the next.
//!
//! *Runs on:* worker threads, in tokio's hooks around a park, and the thread in `block_on`.
//!
//! It is exact on stable tokio. A worker that is about to park checks its work since it woke up:
//! each sleep in between held the worker.
//!
//! `block_in_place` moves a worker to another thread. Tokio keeps the count of parks by worker: it
//! stands still during a turn, unless another thread has taken over. A turn during which it has
//! moved is not judged.

use super::baseline::Baseline;
use super::finding::{self, BlockingCall};
use super::meter::Measurement;
use super::never_blocks::Excused;
use super::wait::wait_until;
use parking_lot::Mutex;
use pin_project_lite::pin_project;
use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use tokio::runtime::{Builder, Handle, RuntimeFlavor, RuntimeMetrics};

/// A runtime with two workers, timers and I/O that catches every blocking call of every task.
///
/// See [`Runtime`]. For another number of workers, or a `current_thread` runtime, see
/// [`runtime_from`].
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

/// A runtime of your own builder that catches every blocking call of every task.
///
/// The hooks `on_thread_park` and `on_thread_unpark` measure the turns; your own are replaced.
///
/// # Panics
///
/// If the runtime cannot be built, or its workers do not come to rest within ten seconds, or
/// longer on a busy machine.
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
    let state = Arc::new(TestState::default());
    let (parking, unparking) = (state.clone(), state.clone());
    let inner = builder
        .on_thread_park(move || parking.end_turn())
        .on_thread_unpark(move || unparking.begin_turn())
        .build();
    let inner = inner.unwrap_or_else(|error| panic!("no runtime for the test: {error}"));
    let metrics = inner.metrics();
    state.metrics.set(metrics.clone()).ok();
    if inner.handle().runtime_flavor() == RuntimeFlavor::MultiThread {
        await_first_parks(&metrics);
    }
    Runtime { inner, state }
}

/// Waits until each worker is parked. A turn that began before the hooks had the metrics is not
/// measured, so it has to be over.
#[track_caller]
fn await_first_parks(metrics: &RuntimeMetrics) {
    for worker in 0..metrics.num_workers() {
        assert!(
            wait_until(|| is_parked(metrics.worker_park_unpark_count(worker))),
            "a worker of the test's runtime does not come to rest"
        );
    }
}

/// Tokio counts parks and unparks together: the count is odd while the worker is parked.
fn is_parked(park_unpark_count: u64) -> bool {
    park_unpark_count % 2 == 1
}

/// Runs a future on a [`runtime()`], and fails if it or a task that it has spawned blocks.
///
/// # Panics
///
/// If anything has blocked; at the end of the future.
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

/// A runtime that records blocking calls on its threads; made by [`runtime()`].
///
/// It judges each stretch of a worker's work between two parks, and the future given to
/// [`block_on`](Self::block_on). The rules are those of
/// [`assert_never_blocks`](super::assert_never_blocks).
///
/// One stretch is not seen: a thread that takes over a worker from `block_in_place`, until it first
/// parks.
pub struct Runtime {
    inner: tokio::runtime::Runtime,
    state: Arc<TestState>,
}

impl Runtime {
    /// The handle to spawn tasks with.
    pub fn handle(&self) -> &Handle {
        self.inner.handle()
    }

    /// Lets the sites of a [`baseline`](super::baseline()) pass, from now on.
    pub fn known(&self, baseline: &Baseline) {
        *self.state.known.lock() = Some(baseline.clone());
    }

    /// Runs a future to its end on this thread. Fails if anything on the runtime has blocked since
    /// the last assertion.
    ///
    /// # Panics
    ///
    /// If anything has blocked. Inside of another runtime, as tokio's `block_on`.
    #[track_caller]
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        let output = self.inner.block_on(Root {
            future,
            state: &self.state,
        });
        self.assert_none();
        output
    }

    /// The blocking calls so far that have not been asserted yet.
    ///
    /// A worker records them when it parks. This waits until all workers have parked, for some
    /// ten seconds, or longer on a busy machine: call it when no task is running any more.
    pub fn recorded(&self) -> Vec<BlockingCall> {
        self.settle();
        self.state.found.lock().clone()
    }

    /// Fails if anything has blocked since the last assertion.
    ///
    /// # Panics
    ///
    /// With all blocking calls.
    #[track_caller]
    pub fn assert_none(&self) {
        self.settle();
        let found = std::mem::take(&mut *self.state.found.lock());
        if !found.is_empty() {
            panic!("{}", Several(&found));
        }
    }

    /// Waits until each worker is parked, or has parked once from now on. A task that waits to be
    /// polled for the first time has woken no worker yet, maybe.
    fn settle(&self) {
        let metrics = self.inner.metrics();
        let multi_thread = self.handle().runtime_flavor() == RuntimeFlavor::MultiThread;
        if !multi_thread || tokio::runtime::worker_index().is_some() {
            return;
        }
        let is_taken = || metrics.global_queue_depth() == 0;
        if !wait_until(is_taken) {
            eprintln!("tokio-stall: spawned tasks still wait for a worker; they are not judged");
            return;
        }
        for worker in 0..metrics.num_workers() {
            let parks = || metrics.worker_park_unpark_count(worker);
            let before = parks();
            if !wait_until(|| is_parked(before) || parks() != before) {
                eprintln!(
                    "tokio-stall: worker {worker} is still busy; what it does now is not judged"
                );
                return;
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
        self.assert_none();
    }
}

/// The text of a failure.
struct Several<'a>(&'a [BlockingCall]);

impl fmt::Display for Several<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let calls = match self.0.len() {
            1 => "1 blocking call".to_owned(),
            count => format!("{count} blocking calls"),
        };
        let texts = finding::texts(self.0);
        write!(f, "{calls} on the runtime's threads\n\n{texts}")
    }
}

/// The state that the runtime shares with the hooks of its threads.
#[derive(Default)]
struct TestState {
    metrics: OnceLock<RuntimeMetrics>,
    found: Mutex<Vec<BlockingCall>>,
    excused: Mutex<Excused>,
    known: Mutex<Option<Baseline>>,
}

/// A stretch of a worker's work between two parks that goes on.
struct OpenTurn {
    measurement: Measurement,
    worker: usize,
    parks: u64,
}

thread_local! {
    static TURN: RefCell<Option<OpenTurn>> = const { RefCell::new(None) };
}

/// Leaves the thread's turn without a judgement.
struct LeaveTurn;

impl Drop for LeaveTurn {
    fn drop(&mut self) {
        TURN.with_borrow_mut(|open| *open = None);
    }
}

impl TestState {
    /// The worker that this thread drives, and its count of parks.
    fn worker(&self) -> Option<(usize, u64)> {
        let worker = tokio::runtime::worker_index()?;
        let metrics = self.metrics.get()?;
        Some((worker, metrics.worker_park_unpark_count(worker)))
    }

    fn begin_turn(&self) {
        let turn = self.worker().map(|(worker, parks)| OpenTurn {
            measurement: Measurement::begin(None),
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

    /// Polls the future of `block_on` as part of the turns of its worker: it begins the first turn
    /// and ends the last.
    fn in_turn<T>(&self, poll: impl FnOnce() -> Poll<T>) -> Poll<T> {
        if TURN.with_borrow(Option::is_none) {
            self.begin_turn();
        }
        // A turn whose future panics is judged by nobody.
        let unwinding = LeaveTurn;
        let result = poll();
        std::mem::forget(unwinding);
        if result.is_ready() {
            self.end_turn();
        }
        result
    }

    fn judge(&self, measurement: Measurement, poll: impl Fn() -> String) {
        let (cost, seen) = measurement.end();
        let outcome = finding::look_into(&cost, seen, None, poll);
        if outcome.is_clean() {
            return;
        }
        let known = self.known.lock();
        let found = outcome.unexcused(&mut self.excused.lock(), known.as_ref());
        self.found.lock().extend(found);
    }
}

pin_project! {
    /// The future given to `block_on`.
    ///
    /// On a `current_thread` runtime its polls are part of the worker's turns: it begins the first
    /// turn and ends the last. On a multi-thread runtime its thread is no worker, and each poll is
    /// measured by itself.
    struct Root<'a, F> {
        #[pin]
        future: F,
        state: &'a TestState,
    }
}

impl<F: Future> Future for Root<'_, F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        if this.state.worker().is_some() {
            return this.state.in_turn(|| this.future.poll(cx));
        }
        let measurement = Measurement::begin(None);
        let result = this.future.poll(cx);
        this.state.judge(measurement, || {
            format!(
                "the future given to block_on: {}",
                std::any::type_name::<F>()
            )
        });
        result
    }
}
