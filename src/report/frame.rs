//! One call on a stack, and its place in the source.
//!
//! *Runs on:* every thread: plain data. The thread that explains a stack makes it, mostly
//! `stall-explainer`.

use super::cause::Cause;
use std::fmt;
use std::time::Duration;

/// The owner of the code of a frame on a stack, as in a [`StallReport`](crate::StallReport).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "snake_case")
)]
#[non_exhaustive]
pub enum Origin {
    /// The user: a member of their workspace, or a crate given to
    /// [`Builder::own_crates`](crate::Builder::own_crates).
    Own,
    /// A dependency, or code that a build script has made.
    Dependency,
    /// Rust's standard library.
    Std,
    /// Tokio's own machinery, below the poll.
    Runtime,
    /// This crate.
    Detector,
    /// The C library, the kernel's page of code, and other libraries of the system.
    System,
}

/// One call on a stack, of a [`StallReport`](crate::StallReport) or a
/// [`WorkerStack`](crate::WorkerStack).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Frame {
    /// The function, demangled, as in `app::handlers::get_user::{closure#0}`. `<signal handler
    /// called>` stands between the handler of a signal and the code that it interrupted.
    pub function: Option<String>,
    /// The source file. That of own code is as in the message of a panic: below the root of the
    /// workspace, `crates/store/src/lib.rs`. Others are as in the debug information.
    pub file: Option<String>,
    /// The line in it.
    pub line: Option<u32>,
    /// The program or library that contains the code: the last part of its path.
    pub module: Option<String>,
    /// The address in the module's file, for tools that have its debug information. Without a
    /// module, the address in memory.
    pub offset: u64,
    /// The module's build id, in hexadecimal digits.
    pub build_id: Option<String>,
    /// The owner of the code.
    pub origin: Origin,
    /// Whether the compiler has inlined the function into that of the next frame.
    pub inlined: bool,
}

#[cfg(all(test, not(loom)))]
impl Frame {
    /// A call of a function, of which no more is known.
    pub(crate) fn of(function: &str, origin: Origin) -> Frame {
        Frame {
            function: Some(function.to_owned()),
            file: None,
            line: None,
            module: None,
            offset: 0,
            build_id: None,
            origin,
            inlined: false,
        }
    }
}

impl Frame {
    /// The function's name as in the source: without generic arguments and closures.
    pub(crate) fn written_name(&self) -> Option<String> {
        self.function.as_deref().map(written)
    }
}

impl fmt::Display for Frame {
    /// Writes `app::handlers::get_user (src/handlers.rs:42)`, or `libssl.so.3+0x1f40`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.written_name(), &self.module) {
            (Some(name), _) => f.write_str(&name)?,
            (None, Some(module)) => write!(f, "{module}+{:#x}", self.offset)?,
            (None, None) => write!(f, "{:#x}", self.offset)?,
        }
        if let Some(place) = SourcePlace::of(self.file.as_deref(), self.line) {
            write!(f, " ({place})")?;
        }
        Ok(())
    }
}

/// A place in the source, shortened to the package's own part of the path.
pub(super) struct SourcePlace<'a>(&'a str, Option<u32>);

impl<'a> SourcePlace<'a> {
    pub(super) fn of(file: Option<&'a str>, line: Option<u32>) -> Option<SourcePlace<'a>> {
        file.map(|file| SourcePlace(short(file), line))
    }
}

impl fmt::Display for SourcePlace<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)?;
        match self.1 {
            Some(line) => write!(f, ":{line}"),
            None => Ok(()),
        }
    }
}

/// The line of the user's own code in which a worker was held: the innermost own frame on the stack
/// of a [`StallReport`](crate::StallReport).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Site {
    /// The function as in the source, `app::handlers::get_user`, also for an `async fn`.
    pub function: String,
    /// The source file, as in the message of a panic: below the root of the workspace. `None`
    /// without debug information.
    pub file: Option<String>,
    /// The line in it.
    pub line: Option<u32>,
}

impl Site {
    /// The site that stalls of this cause share: the line of a call that blocks, else the function.
    /// Code that computes is found at another line each time.
    pub(crate) fn shared(&self, cause: Cause) -> Site {
        let has_one_line = matches!(cause, Cause::Blocked(_));
        Site {
            line: self.line.filter(|_| has_one_line),
            ..self.clone()
        }
    }

    /// The function without place and type arguments: the set of labels does not grow with the
    /// program's data.
    pub(crate) fn label(&self) -> String {
        let mut depth = 0_usize;
        let mut label = String::new();
        for character in self.function.chars() {
            // `Vec<T>` has arguments, `<T as Trait>` has none. `->` is no bracket.
            let arguments =
                label.ends_with(|last: char| last.is_alphanumeric() || last == '_' || last == ':');
            match character {
                '<' if depth > 0 || arguments => {
                    if depth == 0 && label.ends_with("::") {
                        label.truncate(label.len() - 2);
                    }
                    depth += 1;
                }
                '>' if depth > 0 && !label.ends_with('-') => depth -= 1,
                _ if depth == 0 => label.push(character),
                _ => {}
            }
        }
        label
    }
}

