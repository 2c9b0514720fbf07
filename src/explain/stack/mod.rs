//! From a copied stack to frames with names and owners.
//!
//! *Runs on:* `stall-explainer`; in tests also a thread that measures itself.
//!
//! It may allocate, read files, and take a tenth of a second the first time.

mod code;
mod debug_info;
mod files;
mod frame_pointer;
mod pages;
mod row;
mod symbols;
mod tables;
mod unwind;

use super::Explained;
use super::own_code::OwnCode;
#[cfg(feature = "outside")]
use crate::capture::Registers;
use crate::capture::{Extent, RawStack, why_unexplained};
use crate::clock::{self, Nanos};
#[cfg(feature = "outside")]
use crate::os::Pid;
use crate::report::{Frame, NoStack, Origin, SIGNAL_RETURN};
use std::path::Path;
use std::time::Duration;
use symbols::{Named, Symbols};
use tables::Modules;
use unwind::{End, Walk, walk};

/// Unwind tables and debug information unused for so long are dropped.
const KEPT_FOR: Duration = Duration::from_secs(60);

/// Explains stacks: unwinds and names them.
#[derive(Default)]
pub(crate) struct Explainer {
    modules: Modules,
    symbols: Symbols,
    used_at: Nanos,
}

impl Explainer {
    /// Unwinds and names a stack.
    ///
    /// # Errors
    ///
    /// If this process may not read its own memory, or the list of its files in memory. If the
    /// stack was copied without a signal and cannot be followed without the frame pointer:
    /// [`NoStack::NotYet`]. Builds without stacks always return an error.
    pub(crate) fn explain(
        &mut self,
        stack: &RawStack,
        own: &OwnCode,
    ) -> Result<Explained, NoStack> {
        if let Some(why) = why_unexplained() {
            return Err(why);
        }
        self.used_at = clock::now();
        self.follow_files();
        let walk = self.walk(stack)?;
        Ok(self.name(&walk, own).0)
    }

    fn walk(&mut self, stack: &RawStack) -> Result<Walk, NoStack> {
        if stack.is_by_signal() {
            return Ok(walk(stack, &mut self.modules));
        }
        let truncated = stack.extent() != Extent::Whole;
        let found = stack.with_words(|words| {
            let copied = (words, truncated);
            frame_pointer::walk_without(stack.registers(), copied, &mut self.modules)
        });
        // A part of it could show another line. A signal shows all that there is.
        found.whole().ok_or(NoStack::NotYet)
    }

    /// Reads which files are mapped now, and closes those that are not any more.
    fn follow_files(&mut self) {
        if self.modules.refresh() {
            self.symbols.forget_unmapped(&self.modules);
        }
    }

    /// Names the calls of a walk. Returns also the index of the first frame of each call.
    fn name(&mut self, walk: &Walk, own: &OwnCode) -> (Explained, Vec<usize>) {
        let mut firsts = Vec::with_capacity(walk.addresses.len());
        let mut frames = Vec::with_capacity(walk.addresses.len());
        let mut certain = None;
        let mut missing = Vec::new();
        for (index, address) in walk.addresses.iter().enumerate() {
            firsts.push(frames.len());
            if index == walk.certain {
                certain = Some(frames.len());
            }
            let named = self.symbols.frames(*address, &self.modules);
            frames.extend(named.iter().map(|named| named.frame(own)));
            if walk.signal_returns.contains(&index) {
                mark_signal_return(frames.last_mut());
            }
            missing.extend(named.iter().filter_map(Named::missing));
        }
        let is_proven = certain.is_none() && !frames.iter().any(is_unwinder);
        let explained = Explained {
            complete: walk.end == End::Root && is_proven,
            certain: certain.unwrap_or(frames.len()),
            frames,
            missing,
            truncated: walk.end == End::Truncated,
            lost: walk.end == End::Lost,
        };
        (explained, firsts)
    }

    /// Explains stacks of another process.
    #[cfg(feature = "outside")]
    pub(crate) fn of(process: Pid) -> Explainer {
        Explainer {
            modules: Modules::of(process),
            ..Explainer::default()
        }
    }

    /// Unwinds and names a copied stack: its registers, and its words from the stack pointer on.
    /// `truncated` if it has more words than were copied. A frame pointer of zero is not known.
    /// Returns also the calls.
    #[cfg(feature = "outside")]
    pub(crate) fn explain_copy(
        &mut self,
        registers: Registers,
        (words, truncated): (&[u64], bool),
        own: &OwnCode,
    ) -> (Explained, Vec<OneCall>) {
        self.used_at = clock::now();
        self.follow_files();
        let copied = (words, truncated);
        let walk = frame_pointer::walk_without(registers, copied, &mut self.modules).walk;
        let (explained, firsts) = self.name(&walk, own);
        let ends = firsts.iter().skip(1).copied();
        let ends = ends.chain([explained.frames.len()]);
        let calls = walk.addresses.iter().zip(firsts.iter().zip(ends));
        let calls = calls.map(|(address, (first, end))| OneCall {
            address: *address,
            frames: *first..end,
        });
        (explained, calls.collect())
    }

