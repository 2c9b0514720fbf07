//! From registers and a copy of the stack to the addresses of the calls on it.
//!
//! *Runs on:* `stall-explainer`; in tests also a thread that measures itself.
//! *Must not:* contain unsafe code, or read memory: words and [`Tables`] in, addresses out.
//!
//! A walk follows unwind tables alone. Where code has none, it goes on at the first word that can
//! be a return address, and all calls from there outwards are guesses.

use crate::capture::{Extent, RawStack, Registers};

/// Deeper stacks than this are cut. A recursion looks the same all the way.
const DEEPEST: usize = 512;

/// The words in which a return address is looked for if no table shows where it is.
const SEARCHED: usize = 8 * 1024;

/// The most return addresses that are tried.
const TRIED: usize = 64;

/// The unwind tables of all modules, by address.
pub(super) trait Tables {
    /// The way from this call to its caller.
    fn way(&mut self, at: Activation, stack: &CopiedStack<'_>) -> Way;

    /// Whether a call may return to this address: the instruction before it is a call.
    fn is_return_address(&self, address: u64) -> bool;
}

/// One call that is going on: the registers in its code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Activation {
    pub(super) registers: Registers,
    /// Whether its code goes on when another call returns. Else it was interrupted.
    pub(super) calls: bool,
}

impl Activation {
    fn interrupted(registers: Registers) -> Activation {
        Activation {
            registers,
            calls: false,
        }
    }

    fn calling(registers: Registers) -> Activation {
        Activation {
            registers,
            calls: true,
        }
    }

    /// An address inside the instruction that was interrupted, or the call. A call may be the last
    /// instruction of a function.
    pub(super) fn address(&self) -> u64 {
        self.registers.pc.wrapping_sub(u64::from(self.calls))
    }
}

/// The way from a call to its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// The registers of the caller.
    Caller(Registers),
    /// The function has no caller: its table has no return address. The first function of a thread
    /// is marked so.
    Root,
    /// Signal handlers return to this code. Its caller is the code that the signal interrupted.
    SignalReturn,
    /// The code has no unwind table, or one with a rule that cannot be followed.
    Unexplained,
    /// The rule needs a word that was not copied.
    Beyond,
    /// There is no code at this address, or its rule leads backwards.
    Astray,
    /// The rule needs the frame pointer, which is not known.
    NoFramePointer,
}

/// The words of a stack, read by the address that each had.
#[derive(Clone, Copy)]
pub(super) struct CopiedStack<'a> {
    base: u64,
    words: &'a [u64],
}

impl<'a> CopiedStack<'a> {
    /// The words from the stack pointer on.
    pub(super) fn of(sp: u64, words: &'a [u64]) -> CopiedStack<'a> {
        CopiedStack {
            base: sp & !7,
            words,
        }
    }

    /// The word at this address. `None` if it was not copied.
    pub(super) fn read(&self, address: u64) -> Option<u64> {
        self.words_from(address)?.first().copied()
    }

    fn words_from(&self, address: u64) -> Option<&'a [u64]> {
        let offset = address.checked_sub(self.base)?;
        let index = usize::try_from(offset / 8).ok()?;
        self.words.get(index..).filter(|_| offset % 8 == 0)
    }
}

/// The calls on a stack, innermost first.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Walk {
    /// Addresses inside the instruction that was executing, or the call.
    pub(crate) addresses: Vec<u64>,
    /// The number of addresses that tables have led to. The others are guesses.
    pub(crate) certain: usize,
    /// The indices of the addresses to which signal handlers return.
    pub(crate) signal_returns: Vec<usize>,
    pub(crate) end: End,
}

/// The reason why a walk ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It came to the thread's root: a function that has no caller.
    Root,
    /// It came to the end of the copied words.
    Truncated,
    /// It came to a call that no rule explains.
    Lost,
}

/// Walks a copied stack.
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
    walk_to_end(registers, words, truncated, tables).0
}

/// Walks copied words. Returns also the call at which the walk has ended.
pub(super) fn walk_to_end(
    registers: Registers,
    words: &[u64],
    truncated: bool,
    tables: &mut impl Tables,
) -> (Walk, Activation) {
    let mut walker = Walker::new(registers, words, truncated, tables);
    let end = loop {
        if let Err(end) = walker.step() {
            break end;
        }
    };
    let last = walker.at;
    let walk = Walk {
        certain: walker.certain.unwrap_or(walker.addresses.len()),
        signal_returns: walker.signal_returns,
        addresses: walker.addresses,
        end,
    };
    (walk, last)
}

