//! The stacks of all workers at this moment, on demand.
//!
//! *Runs on:* the user's thread that asks, which waits for the answers.
//! *Must not:* take more than half of the buffers, so four threads at a time. The signal and the
//! buffers are those of stalls.

use crate::capture::{self, Addressee, RawStack, Request};
use crate::clock::{self, Nanos};
use crate::engine::{Shared, WatchedRuntime};
use crate::report::{NoStack, WorkerStack};
use crate::slot::{Claim, Claims, Slot, collect_claims};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;

/// The longest wait for the answer of a thread. A thread that has a CPU, or sleeps where a signal
/// wakes it, answers within a tenth of a millisecond, or somewhat later on a busy machine.
const ANSWERS_WITHIN: Duration = Duration::from_millis(100);

/// One caller asks at a time: two would take all buffers. A caller waits so long for another one:
/// in a fork, that may be a thread that exists no more.
const LONGEST_ASKING: Duration = Duration::from_secs(5);
static ASKING: Mutex<()> = Mutex::new(());

/// Takes the stacks of all workers of these runtimes.
pub(crate) fn take(runtimes: &[Arc<WatchedRuntime>], shared: &Shared) -> Vec<WorkerStack> {
    let _asking = ASKING.try_lock_for(LONGEST_ASKING);
    let mut drivers = Claims::new();
    collect_claims(&mut drivers);
    let mut found = Vec::new();
    for runtime in runtimes.iter().filter(|runtime| !runtime.is_gone()) {
        let slot_of = |worker| {
            let runtime = runtime.id;
            let driver = drivers.get(&Claim { runtime, worker });
            (worker, driver.map(|(slot, _)| *slot))
        };
        let workers: Vec<_> = (0..runtime.metrics.num_workers()).map(slot_of).collect();
        // The other half of the buffers is left to the watchdog.
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
    let deadline = clock::now().plus(ANSWERS_WITHIN);
    let explain = |request: Result<Request, NoStack>, deadline| {
        let stack = request.and_then(|request| await_answer(request, deadline))?;
        shared.explain(&runtime.watch, stack)
    };
    let answered = asked.into_iter().map(|(worker, slot, request)| {
        let explained = match explain(request, deadline) {
            // It needed a signal and had woken. Now it is known to need one.
            Err(NoStack::MovedOn) => {
                let again = clock::now().plus(ANSWERS_WITHIN);
                explain(send(runtime, slot), again)
            }
            explained => explained,
        };
        WorkerStack {
            runtime: runtime.name.clone(),
            worker,
            thread: slot.map(Slot::thread_name),
            certain_frames: explained.as_ref().map_or(0, |stack| stack.certain),
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
    Request::send(addressee, signal)
}

fn await_answer(request: Request, deadline: Nanos) -> Result<RawStack, NoStack> {
    let stack = request.by(deadline).map_err(|_| NoStack::NotAnswered)?;
    let is_of_it = stack.is_answered();
    is_of_it.then_some(stack).ok_or(NoStack::ThreadGone)
}
