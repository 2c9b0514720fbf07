//! The rules of the house that can be counted: how long functions are, how comments are written.
//!
//! ```sh
//! cargo test --test house -- --nocapture    # prints the figures
//! ```

use proc_macro2::Span;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use syn::spanned::Spanned as _;
use syn::visit::{self, Visit};

/// No function is longer than a screen …
const LONGEST: usize = 50;
/// … and nine in ten are no longer than this.
const MOSTLY: usize = 20;
/// Columns of a line, in code and in comments.
const WIDTH: usize = 100;
/// Sentences of comments that open with a pronoun, in percent.
const PRONOUNS: f64 = 2.0;

struct Source {
    path: String,
    text: String,
}

/// The folders of the two crates that are published.
const CRATES: [&str; 2] = ["src", "cargo-stall/src"];

/// The sources of both crates.
fn sources() -> Vec<Source> {
    CRATES.into_iter().flat_map(sources_below).collect()
}

fn sources_below(folder: &str) -> Vec<Source> {
    fn collect(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                collect(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths = Vec::new();
    collect(&root.join(folder), &mut paths);
    paths.sort();
    let sources = paths.iter().map(|path| Source {
        path: path.strip_prefix(root).unwrap().display().to_string(),
        text: fs::read_to_string(path).unwrap(),
    });
    sources.collect()
}

/// The pages for people, at the same width as the code.
fn pages() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let docs = fs::read_dir(root.join("docs")).expect("a folder");
    let docs = docs.map(|entry| entry.expect("an entry").path());
    let docs = docs.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    let others = ["README.md", "CONTRIBUTING.md", "cargo-stall/README.md"];
    let pages = docs.chain(others.map(|path| root.join(path)));
    let pages = pages.map(|path| Source {
        text: fs::read_to_string(&path).unwrap(),
        path: path.display().to_string(),
    });
    pages.collect()
}

/// Functions by length, and types by name; without tests and models.
#[derive(Default)]
struct Counts {
    path: String,
    functions: Vec<(usize, String)>,
    types: BTreeMap<String, Vec<String>>,
}

impl Counts {
    fn of(sources: &[Source]) -> Counts {
        let mut counts = Counts::default();
        for source in sources {
            if source.path.contains("/tests") || source.path.ends_with("loom.rs") {
                continue;
            }
            counts.path.clone_from(&source.path);
            let file = syn::parse_file(&source.text);
            let file = file.unwrap_or_else(|error| panic!("{}: {error}", source.path));
            counts.visit_file(&file);
        }
        counts.functions.sort();
        counts
    }

    fn function(&mut self, name: &syn::Ident, from: Span, to: Span) {
        let lines = to.end().line - from.start().line + 1;
        let place = format!("{}:{} {name}", self.path, from.start().line);
        self.functions.push((lines, place));
    }

    fn named(&mut self, name: &syn::Ident) {
        let places = self.types.entry(name.to_string()).or_default();
        places.push(self.path.clone());
    }
}

fn is_test(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let is_cfg = attribute.path().is_ident("cfg");
        let list = attribute.meta.require_list();
        is_cfg
            && list.is_ok_and(|list| list.tokens.to_string().contains("test"))
            && !list_is_feature(attribute)
    })
}

/// `cfg(feature = "testing")` is no test.
fn list_is_feature(attribute: &syn::Attribute) -> bool {
    let tokens = attribute
        .meta
        .require_list()
        .map(|list| list.tokens.to_string());
    tokens.is_ok_and(|tokens| !tokens.replace("\"testing\"", "").contains("test"))
}

impl<'ast> Visit<'ast> for Counts {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if !is_test(&item.attrs) {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        if !is_test(&item.attrs) {
            self.function(&item.sig.ident, item.sig.span(), item.block.span());
            visit::visit_item_fn(self, item);
        }
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        if !is_test(&item.attrs) {
            self.function(&item.sig.ident, item.sig.span(), item.block.span());
            visit::visit_impl_item_fn(self, item);
        }
    }

