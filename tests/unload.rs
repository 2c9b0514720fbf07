//! A library that watches is loaded and unloaded by its host: the signal handler that it leaves
//! behind must not be called where it no longer is.
//!
//! A program of its own: handlers and loaded libraries belong to a process.
#![cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64")
))]
#![allow(unsafe_code)]

mod support;

use libloading::Library;
use std::path::PathBuf;
use support::child::alone;
use support::signal::is_handled;

/// The example `plugin`, which is built with the tests: `cargo test` builds all examples.
fn plugin() -> Option<PathBuf> {
    let test = std::env::current_exe().unwrap();
    let library = test.parent()?.parent()?.join("examples/libplugin.so");
    if !library.exists() {
        eprintln!("NOT TRIED: build the example `plugin` with the same profile first");
        return None;
    }
    Some(library)
}

/// Loads the library, calls it, and unloads it.
fn visit(path: &PathBuf, call: impl FnOnce(&Library) + Send) {
    // SAFETY: the library runs no code when it is loaded.
    let library = unsafe { Library::new(path) }.unwrap();
    // A thread of its own: a library stays while a thread has thread-locals of it.
    std::thread::scope(|scope| {
        scope.spawn(|| call(&library)).join().unwrap();
    });
    library.close().unwrap();
}

fn run(library: &Library, stacks: bool) {
    // SAFETY: the function has this type.
    let run = unsafe { library.get::<extern "C" fn(bool) -> i32>(b"plugin_run") };
    assert_eq!(run.unwrap()(stacks), 1, "the stall is reported");
}

fn rest(library: &Library) {
    // SAFETY: the function has this type.
    unsafe { library.get::<extern "C" fn()>(b"plugin_rest") }.unwrap()();
}

fn is_loaded() -> bool {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.contains("libplugin.so")
}

/// Sends the signal of stacks to the calling thread.
fn raise() {
    // SAFETY: the signal is handled, or ignored by default.
    assert_eq!(unsafe { libc::raise(libc::SIGURG) }, 0);
}

#[test]
fn a_handler_stays_with_its_library_when_that_is_unloaded() {
    alone(|| {
        let Some(path) = plugin() else {
            return;
        };
        // Positive control: this host can unload it.
        visit(&path, rest);
        assert!(!is_loaded());
        visit(&path, |library| run(library, true));
        assert!(is_handled(libc::SIGURG));
        assert!(is_loaded(), "it holds the handler");
        raise();
        // Loaded again, it is the same one, with the same handler.
        visit(&path, |library| run(library, true));
        raise();
    });
}

#[test]
fn without_a_handler_nothing_is_left_behind_that_is_called() {
    alone(|| {
        let Some(path) = plugin() else {
            return;
        };
        for _ in 0..2 {
            visit(&path, |library| run(library, false));
            assert!(!is_handled(libc::SIGURG));
            assert!(!is_loaded(), "nothing holds it");
            raise();
        }
    });
}
