//! Files with debug information that change while they are in use: the program goes on, and reports
//! have no wrong names, and say which ones they lack.

use crate::support::child::alone;
use crate::support::process::cover;
use crate::support::stage::Stage;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::mpsc::Receiver;
use tokio_stall::{Frame, Missing, StallReport};

/// A plug-in in Rust with two functions, each of which calls the one that it is given.
const PLUGIN: &str = "
#[unsafe(no_mangle)]
pub extern \"C\" fn first(f: extern \"C\" fn()) { one::calls(f) }
#[unsafe(no_mangle)]
pub extern \"C\" fn second(f: extern \"C\" fn()) { two::calls(f) }
mod one {
    #[inline(never)]
    pub fn calls(f: extern \"C\" fn()) { f(); std::hint::black_box(1); }
}
mod two {
    #[inline(never)]
    pub fn calls(f: extern \"C\" fn()) { f(); std::hint::black_box(2); }
}
";

/// Builds the plug-in in a directory, with these options. The file has a build id.
fn plugin(directory: &Path, options: &[&str]) -> PathBuf {
    std::fs::write(directory.join("plugin.rs"), PLUGIN).unwrap();
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc)
        .current_dir(directory)
        .env_remove("RUSTFLAGS")
        .args(["--edition", "2024", "--crate-type", "cdylib", "-g", "-O"])
        .args(["-C", "link-arg=-Wl,--build-id", "-o", "libplugin.so"])
        .args(options)
        .arg("plugin.rs")
        .output()
        .expect("the compiler of these tests");
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words}");
    directory.join("libplugin.so")
}

/// Another build of the plug-in, in a folder of its own below this one.
fn another_plugin(directory: &Path) -> PathBuf {
    let folder = directory.join("another");
    std::fs::create_dir(&folder).unwrap();
    plugin(&folder, &["-C", "opt-level=0"])
}

/// The end of [`calls_back`]; C hands nothing through.
static UNTIL_TOLD: Mutex<Option<Receiver<()>>> = Mutex::new(None);

extern "C" fn calls_back() {
    let until_told = UNTIL_TOLD.lock().unwrap().take();
    if let Some(until_told) = until_told {
        until_told.recv().ok();
    }
}

/// Loads a library for good.
#[allow(unsafe_code)]
fn load(path: &Path) -> &'static libloading::Library {
    // SAFETY: the library has no constructors.
    let library = unsafe { libloading::Library::new(path) };
    Box::leak(Box::new(library.unwrap()))
}

/// Has the worker block in a function that the library calls back.
#[allow(unsafe_code)]
fn stall_in(stage: &Stage, library: &'static libloading::Library, function: &str) -> StallReport {
    type Through = unsafe extern "C" fn(extern "C" fn());
    // SAFETY: the function has this type.
    let through = unsafe { library.get::<Through>(function.as_bytes()) }.unwrap();
    let block = move |until_told| {
        *UNTIL_TOLD.lock().unwrap() = Some(until_told);
        // SAFETY: it calls what it is given, which does not unwind.
        unsafe { through(calls_back) };
    };
    stage.block_until_reported("blocks", block).told
}

/// The innermost frame of the plug-in on the stack.
#[track_caller]
fn of_plugin(report: &StallReport) -> &Frame {
    let mut frames = report.stacks[0].frames.iter();
    let is_of_plugin = |frame: &&Frame| {
        let module = frame.module.as_deref();
        module.is_some_and(|module| module.starts_with("libplugin.so"))
    };
    let found = frames.find(is_of_plugin);
    found.unwrap_or_else(|| panic!("no frame of it in {report:#?}"))
}

/// The function, and whether it has a line.
fn shown(report: &StallReport) -> (Option<&str>, bool) {
    let frame = of_plugin(report);
    (frame.function.as_deref(), frame.line.is_some())
}

#[test]
fn debug_information_may_be_cut_while_it_is_in_use() {
    alone(|| {
        let directory = tempfile::tempdir().unwrap();
        let path = plugin(directory.path(), &["-C", "split-debuginfo=packed"]);
        let split = directory.path().join("libplugin.so.dwp");
        let library = load(&path);
        let stage = Stage::multi_thread(1).start();
        let told = stall_in(&stage, library, "first");
        assert_eq!(
            shown(&told),
            (Some("plugin::one::calls"), true),
            "{told:#?}"
        );
        assert!(!told.missing.contains(&Missing::SplitDebugInfo), "{told}");

        let cut = std::fs::File::options().write(true).open(&split);
        cut.unwrap().set_len(0).unwrap();
        // The program lives, and the symbol is left.
        let told = stall_in(&stage, library, "second");
        assert_eq!(shown(&told).0, Some("plugin::two::calls"), "{told:#?}");
        assert!(told.missing.contains(&Missing::SplitDebugInfo), "{told}");
    });
}

#[test]
fn without_its_split_debug_information_a_function_has_its_name() {
    alone(|| {
        let directory = tempfile::tempdir().unwrap();
        let path = plugin(directory.path(), &["-C", "split-debuginfo=packed"]);
        std::fs::remove_file(directory.path().join("libplugin.so.dwp")).unwrap();
        let stage = Stage::multi_thread(1).start();
        let told = stall_in(&stage, load(&path), "first");
        assert_eq!(shown(&told).0, Some("plugin::one::calls"), "{told:#?}");
        assert!(told.missing.contains(&Missing::SplitDebugInfo), "{told}");
    });
}

/// The paths in the list of mapped files stay as they are, and lead to other files.
#[test]
fn builds_that_are_mounted_over_the_mapped_ones_name_nothing() {
    alone(|| {
        let directory = tempfile::tempdir().unwrap();
        let path = plugin(directory.path(), &[]);
        let other = another_plugin(directory.path());
        let library = load(&path);
        let program = std::env::current_exe().unwrap();
        if !(cover(&program, &other) && cover(&path, &other)) {
            eprintln!("NOT TRIED: a mount needs CAP_SYS_ADMIN");
            return;
        }
        let stage = Stage::multi_thread(1).start();
        let told = stall_in(&stage, library, "first");
        assert_eq!(shown(&told), (None, false), "{told:#?}");
        assert!(told.missing.contains(&Missing::ModuleReplaced), "{told}");
        // The kernel knows the program's own file.
        let is_here = |frame: &Frame| {
            let function = frame.function.as_deref();
            let is_ours = function.is_some_and(|name| name.contains("changed_files::stall_in"));
            is_ours && frame.line.is_some()
        };
        assert!(told.stacks[0].frames.iter().any(is_here), "{told:#?}");
    });
}

#[test]
fn a_file_that_took_the_place_of_a_library_names_nothing() {
    alone(|| {
        let directory = tempfile::tempdir().unwrap();
        let path = plugin(directory.path(), &[]);
        let other = another_plugin(directory.path());
        let library = load(&path);
        std::fs::rename(other, &path).unwrap();
        let stage = Stage::multi_thread(1).start();
        let told = stall_in(&stage, library, "first");
        assert_eq!(shown(&told), (None, false), "{told:#?}");
        assert!(told.missing.contains(&Missing::ModuleReplaced), "{told}");
        // The file there now has names, once it is the one that is loaded. The loader takes the
        // same path for the same library.
        let library = load(&directory.path().join("./libplugin.so"));
        let told = stall_in(&stage, library, "first");
        assert_eq!(
            shown(&told),
            (Some("plugin::one::calls"), true),
            "{told:#?}"
        );
        assert!(!told.missing.contains(&Missing::ModuleReplaced), "{told}");
    });
}
