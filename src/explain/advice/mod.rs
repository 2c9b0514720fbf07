//! The advice: one sentence for each of the usual ways to hold a worker.
//!
//! *Runs on:* `stall-reporter`; in tests also a thread that measures itself.
//!
//! The rules compare names of functions. They do not depend on the user's code, but on the
//! functions that it calls.

mod catalogue;

use crate::report::{Cause, Frame, Origin};
use catalogue::CATALOGUE;
use std::borrow::Cow;

/// One sentence that advises what to write instead, or what to do about the host.
///
/// `frames` go from the thread's innermost frame outwards to the user's code, and `call` is the
/// system call slept in. `None` if the cause is unknown and no function on the stack is in the
/// catalogue.
pub(crate) fn advise(frames: &[Frame], cause: Cause, call: Option<&str>) -> Option<&'static str> {
    advise_by(CATALOGUE.iter(), frames, cause, call)
}

/// The same for functions in the catalogue only: code without one of them gets no advice.
pub(crate) fn advise_on_functions(
    frames: &[Frame],
    cause: Cause,
    call: Option<&str>,
) -> Option<&'static str> {
    let rules = CATALOGUE.iter().filter(|rule| !rule.functions.is_empty());
    advise_by(rules, frames, cause, call)
}

fn advise_by(
    mut rules: impl Iterator<Item = &'static Rule>,
    frames: &[Frame],
    cause: Cause,
    call: Option<&str>,
) -> Option<&'static str> {
    let paths: Vec<Path<'_>> = frames.iter().flat_map(paths_of).collect();
    let rule = rules.find(|rule| rule.matches(&paths, cause, call));
    rule.map(|rule| rule.advice)
}

/// An advice, and the stacks that it is for.
struct Rule {
    when: When,
    /// Functions separated by spaces. One of them is on the stack, above the user's code. Empty for
    /// all stacks.
    ///
    /// Each is the beginning of a path: `rusqlite` is everything in that crate. The segment `*` is
    /// any number of segments. A segment that ends in `*` is all that begin like it. A path of one
    /// segment can also be a function of C, written without the underscores in front.
    functions: &'static str,
    /// System calls, of which the thread slept in one. Empty for all, and for none.
    calls: &'static [&'static str],
    advice: &'static str,
}

/// The causes that a rule is for. If the cause is unknown, the functions alone decide.
#[derive(Clone, Copy)]
enum When {
    /// This cause.
    Only(Cause),
    /// The code computes or waits.
    Code,
    /// The code computes.
    Computing,
    /// The code waits.
    Waiting,
    /// The cause is known, and the code waits. For functions that also run without waiting, as
    /// those of sockets under tokio.
    Asleep,
}

impl When {
    fn covers(self, cause: Cause) -> bool {
        match (self, cause) {
            (When::Only(only), cause) => only == cause,
            (When::Code, Cause::Cpu | Cause::Blocked(_) | Cause::Unknown)
            | (When::Computing, Cause::Cpu | Cause::Unknown)
            | (When::Waiting, Cause::Blocked(_) | Cause::Unknown)
            | (When::Asleep, Cause::Blocked(_)) => true,
            _ => false,
        }
    }
}

impl Rule {
    const fn calling(functions: &'static str, when: When, advice: &'static str) -> Rule {
        Rule {
            when,
            functions,
            calls: &[],
            advice,
        }
    }

    const fn anything(when: When, advice: &'static str) -> Rule {
        Rule::calling("", when, advice)
    }

    fn patterns(&self) -> impl Iterator<Item = &'static str> {
        self.functions.split_ascii_whitespace()
    }

    fn matches(&self, paths: &[Path<'_>], cause: Cause, call: Option<&str>) -> bool {
        let called = |pattern: &str| {
            let pattern: Vec<&str> = pattern.split("::").collect();
            paths.iter().any(|path| begins(path, &pattern))
        };
        self.when.covers(cause)
            && (self.calls.is_empty() || call.is_some_and(|call| self.calls.contains(&call)))
            && (self.functions.is_empty() || self.patterns().any(called))
    }
}

/// The segments of a path, without generic arguments.
type Path<'a> = Vec<Cow<'a, str>>;

/// Whether the path begins with the pattern.
fn begins(path: &[Cow<'_, str>], pattern: &[&str]) -> bool {
    let Some((first, rest)) = pattern.split_first() else {
        return true;
    };
    if *first == "*" {
        return (0..=path.len()).any(|skipped| begins(&path[skipped..], rest));
    }
    let Some((segment, path)) = path.split_first() else {
        return false;
    };
    let same = match first.strip_suffix('*') {
        Some(beginning) => segment.starts_with(beginning),
        None => segment == first,
    };
    same && begins(path, rest)
}

/// All paths of a frame that can be in the catalogue: by its name, and by the place of its source.
fn paths_of(frame: &Frame) -> Vec<Path<'_>> {
    let Some(name) = frame.function.as_deref() else {
        return Vec::new();
    };
    match frame.origin {
        Origin::Detector => return Vec::new(),
        // The user's crate may have the name of one in the catalogue. Only the traits that it
        // implements count.
        Origin::Own => return paths_in(name, true),
        _ => {}
    }
    let file = frame.file.as_deref().filter(|file| file.ends_with(".rs"));
    // Debug information with line numbers only has bare names. The file gives the rest of the path.
    let bare = split(name, "::").len() == 1 && !name.starts_with('<');
    let mut paths = match (bare, file) {
        (false, _) => paths_in(name, false),
        (true, None) => vec![vec![Cow::Borrowed(c_symbol(name))]],
        (true, Some(_)) => Vec::new(),
    };
    paths.extend(file.and_then(|file| path_in_source(file, name)));
    paths
}

