//! Files with debug information and symbols, each believed only if it is the right one.
//!
//! *Runs on:* `stall-explainer`; in tests also a thread that measures itself.
//!
//! A file at the path of a mapped one may be another build. Its names would be wrong, and with them
//! the verdict on a stall.

use super::pages::{Opened, Reader};
use crate::capture::Mapped;
use gimli::Reader as _;
use miniz_oxide::inflate::decompress_to_vec_zlib_with_limit;
use object::LittleEndian;
use object::elf::{
    FileHeader64, SHT_SYMTAB, STB_LOCAL, STT_FUNC, STT_GNU_IFUNC, STT_NOTYPE, Sym64,
};
use object::read::elf::{
    ElfFile64, ElfSection64, FileHeader as _, SectionHeader as _, Sym as _, SymbolTable,
};
use object::{CompressedFileRange, CompressionFormat, Object as _, ObjectSection as _, ReadCache};
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The reason why names or lines are not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unnamed {
    /// The file on disk is not the one that is mapped.
    Replaced,
    /// The file cannot be read.
    Unreadable,
    /// Split debug information is missing, or that of another build.
    Split,
    /// The debug information is compressed in a way that is not read, or too large.
    TooLarge,
}

/// The parts of an ELF file that have names and lines.
pub(super) struct Elf {
    pub(super) opened: Arc<Opened>,
    pub(super) symbols: SymbolNames,
    build_id: Option<String>,
    sections: HashMap<String, CompressedFileRange>,
    debug_link: Option<String>,
}

/// The file being parsed: headers and symbols are read from the file, too.
type Parsed<'a> = ElfFile64<'a, LittleEndian, &'a ReadCache<&'a File>>;

impl Elf {
    /// Opens the file of mapped code. Without a build id in memory, only the file that is mapped
    /// is believed, by its number on its device.
    ///
    /// # Cost
    ///
    /// It reads the headers and the symbol table.
    pub(super) fn of_mapped(mapped: &Mapped, build_id: Option<&str>) -> Result<Elf, Unnamed> {
        let path = mapped.file().ok_or(Unnamed::Replaced)?;
        let elf = Elf::open(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Unnamed::Replaced,
            _ => Unnamed::Unreadable,
        })?;
        let is_mapped = match build_id {
            Some(_) => elf.build_id.as_deref() == build_id,
            None => mapped.program || elf.opened.is_mapped_as(mapped),
        };
        is_mapped.then_some(elf).ok_or(Unnamed::Replaced)
    }

    /// The file with the debug information that was stripped off this one, if it has the same build
    /// id. `path` is this file's own.
    pub(super) fn separate(&self, path: &Path) -> Option<Elf> {
        if self.has_lines() {
            return None;
        }
        let build_id = self.build_id.as_deref()?;
        let has_it = |elf: &Elf| elf.build_id.as_deref() == Some(build_id) && elf.has_lines();
        let places = separate_places(build_id, self.debug_link.as_deref(), path);
        let mut files = places.iter().filter_map(|place| Elf::open(place).ok());
        files.find(has_it)
    }

    pub(super) fn open(path: &Path) -> io::Result<Elf> {
        let opened = Arc::new(Opened::new(path)?);
        let cache = ReadCache::new(&opened.file);
        let file = Parsed::parse(&cache).map_err(io::Error::other)?;
        let build_id = file.build_id().ok().flatten();
        let link = file.gnu_debuglink().ok().flatten();
        Ok(Elf {
            symbols: SymbolNames::of(&file, &opened),
            build_id: build_id.map(hexadecimal),
            sections: file.sections().filter_map(|each| debug(&each)).collect(),
            debug_link: link.map(|(name, _)| String::from_utf8_lossy(name).into_owned()),
            opened: opened.clone(),
        })
    }

    /// Whether it has debug information, and not only symbols.
    pub(super) fn has_lines(&self) -> bool {
        self.sections.contains_key(".debug_info")
    }

    /// A section of debug information, read as it is needed. Empty if there is none.
    pub(super) fn section(&self, name: &str) -> Result<Reader, Unnamed> {
        let Some(held) = self.sections.get(name) else {
            return Ok(Reader::of_bytes(Vec::new()));
        };
        let range = held.offset..held.offset.saturating_add(held.compressed_size);
        match held.format {
            CompressionFormat::None => Ok(Reader::of_file(&self.opened, range)),
            CompressionFormat::Zlib => self.inflated(range, held.uncompressed_size),
            _ => Err(Unnamed::TooLarge),
        }
    }

    /// A section, read now: the file is not needed after it.
    pub(super) fn whole_section(&self, name: &str) -> Result<Reader, Unnamed> {
        let section = self.section(name)?;
        let bytes = section.to_slice().map_err(|_| Unnamed::Unreadable)?;
        Ok(Reader::of_bytes(bytes.into_owned()))
    }

    /// A section that is compressed. Its bytes count towards those that are kept of the file.
    fn inflated(&self, range: Range<u64>, size: u64) -> Result<Reader, Unnamed> {
        let size = usize::try_from(size).map_err(|_| Unnamed::TooLarge)?;
        self.opened.take(size).map_err(|_| Unnamed::TooLarge)?;
        let compressed = Reader::of_file(&self.opened, range);
        let compressed = compressed.to_slice().map_err(|_| Unnamed::TooLarge)?;
        let bytes = decompress_to_vec_zlib_with_limit(&compressed, size);
        bytes.map(Reader::of_bytes).map_err(|_| Unnamed::Unreadable)
    }
}

