//! A file of known sites: what blocks already may go on for now, what is new may not.
//!
//! *Runs on:* the threads of tests.
//! *Here:* the part of TOML that such a file needs, and nothing that guesses: what is not understood is an error
//! with its line.

use crate::report::{Cause, Site};
use parking_lot::Mutex;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Reads a baseline: the sites that are known to block, and pass.
///
/// ```toml
/// [[known]]
/// site = "app::handlers::get_user"
/// cause = "blocked/sleep"            # may be left out: then whatever the cause
/// reason = "is waiting for #123"     # may be left out
/// ```
///
/// `site` is the function, as failures show it. A path that is not absolute is relative to the package's root, as
/// cargo runs its tests. A failure ends with the entry that would let it pass.
///
/// When the last clone is dropped, known sites that were met are listed on standard error, and those that were not
/// ask to be removed.
///
/// # Panics
///
/// If the file cannot be read, or has something in it that is not understood.
///
/// # Examples
///
/// ```no_run
/// # async fn handler() {}
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// use tokio_stall::testing;
///
/// let known = testing::baseline("stalls.toml");
/// testing::assert_never_blocks(handler()).known(&known).await;
/// # }
/// ```
///
/// ```should_panic
/// tokio_stall::testing::baseline("no_such_file.toml");
/// ```
#[track_caller]
pub fn baseline(path: impl AsRef<Path>) -> Baseline {
    let path = path.as_ref();
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => panic!("the baseline {} cannot be read: {error}", path.display()),
    };
    match parse(&text) {
        Ok(known) => Baseline(Arc::new(Shared {
            path: path.to_owned(),
            known: Mutex::new(known),
        })),
        Err(error) => panic!("the baseline {}: {error}", path.display()),
    }
}

/// Sites that are known to block; made by [`baseline`]. Clones share what they have met.
#[derive(Clone, Debug)]
pub struct Baseline(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    known: Mutex<Vec<Known>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Known {
    site: String,
    cause: Option<String>,
    reason: Option<String>,
    met: u64,
}

impl Baseline {
    /// Whether this is a known one, which is counted.
    pub(super) fn knows(&self, site: Option<&Site>, cause: Cause) -> bool {
        let Some(site) = site else {
            return false;
        };
        let mut known = self.0.known.lock();
        let is_it = |known: &&mut Known| {
            known.site == site.function
                && known
                    .cause
                    .as_deref()
                    .is_none_or(|known| known == cause.as_str())
        };
        match known.iter_mut().find(is_it) {
            Some(known) => {
                known.met += 1;
                true
            }
            None => false,
        }
    }

    /// The known sites that have been met so far, each with how often.
    pub fn met(&self) -> Vec<(String, u64)> {
        let known = self.0.known.lock();
        let met = known.iter().filter(|known| known.met > 0);
        met.map(|known| (known.site.clone(), known.met)).collect()
    }

    /// The known sites that have not been met: their entries are to be removed.
    pub fn vanished(&self) -> Vec<String> {
        let known = self.0.known.lock();
        let vanished = known.iter().filter(|known| known.met == 0);
        vanished.map(|known| known.site.clone()).collect()
    }

    pub(super) fn entry(site: &Site, cause: Cause) -> Option<String> {
        // What cannot be written cannot be known.
        let is_plain = |c: char| c != '"' && c != '\\' && !c.is_control();
        let site = &site.function;
        site.chars()
            .all(is_plain)
            .then(|| format!("[[known]]\nsite = \"{site}\"\ncause = \"{cause}\""))
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let text = Listing(&self.path, self.known.get_mut()).to_string();
        if !text.is_empty() {
            eprintln!("{text}");
        }
    }
}

/// What is said in the end.
struct Listing<'a>(&'a Path, &'a [Known]);

impl fmt::Display for Listing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Listing(path, known) = self;
        for (index, known) in known.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            let path = path.display();
            match (known.met, &known.reason) {
                (0, _) => write!(
                    f,
                    "tokio-stall: {} does not block any more: remove it from {path}, if no other test meets it",
                    known.site
                )?,
                (met, Some(reason)) => {
                    write!(
                        f,
                        "tokio-stall: known to block, {met} times: {} ({reason})",
                        known.site
                    )?;
                }
                (met, None) => write!(
                    f,
                    "tokio-stall: known to block, {met} times: {}",
                    known.site
                )?,
            }
        }
        Ok(())
    }
}