/// A walk that goes on: the call that it has come to, and the calls before.
struct Walker<'a, T> {
    tables: &'a mut T,
    stack: CopiedStack<'a>,
    /// Whether the stack has more words than were copied.
    truncated: bool,
    at: Activation,
    addresses: Vec<u64>,
    /// The number of addresses before the first guess.
    certain: Option<usize>,
    signal_returns: Vec<usize>,
}

impl<'a, T: Tables> Walker<'a, T> {
    fn new(registers: Registers, words: &'a [u64], truncated: bool, tables: &'a mut T) -> Self {
        let at = Activation::interrupted(registers);
        Walker {
            tables,
            stack: CopiedStack::of(registers.sp, words),
            truncated,
            at,
            addresses: vec![at.address()],
            certain: None,
            signal_returns: Vec::new(),
        }
    }

    /// Goes one call further, or ends.
    fn step(&mut self) -> Result<(), End> {
        if self.addresses.len() == DEEPEST {
            return Err(End::Truncated);
        }
        let next = match self.tables.way(self.at, &self.stack) {
            Way::Caller(caller) => Activation::calling(caller),
            Way::Root => return Err(End::Root),
            Way::SignalReturn => self.interrupted()?,
            Way::Unexplained => self.guess()?,
            // A call comes from code. The innermost address may be anywhere.
            Way::Astray if self.addresses.len() == 1 => self.guess()?,
            Way::Astray | Way::NoFramePointer => return Err(End::Lost),
            Way::Beyond => return Err(self.end_of_words()),
        };
        self.at = next;
        self.addresses.push(next.address());
        Ok(())
    }

    fn interrupted(&mut self) -> Result<Activation, End> {
        self.signal_returns.push(self.addresses.len() - 1);
        let interrupted = interrupted(self.at.registers.sp, &self.stack);
        let interrupted = interrupted.ok_or_else(|| self.end_of_words())?;
        Ok(Activation::interrupted(interrupted))
    }

    fn end_of_words(&self) -> End {
        if self.truncated {
            End::Truncated
        } else {
            End::Lost
        }
    }

    /// The next call that has a table. Old return addresses lie about where functions have not
    /// written to their variables, so only one from which tables lead on is taken.
    ///
    /// # Cost
    ///
    /// Up to a millisecond for each return address that is tried; most often the first is right.
    fn guess(&mut self) -> Result<Activation, End> {
        let candidates = self.return_addresses();
        let mut candidates = candidates.into_iter();
        let next = candidates.find(|candidate| self.leads_on(*candidate));
        let next = next.ok_or(End::Lost)?;
        self.certain.get_or_insert(self.addresses.len());
        Ok(next)
    }

    /// The calls that the link register and the words of the stack can return to.
    fn return_addresses(&self) -> Vec<Activation> {
        let Registers { sp, fp, lr, .. } = self.at.registers;
        let words = self.stack.words_from(sp & !7).unwrap_or_default();
        let words = words.iter().take(SEARCHED).zip(1..);
        let on_stack = words.map(|(word, count)| (*word, (sp & !7) + 8 * count));
        let linked = (!self.at.calls).then_some((lr, sp));
        let found = linked.into_iter().chain(on_stack);
        let found = found.map(|(word, sp)| (without_signature(word), sp));
        let found = found.filter(|(pc, _)| self.tables.is_return_address(*pc));
        let callers = found.take(TRIED).map(|(pc, sp)| {
            let fp = frame_pointer_at(sp, fp, &self.stack);
            Activation::calling(Registers { pc, sp, fp, lr: 0 })
        });
        callers.collect()
    }

    /// Whether tables lead from this call to the root, or to other code without a table.
    fn leads_on(&mut self, first: Activation) -> bool {
        let mut at = first;
        for _ in 0..DEEPEST {
            at = match self.tables.way(at, &self.stack) {
                Way::Caller(caller) if self.tables.is_return_address(caller.pc) => {
                    Activation::calling(caller)
                }
                Way::Root | Way::SignalReturn => return true,
                Way::Unexplained => return at != first,
                Way::Beyond => return self.truncated,
                Way::Caller(_) | Way::Astray | Way::NoFramePointer => return false,
            };
        }
        true
    }
}