/// The paths in a demangled name. In `<std::fs::File as std::io::Write>::write` these are
/// `std::fs::File::write` and `std::io::Write::write`. In the name of own code they are those of
/// traits only.
///
/// Generic arguments are left out: they are passed, not called.
fn paths_in(name: &str, own: bool) -> Vec<Path<'_>> {
    let mut paths = if own { vec![] } else { vec![vec![]] };
    for (number, segment) in split(name, "::").into_iter().enumerate() {
        match qualified(segment) {
            Some((of_type, of_trait)) if number == 0 || segment.starts_with("<impl ") => {
                let of_type = Some(of_type).filter(|_| !own).map(without_sigils);
                let both = of_type.into_iter().chain(of_trait);
                paths.extend(both.flat_map(|path| paths_in(path, false)));
                paths.retain(|path| !path.is_empty());
            }
            Some(_) => {}
            None => {
                let segment = Cow::Borrowed(identifier(segment));
                paths.iter_mut().for_each(|path| path.push(segment.clone()));
            }
        }
    }
    paths
}

/// The type and the trait of `<Type>`, of `<Type as Trait>` and, in older names, of `<impl Trait
/// for Type>`.
fn qualified(segment: &str) -> Option<(&str, Option<&str>)> {
    let inner = segment.strip_prefix('<')?;
    let inner = inner.strip_suffix('>').unwrap_or(inner);
    let (parts, trait_comes_first) = match inner.strip_prefix("impl ") {
        Some(inner) => (split(inner, " for "), true),
        None => (split(inner, " as "), false),
    };
    match *parts.as_slice() {
        [of_trait, of_type, ..] if trait_comes_first => Some((of_type, Some(of_trait))),
        [of_type, of_trait, ..] => Some((of_type, Some(of_trait))),
        [of_type] => Some((of_type, None)),
        [] => None,
    }
}

/// The path of a function by its file: `…/serde_json-1.0.154/src/ser.rs` is `serde_json::ser`, and
/// `…/library/std/src/io/mod.rs` is `std::io`.
fn path_in_source<'a>(file: &'a str, name: &'a str) -> Option<Path<'a>> {
    let (package, module) = file.strip_suffix(".rs")?.rsplit_once("/src/")?;
    let package = package.rsplit('/').next()?;
    let package = without_version(package);
    let mut path = vec![Cow::Owned(package.replace('-', "_"))];
    path.extend(
        module
            .split('/')
            .filter(|part| !matches!(*part, "lib" | "mod"))
            .map(Cow::Borrowed),
    );
    let function = split(name, "::")
        .into_iter()
        .rfind(|segment| !segment.starts_with('<'))?;
    path.push(Cow::Borrowed(identifier(function)));
    Some(path)
}

/// The name of a package in the name of its directory.
fn without_version(directory: &str) -> &str {
    let is_version = |text: &str| {
        text.trim_start_matches(|c: char| c.is_ascii_digit())
            .starts_with('.')
    };
    let mut dashes = directory.match_indices('-');
    let version = dashes.find(|(at, _)| is_version(&directory[at + 1..]));
    version.map_or(directory, |(at, _)| &directory[..at])
}

/// The plain name of a function of C: `free` for `__GI___libc_free` and `free@GLIBC_2.2.5`.
fn c_symbol(name: &str) -> &str {
    let name = name.split(['@', '.']).next().unwrap_or(name);
    ["GI_", "libc_"]
        .iter()
        .fold(name.trim_start_matches('_'), |name, prefix| {
            let name = name.strip_prefix(prefix).unwrap_or(name);
            name.trim_start_matches('_')
        })
}

/// The identifier of a segment, without generic arguments, parameters of C++ and a crate's hash.
fn identifier(segment: &str) -> &str {
    segment.split(['<', '(', '[']).next().unwrap_or(segment)
}

/// A type without the signs of a reference, a slice and the like.
fn without_sigils(mut path: &str) -> &str {
    const SIGILS: &[&str] = &["&", "*const ", "*mut ", "mut ", "dyn ", "[", "("];
    while let Some(rest) = SIGILS.iter().find_map(|sigil| path.strip_prefix(sigil)) {
        path = rest;
    }
    path
}

/// Splits a text at the separators that are outside of all brackets.
fn split<'a>(text: &'a str, separator: &str) -> Vec<&'a str> {
    let mut parts = Vec::new();
    let (mut depth, mut from, mut before) = (0_usize, 0, b' ');
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'<' | b'(' | b'[' | b'{' => depth += 1,
            // The arrow of a function's type closes nothing.
            b'>' if before == b'-' => {}
            b'>' | b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ if depth == 0
                && at >= from
                && text.as_bytes()[at..].starts_with(separator.as_bytes()) =>
            {
                parts.push(&text[from..at]);
                from = at + separator.len();
            }
            _ => {}
        }
        before = byte;
    }
    parts.push(&text[from..]);
    parts
}

#[cfg(all(test, not(loom)))]
mod tests;
