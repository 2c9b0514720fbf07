//! The files whose code is mapped into a process, with their unwind tables.
//!
//! *Runs on:* `stall-explainer`; in tests also a thread that measures itself.
//! *Must not:* read the loader's list: a stalled `dlopen` may hold its lock. The files come from
//! `/proc/PID/maps`. The kernel copies the memory, so a library that is unloaded meanwhile is only
//! missing.

use crate::os::{Pid, memory};
use gimli::{BaseAddresses, EhFrameHdr, LittleEndian, Pointer};
use object::Endianness;
use object::elf::{
    FileHeader64, PF_X, PT_GNU_EH_FRAME, PT_LOAD, PT_NOTE, ProgramHeader64, ProgramType,
};
use object::read::elf::{FileHeader as _, ProgramHeader as _};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::Read as _;
use std::ops::Range;
use std::path::PathBuf;

/// One file, or the kernel's own page of code, as mapped into a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mapped {
    /// From its first byte to the end of its last part.
    pub(crate) range: Range<u64>,
    /// Its path, as the kernel writes it. The kernel's own page is `[vdso]`.
    pub(crate) path: String,
    /// The device, as the kernel writes it, and the file's number there.
    device: String,
    inode: u64,
    /// Whether it is the program itself, not a library.
    pub(crate) program: bool,
    executable: bool,
    process: Pid,
}

/// All mapped files of a process with code, in order of address.
///
/// # Cost
///
/// 30 µs for about twenty files.
pub(crate) fn mapped(process: Pid) -> Vec<Mapped> {
    let program = std::fs::read_link(process.file("exe")).unwrap_or_default();
    let mut files = std::fs::read(process.file("maps"))
        .map(|maps| parse(&String::from_utf8_lossy(&maps)))
        .unwrap_or_default();
    for file in &mut files {
        file.program = program.to_str() == Some(&file.path);
        file.process = process;
    }
    files
}

/// Whether the list of mapped files can be read at all. One page of it is enough.
pub(crate) fn mapped_at_all() -> bool {
    let maps = std::fs::File::open("/proc/self/maps");
    maps.is_ok_and(|mut maps| maps.read(&mut [0; 64]).is_ok_and(|read| read > 0))
}

/// The files in the text of `maps`. A line is `start-end perms offset dev inode path`. A part with
/// offset 0 begins a file. The parts after it with the same inode belong to it.
fn parse(maps: &str) -> Vec<Mapped> {
    let mut found: Vec<Mapped> = Vec::new();
    for line in maps.lines() {
        let Some(part) = Part::parse(line) else {
            continue;
        };
        match found.last_mut() {
            Some(last) if part.offset > 0 && part.is_of(last) => {
                last.range.end = part.range.end;
                last.executable |= part.executable;
            }
            _ if part.offset == 0 => found.push(part.begun()),
            _ => {}
        }
    }
    found.retain(|file| file.executable);
    found
}

/// One line of `maps` that belongs to a file.
struct Part<'a> {
    range: Range<u64>,
    executable: bool,
    offset: u64,
    device: &'a str,
    inode: u64,
    path: &'a str,
}

impl<'a> Part<'a> {
    fn is_of(&self, file: &Mapped) -> bool {
        (self.device, self.inode, self.path) == (&file.device, file.inode, &file.path)
    }

    /// The file that begins with this part.
    fn begun(self) -> Mapped {
        Mapped {
            range: self.range,
            path: self.path.to_owned(),
            device: self.device.to_owned(),
            inode: self.inode,
            program: false,
            executable: self.executable,
            process: Pid::OWN,
        }
    }

