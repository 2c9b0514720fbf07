//! One row of an unwind table: from the registers of a call to those of its caller.
//!
//! *Runs on:* `stall-explainer`; in tests also a thread that measures itself.
//! *Must not:* guess. A rule that cannot be followed is said to be so.

use super::unwind::{Activation, CopiedStack, Way, without_signature};
use crate::capture::Registers;
use gimli::{
    BaseAddresses, CfaRule, EhFrame, Encoding, EndianSlice, EvaluationResult,
    FrameDescriptionEntry, LittleEndian, Location, Register, RegisterRule, UnwindContext,
    UnwindExpression, UnwindTableRow, Value,
};

pub(super) type Bytes<'a> = EndianSlice<'a, LittleEndian>;
pub(super) type Entry<'a> = FrameDescriptionEntry<Bytes<'a>>;

/// Steps of an expression. Those of compilers have about ten.
const STEPS: u32 = 1000;

/// The way from a call to its caller, by the entry for its function. `in_file` is the address of
/// the call.
pub(super) fn way(
    entry: &Entry<'_>,
    (tables, bases): (&EhFrame<Bytes<'_>>, &BaseAddresses),
    context: &mut UnwindContext<usize>,
    in_file: u64,
    at: Activation,
    stack: &CopiedStack<'_>,
) -> Way {
    if entry.is_signal_trampoline() {
        return Way::SignalReturn;
    }
    let Ok(row) = entry.unwind_info_for_address(tables, bases, context, in_file) else {
        return Way::Unexplained;
    };
    let returns_to = entry.cie().return_address_register();
    // A function that has called another has saved its link register, or never returns.
    let has_link = cfg!(target_arch = "aarch64") && !at.calls;
    if row.register(returns_to) == RegisterRule::Undefined && !has_link {
        return Way::Root;
    }
    let rules = RowRules {
        tables,
        encoding: entry.cie().encoding(),
        registers: at.registers,
        stack,
    };
    match rules.caller(row, returns_to) {
        Ok(caller) if caller.sp < at.registers.sp => Way::Astray,
        Ok(caller) if caller.sp == at.registers.sp && at.calls => Way::Astray,
        Ok(caller) => Way::Caller(caller),
        Err(way) => way,
    }
}

/// The things that rules refer to.
struct RowRules<'a> {
    tables: &'a EhFrame<Bytes<'a>>,
    encoding: Encoding,
    registers: Registers,
    stack: &'a CopiedStack<'a>,
}

impl RowRules<'_> {
    fn caller(&self, row: &UnwindTableRow<usize>, returns_to: Register) -> Result<Registers, Way> {
        let cfa = match row.cfa() {
            // No frame is at zero. The frame pointer of a thread that sleeps is not always known.
            CfaRule::RegisterAndOffset { register, .. }
                if *register == processor::FRAME_POINTER && self.registers.fp == 0 =>
            {
                return Err(Way::NoFramePointer);
            }
            CfaRule::RegisterAndOffset { register, offset } => {
                self.register(*register)?.wrapping_add_signed(*offset)
            }
            CfaRule::Expression(expression) => self.evaluate(expression, None)?,
        };
        let Registers { fp, lr, .. } = self.registers;
        let pc = self.value(&row.register(returns_to), cfa, lr)?;
        Ok(Registers {
            pc: without_signature(pc),
            sp: cfa,
            fp: self.value(&row.register(processor::FRAME_POINTER), cfa, fp)?,
            lr: 0,
        })
    }

    /// The value of a register in the caller. `now` is its value in the call.
    fn value(&self, rule: &RegisterRule<usize>, cfa: u64, now: u64) -> Result<u64, Way> {
        match rule {
            RegisterRule::Undefined | RegisterRule::SameValue => Ok(now),
            RegisterRule::Offset(offset) => {
                let saved_at = cfa.wrapping_add_signed(*offset);
                // An epilogue has taken it off the stack, and its row does not say so.
                let is_restored = saved_at < self.registers.sp;
                if is_restored {
                    Ok(now)
                } else {
                    self.read(saved_at)
                }
            }
            RegisterRule::ValOffset(offset) => Ok(cfa.wrapping_add_signed(*offset)),
            RegisterRule::Register(register) => self.register(*register),
            RegisterRule::Expression(place) => self.read(self.evaluate(place, Some(cfa))?),
            RegisterRule::ValExpression(value) => self.evaluate(value, Some(cfa)),
            _ => Err(Way::Unexplained),
        }
    }

    fn read(&self, address: u64) -> Result<u64, Way> {
        self.stack.read(address).ok_or(Way::Beyond)
    }

    /// The handler copies no other registers than these.
    fn register(&self, register: Register) -> Result<u64, Way> {
        match register {
            processor::STACK_POINTER => Ok(self.registers.sp),
            processor::FRAME_POINTER if self.registers.fp == 0 => Err(Way::NoFramePointer),
            processor::FRAME_POINTER => Ok(self.registers.fp),
            processor::RETURN => Ok(processor::returns_to(&self.registers)),
            _ => Err(Way::Unexplained),
        }
    }

    fn evaluate(&self, place: &UnwindExpression<usize>, first: Option<u64>) -> Result<u64, Way> {
        let unexplained = |_| Way::Unexplained;
        let expression = place.get(self.tables).map_err(unexplained)?;
        let mut evaluation = expression.evaluation(self.encoding);
        evaluation.set_max_iterations(STEPS);
        first
            .into_iter()
            .for_each(|first| evaluation.set_initial_value(first));
        let mut state = evaluation.evaluate();
        loop {
            state = match state.map_err(unexplained)? {
                EvaluationResult::Complete => break,
                EvaluationResult::RequiresRegister { register, .. } => {
                    evaluation.resume_with_register(Value::Generic(self.register(register)?))
                }
                EvaluationResult::RequiresMemory {
                    address, size: 8, ..
                } => evaluation.resume_with_memory(Value::Generic(self.read(address)?)),
                _ => return Err(Way::Unexplained),
            }
        }
        match evaluation.as_result().last().map(|piece| &piece.location) {
            Some(Location::Address { address }) => Ok(*address),
            _ => Err(Way::Unexplained),
        }
    }
}

