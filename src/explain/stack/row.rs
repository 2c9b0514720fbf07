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
