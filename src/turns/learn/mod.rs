//! Finds the places of the words of [`Layout`] in tokio's memory, by their behaviour.
//!
//! *Runs on:* a thread `stall-turns`, once per process. It drives two runtimes of its own, which
//! are not watched.
//! *Must not:* run on a thread that is inside a runtime, or depend on the fields of any type of
//! tokio's.
//!
//! These runtimes run only the tasks given to them here, so each word is found by its necessary
//! behaviour. The number of the task must equal `tokio::task::try_id`; the count of turns rises by
//! one when a task wakes itself and by two when it yields; and so on. A word that does not behave
//! is not found, and then there are no turns: a result, not an error.

mod looks;
mod words;

use super::NoTurns;
use super::layout::Layout;
use crate::os::memory;
use looks::{Bench, Flavor, Wake};
use words::{Chain, call, is_let_go, last_flag, parks, resumed, task_word, turn};

/// The layouts that were found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Learned {
    pub(crate) multi_thread: Result<Layout, NoTurns>,
    pub(crate) current_thread: Result<Layout, NoTurns>,
}

/// The number of tries: on a busy machine a turn may slip in between.
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
    // One place must hold for the threads of both flavors; a word found on a stack by chance does
    // not.
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
    Some(layout)
}

/// The part of the layout that both flavors have, and the way to the count of turns.
fn shared_part(bench: &Bench, flavor: Flavor, task: i64) -> Option<(Chain, Layout)> {
    let chain = find_chain(bench, flavor, task)?;
    let from_outside = bench.woken_from_outside(flavor, chain);
    Some((
        chain,
        Layout {
            task,
            context: chain.context,
            core: chain.core,
            turn: chain.turn,
            parks: parks(&from_outside)?,
            resumed: resumed(&from_outside)?,
            last: None,
            call: None,
        },
    ))
}

fn find_chain(bench: &Bench, flavor: Flavor, task: i64) -> Option<Chain> {
    let by_itself = bench.candidates(flavor, task, Wake::Itself);
    let yielding = bench.candidates(flavor, task, Wake::Yield);
    let let_go = bench.candidates_let_go(flavor, task);
    let mut chains = turn(&by_itself, &yielding).into_iter();
    chains.find(|chain| is_let_go(&let_go, *chain))
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
    }
}
