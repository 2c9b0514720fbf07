//! The debug information of one module, wherever it is: functions and lines by address.
//!
//! *Runs on:* `stall-explainer`; in tests also a thread that measures itself.
//!
//! It may be in the module's own file, in one that was stripped off, or split: then that file has
//! the lines, and a `.dwp` beside the program or the `.dwo` of the compiler has the functions.

use super::files::{Elf, Unnamed};
use super::pages::Reader;
use crate::capture::Mapped;
use addr2line::{Context, LookupContinuation, LookupResult, SplitDwarfLoad};
use gimli::{AbbreviationsCacheStrategy, Dwarf, DwarfPackage, Reader as _, SectionId};
use std::ffi::OsString;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// One function at an address, by debug information: its name as the linker has it, and its place.
pub(super) struct DebugFrame {
    pub(super) function: Option<String>,
    pub(super) file: Option<String>,
    /// The start of the part of the path that the compiler was given.
    pub(super) given_at: usize,
    pub(super) line: Option<u32>,
}

/// The names of a module's code.
pub(super) struct DebugInfo {
    file: Elf,
    separate: Option<Elf>,
    context: Option<Context<Reader>>,
    split: Split,
    gap: Option<Unnamed>,
}

impl DebugInfo {
    /// Opens a mapped file, and for the program also the one that was stripped off it. The lines of
    /// libraries of the system explain nothing, and are large where they are installed.
    ///
    /// # Cost
    ///
    /// About 100 ms for a large program: all units of its debug information are listed.
    pub(super) fn of_mapped(mapped: &Mapped, build_id: Option<&str>) -> Result<DebugInfo, Unnamed> {
        let file = Elf::of_mapped(mapped, build_id)?;
        let path = mapped.path.strip_suffix(" (deleted)");
        let path = Path::new(path.unwrap_or(&mapped.path));
        let separate = mapped.program.then(|| file.separate(path)).flatten();
        Ok(DebugInfo::of_files(file, separate, path))
    }

    /// `path` is the module's own.
    fn of_files(file: Elf, separate: Option<Elf>, path: &Path) -> DebugInfo {
        let context = context(separate.as_ref().unwrap_or(&file));
        DebugInfo {
            gap: context.as_ref().err().copied(),
            context: context.ok(),
            split: Split::of(path),
            separate,
            file,
        }
    }

    /// The calls at an address, innermost first, and the reason if some are missing. An error if a
    /// file has been written to: then none of its names can be believed.
    pub(super) fn calls(
        &mut self,
        address: u64,
    ) -> Result<(Vec<DebugFrame>, Option<Unnamed>), Unnamed> {
        let found = match &self.context {
            Some(context) => calls(context, address, &mut self.split),
            None => Ok(Vec::new()),
        };
        if !self.is_unchanged() {
            return Err(Unnamed::Replaced);
        }
        let unread = || match self.lines().opened.is_exhausted() {
            true => Unnamed::TooLarge,
            false => Unnamed::Unreadable,
        };
        let gap = found.is_err().then(unread);
        // A unit is asked for once, and has no functions from then on.
        let outermost = found.as_ref().ok().and_then(|calls| calls.last());
        let lacks_function = outermost.is_some_and(|call| call.function.is_none());
        let split = self.split.gap.filter(|_| lacks_function);
        let gap = gap.or(split).or(self.gap);
        Ok((found.unwrap_or_default(), gap))
    }

    /// The name of the nearest symbol, as the linker has it. `None` if that symbol is another
    /// function's, since local symbols have been stripped: it lies outside of the function's
    /// addresses by the unwind tables. Without a table, the symbol's own size decides.
    pub(super) fn symbol(&self, address: u64, function: Option<&Range<u64>>) -> Option<String> {
        let separate = self.separate.as_ref().map(|file| &file.symbols);
        let separate = separate.filter(|symbols| !symbols.is_empty());
        let symbols = separate.unwrap_or(&self.file.symbols);
        let symbol = symbols.nearest(address)?;
        let (start, end) = symbol.addresses;
        let is_its_own = match function {
            Some(function) => function.contains(&start),
            None => (start..end).contains(&address),
        };
        symbols.name(symbol).filter(|_| is_its_own)
    }

    fn lines(&self) -> &Elf {
        self.separate.as_ref().unwrap_or(&self.file)
    }

    fn is_unchanged(&self) -> bool {
        let files = [Some(&self.file), self.separate.as_ref()];
        let package = self.split.package.as_ref().map(|(file, _)| file);
        let mut files = files.into_iter().flatten().chain(package);
        files.all(|file| file.opened.is_unchanged())
    }
}

