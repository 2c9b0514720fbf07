//! From registers and a copy of the stack to the addresses of the calls on it.
//!
//! *Runs on:* `stall-explainer`; in tests also a thread that measures itself.
//! *Must not:* contain unsafe code, or read memory: words and [`Tables`] in, addresses out.

use crate::capture::{Extent, RawStack, Registers};
use framehop::{FrameAddress, UnwindRegsNative};

/// Deeper stacks than this are cut. A recursion looks the same all the way.
const DEEPEST: usize = 512;

/// The unwind tables of all modules, by address.
pub(super) trait Tables {
    /// The kind of the code at an address.
    fn code_at(&mut self, address: u64) -> Code;

    /// Whether the function at this address has no caller: its table has no return address. The
    /// first function of a thread is marked so. `None` if there is no table for it.
    fn is_root(&self, address: u64) -> Option<bool>;

    /// Goes from a frame to its caller: changes the registers, and returns the return address.
    /// `None` if the frame has no caller. An error if no rule leads to the caller.
    fn caller(
        &mut self,
        at: FrameAddress,
        registers: &mut UnwindRegsNative,
        stack: &mut CopiedStack<'_>,
    ) -> Result<Option<u64>, ()>;
}

/// The kind of the code at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Code {
    /// There is no code.
    Nowhere,
    /// The function has no unwind table. Its frame pointer is followed, which may skip frames.
    WithoutTable,
    WithTable,
    /// Signal handlers return to it. The frame below it is the code that the signal interrupted.
    SignalReturn,
}

/// The words of a stack, read by the address that each had.
pub(super) struct CopiedStack<'a> {
    base: u64,
    words: &'a [u64],
    /// Whether the last word asked for is not among them.
    is_beyond: bool,
}

impl CopiedStack<'_> {
    /// The word at this address. An error if it was not copied.
    pub(super) fn read(&mut self, address: u64) -> Result<u64, ()> {
        let word = address
            .checked_sub(self.base)
            .filter(|offset| offset % 8 == 0)
            .and_then(|offset| self.words.get(usize::try_from(offset / 8).ok()?));
        self.is_beyond = word.is_none();
        word.copied().ok_or(())
    }
}

/// The calls on a stack, innermost first.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Walk {
    /// Addresses inside the instruction that was executing, or the call.
    pub(crate) addresses: Vec<u64>,
    pub(crate) end: End,
}

/// The reason why a walk ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It came to the thread's root: a function that has no caller.
    Root,
    /// No rule leads further, and no table shows whether that is the root.
    Unproven,
    /// It came to the end of the copied words.
    Truncated,
    /// It came to a frame that no rule explains.
    Lost,
}

/// Walks a copied stack.
///
/// # Cost
///
/// 25 to 70 µs for about twenty frames, once the tables of the modules have been read.
pub(super) fn walk(stack: &RawStack, tables: &mut impl Tables) -> Walk {
    let registers = stack.registers();
    let truncated = stack.extent() != Extent::Whole;
    stack.with_words(|words| walk_words(registers, words, truncated, tables))
}

fn walk_words(
    registers: Registers,
    words: &[u64],
    truncated: bool,
    tables: &mut impl Tables,
) -> Walk {
    let mut walker = Walker::new(registers, words, truncated, tables);
    let end = loop {
        if let Err(end) = walker.step() {
            break end;
        }
    };
    Walk {
        addresses: walker.addresses,
        end,
    }
}

/// A walk that goes on: the frame that it has come to, and the frames before.
struct Walker<'a, T> {
    tables: &'a mut T,
    stack: CopiedStack<'a>,
    /// Whether the stack has more words than were copied.
    truncated: bool,
    at: FrameAddress,
    registers: UnwindRegsNative,
    addresses: Vec<u64>,
    all_have_tables: bool,
}

impl<'a, T: Tables> Walker<'a, T> {
    fn new(registers: Registers, words: &'a [u64], truncated: bool, tables: &'a mut T) -> Self {
        let at = FrameAddress::from_instruction_pointer(registers.pc);
        Walker {
            tables,
            stack: CopiedStack {
                base: registers.sp & !7,
                words,
                is_beyond: false,
            },
            truncated,
            at,
            registers: native(registers),
            addresses: vec![at.address_for_lookup()],
            all_have_tables: true,
        }
    }

    /// Goes one frame further, or ends.
    fn step(&mut self) -> Result<(), End> {
        if self.addresses.len() == DEEPEST {
            return Err(End::Truncated);
        }
        let code = self.tables.code_at(self.at.address_for_lookup());
        self.all_have_tables &= matches!(code, Code::WithTable | Code::SignalReturn);
        match code {
            // A call comes from code. The innermost pc may be anywhere.
            Code::Nowhere if self.addresses.len() > 1 => Err(End::Lost),
            Code::SignalReturn => self.step_to_interrupted(),
            _ => self.step_to_caller(),
        }
    }