fn parse(text: &str) -> Result<Vec<Known>, String> {
    let mut all: Vec<Known> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let number = index + 1;
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let error = |what: &str| format!("line {number}: {what}");
        if without_comment(line) == Some("[[known]]") {
            all.push(Known::default());
            continue;
        }
        let (key, value) = line
            .split_once('=')
            .ok_or_else(|| error("expected `[[known]]`, or a key and a text"))?;
        let value = value
            .trim()
            .strip_prefix('"')
            .and_then(|rest| rest.split_once('"'))
            .filter(|(value, rest)| !value.contains('\\') && without_comment(rest) == Some(""))
            .map(|(value, _)| value.to_owned())
            .ok_or_else(|| error("expected a text in double quotes, without backslashes"))?;
        let known = all
            .last_mut()
            .ok_or_else(|| error("expected `[[known]]` first"))?;
        let place = match key.trim() {
            "site" if known.site.is_empty() => {
                known.site = value;
                continue;
            }
            "cause" => &mut known.cause,
            "reason" => &mut known.reason,
            "site" => return Err(error("`site` is there already")),
            key => {
                return Err(error(&format!(
                    "`{key}` is not a key: site, cause, reason are"
                )));
            }
        };
        if place.replace(value).is_some() {
            return Err(error("the key is there already"));
        }
    }
    match all.iter().position(|known| known.site.is_empty()) {
        Some(index) => Err(format!("entry {} has no `site`", index + 1)),
        None => Ok(all),
    }
}

/// The line up to its comment, if there is nothing else behind.
fn without_comment(line: &str) -> Option<&str> {
    line.split('#').next().map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Blocking;

    fn site(function: &str) -> Site {
        Site {
            function: function.to_owned(),
            file: None,
            line: None,
        }
    }

    fn of(text: &str) -> Baseline {
        Baseline(Arc::new(Shared {
            path: "stalls.toml".into(),
            known: Mutex::new(parse(text).unwrap()),
        }))
    }

    #[test]
    fn known_sites_pass_new_ones_do_not_and_vanished_ones_are_told() {
        let known = of(
            "# ours\n[[known]] # one\nsite = \"app::f\" # \"here\"\ncause = \"blocked/sleep\"\n\n\
                        [[known]]\nsite = \"app::g\"\nreason = \"#7\"\n",
        );
        let sleep = Cause::Blocked(Blocking::Sleep);
        assert!(known.knows(Some(&site("app::f")), sleep));
        assert!(
            !known.knows(Some(&site("app::f")), Cause::Cpu),
            "another cause is new"
        );
        assert!(!known.knows(Some(&site("app::h")), sleep));
        assert!(!known.knows(None, sleep), "what has no name is not known");
        assert_eq!(known.vanished(), ["app::g"]);
        assert!(known.knows(Some(&site("app::g")), Cause::Cpu));
        assert_eq!(
            known.met(),
            [("app::f".to_owned(), 1), ("app::g".to_owned(), 1)]
        );
        assert!(known.vanished().is_empty());
    }

    #[test]
    fn the_listing_tells_what_was_met_and_asks_to_remove_the_rest() {
        let known =
            parse("[[known]]\nsite = \"f\"\nreason = \"#7\"\n[[known]]\nsite = \"g\"\n").unwrap();
        let mut met = known;
        met[0].met = 2;
        assert_eq!(
            Listing(Path::new("stalls.toml"), &met).to_string(),
            "tokio-stall: known to block, 2 times: f (#7)\n\
             tokio-stall: g does not block any more: remove it from stalls.toml, if no other test meets it"
        );
    }

    #[test]
    fn the_entry_of_a_failure_is_read_back() {
        let entry = Baseline::entry(&site("app::f"), Cause::Cpu).unwrap();
        assert!(of(&entry).knows(Some(&site("app::f")), Cause::Cpu));
        assert_eq!(Baseline::entry(&site("app::\"f"), Cause::Cpu), None);
    }

    #[test]
    fn what_is_not_understood_is_an_error_with_its_line() {
        for (text, error) in [
            ("site = \"f\"", "line 1: expected `[[known]]` first"),
            (
                "[[known]]\nsite = 'f'",
                "line 2: expected a text in double quotes, without backslashes",
            ),
            (
                "[[known]]\nsite = \"f\" g",
                "line 2: expected a text in double quotes, without backslashes",
            ),
            (
                "[[known]]\nsite = \"f\"\nsite = \"g\"",
                "line 3: `site` is there already",
            ),
            (
                "[[known]]\nline = \"7\"",
                "line 2: `line` is not a key: site, cause, reason are",
            ),
            (
                "[known]",
                "line 1: expected `[[known]]`, or a key and a text",
            ),
            ("[[known]]\nreason = \"x\"", "entry 1 has no `site`"),
        ] {
            assert_eq!(parse(text).unwrap_err(), error, "{text}");
        }
    }
}
