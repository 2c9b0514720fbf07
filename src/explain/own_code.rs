//! The owner of a frame's code: the user, a dependency, the standard library, tokio, the system.
//!
//! *Runs on:* `stall-explainer`; in tests also a thread that measures itself.
//!
//! With debug information the path decides. Cargo compiles fetched crates below `registry/src` or
//! `git/checkouts`, and build scripts put code into a directory of their own. Paths of the standard
//! library begin with `/rustc/`. Other paths are the user's.
//! Without debug information the name of the crate decides: own are the crate that the program is
//! named after, and those given to `own_crates`.

// No frames without stacks: the condition under which `capture` takes them.
#![cfg_attr(
    not(all(
        feature = "stacks",
        target_os = "linux",
        any(target_arch = "x86_64", target_arch = "aarch64"),
        not(loom)
    )),
    allow(dead_code)
)]

use crate::report::{Origin, made_by_a_build_script};
use std::collections::HashSet;
use std::path::Path;

/// The rules that separate own code from others'.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OwnCode {
    named: HashSet<String>,
    program: Option<String>,
}

/// Crates of the standard library, and those linked into it.
const STD: &[&str] = &[
    "std",
    "core",
    "alloc",
    "proc_macro",
    "test",
    "panic_unwind",
    "compiler_builtins",
    "backtrace_rs",
];

impl Default for OwnCode {
    fn default() -> OwnCode {
        OwnCode::new([])
    }
}

impl OwnCode {
    /// The crates with these names are own code, besides those that are own by their paths.
    pub(crate) fn new(named: impl IntoIterator<Item = String>) -> OwnCode {
        let mut own = OwnCode {
            named: HashSet::new(),
            program: std::env::current_exe()
                .ok()
                .and_then(|path| crate_named_after(&path)),
        };
        own.add(named);
        own
    }

    /// Adds crates that are own code.
    pub(crate) fn add(&mut self, named: impl IntoIterator<Item = String>) {
        let named = named.into_iter().map(|name| name.replace('-', "_"));
        self.named.extend(named);
    }

    /// The crates that were named, as `TOKIO_STALL` has them.
    pub(crate) fn named(&self) -> String {
        let mut named: Vec<&str> = self.named.iter().map(String::as_str).collect();
        named.sort_unstable();
        named.join("+").escape_debug().to_string()
    }

    /// The end of a sentence: which code is own in a program without debug information.
    pub(crate) fn without_lines(&self) -> String {
        match &self.program {
            Some(program) => format!(
                "; own code is only the crate {program:?} until then, as the program's file is \
                 called, and those of `Builder::own_crates`"
            ),
            None => "; own code is only that of `Builder::own_crates`".to_owned(),
        }
    }

    /// The same, for another program.
    #[cfg(feature = "outside")]
    pub(crate) fn of_program(program: &Path, named: impl IntoIterator<Item = String>) -> OwnCode {
        OwnCode {
            program: crate_named_after(program),
            ..OwnCode::new(named)
        }
    }

    /// Whether a crate was unpacked by another tool than cargo, as distributions do:
    /// `/usr/share/cargo/registry/serde-1.0.228/src`. The program's own source may lie there, too.
    fn is_vendored(&self, krate: &str, file: &str) -> bool {
        self.program.as_deref() != Some(krate) && is_in_package(krate, file)
    }

    /// The owner of a function, by its name and file. `in_program` if it is not in a library.
    pub(crate) fn origin(
        &self,
        function: Option<&str>,
        file: Option<&str>,
        in_program: bool,
    ) -> Origin {
        let krate = function.and_then(crate_of);
        match krate {
            Some(krate) if self.named.contains(krate) => return Origin::Own,
            Some("tokio_stall") => return Origin::Detector,
            Some("tokio") if function.is_some_and(is_runtime) => return Origin::Runtime,
            Some(krate) if STD.contains(&krate) => return Origin::Std,
            _ => {}
        }
        match (krate, file) {
            (_, Some(file)) if is_std_path(file) => Origin::Std,
            (_, Some(file)) if is_runtime_path(file) => Origin::Runtime,
            (_, Some(file)) if is_fetched(file) => Origin::Dependency,
            (Some(krate), Some(file)) if self.is_vendored(krate, file) => Origin::Dependency,
            (Some(_), Some(_)) => Origin::Own,
            // Little debug information names inlined functions without their crate.
            (None, Some(file)) if file.ends_with(".rs") => Origin::Own,
            (Some(krate), None) if self.program.as_deref() == Some(krate) => Origin::Own,
            (Some(_), None) => Origin::Dependency,
            // The compiler's own, around `catch_unwind`.
            (None, _) if function == Some("__rust_try") => Origin::Std,
            // The name has no path, so it is not Rust.
            (None, _) if in_program => Origin::Dependency,
            (None, _) => Origin::System,
        }
    }
}