    fn step_to_interrupted(&mut self) -> Result<(), End> {
        let interrupted = interrupted(self.registers.sp(), &mut self.stack);
        let interrupted = interrupted.ok_or_else(|| self.end_without_rule())?;
        self.registers = native(interrupted);
        self.go_to(FrameAddress::from_instruction_pointer(interrupted.pc));
        Ok(())
    }

    fn step_to_caller(&mut self) -> Result<(), End> {
        let caller = self
            .tables
            .caller(self.at, &mut self.registers, &mut self.stack)
            .map_err(|()| self.end_without_rule())?;
        let caller = caller.and_then(FrameAddress::from_return_address);
        self.go_to(caller.ok_or_else(|| self.end_without_caller())?);
        Ok(())
    }

    fn go_to(&mut self, frame: FrameAddress) {
        self.at = frame;
        self.addresses.push(frame.address_for_lookup());
    }

    fn end_without_rule(&self) -> End {
        if self.truncated && self.stack.is_beyond {
            End::Truncated
        } else {
            End::Lost
        }
    }

    /// The end at a frame that seems to have no caller. A stack that was caught in the middle of
    /// being switched, or unwound by a panic, can lead to any place. So can the frame that a signal
    /// has made.
    fn end_without_caller(&self) -> End {
        if !self.all_have_tables {
            return End::Unproven;
        }
        match self.tables.is_root(self.at.address_for_lookup()) {
            Some(true) => End::Root,
            Some(false) => End::Lost,
            None => End::Unproven,
        }
    }
}

/// The registers of the code that a signal interrupted, as the kernel has left them above the
/// handler's frame. Their place is part of the kernel's interface. `framehop` does not support the
/// unwind table that leads to it.
#[cfg(target_arch = "x86_64")]
fn interrupted(sp: u64, stack: &mut CopiedStack<'_>) -> Option<Registers> {
    // The handler has returned, so the stack pointer is at the context.
    let mut register = |index: libc::c_int| {
        let offset = SAVED_REGISTERS as u64 + 8 * u64::try_from(index).ok()?;
        stack.read(sp.checked_add(offset)?).ok()
    };
    Some(Registers {
        pc: register(libc::REG_RIP)?,
        sp: register(libc::REG_RSP)?,
        fp: register(libc::REG_RBP)?,
        lr: 0,
    })
}

/// The offset of the registers in the context of a signal.
#[cfg(target_arch = "x86_64")]
const SAVED_REGISTERS: usize = std::mem::offset_of!(libc::ucontext_t, uc_mcontext)
    + std::mem::offset_of!(libc::mcontext_t, gregs);

#[cfg(target_arch = "aarch64")]
fn interrupted(_: u64, _: &mut CopiedStack<'_>) -> Option<Registers> {
    None
}

#[cfg(target_arch = "x86_64")]
fn native(registers: Registers) -> UnwindRegsNative {
    UnwindRegsNative::new(registers.pc, registers.sp, registers.fp)
}

#[cfg(target_arch = "aarch64")]
fn native(registers: Registers) -> UnwindRegsNative {
    UnwindRegsNative::new_with_ptr_auth_mask(
        framehop::aarch64::PtrAuthMask(SIGNED),
        registers.lr,
        registers.sp,
        registers.fp,
    )
}