/// The index of a file's debug information.
fn context(file: &Elf) -> Result<Context<Reader>, Unnamed> {
    let mut dwarf = Dwarf::load(|id| file.section(id.name()))?;
    dwarf.populate_abbreviations_cache(AbbreviationsCacheStrategy::Duplicates);
    Context::from_dwarf(dwarf).map_err(|_| match file.opened.is_exhausted() {
        true => Unnamed::TooLarge,
        false => Unnamed::Unreadable,
    })
}

fn calls(
    context: &Context<Reader>,
    address: u64,
    split: &mut Split,
) -> Result<Vec<DebugFrame>, gimli::Error> {
    let mut frames = found(context.find_frames(address), split)?;
    let unit = found(context.find_dwarf_and_unit(address), split);
    let directory = unit.and_then(|unit| unit.comp_dir.clone());
    let directory = directory.and_then(|path| Some(path.to_string_lossy().ok()?.into_owned()));
    let mut calls = Vec::new();
    while let Some(frame) = frames.next()? {
        let name = frame.function.as_ref();
        let name = name.and_then(|name| name.raw_name().ok());
        let place = frame.location.as_ref();
        let file = place.and_then(|place| place.file).map(str::to_owned);
        calls.push(DebugFrame {
            function: name.map(std::borrow::Cow::into_owned),
            given_at: given_at(file.as_deref(), directory.as_deref()),
            file,
            line: place.and_then(|place| place.line),
        });
    }
    Ok(calls)
}

/// The result of a lookup, for which split debug information is loaded.
fn found<L: LookupContinuation<Buf = Reader>>(
    mut lookup: LookupResult<L>,
    split: &mut Split,
) -> L::Output {
    loop {
        match lookup {
            LookupResult::Output(output) => return output,
            LookupResult::Load { load, continuation } => {
                lookup = continuation.resume(split.load(&load));
            }
        }
    }
}

/// The start of the part of a path that the compiler was given, if it ran in this directory.
fn given_at(file: Option<&str>, directory: Option<&str>) -> usize {
    let inside = file.zip(directory).and_then(|(file, directory)| {
        let inside = file.strip_prefix(directory)?.strip_prefix('/')?;
        Some(file.len() - inside.len())
    });
    inside.unwrap_or(0)
}

/// Debug information that was split off at compilation.
struct Split {
    /// The `.dwp` beside the module, and its index once it has been opened.
    path: PathBuf,
    is_opened: bool,
    package: Option<(Elf, DwarfPackage<Reader>)>,
    /// The reason why a unit could not be loaded.
    gap: Option<Unnamed>,
}

impl Split {
    /// The split debug information of the module at this path.
    fn of(path: &Path) -> Split {
        let mut package = OsString::from(path);
        package.push(".dwp");
        Split {
            path: package.into(),
            is_opened: false,
            package: None,
            gap: None,
        }
    }

    /// Loads one unit. Its number is a hash of its content.
    fn load(&mut self, load: &SplitDwarfLoad<Reader>) -> Option<Arc<Dwarf<Reader>>> {
        let unit = self.packed(load).or_else(|| unpacked(load));
        if unit.is_none() {
            self.gap = Some(Unnamed::Split);
        }
        unit.map(Arc::new)
    }

    fn packed(&mut self, load: &SplitDwarfLoad<Reader>) -> Option<Dwarf<Reader>> {
        if !self.is_opened {
            self.is_opened = true;
            self.package = open_package(&self.path);
        }
        let (_, package) = self.package.as_ref()?;
        package.find_cu(load.dwo_id, &load.parent).ok()?
    }
}

fn open_package(path: &Path) -> Option<(Elf, DwarfPackage<Reader>)> {
    let file = Elf::open(path).ok()?;
    let section = |id: SectionId| match id.dwo_name() {
        Some(name) => file.section(name).map_err(|_| gimli::Error::Io),
        None => Ok(Reader::of_bytes(Vec::new())),
    };
    let package = DwarfPackage::load(section, Reader::of_bytes(Vec::new()));
    package.ok().map(|package| (file, package))
}