impl fmt::Display for Site {
    /// Writes `app::handlers::get_user (src/handlers.rs:42)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.function)?;
        match SourcePlace::of(self.file.as_deref(), self.line) {
            Some(place) => write!(f, " ({place})"),
            None => Ok(()),
        }
    }
}

/// The stack of the thread at one moment of a stall, or at several with the same stack, in a
/// [`StallReport`](crate::StallReport).
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct StackSample {
    /// The age of the stall when the stack was first taken.
    #[cfg_attr(
        feature = "serde",
        serde(rename = "after_seconds", serialize_with = "super::seconds")
    )]
    pub after: Duration,
    /// How often the same stack was found.
    pub count: u32,
    /// The calls, innermost first.
    pub frames: Vec<Frame>,
    /// The number of innermost frames that are certain. If code has no unwind table, the calls
    /// beyond it are guesses.
    pub certain_frames: usize,
    /// Whether the stack was followed to the root of its thread, with no frame guessed.
    pub complete: bool,
    /// Whether the thread was in the call that the stall has slept in longest, so that the stack
    /// shows that call. `false` also if that is not known.
    pub asleep: bool,
}

impl StackSample {
    /// Whether debug information has named a line of the program. The standard library and C have
    /// lines of their own, however the program was built.
    pub(crate) fn has_lines(&self) -> bool {
        let is_of_others = |origin| matches!(origin, Origin::System | Origin::Std);
        let has_line = |frame: &Frame| {
            let file = frame.file.as_deref();
            !is_of_others(frame.origin) && file.is_some_and(|file| file.ends_with(".rs"))
        };
        self.frames.iter().any(has_line)
    }
}

/// The most stacks, all different, that are kept of one stall or wait.
const STACKS: usize = 8;

/// Keeps a stack. One that is there already is counted.
pub(crate) fn add_stack(stacks: &mut Vec<StackSample>, new: StackSample) {
    let same = stacks.iter().position(|known| known.frames == new.frames);
    match same {
        Some(known) => stacks[known].count += 1,
        None if stacks.len() < STACKS => stacks.push(new),
        None => {}
    }
}

/// The name as in the source: `app::handlers::get_user::<T>::{closure#0}` →
/// `app::handlers::get_user`.
fn written(function: &str) -> String {
    let mut name = without_turbofish(function);
    name.truncate(without_closures(&name).len());
    // Little debug information names inlined functions without their path, and arguments in
    // brackets.
    let arguments = name.find('<').filter(|at| *at > 0);
    let is_bare = arguments.is_some_and(|at| !name[..at].contains("::"));
    if is_bare || !name.contains("::") {
        return unqualified(&name).to_owned();
    }
    name
}

/// A name without generic arguments in a turbofish, which v0 names carry everywhere. Older names
/// have `<impl Trait for Type>` in its place, which stays.
fn without_turbofish(function: &str) -> String {
    let mut name = String::with_capacity(function.len());
    let mut rest = function;
    while let Some(at) = rest.find("::<") {
        let (before, arguments) = rest.split_at(at + 2);
        if arguments.starts_with("<impl ") {
            name.push_str(before);
            name.push('<');
            rest = &arguments[1..];
            continue;
        }
        let Some(length) = balanced(arguments) else {
            break;
        };
        name.push_str(&before[..at]);
        rest = &arguments[length..];
    }
    name.push_str(rest);
    name
}

/// A name without the closures at its end. The body of an `async fn` is one, too.
fn without_closures(mut name: &str) -> &str {
    const CLOSURES: [&str; 4] = ["{closure", "{{closure", "{async_", "{{async_"];
    while let Some((before, last)) = name.rsplit_once("::") {
        if !CLOSURES.iter().any(|closure| last.starts_with(closure)) {
            break;
        }
        name = before;
    }
    name
}

/// A name without a path, and without arguments in brackets.
fn unqualified(name: &str) -> &str {
    match name {
        _ if name.starts_with("{async_fn") => "async fn",
        _ if name.starts_with("{async_block") => "async block",
        _ if name.starts_with("{closure") => "closure",
        _ => match name.find('<') {
            Some(at) if at > 0 => &name[..at],
            _ => name,
        },
    }
}

/// The length of the part in angle brackets that `text` begins with.
fn balanced(text: &str) -> Option<usize> {
    let mut depth = 0_usize;
    let mut previous = ' ';
    for (at, character) in text.char_indices() {
        match character {
            '<' => depth += 1,
            // An arrow is no bracket.
            '>' if previous != '-' => depth = depth.checked_sub(1)?,
            _ => {}
        }
        previous = character;
        if depth == 0 {
            return Some(at + 1);
        }
    }
    None
}

