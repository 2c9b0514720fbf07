//! A profile as a flame graph: an SVG with the time lost, drawn by the library `inferno`.
//!
//! *Runs on:* threads that ask for it, and `stall-serve`.
//!
//! The library escapes names for XML. Characters that XML has no escape for are replaced here.

use super::profile::{FoldedBy, Profile};
use inferno::flamegraph::{self, Options, TextTruncateDirection};

/// The graph of a profile without stalls.
const EMPTY: &str = r##"<?xml version="1.0" encoding="UTF-8"?>
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 600 60" width="600" height="60">
<rect width="600" height="60" fill="#f8f8f8"/>
<text x="300" y="36" text-anchor="middle" font-family="sans-serif" font-size="15" fill="#333333"
>No stall has ended yet, so there is no time to show.</text>
</svg>
"##;

impl Profile {
    /// The profile as a flame graph, in SVG.
    ///
    /// A frame is as wide as its part of the time lost, or of the stacks taken. By time, the whole
    /// is all of the time lost: stalls without a stack are a frame `[no stack]`. A click zooms, and
    /// Ctrl-F finds functions; for both, the picture has a script of its own that needs no network.
    /// A profile without stalls gives a small picture that says so.
    ///
    /// All names are escaped. Frames below a ten-thousandth of the whole are left out, which bounds
    /// the picture: a few hundred kilobytes is usual, and a full table of deep stacks gives a few
    /// megabytes. It takes milliseconds for a thousand stacks.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use tokio_stall::FoldedBy;
    ///
    /// # let folder = tempfile::tempdir()?;
    /// # let folder = folder.path();
    /// let watch = tokio_stall::watch()?;
    /// let picture = watch.profile().flamegraph("my service", FoldedBy::Microseconds);
    /// std::fs::write(folder.join("stalls.svg"), picture)?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn flamegraph(&self, title: &str, by: FoldedBy) -> String {
        let lines = self.folded_stacks(by, |_| true).concat();
        let unit = match by {
            FoldedBy::Microseconds => "µs",
            FoldedBy::Samples => "samples",
        };
        draw(title, unit, &lines).unwrap_or_else(|| EMPTY.to_owned())
    }
}

/// Draws folded stacks. `None` if they have no weight.
pub(crate) fn draw(title: &str, unit: &str, lines: &str) -> Option<String> {
    let weight = |line: &str| line.rsplit_once(' ')?.1.parse::<u64>().ok();
    if lines.lines().filter_map(weight).all(|weight| weight == 0) {
        return None;
    }
    let lines = for_xml(lines);
    let mut options = Options::default();
    options.title = for_xml(title);
    options.count_name = unit.to_owned();
    options.deterministic = true;
    // The last part of a path of modules says most.
    options.text_truncate_direction = TextTruncateDirection::Left;
    let mut svg = Vec::new();
    flamegraph::from_lines(&mut options, lines.lines(), &mut svg).ok()?;
    String::from_utf8(svg).ok()
}

/// A text without the characters that XML 1.0 forbids in any form.
fn for_xml(text: &str) -> String {
    let is_forbidden = |character: char| {
        let is_space = matches!(character, '\n' | '\t');
        character.is_control() && !is_space || matches!(character, '\u{fffe}' | '\u{ffff}')
    };
    text.replace(is_forbidden, "\u{fffd}")
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use quick_xml::Reader;
    use quick_xml::events::Event;

    /// The texts of the elements with this name. It panics if the document is not well-formed.
    fn texts(svg: &str, element: &str) -> Vec<String> {
        let mut reader = Reader::from_str(svg);
        let mut texts = Vec::new();
        let mut is_inside = false;
        loop {
            match reader.read_event().unwrap() {
                Event::Start(start) => {
                    start.attributes().for_each(|a| drop(a.unwrap()));
                    is_inside = start.name().as_ref() == element.as_bytes();
                    if is_inside {
                        texts.push(String::new());
                    }
                }
                Event::End(_) => is_inside = false,
                Event::Text(text) if is_inside => {
                    texts.last_mut().unwrap().push_str(&text.decode().unwrap());
                }
                Event::GeneralRef(name) if is_inside => {
                    let name = name.decode().unwrap();
                    let text = quick_xml::escape::unescape(&format!("&{name};")).map(String::from);
                    texts.last_mut().unwrap().push_str(&text.unwrap());
                }
                Event::Eof => return texts,
                _ => {}
            }
        }
    }

    #[test]
    fn hostile_names_are_text() {
        let hostile = "<script>alert(1)</script>\u{1}]]>\"'&lt\u{ffff}";
        let lines = format!("api;{hostile};<a onclick=\"x\"> 1000\napi;b 3000\n");
        let svg = draw(hostile, "µs", &lines).unwrap();
        assert_eq!(svg.matches("<script").count(), 1, "the library's own");
        assert!(!svg.contains("onclick=\"x\">"));
        assert_eq!(texts(&svg, "script").len(), 1);
        let shown = "<script>alert(1)</script>\u{fffd}]]>\"'&lt\u{fffd}";
        let titles = texts(&svg, "title");
        let wanted = format!("{shown} (1,000 µs, 25.00%)");
        assert!(titles.contains(&wanted), "{titles:#?}");
        assert!(texts(&svg, "text").contains(&shown.to_owned()));
    }

    #[test]
    fn the_whole_is_the_sum_of_the_lines() {
        let svg = draw("all", "samples", "api;a;b 70\napi;a;c 20\nother 10\n").unwrap();
        let titles = texts(&svg, "title");
        for title in [
            "all (100 samples, 100%)",
            "a (90 samples, 90.00%)",
            "c (20 samples, 20.00%)",
            "other (10 samples, 10.00%)",
        ] {
            assert!(titles.iter().any(|found| found == title), "{titles:#?}");
        }
    }

    #[test]
    fn a_profile_without_stalls_says_so() {
        let svg = Profile::default().flamegraph("all", FoldedBy::Microseconds);
        assert!(texts(&svg, "text")[0].starts_with("No stall has ended yet"));
        assert_eq!(draw("all", "µs", "api;a 0\n"), None);
    }
}
