//! Names for addresses: from debug information, else from the symbol table.
//!
//! *Runs on:* `stall-explainer`; in tests also a thread that measures itself.
//!
//! It reads files. The first address takes long: a program's debug information is large.

use super::debug_info::{DebugFrame, DebugInfo};
use super::files::Unnamed;
use super::tables::{Modules, function_at};
use crate::capture::{Mapped, Module};
use crate::explain::own_code::{OwnCode, is_own_path};
use crate::report::{Frame, Missing, Origin};
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// The most addresses whose names are kept. A stack has about thirty, most of them the same as in
/// the stack before.
const ADDRESSES: usize = 4096;

/// Names addresses, and keeps the names.
#[derive(Default)]
pub(crate) struct Symbols {
    /// The debug information by identity of the mapped file, or why there is none.
    files: HashMap<u64, Result<DebugInfo, Option<Unnamed>>>,
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
        let facts = ModuleFacts::of(file, module, place.address);
        // A file that has been written to is opened anew: its content may be right.
        let read = self.read(place, file, &facts);
        let read = read.or_else(|_| self.read(place, file, &facts));
        match read {
            Ok(named) => self.keep(place, named.into()),
            Err(gap) => [Named::without_file(place.address, &facts, gap)].into(),
        }
    }

    fn keep(&mut self, place: FileAddress, named: Arc<[Named]>) -> Arc<[Named]> {
        if self.named.len() >= ADDRESSES {
            self.named.clear();
        }
        self.named.insert(place, named.clone());
        named
    }

    /// The frames at an address, by the files of its module. Files that cannot be read, or that
    /// have been written to, are not kept.
    fn read(
        &mut self,
        place: FileAddress,
        mapped: &Mapped,
        module: &ModuleFacts,
    ) -> Result<Vec<Named>, Option<Unnamed>> {
        let build_id = module.build_id.as_deref();
        let file = self.files.entry(place.file);
        let file = file.or_insert_with(|| open(mapped, build_id));
        let named = match file {
            Ok(file) => name(file, place.address, module).map_err(Some),
            Err(gap @ (None | Some(Unnamed::Replaced))) => return Err(*gap),
            Err(gap) => Err(*gap),
        };
        if named.is_err() {
            self.files.remove(&place.file);
        }
        named
    }

    /// Drops the debug information of files that are not mapped any more, whose descriptors would
    /// stay open.
    pub(crate) fn forget_unmapped(&mut self, modules: &Modules) {
        if !self.files.is_empty() {
            let mapped: HashSet<u64> = modules.identities().collect();
            self.files.retain(|file, _| mapped.contains(file));
        }
    }

    /// Drops the debug information. Names found in it stay if a build id shows that they are still
    /// right, and if none was missing.
    pub(crate) fn forget_files(&mut self) {
        self.files.clear();
        let is_proven = |named: &Named| named.build_id.is_some() && named.gap.is_none();
        self.named.retain(|_, named| named.iter().all(is_proven));
    }
}

/// Opens the files of a module. The kernel's page of code has none, nor has memory that a compiler
/// at run time writes to.
fn open(mapped: &Mapped, build_id: Option<&str>) -> Result<DebugInfo, Option<Unnamed>> {
    let is_in_a_file = mapped.path.starts_with('/') && !mapped.path.starts_with("/memfd:");
    if !is_in_a_file && !mapped.program {
        return Err(None);
    }
    DebugInfo::of_mapped(mapped, build_id).map_err(Some)
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
        let bias = module.map_or(file.range.start, |module| module.bias);
        FileAddress {
            file: identity(file, module),
            address: address.wrapping_sub(bias),
        }
    }
}

