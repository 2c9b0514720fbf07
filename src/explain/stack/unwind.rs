//! From registers and a copy of the stack to the addresses of the calls on it.
//!
//! *Runs on:* whichever thread explains a stack; see the parent module.
//! *Here:* no unsafe: bytes in, addresses out. The tables come from the copies in `capture::modules`; a
//! module's are read when an address in it is first met.

use crate::capture::{Extent, Mapped, Module, RawStack, Registers, UnwindSections, mapped};
use framehop::{
    CacheNative, ExplicitModuleSectionInfo, FrameAddress, UnwindRegsNative, Unwinder as _,
    UnwinderNative,
};
use gimli::{
    BaseAddresses, EhFrame, EhFrameHdr, EndianSlice, FrameDescriptionEntry, LittleEndian,
    RegisterRule, UnwindContext, UnwindSection as _,
};
use std::cell::Cell;
use std::ops::Range;
use std::sync::Arc;

/// Deeper stacks than this are cut: nobody reads them, and a recursion looks the same all the way.
const DEEPEST: usize = 512;

/// Unwinds the stacks of this process.
#[derive(Default)]
pub(crate) struct Unwinder {
    framehop: UnwinderNative<Arc<[u8]>, framehop::MayAllocateDuringUnwind>,
    cache: CacheNative<framehop::MayAllocateDuringUnwind>,
    modules: Vec<Known>,
}

/// A mapped file, and what was read of it.
pub(crate) struct Known {
    pub(crate) file: Mapped,
    state: State,
}

enum State {
    Unread,
    /// Not an ELF file, or gone.
    Unreadable,
    Read(Read),
}

/// What naming needs of a module.
pub(crate) struct Read {
    pub(crate) range: Range<u64>,
    pub(crate) bias: u64,
    pub(crate) build_id: Option<String>,
    unwind: Option<UnwindSections>,
}

impl Read {
    /// The function around an address in the file, by the unwind tables. These are there also where
    /// symbols have been stripped.
    pub(crate) fn function_at(&self, in_file: u64) -> Option<Range<u64>> {
        self.with_entry(in_file, |entry, _, _| {
            let start = entry.initial_address();
            Some(start..start + entry.len())
        })
    }

    /// Whether the function at this address has no caller: its table says that nobody is returned to. That
    /// is how the first function of a thread is marked. `None` if there is no table for it.
    fn is_root(&self, in_file: u64) -> Option<bool> {
        self.with_entry(in_file, |entry, frames, bases| {
            let mut context = UnwindContext::new();
            let row = entry
                .unwind_info_for_address(frames, bases, &mut context, in_file)
                .ok()?;
            let returns_to = row.register(entry.cie().return_address_register());
            Some(returns_to == RegisterRule::Undefined)
        })
    }

    /// Whether this is where handlers return to: the frame below it is the code that a signal interrupted.
    fn is_signal_frame(&self, in_file: u64) -> bool {
        let marked = self.with_entry(in_file, |entry, _, _| {
            Some(entry.cie().is_signal_trampoline())
        });
        marked.unwrap_or(false)
    }

    fn with_entry<R>(
        &self,
        in_file: u64,
        f: impl FnOnce(&Entry<'_>, &EhFrame<Bytes<'_>>, &BaseAddresses) -> Option<R>,
    ) -> Option<R> {
        let unwind = self.unwind.as_ref()?;
        let (hdr_at, hdr) = &unwind.eh_frame_hdr;
        let (frame_at, frame) = &unwind.eh_frame;
        let bases = BaseAddresses::default()
            .set_eh_frame_hdr(hdr_at.start)
            .set_eh_frame(frame_at.start)
            .set_text(unwind.text.start);
        let parsed = EhFrameHdr::new(hdr, LittleEndian).parse(&bases, 8).ok()?;
        let frames = EhFrame::new(frame, LittleEndian);
        let entry =
            parsed
                .table()?
                .fde_for_address(&frames, &bases, in_file, EhFrame::cie_from_offset);
        f(&entry.ok()?, &frames, &bases)
    }
}

