//! What the program's symbol table says of the program: whether polls in it can leave their worker.
//!
//! *Runs on:* whoever starts the first watch; what is known, on the watchdog thread.
//! *Here:* reads a file, once.

use object::read::elf::ElfFile64;
use object::{Endianness, Object as _, ObjectSection as _, ReadCache};
use std::fs::File;
use std::sync::OnceLock;

/// What was found. The program stays the same.
static KNOWN: OnceLock<bool> = OnceLock::new();

/// What `tokio::task::block_in_place` is made of, under any of its names.
const LEAVES: [&str; 2] = ["maybe_move_runtime", "block_in_place"];
/// What every program with a multi-thread runtime has.
const RUNTIME: &str = "multi_thread";

/// Whether `block_in_place` is for certain not in this program: its runtime is there, with its name, and that is
/// not. Functions that nothing calls are left out by the linker.
pub(crate) fn polls_stay() -> bool {
    *KNOWN.get_or_init(look)
}

pub(crate) fn known_polls_stay() -> Option<bool> {
    KNOWN.get().copied()
}

fn look() -> bool {
    let Ok(file) = File::open("/proc/self/exe") else {
        return false;
    };
    let cache = ReadCache::new(file);
    let Ok(program) = ElfFile64::<Endianness, _>::parse(&cache) else {
        return false;
    };
    // The names of its symbols, all at once: a look at each would take some ten times longer.
    let names = program
        .section_by_name(".strtab")
        .and_then(|section| section.data().ok())
        .and_then(|names| std::str::from_utf8(names).ok());
    names.is_some_and(|names| {
        names.contains(RUNTIME) && !LEAVES.iter().any(|part| names.contains(part))
    })
}

#[cfg(all(test, not(loom)))]
mod tests {
    #[test]
    fn polls_of_a_program_with_block_in_place_may_leave() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            tokio::spawn(async { tokio::task::block_in_place(|| ()) })
                .await
                .unwrap();
        });
        assert!(!super::polls_stay());
    }
}