/// Whether a file has debug information, and symbols other than those for linking at run time.
///
/// # Cost
///
/// It reads the headers.
pub(super) fn debug_info_and_symbols(path: &Path) -> io::Result<(bool, bool)> {
    let file = File::open(path)?;
    let cache = ReadCache::new(&file);
    let header: &FileHeader64<LittleEndian> =
        FileHeader64::parse(&cache).map_err(io::Error::other)?;
    let sections = header.sections(LittleEndian, &cache);
    let sections = sections.map_err(io::Error::other)?;
    let is_debug_info = |section: &_| {
        let name = sections.section_name(LittleEndian, section);
        name.is_ok_and(|name| name == b".debug_info")
    };
    let has_lines = sections.iter().any(is_debug_info);
    let mut kinds = sections.iter().map(|section| section.sh_type(LittleEndian));
    Ok((has_lines, kinds.any(|kind| kind == SHT_SYMTAB)))
}

/// The name of a section with debug information, and its place in the file.
fn debug<'a>(
    section: &ElfSection64<'a, '_, LittleEndian, &'a ReadCache<&'a File>>,
) -> Option<(String, CompressedFileRange)> {
    let name = section.name().ok()?;
    let held = section.compressed_file_range().ok()?;
    name.starts_with(".debug_").then(|| (name.to_owned(), held))
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The places where debuggers look for debug information that was stripped off.
fn separate_places(build_id: &str, link: Option<&str>, path: &Path) -> Vec<PathBuf> {
    let mut places = Vec::new();
    let all = Path::new("/usr/lib/debug");
    if let Some((first, rest)) = build_id.split_at_checked(2) {
        places.push(all.join(format!(".build-id/{first}/{rest}.debug")));
    }
    if let Some((directory, link)) = path.parent().zip(link) {
        places.push(directory.join(link));
        places.push(directory.join(".debug").join(link));
        let below_root = directory.strip_prefix("/").unwrap_or(directory);
        places.push(all.join(below_root).join(link));
    }
    places
}

/// The functions in a symbol table, in order of address.
#[derive(Default)]
pub(super) struct SymbolNames {
    entries: Box<[Symbol]>,
    names: Option<Reader>,
}

/// A function in a symbol table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Symbol {
    pub(super) addresses: (u64, u64),
    /// The place of its name among the names.
    name: u32,
    /// The lowest is taken of those with the same address.
    rank: u8,
}

type Table<'a> = SymbolTable<'a, FileHeader64<LittleEndian>, &'a ReadCache<&'a File>>;

