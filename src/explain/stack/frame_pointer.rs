//! A frame pointer that is not known, by the code that has set it.
//!
//! *Runs on:* `stall-explainer`; the threads of the programs `tokio-stall` and `cargo-stall`.
//! *Must not:* guess. A function whose first instructions are others than expected stays unknown.
//!
//! The kernel shows the stack pointer of a thread that sleeps in a call, and not its frame pointer.
//! Functions that keep one, as those of the standard library, cannot be unwound without it. Their
//! first instructions show how far it is from the stack pointer: they save registers, and make room
//! of a fixed size.

use super::tables::Modules;
use super::unwind::{Activation, CopiedStack, End, Tables as _, Walk, walk_to_end};
use crate::capture::Registers;
use crate::os::memory;

/// The bytes of a function that are read: more than its first instructions have.
const PROLOGUE: usize = 40;

/// Walks a stack. A frame pointer of zero is not known, and is found if it is needed.
///
/// # Cost
///
/// A second walk if it is needed.
pub(super) fn walk_without(
    registers: Registers,
    (words, truncated): (&[u64], bool),
    modules: &mut Modules,
) -> Walk {
    let (walk, last) = walk_to_end(registers, words, truncated, modules);
    if registers.fp != 0 || last.registers.fp != 0 || walk.end != End::Lost {
        return walk;
    }
    let stack = CopiedStack::of(registers.sp, words);
    let found = frame_pointer(last, &stack, modules).map(|fp| {
        let registers = Registers { fp, ..registers };
        walk_to_end(registers, words, truncated, modules).0
    });
    found.filter(is_whole).unwrap_or(walk)
}

/// Whether no call is guessed, and none is missing but for the words that were not copied.
pub(super) fn is_whole(walk: &Walk) -> bool {
    walk.end != End::Lost && walk.certain == walk.addresses.len()
}

/// The frame pointer of this call. The word after its place is a return address.
fn frame_pointer(at: Activation, stack: &CopiedStack<'_>, modules: &mut Modules) -> Option<u64> {
    let start = modules.function_start(at.address())?;
    let code = memory::read_exact(modules.process(), start, PROLOGUE)?;
    let fp = at.registers.sp.checked_add(room(&code)?)?;
    let returns_to = stack.read(fp + 8)?;
    modules.is_return_address(returns_to).then_some(fp)
}

/// The bytes between the stack pointer and the frame pointer of a function that begins so: `push
/// %rbp; mov %rsp,%rbp`, further pushes, `sub $room,%rsp`. `None` if it begins otherwise, or gives
/// the stack pointer another value, as for an alignment.
#[cfg(target_arch = "x86_64")]
fn room(code: &[u8]) -> Option<u64> {
    let mut rest = code.strip_prefix(&[0x55, 0x48, 0x89, 0xe5])?;
    let mut pushed = 0;
    loop {
        rest = match rest {
            [0x50..=0x57, rest @ ..] | [0x41, 0x50..=0x57, rest @ ..] => rest,
            _ => break,
        };
        pushed += 8;
    }
    let (room, after) = match rest {
        [0x48, 0x83, 0xec, room, after @ ..] => (u64::from(*room), after),
        [0x48, 0x81, 0xec, a, b, c, d, after @ ..] => {
            (u64::from(u32::from_le_bytes([*a, *b, *c, *d])), after)
        }
        other => (0, other),
    };
    let is_other = OTHERS.iter().any(|other| after.starts_with(other));
    (!is_other).then_some(pushed + room)
}

/// Instructions that give the stack pointer another value: for an alignment, for room that is
/// probed page by page, and for room of another size.
#[cfg(target_arch = "x86_64")]
const OTHERS: [&[u8]; 6] = [
    &[0x48, 0x83, 0xe4],
    &[0x48, 0xc7, 0x04, 0x24],
    &[0x48, 0x8d, 0x64, 0x24],
    &[0x48, 0x8d, 0xa4, 0x24],
    &[0x4c, 0x8d, 0x9c, 0x24],
    &[0xb8],
];

/// Not known: the link register would be missing, too.
#[cfg(not(target_arch = "x86_64"))]
fn room(_code: &[u8]) -> Option<u64> {
    None
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn the_first_instructions_show_the_room() {
        let begins = [0x55, 0x48, 0x89, 0xe5];
        let with = |more: &[u8]| room(&[&begins[..], more, &[0x90; 8]].concat());
        assert_eq!(with(&[]), Some(0));
        assert_eq!(with(&[0x41, 0x57, 0x53]), Some(16));
        assert_eq!(with(&[0x53, 0x48, 0x83, 0xec, 0x20]), Some(40));
        assert_eq!(with(&[0x48, 0x81, 0xec, 0, 1, 0, 0]), Some(256));
        assert_eq!(with(&[0x48, 0x83, 0xe4, 0xe0]), None, "an alignment");
        assert_eq!(with(&[0x48, 0x8d, 0x64, 0x24, 0xc0]), None, "another size");
        assert_eq!(room(&[0x48, 0x83, 0xec, 0x20]), None, "no frame pointer");
    }
}
