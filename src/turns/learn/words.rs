//! Finds each word by its necessary behaviour. Pure: records in, places out.
//!
//! *Runs on:* a thread `stall-turns`.

use super::super::layout::{CallWord, LastFlag};
use super::looks::{AnchorPages, Candidates, PollSnapshot};
use std::collections::HashSet;
use std::ops::Range;

/// The range of possible addresses on the heap.
pub(super) const OFF_STACK: Range<u64> = 1 << 16..1 << 47;

/// The way from a thread's anchor to the count of turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Chain {
    /// From the anchor to the pointer to the context.
    pub(super) context: i64,
    /// From the context to the pointer to the core.
    pub(super) core: usize,
    /// From the core to the count of turns.
    pub(super) turn: usize,
}

/// The most polls of a turn from the "next" slot, after the one from the queue.
const MOST_NEXT: usize = 3;

/// Finds the word that is the number of the task, in every task and on every thread.
pub(super) fn task_word(looks: &[AnchorPages]) -> Option<i64> {
    let places = |look: &AnchorPages| -> HashSet<i64> {
        let words = look.words.iter().enumerate();
        let same = words.filter(|(_, word)| **word == look.task && look.task != 0);
        same.map(|(index, _)| look.from + index as i64 * 8)
            .collect()
    };
    let all = looks.iter().map(places);
    only(all.reduce(|some, others| &some & &others)?)
}

/// Finds the counts that rise by one with each poll of a task that wakes itself, and by two with
/// each of one that yields, the nearest first.
///
/// The number of polls, which some builds of tokio count as well, rises by one in both.
pub(super) fn turn(by_itself: &[Candidates], yielding: &[Candidates]) -> Vec<Chain> {
    let by_itself = steadily_rising(by_itself, 1);
    let yielding = steadily_rising(yielding, 2);
    let mut both: Vec<Chain> = by_itself.intersection(&yielding).copied().collect();
    both.sort_unstable();
    both
}

fn steadily_rising(looks: &[Candidates], by: u32) -> HashSet<Chain> {
    let Some(first) = looks.first() else {
        return HashSet::new();
    };
    let rises = |chain: &Chain| {
        let values: Option<Vec<u32>> = looks.iter().map(|look| value(look, *chain)).collect();
        values.is_some_and(|values| {
            let mut pairs = values.windows(2);
            pairs.all(|pair| pair[1].wrapping_sub(pair[0]) == by)
        })
    };
    half_words(first).filter(rises).collect()
}

/// The ways to each half word of each candidate for the core.
fn half_words(look: &Candidates) -> impl Iterator<Item = Chain> + use<'_> {
    look.contexts.iter().flat_map(|context| {
        context.cores.iter().flat_map(move |core| {
            let places = (0..core.bytes.len() / 4 * 4).step_by(4);
            places.map(move |turn| Chain {
                context: context.place,
                core: core.place,
                turn,
            })
        })
    })
}

fn core(look: &Candidates, chain: Chain) -> Option<(u64, &[u8])> {
    let mut contexts = look.contexts.iter();
    let context = contexts.find(|context| context.place == chain.context)?;
    let mut cores = context.cores.iter();
    let core = cores.find(|core| core.place == chain.core)?;
    Some((core.address, &core.bytes))
}

fn value(look: &Candidates, chain: Chain) -> Option<u32> {
    half_word(core(look, chain)?.1, chain.turn)
}

/// Whether the pointer to the core is gone once the thread has let go of its worker. A copy of it
/// that happens to be on the stack stays.
pub(super) fn is_let_go([held, let_go]: &[Candidates; 2], chain: Chain) -> bool {
    let address = |look| core(look, chain).map(|(address, _)| address);
    address(held).is_some() && address(held) != address(let_go)
}

/// Finds the word that always equals the published number of parks and unparks.
pub(super) fn parks(looks: &[PollSnapshot]) -> Option<usize> {
    let values: HashSet<u64> = looks.iter().map(|look| look.parks).collect();
    if values.len() < looks.len() / 2 {
        return None;
    }
    let same = |at: &usize| {
        let mut looks = looks.iter();
        looks.all(|look| word(&look.core, *at) == Some(look.parks))
    };
    places(looks, 8).find(same)
}

