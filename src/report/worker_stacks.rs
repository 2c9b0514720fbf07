//! What all workers are doing now: their stacks, on demand.
//!
//! *Runs on:* the thread that asks, which waits for the answers.
//! *Here:* the same signal and buffers as for stalls; half of these at most, so four threads at a time.

use super::{Frame, NoStack};
use crate::capture::{self, Addressee, RawStack, Request};
use crate::clock::{self, Nanos};
use crate::engine::{Shared, WatchedRuntime};
use crate::explain::Effort;
use crate::slot::{Claim, Slot};
use crate::watchdog::workers::{Drivers, collect_drivers};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// The stack of one worker's thread at one moment; from
/// [`Guard::worker_stacks`](crate::Guard::worker_stacks).
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct WorkerStack {
    /// The name under which the runtime is watched.
    pub runtime: String,
    /// The index of the worker, as in tokio's `RuntimeMetrics`.
    pub worker: usize,
    /// The name of the thread that drives it.
    pub thread: Option<String>,
    /// The calls, innermost first, or why there are none.
    pub frames: Result<Vec<Frame>, NoStack>,
    /// The stack was followed to the root of its thread.
    pub complete: bool,
}

/// How long the answer of a thread is waited for. One that has a CPU, or sleeps where a signal wakes it,
/// takes a tenth of a millisecond; on a machine with much else to do, some more.
const PATIENCE: Duration = Duration::from_millis(100);
/// Between two looks.
const LOOK: Duration = Duration::from_micros(50);

/// Asks all workers of these runtimes.
pub(crate) fn take(runtimes: &[Arc<WatchedRuntime>], shared: &Shared) -> Vec<WorkerStack> {
    let mut drivers = Drivers::new();
    collect_drivers(&mut drivers);
    let mut found = Vec::new();
    for runtime in runtimes.iter().filter(|runtime| !runtime.is_gone()) {
        let workers: Vec<_> = (0..runtime.metrics.num_workers())
            .map(|worker| {
                let claim = Claim {
                    runtime: runtime.id,
                    worker,
                };
                (worker, drivers.get(&claim).map(|(slot, _)| *slot))
            })
            .collect();
        // No more at a time than there are buffers, less some for the watchdog.
        for some in workers.chunks(capture::MAILBOXES / 2) {
            found.extend(ask(runtime, some, shared));
        }
    }
    found
}

fn ask(
    runtime: &WatchedRuntime,
    workers: &[(usize, Option<&'static Slot>)],
    shared: &Shared,
) -> Vec<WorkerStack> {
    let asked: Vec<_> = workers
        .iter()
        .map(|(worker, slot)| (*worker, *slot, send(runtime, *slot)))
        .collect();
    let deadline = clock::now().plus(PATIENCE);
    let own = &runtime.watch.settings.own_code;
    let answered = asked.into_iter().map(|(worker, slot, request)| {
        let stack = request.and_then(|request| await_answer(request, deadline));
        let explained = stack.and_then(|stack| {
            let mut explainer = shared.explainer.lock();
            let explained = explainer.explain(&stack, own, Effort::Any);
            explained.ok_or(NoStack::Unsupported)
        });
        WorkerStack {
            runtime: runtime.name.clone(),
            worker,
            thread: slot.map(Slot::thread_name),
            complete: explained.as_ref().is_ok_and(|stack| stack.complete),
            frames: explained.map(|stack| stack.frames),
        }
    });
    answered.collect()
}

fn send(runtime: &WatchedRuntime, slot: Option<&'static Slot>) -> Result<Request, NoStack> {
    let signal = runtime.watch.signal?;
    let slot = slot.ok_or(NoStack::ThreadUnknown)?;
    let addressee = Addressee {
        slot,
        tenancy: slot.tenancy(),
    };
    Request::send(addressee, signal).map_err(NoStack::from)
}

fn await_answer(mut request: Request, deadline: Nanos) -> Result<RawStack, NoStack> {
    loop {
        match request.collect() {
            Ok(stack) if stack.is_answered() => return Ok(stack),
            Ok(_) => return Err(NoStack::ThreadGone),
            Err(_) if clock::now() >= deadline => return Err(NoStack::NotAnswered),
            Err(again) => request = again,
        }
        std::thread::sleep(LOOK);
    }
}

impl fmt::Display for WorkerStack {
    /// One line for the worker, then one for each call.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            runtime, worker, ..
        } = self;
        write!(f, "worker {worker} of {runtime:?}")?;
        if let Some(thread) = &self.thread {
            write!(f, ", {thread}")?;
        }
        match &self.frames {
            Ok(frames) => frames.iter().try_for_each(|frame| write!(f, "\n  {frame}")),
            Err(why) => write!(f, "\n  no stack: {why}"),
        }
    }
}