    fn visit_item_struct(&mut self, item: &'ast syn::ItemStruct) {
        self.named(&item.ident);
    }

    fn visit_item_enum(&mut self, item: &'ast syn::ItemEnum) {
        self.named(&item.ident);
    }
}

/// The sentences of all comments: paragraphs joined, code and tables left out.
fn sentences(sources: &[Source]) -> Vec<String> {
    let mut sentences = Vec::new();
    for source in sources {
        let mut paragraph = String::new();
        let mut in_code = false;
        for line in source.text.lines().chain([""]) {
            let comment = comment_of(line).map(str::trim);
            if let Some(text) = comment {
                in_code ^= text.starts_with("```");
            }
            let text = comment.filter(|text| {
                let is_prose = !text.starts_with(['|', '#', '>', '`']);
                !in_code && is_prose && !text.is_empty()
            });
            match text {
                Some(text) => {
                    let starts = text.starts_with("* ") || text.starts_with("*Runs");
                    if starts || text.starts_with("*Must") {
                        split(&std::mem::take(&mut paragraph), &mut sentences);
                    }
                    paragraph.push_str(text);
                    paragraph.push(' ');
                }
                None => split(&std::mem::take(&mut paragraph), &mut sentences),
            }
        }
    }
    sentences
}

fn comment_of(line: &str) -> Option<&str> {
    let line = line.trim_start();
    let comment = ["//!", "///", "//"];
    comment.iter().find_map(|start| line.strip_prefix(start))
}

fn split(paragraph: &str, sentences: &mut Vec<String>) {
    let ends = [". ", "? ", "! ", ": "];
    let mut rest = paragraph.trim();
    while !rest.is_empty() {
        let end = ends.iter().filter_map(|end| rest.find(end)).min();
        let (sentence, after) = rest.split_at(end.map_or(rest.len(), |end| end + 1));
        sentences.push(sentence.trim().to_owned());
        rest = after.trim_start();
    }
}

fn opens_with_a_pronoun(sentence: &str) -> bool {
    let first = sentence.split_whitespace().next().unwrap_or("");
    [
        "What", "Who", "Where", "That", "Whoever", "Whatever", "Whose",
    ]
    .contains(&first)
}

fn too_wide(sources: &[Source]) -> Vec<String> {
    let mut found = Vec::new();
    for source in sources {
        for (index, line) in source.text.lines().enumerate() {
            let is_address = line.contains("://");
            if line.chars().count() > WIDTH && !is_address && comment_of(line).is_some() {
                found.push(format!("{}:{}", source.path, index + 1));
            }
        }
    }
    found
}

/// Lines of prose that are too wide. Tables, code and addresses may be wider.
fn wide_prose(pages: &[Source]) -> Vec<String> {
    let mut found = Vec::new();
    for page in pages {
        let mut is_code = false;
        for (index, line) in page.text.lines().enumerate() {
            is_code ^= line.trim_start().starts_with("```");
            let is_prose = !is_code && !line.starts_with('|') && !line.contains("://");
            if is_prose && line.chars().count() > WIDTH {
                found.push(format!("{}:{}", page.path, index + 1));
            }
        }
    }
    found
}

/// Documentation that goes on from the item above, whose own text does not stand alone.
fn chained(sources: &[Source]) -> Vec<String> {
    let mut found = Vec::new();
    for source in sources {
        for (index, line) in source.text.lines().enumerate() {
            let text = line.trim_start();
            if text.starts_with("/// …") || text.starts_with("///") && text.ends_with('…') {
                found.push(format!("{}:{}", source.path, index + 1));
            }
        }
    }
    found
}

#[test]
fn functions_fit_on_a_screen_and_nine_in_ten_are_short() {
    let counts = Counts::of(&sources());
    let functions = &counts.functions;
    assert!(functions.len() > 800, "only {} functions", functions.len());
    let ninth = functions[functions.len() * 9 / 10].0;
    println!(
        "functions: {}, nine in ten up to {ninth} lines",
        functions.len()
    );
    for (lines, place) in functions.iter().rev().take(12) {
        println!("  {lines:3} {place}");
    }
    let long = functions
        .iter()
        .filter(|(lines, _)| *lines > LONGEST)
        .count();
    assert_eq!(long, 0, "functions over {LONGEST} lines");
    assert!(ninth <= MOSTLY, "nine in ten up to {ninth} lines");
}

