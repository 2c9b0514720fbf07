//! Turns arguments into work, and its end into an exit code.
//!
//! *Runs on:* the main thread.

use crate::observer::args::{self, Command, Options};
use crate::observer::problem::Problem;
use crate::observer::{attach, build, dump, merge, run};
use std::ffi::OsString;
use std::process::ExitCode;

/// The exit code of an error.
const FAILED: u8 = 2;

pub(crate) fn tokio_stall(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let mut arguments = arguments.peekable();
    if arguments.next_if(|first| first == build::RUNNER).is_some() {
        return finish("tokio-stall", run::observe(arguments));
    }
    finish("tokio-stall", args::parse(arguments).and_then(carry_out))
}

pub(crate) fn cargo_stall(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let mut arguments = arguments.peekable();
    arguments.next_if(|first| first == "stall");
    if arguments.next_if(|first| first == build::RUNNER).is_some() {
        return finish("cargo-stall", run::observe(arguments));
    }
    finish("cargo-stall", args::parse(arguments).and_then(carry_out))
}

fn finish(program: &str, result: Result<u8, Problem>) -> ExitCode {
    let code = result.unwrap_or_else(|problem| {
        eprintln!("{program}: {problem}");
        FAILED
    });
    ExitCode::from(code)
}

fn carry_out((command, options): (Command, Options)) -> Result<u8, Problem> {
    let mut out = std::io::stdout().lock();
    match command {
        Command::Help => print!("{}", args::HELP),
        Command::Version => println!("tokio-stall {}", env!("CARGO_PKG_VERSION")),
        Command::Dump(pid) => dump::dump(pid, &options, &mut out)?,
        Command::Attach(pid) => attach::attach(pid, &options, &mut out)?,
        Command::Report(path) => merge::report(&path, &options, &mut out)?,
        Command::Run(arguments) => return run::cargo(&["run"], &arguments, &options, &mut out),
        Command::Test(arguments) => return run::cargo(&["test"], &arguments, &options, &mut out),
        Command::Nextest(arguments) => {
            return run::cargo(&["nextest", "run"], &arguments, &options, &mut out);
        }
    }
    Ok(0)
}
