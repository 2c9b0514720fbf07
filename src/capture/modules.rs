//! The files whose code is mapped into this process, and what unwinding needs of each.
//!
//! *Runs on:* whichever thread explains a stack.
//! *Here:* `/proc/self/maps`, not the loader's list: that one is behind a lock, which a stalled `dlopen`
//! may hold. Memory is copied by the kernel, so a library that is unloaded meanwhile is only missing.

use crate::os::memory;
use gimli::{BaseAddresses, EhFrameHdr, LittleEndian, Pointer};
use object::Endianness;
use object::elf::{FileHeader64, PF_X, PT_GNU_EH_FRAME, PT_LOAD, PT_NOTE, ProgramHeader64};
use object::read::elf::{FileHeader as _, ProgramHeader as _};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

/// One file, or the kernel's own page of code, as mapped here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mapped {
    /// From its first byte to the end of its last part.
    pub(crate) range: Range<u64>,
    /// As the kernel writes it; `[vdso]` for the kernel's own.
    pub(crate) path: String,
    /// The device, as the kernel writes it, and the file's number there.
    device: String,
    inode: u64,
    /// It is the program itself, not a library.
    pub(crate) program: bool,
    executable: bool,
}

/// All files with code in them, in order of address.
///
/// # Cost
///
/// 30 µs for some twenty files.
pub(crate) fn mapped() -> Vec<Mapped> {
    let program = std::fs::read_link("/proc/self/exe").unwrap_or_default();
    let mut files = std::fs::read("/proc/self/maps")
        .map(|maps| parse(&String::from_utf8_lossy(&maps)))
        .unwrap_or_default();
    for file in &mut files {
        file.program = program.to_str() == Some(&file.path);
    }
    files
}

/// A line reads `start-end perms offset dev inode path`. A part with offset 0 begins a file; the parts
/// after it with the same inode belong to it.
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
            _ if part.offset == 0 => found.push(Mapped {
                range: part.range,
                path: part.path.to_owned(),
                device: part.device.to_owned(),
                inode: part.inode,
                program: false,
                executable: part.executable,
            }),
            _ => {}
        }
    }
    found.retain(|file| file.executable);
    found
}

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

/// What unwinding and naming need of a file.
#[derive(Debug)]
pub(crate) struct Module {
    pub(crate) range: Range<u64>,
    /// Add this to an address in the file to have the address in memory.
    pub(crate) bias: u64,
    pub(crate) build_id: Option<String>,
    pub(crate) unwind: Option<UnwindSections>,
}

/// The unwind tables, with their addresses in the file.
#[derive(Clone, Debug)]
pub(crate) struct UnwindSections {
    pub(crate) eh_frame_hdr: (Range<u64>, Arc<[u8]>),
    pub(crate) eh_frame: (Range<u64>, Arc<[u8]>),
    pub(crate) text: Range<u64>,
}

/// Headers of more than this have not been seen.
const HEADERS: usize = 4096;

impl Module {
    /// Reads a file's headers and tables from memory. `None` if it is gone, or no ELF file.
    ///
    /// # Cost
    ///
    /// A copy of the unwind tables, which make up some 2 to 5 % of a program.
    pub(crate) fn load(file: &Mapped) -> Option<Module> {
        let mut headers = vec![0; HEADERS];
        let read = memory::read(file.range.start, &mut headers);
        headers.truncate(read);
        let header = FileHeader64::<Endianness>::parse(&*headers).ok()?;
        let endian = header.endian().ok()?;
        let segments = header.program_headers(endian, &*headers).ok()?;
        let of_kind = |kind| segments.iter().filter(move |s| s.p_type(endian) == kind);

        let first = of_kind(PT_LOAD).find(|segment| segment.p_offset(endian) == 0)?;
        let bias = file.range.start.wrapping_sub(first.p_vaddr(endian));
        let end = of_kind(PT_LOAD)
            .map(|segment| addresses(segment, endian).end)
            .max()?;
        let text = of_kind(PT_LOAD).find(|segment| segment.p_flags(endian) & PF_X != 0)?;
        let build_id = of_kind(PT_NOTE).find_map(|segment| {
            let range = addresses(segment, endian);
            let notes = memory::read_exact(bias.wrapping_add(range.start), length(&range)?)?;
            build_id(&notes, segment.p_align(endian))
        });
        let unwind = of_kind(PT_GNU_EH_FRAME).next().and_then(|segment| {
            let hdr = addresses(segment, endian);
            let holder = of_kind(PT_LOAD)
                .map(|segment| addresses(segment, endian))
                .find(|loaded| loaded.contains(&hdr.start))?;
            unwind_sections(bias, hdr, &holder, addresses(text, endian))
        });
        Some(Module {
            range: file.range.start..file.range.end.max(bias.wrapping_add(end)),
            bias,
            build_id,
            unwind,
        })
    }
}

fn addresses(segment: &ProgramHeader64<Endianness>, endian: Endianness) -> Range<u64> {
    let start = segment.p_vaddr(endian);
    start..start.saturating_add(segment.p_filesz(endian))
}

fn length(range: &Range<u64>) -> Option<usize> {
    usize::try_from(range.end.checked_sub(range.start)?).ok()
}

/// The header has a table to search in, and says where `.eh_frame` begins. That one ends by itself, at
/// the latest with its segment.
fn unwind_sections(
    bias: u64,
    hdr: Range<u64>,
    holder: &Range<u64>,
    text: Range<u64>,
) -> Option<UnwindSections> {
    let hdr_bytes = memory::read_exact(bias.wrapping_add(hdr.start), length(&hdr)?)?;
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
    let eh_frame_bytes = memory::read_exact(bias.wrapping_add(start), length(&eh_frame)?)?;
    Some(UnwindSections {
        eh_frame_hdr: (hdr, hdr_bytes.into()),
        eh_frame: (eh_frame, eh_frame_bytes.into()),
        text,
    })
}

/// The GNU build id among notes: owner "GNU", type 3.
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
            return Some(
                note.desc()
                    .iter()
                    .map(|byte| format!("{byte:02x}"))
                    .collect(),
            );
        }
    }
    None
}

impl Mapped {
    /// Tells files apart, also those that have the same path one after the other. A number is used again
    /// once a file is gone; then only the build id tells.
    pub(crate) fn identity(&self, build_id: Option<&str>) -> u64 {
        let mut hasher = DefaultHasher::new();
        (&self.path, &self.device, self.inode, build_id).hash(&mut hasher);
        hasher.finish()
    }

    /// Where to read the file from. The program's own can be had even after it has been replaced on
    /// disk; a library's cannot, and the new one would give wrong names.
    pub(crate) fn file(&self) -> Option<PathBuf> {
        if !self.path.starts_with('/') {
            return None;
        }
        if !self.path.ends_with(" (deleted)") {
            return Some(PathBuf::from(&self.path));
        }
        self.program.then(|| PathBuf::from("/proc/self/exe"))
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
        let files = mapped();
        let file = files.iter().find(|file| file.range.contains(&here));
        let module = Module::load(file.expect("we are in some file")).expect("it is an ELF file");
        assert!(module.range.contains(&here));
        let unwind = module.unwind.expect("Rust programs have unwind tables");
        assert!(unwind.text.contains(&here.wrapping_sub(module.bias)));
        assert!(!unwind.eh_frame.1.is_empty());
    }
}