    fn parse(line: &'a str) -> Option<Part<'a>> {
        let mut rest = line;
        let mut field = || {
            let (field, after) = rest.split_once(' ')?;
            rest = after.trim_start();
            Some(field)
        };
        let (start, end) = field()?.split_once('-')?;
        let permissions = field()?;
        let offset = field()?;
        let device = field()?;
        let inode = field()?;
        let path = rest;
        let hex = |digits| u64::from_str_radix(digits, 16).ok();
        (path.starts_with('/') || path == "[vdso]").then_some(Part {
            range: hex(start)?..hex(end)?,
            executable: permissions.contains('x'),
            offset: hex(offset)?,
            device,
            inode: inode.parse().ok()?,
            path,
        })
    }
}

/// The headers and unwind tables of a mapped file.
#[derive(Debug)]
pub(crate) struct Module {
    /// The address in memory, less the address in the file.
    pub(crate) bias: u64,
    pub(crate) build_id: Option<String>,
    pub(crate) unwind: Option<UnwindSections>,
}

/// The unwind tables, with their addresses in the file.
#[derive(Debug)]
pub(crate) struct UnwindSections {
    pub(crate) eh_frame_hdr: (Range<u64>, Box<[u8]>),
    pub(crate) eh_frame: (Range<u64>, Box<[u8]>),
    pub(crate) text: Range<u64>,
}

/// Bytes read for the headers of a file: more than any file seen has.
const HEADERS: usize = 4096;

impl Module {
    /// Reads a file's headers and tables from memory. `None` if it is unmapped by now, or no ELF
    /// file.
    ///
    /// # Cost
    ///
    /// A copy of the unwind tables, which are 2 to 5 % of a program.
    pub(crate) fn load(file: &Mapped) -> Option<Module> {
        let mut headers = vec![0; HEADERS];
        let read = memory::read_in(file.process, file.range.start, &mut headers);
        headers.truncate(read);
        let segments = Segments::parse(&headers, file.process)?;
        let first = segments.loaded().find(|loaded| loaded.offset == 0)?;
        let bias = file.range.start.wrapping_sub(first.addresses.start);
        let text = segments
            .loaded()
            .find(|loaded| loaded.executable)?
            .addresses;
        Some(Module {
            bias,
            build_id: segments.build_id(bias),
            unwind: segments.unwind(bias, text),
        })
    }
}

/// The segments of an ELF file, by its headers.
struct Segments<'a> {
    endian: Endianness,
    headers: &'a [ProgramHeader64<Endianness>],
    process: Pid,
}

/// A segment that the loader maps.
struct Loaded {
    offset: u64,
    addresses: Range<u64>,
    executable: bool,
}

impl<'a> Segments<'a> {
    fn parse(headers: &'a [u8], process: Pid) -> Option<Segments<'a>> {
        let header = FileHeader64::<Endianness>::parse(headers).ok()?;
        let endian = header.endian().ok()?;
        let headers = header.program_headers(endian, headers).ok()?;
        Some(Segments {
            endian,
            headers,
            process,
        })
    }

    fn of_kind(&self, kind: ProgramType) -> impl Iterator<Item = &'a ProgramHeader64<Endianness>> {
        let endian = self.endian;
        let segments = self.headers.iter();
        segments.filter(move |segment| segment.p_type(endian) == kind)
    }

    fn loaded(&self) -> impl Iterator<Item = Loaded> {
        let endian = self.endian;
        self.of_kind(PT_LOAD).map(move |segment| Loaded {
            offset: segment.p_offset(endian),
            addresses: addresses(segment, endian),
            executable: segment.p_flags(endian).0 & PF_X.0 != 0,
        })
    }

    fn build_id(&self, bias: u64) -> Option<String> {
        self.of_kind(PT_NOTE).find_map(|segment| {
            let range = addresses(segment, self.endian);
            let at = bias.wrapping_add(range.start);
            let notes = memory::read_exact(self.process, at, length(&range)?)?;
            build_id(&notes, segment.p_align(self.endian))
        })
    }

    fn unwind(&self, bias: u64, text: Range<u64>) -> Option<UnwindSections> {
        let hdr = addresses(self.of_kind(PT_GNU_EH_FRAME).next()?, self.endian);
        let mut loaded = self.loaded().map(|loaded| loaded.addresses);
        let holder = loaded.find(|loaded| loaded.contains(&hdr.start))?;
        let read = |range: &Range<u64>| {
            let at = bias.wrapping_add(range.start);
            memory::read_exact(self.process, at, length(range)?)
        };
        unwind_sections(hdr, &holder, text, read)
    }
}

fn addresses(segment: &ProgramHeader64<Endianness>, endian: Endianness) -> Range<u64> {
    let start = segment.p_vaddr(endian);
    start..start.saturating_add(segment.p_filesz(endian))
}

fn length(range: &Range<u64>) -> Option<usize> {
    usize::try_from(range.end.checked_sub(range.start)?).ok()
}

/// Copies the unwind tables. The header `.eh_frame_hdr` has a table to search in, and the address
/// of `.eh_frame`. The data of `.eh_frame` mark their own end, which is at the latest the end of
/// the segment.
fn unwind_sections(
    hdr: Range<u64>,
    holder: &Range<u64>,
    text: Range<u64>,
    read: impl Fn(&Range<u64>) -> Option<Vec<u8>>,
) -> Option<UnwindSections> {
    let hdr_bytes = read(&hdr)?;
    let bases = BaseAddresses::default()
        .set_eh_frame_hdr(hdr.start)
        .set_text(text.start);
    let parsed = EhFrameHdr::new(&hdr_bytes, LittleEndian)
        .parse(&bases, 8)
        .ok()?;
    let Pointer::Direct(start) = parsed.eh_frame_ptr() else {
        return None;
    };
    let eh_frame = start..holder.end;
    let eh_frame_bytes = read(&eh_frame)?;
    Some(UnwindSections {
        eh_frame_hdr: (hdr, hdr_bytes.into()),
        eh_frame: (eh_frame, eh_frame_bytes.into()),
        text,
    })
}

