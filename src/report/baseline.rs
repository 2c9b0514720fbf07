//! The file of known sites, as text and as counts: they may block for now, and new ones may not.
//!
//! *Runs on:* the threads of tests, and programs that look from outside.
//! *Must not:* guess. The file has the part of TOML that it needs, and other text is an error with
//! its line.

#![cfg_attr(not(feature = "outside"), allow(unreachable_pub))]

use super::{Cause, Site};
use std::fmt;
use std::path::{Path, PathBuf};

/// The sites in a file that are known to block, each with a count of its stalls so far.
///
/// The format is that of `tokio_stall::testing::baseline`.
#[derive(Clone, Debug)]
pub struct KnownStalls {
    path: PathBuf,
    entries: Vec<BaselineEntry>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct BaselineEntry {
    site: String,
    cause: Option<String>,
    reason: Option<String>,
    /// How often the site has blocked so far.
    met: u64,
}

impl KnownStalls {
    /// Reads a file.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or has text in it that is no entry. The error is a sentence.
    pub fn read(path: &Path) -> Result<KnownStalls, String> {
        let shown = path.display();
        let text = std::fs::read_to_string(path)
            .map_err(|error| format!("the baseline {shown} cannot be read: {error}"))?;
        KnownStalls::parse(path, &text).map_err(|error| format!("the baseline {shown}: {error}"))
    }

    fn parse(path: &Path, text: &str) -> Result<KnownStalls, String> {
        Ok(KnownStalls {
            path: path.to_owned(),
            entries: parse(text)?,
        })
    }

    /// Whether this site is known to block for this cause. A known one is counted.
    pub fn knows(&mut self, site: Option<&Site>, cause: Cause) -> bool {
        self.knows_if(site, |known| {
            known.is_none_or(|known| known == cause.as_str())
        })
    }

    /// The same, and the entry has to name the cause.
    pub fn names(&mut self, site: Option<&Site>, cause: Cause) -> bool {
        self.knows_if(site, |known| known == Some(cause.as_str()))
    }

    fn knows_if(&mut self, site: Option<&Site>, is_known: impl Fn(Option<&str>) -> bool) -> bool {
        let Some(site) = site else {
            return false;
        };
        let is_it = |entry: &&mut BaselineEntry| {
            entry.site == site.function && is_known(entry.cause.as_deref())
        };
        match self.entries.iter_mut().find(is_it) {
            Some(entry) => {
                entry.met += 1;
                true
            }
            None => false,
        }
    }

    /// The known sites that have blocked so far, each with a count.
    pub fn met(&self) -> Vec<(String, u64)> {
        let met = self.entries.iter().filter(|known| known.met > 0);
        met.map(|known| (known.site.clone(), known.met)).collect()
    }

    /// The known sites that have not blocked so far. Their entries can be removed.
    pub fn vanished(&self) -> Vec<String> {
        let vanished = self.entries.iter().filter(|known| known.met == 0);
        vanished.map(|known| known.site.clone()).collect()
    }

    /// The text of an entry for this site; `None` if the file's format cannot express its name.
    pub fn entry(site: &Site, cause: Cause) -> Option<String> {
        let is_plain = |c: char| c != '"' && c != '\\' && !c.is_control();
        let site = &site.function;
        site.chars()
            .all(is_plain)
            .then(|| format!("[[known]]\nsite = \"{site}\"\ncause = \"{cause}\""))
    }
}

impl fmt::Display for KnownStalls {
    /// The sites that were met, and those that were not and can be removed. A line each.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = self.entries.iter().map(|entry| entry.line(&self.path));
        f.write_str(&lines.collect::<Vec<_>>().join("\n"))
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

    fn of(text: &str) -> KnownStalls {
        KnownStalls::parse(Path::new("stalls.toml"), text).unwrap()
    }

    #[test]
    fn known_sites_pass_new_ones_do_not_and_vanished_ones_are_listed() {
        let mut known = of(
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
        let mut known = of("[[known]]\nsite = \"f\"\nreason = \"#7\"\n[[known]]\nsite = \"g\"\n");
        known.entries[0].met = 2;
        assert_eq!(
            known.to_string(),
            "tokio-stall: known to block, 2 times: f (#7)\n\
             tokio-stall: g does not block any more: remove it from stalls.toml, if no other test meets it"
        );
    }

    #[test]
    fn the_entry_of_a_failure_is_read_back() {
        let entry = KnownStalls::entry(&site("app::f"), Cause::Cpu).unwrap();
        assert!(of(&entry).knows(Some(&site("app::f")), Cause::Cpu));
        assert_eq!(KnownStalls::entry(&site("app::\"f"), Cause::Cpu), None);
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
