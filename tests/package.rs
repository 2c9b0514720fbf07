//! The crate as a package: its features are documented, its links lead somewhere, its dependencies
//! have licences that are allowed.
//!
//! `deny.toml` has the rules for dependencies; `.ci/deny` checks all of them with cargo-deny.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The words in a kind of quotes.
fn quoted(text: &str, quote: char) -> impl Iterator<Item = &str> {
    text.split(quote).skip(1).step_by(2)
}

/// The first column of the table below this heading.
fn first_column(page: &str, heading: &str) -> Vec<String> {
    let (_, after) = page.split_once(heading).expect("the heading");
    let lines = after
        .lines()
        .skip(1)
        .map(|line| line.trim_start_matches("//!").trim());
    let section = lines.take_while(|line| !line.starts_with('#'));
    let rows = section.filter_map(|line| line.strip_prefix("| `"));
    rows.map(|row| row.split('`').next().unwrap_or_default().to_owned())
        .collect()
}

fn cargo(arguments: &[&str]) -> String {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .current_dir(root())
        .args(arguments)
        .args(["--all-features", "--locked", "--offline"])
        .output()
        .expect("cargo runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    String::from_utf8(output.stdout).expect("text")
}

/// The manifest, as cargo understands it.
fn manifest() -> Value {
    let metadata = cargo(&["metadata", "--no-deps", "--format-version", "1"]);
    let metadata: Value = serde_json::from_str(&metadata).expect("JSON");
    let mut packages = metadata["packages"].as_array().expect("packages").iter();
    let package = packages.find(|package| package["name"] == "tokio-stall");
    package.expect("this package").clone()
}

/// The packages that a build with all features needs on this machine: name and release, with the
/// source if that is not crates.io; and the licence.
fn dependencies() -> BTreeMap<String, String> {
    let arguments = ["tree", "-p", "tokio-stall", "-e", "normal,build"];
    let form = ["--prefix", "none", "--format", "{p}|{l}"];
    let tree = cargo(&[&arguments[..], &form[..]].concat());
    let pairs = tree.lines().skip(1).filter_map(|line| line.split_once('|'));
    let pairs = pairs.map(|(package, licence)| {
        let package = package.trim_end_matches(" (proc-macro)").to_owned();
        (package, licence.trim_end_matches(" (*)").to_owned())
    });
    pairs.collect()
}

/// Whether an expression of licences can be met by the ones that are allowed.
fn is_allowed(expression: &str, allowed: &[&str]) -> bool {
    // Old manifests have a slash for OR. In brackets, OR comes first.
    let expression = expression.replace('/', " OR ").replace(['(', ')'], "");
    expression.split(" AND ").all(|part| {
        let mut alternatives = part.split(" OR ").map(str::trim);
        alternatives.any(|licence| allowed.contains(&licence))
    })
}

#[cfg(target_os = "linux")]
#[test]
fn dependencies_have_licences_sources_and_duplicates_that_are_allowed() {
    let rules = read("deny.toml");
    let line = |start: &str| rules.lines().find(|line| line.starts_with(start));
    let allowed: Vec<_> = quoted(line("allow = [").expect("licences"), '"').collect();
    let lines = |mark: &'static str| rules.lines().filter(move |line| line.contains(mark));
    let exceptions: BTreeMap<_, _> = lines("allow = [\"CDDL")
        .filter_map(|line| Some((quoted(line, '"').next()?, quoted(line, '"').nth(1)?)))
        .collect();
    let skipped: BTreeSet<_> = lines("reason = \"")
        .filter_map(|line| quoted(line, '"').next()?.split('@').next())
        .collect();

    let dependencies = dependencies();
    assert!(dependencies.len() > 100, "only {}", dependencies.len());
    let mut versions: BTreeMap<&str, usize> = BTreeMap::new();
    for (package, licence) in &dependencies {
        let (name, release) = package.split_once(" v").expect("a release");
        assert!(!release.contains(' '), "{package}: not from crates.io");
        let is_exception = exceptions.get(name) == Some(&licence.as_str());
        assert!(
            is_allowed(licence, &allowed) || is_exception,
            "{package}: {licence}"
        );
        *versions.entry(name).or_default() += 1;
    }
    let twice = versions.into_iter().filter(|(_, count)| *count > 1);
    let twice: BTreeSet<_> = twice.map(|(name, _)| name).collect();
    assert_eq!(
        twice, skipped,
        "duplicates, and those that deny.toml allows"
    );
    assert!(exceptions.contains_key("inferno"));
}

/// `flamegraph` alone brings a licence that asks for something of those who distribute.
#[cfg(target_os = "linux")]
#[test]
fn the_exception_is_in_one_feature_alone() {
    let package = manifest();
    let features = package["features"].as_object();
    let users = features.expect("features").iter().filter(|(_, parts)| {
        let mut parts = parts.as_array().expect("parts").iter();
        parts.any(|part| part == "dep:inferno" || part == "flamegraph")
    });
    let users: Vec<_> = users.map(|(name, _)| name.as_str()).collect();
    assert_eq!(users, ["flamegraph"]);
}

#[test]
fn expressions_of_licences_are_understood() {
    let allowed = ["MIT", "Unicode-3.0"];
    for (expression, is_met) in [
        ("MIT", true),
        ("GPL-3.0", false),
        ("MIT/Apache-2.0", true),
        ("GPL-3.0 OR MIT", true),
        ("MIT AND GPL-3.0", false),
        ("(MIT OR Apache-2.0) AND Unicode-3.0", true),
        ("(MIT OR Apache-2.0) AND GPL-3.0", false),
        ("none", false),
    ] {
        assert_eq!(is_allowed(expression, &allowed), is_met, "{expression}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn the_front_page_has_each_feature() {
    let package = manifest();
    let features = package["features"].as_object().expect("features");
    let default = features["default"].as_array().expect("a list").iter();
    let default: BTreeSet<_> = default.filter_map(Value::as_str).collect();
    let page = read("src/lib.rs");
    let documented = first_column(&page, "//! # Features");
    let named: BTreeSet<_> = documented.iter().map(String::as_str).collect();
    let exist = features.keys().map(String::as_str);
    let exist: BTreeSet<_> = exist.filter(|name| *name != "default").collect();
    assert_eq!(named, exist);
    for name in named {
        let is_default = page.contains(&format!("//! | `{name}` (default) |"));
        assert_eq!(is_default, default.contains(name), "{name}");
    }
}

/// The releases in docs/semver.md are those of Cargo.toml, and so is the oldest Rust.
#[cfg(target_os = "linux")]
#[test]
fn the_page_on_versions_has_the_numbers_of_the_manifest() {
    let package = manifest();
    let page = read("docs/semver.md");
    let rust = package["rust_version"].as_str().expect("a number");
    assert!(page.contains(&format!("needs Rust {rust},")), "{rust}");
    let heading = "## Other crates in the API";
    let (_, section) = page.split_once(heading).expect("the section");
    let names = first_column(&page, heading);
    assert!(names.len() > 5, "{names:?}");
    for dependency in package["dependencies"].as_array().expect("a list") {
        let name = dependency["name"].as_str().expect("a name");
        if dependency["kind"].is_null() && names.iter().any(|named| named == name) {
            let wanted = dependency["req"].as_str().expect("a release");
            let row = format!("| `{name}` {} |", wanted.trim_start_matches('^'));
            assert!(section.contains(&row), "{row}");
        }
    }
}

/// A link in a page, as `[text](target)`; not in code.
fn links(page: &str) -> Vec<String> {
    let mut links = Vec::new();
    let mut in_code = false;
    for line in page.lines() {
        in_code ^= line.trim_start().starts_with("```");
        if !in_code {
            let targets = line.split("](").skip(1);
            let targets = targets.filter_map(|rest| rest.split(')').next());
            links.extend(targets.map(str::to_owned));
        }
    }
    links
}

/// The anchors of a page's headings, as GitHub and rustdoc make them.
fn anchors(page: &str) -> BTreeSet<String> {
    let headings = page.lines().filter(|line| line.starts_with('#'));
    let anchor = |heading: &str| -> String {
        let text = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = text.chars().filter_map(|character| match character {
            ' ' => Some('-'),
            '-' | '_' => Some(character),
            _ => character.is_alphanumeric().then_some(character),
        });
        kept.collect()
    };
    headings.map(anchor).collect()
}

fn pages() -> Vec<String> {
    let mut pages = Vec::new();
    for folder in ["", "docs", "monitoring", "benches"] {
        for entry in fs::read_dir(root().join(folder)).expect("a folder") {
            let name = entry.expect("an entry").file_name();
            let name = name.to_string_lossy();
            if name.ends_with(".md") {
                let path = Path::new(folder).join(&*name);
                pages.push(path.to_string_lossy().into_owned());
            }
        }
    }
    pages
}

/// Why a link of a page leads nowhere.
fn broken(path: &str, link: &str) -> Option<String> {
    if link.starts_with("https://") || link.starts_with("http://") {
        return None;
    }
    if path.starts_with("docs/") && !link.starts_with('#') {
        return Some("the crate's documentation has no files beside it".to_owned());
    }
    let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
    let target = match file {
        "" => root().join(path),
        _ => root().join(path).with_file_name("").join(file),
    };
    if !target.exists() {
        return Some("no such file".to_owned());
    }
    let lacks = |page: String| !anchors(&page).contains(anchor);
    let is_lost = !anchor.is_empty() && fs::read_to_string(target).is_ok_and(lacks);
    is_lost.then(|| "no such heading".to_owned())
}

#[test]
fn links_lead_somewhere() {
    let mut count = 0;
    for path in pages() {
        for link in links(&read(&path)) {
            count += 1;
            let why = broken(&path, &link);
            assert_eq!(why, None, "{path}: {link}");
        }
    }
    assert!(count > 30, "only {count} links");
    for (path, link) in [
        ("README.md", "docs/missing.md"),
        ("README.md", "#missing"),
        ("README.md", "monitoring/README.md#missing"),
        ("docs/http.md", "limits.md"),
    ] {
        assert!(broken(path, link).is_some(), "{path}: {link}");
    }
    assert_eq!(links("a [b](c#d) e\n```\n[f](g)\n```\n"), ["c#d"]);
}
