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

/// A walk that has begun without a frame pointer.
pub(super) struct WalkWithout {
    pub(super) walk: Walk,
    /// The frame pointer was known at its end.
    is_known: bool,
}

impl WalkWithout {
    fn of((walk, last): (Walk, Activation)) -> WalkWithout {
        let is_known = last.registers.fp != 0;
        WalkWithout { walk, is_known }
    }

    /// The walk, if the frame pointer would lead no further.
    pub(super) fn whole(self) -> Option<Walk> {
        let is_whole = is_certain(&self.walk) && (self.is_known || self.walk.end != End::Lost);
        is_whole.then_some(self.walk)
    }
}

fn is_certain(walk: &Walk) -> bool {
    walk.certain == walk.addresses.len()
}

/// Walks a stack. A frame pointer of zero is not known, and is found if it is needed.
///
/// # Cost
///
/// A second walk if it is needed.
pub(super) fn walk_without(
    registers: Registers,
    (words, truncated): (&[u64], bool),
    modules: &mut Modules,
) -> WalkWithout {
    let (walk, last) = walk_to_end(registers, words, truncated, modules);
    if registers.fp != 0 || last.registers.fp != 0 || walk.end != End::Lost {
        return WalkWithout::of((walk, last));
    }
    let stack = CopiedStack::of(registers.sp, words);
    let found = frame_pointer(last, &stack, modules).map(|fp| {
        let registers = Registers { fp, ..registers };
        walk_to_end(registers, words, truncated, modules)
    });
    let leads_on = |(walk, _): &(Walk, Activation)| walk.end != End::Lost && is_certain(walk);
    WalkWithout::of(found.filter(leads_on).unwrap_or((walk, last)))
}

/// The frame pointer of this call. The word after its place is a return address, and the call there
/// is one of this function, as far as that can be seen.
fn frame_pointer(at: Activation, stack: &CopiedStack<'_>, modules: &mut Modules) -> Option<u64> {
    let start = modules.function_start(at.address())?;
    let code = memory::read_exact(modules.process(), start, PROLOGUE)?;
    let fp = at.registers.sp.checked_add(room(&code)?)?;
    let returns_to = stack.read(fp + 8)?;
    let call = memory::read_exact(
        modules.process(),
        returns_to.checked_sub(CALL)?,
        CALL as usize,
    )?;
    let is_its = called(&call, returns_to).is_none_or(|called| called == start);
    (is_its && modules.is_return_address(returns_to)).then_some(fp)
}

/// The bytes of a call of one function.
const CALL: u64 = 5;

/// The function that the call before this address calls. `None` if the call does not say.
fn called(call: &[u8], returns_to: u64) -> Option<u64> {
    let [0xe8, a, b, c, d] = *call else {
        return None;
    };
    let distance = i32::from_le_bytes([a, b, c, d]);
    Some(returns_to.wrapping_add_signed(i64::from(distance)))
}

/// The bytes between the stack pointer and the frame pointer of a function that begins so: `push
/// %rbp; mov %rsp,%rbp`, further pushes, `sub $room,%rsp`. `None` if it begins otherwise, or gives
/// the stack pointer another value, as for an alignment.
#[cfg(target_arch = "x86_64")]
fn room(code: &[u8]) -> Option<u64> {
    let code = code.strip_prefix(&[0xf3, 0x0f, 0x1e, 0xfa]).unwrap_or(code); // `endbr64`
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
    // Some compilers make room later, among other instructions.
    let mut later = after.windows(3);
    let has_more = later.any(|code| matches!(code, [0x48, 0x83 | 0x81, 0xec]));
    (!is_other && !has_more).then_some(pushed + room)
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
        assert_eq!(with(&[0x53, 0x90, 0x48, 0x83, 0xec, 0x20]), None, "later");
        let marked = [&[0xf3, 0x0f, 0x1e, 0xfa], &begins[..], &[0x53]].concat();
        assert_eq!(room(&marked), Some(8));
    }

    #[test]
    fn a_call_shows_its_function() {
        assert_eq!(called(&[0xe8, 0x10, 0, 0, 0], 0x1005), Some(0x1015));
        assert_eq!(called(&[0xe8, 0xf0, 0xff, 0xff, 0xff], 0x1005), Some(0xff5));
        assert_eq!(called(&[0x00, 0x41, 0xff, 0x55, 0x10], 0x1005), None);
    }
}
