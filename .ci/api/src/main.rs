//! Lists the public API of a crate by its rustdoc JSON, and names the faults of it.
//!
//! ```sh
//! api list FILE.json               # the API, one item a line
//! api faults FILE.json SEMVER.md   # the faults, one a line; fails if there are any
//! api format                       # the number of the JSON format that it reads
//! ```

mod list;
mod surface;

use std::error::Error;
use std::process::ExitCode;
use surface::Surface;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match arguments[..] {
        ["list", json] => list::of(json).map(print),
        ["faults", json, semver] => faults(json, semver).and_then(|faults| {
            let count = faults.len();
            print(faults);
            match count {
                0 => Ok(()),
                _ => Err(format!("{count} faults of the public API").into()),
            }
        }),
        ["format"] => {
            println!("{}", rustdoc_types::FORMAT_VERSION);
            Ok(())
        }
        _ => Err("usage: api list FILE.json | api faults FILE.json SEMVER.md | api format".into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn print(lines: Vec<String>) {
    for line in lines {
        println!("{line}");
    }
}

fn faults(json: &str, semver: &str) -> Result<Vec<String>, Box<dyn Error>> {
    let named = list::named_crates(&std::fs::read_to_string(semver)?);
    let used = list::crates_in(&list::of(json)?);
    let mut faults = Vec::new();
    for name in used.difference(&named) {
        faults.push(format!("{name}: in the API, and not named in {semver}"));
    }
    for name in named.difference(&used) {
        faults.push(format!("{name}: named in {semver}, and not in the API"));
    }
    let surface = Surface::read(json)?;
    faults.extend(surface.open());
    faults.extend(surface.without_example());
    Ok(faults)
}