impl SymbolNames {
    /// Those for linking at run time if the file has no others.
    fn of(file: &Parsed<'_>, opened: &Arc<Opened>) -> SymbolNames {
        let all = file.elf_symbol_table();
        let table = match all.is_empty() {
            true => file.elf_dynamic_symbol_table(),
            false => all,
        };
        let strings = table.string_section();
        let strings = file.elf_section_table().section(strings).ok();
        let names = strings.and_then(|strings| strings.file_range(LittleEndian));
        SymbolNames {
            entries: entries(table),
            names: names.map(|(at, size)| Reader::of_names(opened, at..at.saturating_add(size))),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    #[cfg(test)]
    pub(super) fn all(&self) -> impl Iterator<Item = &Symbol> {
        self.entries.iter()
    }

    /// The last function that begins at this address or before it.
    pub(super) fn nearest(&self, address: u64) -> Option<&Symbol> {
        let after = self
            .entries
            .partition_point(|symbol| symbol.addresses.0 <= address);
        self.entries.get(after.checked_sub(1)?)
    }

    pub(super) fn name(&self, symbol: &Symbol) -> Option<String> {
        let mut names = self.names.clone()?;
        names.skip(symbol.name as usize).ok()?;
        let name = names.read_null_terminated_slice().ok()?;
        let name = name.to_string_lossy().ok()?.into_owned();
        (!name.is_empty()).then_some(name)
    }
}

fn entries(table: &Table<'_>) -> Box<[Symbol]> {
    let mut entries: Vec<Symbol> = table.iter().filter_map(entry).collect();
    // Of two that are equal, the later one is likely to be the more specific.
    entries.reverse();
    entries.sort_by_key(|symbol| (symbol.addresses.0, symbol.rank));
    entries.dedup_by_key(|symbol| symbol.addresses.0);
    entries.into()
}

fn entry(symbol: &Sym64<LittleEndian>) -> Option<Symbol> {
    let endian = LittleEndian;
    let untyped = match symbol.st_type() {
        STT_FUNC | STT_GNU_IFUNC => 0,
        STT_NOTYPE => 2,
        _ => return None,
    };
    let (start, size) = (symbol.st_value(endian), symbol.st_size(endian));
    let name = symbol.st_name(endian);
    let is_named_here = !symbol.is_undefined(endian) && name != 0;
    is_named_here.then_some(Symbol {
        addresses: (start, start.saturating_add(size)),
        name,
        rank: untyped + u8::from(symbol.st_bind() == STB_LOCAL),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::mapped;
    use crate::os::Pid;

    /// The program, and the C library or another one beside it.
    fn files() -> (Mapped, Mapped) {
        let (program, mut libraries) = mapped(Pid::OWN)
            .into_iter()
            .filter(|file| file.path.starts_with('/'))
            .partition::<Vec<_>, _>(|file| file.program);
        (program[0].clone(), libraries.pop().expect("a library"))
    }

    fn renamed(mut mapped: Mapped, path: &str) -> Mapped {
        mapped.path = path.to_owned();
        mapped
    }

    fn gap_of(opened: Result<Elf, Unnamed>) -> Option<Unnamed> {
        opened.err()
    }

    #[test]
    fn a_file_is_believed_by_the_build_id_in_memory() {
        let (program, library) = files();
        for file in [&program, &library] {
            let build_id = Elf::of_mapped(file, None).unwrap().build_id;
            let Some(build_id) = build_id else {
                eprintln!("{} has no build id", file.path);
                continue;
            };
            assert_eq!(gap_of(Elf::of_mapped(file, Some(&build_id))), None);
            let other = Elf::of_mapped(file, Some("00"));
            assert_eq!(gap_of(other), Some(Unnamed::Replaced));
        }
    }

    #[test]
    fn without_a_build_id_only_the_file_that_is_mapped_is_believed() {
        let (program, library) = files();
        let directory = tempfile::tempdir().unwrap();
        let copy = directory.path().join("library.so");
        std::fs::copy(&library.path, &copy).unwrap();
        let copied = renamed(library, copy.to_str().unwrap());
        assert_eq!(
            gap_of(Elf::of_mapped(&copied, None)),
            Some(Unnamed::Replaced)
        );
        // The kernel knows the program's file, whatever is at its path.
        let moved = renamed(program, "/no/such/program");
        assert_eq!(gap_of(Elf::of_mapped(&moved, None)), None);
    }

    #[test]
    fn a_file_that_is_gone_or_no_elf_file_has_a_reason() {
        let (_, library) = files();
        let at = |path| gap_of(Elf::of_mapped(&renamed(library.clone(), path), None));
        assert_eq!(at("/no/such/library.so"), Some(Unnamed::Replaced));
        assert_eq!(at("/lib/library.so (deleted)"), Some(Unnamed::Replaced));
        assert_eq!(at("/proc/self/status"), Some(Unnamed::Unreadable));
    }
}