/// The part of a path that a reader needs: it begins with the package's directory. Paths of own
/// code are as the compiler was given them, and need no cut.
fn short(path: &str) -> &str {
    if !path.starts_with('/') {
        return path;
    }
    let fetched = ["/registry/src/", "/git/checkouts/"]
        .iter()
        .find_map(|place| path.split_once(place));
    if let Some((_, package)) = fetched {
        return package.split_once('/').map_or(package, |(_, rest)| rest);
    }
    let library = || Some(path.rsplit_once("/library/")?.1);
    if let Some(of_std) = path.strip_prefix("/rust/deps/").or_else(library) {
        return of_std;
    }
    if let Some(made) = made_by_a_build_script(path) {
        return made;
    }
    let directories = ["/examples/", "/tests/", "/benches/"];
    let directory = || {
        directories
            .iter()
            .find_map(|directory| path.find(directory))
    };
    let at = path.rfind("/src/").or_else(directory);
    at.map_or(path, |at| &path[at + 1..])
}

/// The path inside of the directory in which a build script puts code, `OUT_DIR`. Cargo has it at
/// `target/debug/build/chat-0123456789abcdef/out`.
pub(crate) fn made_by_a_build_script(path: &str) -> Option<&str> {
    let mut places = path.match_indices("/build/");
    places.find_map(|(at, found)| {
        let (package, inside) = path[at + found.len()..].split_once("/out/")?;
        let (_, hash) = package.rsplit_once('-')?;
        let is_hash = hash.len() == 16 && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_hash.then_some(inside)
    })
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_function_is_named_as_it_was_written() {
        for (raw, name) in [
            (
                "app::handlers::get_user::{closure#0}",
                "app::handlers::get_user",
            ),
            (
                "app::handlers::get_user::{{closure}}::{{closure}}",
                "app::handlers::get_user",
            ),
            ("app::run::<app::Config>::{closure#0}", "app::run"),
            (
                "<app::Guard as core::ops::drop::Drop>::drop",
                "<app::Guard as core::ops::drop::Drop>::drop",
            ),
            (
                "app::each::<fn(u8) -> u8, alloc::vec::Vec<u8>>",
                "app::each",
            ),
            ("app::Cache::<K, V>::get::{closure#1}", "app::Cache::get"),
            (
                "app::_::<impl app::Sum for app::Row>::sum",
                "app::_::<impl app::Sum for app::Row>::sum",
            ),
            ("nanosleep", "nanosleep"),
            ("odd::<", "odd::<"),
            (
                "poll<app::main::{async_block#0}, alloc::sync::Arc<u8>>",
                "poll",
            ),
            ("{async_fn#0}", "async fn"),
            ("{closure#0}<app::Config>", "closure"),
        ] {
            assert_eq!(written(raw), name, "{raw}");
        }
    }

    #[test]
    fn a_label_has_no_type_arguments() {
        for (function, label) in [
            ("app::handlers::get_user", "app::handlers::get_user"),
            (
                "<app::Rows<T, alloc::vec::Vec<u8>> as core::ops::drop::Drop>::drop",
                "<app::Rows as core::ops::drop::Drop>::drop",
            ),
            (
                "app::_::<impl app::Sum for app::Row<u8>>::sum",
                "app::_::sum",
            ),
        ] {
            let site = Site {
                function: function.to_owned(),
                file: None,
                line: None,
            };
            assert_eq!(site.label(), label);
        }
    }

    #[test]
    fn a_path_is_shortened_to_what_a_reader_needs() {
        for (path, shown) in [
            ("/home/me/app/src/handlers.rs", "src/handlers.rs"),
            (
                "/home/me/app/examples/traps/sleep.rs",
                "examples/traps/sleep.rs",
            ),
            (
                "/root/.cargo/registry/src/index.crates.io-1949/tokio-1.54.1/src/task.rs",
                "tokio-1.54.1/src/task.rs",
            ),
            (
                "/rustc/abc/library/std/src/thread/mod.rs",
                "std/src/thread/mod.rs",
            ),
            ("crates/store/src/lib.rs", "crates/store/src/lib.rs"),
            (
                "/build/app/target/debug/build/chat-0123456789abcdef/out/chat.v1.rs",
                "chat.v1.rs",
            ),
            ("/home/me/build/app-of-mine/src/out/a.rs", "src/out/a.rs"),
            ("serde-1.0.228/src/lib.rs", "serde-1.0.228/src/lib.rs"),
            ("sqlite3.c", "sqlite3.c"),
        ] {
            assert_eq!(short(path), shown);
        }
    }
}
