//! The code and the dependencies of `docs/five-minutes.md` are those of the programs in `examples`,
//! which are compiled, and run by `examples/check`.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

const PAGE: &str = "docs/five-minutes.md";
/// The code of a program begins so. Other code is compiled as part of the documentation.
const OF_A_PROGRAM: &str = "```rust,ignore";
/// Ends a line of a region that is not for the page.
const EXAMPLE_ONLY: &str = "// example only";

fn read(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The lines between `// region watch` and `// endregion`, after the imports and the constants that
/// they need.
fn region(source: &str) -> String {
    let (before, rest) = source.split_once("// region watch\n").expect("a region");
    let (region, _) = rest.split_once("// endregion").expect("its end");
    let lines = region.lines().filter(|line| !line.ends_with(EXAMPLE_ONLY));
    let region = lines.fold(String::new(), |text, line| text + line + "\n");
    let named = words(&region);
    let constants = before.lines().filter(|line| {
        let rest = line.strip_prefix("const ");
        rest.is_some_and(|rest| {
            rest.split(':')
                .next()
                .is_some_and(|name| named.contains(name))
        })
    });
    let constants: Vec<&str> = constants.collect();
    let region = match constants[..] {
        [] => region,
        _ => region.replacen("\nfn ", &format!("\n{}\n\nfn ", constants.join("\n")), 1),
    };
    let mut imports: Vec<String> = before
        .lines()
        .filter_map(|line| import(line, &region))
        .collect();
    if !imports.is_empty() && !region.starts_with("use ") {
        imports.push("\n".to_owned());
    }
    imports.concat() + &region
}

/// The names in code, comments left out.
fn words(code: &str) -> BTreeSet<&str> {
    let lines = code
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"));
    let words = lines.flat_map(|line| line.split(|c: char| !c.is_alphanumeric() && c != '_'));
    words.collect()
}

/// A line of imports, with the names that the region has. Of a trait whose name is not used, it is
/// not known whether its methods are.
fn import(line: &str, region: &str) -> Option<String> {
    let path = line.strip_prefix("use ")?.strip_suffix(';')?;
    let (module, names) = path.rsplit_once("::{").unwrap_or_else(|| {
        let (module, name) = path.rsplit_once("::").expect("a path");
        (module, name)
    });
    let words = words(region);
    let is_named = |name: &str| match name {
        "self" => module
            .rsplit("::")
            .next()
            .is_some_and(|own| words.contains(own)),
        _ => name.ends_with(" as _") || words.contains(name),
    };
    let names = names.trim_end_matches('}').split(", ");
    let used: Vec<&str> = names.filter(|name| is_named(name)).collect();
    match used[..] {
        [] => None,
        ["self"] => Some(format!("use {module};\n")),
        [name] => Some(format!("use {module}::{name};\n")),
        _ => Some(format!("use {module}::{{{}}};\n", used.join(", "))),
    }
}

/// A block of code in the page, and the file that the comment before it names.
#[derive(Debug)]
struct Block {
    language: String,
    file: Option<String>,
    code: String,
}

fn blocks(page: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut file = None;
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        if let Some(name) = line.strip_prefix("<!-- ") {
            file = name.strip_suffix(" -->").map(str::to_owned);
        } else if let Some(language) = line.strip_prefix("```") {
            let code = lines.by_ref().take_while(|line| *line != "```");
            blocks.push(Block {
                language: language.to_owned(),
                code: code.fold(String::new(), |text, line| text + line + "\n"),
                file: file.take(),
            });
        }
    }
    blocks
}

/// The page with the code of the programs.
fn written(page: &str) -> String {
    let mut written = String::new();
    let mut file = None;
    let mut is_replaced = false;
    for line in page.lines() {
        if let Some(name) = line.strip_prefix("<!-- ") {
            file = name.strip_suffix(" -->");
        }
        if line == "```" {
            is_replaced = false;
        }
        if !is_replaced {
            writeln!(written, "{line}").unwrap();
        }
        if line == OF_A_PROGRAM {
            written.push_str(&region(&read(file.take().expect("a file"))));
            is_replaced = true;
        }
    }
    written
}

/// This writes the code:
///
/// ```sh
/// TOKIO_STALL_WRITE=1 cargo test --all-features --test it five_minutes
/// ```
#[test]
fn the_code_of_the_page_is_that_of_the_programs() {
    if std::env::var_os("TOKIO_STALL_WRITE").is_some() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(PAGE);
        std::fs::write(path, written(&read(PAGE))).unwrap();
    }
    let page = read(PAGE);
    let blocks = blocks(&page);
    let code: Vec<_> = blocks
        .iter()
        .filter(|block| OF_A_PROGRAM.strip_prefix("```") == Some(&block.language))
        .collect();
    assert!(code.len() >= 8, "only {} blocks of code", code.len());
    for block in code {
        let file = block.file.as_deref();
        let file = file.unwrap_or_else(|| panic!("no file for:\n{}", block.code));
        assert_eq!(block.code, region(&read(file)), "{PAGE} and {file} differ");
    }
}

