//! The copy of a thread: registers, and its stack from the stack pointer to its root. A thread
//! makes it of itself, or another one makes it of a thread that sleeps.
//!
//! *Runs on:* the stalled thread, in the signal handler (`fill`); a thread that requests a stack
//! (`fill_asleep`); `stall-explainer` reads.
//! *Must not:* do more in the handler than copy into reserved memory. If the bounds of the stack
//! are not known, or if it is another thread's, the kernel copies, by system calls: only it can
//! read such a stack without a crash.

use super::registers::Registers;
use crate::os::{Call, ThreadEvidence};
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
    /// The thread before the copy and after it, if it has not copied itself.
    pub(super) asleep: Option<ThreadEvidence>,
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
        asleep: None,
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
        self.asleep = None;
        let Some(Addressee { slot, tenancy }) = self.addressee else {
            return;
        };
        if slot.tenancy() != tenancy {
            return;
        }
        self.epoch = slot.line.observe().epoch;
        self.copy_stack(registers.sp as usize & !7, slot.stack());
    }

    /// Copies the stack of another thread, which sleeps in this call.
    ///
    /// # Cost
    ///
    /// A system call for each page of the stack.
    pub(super) fn fill_asleep(&mut self, addressee: Addressee, call: Call, seen: ThreadEvidence) {
        let slot = addressee.slot;
        self.addressee = Some(addressee);
        self.asleep = Some(seen);
        self.registers = Registers {
            pc: call.pc,
            sp: call.sp,
            ..Registers::ZERO
        };
        self.epoch = slot.line.observe().epoch;
        self.read_stack(call.sp as usize & !7, slot.stack());
        if slot.tenancy() != addressee.tenancy {
            self.filled = 0;
        }
    }

    /// Lets the kernel copy the stack from this address on, as far as it can be read.
    fn read_stack(&mut self, from: usize, (low, high): (usize, usize)) {
        let is_inside = (low..high).contains(&from);
        let deep = if is_inside {
            (high - from) / 8
        } else {
            UNBOUNDED / 8
        };
        self.filled = read_carefully(from, &mut self.words[..deep.min(WORDS)]);
        self.extent = match is_inside {
            true if self.filled == deep => Extent::Whole,
            true => Extent::Deeper,
            false => Extent::Unbounded,
        };
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

/// Lets the kernel copy page by page, up to the first page that is not mapped. Returns the number
/// of words copied. One call a page: a list of pages would need room on the handler's small stack.
fn read_carefully(from: usize, to: &mut [u64]) -> usize {
    let length = to.len() * 8;
    let mut copied = 0;
    while copied < length {
        let at = from + copied;
        let piece = (PAGE - at % PAGE).min(length - copied);
        if !read_piece(at, to.as_mut_ptr().cast::<u8>().wrapping_add(copied), piece) {
            break;
        }
        copied += piece;
    }
    copied / 8
}

/// Lets the kernel copy memory of this process that may not be mapped. Returns whether it was.
#[allow(unsafe_code)]
fn read_piece(from: usize, to: *mut u8, length: usize) -> bool {
    let local = libc::iovec {
        iov_base: to.cast(),
        iov_len: length,
    };
    let remote = libc::iovec {
        iov_base: std::ptr::without_provenance_mut(from),
        iov_len: length,
    };
    // SAFETY: `local` is memory of ours, written no further than its length. The kernel checks
    // `remote`.
    let copied = unsafe {
        libc::syscall(
            libc::SYS_process_vm_readv,
            libc::getpid(),
            &raw const local,
            1_usize,
            &raw const remote,
            1_usize,
            0_usize,
        )
    };
    usize::try_from(copied).is_ok_and(|copied| copied == length)
}
