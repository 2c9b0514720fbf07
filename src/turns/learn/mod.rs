//! Finds out where tokio keeps the words of [`Layout`], by how they behave.
//!
//! *Runs on:* a thread made for it, once per process, which drives two runtimes of its own and is watched by
//! nobody.
//! *Must not:* run on a thread that is inside a runtime, or know any type of tokio's by its fields.
//!
//! The runtimes do nothing but what is asked of them, so each word can be told by what it must do: the number
//! of the task is where `tokio::task::try_id` says so, the count of turns rises by one when a task wakes
//! itself and by two when it yields, and so on. A word that does not behave is not found, and then there are
//! no turns: that is an answer, and no error.

mod looks;
mod words;

use super::NoTurns;
use crate::os::memory;
use looks::{Bench, Flavor};
use words::{Chain, call, entry, is_let_go, last_flag, parks, resumed, task_word, turn};

/// Where things lie, for one flavour of runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// From a thread's anchor to the word with the number of its task.
    pub(crate) task: i64,
    /// From a thread's anchor to the pointer to its context.
    pub(crate) context: i64,
    /// From a thread's anchor to the two halves of its seed; only on `current_thread`.
    pub(crate) entry: Option<[i64; 2]>,
    /// From the context to the pointer to the core.
    pub(crate) core: usize,
    /// From the core to the count of turns, 32 bits.
    pub(crate) turn: usize,
    /// From the core to its own count of parks and unparks, 64 bits.
    pub(crate) parks: usize,
    /// From the core to when it began to work through its queue: seconds, and nanoseconds.
    pub(crate) resumed: usize,
    /// From the core to the byte that says that the "next" slot is used up; only on a multi-thread runtime.
    pub(crate) last: Option<LastFlag>,
    /// How a task from the queue is told from one from the "next" slot.
    pub(crate) call: Option<CallWord>,
}

/// The byte that says that no more tasks of the "next" slot are polled in this turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LastFlag {
    pub(crate) at: usize,
    /// What it is during the third poll from the "next" slot.
    pub(crate) value: u8,
}

/// The return address of the scheduler's call of the task, on the worker's stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CallWord {
    /// From the context to it.
    pub(crate) at: i64,
    /// What it is for the task from the queue …
    pub(crate) queue: u64,
    /// … and for one from the "next" slot.
    pub(crate) next: u64,
}

/// What has been found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Learned {
    pub(crate) multi_thread: Result<Layout, NoTurns>,
    pub(crate) current_thread: Result<Layout, NoTurns>,
}

/// How often it is tried: a busy machine may slip a turn in between.
const TRIES: usize = 5;

/// Finds the layouts of this program.
pub(super) fn learn() -> Learned {
    if !memory::is_readable() {
        return Learned::nothing(NoTurns::Forbidden);
    }
    let mut learned = Learned::nothing(NoTurns::NotFound);
    for _ in 0..TRIES {
        if let Some(found) = try_to_learn() {
            learned.multi_thread = learned.multi_thread.or(found.multi_thread);
            learned.current_thread = learned.current_thread.or(found.current_thread);
        }
        if learned.multi_thread.is_ok() && learned.current_thread.is_ok() {
            break;
        }
    }
    learned
}

impl Learned {
    pub(super) fn nothing(why: NoTurns) -> Learned {
        Learned {
            multi_thread: Err(why),
            current_thread: Err(why),
        }
    }
}

fn try_to_learn() -> Option<Learned> {
    let bench = Bench::new().ok()?;
    let first =
        [Flavor::MultiThread, Flavor::CurrentThread].map(|flavor| bench.first_looks(flavor));
    // The same place for the threads of both: what was found on a stack by chance is not.
    let task = task_word(&first.concat())?;
    Some(Learned {
        multi_thread: multi_thread(&bench, task).ok_or(NoTurns::NotFound),
        current_thread: current_thread(&bench, task).ok_or(NoTurns::NotFound),
    })
}

fn multi_thread(bench: &Bench, task: i64) -> Option<Layout> {
    let (chain, layout) = shared_part(bench, Flavor::MultiThread, task)?;
    let rounds = bench.ping_pong(chain);
    let calls_of_the_queue = bench.yields(Flavor::MultiThread, chain);
    Some(Layout {
        last: Some(last_flag(&rounds, chain)?),
        call: call(&rounds, &calls_of_the_queue, chain),
        ..layout
    })
}

fn current_thread(bench: &Bench, task: i64) -> Option<Layout> {
    let (_, layout) = shared_part(bench, Flavor::CurrentThread, task)?;
    Some(Layout {
        entry: entry(&bench.several_calls_of_block_on(task)),
        ..layout
    })
}

/// What both flavours have.
fn shared_part(bench: &Bench, flavor: Flavor, task: i64) -> Option<(Chain, Layout)> {
    let by_itself = bench.near(flavor, task, looks::Wake::Itself);
    let yielding = bench.near(flavor, task, looks::Wake::Yield);
    let let_go = bench.near_let_go(flavor, task);
    let chain = turn(&by_itself, &yielding)
        .into_iter()
        .find(|chain| is_let_go(&let_go, *chain))?;
    let from_outside = bench.woken_from_outside(flavor, chain);
    Some((
        chain,
        Layout {
            task,
            context: chain.context,
            entry: None,
            core: chain.core,
            turn: chain.turn,
            parks: parks(&from_outside)?,
            resumed: resumed(&from_outside)?,
            last: None,
            call: None,
        },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_build_of_tokio_is_understood() {
        let learned = std::thread::spawn(learn).join().unwrap();
        let multi_thread = learned.multi_thread.expect("a layout of workers");
        let current_thread = learned
            .current_thread
            .expect("a layout of `current_thread`");
        assert_eq!(multi_thread.task, current_thread.task);
        assert_eq!(multi_thread.context, current_thread.context);
        assert!(multi_thread.last.is_some() && multi_thread.call.is_some());
        assert!(current_thread.entry.is_some());
    }
}
