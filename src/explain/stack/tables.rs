//! The modules of this process, with their unwind tables.
//!
//! *Runs on:* `stall-explainer`; in tests also a thread that measures itself.
//! *Must not:* contain unsafe code: the tables are the copies of `capture::modules`. The tables of
//! a module are read when an address in it is first met.

use super::unwind::{Code, CopiedStack, Tables};
use crate::capture::{Mapped, Module, mapped};
use framehop::{
    CacheNative, ExplicitModuleSectionInfo, FrameAddress, UnwindRegsNative, Unwinder as _,
    UnwinderNative,
};
use gimli::{
    BaseAddresses, EhFrame, EhFrameHdr, EndianSlice, FrameDescriptionEntry, LittleEndian,
    RegisterRule, UnwindContext, UnwindSection as _,
};
use std::ops::Range;
use std::sync::Arc;

/// The modules of this process, and the unwinder that has their tables.
#[derive(Default)]
pub(crate) struct Modules {
    framehop: UnwinderNative<Arc<[u8]>, framehop::MayAllocateDuringUnwind>,
    cache: CacheNative<framehop::MayAllocateDuringUnwind>,
    states: Vec<ModuleState>,
}

/// A mapped file, and its tables once they have been read.
struct ModuleState {
    file: Mapped,
    tables: TableState,
}

enum TableState {
    Unread,
    /// Not an ELF file, or unmapped by now.
    Unreadable,
    Read(Module),
}

impl Modules {
    /// Reads which files are mapped now. Files that are not mapped any more are forgotten.
    pub(crate) fn refresh(&mut self) {
        let now = mapped();
        if self.states.iter().map(|state| &state.file).eq(&now) {
            return;
        }
        let mut old = std::mem::take(&mut self.states);
        for file in now {
            let known = old.iter().position(|state| state.file == file);
            let known = known.map(|index| old.swap_remove(index));
            self.states.push(known.unwrap_or(ModuleState {
                file,
                tables: TableState::Unread,
            }));
        }
        for gone in old {
            if let TableState::Read(module) = gone.tables {
                self.framehop.remove_module(module.range.start);
            }
        }
    }

    /// The file that an address lies in, with its tables if they have been read.
    pub(crate) fn module_of(&self, address: u64) -> Option<(&Mapped, Option<&Module>)> {
        let mut states = self.states.iter();
        let state = states.find(|state| state.file.range.contains(&address))?;
        let module = match &state.tables {
            TableState::Read(module) => Some(module),
            TableState::Unread | TableState::Unreadable => None,
        };
        Some((&state.file, module))
    }

    /// Reads the tables of the module that an address lies in, unless this has been done.
    pub(super) fn read_module_of(&mut self, address: u64) {
        let mut states = self.states.iter_mut();
        let state = states.find(|state| state.file.range.contains(&address));
        let Some(state) = state.filter(|state| matches!(state.tables, TableState::Unread)) else {
            return;
        };
        state.tables = match Module::load(&state.file) {
            None => TableState::Unreadable,
            Some(module) => {
                self.framehop.add_module(framehop::Module::new(
                    state.file.path.clone(),
                    module.range.clone(),
                    module.bias,
                    sections(&module),
                ));
                TableState::Read(module)
            }
        };
    }

    /// Calls `f` with the table entry of the function around an address.
    fn with_entry<R>(
        &self,
        address: u64,
        f: impl FnOnce(&Entry<'_>, &EhFrame<Bytes<'_>>, &BaseAddresses) -> Option<R>,
    ) -> Option<R> {
        let (_, module) = self.module_of(address)?;
        let module = module?;
        with_entry(module, address.wrapping_sub(module.bias), f)
    }
}

impl Tables for Modules {
    fn code_at(&mut self, address: u64) -> Code {
        self.read_module_of(address);
        if self.module_of(address).is_none() {
            return Code::Nowhere;
        }
        let is_signal_return = self.with_entry(address, |entry, _, _| {
            Some(entry.cie().is_signal_trampoline())
        });
        match is_signal_return {
            None => Code::WithoutTable,
            Some(false) => Code::WithTable,
            Some(true) => Code::SignalReturn,
        }
    }

