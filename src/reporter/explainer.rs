//! The explainer: unwinds and names stacks, one after another, and tries now and then whether that
//! works.
//!
//! *Runs on:* its own thread, `stall-explainer`.
//! *Must not:* hold up the reporter or the watchdog. It takes time to read debug information, while
//! the reporter must look names up before their polls end.

use crate::capture::RawStack;
use crate::clock;
use crate::detect::StackVerdict;
use crate::engine::{Message, PoolStack, Shared, StackNews, WatchState, Work};
use crate::explain::{self, Explained, Explainer};
use crate::report::NoStack;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::Duration;

/// Time after the start at which debug information is opened, before the first stall needs it.
const PRIME_AFTER: Duration = Duration::from_secs(1);

/// The time between two rounds. A round tries whether stacks can be had, and lets go of tables and
/// debug information that have not been used for a while.
const ROUND: Duration = Duration::from_secs(2);

/// The thread's main function. Ends when all senders of work are gone.
pub(crate) fn run(shared: &Shared, work: &Receiver<Work>, reporter: &SyncSender<Message>) {
    let mut explainer = Explainer::default();
    let mut is_primed = false;
    let mut due = clock::now().plus(PRIME_AFTER);
    loop {
        match work.recv_timeout(due.since(clock::now())) {
            Ok(work) => take(work, &mut explainer, reporter),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        if clock::now() < due {
            continue;
        }
        if std::mem::replace(&mut is_primed, true) {
            guarded(&mut explainer, Explainer::rest);
            look_around(shared, reporter);
        } else {
            guarded(&mut explainer, Explainer::prime);
        }
        due = clock::now().plus(ROUND);
    }
}

/// Tries what works now, and passes on news of runtimes that nobody watches.
fn look_around(shared: &Shared, reporter: &SyncSender<Message>) {
    shared.look_at_sight();
    if let Some(runtime) = shared.tells_of_others() {
        reporter.send(Message::OtherRuntimes(runtime)).ok();
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
            let (position, verdict) = (stack.position(), &runtime.verdicts[worker]);
            let stack = explain(explainer, &runtime.watch, stack, || verdict.note_signal());
            match &stack {
                // Another one is asked for.
                Err(why) if !why.is_final() => verdict.expect_no_more(),
                stack => verdict.put(id, shown(stack)),
            }
            let news = StackNews {
                id,
                after,
                position,
                stack,
            };
            // Waits for room, since the reporter waits for an answer to each stack. The send fails
            // only at the end, when the reporter is gone.
            reporter.send(Message::Stack(Box::new(news))).ok();
        }
        Work::OfPool {
            watch,
            after,
            stack,
            answer,
        } => {
            // The wait may be over.
            if let Ok(stack) = explain(explainer, &watch, stack, || ()) {
                answer.try_send(PoolStack { after, stack }).ok();
            }
        }
        Work::Asked {
            watch,
            stack,
            answer,
        } => {
            // The user may have stopped waiting.
            answer
                .try_send(explain(explainer, &watch, stack, || ()))
                .ok();
        }
    }
}

fn shown(stack: &Result<Explained, NoStack>) -> StackVerdict {
    let shown = stack.as_ref().ok().and_then(explain::shown);
    shown.unwrap_or(StackVerdict::Inconclusive)
}

/// `signalled` is called if the thread has taken a signal for it.
fn explain(
    explainer: &mut Explainer,
    watch: &WatchState,
    stack: RawStack,
    signalled: impl Fn(),
) -> Result<Explained, NoStack> {
    let own = &watch.settings.own_code;
    let mut explain = |stack: &RawStack| {
        let explained = guarded(explainer, |explainer| explainer.explain(stack, own));
        explained.unwrap_or(Err(NoStack::NoExplainer))
    };
    match explain(&stack) {
        // The copy is not enough (D262).
        Err(NoStack::NotYet) => {
            let stack = stack.by_signal(watch.signal)?;
            signalled();
            explain(&stack)
        }
        explained => explained,
    }
}

/// A panic of ours costs one stack, not the thread: it is printed where it happens, and the
/// explainer begins anew. The reporter counts on an answer to each stack.
fn guarded<R>(explainer: &mut Explainer, work: impl FnOnce(&mut Explainer) -> R) -> Option<R> {
    let done = catch_unwind(AssertUnwindSafe(|| work(explainer)));
    done.map_err(|_| *explainer = Explainer::default()).ok()
}
