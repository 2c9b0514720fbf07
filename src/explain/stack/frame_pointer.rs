//! A frame pointer that is not known, found on the stack.
//!
//! *Runs on:* the threads of the programs `tokio-stall` and `cargo-stall`.
//! *Must not:* guess. A place is believed only if the call that it returns to calls the very
//! function that needs the frame pointer.
//!
//! The kernel shows the stack pointer of a thread that sleeps in a call, and not its frame pointer.
//! Functions that keep one, as those of the standard library, cannot be unwound without it. Its
//! place on the stack holds the register's value in the caller, which may be no frame pointer, and
//! then the return address.

use super::code;
use super::tables::Modules;
use super::unwind::{End, Tables as _, Walk, walk_words};
use crate::capture::Registers;

/// The words in which it is looked for.
const SEARCHED: usize = 2048;

/// Walks a stack whose frame pointer is not known. `None` if it is not found.
///
/// # Cost
///
/// About 1 µs for each word that may be a return address, and a walk for those that are.
pub(super) fn walk_without(
    registers: Registers,
    (words, truncated): (&[u64], bool),
    modules: &mut Modules,
) -> Option<Walk> {
    let base = registers.sp & !7;
    let after_first = words.iter().skip(1).take(SEARCHED);
    for (returns_to, index) in after_first.copied().zip(0_u64..) {
        if !modules.is_return_address(returns_to) {
            continue;
        }
        let fp = base + 8 * index;
        let with_it = Registers { fp, ..registers };
        let walk = walk_words(with_it, words, truncated, modules);
        if is_whole(&walk) && is_called(&walk, returns_to, modules) {
            return Some(walk);
        }
    }
    None
}

fn is_whole(walk: &Walk) -> bool {
    walk.end != End::Lost && walk.certain == walk.addresses.len()
}

/// Whether the call before this return address calls the function that is on the stack inside of
/// it.
fn is_called(walk: &Walk, returns_to: u64, modules: &mut Modules) -> bool {
    let mut calls = walk.addresses.windows(2);
    let callee = calls.find_map(|pair| (pair[1] + 1 == returns_to).then_some(pair[0]));
    let target = code::call_target(modules.process(), returns_to);
    let begins_at = callee.and_then(|callee| modules.function_start(callee));
    target.is_some() && begins_at == target
}
