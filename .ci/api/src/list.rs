//! The API as lines of text, and the other crates that occur in it.

use std::collections::BTreeSet;
use std::error::Error;

/// The crates of each compiler.
const STANDARD: [&str; 3] = ["alloc", "core", "std"];

/// The section of `docs/semver.md` whose table names crates.
const SECTION: &str = "## Other crates in the API";

/// One line for each public item, with full paths.
///
/// Lines that every type has are left out: implementations for all types, and the automatic ones.
/// A type that loses `Send` gets a line, and one that has it on a condition. A derived trait has one
/// line, without its methods.
pub(crate) fn of(json: &str) -> Result<Vec<String>, Box<dyn Error>> {
    let api = public_api::Builder::from_rustdoc_json(json)
        .omit_blanket_impls(true)
        .build()?;
    let lines = api.items().map(ToString::to_string);
    Ok(lines.filter(|line| !is_usual(line)).collect())
}

fn is_usual(line: &str) -> bool {
    let unstable = ["Freeze", "StructuralPartialEq", "UnsafeUnpin"];
    let automatic = ["Send", "Sync", "Unpin", "RefUnwindSafe", "UnwindSafe"];
    let methods = [
        "::clone(&self) -> ",
        "::eq(&self, ",
        "::fmt(&self, &mut core::fmt::Formatter<",
        "::hash<__H",
        "::serialize<",
        // Part of what this macro writes.
        "pin_project_lite::__private",
    ];
    let implements = |name: &&str| line.contains(&format!("::{name} for "));
    let has_condition = line.contains('!') || line.contains(" where ");
    unstable.iter().any(implements)
        || automatic.iter().any(implements) && !has_condition
        || methods.iter().any(|method| line.contains(method))
}

/// The other crates whose paths occur in these lines.
pub(crate) fn crates_in(lines: &[String]) -> BTreeSet<String> {
    let is_name = |character: char| character.is_alphanumeric() || character == '_';
    let own = lines.first().and_then(|line| line.split(' ').next_back());
    let mut crates = BTreeSet::new();
    for line in lines {
        let paths = line.split(|character| !is_name(character) && character != ':');
        for path in paths {
            // `name: type` is no path, and `::name` is the rest of one.
            let Some((name, _)) = path.split_once("::") else {
                continue;
            };
            let is_crate = name.starts_with(|first: char| first.is_lowercase());
            if is_crate && Some(name) != own && !STANDARD.contains(&name) {
                crates.insert(name.to_owned());
            }
        }
    }
    crates
}

/// The crates in the first column of the table.
pub(crate) fn named_crates(page: &str) -> BTreeSet<String> {
    let section = page.split_once(SECTION).map_or("", |(_, after)| after);
    let section = section.split("\n## ").next().unwrap_or_default();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
    let names = rows.filter_map(|row| row.split_once('`'));
    names.map(|(name, _)| name.replace('-', "_")).collect()
}