/// Finds the time that always lies between the look before and this one: the worker has begun to
/// work again.
pub(super) fn resumed(looks: &[PollSnapshot]) -> Option<usize> {
    let is_in_between = |at: &usize| {
        let mut pairs = looks.windows(2);
        pairs.all(|pair| {
            let (Some(seconds), Some(nanos)) =
                (word(&pair[1].core, *at), half_word(&pair[1].core, *at + 8))
            else {
                return false;
            };
            nanos < 1_000_000_000 && pair[0].at < (seconds, nanos) && (seconds, nanos) <= pair[1].at
        })
    };
    places(looks, 8).find(is_in_between)
}

/// Finds the byte that has one value in the third poll from the "next" slot, and another in all
/// polls before it.
pub(super) fn last_flag(looks: &[PollSnapshot], chain: Chain) -> Option<LastFlag> {
    let polls = by_turn(looks, chain);
    let mut flags = places(looks, 1).filter_map(|at| {
        let byte = |look: &PollSnapshot| look.core.get(at).copied();
        let value = same_in(&polls, |nth| nth == MOST_NEXT, byte)?;
        let before = same_in(&polls, |nth| nth < MOST_NEXT, byte)?;
        (value != before).then_some(LastFlag { at, value })
    });
    flags.next()
}

/// Finds the word on the stack that is one address of the program's code in each poll of a task
/// from the queue, and another in each one from the "next" slot.
pub(super) fn call(
    looks: &[PollSnapshot],
    from_queue: &[PollSnapshot],
    chain: Chain,
) -> Option<CallWord> {
    let polls = by_turn(looks, chain);
    let deepest = looks.iter().map(|look| look.stack_from).min()?;
    let mut calls = (deepest..0).step_by(8).filter_map(|at| {
        let on_stack = |look: &PollSnapshot| {
            let index = usize::try_from(at - look.stack_from).ok()? / 8;
            look.stack.get(index).copied()
        };
        let queue = same_in(&polls, |nth| nth == 0, on_stack)?;
        let next = same_in(&polls, |nth| nth > 0, on_stack)?;
        let holds = from_queue.iter().all(|look| on_stack(look) == Some(queue));
        let are_code = is_code(queue) && is_code(next);
        (queue != next && holds && are_code).then_some(CallWord { at, queue, next })
    });
    calls.next()
}

/// The looks, each with the index of its poll in its turn. Those of the first turn are left out,
/// since it began with another task.
fn by_turn(looks: &[PollSnapshot], chain: Chain) -> Vec<(usize, &PollSnapshot)> {
    let turn = |look: &PollSnapshot| half_word(&look.core, chain.turn);
    let mut polls: Vec<(usize, &PollSnapshot)> = Vec::with_capacity(looks.len());
    for look in looks {
        let nth = match polls.last() {
            Some((nth, last)) if turn(last) == turn(look) => nth + 1,
            _ => 0,
        };
        polls.push((nth, look));
    }
    let second_turn = polls.iter().skip(1).position(|(nth, _)| *nth == 0);
    polls.split_off(second_turn.map_or(polls.len(), |before| before + 1))
}

/// The value that all polls of a stage have in common.
fn same_in<T: PartialEq>(
    polls: &[(usize, &PollSnapshot)],
    stage: impl Fn(usize) -> bool,
    value: impl Fn(&PollSnapshot) -> Option<T>,
) -> Option<T> {
    let of_the_stage = polls.iter().filter(|(nth, _)| stage(*nth));
    same(of_the_stage.map(|(_, look)| value(look)))
}

/// The value that all have in common; `None` if there are none, or if one is missing.
fn same<T: PartialEq>(mut values: impl Iterator<Item = Option<T>>) -> Option<T> {
    let first = values.next()??;
    values
        .all(|value| value.as_ref() == Some(&first))
        .then_some(first)
}

/// The only value; `None` if there are none or several.
fn only<T>(values: impl IntoIterator<Item = T>) -> Option<T> {
    let mut values = values.into_iter();
    let first = values.next()?;
    values.next().is_none().then_some(first)
}