/// A unit in a file of its own, at the path that the compiler has noted. The file is read at once:
/// there may be a thousand of them.
fn unpacked(load: &SplitDwarfLoad<Reader>) -> Option<Dwarf<Reader>> {
    let part = |part: &Option<Reader>| {
        let text = part.as_ref()?.to_string_lossy().ok()?;
        Some(PathBuf::from(text.into_owned()))
    };
    let path = part(&load.comp_dir).unwrap_or_default();
    let file = Elf::open(&path.join(part(&load.path)?)).ok()?;
    let section = |id: SectionId| match id.dwo_name() {
        Some(name) => file.whole_section(name),
        None => Ok(Reader::of_bytes(Vec::new())),
    };
    let mut dwarf = Dwarf::load(section).ok()?;
    let header = dwarf.units().next().ok()??;
    let unit = dwarf.unit(header).ok()?;
    if unit.dwo_id != Some(load.dwo_id) {
        return None;
    }
    dwarf.make_dwo(&load.parent);
    Some(dwarf)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// A library with two functions of C, built with these options.
    fn library(directory: &Path, options: &[&str]) -> PathBuf {
        let text = "int one(int n) { return n + 1; }\n\nint two(int n) { return n + 2; }\n";
        std::fs::write(directory.join("lib.c"), text).unwrap();
        let status = Command::new("cc")
            .current_dir(directory)
            .args(["-shared", "-fPIC", "-g", "-Wl,--build-id"])
            .args(options)
            .args(["-o", "lib.so", "lib.c"])
            .status();
        assert!(status.expect("there is a compiler of C").success());
        directory.join("lib.so")
    }

    fn opened(path: &Path) -> DebugInfo {
        let file = Elf::open(path).unwrap();
        let separate = file.separate(path);
        DebugInfo::of_files(file, separate, path)
    }

    /// The address of a function, by its symbol.
    fn address_of(function: &str, path: &Path) -> u64 {
        let file = Elf::open(path).unwrap();
        let found = file.symbols.all().find(|symbol| {
            let name = file.symbols.name(symbol);
            name.as_deref() == Some(function)
        });
        found.expect("it has a symbol").addresses.0
    }

    type Found = Result<(Vec<(Option<String>, Option<u32>)>, Option<Unnamed>), Unnamed>;

    fn lines(info: &mut DebugInfo, address: u64) -> Found {
        let (calls, gap) = info.calls(address)?;
        let calls = calls.into_iter().map(|call| (call.function, call.line));
        Ok((calls.collect(), gap))
    }

    fn named(function: &str, line: u32) -> Found {
        Ok((vec![(Some(function.to_owned()), Some(line))], None))
    }

    /// Cuts a file off, as `: > file` does.
    fn cut(path: &Path) {
        let file = std::fs::File::options().write(true).open(path);
        file.unwrap().set_len(0).unwrap();
    }

    #[test]
    fn functions_have_their_lines_also_if_compressed() {
        for option in ["-gz=none", "-gz=zlib"] {
            let directory = tempfile::tempdir().unwrap();
            let path = library(directory.path(), &[option]);
            let two = address_of("two", &path);
            let mut info = opened(&path);
            assert_eq!(lines(&mut info, two), named("two", 3), "{option}");
            assert_eq!(info.symbol(two + 1, None).as_deref(), Some("two"));
        }
    }

    #[test]
    fn a_file_that_is_cut_or_written_to_names_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = library(directory.path(), &[]);
        let (one, two) = (address_of("one", &path), address_of("two", &path));
        let mut info = opened(&path);
        assert_eq!(lines(&mut info, one), named("one", 1));
        cut(&path);
        assert_eq!(lines(&mut info, two), Err(Unnamed::Replaced));
        assert!(Elf::open(&path).is_err());
    }

    #[test]
    fn split_debug_information_is_read_or_said_to_be_missing() {
        let directory = tempfile::tempdir().unwrap();
        let path = library(directory.path(), &["-gsplit-dwarf"]);
        let mut names = std::fs::read_dir(directory.path()).unwrap();
        let split = names.find_map(|entry| {
            let path = entry.unwrap().path();
            (path.extension()? == "dwo").then_some(path)
        });
        let split = split.expect("the compiler has written it");
        let two = address_of("two", &path);
        assert_eq!(lines(&mut opened(&path), two), named("two", 3));
        cut(&split);
        let without = Ok((vec![(None, Some(3))], Some(Unnamed::Split)));
        let mut info = opened(&path);
        assert_eq!(lines(&mut info, two), without);
        assert_eq!(lines(&mut info, two), without, "it is not asked for again");
    }

    #[test]
    fn what_was_stripped_off_is_found_by_its_build_id() {
        let directory = tempfile::tempdir().unwrap();
        let run = |tool: &str, arguments: &[&str]| {
            let command = Command::new(tool)
                .current_dir(directory.path())
                .args(arguments)
                .status();
            assert!(command.expect("it comes with the compiler").success());
        };
        let path = library(directory.path(), &[]);
        let two = address_of("two", &path);
        run("objcopy", &["--only-keep-debug", "lib.so", "lib.debug"]);
        run("strip", &["lib.so"]);
        run("objcopy", &["--add-gnu-debuglink=lib.debug", "lib.so"]);
        assert_eq!(lines(&mut opened(&path), two), named("two", 3));
        let other = tempfile::tempdir().unwrap();
        let other = library(other.path(), &["-O2"]);
        std::fs::copy(other, directory.path().join("lib.debug")).unwrap();
        assert_eq!(lines(&mut opened(&path), two), Ok((Vec::new(), None)));
    }
}
