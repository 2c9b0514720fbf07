//! From arguments to work, and to an exit code.

use crate::args::{self, Command, Options};
use crate::problem::Problem;
use crate::{attach, dump};
use std::ffi::OsString;
use std::process::ExitCode;

/// The exit code of an error.
const FAILED: u8 = 2;

pub(crate) fn tokio_stall(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    finish("tokio-stall", args::parse(arguments).and_then(run))
}

pub(crate) fn cargo_stall(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let mut arguments = arguments.peekable();
    arguments.next_if(|first| first == "stall");
    finish("cargo-stall", args::parse(arguments).and_then(run))
}

fn finish(program: &str, result: Result<u8, Problem>) -> ExitCode {
    let code = result.unwrap_or_else(|problem| {
        eprintln!("{program}: {problem}");
        FAILED
    });
    ExitCode::from(code)
}

fn run((command, options): (Command, Options)) -> Result<u8, Problem> {
    let mut out = std::io::stdout().lock();
    match command {
        Command::Help => print!("{}", args::HELP),
        Command::Version => println!("tokio-stall {}", env!("CARGO_PKG_VERSION")),
        Command::Dump(pid) => dump::dump(pid, &options, &mut out)?,
        Command::Attach(pid) => attach::attach(pid, &options, &mut out)?,
        _ => todo!(),
    }
    Ok(0)
}
