//! The registers that unwinding starts from, as the kernel hands them to a signal handler.
//!
//! *Runs on:* the stalled thread, in the signal handler (`of`); `stall-explainer` reads.
//! *Must not:* do more in the handler than read the context.

/// The registers of a thread at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Registers {
    /// The next instruction.
    pub(crate) pc: u64,
    pub(crate) sp: u64,
    /// The frame pointer, or another value if the code uses that register for something else.
    pub(crate) fp: u64,
    /// The link register, if the processor has one.
    pub(crate) lr: u64,
}

impl Registers {
    pub(crate) const ZERO: Registers = Registers {
        pc: 0,
        sp: 0,
        fp: 0,
        lr: 0,
    };

    #[cfg(target_arch = "x86_64")]
    pub(crate) fn of(context: &libc::ucontext_t) -> Registers {
        let register = |index: libc::c_int| context.uc_mcontext.gregs[index as usize] as u64;
        Registers {
            pc: register(libc::REG_RIP),
            sp: register(libc::REG_RSP),
            fp: register(libc::REG_RBP),
            lr: 0,
        }
    }

    #[cfg(target_arch = "aarch64")]
    pub(crate) fn of(context: &libc::ucontext_t) -> Registers {
        let machine = &context.uc_mcontext;
        Registers {
            pc: machine.pc,
            sp: machine.sp,
            fp: machine.regs[29],
            lr: machine.regs[30],
        }
    }
}
