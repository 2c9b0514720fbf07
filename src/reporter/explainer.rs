//! The explainer: unwinds and names stacks, one after another.
//!
//! *Runs on:* its own thread, `stall-explainer`.
//! *Must not:* hold up the reporter or the watchdog. The names of polls are looked up while these go on, and
//! cannot wait for debug information to be read.

use crate::capture::RawStack;
use crate::detect::StackVerdict;
use crate::engine::{Message, StackNews, WatchState, Work};
use crate::explain::{self, Explained, Explainer};
use crate::report::NoStack;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::Duration;

/// A process that lives for so long has its debug information opened before the first stall needs it.
const PRIME_AFTER: Duration = Duration::from_secs(1);

/// After so long without work, tables and debug information that have not been used for a while are let go.
const REST: Duration = Duration::from_secs(10);

/// The thread's main function; ends when nobody can send work any more.
pub(crate) fn run(work: &Receiver<Work>, reporter: &SyncSender<Message>) {
    let mut explainer = Explainer::default();
    let mut wait = PRIME_AFTER;
    loop {
        match work.recv_timeout(wait) {
            Ok(work) => take(work, &mut explainer, reporter),
            Err(RecvTimeoutError::Timeout) if wait == PRIME_AFTER => {
                explainer.prime();
                wait = REST;
            }
            Err(RecvTimeoutError::Timeout) => explainer.rest(),
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
}

fn take(work: Work, explainer: &mut Explainer, reporter: &SyncSender<Message>) {
    match work {
        Work::OfStall {
            id,
            runtime,
            worker,
            after,
            stack,
        } => {
            let stack = explain(explainer, &runtime.watch, &stack);
            let shown = stack.as_ref().ok().and_then(explain::shown);
            runtime.verdicts[worker].put(id, shown.unwrap_or(StackVerdict::Inconclusive));
            let news = StackNews { id, after, stack };
            // WaitCounter for room: the reporter counts on an answer to each stack. It is gone only at the end.
            reporter.send(Message::Stack(Box::new(news))).ok();
        }
        Work::Asked {
            watch,
            stack,
            answer,
        } => {
            // The user may have gone.
            answer.try_send(explain(explainer, &watch, &stack)).ok();
        }
    }
}

/// A panic of ours costs one stack: it is printed where it happens, and the thread goes on with what it has not
/// read yet.
fn explain(
    explainer: &mut Explainer,
    watch: &WatchState,
    stack: &RawStack,
) -> Result<Explained, NoStack> {
    let own = &watch.settings.own_code;
    let explained = catch_unwind(AssertUnwindSafe(|| explainer.explain(stack, own)));
    explained.unwrap_or_else(|_| {
        *explainer = Explainer::default();
        Err(NoStack::Unsupported)
    })
}
