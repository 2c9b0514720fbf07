//! The modules of a process, with their unwind tables.
//!
//! *Runs on:* `stall-explainer`; in tests also a thread that measures itself.
//! *Must not:* contain unsafe code: the tables are the copies of `capture::modules`. The tables of
//! a module are read when an address in it is first met.

use super::code;
use super::row::{self, Bytes, Entry};
use super::symbols::identity;
use super::unwind::{Activation, CopiedStack, Tables, Way};
use crate::capture::{Mapped, Module, mapped};
use crate::os::Pid;
use gimli::{
    BaseAddresses, EhFrame, EhFrameHdr, LittleEndian, UnwindContext, UnwindSection as _, Vendor,
};
use std::ops::Range;

/// The modules of a process.
#[derive(Default)]
pub(crate) struct Modules {
    process: Pid,
    states: Vec<ModuleState>,
    /// Room for the rows of a table, kept from call to call.
    context: UnwindContext<usize>,
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
    /// The modules of this process. None has been read.
    #[cfg(feature = "outside")]
    pub(crate) fn of(process: Pid) -> Modules {
        Modules {
            process,
            ..Modules::default()
        }
    }

    /// The modules of the same process. None has been read.
    pub(crate) fn forgotten(&self) -> Modules {
        Modules {
            process: self.process,
            ..Modules::default()
        }
    }

    /// Reads which files are mapped now. Files that are not mapped any more are forgotten. Returns
    /// whether anything has changed.
    pub(crate) fn refresh(&mut self) -> bool {
        let now = mapped(self.process);
        if self.states.iter().map(|state| &state.file).eq(&now) {
            return false;
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
        true
    }

    /// The identities of the files that are mapped.
    pub(super) fn identities(&self) -> impl Iterator<Item = u64> {
        let states = self.states.iter();
        states.map(|state| identity(&state.file, state.module()))
    }

    pub(super) fn process(&self) -> Pid {
        self.process
    }

    /// The first instruction of the function around an address, by the unwind tables.
    pub(super) fn function_start(&mut self, address: u64) -> Option<u64> {
        self.read_module_of(address);
        let module = state_of(&self.states, address)?.module()?;
        let function = function_at(module, address.wrapping_sub(module.bias))?;
        Some(function.start.wrapping_add(module.bias))
    }

    /// The file that an address lies in, with its tables if they have been read.
    pub(crate) fn module_of(&self, address: u64) -> Option<(&Mapped, Option<&Module>)> {
        let state = state_of(&self.states, address)?;
        Some((&state.file, state.module()))
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
            Some(module) => TableState::Read(module),
        };
    }
}

fn state_of(states: &[ModuleState], address: u64) -> Option<&ModuleState> {
    let mut states = states.iter();
    states.find(|state| state.file.range.contains(&address))
}

impl ModuleState {
    fn module(&self) -> Option<&Module> {
        match &self.tables {
            TableState::Read(module) => Some(module),
            TableState::Unread | TableState::Unreadable => None,
        }
    }
}

impl Tables for Modules {
    fn way(&mut self, at: Activation, stack: &CopiedStack<'_>) -> Way {
        let address = at.address();
        self.read_module_of(address);
        let Some(state) = state_of(&self.states, address) else {
            return Way::Astray;
        };
        let by_table = state.module().and_then(|module| {
            let in_file = address.wrapping_sub(module.bias);
            with_entry(module, in_file, |entry, tables, bases| {
                let context = &mut self.context;
                Some(row::way(
                    entry,
                    (tables, bases),
                    context,
                    in_file,
                    at,
                    stack,
                ))
            })
        });
        by_table.unwrap_or_else(|| code::way_without_table(self.process, at))
    }

    fn is_return_address(&self, address: u64) -> bool {
        let inside = address.wrapping_sub(1);
        state_of(&self.states, inside).is_some() && code::is_after_call(self.process, address)
    }
}

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
    let mut frames = EhFrame::new(frame, LittleEndian);
    if cfg!(target_arch = "aarch64") {
        // Tables of signed return addresses have instructions of this vendor.
        frames.set_vendor(Vendor::AArch64);
    }
    let table = parsed.table()?;
    let entry = table.fde_for_address(&frames, &bases, in_file, EhFrame::cie_from_offset);
    f(&entry.ok()?, &frames, &bases)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::Registers;

    fn way_at(modules: &mut Modules, pc: u64) -> Way {
        let registers = Registers {
            pc,
            ..Registers::ZERO
        };
        let at = Activation {
            registers,
            calls: false,
        };
        let words = CopiedStack::of(0, &[]);
        modules.way(at, &words)
    }

    #[test]
    fn code_of_this_program_has_tables_and_other_addresses_have_no_code() {
        let mut modules = Modules::default();
        modules.refresh();
        let here = function_at as *const () as u64;
        // Its return address would be on the stack, or in the link register, which is zero.
        let ways = [Way::Beyond, Way::Caller(Registers::ZERO)];
        assert!(ways.contains(&way_at(&mut modules, here)));
        assert_eq!(way_at(&mut modules, 8), Way::Astray);
        let (file, module) = modules.module_of(here).expect("it is mapped");
        assert!(file.program);
        let module = module.expect("its tables have been read");
        let function = function_at(module, here - module.bias).expect("it has a table");
        assert_eq!(function.start, here - module.bias);
    }

    #[test]
    fn calls_of_this_program_return_behind_calls() {
        let mut modules = Modules::default();
        modules.refresh();
        let start = Modules::refresh as *const () as u64;
        modules.read_module_of(start);
        let module = modules.module_of(start).unwrap().1.unwrap();
        let length = function_at(module, start - module.bias).unwrap();
        let inside = (start..).take((length.end - length.start) as usize);
        let returns: Vec<_> = inside.filter(|at| modules.is_return_address(*at)).collect();
        assert!(!returns.is_empty() && returns.len() < 200, "{returns:x?}");
        assert!(
            !modules.is_return_address(start),
            "the function before it ends in no call"
        );
        assert!(!modules.is_return_address(8));
    }
}