/// The registers that a walk needs, by their numbers in tables.
#[cfg(target_arch = "x86_64")]
mod processor {
    use crate::capture::Registers;
    use gimli::{Register, X86_64};

    pub(super) const STACK_POINTER: Register = X86_64::RSP;
    pub(super) const FRAME_POINTER: Register = X86_64::RBP;
    pub(super) const RETURN: Register = X86_64::RA;

    /// Tables of linkage code ask for the next instruction under this number.
    pub(super) fn returns_to(registers: &Registers) -> u64 {
        registers.pc
    }
}

/// The registers that a walk needs, by their numbers in tables.
#[cfg(target_arch = "aarch64")]
mod processor {
    use crate::capture::Registers;
    use gimli::{AArch64, Register};

    pub(super) const STACK_POINTER: Register = AArch64::SP;
    pub(super) const FRAME_POINTER: Register = AArch64::X29;
    pub(super) const RETURN: Register = AArch64::X30;

    pub(super) fn returns_to(registers: &Registers) -> u64 {
        registers.lr
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use gimli::UnwindSection as _;

    const FUNCTION: u64 = 0x1000;
    const STACK: u64 = 0x7000;
    const RETURN_TO: u64 = 0x2001;

    const SP: u8 = processor::STACK_POINTER.0 as u8;
    const FP: u8 = processor::FRAME_POINTER.0 as u8;
    const RA: u8 = processor::RETURN.0 as u8;

    // Instructions of a table, with the numbers that the standard gives them.
    const CFA: u8 = 0x0c;
    const CFA_EXPRESSION: u8 = 0x0f;
    const UNDEFINED: u8 = 0x07;
    const SAVED: u8 = 0x80;
    // Operations of an expression.
    const REGISTER: u8 = 0x70;
    const WORD_AT: u8 = 0x06;

    /// A table of one function, whose row these instructions make. Places of registers count words
    /// down from the frame's address.
    fn table_of(instructions: &[u8]) -> Vec<u8> {
        let mut table = Vec::new();
        let mut add = |entry: &[u8]| {
            let padded = entry.len().next_multiple_of(8) + 4;
            table.extend(u32::try_from(padded).unwrap().to_le_bytes());
            table.extend(entry);
            // Padding is an instruction that does nothing.
            table.resize(table.len() + padded - entry.len(), 0);
            table.len()
        };
        // Version 1, no augmentation, units of 1 and of -8 bytes.
        let function_at = add(&[0, 0, 0, 0, 1, 0, 1, 0x78, RA]);
        let mut entry = Vec::from(u32::try_from(function_at + 4).unwrap().to_le_bytes());
        entry.extend(FUNCTION.to_le_bytes());
        entry.extend(0x100_u64.to_le_bytes());
        entry.extend(instructions);
        add(&entry);
        table
    }

    fn registers() -> Registers {
        Registers {
            pc: FUNCTION + 0x10,
            sp: STACK,
            fp: STACK + 0x40,
            lr: 0x3001,
        }
    }

    /// The way from a function with this row, on a stack of these words.
    fn way_by(instructions: &[u8], words: &[u64], calls: bool) -> Way {
        way_from(registers(), instructions, words, calls)
    }

    fn way_from(registers: Registers, instructions: &[u8], words: &[u64], calls: bool) -> Way {
        let table = table_of(instructions);
        let mut frames = EhFrame::new(&table, LittleEndian);
        frames.set_vendor(gimli::Vendor::AArch64);
        let bases = BaseAddresses::default().set_eh_frame(0);
        let entry = frames.fde_for_address(&bases, FUNCTION, EhFrame::cie_from_offset);
        let at = Activation { registers, calls };
        way(
            &entry.expect("the table is well-formed"),
            (&frames, &bases),
            &mut UnwindContext::new(),
            at.address(),
            at,
            &CopiedStack::of(STACK, words),
        )
    }

    const WORDS: [u64; 4] = [STACK + 0x18, 5, 0x7777, RETURN_TO];

    fn caller(sp: u64, fp: u64) -> Way {
        Way::Caller(Registers {
            pc: RETURN_TO,
            sp,
            fp,
            lr: 0,
        })
    }

    #[test]
    fn a_row_leads_to_the_caller() {
        let saved = [SAVED | RA, 1, SAVED | FP, 2];
        let row = [&[CFA, SP, 32], &saved[..]].concat();
        assert_eq!(way_by(&row, &WORDS, true), caller(STACK + 32, 0x7777));
        let row = [CFA, SP, 32, SAVED | RA, 1];
        assert_eq!(way_by(&row, &WORDS, true), caller(STACK + 32, STACK + 0x40));
        // An epilogue has taken the frame pointer off the stack.
        let row = [CFA, SP, 32, SAVED | RA, 1, SAVED | FP, 5];
        assert_eq!(
            way_by(&row, &WORDS, false),
            caller(STACK + 32, STACK + 0x40)
        );
    }

    #[test]
    fn expressions_are_evaluated() {
        // Eight bytes behind the address that lies at the stack pointer.
        let place = [REGISTER + SP, 0, WORD_AT, 0x38, 0x22];
        let row = [&[CFA_EXPRESSION, 5], &place[..], &[SAVED | RA, 1]].concat();
        assert_eq!(way_by(&row, &WORDS, true), caller(STACK + 32, STACK + 0x40));
    }

    #[test]
    fn a_function_without_a_return_address_is_the_root() {
        let row = [CFA, SP, 32, UNDEFINED, RA];
        assert_eq!(way_by(&row, &WORDS, true), Way::Root);
    }

    #[test]
    fn rules_that_cannot_be_followed_are_said_to_be_so() {
        let by_another_register = [CFA, 3, 32, SAVED | RA, 1];
        assert_eq!(way_by(&by_another_register, &WORDS, true), Way::Unexplained);
        let not_copied = [CFA, SP, 64, SAVED | RA, 1];
        assert_eq!(way_by(&not_copied, &WORDS, true), Way::Beyond);
        let backwards = [CFA, SP, 0, SAVED | RA, 1];
        assert_eq!(way_by(&backwards, &WORDS, true), Way::Astray);
        let by_frame_pointer = [CFA, FP, 16, SAVED | RA, 1];
        let unknown = Registers {
            fp: 0,
            ..registers()
        };
        assert_eq!(
            way_from(unknown, &by_frame_pointer, &WORDS, false),
            Way::NoFramePointer
        );
    }

    #[cfg(target_arch = "aarch64")]
    #[test]
    fn signed_return_addresses_and_the_link_register_are_read() {
        const SIGNED: u8 = 0x2d;
        let mut words = WORDS;
        words[3] |= 0x5a << 48;
        let row = [CFA, SP, 32, SIGNED, SAVED | RA, 1];
        assert_eq!(way_by(&row, &words, true), caller(STACK + 32, STACK + 0x40));
        let leaf = Registers {
            pc: registers().lr,
            lr: 0,
            ..registers()
        };
        assert_eq!(way_by(&[CFA, SP, 0], &words, false), Way::Caller(leaf));
    }
}