/// The frame pointer of a caller whose stack begins at `sp`. Functions that keep frame pointers
/// have saved that of their caller where their own points to. Others leave it alone.
fn frame_pointer_at(sp: u64, now: u64, stack: &CopiedStack<'_>) -> u64 {
    let outer = |fp: &u64| stack.read(*fp).filter(|saved| saved > fp);
    let mut kept = std::iter::successors(Some(now), outer);
    kept.find(|fp| *fp >= sp).unwrap_or(now)
}

/// The registers of the code that a signal interrupted, as the kernel has left them above the
/// handler's frame. Their place is part of the kernel's interface.
fn interrupted(sp: u64, stack: &CopiedStack<'_>) -> Option<Registers> {
    // The handler has returned, so the stack pointer is at the signal's frame.
    let read = |offset: usize| stack.read(sp.checked_add(u64::try_from(offset).ok()?)?);
    Some(Registers {
        pc: read(context::PC)?,
        sp: read(context::SP)?,
        fp: read(context::FP)?,
        lr: without_signature(context::LR.map_or(Some(0), read)?),
    })
}

/// The offsets of registers in the frame of a signal. The handler's return has taken its address
/// off the stack, so that the context comes first.
#[cfg(target_arch = "x86_64")]
mod context {
    use std::mem::offset_of;

    const GENERAL: usize =
        offset_of!(libc::ucontext_t, uc_mcontext) + offset_of!(libc::mcontext_t, gregs);
    pub(super) const PC: usize = GENERAL + 8 * libc::REG_RIP as usize;
    pub(super) const SP: usize = GENERAL + 8 * libc::REG_RSP as usize;
    pub(super) const FP: usize = GENERAL + 8 * libc::REG_RBP as usize;
    pub(super) const LR: Option<usize> = None;
}

/// The offsets of registers in the frame of a signal. The signal's information comes first, and
/// then the context.
#[cfg(target_arch = "aarch64")]
mod context {
    use std::mem::{offset_of, size_of};

    const MACHINE: usize = size_of::<libc::siginfo_t>() + offset_of!(libc::ucontext_t, uc_mcontext);
    const GENERAL: usize = MACHINE + offset_of!(libc::mcontext_t, regs);
    pub(super) const PC: usize = MACHINE + offset_of!(libc::mcontext_t, pc);
    pub(super) const SP: usize = MACHINE + offset_of!(libc::mcontext_t, sp);
    pub(super) const FP: usize = GENERAL + 8 * 29;
    pub(super) const LR: Option<usize> = Some(GENERAL + 8 * 30);
}

