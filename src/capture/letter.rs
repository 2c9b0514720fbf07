//! The copy that a thread makes of itself: registers, and its stack from the stack pointer to its
//! root.
//!
//! *Runs on:* the stalled thread, in the signal handler (`fill`); `stall-explainer` reads.
//! *Must not:* do more in the handler than copy into reserved memory. If the bounds of the stack
//! are not known, the kernel copies, by one system call: only it can read such a stack without a
//! crash.

use super::registers::Registers;
use crate::slot::Slot;

/// The most that is copied of one stack.
pub(crate) const MOST: usize = 256 * 1024;
const WORDS: usize = MOST / 8;

/// The most that is copied of a stack whose bounds are not known.
const UNBOUNDED: usize = 64 * 1024;
const PAGE: usize = 4096;

/// The thread that a request is for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Addressee {
    pub(crate) slot: &'static Slot,
    pub(crate) tenancy: u64,
}

/// How much of the stack there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    /// Nothing: another thread answered, which has the same number by now.
    Nothing,
    /// Down to the thread's root.
    Whole,
    /// The innermost [`MOST`] bytes.
    Deeper,
    /// The readable part from the stack pointer on, which is outside of the thread's own stack.
    Unbounded,
}

/// One stack, copied.
#[derive(Debug)]
pub(crate) struct Letter {
    pub(super) addressee: Option<Addressee>,
    pub(super) registers: Registers,
    pub(super) extent: Extent,
    /// The slot's epoch at that moment. It identifies the poll.
    pub(super) epoch: u64,
    /// The number of words copied, from the stack pointer on.
    pub(super) filled: usize,
    words: [u64; WORDS],
}

impl Letter {
    /// All zero: it takes no room in the program, and no memory before its first use.
    pub(super) const EMPTY: Letter = Letter {
        addressee: None,
        registers: Registers::ZERO,
        extent: Extent::Nothing,
        epoch: 0,
        filled: 0,
        words: [0; WORDS],
    };

    pub(super) fn stack(&self) -> &[u64] {
        &self.words[..self.filled]
    }

    /// Copies the calling thread's registers and stack.
    ///
    /// # Signal safety
    ///
    /// Reads atomics of the slot, which is never freed, and copies. Calls `process_vm_readv` if the
    /// stack pointer is outside of the thread's bounds. The caller saves `errno`.
    pub(super) fn fill(&mut self, registers: Registers) {
        self.registers = registers;
        self.filled = 0;
        self.epoch = 0;
        self.extent = Extent::Nothing;
        let Some(Addressee { slot, tenancy }) = self.addressee else {
            return;
        };
        if slot.tenancy() != tenancy {
            return;
        }
        self.epoch = slot.line.observe().epoch;
        self.copy_stack(registers.sp as usize & !7, slot.stack());
    }

    /// Copies the stack from this address on. `low` and `high` are its bounds, as far as they are
    /// known.
    fn copy_stack(&mut self, from: usize, (low, high): (usize, usize)) {
        if (low..high).contains(&from) {
            let deep = (high - from) / 8;
            self.filled = deep.min(WORDS);
            self.extent = if deep <= WORDS {
                Extent::Whole
            } else {
                Extent::Deeper
            };
            copy_words(from, &mut self.words[..self.filled]);
        } else {
            self.filled = read_carefully(from, &mut self.words[..UNBOUNDED / 8]);
            self.extent = Extent::Unbounded;
        }
    }
}

/// Copies words from an address of the own stack.
///
/// It is written in assembly: these are other functions' variables, which by Rust's rules are
/// neither readable nor initialised, and which sanitizers guard.
#[allow(unsafe_code)]
fn copy_words(from: usize, to: &mut [u64]) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: `from` and as many words as `to` is long lie between the stack pointer of the
    // interrupted code and the end of its stack, which stays mapped while the thread is in this
    // handler. `to` is memory of ours that does not overlap it.
    unsafe {
        std::arch::asm!(
            "rep movsq",
            inout("rcx") to.len() => _,
            inout("rsi") from => _,
            inout("rdi") to.as_mut_ptr() => _,
            options(nostack, preserves_flags),
        );
    }
    #[cfg(target_arch = "aarch64")]
    for (index, word) in to.iter_mut().enumerate() {
        let address = from + index * 8;
        // SAFETY: as above, for one word.
        unsafe {
            std::arch::asm!(
                "ldr {word}, [{address}]",
                address = in(reg) address,
                word = out(reg) *word,
                options(nostack, preserves_flags, readonly),
            );
        }
    }
}

/// The most pages, whole or in part, that an unbounded copy touches.
const PIECES: usize = UNBOUNDED / PAGE + 1;

/// The memory from this address on, page by page, and the number of pieces.
fn pages(from: usize, length: usize) -> ([libc::iovec; PIECES], usize) {
    let nothing = libc::iovec {
        iov_base: std::ptr::null_mut(),
        iov_len: 0,
    };
    let mut remote = [nothing; PIECES];
    let (mut at, mut left, mut pieces) = (from, length, 0);
    while left > 0 && pieces < PIECES {
        let length = (PAGE - at % PAGE).min(left);
        remote[pieces] = libc::iovec {
            iov_base: std::ptr::without_provenance_mut(at),
            iov_len: length,
        };
        pieces += 1;
        left -= length;
        at += length;
    }
    (remote, pieces)
}

/// Lets the kernel copy page by page, up to the first page that is not mapped. Returns the number
/// of words copied.
#[allow(unsafe_code)]
fn read_carefully(from: usize, to: &mut [u64]) -> usize {
    let (remote, pieces) = pages(from, to.len() * 8);
    let local = libc::iovec {
        iov_base: to.as_mut_ptr().cast(),
        iov_len: to.len() * 8,
    };
    // SAFETY: `local` is memory of ours, written no further than its length. The kernel checks
    // `remote`, and stops at the first page that is not mapped.
    let copied = unsafe {
        libc::syscall(
            libc::SYS_process_vm_readv,
            libc::getpid(),
            &raw const local,
            1_usize,
            remote.as_ptr(),
            pieces,
            0_usize,
        )
    };
    usize::try_from(copied).unwrap_or(0) / 8
}