#[test]
fn a_type_has_a_name_of_its_own() {
    // The same face where a system or a feature is missing.
    let is_twin = |path: &String| path.contains("unsupported") || path.contains("no_");
    let mut twice = Vec::new();
    for folder in CRATES {
        let counts = Counts::of(&sources_below(folder));
        for (name, places) in &counts.types {
            if places.iter().filter(|path| !is_twin(path)).count() > 1 {
                twice.push(format!("{name}: {}", places.join(", ")));
            }
        }
    }
    assert!(twice.is_empty(), "{}", twice.join("\n"));
}

#[test]
fn sentences_open_with_their_subject() {
    let sentences = sentences(&sources());
    assert!(
        sentences.len() > 2_000,
        "only {} sentences",
        sentences.len()
    );
    let riddles: Vec<_> = sentences
        .iter()
        .filter(|sentence| opens_with_a_pronoun(sentence))
        .collect();
    let share = riddles.len() as f64 * 100.0 / sentences.len() as f64;
    println!(
        "{} of {} sentences: {share:.1} %",
        riddles.len(),
        sentences.len()
    );
    for riddle in &riddles {
        println!("  {riddle}");
    }
    assert!(share <= PRONOUNS, "{share:.1} % open with a pronoun");
}

#[test]
fn comments_keep_to_the_width_and_stand_alone() {
    let sources = sources();
    let wide = too_wide(&sources);
    assert!(wide.is_empty(), "{} lines: {}", wide.len(), wide.join(" "));
    let pages = pages();
    assert!(pages.len() > 10, "only {} pages", pages.len());
    let wide = wide_prose(&pages);
    assert!(wide.is_empty(), "{} lines: {}", wide.len(), wide.join(" "));
    let chained = chained(&sources);
    assert!(
        chained.is_empty(),
        "{}: {}",
        chained.len(),
        chained.join(" ")
    );
}

#[test]
fn a_module_says_where_it_runs() {
    for source in sources() {
        let is_test = source.path.contains("/tests/") || source.path.ends_with("loom.rs");
        let is_root = source.path.ends_with("/lib.rs") || source.path.contains("/bin/");
        if is_test || is_root {
            continue;
        }
        let head: String = source
            .text
            .lines()
            .take_while(|line| line.starts_with("//!"))
            .collect();
        assert!(head.contains("*Runs on:*"), "{}", source.path);
        assert!(!head.contains("*Here:*"), "{}", source.path);
    }
}

#[test]
fn the_counters_count() {
    let source = |path: &str, text: &str| Source {
        path: path.to_owned(),
        text: text.to_owned(),
    };
    let sources = [
        source(
            "a.rs",
            "//! What it is. It runs.\n/// … and that.\nstruct A;\nfn f() {\n}\n",
        ),
        source("b.rs", "#[cfg(test)]\nmod tests { fn g() {} }\nenum A {}\n"),
    ];
    let counts = Counts::of(&sources);
    assert_eq!(counts.functions, [(2, "a.rs:4 f".to_owned())]);
    assert_eq!(counts.types["A"].len(), 2);
    assert_eq!(sentences(&sources)[0], "What it is.");
    assert!(opens_with_a_pronoun("What it is."));
    assert_eq!(chained(&sources), ["a.rs:2"]);
    let wide = source("c.rs", &format!("// {}", "x".repeat(WIDTH)));
    assert_eq!(too_wide(&[wide]), ["c.rs:1"]);
    let words = "word ".repeat(WIDTH);
    let page = source(
        "d.md",
        &format!("| {words} |\n```\n{words}\n```\n{words}\n"),
    );
    assert_eq!(wide_prose(&[page]), ["d.md:5"]);
}