/// The bits of an address that are not its signature: Linux gives programs 48 of them.
#[cfg(target_arch = "aarch64")]
const SIGNED: u64 = (1 << 48) - 1;

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;
    use framehop::{CacheNative, MayAllocateDuringUnwind, Unwinder as _, UnwinderNative};
    use std::ops::Range;

    const SP: u64 = 0x7000;
    const ROOT: u64 = 0x1100;
    const HANDLER_RETURN: u64 = 0x1200;
    const MADE_AT_RUN_TIME: Range<u64> = 0x3000..0x4000;

    /// Code from 0x1000 to 0x2000 with tables, and code made at run time without. Callers are found
    /// by frame pointers.
    #[derive(Default)]
    struct Program {
        unwinder: UnwinderNative<Vec<u8>, MayAllocateDuringUnwind>,
        cache: CacheNative<MayAllocateDuringUnwind>,
    }

    impl Tables for Program {
        fn code_at(&mut self, address: u64) -> Code {
            match address {
                HANDLER_RETURN => Code::SignalReturn,
                0x1000..0x2000 => Code::WithTable,
                _ if MADE_AT_RUN_TIME.contains(&address) => Code::WithoutTable,
                _ => Code::Nowhere,
            }
        }

        fn is_root(&self, address: u64) -> Option<bool> {
            Some(address == ROOT)
        }

        fn caller(
            &mut self,
            at: FrameAddress,
            registers: &mut UnwindRegsNative,
            stack: &mut CopiedStack<'_>,
        ) -> Result<Option<u64>, ()> {
            let mut read = |address| stack.read(address);
            self.unwinder
                .unwind_frame(at, registers, &mut self.cache, &mut read)
                .map_err(|_| ())
        }
    }

    /// A stack of these callers: pairs of a frame pointer and a return address. The last frame
    /// pointer is zero.
    fn stack_of(callers: &[u64]) -> Vec<u64> {
        let mut words = Vec::new();
        for (index, caller) in callers.iter().enumerate() {
            let next = SP + 16 * (index as u64 + 1);
            let is_last = index + 1 == callers.len();
            words.extend([if is_last { 0 } else { next }, caller + 1]);
        }
        words
    }

    fn walked(pc: u64, words: &[u64], truncated: bool) -> Walk {
        let registers = Registers {
            pc,
            sp: SP,
            fp: SP,
            lr: 0,
        };
        walk_words(registers, words, truncated, &mut Program::default())
    }

    fn walk_of(addresses: &[u64], end: End) -> Walk {
        Walk {
            addresses: addresses.to_vec(),
            end,
        }
    }

    #[test]
    fn a_walk_ends_at_the_root() {
        let walk = walked(0x1010, &stack_of(&[0x1020, 0x1030, ROOT]), false);
        assert_eq!(walk, walk_of(&[0x1010, 0x1020, 0x1030, ROOT], End::Root));
        let walk = walked(0x1010, &stack_of(&[0x1020, 0x1030]), false);
        assert_eq!(walk.end, End::Lost, "no root, but nothing leads further");
    }

    #[test]
    fn a_stack_that_is_deeper_than_its_copy_is_truncated() {
        let words = stack_of(&[0x1020, 0x1030, ROOT]);
        let addresses = [0x1010, 0x1020, 0x1030];
        let walk = walked(0x1010, &words[..4], true);
        assert_eq!(walk, walk_of(&addresses, End::Truncated));
        let walk = walked(0x1010, &words[..4], false);
        assert_eq!(walk, walk_of(&addresses, End::Lost), "the copy is whole");
    }

    #[test]
    fn a_recursion_is_cut() {
        let mut calls = vec![0x1020; 2 * DEEPEST];
        calls.push(ROOT);
        let walk = walked(0x1010, &stack_of(&calls), false);
        assert_eq!(walk.addresses.len(), DEEPEST);
        assert_eq!(walk.end, End::Truncated);
    }

    #[test]
    fn a_caller_outside_of_all_code_is_lost() {
        let walk = walked(0x1010, &stack_of(&[0x1020, 0x5000, ROOT]), false);
        assert_eq!(walk, walk_of(&[0x1010, 0x1020, 0x5000], End::Lost));
    }

    #[test]
    fn code_without_tables_is_passed_and_leaves_the_root_unproven() {
        let made = MADE_AT_RUN_TIME.start;
        let walk = walked(0x1010, &stack_of(&[made, ROOT]), false);
        assert_eq!(walk, walk_of(&[0x1010, made, ROOT], End::Unproven));
        let walk = walked(0x5000, &stack_of(&[ROOT]), false);
        assert_eq!(walk.end, End::Unproven, "a call to no code has a caller");
    }

    #[test]
    fn the_frame_of_a_signal_leads_to_the_interrupted_code() {
        // The handler, its return address, the context, and the stack of the interrupted code.
        let context = SP + 16;
        let saved = |register: libc::c_int| 2 + SAVED_REGISTERS / 8 + register as usize;
        let mut words = vec![0; 64];
        words[1] = HANDLER_RETURN + 1;
        let outer = SP + 64 * 8;
        words[saved(libc::REG_RIP)] = 0x1040;
        words[saved(libc::REG_RSP)] = outer;
        words[saved(libc::REG_RBP)] = outer;
        words.extend([0, ROOT + 1]);
        assert_eq!(context + SAVED_REGISTERS as u64, SP + 8 * saved(0) as u64);
        let walk = walked(0x1010, &words, false);
        let addresses = [0x1010, HANDLER_RETURN, 0x1040, ROOT];
        assert_eq!(walk, walk_of(&addresses, End::Root));
        let walk = walked(0x1010, &words[..8], true);
        assert_eq!(walk.end, End::Truncated, "the context was not copied");
    }
}