/// A return address as the processor jumps to it. It may be signed when it is stored: Linux gives
/// programs 48 bits, and the signature is in the others.
pub(super) fn without_signature(address: u64) -> u64 {
    if cfg!(target_arch = "aarch64") {
        address & ((1 << 48) - 1)
    } else {
        address
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ops::Range;

    const SP: u64 = 0x7000;
    const ROOT: u64 = 0x1100;
    const HANDLER_RETURN: u64 = 0x1200;
    const WITHOUT_TABLE: Range<u64> = 0x3000..0x4000;

    /// Code from 0x1000 to 0x2000 with tables, and code without. The tables find callers by frame
    /// pointers. Calls return to odd addresses.
    struct Program;

    impl Tables for Program {
        fn way(&mut self, at: Activation, stack: &CopiedStack<'_>) -> Way {
            let fp = at.registers.fp;
            match at.address() {
                ROOT => Way::Root,
                HANDLER_RETURN => Way::SignalReturn,
                0x1000..0x2000 => match (stack.read(fp), stack.read(fp + 8)) {
                    (Some(saved), Some(pc)) => Way::Caller(Registers {
                        pc,
                        sp: fp + 16,
                        fp: saved,
                        lr: 0,
                    }),
                    _ => Way::Beyond,
                },
                address if WITHOUT_TABLE.contains(&address) => Way::Unexplained,
                _ => Way::Astray,
            }
        }

        fn is_return_address(&self, address: u64) -> bool {
            (0x1000..0x4000).contains(&address) && address % 2 == 1
        }
    }

    /// A stack of these callers from an address on: pairs of a frame pointer and a return address.
    /// The last frame pointer is zero.
    fn stack_at(start: u64, callers: &[u64]) -> Vec<u64> {
        let mut words = Vec::new();
        for (index, caller) in callers.iter().enumerate() {
            let next = start + 16 * (index as u64 + 1);
            let is_last = index + 1 == callers.len();
            words.extend([if is_last { 0 } else { next }, caller + 1]);
        }
        words
    }

    fn stack_of(callers: &[u64]) -> Vec<u64> {
        stack_at(SP, callers)
    }

    fn walked_with(fp: u64, pc: u64, words: &[u64], truncated: bool) -> Walk {
        let registers = Registers {
            pc,
            sp: SP,
            fp,
            lr: 0,
        };
        walk_words(registers, words, truncated, &mut Program)
    }

    fn walked(pc: u64, words: &[u64], truncated: bool) -> Walk {
        walked_with(SP, pc, words, truncated)
    }

    fn walk_of(addresses: &[u64], end: End) -> Walk {
        guess_of(addresses.len(), addresses, end)
    }

    fn guess_of(certain: usize, addresses: &[u64], end: End) -> Walk {
        Walk {
            addresses: addresses.to_vec(),
            certain,
            signal_returns: Vec::new(),
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

    /// The call that has been interrupted has saved nothing but its return address, as that of a
    /// C library without tables. Its frame pointer is that of a function further out.
    #[test]
    fn calls_beyond_code_without_a_table_are_guesses() {
        let without = WITHOUT_TABLE.start;
        let mut words = vec![0x1021];
        words.push(0);
        words.extend(stack_at(SP + 16, &[0x1030, ROOT]));
        let walk = walked_with(SP + 16, without, &words, false);
        let all = [without, 0x1020, 0x1030, ROOT];
        assert_eq!(walk, guess_of(1, &all, End::Root));
        // The same further out, and twice.
        let mut words = stack_of(&[without, without]);
        words.extend(stack_at(SP + 32, &[0x1040, ROOT]));
        words[2] = SP + 32;
        let walk = walked(0x1010, &words, false);
        let all = [0x1010, without, 0x1040, ROOT];
        assert_eq!(walk, guess_of(2, &all, End::Root));
        // Code made at run time, which is in no module.
        let walk = walked(0x5000, &stack_of(&[ROOT]), false);
        assert_eq!(walk, guess_of(1, &[0x5000, ROOT], End::Root));
    }

    #[test]
    fn an_old_return_address_that_leads_nowhere_is_passed() {
        let without = WITHOUT_TABLE.start;
        let frame = SP + 8 * 4;
        // Beside the old address lies no frame pointer that its rule could follow.
        let mut words = vec![7, 0x1051, 7, 7];
        words.extend(stack_at(frame, &[0x1020, ROOT]));
        let walk = walked_with(frame, without, &words, false);
        let found = walk.addresses.last();
        assert_eq!((walk.end, found), (End::Root, Some(&ROOT)), "{walk:x?}");
        // None leads to the root.
        let walk = walked_with(8, without, &words[..4], false);
        assert_eq!(walk, walk_of(&[without], End::Lost));
    }

    #[test]
    fn the_link_register_is_where_an_interrupted_call_returns_to() {
        let registers = Registers {
            pc: WITHOUT_TABLE.start,
            sp: SP,
            fp: SP,
            lr: 0x1021,
        };
        let walk = walk_words(registers, &stack_of(&[ROOT]), false, &mut Program);
        let all = [WITHOUT_TABLE.start, 0x1020, ROOT];
        assert_eq!(walk, guess_of(1, &all, End::Root));
    }

    #[test]
    fn the_frame_of_a_signal_leads_to_the_interrupted_code() {
        // The handler's frame, the context, and the stack of the interrupted code.
        let mut words = vec![0; 1024];
        words[1] = HANDLER_RETURN + 1;
        let outer = SP + 1024 * 8;
        words[2 + context::PC / 8] = 0x1040;
        words[2 + context::SP / 8] = outer;
        words[2 + context::FP / 8] = outer;
        words.extend([0, ROOT + 1]);
        let walk = walked(0x1010, &words, false);
        let addresses = [0x1010, HANDLER_RETURN, 0x1040, ROOT];
        let through_a_handler = Walk {
            signal_returns: vec![1],
            ..walk_of(&addresses, End::Root)
        };
        assert_eq!(walk, through_a_handler);
        let walk = walked(0x1010, &words[..8], true);
        assert_eq!(walk.end, End::Truncated, "the context was not copied");
    }
}