type Bytes<'a> = EndianSlice<'a, LittleEndian>;
type Entry<'a> = FrameDescriptionEntry<Bytes<'a>>;

/// The calls on a stack, innermost first.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Walk {
    /// Addresses inside the instruction that was executing, or the call.
    pub(crate) addresses: Vec<u64>,
    pub(crate) end: End,
}

/// Where the walk ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// At the thread's root: a function that has no caller.
    Root,
    /// Where nothing points further, and no table says whether that is the root.
    Unproven,
    /// At the end of what was copied.
    Truncated,
    /// At a frame that nothing explains.
    Lost,
}

impl Unwinder {
    /// Looks which files are mapped now. Those that have gone are forgotten.
    pub(crate) fn refresh(&mut self) {
        let now = mapped();
        if self.modules.len() == now.len()
            && self
                .modules
                .iter()
                .zip(&now)
                .all(|(known, file)| known.file == *file)
        {
            return;
        }
        let mut old = std::mem::take(&mut self.modules);
        for file in now {
            let known = old.iter().position(|known| known.file == file);
            self.modules.push(match known {
                Some(known) => old.swap_remove(known),
                None => Known {
                    file,
                    state: State::Unread,
                },
            });
        }
        for gone in old {
            if let State::Read(read) = gone.state {
                self.framehop.remove_module(read.range.start);
            }
        }
    }

    /// Walks a copied stack.
    ///
    /// # Cost
    ///
    /// 25 to 70 µs for some twenty frames, once the tables of the modules have been read.
    pub(crate) fn walk(&mut self, stack: &RawStack) -> Walk {
        let registers = stack.registers();
        let truncated = stack.extent() != Extent::Whole;
        stack.with_words(|words| self.walk_words(registers, words, truncated))
    }

    fn walk_words(&mut self, registers: Registers, words: &[u64], truncated: bool) -> Walk {
        let base = registers.sp & !7;
        let beyond = Cell::new(false);
        let mut read = |address: u64| {
            let word = address
                .checked_sub(base)
                .filter(|offset| offset % 8 == 0)
                .and_then(|offset| words.get(usize::try_from(offset / 8).ok()?));
            beyond.set(word.is_none());
            word.copied().ok_or(())
        };
        let mut at = FrameAddress::from_instruction_pointer(registers.pc);
        let mut native = native(registers);
        let mut addresses = vec![at.address_for_lookup()];
        // Where there is no table, frame pointers are followed, which may lead past frames.
        let mut explained = true;
        let end = loop {
            if addresses.len() == DEEPEST {
                break End::Truncated;
            }
            self.read_module_of(at.address_for_lookup());
            if !self.has_table(at.address_for_lookup()) {
                explained = false;
                if addresses.len() > 1 && self.module_of(at.address_for_lookup()).is_none() {
                    // Nobody calls from where there is no code.
                    break End::Lost;
                }
            }
            if self.is_signal_frame(at.address_for_lookup()) {
                let Some(interrupted) = interrupted(native.sp(), &mut read) else {
                    let cut = truncated && beyond.get();
                    break if cut { End::Truncated } else { End::Lost };
                };
                native = self::native(interrupted);
                at = FrameAddress::from_instruction_pointer(interrupted.pc);
                addresses.push(at.address_for_lookup());
                continue;
            }
            let next = self
                .framehop
                .unwind_frame(at, &mut native, &mut self.cache, &mut read);
            let next = match next {
                Ok(Some(address)) => FrameAddress::from_return_address(address),
                Ok(None) => break End::Root,
                Err(_) if truncated && beyond.get() => break End::Truncated,
                Err(_) => break End::Lost,
            };
            let Some(next) = next else {
                break End::Root;
            };
            at = next;
            addresses.push(at.address_for_lookup());
        };
        let end = match (end, addresses.last()) {
            (End::Root, _) if !explained => End::Unproven,
            (End::Root, Some(&outermost)) => self.proven(outermost),
            (end, _) => end,
        };
        Walk { addresses, end }
    }

