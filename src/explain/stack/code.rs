//! The few instructions that a walk knows without a table: calls, and the return from a signal.
//!
//! *Runs on:* `stall-explainer`; in tests also a thread that measures itself.
//! *Must not:* touch the code itself: it may be unmapped by now. The kernel reads it.

use super::unwind::{Activation, Way};
use crate::os::{Pid, memory};

/// The way from code without an unwind table: known only if signal handlers return to it.
///
/// The kernel's own code for it has no table on aarch64, and musl's has none anywhere.
pub(super) fn way_without_table(process: Pid, at: Activation) -> Way {
    let code = memory::read_exact(process, at.registers.pc, SIGNAL_RETURN.len());
    if at.calls && code.as_deref() == Some(&SIGNAL_RETURN) {
        Way::SignalReturn
    } else {
        Way::Unexplained
    }
}

/// Whether the instruction before this address is a call.
pub(super) fn is_after_call(process: Pid, address: u64) -> bool {
    let start = address.wrapping_sub(LONGEST_CALL as u64);
    memory::read_exact(process, start, LONGEST_CALL).is_some_and(|code| ends_with_call(&code))
}

/// `mov $15, %eax; syscall`, with the number in 64 bits.
#[cfg(target_arch = "x86_64")]
const SIGNAL_RETURN: [u8; 9] = [0x48, 0xc7, 0xc0, 15, 0, 0, 0, 0x0f, 0x05];

/// `mov x8, #139; svc #0`.
#[cfg(target_arch = "aarch64")]
const SIGNAL_RETURN: [u8; 8] = [0x68, 0x11, 0x80, 0xd2, 0x01, 0x00, 0x00, 0xd4];

#[cfg(target_arch = "x86_64")]
const LONGEST_CALL: usize = 7;

/// A direct call is five bytes long. An indirect one is two to seven.
#[cfg(target_arch = "x86_64")]
fn ends_with_call(code: &[u8]) -> bool {
    let is_direct = code[LONGEST_CALL - 5] == 0xe8;
    let mut lengths = 2..=LONGEST_CALL;
    let is_indirect = lengths.any(|length| {
        let call = &code[LONGEST_CALL - length..];
        call[0] == 0xff && has_length(call[1], length)
    });
    is_direct || is_indirect
}

/// Whether an indirect call with this second byte has this length. The byte has the kind of the
/// target in its two upper bits, the number of the instruction, which is 2 for a call, in the next
/// three, and a register in the others.
#[cfg(target_arch = "x86_64")]
fn has_length(second: u8, length: usize) -> bool {
    let is_call = (second >> 3) & 7 == 2;
    let with_index = second & 7 == 4;
    is_call
        && match (second >> 6, length) {
            (0, 2) => !with_index && second & 7 != 5,
            (0, 3 | 7) => with_index,
            (0, 6) => second & 7 == 5,
            (1, 3) | (2, 6) => !with_index,
            (1, 4) | (2, 7) => with_index,
            (3, 2) => true,
            _ => false,
        }
}

#[cfg(target_arch = "aarch64")]
const LONGEST_CALL: usize = 4;

/// `bl` and `blr`, the latter also with a signed address.
#[cfg(target_arch = "aarch64")]
fn ends_with_call(code: &[u8]) -> bool {
    let Ok(code) = code.try_into().map(u32::from_le_bytes) else {
        return false;
    };
    let is_direct = code >> 26 == 0b10_0101;
    let is_indirect = code & 0xfeff_f000 == 0xd63f_0000;
    is_direct || is_indirect
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_arch = "x86_64")]
    const CODE: [(&[u8], bool); 8] = [
        (&[0x90, 0x90, 0xe8, 1, 2, 3, 4], true),
        (&[0x90, 0x90, 0x90, 0x90, 0x41, 0xff, 0xd4], true),
        (&[0x90, 0xff, 0x15, 1, 2, 3, 4], true),
        (&[0x90, 0x90, 0x90, 0xff, 0x54, 0x24, 0x10], true),
        (&[0x90, 0x90, 0x90, 0x90, 0xff, 0x50, 0x18], true),
        // A jump, half of a call, and no instruction at all.
        (&[0x90, 0xff, 0x25, 1, 2, 3, 4], false),
        (&[0x90, 0x90, 0x90, 0x90, 0x90, 0xff, 0x15], false),
        (&[0, 0, 0, 0, 0, 0, 0], false),
    ];

    #[cfg(target_arch = "aarch64")]
    const CODE: [(&[u8], bool); 4] = [
        (&[0x10, 0x00, 0x00, 0x94], true),
        (&[0x00, 0x01, 0x3f, 0xd6], true),
        // A return and a jump.
        (&[0xc0, 0x03, 0x5f, 0xd6], false),
        (&[0x10, 0x00, 0x00, 0x14], false),
    ];

    #[test]
    fn a_call_is_told_from_other_instructions() {
        for (code, is_call) in CODE {
            assert_eq!(ends_with_call(code), is_call, "{code:x?}");
        }
    }

    #[test]
    fn a_signal_returns_to_code_that_is_known_by_its_bytes() {
        let way_at = |code: &[u8], calls| {
            let registers = crate::capture::Registers {
                pc: code.as_ptr() as u64,
                ..Default::default()
            };
            way_without_table(Pid::OWN, Activation { registers, calls })
        };
        let code = SIGNAL_RETURN;
        assert_eq!(way_at(&code, true), Way::SignalReturn);
        assert_eq!(way_at(&code, false), Way::Unexplained, "interrupted in it");
        let mut other = code;
        other[0] ^= 1;
        assert_eq!(way_at(&other, true), Way::Unexplained);
    }
}
