//! Names for addresses: from debug information, else from the symbol table.
//!
//! *Runs on:* `stall-explainer`; in tests also a thread that measures itself.
//!
//! It reads files. The first address takes long: a program's debug information is large.

use super::tables::{Modules, function_at};
use crate::capture::{Mapped, Module};
use crate::explain::own_code::OwnCode;
use crate::report::Frame;
use addr2line::Loader;
use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// The most addresses whose names are kept. A stack has about thirty, most of them the same as in
/// the stack before.
const ADDRESSES: usize = 4096;

/// Names addresses, and keeps the names.
#[derive(Default)]
pub(crate) struct Symbols {
    /// The debug information by identity of the file. `None` if the file cannot be read.
    loaders: HashMap<u64, Option<Loader>>,
    named: HashMap<FileAddress, Arc<[Named]>>,
}

impl Symbols {
    /// The frames at an address, innermost first: more than one if functions were inlined.
    ///
    /// # Cost
    ///
    /// A look-up in a table for an address named before. Else it reads debug information: 10 to 100
    /// µs, and about 100 ms once per module and minute without stacks.
    pub(crate) fn frames(&mut self, address: u64, modules: &Modules) -> Arc<[Named]> {
        let Some((file, module)) = modules.module_of(address) else {
            return [Named::nameless(address, None)].into();
        };
        let place = FileAddress::of(address, file, module);
        if let Some(known) = self.named.get(&place) {
            return known.clone();
        }
        let loader = self
            .loaders
            .entry(place.file)
            .or_insert_with(|| Loader::new(file.file()?).ok());
        let facts = ModuleFacts::of(file, module, place.address);
        let named: Arc<[Named]> = name(loader.as_ref(), place.address, &facts).into();
        if self.named.len() >= ADDRESSES {
            self.named.clear();
        }
        self.named.insert(place, named.clone());
        named
    }

    /// Drops the debug information. Names found in it stay if a build id shows that they are still
    /// right.
    pub(crate) fn forget_files(&mut self) {
        self.loaders.clear();
        self.named
            .retain(|_, named| named.iter().all(|named| named.build_id.is_some()));
    }
}

/// An address in a file.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct FileAddress {
    /// The identity of the file.
    file: u64,
    address: u64,
}

impl FileAddress {
    fn of(address: u64, file: &Mapped, module: Option<&Module>) -> FileAddress {
        let build_id = module.and_then(|module| module.build_id.as_deref());
        let bias = module.map_or(file.range.start, |module| module.bias);
        FileAddress {
            file: file.identity(build_id),
            address: address.wrapping_sub(bias),
        }
    }
}

/// The facts about the module of an address that do not come from debug information.
struct ModuleFacts {
    /// The last part of the file's path.
    name: String,
    build_id: Option<String>,
    in_program: bool,
    /// The function's addresses in the file, by the unwind tables.
    function: Option<Range<u64>>,
}

impl ModuleFacts {
    fn of(file: &Mapped, module: Option<&Module>, in_file: u64) -> ModuleFacts {
        let name = Path::new(&file.path).file_name();
        ModuleFacts {
            name: name.map_or(file.path.clone(), |name| {
                name.to_string_lossy().into_owned()
            }),
            build_id: module.and_then(|module| module.build_id.clone()),
            in_program: file.program,
            function: module.and_then(|module| function_at(module, in_file)),
        }
    }
}

/// The frames at an address in a file, innermost first.
fn name(loader: Option<&Loader>, address: u64, module: &ModuleFacts) -> Vec<Named> {
    let Some(loader) = loader else {
        return vec![Named::nameless(address, Some(module))];
    };
    let symbol = || symbol(loader, address, module);
    let mut frames = debug_frames(loader, address, module);
    let Some(outermost) = frames.last_mut() else {
        return vec![Named {
            function: symbol(),
            ..Named::nameless(address, Some(module))
        }];
    };
    outermost.inlined = false;
    // Little debug information names functions without their path, which the symbol has.
    let has_path = |name: &String| name.contains("::");
    if !outermost.function.as_ref().is_some_and(has_path) {
        outermost.function = symbol().or(outermost.function.take());
    }
    frames
}

/// The frames that debug information has for an address, all as if inlined.
fn debug_frames(loader: &Loader, address: u64, module: &ModuleFacts) -> Vec<Named> {
    let mut frames = Vec::new();
    let Ok(mut found) = loader.find_frames(address) else {
        return frames;
    };
    while let Ok(Some(frame)) = found.next() {
        let function = frame.function.as_ref();
        let name = function.and_then(|function| function.raw_name().ok());
        let location = frame.location.as_ref();
        frames.push(Named {
            function: name.map(|name| demangled(&name)),
            file: location.and_then(|place| place.file).map(str::to_owned),
            line: location.and_then(|place| place.line),
            inlined: true,
            ..Named::nameless(address, Some(module))
        });
    }
    frames
}

/// The name of the nearest symbol. `None` if that symbol is another function's, since local symbols
/// have been stripped.
fn symbol(loader: &Loader, address: u64, module: &ModuleFacts) -> Option<String> {
    let symbol = loader.find_symbol_info(address)?;
    let function = module.function.as_ref()?;
    let is_its_own = function.contains(&symbol.address());
    is_its_own.then(|| demangled(symbol.name()))
}