/// Whether the path leads through a collection of packages to that of this crate. Elsewhere such a
/// folder is an unpacked archive of the user's own code.
fn is_in_package(krate: &str, file: &str) -> bool {
    let folders: Vec<&str> = file.split('/').collect();
    let is_collection = |folder: &&str| *folder == "registry" || folder.contains("vendor");
    let collection = folders.iter().position(is_collection);
    let below = collection.map_or(&[][..], |at| &folders[at..]);
    below.windows(2).any(|pair| {
        let name = pair[0]
            .rsplit_once('-')
            .map(|(name, _)| name.replace('-', "_"));
        pair[1] == "src" && is_package(pair[0]) && name.as_deref() == Some(krate)
    })
}

/// Whether a file is the user's own, by its path.
pub(crate) fn is_own_path(file: &str) -> bool {
    file.ends_with(".rs") && !is_std_path(file) && !is_fetched(file)
}

/// The crate that a program's file is named after. Cargo appends a hash to the names of tests.
fn crate_named_after(program: &Path) -> Option<String> {
    let name = program.file_stem()?.to_str()?;
    let name = match name.rsplit_once('-') {
        Some((name, hash)) if hash.len() == 16 && hash.bytes().all(|b| b.is_ascii_hexdigit()) => {
            name
        }
        _ => name,
    };
    Some(name.replace('-', "_"))
}

/// The crate of a demangled name: `app` of `app::run`, of `<app::Guard as core::ops::Drop>::drop`,
/// and of `<alloc::vec::Vec<T> as app::Sum>::sum`. For the last one the trait's crate is taken,
/// since the name does not show the crate of the body.
pub(crate) fn crate_of(function: &str) -> Option<&str> {
    if !function.contains("::") {
        return None;
    }
    let (krate, after) = first_identifier(function)?;
    let of_trait = || function.split_once(" as ").and_then(|(_, of)| crate_of(of));
    if !after.starts_with("::") {
        // `<T as app::Trait>::method`, a primitive type, or a generic one.
        return of_trait();
    }
    // Another crate's trait for a type of the standard library.
    let is_of_std = function.starts_with('<') && STD.contains(&krate);
    Some(krate)
        .filter(|_| !is_of_std)
        .or_else(of_trait)
        .or(Some(krate))
}

/// The first identifier of a name, and the text after it.
fn first_identifier(name: &str) -> Option<(&str, &str)> {
    let mut rest = name.trim_start_matches(['<', '&', '*', '(', '[', ' ']);
    for prefix in ["mut ", "const ", "dyn ", "impl "] {
        rest = rest.strip_prefix(prefix).unwrap_or(rest);
    }
    let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '_'));
    let (identifier, after) = rest.split_at(end.unwrap_or(rest.len()));
    (!identifier.is_empty()).then_some((identifier, after))
}

/// Whether it is the machinery of tokio, and not one of its types that the user calls.
fn is_runtime(function: &str) -> bool {
    ["tokio::runtime::", "tokio::task::", "tokio::loom::"]
        .iter()
        .any(|module| function.contains(module))
}

fn is_runtime_path(file: &str) -> bool {
    let Some((_, inside)) = file.split_once("/tokio-") else {
        return false;
    };
    inside.contains("/src/runtime/") || inside.contains("/src/task/")
}

fn is_std_path(file: &str) -> bool {
    file.starts_with("/rustc/")
        || file.starts_with("/rust/deps/")
        || file.contains("/lib/rustlib/src/")
        || file.starts_with("library/")
}

/// Whether this file was fetched by cargo, vendored, or made by a build script.
fn is_fetched(file: &str) -> bool {
    if made_by_a_build_script(file).is_some() {
        return true;
    }
    ["/registry/src/", "/git/checkouts/", "/vendor/"]
        .iter()
        .any(|place| file.contains(place))
        // With trimmed paths: `serde-1.0.228/src/lib.rs`.
        || file.split('/').next().is_some_and(is_package)
}