/// The places in a core, `apart` bytes from each other.
fn places(looks: &[PollSnapshot], apart: usize) -> impl Iterator<Item = usize> + use<> {
    let length = looks.iter().map(|look| look.core.len()).min().unwrap_or(0);
    (0..length).step_by(apart)
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..at + 8)?;
    Some(u64::from_ne_bytes(bytes.try_into().ok()?))
}

fn half_word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

/// Whether an address is near this function, and so of the program's code.
fn is_code(address: u64) -> bool {
    const LARGEST_PROGRAM: u64 = 1 << 29;
    let here = is_code as fn(u64) -> bool as usize as u64;
    address.abs_diff(here) < LARGEST_PROGRAM
}

#[cfg(test)]
mod tests {
    use super::super::looks::{Context, Core};
    use super::*;

    fn seen(turn: u32, last: u8, call: u64) -> PollSnapshot {
        let mut core = turn.to_ne_bytes().to_vec();
        core.extend([9, last, 9, 9]);
        PollSnapshot {
            core,
            parks: 0,
            at: (0, 0),
            stack_from: -16,
            stack: vec![call, 7],
        }
    }

    const CHAIN: Chain = Chain {
        context: -8,
        core: 24,
        turn: 0,
    };

    #[test]
    fn the_first_turn_of_a_ping_pong_does_not_count() {
        let looks: Vec<PollSnapshot> = [1, 2, 2, 2, 2, 3, 3].map(|turn| seen(turn, 0, 0)).into();
        let nth: Vec<usize> = by_turn(&looks, CHAIN).iter().map(|(nth, _)| *nth).collect();
        assert_eq!(nth, [0, 1, 2, 3, 0, 1]);
        assert!(by_turn(&looks[..1], CHAIN).is_empty());
    }

    #[test]
    fn flag_and_call_follow_the_stage_of_the_poll() {
        let code = is_code as fn(u64) -> bool as usize as u64;
        let (queue, next) = (code + 8, code + 24);
        let turn = |turn| {
            [
                seen(turn, 1, queue),
                seen(turn, 1, next),
                seen(turn, 1, next),
                seen(turn, 0, next),
            ]
        };
        let looks = [vec![seen(1, 1, next)], turn(2).into(), turn(3).into()].concat();
        assert_eq!(last_flag(&looks, CHAIN), Some(LastFlag { at: 5, value: 0 }));
        let found = CallWord {
            at: -16,
            queue,
            next,
        };
        let others = [seen(9, 1, queue)];
        assert_eq!(call(&looks, &others, CHAIN), Some(found));
        let others = [seen(9, 1, next)];
        assert_eq!(call(&looks, &others, CHAIN), None, "not in other tasks");
    }

    #[test]
    fn only_what_rises_by_one_and_then_by_two_counts_turns() {
        let near = |turns: u32, polls: u32| {
            let bytes = [turns.to_ne_bytes(), polls.to_ne_bytes()].concat();
            Candidates {
                contexts: vec![Context {
                    place: -8,
                    address: 0,
                    cores: vec![Core {
                        place: 24,
                        address: 64,
                        bytes,
                    }],
                }],
            }
        };
        let by_itself = [near(5, 5), near(6, 6), near(7, 7)];
        let yielding = [near(10, 10), near(12, 11), near(14, 12)];
        assert_eq!(turn(&by_itself, &yielding), [CHAIN]);
        assert!(is_let_go(
            &[
                near(1, 1),
                Candidates {
                    contexts: Vec::new(),
                }
            ],
            CHAIN
        ));
        assert!(
            !is_let_go(&[near(1, 1), near(2, 2)], CHAIN),
            "a copy on the stack stays"
        );
    }

    #[test]
    fn the_number_of_the_task_is_at_one_place_everywhere() {
        let around = |task, words: &[u64]| AnchorPages {
            task,
            from: -8,
            words: words.to_vec(),
        };
        let looks = [around(7, &[7, 7, 1]), around(8, &[8, 3, 8])];
        assert_eq!(task_word(&looks), Some(-8));
        assert_eq!(task_word(&looks[..1]), None, "two places");
        assert_eq!(task_word(&[]), None);
    }
}