    fn has_table(&self, address: u64) -> bool {
        self.module_of(address)
            .and_then(|(_, read)| read)
            .is_some_and(|read| read.function_at(address.wrapping_sub(read.bias)).is_some())
    }

    fn is_signal_frame(&self, address: u64) -> bool {
        self.module_of(address)
            .and_then(|(_, read)| read)
            .is_some_and(|read| read.is_signal_frame(address.wrapping_sub(read.bias)))
    }

    /// A stack that was caught in the middle of being switched, or unwound by a panic, can lead to any
    /// place; so can the frame that a signal has made.
    fn proven(&self, outermost: u64) -> End {
        let Some((_, Some(read))) = self.module_of(outermost) else {
            return End::Lost;
        };
        match read.is_root(outermost.wrapping_sub(read.bias)) {
            Some(true) => End::Root,
            Some(false) => End::Lost,
            None => End::Unproven,
        }
    }

    /// The module that an address lies in, with what was read of it.
    pub(crate) fn module_of(&self, address: u64) -> Option<(&Mapped, Option<&Read>)> {
        let known = self
            .modules
            .iter()
            .find(|known| known.file.range.contains(&address))?;
        let read = match &known.state {
            State::Read(read) => Some(read),
            State::Unread | State::Unreadable => None,
        };
        Some((&known.file, read))
    }

    /// Reads the tables of the module that an address lies in, unless they have been.
    pub(super) fn read_module_of(&mut self, address: u64) {
        let Some(known) = self
            .modules
            .iter_mut()
            .find(|known| known.file.range.contains(&address))
        else {
            return;
        };
        if !matches!(known.state, State::Unread) {
            return;
        }
        known.state = match Module::load(&known.file) {
            None => State::Unreadable,
            Some(module) => {
                let read = Read {
                    range: module.range.clone(),
                    bias: module.bias,
                    build_id: module.build_id,
                    unwind: module.unwind,
                };
                let sections = read.unwind.clone().map_or_else(Default::default, |unwind| {
                    ExplicitModuleSectionInfo {
                        text_svma: Some(unwind.text),
                        eh_frame_hdr_svma: Some(unwind.eh_frame_hdr.0),
                        eh_frame_hdr: Some(unwind.eh_frame_hdr.1),
                        eh_frame_svma: Some(unwind.eh_frame.0),
                        eh_frame: Some(unwind.eh_frame.1),
                        ..ExplicitModuleSectionInfo::default()
                    }
                });
                self.framehop.add_module(framehop::Module::new(
                    known.file.path.clone(),
                    read.range.clone(),
                    read.bias,
                    sections,
                ));
                State::Read(read)
            }
        };
    }
}

/// The registers of the code that a signal interrupted, as the kernel has left them above the handler's
/// frame: where they are is part of its interface, where its unwind table puts them is beyond `framehop`.
#[cfg(target_arch = "x86_64")]
fn interrupted(sp: u64, read: &mut impl FnMut(u64) -> Result<u64, ()>) -> Option<Registers> {
    use std::mem::offset_of;
    // The handler has returned, so the stack pointer is at the context.
    let saved = offset_of!(libc::ucontext_t, uc_mcontext) + offset_of!(libc::mcontext_t, gregs);
    let mut register = |index: libc::c_int| {
        let offset = saved as u64 + 8 * u64::try_from(index).ok()?;
        read(sp.checked_add(offset)?).ok()
    };
    Some(Registers {
        pc: register(libc::REG_RIP)?,
        sp: register(libc::REG_RSP)?,
        fp: register(libc::REG_RBP)?,
        lr: 0,
    })
}

#[cfg(target_arch = "aarch64")]
fn interrupted(_: u64, _: &mut impl FnMut(u64) -> Result<u64, ()>) -> Option<Registers> {
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