/// A dependency, in one line of TOML: the line without its features, and the features.
fn dependency(line: &str) -> (String, BTreeSet<&str>) {
    let list = line.split_once(", features = [");
    let list = list.and_then(|(before, rest)| Some((before, rest.split_once(']')?)));
    let Some((before, (features, after))) = list else {
        return (line.to_owned(), BTreeSet::new());
    };
    let features = features.split(", ").collect();
    (format!("{before}{after}"), features)
}

/// Whether a manifest has a line of the page, with these features at least. A plain version of this
/// crate needs no line there.
fn has_line(manifest: &str, line: &str) -> bool {
    let version = env!("CARGO_PKG_VERSION").rsplit_once('.');
    let version = version.expect("three parts").0;
    if line.is_empty() || line == format!("tokio-stall = \"{version}\"") {
        return true;
    }
    let mut wanted = dependency(line);
    if line.starts_with("tokio-stall = ") {
        let of_page = format!("version = \"{version}\"");
        assert!(line.contains(&of_page), "{line}: this is {version}");
        wanted.0 = wanted.0.replace(&of_page, "path = \"../..\"");
    }
    let is_it = |line: &str| {
        let has = dependency(line);
        has.0 == wanted.0 && has.1.is_superset(&wanted.1)
    };
    manifest.lines().any(is_it)
}

#[test]
fn the_dependencies_of_the_page_are_those_of_the_programs() {
    let page = read(PAGE);
    let blocks = blocks(&page);
    let manifests: Vec<_> = blocks
        .iter()
        .filter(|block| block.language == "toml")
        .collect();
    assert!(manifests.len() >= 8, "only {} blocks", manifests.len());
    for block in manifests {
        let file = block.file.as_deref().expect("a manifest");
        let manifest = read(file);
        for line in block.code.lines() {
            assert!(has_line(&manifest, line), "{file} has no line `{line}`");
        }
    }
}

#[test]
fn a_dependency_is_found_by_version_and_features() {
    let manifest = "a = \"1\"\nb = { version = \"2\", features = [\"x\", \"y\"] }\n";
    for line in [
        "a = \"1\"",
        "b = { version = \"2\", features = [\"y\"] }",
        "",
    ] {
        assert!(has_line(manifest, line), "{line}");
    }
    for line in [
        "a = \"2\"",
        "b = { version = \"2\", features = [\"z\"] }",
        "c = \"1\"",
    ] {
        assert!(!has_line(manifest, line), "{line}");
    }
}

/// The places in a report: `src/main.rs:30` in `call (src/main.rs:30)`.
fn places(report: &str) -> Vec<&str> {
    let parts = report
        .split('(')
        .filter_map(|part| Some(part.split_once(')')?.0));
    let is_place = |part: &&str| part.contains(".rs:");
    parts.filter(is_place).collect()
}

/// The line of a program that blocks, by its comment.
fn planted(source: &str) -> usize {
    let is_planted = |line: &str| line.ends_with("// planted");
    source.lines().position(is_planted).expect("a line") + 1
}

#[test]
fn the_reports_of_the_page_have_the_lines_of_the_programs() {
    let page = read(PAGE);
    let mut file = String::new();
    let mut found = 0;
    for block in blocks(&page) {
        file = block.file.unwrap_or(file);
        for place in places(&block.code) {
            if block.language == "text" {
                let line = planted(&read(&file));
                let is_it = place.rsplit_once(':').is_some_and(|(of_report, of_line)| {
                    file.ends_with(of_report) && of_line == line.to_string()
                });
                assert!(is_it, "{place} is not line {line} of {file}");
                found += 1;
            }
        }
    }
    assert!(found >= 6, "only {found} places");
    assert_eq!(places("a::b (src/c.rs:12), in (d)"), ["src/c.rs:12"]);
    assert_eq!(planted("one\ntwo // planted\n"), 2);
}

#[test]
fn a_difference_is_found() {
    let page = "<!-- a.rs -->\n```rust,ignore\none();\n```\n\n```text\nout\n```\n";
    let blocks = blocks(page);
    assert_eq!(blocks.len(), 2);
    assert_eq!(blocks[0].file.as_deref(), Some("a.rs"));
    assert_eq!(blocks[0].code, "one();\n");
    assert_eq!(blocks[1].file, None);
    let source = "x();\n// region watch\none();\ntwo(); // example only\n// endregion\n";
    assert_eq!(region(source), blocks[0].code);
    assert_ne!(region(&source.replace("one", "three")), blocks[0].code);
}