    fn is_root(&self, address: u64) -> Option<bool> {
        let bias = self.module_of(address)?.1?.bias;
        self.with_entry(address, |entry, frames, bases| {
            let mut context = UnwindContext::new();
            let in_file = address.wrapping_sub(bias);
            let row = entry
                .unwind_info_for_address(frames, bases, &mut context, in_file)
                .ok()?;
            let returns_to = row.register(entry.cie().return_address_register());
            Some(returns_to == RegisterRule::Undefined)
        })
    }

    fn caller(
        &mut self,
        at: FrameAddress,
        registers: &mut UnwindRegsNative,
        stack: &mut CopiedStack<'_>,
    ) -> Result<Option<u64>, ()> {
        let mut read = |address| stack.read(address);
        let caller = self
            .framehop
            .unwind_frame(at, registers, &mut self.cache, &mut read);
        caller.map_err(|_| ())
    }
}

type Bytes<'a> = EndianSlice<'a, LittleEndian>;
type Entry<'a> = FrameDescriptionEntry<Bytes<'a>>;

/// The range of the function around an address in the file, by the unwind tables. They are present
/// even if symbols have been stripped.
pub(super) fn function_at(module: &Module, in_file: u64) -> Option<Range<u64>> {
    with_entry(module, in_file, |entry, _, _| {
        let start = entry.initial_address();
        Some(start..start + entry.len())
    })
}

fn with_entry<R>(
    module: &Module,
    in_file: u64,
    f: impl FnOnce(&Entry<'_>, &EhFrame<Bytes<'_>>, &BaseAddresses) -> Option<R>,
) -> Option<R> {
    let unwind = module.unwind.as_ref()?;
    let (hdr_at, hdr) = &unwind.eh_frame_hdr;
    let (frame_at, frame) = &unwind.eh_frame;
    let bases = BaseAddresses::default()
        .set_eh_frame_hdr(hdr_at.start)
        .set_eh_frame(frame_at.start)
        .set_text(unwind.text.start);
    let parsed = EhFrameHdr::new(hdr, LittleEndian).parse(&bases, 8).ok()?;
    let frames = EhFrame::new(frame, LittleEndian);
    let table = parsed.table()?;
    let entry = table.fde_for_address(&frames, &bases, in_file, EhFrame::cie_from_offset);
    f(&entry.ok()?, &frames, &bases)
}

/// The tables of a module, for the unwinder.
fn sections(module: &Module) -> ExplicitModuleSectionInfo<Arc<[u8]>> {
    let Some(unwind) = module.unwind.clone() else {
        return ExplicitModuleSectionInfo::default();
    };
    ExplicitModuleSectionInfo {
        text_svma: Some(unwind.text),
        eh_frame_hdr_svma: Some(unwind.eh_frame_hdr.0),
        eh_frame_hdr: Some(unwind.eh_frame_hdr.1),
        eh_frame_svma: Some(unwind.eh_frame.0),
        eh_frame: Some(unwind.eh_frame.1),
        ..ExplicitModuleSectionInfo::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_of_this_program_has_tables_and_other_addresses_have_no_code() {
        let mut modules = Modules::default();
        modules.refresh();
        let here = sections as *const () as u64;
        assert_eq!(modules.code_at(here), Code::WithTable);
        assert_eq!(modules.is_root(here), Some(false));
        assert_eq!(modules.code_at(8), Code::Nowhere);
        assert_eq!(modules.is_root(8), None);
        let (file, module) = modules.module_of(here).expect("it is mapped");
        assert!(file.program);
        let module = module.expect("its tables have been read");
        let function = function_at(module, here - module.bias).expect("it has a table");
        assert_eq!(function.start, here - module.bias);
    }
}