/// The identity of a mapped file.
pub(super) fn identity(file: &Mapped, module: Option<&Module>) -> u64 {
    file.identity(module.and_then(|module| module.build_id.as_deref()))
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
fn name(file: &mut DebugInfo, address: u64, module: &ModuleFacts) -> Result<Vec<Named>, Unnamed> {
    let (calls, gap) = file.calls(address)?;
    let symbol = file.symbol(address, module.function.as_ref());
    Ok(frames(calls, gap, symbol, address, module))
}

/// The frames of these calls, innermost first. `symbol` is the name of the outermost function.
fn frames(
    calls: Vec<DebugFrame>,
    gap: Option<Unnamed>,
    symbol: Option<String>,
    address: u64,
    module: &ModuleFacts,
) -> Vec<Named> {
    let symbol = symbol.map(|name| demangled(&name));
    let calls = calls.into_iter();
    let mut frames: Vec<Named> = calls
        .map(|call| Named::inlined(call, address, module))
        .collect();
    if frames.is_empty() {
        frames.push(Named::nameless(address, Some(module)));
    }
    let Some(outermost) = frames.last_mut() else {
        return frames;
    };
    (outermost.inlined, outermost.gap) = (false, gap);
    // Split debug information leaves its lines in the file. The line may be that of a function
    // which was inlined into this one.
    outermost.may_be_inlined_line = outermost.function.is_none();
    // Little debug information names functions without their path, which the symbol has.
    let has_path = |name: &String| name.contains("::");
    if !outermost.function.as_ref().is_some_and(has_path) {
        outermost.function = symbol.or(outermost.function.take());
    }
    frames
}

/// A frame without the owner of its code. The owner depends on the crates that a watch names as
/// own.
#[derive(Debug)]
pub(crate) struct Named {
    function: Option<String>,
    file: Option<String>,
    /// The start of the part of the file's path that the compiler was given.
    given_at: usize,
    line: Option<u32>,
    module: Option<String>,
    offset: u64,
    build_id: Option<String>,
    in_program: bool,
    inlined: bool,
    /// Whether file and line may be those of a function that was inlined into this one.
    may_be_inlined_line: bool,
    /// The reason why more is not known.
    gap: Option<Unnamed>,
}

impl Named {
    fn inlined(call: DebugFrame, address: u64, module: &ModuleFacts) -> Named {
        Named {
            function: call.function.map(|name| demangled(&name)),
            file: call.file,
            given_at: call.given_at,
            line: call.line,
            inlined: true,
            ..Named::nameless(address, Some(module))
        }
    }

    fn without_file(address: u64, module: &ModuleFacts, gap: Option<Unnamed>) -> Named {
        Named {
            gap,
            ..Named::nameless(address, Some(module))
        }
    }

    fn nameless(address: u64, module: Option<&ModuleFacts>) -> Named {
        Named {
            function: None,
            file: None,
            given_at: 0,
            line: None,
            module: module.map(|module| module.name.clone()),
            offset: address,
            build_id: module.and_then(|module| module.build_id.clone()),
            in_program: module.is_some_and(|module| module.in_program),
            inlined: false,
            may_be_inlined_line: false,
            gap: None,
        }
    }

    /// The reason why the frame lacks a name or a line that it could have.
    pub(crate) fn missing(&self) -> Option<Missing> {
        Some(match self.gap? {
            Unnamed::Replaced => Missing::ModuleReplaced,
            Unnamed::Unreadable => Missing::ModuleUnreadable,
            Unnamed::Split => Missing::SplitDebugInfo,
            Unnamed::TooLarge => Missing::LargeDebugInfo,
        })
    }

    /// The frame, with its owner by these rules.
    pub(crate) fn frame(&self, own: &OwnCode) -> Frame {
        let function = self.function.as_deref();
        let is_believed =
            |file: &&str| !self.may_be_inlined_line || function.is_none() || is_own_path(file);
        let file = self.file.as_deref().filter(is_believed);
        let origin = own.origin(function, file, self.in_program);
        let as_given = |file: &str| match origin == Origin::Own && is_own_path(file) {
            true => file[self.given_at..].to_owned(),
            false => file.to_owned(),
        };
        Frame {
            function: self.function.clone(),
            file: file.map(as_given),
            line: self.line.filter(|_| file.is_some()),
            module: self.module.clone(),
            offset: self.offset,
            build_id: self.build_id.clone(),
            origin,
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
    fn a_file_that_is_not_mapped_any_more_is_closed() {
        let (modules, mut symbols) = (this_program(), Symbols::default());
        symbols.frames(outer as *const () as u64, &modules);
        symbols.forget_unmapped(&modules);
        assert_eq!(symbols.files.len(), 1, "it is mapped");
        // As if the program were a library that has been unloaded.
        symbols.forget_unmapped(&Modules::default());
        assert!(symbols.files.is_empty());
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
        assert!(symbols.files.is_empty());
        let kept = Arc::ptr_eq(&first, &symbols.frames(address, &modules));
        assert_eq!(kept, first[0].build_id.is_some());
    }

    #[test]
    fn the_symbol_of_another_function_is_no_name() {
        let modules = this_program();
        let address = outer as *const () as u64;
        let (file, module) = modules.module_of(address).unwrap();
        let info = open(file, module.unwrap().build_id.as_deref());
        let info = info.unwrap_or_else(|gap| panic!("{gap:?}"));
        let in_file = FileAddress::of(address, file, module).address;
        let function = ModuleFacts::of(file, module, in_file).function.unwrap();
        let found = info.symbol(in_file, Some(&function));
        let found = demangled(&found.expect("it has a symbol"));
        assert!(found.ends_with("::outer"), "{found}");
        assert_eq!(
            info.symbol(in_file, Some(&(in_file + 1..in_file + 2))),
            None
        );
        // Without an unwind table, the symbol's size decides.
        let last = function.end - 1;
        assert_eq!(info.symbol(last, None), info.symbol(in_file, None));
        assert!(info.symbol(last, None).is_some());
    }

    fn facts() -> ModuleFacts {
        ModuleFacts {
            name: "app".to_owned(),
            build_id: None,
            in_program: true,
            function: None,
        }
    }

    fn call(function: Option<&str>, file: &str) -> DebugFrame {
        DebugFrame {
            function: function.map(str::to_owned),
            file: Some(file.to_owned()),
            given_at: 0,
            line: Some(7),
        }
    }

    #[test]
    fn own_files_are_told_as_the_compiler_was_given_them() {
        let own = OwnCode::new([]);
        let given_at = |function, file, given_at| {
            let call = DebugFrame {
                given_at,
                ..call(Some(function), file)
            };
            let named = frames(vec![call], None, None, 8, &facts());
            named[0].frame(&own).file.expect("a file")
        };
        let in_workspace = "/home/me/shop/crates/store/src/lib.rs";
        let told = given_at("store::save", in_workspace, "/home/me/shop/".len());
        assert_eq!(told, "crates/store/src/lib.rs");
        let registry = "/home/me/.cargo/registry/src/index.crates.io-1949/sha2-0.10.8";
        let fetched = format!("{registry}/src/a.rs");
        let told = given_at("sha2::hash", &fetched, registry.len() + 1);
        assert_eq!(told, fetched, "a dependency's");
        // This test is of a package in a workspace.
        let (modules, mut symbols) = (this_program(), Symbols::default());
        let named = symbols.frames(outer as *const () as u64, &modules);
        let this = OwnCode::new([env!("CARGO_CRATE_NAME").to_owned()]);
        assert_eq!(named[0].frame(&this).file.as_deref(), Some(file!()));
    }

    #[test]
    fn a_line_beside_a_symbol_may_be_that_of_an_inlined_function() {
        let own = OwnCode::new(["app".to_owned()]);
        let frame_of = |call| {
            let symbol = Some("app::handlers::hash".to_owned());
            let named = frames(vec![call], Some(Unnamed::Split), symbol, 8, &facts());
            assert_eq!(named[0].missing(), Some(Missing::SplitDebugInfo));
            named[0].frame(&own)
        };
        let std = "/rustc/abc/library/core/src/intrinsics/mod.rs";
        let registry = "/home/me/.cargo/registry/src/index.crates.io-1949/sha2-0.10.8/src/a.rs";
        for file in [std, registry] {
            let frame = frame_of(call(None, file));
            assert_eq!(frame.function.as_deref(), Some("app::handlers::hash"));
            assert_eq!(
                (frame.origin, frame.file, frame.line),
                (Origin::Own, None, None)
            );
        }
        let frame = frame_of(call(None, "/home/me/app/src/main.rs"));
        assert_eq!((frame.origin, frame.line), (Origin::Own, Some(7)));
        // With its function from the same source, the line is the function's own.
        let frame = frame_of(call(Some("core::hint::black_box"), std));
        assert_eq!((frame.origin, frame.line), (Origin::Std, Some(7)));
    }

    #[test]
    fn code_without_a_file_lacks_none() {
        let mut files = crate::capture::mapped(crate::os::Pid::OWN).into_iter();
        let mut library = files.find(|file| !file.program).expect("a library");
        for path in ["[vdso]", "/memfd:code (deleted)"] {
            library.path = path.to_owned();
            assert_eq!(open(&library, None).err(), Some(None), "{path}");
        }
        library.path = "/lib/old.so (deleted)".to_owned();
        assert_eq!(open(&library, None).err(), Some(Some(Unnamed::Replaced)));
    }

    #[test]
    fn names_lose_hashes_and_versions() {
        assert_eq!(demangled("_ZN3app3run17h0123456789abcdefE"), "app::run");
        assert_eq!(demangled("_RNvC3app3run"), "app::run");
        assert_eq!(demangled("memcpy@@GLIBC_2.14"), "memcpy");
        assert_eq!(demangled("nanosleep"), "nanosleep");
    }
}