/// A frame without the owner of its code. The owner depends on the crates that a watch names as
/// own.
#[derive(Debug)]
pub(crate) struct Named {
    function: Option<String>,
    file: Option<String>,
    line: Option<u32>,
    module: Option<String>,
    offset: u64,
    build_id: Option<String>,
    in_program: bool,
    inlined: bool,
}

impl Named {
    fn nameless(address: u64, module: Option<&ModuleFacts>) -> Named {
        Named {
            function: None,
            file: None,
            line: None,
            module: module.map(|module| module.name.clone()),
            offset: address,
            build_id: module.and_then(|module| module.build_id.clone()),
            in_program: module.is_some_and(|module| module.in_program),
            inlined: false,
        }
    }

    /// The frame, with its owner by these rules.
    pub(crate) fn frame(&self, own: &OwnCode) -> Frame {
        let (function, file) = (self.function.as_deref(), self.file.as_deref());
        Frame {
            function: self.function.clone(),
            file: self.file.clone(),
            line: self.line,
            module: self.module.clone(),
            offset: self.offset,
            build_id: self.build_id.clone(),
            origin: own.origin(function, file, self.in_program),
            inlined: self.inlined,
        }
    }
}

/// A Rust name without its hash. Other names as they are, without a version.
fn demangled(name: &str) -> String {
    match rustc_demangle::try_demangle(name) {
        Ok(name) => format!("{name:#}"),
        // In glibc, an "@" and the version of the function follow its name.
        Err(_) => name.split('@').next().unwrap_or(name).to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[inline(always)]
    fn inner(number: u64) -> u64 {
        std::hint::black_box(number) + 1
    }

    #[inline(never)]
    fn outer(number: u64) -> u64 {
        inner(std::hint::black_box(number)) + 1
    }

    fn this_program() -> Modules {
        let mut modules = Modules::default();
        modules.refresh();
        modules.read_module_of(outer as *const () as u64);
        modules
    }

    /// The names and places at an address, as a report has them.
    fn shown(named: &[Named]) -> Vec<(String, bool)> {
        let own = OwnCode::default();
        let frames = named.iter().map(|named| named.frame(&own));
        let shown = frames.map(|frame| (frame.written_name().unwrap_or_default(), frame.inlined));
        shown.collect()
    }

    fn name_of(function: &str) -> String {
        format!("{}::{function}", module_path!())
    }

    #[test]
    fn a_function_has_its_name_and_place() {
        let (modules, mut symbols) = (this_program(), Symbols::default());
        let named = symbols.frames(outer as *const () as u64, &modules);
        assert_eq!(shown(&named), [(name_of("outer"), false)]);
        assert!(named[0].in_program);
        assert!(named[0].line.is_some());
        let file = named[0]
            .file
            .as_deref()
            .expect("there is debug information");
        assert!(file.ends_with("symbols.rs"), "{file}");
    }

    #[test]
    fn inlined_functions_are_frames_of_their_own() {
        assert_eq!(outer(1), 3);
        let (modules, mut symbols) = (this_program(), Symbols::default());
        let start = outer as *const () as u64;
        let module = modules.module_of(start).unwrap().1.unwrap();
        let function = function_at(module, start - module.bias).unwrap();
        let both = [(name_of("inner"), true), (name_of("outer"), false)];
        let mut addresses = function.map(|address| address + module.bias);
        assert!(
            addresses.any(|address| shown(&symbols.frames(address, &modules)).ends_with(&both))
        );
    }

    #[test]
    fn an_address_outside_of_all_modules_stays_a_number() {
        let named = Symbols::default().frames(8, &this_program());
        let frame = named[0].frame(&OwnCode::default());
        assert_eq!(
            (frame.function, frame.module, frame.offset),
            (None, None, 8)
        );
    }

    #[test]
    fn names_are_kept_after_the_files_are_dropped_if_a_build_id_proves_them() {
        let (modules, mut symbols) = (this_program(), Symbols::default());
        let address = outer as *const () as u64;
        let first = symbols.frames(address, &modules);
        assert!(Arc::ptr_eq(&first, &symbols.frames(address, &modules)));
        symbols.forget_files();
        assert!(symbols.loaders.is_empty());
        let kept = Arc::ptr_eq(&first, &symbols.frames(address, &modules));
        assert_eq!(kept, first[0].build_id.is_some());
    }

    #[test]
    fn the_symbol_of_another_function_is_no_name() {
        let modules = this_program();
        let address = outer as *const () as u64;
        let (file, module) = modules.module_of(address).unwrap();
        let loader = Loader::new(file.file().unwrap()).unwrap();
        let in_file = FileAddress::of(address, file, module).address;
        let mut facts = ModuleFacts::of(file, module, in_file);
        let found = symbol(&loader, in_file, &facts).expect("it has a symbol");
        assert!(found.ends_with("::outer"), "{found}");
        facts.function = Some(in_file + 1..in_file + 2);
        assert_eq!(symbol(&loader, in_file, &facts), None);
    }

    #[test]
    fn names_lose_hashes_and_versions() {
        assert_eq!(demangled("_ZN3app3run17h0123456789abcdefE"), "app::run");
        assert_eq!(demangled("_RNvC3app3run"), "app::run");
        assert_eq!(demangled("memcpy@@GLIBC_2.14"), "memcpy");
        assert_eq!(demangled("nanosleep"), "nanosleep");
    }
}