/// The GNU build id among notes. Its owner is "GNU", its type 3.
fn build_id(notes: &[u8], align: u64) -> Option<String> {
    let notes = object::read::elf::NoteIterator::<FileHeader64<Endianness>>::new(
        Endianness::Little,
        align,
        notes,
    );
    let mut notes = notes.ok()?;
    while let Ok(Some(note)) = notes.next() {
        if note.name() == object::elf::ELF_NOTE_GNU
            && note.n_type(Endianness::Little) == object::elf::NT_GNU_BUILD_ID
        {
            let digits = note.desc().iter().map(|byte| format!("{byte:02x}"));
            return Some(digits.collect());
        }
    }
    None
}

impl Mapped {
    /// A hash that distinguishes files, also those that have the same path one after the other. The
    /// kernel uses an inode's number again once a file is gone: then the build id differs.
    pub(crate) fn identity(&self, build_id: Option<&str>) -> u64 {
        let mut hasher = DefaultHasher::new();
        (&self.path, &self.device, self.inode, build_id).hash(&mut hasher);
        hasher.finish()
    }

    /// The path to read the file from; the file there may be another one by now. The program
    /// itself can be read even after it was replaced on disk. A library that was deleted cannot.
    pub(crate) fn file(&self) -> Option<PathBuf> {
        if self.program {
            return Some(self.process.file("exe"));
        }
        let is_there = self.path.starts_with('/') && !self.path.ends_with(" (deleted)");
        is_there.then(|| self.process.seen_from_here(&self.path))
    }

    /// Whether it is the file with this number on this device. Some file systems show other
    /// devices in `maps` than elsewhere: then this is false.
    pub(crate) fn is_file(&self, device: u64, inode: u64) -> bool {
        let (major, minor) = (libc::major(device), libc::minor(device));
        self.inode == inode && self.device == format!("{major:02x}:{minor:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_one_file_are_one_and_files_without_code_are_left_out() {
        let maps = "\
5581a2e00000-5581a2e10000 r--p 00000000 fd:00 1234    /srv/app with spaces
5581a2e10000-5581a2e50000 r-xp 00010000 fd:00 1234    /srv/app with spaces
5581a2e50000-5581a2e60000 rw-p 00050000 fd:00 1234    /srv/app with spaces
5581a3000000-5581a3021000 rw-p 00000000 00:00 0       [heap]
7f0000000000-7f0000010000 r--p 00000000 fd:00 99      /usr/share/locale.archive
7f0000020000-7f0000030000 r--p 00000000 fd:00 77      /lib/old.so (deleted)
7f0000030000-7f0000040000 r-xp 00010000 fd:00 77      /lib/old.so (deleted)
7f0000050000-7f0000051000 rw-p 00000000 00:00 0 
7ffd00000000-7ffd00002000 r-xp 00000000 00:00 0       [vdso]
";
        let found = parse(maps);
        let named: Vec<_> = found
            .iter()
            .map(|file| (file.path.as_str(), file.range.clone()))
            .collect();
        assert_eq!(
            named,
            [
                ("/srv/app with spaces", 0x5581_a2e0_0000..0x5581_a2e6_0000),
                ("/lib/old.so (deleted)", 0x7f00_0002_0000..0x7f00_0004_0000),
                ("[vdso]", 0x7ffd_0000_0000..0x7ffd_0000_2000),
            ]
        );
        assert_eq!(found[1].file(), None, "a library that was replaced");
        assert_eq!(found[2].file(), None);
        assert!(found[0].file().is_some());
    }

    #[test]
    fn this_program_is_mapped_and_can_be_unwound() {
        let here = parse as *const () as u64;
        let files = mapped(Pid::OWN);
        let file = files.iter().find(|file| file.range.contains(&here));
        let module = Module::load(file.expect("we are in some file")).expect("it is an ELF file");
        let unwind = module.unwind.expect("Rust programs have unwind tables");
        assert!(unwind.text.contains(&here.wrapping_sub(module.bias)));
        assert!(!unwind.eh_frame.1.is_empty());
    }
}
