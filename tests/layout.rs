//! The layers of `src`: an import points to a lower one, so that no two rooms need each other.
//!
//! The layers are those of the picture in CONTRIBUTING.md, which this test reads.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The layer of each room, by the lines `9  start` of the block after this heading.
const HEADING: &str = "## The layers";

fn layers() -> BTreeMap<String, u32> {
    let page = read(&root().join("CONTRIBUTING.md"));
    let (_, after) = page
        .split_once(HEADING)
        .expect("CONTRIBUTING.md has the heading");
    let block = after.split("```").nth(1).expect("a block follows it");
    let mut layers = BTreeMap::new();
    for line in block.lines().skip(1) {
        let mut words = line.split_whitespace();
        let Some(Ok(layer)) = words.next().map(str::parse) else {
            continue;
        };
        // The rooms of a layer stand before the words about it.
        let rooms = words.take_while(|word| *word != "–");
        layers.extend(rooms.map(|room| (room.to_owned(), layer)));
    }
    layers
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The room of a file: the first part of its path below `src`, without `.rs`.
fn room(file: &Path) -> String {
    let inside = file.strip_prefix(root().join("src")).expect("below src");
    let first = inside.iter().next().expect("a name").to_string_lossy();
    first.trim_end_matches(".rs").to_owned()
}

/// The rooms that a text names in paths from the root of the crate; not in comments.
fn named(text: &str) -> Vec<String> {
    let code = text
        .lines()
        .map(|line| line.split("//").next().unwrap_or(""));
    let code: String = code.collect::<Vec<_>>().join("\n");
    let paths = code.split("crate::").skip(1);
    let word = |path: &str| -> String {
        let ends = |c: char| !(c.is_alphanumeric() || c == '_');
        path.split(ends).next().unwrap_or("").to_owned()
    };
    // `pub(crate)` is no path, and a name with a capital is an item of the root.
    paths
        .map(word)
        .filter(|word| word.starts_with(|c: char| c.is_lowercase()))
        .collect()
}

fn upward(layers: &BTreeMap<String, u32>, files: &[(String, String)]) -> Vec<String> {
    let layer = |room: &str| {
        let known = layers.get(room);
        *known.unwrap_or_else(|| panic!("{room} has no layer in CONTRIBUTING.md"))
    };
    let mut found = Vec::new();
    for (here, text) in files {
        for there in named(text).iter().filter(|there| *there != here) {
            if layer(there) >= layer(here) {
                found.push(format!("{here} imports {there}"));
            }
        }
    }
    found
}

#[test]
fn imports_point_downwards() {
    let mut paths = Vec::new();
    sources(&root().join("src"), &mut paths);
    paths.retain(|path| !path.ends_with("src/lib.rs"));
    let files: Vec<_> = paths.iter().map(|path| (room(path), read(path))).collect();
    assert!(files.len() > 90, "only {} files were read", files.len());
    let found = upward(&layers(), &files);
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn an_import_that_points_upwards_is_found() {
    let layers = layers();
    let file = |room: &str, text: &str| (room.to_owned(), text.to_owned());
    let upward = |text| upward(&layers, &[file("detect", text)]);
    assert_eq!(upward("use crate::clock::Nanos;"), [""; 0]);
    assert_eq!(
        upward("use crate::detect::Rules; // crate::watchdog"),
        [""; 0]
    );
    assert_eq!(
        upward("use crate::watchdog::run;"),
        ["detect imports watchdog"]
    );
    assert_eq!(
        upward("let at = crate::engine::now();"),
        ["detect imports engine"]
    );
}

/// The files that CONTRIBUTING.md names in its walk and its tables exist.
#[test]
fn files_of_the_walk_exist() {
    let page = read(&root().join("CONTRIBUTING.md"));
    let walk = page.split("## One stall").nth(1).expect("the walk");
    let walk = walk.split("\n## ").next().expect("its end");
    let quoted = walk.split('`').skip(1).step_by(2);
    let files: Vec<_> = quoted.filter(|text| text.ends_with(".rs")).collect();
    assert!(files.len() > 30, "only {} files are named", files.len());
    for file in files {
        assert!(root().join("src").join(file).exists(), "{file}");
    }
}