fn is_package(directory: &str) -> bool {
    let Some((name, version)) = directory.rsplit_once('-') else {
        return false;
    };
    !name.is_empty()
        && version.split('.').count() >= 3
        && version
            .split(['.', '+'])
            .take(2)
            .all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_crate_of_a_name_is_found_in_all_its_forms() {
        for (name, krate) in [
            ("app::run", Some("app")),
            ("<app::Guard as core::ops::drop::Drop>::drop", Some("app")),
            ("<alloc::vec::Vec<u8> as app::Sum>::sum", Some("app")),
            ("<&mut app::Queue>::pop", Some("app")),
            ("<T as app::Trait>::method", Some("app")),
            ("<u64 as app::Trait>::method", Some("app")),
            ("<dyn app::Handler as core::fmt::Debug>::fmt", Some("app")),
            ("core::ptr::drop_in_place::<app::Big>", Some("core")),
            ("<[u8] as alloc::borrow::ToOwned>::to_owned", Some("alloc")),
            ("nanosleep", None),
            ("sqlite3VdbeExec", None),
        ] {
            assert_eq!(crate_of(name), krate, "{name}");
        }
    }

    #[test]
    fn paths_separate_own_code_from_fetched_crates() {
        let own = OwnCode::new(["my-queue".to_owned()]);
        let origin = |function, file| own.origin(Some(function), file, true);
        let registry = "/home/me/.cargo/registry/src/index.crates.io-1949/hyper-1.0.0/src/a.rs";
        assert_eq!(
            origin("app::run", Some("/home/me/app/src/main.rs")),
            Origin::Own
        );
        assert_eq!(origin("hyper::run", Some(registry)), Origin::Dependency);
        for file in [
            "/usr/share/cargo/registry/hyper-util-1.0.0/src/a.rs",
            "/build/app-vendor/source-registry-0/hyper-util-1.0.0/src/a.rs",
        ] {
            assert_eq!(origin("hyper_util::run", Some(file)), Origin::Dependency);
            assert_eq!(origin("app::run", Some(file)), Origin::Own, "{file}");
        }
        let archive = "/build/my-app-1.2.0/src/lib.rs";
        assert_eq!(origin("my_app::run", Some(archive)), Origin::Own);
        let unpacked = own.program.clone().expect("this test's");
        let package = format!("{}-1.0.0", unpacked.replace('_', "-"));
        let file = format!("/usr/share/cargo/registry/{package}/src/main.rs");
        let function = format!("{unpacked}::main");
        assert_ne!(origin(&function, Some(&file)), Origin::Dependency);
        assert_eq!(
            origin("hyper::run", Some("hyper-1.0.0/src/a.rs")),
            Origin::Dependency
        );
        assert_eq!(
            origin("hyper::run", Some("/src/vendor/hyper/src/a.rs")),
            Origin::Dependency
        );
        let made = "/home/me/app/target/debug/build/chat-0123456789abcdef/out/chat.v1.rs";
        assert_eq!(origin("chat::v1::call", Some(made)), Origin::Dependency);
        assert_eq!(
            origin(
                "std::thread::sleep",
                Some("/rustc/ab/library/std/src/thread.rs")
            ),
            Origin::Std
        );
        assert_eq!(origin("core::hint::black_box", None), Origin::Std);
        assert_eq!(
            origin("my_queue::pop", Some(registry)),
            Origin::Own,
            "named as own"
        );
        assert_eq!(
            origin("tokio::runtime::task::poll", Some(registry)),
            Origin::Runtime
        );
        assert_eq!(
            origin("tokio::sync::mpsc::recv", Some(registry)),
            Origin::Dependency
        );
        assert_eq!(
            origin("tokio_stall::probe::enter", Some(registry)),
            Origin::Detector
        );
        assert_eq!(origin("sqlite3VdbeExec", None), Origin::Dependency);
        assert_eq!(own.origin(Some("fsync"), None, false), Origin::System);
    }

    #[test]
    fn without_paths_the_program_is_own_code_and_the_rest_is_not() {
        let own = OwnCode::new([]);
        let program = own.program.clone().expect("a test is a program");
        let origin = |function: &str| own.origin(Some(function), None, true);
        assert_eq!(origin(&format!("{program}x::main")), Origin::Dependency);
        let other = OwnCode {
            program: Some("app".to_owned()),
            named: HashSet::new(),
        };
        assert_eq!(other.origin(Some("app::main"), None, true), Origin::Own);
    }
}
