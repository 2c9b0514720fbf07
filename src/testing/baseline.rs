//! A file of known sites: they may block for now, and new ones may not.
//!
//! *Runs on:* the threads of tests.
//! *Must not:* guess. The file has the part of TOML that it needs, and other text is an error with
//! its line.

use crate::report::{Cause, Site};
use parking_lot::Mutex;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Reads a baseline: a file of sites that are known to block, and pass.
///
/// ```toml
/// [[known]]
/// site = "app::handlers::get_user"
/// cause = "blocked/sleep"            # may be left out: then any cause
/// reason = "is waiting for #123"     # may be left out
/// ```
///
/// `site` is the function, as failures show it. A failure ends with the entry that would let it
/// pass. A relative path is relative to the package's root, since cargo runs tests there.
///
/// The drop of the last clone lists on standard error the known sites that have blocked, and those
/// that have not and can be removed.
///
/// # Panics
///
/// If the file cannot be read, or has text in it that is no entry.
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
        Ok(known) => Baseline(Arc::new(BaselineFile {
            path: path.to_owned(),
            known: Mutex::new(known),
        })),
        Err(error) => panic!("the baseline {}: {error}", path.display()),
    }
}

/// Sites that are known to block; made by [`baseline`]. Clones share their counts.
#[derive(Clone, Debug)]
pub struct Baseline(Arc<BaselineFile>);

/// A baseline file and the counts of its entries.
#[derive(Debug)]
struct BaselineFile {
    path: PathBuf,
    known: Mutex<Vec<BaselineEntry>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct BaselineEntry {
    site: String,
    cause: Option<String>,
    reason: Option<String>,
    /// How often the site has blocked so far.
    met: u64,
}

impl Baseline {
    /// Whether this site is known to block for this cause. A known one is counted.
    pub(super) fn knows(&self, site: Option<&Site>, cause: Cause) -> bool {
        let Some(site) = site else {
            return false;
        };
        let mut known = self.0.known.lock();
        let is_it = |entry: &&mut BaselineEntry| {
            let known_cause = entry.cause.as_deref();
            entry.site == site.function && known_cause.is_none_or(|known| known == cause.as_str())
        };
        match known.iter_mut().find(is_it) {
            Some(entry) => {
                entry.met += 1;
                true
            }
            None => false,
        }
    }

    /// The known sites that have blocked so far, each with a count.
    pub fn met(&self) -> Vec<(String, u64)> {
        let known = self.0.known.lock();
        let met = known.iter().filter(|known| known.met > 0);
        met.map(|known| (known.site.clone(), known.met)).collect()
    }

    /// The known sites that have not blocked so far. Their entries can be removed.
    pub fn vanished(&self) -> Vec<String> {
        let known = self.0.known.lock();
        let vanished = known.iter().filter(|known| known.met == 0);
        vanished.map(|known| known.site.clone()).collect()
    }

    /// The text of an entry for this site; `None` if the file's format cannot express its name.
    pub(super) fn entry(site: &Site, cause: Cause) -> Option<String> {
        let is_plain = |c: char| c != '"' && c != '\\' && !c.is_control();
        let site = &site.function;
        site.chars()
            .all(is_plain)
            .then(|| format!("[[known]]\nsite = \"{site}\"\ncause = \"{cause}\""))
    }
}

impl Drop for BaselineFile {
    fn drop(&mut self) {
        let text = Listing(&self.path, self.known.get_mut()).to_string();
        if !text.is_empty() {
            eprintln!("{text}");
        }
    }
}

/// The list for standard error at the end.
struct Listing<'a>(&'a Path, &'a [BaselineEntry]);

impl fmt::Display for Listing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Listing(path, entries) = self;
        let lines: Vec<String> = entries.iter().map(|entry| entry.line(path)).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl BaselineEntry {
    fn line(&self, path: &Path) -> String {
        let (site, path) = (&self.site, path.display());
        match (self.met, &self.reason) {
            (0, _) => format!(
                "tokio-stall: {site} does not block any more: remove it from {path}, if no other \
                 test meets it"
            ),
            (met, Some(reason)) => {
                format!("tokio-stall: known to block, {met} times: {site} ({reason})")
            }
            (met, None) => format!("tokio-stall: known to block, {met} times: {site}"),
        }
    }
}

fn parse(text: &str) -> Result<Vec<BaselineEntry>, String> {
    let mut entries: Vec<BaselineEntry> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let read = read_line(line.trim(), &mut entries);
        read.map_err(|error| format!("line {}: {error}", index + 1))?;
    }
    match entries.iter().position(|entry| entry.site.is_empty()) {
        Some(index) => Err(format!("entry {} has no `site`", index + 1)),
        None => Ok(entries),
    }
}

fn read_line(line: &str, entries: &mut Vec<BaselineEntry>) -> Result<(), String> {
    if line.is_empty() || line.starts_with('#') {
        return Ok(());
    }
    if without_comment(line) == Some("[[known]]") {
        entries.push(BaselineEntry::default());
        return Ok(());
    }
    let (key, text) = key_and_text(line)?;
    let entry = entries.last_mut().ok_or("expected `[[known]]` first")?;
    entry.set(key, text)
}

fn key_and_text(line: &str) -> Result<(&str, String), &'static str> {
    let (key, value) = line
        .split_once('=')
        .ok_or("expected `[[known]]`, or a key and a text")?;
    let text = value
        .trim()
        .strip_prefix('"')
        .and_then(|rest| rest.split_once('"'))
        .filter(|(text, rest)| !text.contains('\\') && without_comment(rest) == Some(""))
        .map(|(text, _)| text.to_owned())
        .ok_or("expected a text in double quotes, without backslashes")?;
    Ok((key.trim(), text))
}

impl BaselineEntry {
    fn set(&mut self, key: &str, text: String) -> Result<(), String> {
        let place = match key {
            "site" if self.site.is_empty() => {
                self.site = text;
                return Ok(());
            }
            "site" => return Err("`site` is there already".to_owned()),
            "cause" => &mut self.cause,
            "reason" => &mut self.reason,
            key => return Err(format!("`{key}` is not a key: site, cause, reason are")),
        };
        match place.replace(text) {
            None => Ok(()),
            Some(_) => Err("the key is there already".to_owned()),
        }
    }
}

/// The line up to its comment, trimmed.
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
        Baseline(Arc::new(BaselineFile {
            path: "stalls.toml".into(),
            known: Mutex::new(parse(text).unwrap()),
        }))
    }

    #[test]
    fn known_sites_pass_new_ones_do_not_and_vanished_ones_are_listed() {
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
        assert!(
            !known.knows(None, sleep),
            "a site without a name is not known"
        );
        assert_eq!(known.vanished(), ["app::g"]);
        assert!(known.knows(Some(&site("app::g")), Cause::Cpu));
        assert_eq!(
            known.met(),
            [("app::f".to_owned(), 1), ("app::g".to_owned(), 1)]
        );
        assert!(known.vanished().is_empty());
    }

    #[test]
    fn listing_has_met_sites_and_asks_to_remove_the_rest() {
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
    fn unknown_text_is_an_error_with_its_line() {
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