    /// Opens the program's debug information, which is most of the cost of a first stack.
    pub(crate) fn prime(&mut self) {
        self.used_at = clock::now();
        self.follow_files();
        let here = Explainer::prime as *const () as u64;
        self.modules.read_module_of(here);
        self.symbols.frames(here, &self.modules);
    }

    /// Does the same for the program of another process.
    #[cfg(feature = "outside")]
    pub(crate) fn prime_program(&mut self, process: Pid) {
        self.used_at = clock::now();
        self.follow_files();
        let files = crate::capture::mapped(process);
        let Some(program) = files.iter().find(|file| file.program) else {
            return;
        };
        let somewhere = program.range.start;
        self.modules.read_module_of(somewhere);
        self.symbols.frames(somewhere, &self.modules);
    }

    /// Drops tables and debug information that have not been used for a while. Names found stay.
    pub(crate) fn rest(&mut self) {
        if clock::now().since(self.used_at) >= KEPT_FOR {
            self.modules = self.modules.forgotten();
            self.symbols.forget_files();
        }
    }
}

/// One call on a stack: an address inside of its instruction, and its frames.
#[cfg(feature = "outside")]
#[derive(Debug)]
pub(crate) struct OneCall {
    pub(crate) address: u64,
    pub(crate) frames: std::ops::Range<usize>,
}

impl std::fmt::Debug for Explainer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Explainer").finish_non_exhaustive()
    }
}

/// The reason why no line of the program can be named, and the fix. `None` if lines can be named.
///
/// # Cost
///
/// It reads the headers of the program's file; of a stripped one also the debug information beside
/// it.
pub(crate) fn why_no_lines() -> Option<&'static str> {
    // Also if the file has been deleted, or replaced.
    let program = Path::new("/proc/self/exe");
    let (has_lines, has_symbols) = match files::debug_info_and_symbols(program) {
        Ok(found) => found,
        Err(_) => return Some("the file of the program cannot be read"),
    };
    if has_lines || has_separate_lines(program) {
        return None;
    }
    Some(match has_symbols {
        true => {
            "the program has no debug information; build with `debug = 1` in `[profile.release]`"
        }
        false => {
            "the program is stripped, so functions have no names either; build with `debug = 1` \
             and `strip = false`, or put its debug file beside it"
        }
    })
}

/// Whether there is a file with the debug information that was stripped off.
fn has_separate_lines(program: &Path) -> bool {
    let elf = files::Elf::open(program).ok();
    let path = std::env::current_exe().ok();
    let separate = elf.zip(path).and_then(|(elf, path)| elf.separate(&path));
    separate.is_some()
}

/// Marks the frame to which a signal handler returns. Its own name is rarely known.
fn mark_signal_return(frame: Option<&mut Frame>) {
    if let Some(frame) = frame {
        frame.function = Some(SIGNAL_RETURN.to_owned());
        frame.origin = Origin::System;
    }
}

/// Whether it is a frame of the unwinder. While a panic switches from one frame to another, the
/// tables of the unwinder are not valid.
fn is_unwinder(frame: &Frame) -> bool {
    let function = frame.function.as_deref();
    function.is_some_and(|function| function.starts_with("_Unwind_"))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::process::Command;

    /// Tests are built with debug information.
    #[test]
    fn the_file_of_the_program_shows_whether_there_are_lines() {
        assert_eq!(why_no_lines(), None);
        let program = std::env::current_exe().expect("a program");
        assert!(matches!(
            files::debug_info_and_symbols(&program),
            Ok((true, true))
        ));
        // A file without them, made of this one where there is the tool for it.
        let bare = tempfile::NamedTempFile::new().expect("a file");
        let mut strip = Command::new("strip");
        let strip = strip
            .arg("--strip-all")
            .arg("-o")
            .arg(bare.path())
            .arg(&program);
        match strip.status() {
            Ok(status) if status.success() => {
                let found = files::debug_info_and_symbols(bare.path());
                assert!(matches!(found, Ok((false, false))), "{found:?}");
            }
            _ => eprintln!("NOT TRIED: a stripped program needs `strip`"),
        }
    }
}
